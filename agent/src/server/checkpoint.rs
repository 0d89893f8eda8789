//! `/checkpoint`: the runtime writes a container's memory and files into an archive, for forensics.
//!
//! Kubelet lets callers write as many archives as they like, and only an administrator removes them; that filled disks
//! (CVE-2025-0426). Here there are at most `MOST` at a time, one is made at a time, and none when the file system has
//! less than `SPARE` percent left.

use std::path::{Path, PathBuf};

use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use super::answer::{Answer, Body, Refusal, document};
use super::handle::Api;
use super::route::Target;
use super::usage::FileSystem;
use crate::logs::choose;
use crate::pod::spec;

/// Archives that are kept.
const MOST: usize = 16;
/// Percent of the file system that have to be free.
const SPARE: u64 = 20;

/// Why no archive is made now, if so.
fn refusal(dir: &Path, archives: usize, disk: FileSystem) -> Option<String> {
    if archives >= MOST {
        return Some(format!("{} has {archives} archives, and {MOST} are the most; remove some", dir.display()));
    }
    let free = disk.available.saturating_mul(100) / disk.capacity.max(1);
    (free < SPARE).then(|| format!("{} has {free} % left, and {SPARE} % are needed; make room", dir.display()))
}

/// Kubelet's name of an archive.
fn name(target: &Target, now: Timestamp) -> String {
    let Target { namespace, pod, container, .. } = target;
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ");
    format!("checkpoint-{pod}_{namespace}-{container}-{now}.tar")
}

fn look(dir: &Path) -> std::io::Result<usize> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    Ok(std::fs::read_dir(dir)?.count())
}

/// Makes an archive and answers where it is.
pub(super) async fn checkpoint(api: &Api, target: &Target, query: &[(String, String)]) -> Answer {
    let found = api.view.pod(&target.namespace, &target.pod);
    let pod = found.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "pod does not exist".to_owned()))?;
    let missing = || Refusal(StatusCode::NOT_FOUND, format!("container {} does not exist", target.container));
    spec::roles(&pod).find(|(name, _)| *name == target.container).ok_or_else(missing)?;
    let timeout = match query.iter().rfind(|(name, _)| name == "timeout") {
        Some((_, text)) => {
            let bad = |_| Refusal(StatusCode::NOT_FOUND, "cannot parse value of timeout parameter".to_owned());
            text.parse::<i64>().map_err(bad)?
        }
        None => 0,
    };
    make(api, target, &pod, timeout).await.map_err(|reason| {
        let Target { namespace, pod, container, .. } = target;
        let content = format!("checkpointing of {namespace}/{pod}/{container} failed ({reason})");
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, content)
    })
}

async fn make(
    api: &Api,
    target: &Target,
    pod: &k8s_openapi::api::core::v1::Pod,
    timeout: i64,
) -> Result<Response<Body>, String> {
    let _turn = api.checkpoint_turn.try_acquire().map_err(|_| "another one is being made; try again".to_owned())?;
    let status = choose::statuses(pod).find(|status| status.name == target.container);
    let running = status.filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let id = running.and_then(|status| Some(status.container_id.as_ref()?.split_once("://")?.1.to_owned()));
    let id = id.ok_or_else(|| format!("container {} not found", target.container))?;
    let dir = api.checkpoints.clone();
    let (archives, disk) = tokio::task::spawn_blocking(move || Ok((look(&dir)?, super::usage::file_system(&dir))))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error: std::io::Error| format!("{}: {error}", api.checkpoints.display()))?;
    if let Some(reason) = refusal(&api.checkpoints, archives, disk) {
        return Err(reason);
    }
    let location: PathBuf = api.checkpoints.join(name(target, Timestamp::now()));
    let location = location.display().to_string();
    api.runtime.checkpoint(id, location.clone(), timeout).await.map_err(|error| error.to_string())?;
    Ok(document(&json!({ "items": [location] })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_limited_in_number_and_by_room() {
        let dir = Path::new("/c");
        let disk = |available| FileSystem { capacity: 1000, available, ..FileSystem::default() };
        assert_eq!(refusal(dir, 0, disk(500)), None);
        assert_eq!(refusal(dir, 15, disk(500)), None);
        assert!(refusal(dir, 16, disk(500)).is_some_and(|text| text.contains("remove some")));
        assert!(refusal(dir, 0, disk(199)).is_some_and(|text| text.contains("19 % left")));
        assert!(refusal(dir, 0, FileSystem::default()).is_some(), "a file system that cannot be measured has no room");
    }

    #[test]
    fn an_archive_has_kubelets_name() {
        let target = Target { namespace: "n".into(), pod: "p".into(), uid: None, container: "c".into() };
        let now = Timestamp::from_second(0).unwrap();
        assert_eq!(name(&target, now), "checkpoint-p_n-c-1970-01-01T00:00:00Z.tar");
    }
}
