//! The agent's own calls to the CNI chain of pods. The runtime makes and removes attachments; the agent asks why the network
//! is not ready (STATUS), and after a start looks whether attachments are as they were made (CHECK) and releases those that
//! no sandbox has any more (GC): an address that leaked while nobody looked is an address less for pods.
//!
//! Directories are those that the runtime tells (containerd does, in its verbose status), else the usual ones.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nodelet_cni::client::{CachedAttachment, ChainError, Client, Config as NetworkConfig, NetworkList};
use nodelet_cni::protocol::AttachmentId;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cri::Runtime;
use crate::event::{Event, EventType, Recorder, Subject};

/// libcni's result cache, which containerd and CRI-O share.
const CACHE: &str = "/var/lib/cni";
const BIN: &str = "/opt/cni/bin";
/// A plugin that takes longer is stuck.
const PLUGIN_DEADLINE: Duration = Duration::from_secs(10);
/// Pods come first after a start.
const SETTLE: Duration = Duration::from_secs(10);
/// The interface that CRI runtimes give pods.
const INTERFACE: &str = "eth0";

/// Where configurations and plugins are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Places {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
}

/// From the runtime's verbose status. Pure.
fn places(info: &HashMap<String, String>, configured: &Path) -> Places {
    let config: Value = info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let cni = &config["cni"];
    let path = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(PathBuf::from);
    let mut bin_dirs: Vec<PathBuf> = cni["binDirs"].as_array().into_iter().flatten().filter_map(path).collect();
    if bin_dirs.is_empty() {
        bin_dirs.push(path(&cni["binDir"]).unwrap_or_else(|| BIN.into()));
    }
    Places { conf_dir: path(&cni["confDir"]).unwrap_or_else(|| configured.to_owned()), bin_dirs }
}

/// The pods' network as the agent asks about it.
#[derive(Clone)]
pub struct Network {
    runtime: Runtime,
    /// `--cni-conf-dir`, for runtimes that do not say theirs.
    configured: PathBuf,
}

impl Network {
    /// Nothing is asked yet.
    pub fn new(runtime: Runtime, configured: Option<&Path>) -> Self {
        Self { runtime, configured: configured.unwrap_or(Path::new("/etc/cni/net.d")).to_owned() }
    }

    async fn open(&self) -> Result<(NetworkList, Client), String> {
        let info = self.runtime.status_info().await.map_err(|error| error.to_string())?;
        let Places { conf_dir, bin_dirs } = places(&info, &self.configured);
        let list = NetworkConfig::load(&conf_dir).map_err(|error| error.to_string())?;
        Ok((list, Client::new(bin_dirs, CACHE.into(), PLUGIN_DEADLINE)))
    }

    /// Why pods get no network, as precisely as configuration and plugins tell; `None` when they see nothing wrong.
    pub async fn trouble(&self) -> Option<String> {
        match self.open().await {
            Ok((list, client)) => list.status(&client).await.err().map(|error| error.to_string()),
            Err(error) => Some(error),
        }
    }

    /// CHECK of all attachments and GC, once, after the node has settled. Nothing depends on either.
    pub async fn tidy(self, recorder: Recorder, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        let listed_at = SystemTime::now();
        let sandboxes = match self.runtime.sandbox_ids().await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::warn!(%error, "pods' networks are not checked: the runtime does not list its sandboxes");
                return;
            }
        };
        let Ok((list, client)) = self.open().await else { return };
        let cached = match list.cached_attachments(&client) {
            Ok(cached) => cached,
            Err(error) => {
                tracing::warn!(%error, "pods' networks are not checked");
                return;
            }
        };
        let Judged { ours, valid } = judge(&cached, &sandboxes, |netns| Path::new(netns).exists());
        for attachment in ours {
            if let Err(error) = list.check(&client, &attachment.args()).await {
                report_check(&recorder, attachment, &error);
            }
        }
        match list.gc(&client, &valid, listed_at).await {
            Ok(()) => tracing::info!(network = %list.name, valid = valid.len(), "network attachments checked"),
            Err(error) => tracing::warn!(%error, "attachments of pods that are gone are not all released"),
        }
    }
}

fn report_check(recorder: &Recorder, attachment: &CachedAttachment, error: &ChainError) {
    if matches!(error, ChainError::Unsupported(_)) {
        return tracing::debug!(%error, "no CHECK");
    }
    let message = format!("network of sandbox {} is not as it was made: {error}", attachment.container_id);
    recorder.emit(Event { subject: Subject::Node, kind: EventType::Warning, reason: "NetworkCheckFailed", message });
}

/// What the cache says, sorted. Pure but for the question whether a namespace exists.
struct Judged<'a> {
    /// Attachments of sandboxes that run.
    ours: Vec<&'a CachedAttachment>,
    /// Attachments that stay.
    valid: Vec<AttachmentId>,
}

/// The cache may be shared with other runtimes of this machine: an attachment whose namespace is still there is somebody's,
/// and stays.
fn judge<'a>(
    cached: &'a [CachedAttachment],
    sandboxes: &BTreeSet<String>,
    exists: impl Fn(&str) -> bool,
) -> Judged<'a> {
    let (ours, others): (Vec<_>, Vec<_>) = cached.iter().partition(|a| sandboxes.contains(&a.container_id));
    let foreign = others.into_iter().filter(|a| !a.netns.is_empty() && exists(&a.netns)).map(CachedAttachment::id);
    let named = sandboxes
        .iter()
        .map(|id| AttachmentId { container_id: id.clone(), ifname: INTERFACE.to_owned() })
        .chain(ours.iter().map(|a| a.id()));
    let mut valid: Vec<AttachmentId> = named.chain(foreign).collect();
    valid.sort_by(|a, b| (&a.container_id, &a.ifname).cmp(&(&b.container_id, &b.ifname)));
    valid.dedup();
    let ours = ours.into_iter().filter(|a| exists(&a.netns)).collect();
    Judged { ours, valid }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> HashMap<String, String> {
        [("config".to_owned(), text.to_owned())].into()
    }

    #[test]
    fn directories_come_from_the_runtime_of_either_generation() {
        let configured = Path::new("/etc/cni/net.d");
        let old = places(&info(r#"{"cni":{"binDir":"/b","confDir":"/c"}}"#), configured);
        assert_eq!(old, Places { conf_dir: "/c".into(), bin_dirs: vec!["/b".into()] });
        let new = places(&info(r#"{"cni":{"binDir":"","binDirs":["/b1","/b2"],"confDir":"/c"}}"#), configured);
        assert_eq!(new.bin_dirs, ["/b1", "/b2"].map(PathBuf::from));
        let silent = places(&HashMap::new(), configured);
        assert_eq!(silent, Places { conf_dir: configured.into(), bin_dirs: vec![BIN.into()] });
    }

    #[test]
    fn only_attachments_without_sandbox_and_namespace_are_released() {
        let attachment = |id: &str, netns: &str| -> CachedAttachment {
            let json = serde_json::json!({ "kind": "cniCacheV1", "containerId": id, "config": "", "ifName": "eth0",
                "networkName": "n", "netns": netns });
            serde_json::from_value(json).unwrap()
        };
        let cached = [attachment("runs", "/there"), attachment("leaked", "/gone"), attachment("foreign", "/there")];
        let sandboxes = ["runs".to_owned(), "uncached".to_owned()].into();
        let judged = judge(&cached, &sandboxes, |netns| netns == "/there");
        let valid: Vec<&str> = judged.valid.iter().map(|id| id.container_id.as_str()).collect();
        assert_eq!(valid, ["foreign", "runs", "uncached"]);
        assert_eq!(judged.ours.iter().map(|a| a.container_id.as_str()).collect::<Vec<_>>(), ["runs"]);
    }
}
