//! What pods left on the node that nobody knows any more: directories, cgroups and logs without a pod.
//!
//! A worker removes what its pod leaves, also after a restart, because the journal has its record. This is for what no
//! record and no container tells of: a journal that was lost or set aside, a node that another agent ran before. It is
//! asked only when every source has delivered and the runtime was listed: until then, not to be known says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::execute::remove_log_directory;
use super::shared::Shared;
use crate::ids::PodUid;
use crate::metrics::METRICS;

/// Everything of one pod that is on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// It has a directory of volumes, or a cgroup.
    pub has_places: bool,
    /// Its log directories, by name.
    pub logs: Vec<String>,
}

/// What is there by pod, except of pods that are known. Pure.
pub fn plan(
    places: BTreeSet<PodUid>,
    log_directories: Vec<String>,
    is_known: impl Fn(&PodUid) -> bool,
) -> BTreeMap<PodUid, Found> {
    let mut found: BTreeMap<PodUid, Found> = BTreeMap::new();
    for uid in places {
        found.entry(uid).or_default().has_places = true;
    }
    for name in log_directories {
        if let Some(uid) = pod_of_log_directory(&name) {
            found.entry(uid).or_default().logs.push(name);
        }
    }
    found.retain(|uid, _| !is_known(uid));
    found
}

/// The UID in `NAMESPACE_NAME_UID`; none of the three can hold a `_`. Any other directory is somebody else's.
fn pod_of_log_directory(name: &str) -> Option<PodUid> {
    match name.split('_').collect::<Vec<_>>()[..] {
        [namespace, pod, uid] if ![namespace, pod, uid].contains(&"") => Some(PodUid::new(uid)),
        _ => None,
    }
}

/// UIDs that have a directory or a cgroup, and names of log directories.
pub type Left = (BTreeSet<PodUid>, Vec<String>);

/// Looks at the node; an error when it cannot be seen as a whole.
pub async fn look(shared: &Shared) -> Result<Left, String> {
    let places = shared.facilities.existing_pods().await?;
    let dir = shared.settings.log_dir.clone();
    let logs = tokio::task::spawn_blocking(move || {
        directories(&dir).map_err(|error| format!("list log directory {}: {error}", dir.display()))
    });
    Ok((places, logs.await.map_err(|error| error.to_string())??))
}

fn directories(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

/// Removes what was found; processes in the cgroup are killed. What cannot go is said, and found again next time.
pub async fn remove(shared: Arc<Shared>, uid: PodUid, found: Found) {
    tracing::warn!(pod_uid = %uid, ?found, "nobody knows this pod; removing what it left");
    let mut problems = Vec::new();
    if found.has_places {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_string());
        // The processes first: they may hold what is in the directory.
        problems.extend(shared.facilities.remove_cgroup(&Arc::new(pod)).await.err());
        let volumes = shared.facilities.remove_volumes(&uid).await;
        METRICS.garbage.orphans.0.add(1);
        METRICS.garbage.orphans.1.add(i64::from(volumes.is_err()));
        problems.extend(volumes.err());
    }
    for name in &found.logs {
        problems.extend(remove_log_directory(&shared.settings, name).await.err());
    }
    for problem in problems {
        tracing::warn!(pod_uid = %uid, %problem, "what a pod left stays for now");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(names: &[&str]) -> BTreeSet<PodUid> {
        names.iter().map(PodUid::new).collect()
    }

    #[test]
    fn what_belongs_to_known_pods_stays() {
        let logs = ["default_web_a", "default_old_b", "default_older_c"].map(str::to_owned).to_vec();
        let found = plan(uids(&["a", "b", "d"]), logs, |uid| uid.as_str() == "a");
        let log = |name: &str| vec![name.to_owned()];
        let expected = [
            ("b", Found { has_places: true, logs: log("default_old_b") }),
            ("c", Found { has_places: false, logs: log("default_older_c") }),
            ("d", Found { has_places: true, logs: vec![] }),
        ];
        assert_eq!(found, expected.into_iter().map(|(uid, found)| (PodUid::new(uid), found)).collect());
    }

    #[test]
    fn a_directory_that_is_no_pods_is_not_touched() {
        for name in ["journal", "a_b", "a_b_c_d", "__c", "a__c", "a_b_"] {
            assert_eq!(pod_of_log_directory(name), None, "{name}");
        }
        assert_eq!(pod_of_log_directory("kube-system_dns-x_1-2"), Some(PodUid::new("1-2")));
    }
}
