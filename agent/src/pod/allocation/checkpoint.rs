//! `allocated_pods_state` and `actuated_pods_state` in kubelet's directory: one JSON file for all pods.
//!
//! ```text
//! {"data":"{\"entries\":{\"UID\":{\"ContainerResources\":{...},\"PodLevelResources\":null,\"EmptyDirVolumeLimits\":null}}}",
//!  "checksum":1057597732}
//! ```
//! The form and the checksum are those of k8s.io/kubernetes v1.37 (`pkg/kubelet/allocation/state`, `pkg/kubelet/
//! checkpointmanager`), so that a kubelet starts from what we wrote and we from what it wrote. A kubelet does not start with a
//! file that it cannot read; we set such a file aside and go on with what the journal of pods says.
//!
//! Written to a temporary file and renamed, without fsync, for the reasons of [`crate::pod::journal`]. A pod that ends is
//! only forgotten in memory, as by kubelet: the next change writes that, too.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::ResourceInfo;
use crate::ids::PodUid;

/// Name of the file with what pods were allocated.
pub const ALLOCATED: &str = "allocated_pods_state";
/// Name of the file with what was put into effect.
pub const ACTUATED: &str = "actuated_pods_state";

type Entries = BTreeMap<String, Arc<ResourceInfo>>;

#[derive(Serialize, Deserialize)]
struct Wire {
    data: String,
    checksum: u64,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<&'a str, &'a ResourceInfo>,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    entries: BTreeMap<String, ResourceInfo>,
}

/// Why a file is not a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Corrupt {
    /// Not the expected JSON.
    #[error("not a checkpoint: {0}")]
    Json(#[from] serde_json::Error),
    /// Cut off or changed by hand.
    #[error("the checksum is {found}, the data's is {expected}")]
    Checksum {
        /// What the file says.
        found: u64,
        /// What it would be.
        expected: u64,
    },
}

/// FNV-1a of the text that Go's spew makes of a string, which is `(string)` and the string.
fn checksum(data: &str) -> u64 {
    let bytes = b"(string)".iter().chain(data.as_bytes());
    u64::from(bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)))
}

fn encode(entries: &Entries) -> Result<Vec<u8>, serde_json::Error> {
    let entries = entries.iter().map(|(uid, info)| (uid.as_str(), info.as_ref())).collect();
    let data = serde_json::to_string(&Written { entries })?;
    serde_json::to_vec(&Wire { checksum: checksum(&data), data })
}

fn decode(bytes: &[u8]) -> Result<Entries, Corrupt> {
    let wire: Wire = serde_json::from_slice(bytes)?;
    let expected = checksum(&wire.data);
    if wire.checksum != expected {
        return Err(Corrupt::Checksum { found: wire.checksum, expected });
    }
    let entries = serde_json::from_str::<Read>(&wire.data)?.entries;
    Ok(entries.into_iter().map(|(uid, info)| (uid, Arc::new(info))).collect())
}

/// One of the two files and what it says.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    entries: Mutex<Entries>,
}

impl Checkpoint {
    /// Reads the file of this name in kubelet's directory, which is made if it is not there.
    pub fn open(directory: &Path, name: &str) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join(name);
        let entries = match std::fs::read(&path) {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|problem| {
                let aside = path.with_extension("corrupt");
                tracing::error!(path = %path.display(), %problem, aside = %aside.display(), "unreadable checkpoint set aside; pods keep what the journal says");
                if let Err(error) = std::fs::rename(&path, &aside) {
                    tracing::warn!(path = %path.display(), %error, "cannot set the checkpoint aside");
                }
                Entries::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, entries: Mutex::new(entries) })
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a pod.
    pub fn get(&self, uid: &PodUid) -> Option<Arc<ResourceInfo>> {
        self.entries().get(uid.as_str()).cloned()
    }

    /// Writes what holds for a pod; when that fails, what held before still does.
    pub fn set(&self, uid: &PodUid, info: ResourceInfo) -> io::Result<()> {
        let mut entries = self.entries();
        if entries.get(uid.as_str()).is_some_and(|known| **known == info) {
            return Ok(());
        }
        let before = entries.insert(uid.as_str().to_owned(), Arc::new(info));
        let written = self.write(&entries);
        if written.is_err() {
            match before {
                Some(before) => drop(entries.insert(uid.as_str().to_owned(), before)),
                None => drop(entries.remove(uid.as_str())),
            }
        }
        written
    }

    /// Forgets a pod.
    pub fn remove(&self, uid: &PodUid) {
        self.entries().remove(uid.as_str());
    }

    /// Forgets the pods that nobody knows.
    pub fn retain(&self, is_known: impl Fn(&PodUid) -> bool) {
        self.entries().retain(|uid, _| is_known(&PodUid::new(uid)));
    }

    fn write(&self, entries: &Entries) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        std::fs::write(&temporary, encode(entries)?)?;
        std::fs::rename(&temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `checkpointmanager` of k8s.io/kubernetes v1.37.2.
    const OF_KUBELET: &str = r#"{"checksum":1057597732,"data":"{\"entries\":{\"u1\":{\"ContainerResources\":{\"web\":{\"limits\":{\"cpu\":\"500m\"},\"requests\":{\"cpu\":\"250m\",\"memory\":\"64Mi\"}}},\"PodLevelResources\":null,\"EmptyDirVolumeLimits\":null}}}"}"#;

    #[test]
    fn a_checkpoint_of_kubelet_is_read_and_what_is_written_is_the_same() {
        let entries = decode(OF_KUBELET.as_bytes()).unwrap();
        assert_eq!(entries["u1"].amounts("web").memory_request, 64 << 20);
        let ours: serde_json::Value = serde_json::from_slice(&encode(&entries).unwrap()).unwrap();
        assert_eq!(ours, serde_json::from_str::<serde_json::Value>(OF_KUBELET).unwrap());
    }

    #[test]
    fn what_is_written_is_there_after_a_restart_and_what_ended_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (PodUid::new("one"), PodUid::new("two"));
        let checkpoint = Checkpoint::open(dir.path(), ALLOCATED).unwrap();
        checkpoint.set(&one, ResourceInfo::default()).unwrap();
        checkpoint.remove(&one);
        checkpoint.set(&two, ResourceInfo::default()).unwrap();
        let again = Checkpoint::open(dir.path(), ALLOCATED).unwrap();
        assert!(again.get(&one).is_none() && again.get(&two).is_some());
    }

    #[test]
    fn a_file_cut_off_at_any_byte_is_set_aside() {
        for length in 0..OF_KUBELET.len() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(ACTUATED), &OF_KUBELET[..length]).unwrap();
            let checkpoint = Checkpoint::open(dir.path(), ACTUATED).unwrap();
            assert!(checkpoint.get(&PodUid::new("u1")).is_none());
            assert!(dir.path().join("actuated_pods_state.corrupt").exists(), "cut at {length}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(&dir.path().join("kubelet"), ALLOCATED).unwrap();
        std::fs::remove_dir_all(dir.path().join("kubelet")).unwrap();
        checkpoint.set(&PodUid::new("u"), ResourceInfo::default()).unwrap_err();
        assert!(checkpoint.get(&PodUid::new("u")).is_none());
    }
}
