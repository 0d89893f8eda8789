//! What must survive the agent but not the machine: one small file a pod.
//!
//! The runtime knows containers and the API server knows pods, but neither knows that a termination was under way, which
//! status was given out last, or (when the API server is away) what was desired. A record is written to a temporary file
//! and renamed, without fsync: a killed agent loses nothing that the page cache holds, and after a power cut no container
//! runs any more, so that an old or missing record costs a fresh status and nothing else. A record that cannot be read is
//! set aside as `*.corrupt` and reported; it never stops the agent.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde::{Deserialize, Serialize};

use super::lifecycle::Lifecycle;
use super::shared::what_to_do;
use crate::cri::{Known, Nanos};
use crate::ids::{ContainerId, PodUid, SandboxId};
use crate::source::SourceName;

/// Version of the record's format; a record of another version is set aside.
const VERSION: u32 = 1;

/// What is remembered of a pod over restarts of the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// Where the pod came from.
    pub source: SourceName,
    /// The pod as it was last desired.
    pub pod: Pod,
    /// The status as it was last given out.
    pub status: PodStatus,
    /// Where it was in its life.
    pub lifecycle: Lifecycle,
    /// When the agent first acknowledged it.
    pub started_at: Nanos,
    /// Its sandboxes; containers are named by the status. What is written here is not gone before the runtime says so.
    #[serde(default)]
    pub sandboxes: Vec<String>,
}

impl Record {
    /// What the runtime had of the pod when the record was written.
    pub fn known(&self) -> Known {
        let status = &self.status;
        let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
        let ids = lists.into_iter().flatten().flatten().filter_map(|c| c.container_id.as_deref()?.split_once("://"));
        Known {
            sandboxes: self.sandboxes.iter().map(SandboxId::new).collect(),
            containers: ids.map(|(_, id)| (ContainerId::new(id), SandboxId::new(""))).collect(),
        }
    }

    /// A record in the current format.
    pub fn new(source: SourceName, pod: Pod, status: PodStatus, lifecycle: Lifecycle, started_at: Nanos) -> Self {
        Self { version: VERSION, source, pod, status, lifecycle, started_at, sandboxes: Vec::new() }
    }
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: PathBuf,
    /// Records that could not be written, and why.
    unwritten: Arc<Mutex<BTreeMap<PodUid, String>>>,
}

impl Journal {
    /// Opens (and makes) the directory, and removes records that a killed agent had not finished.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "tmp") {
                std::fs::remove_file(path)?;
            }
        }
        Ok(Self { dir, unwritten: Arc::default() })
    }

    fn unwritten(&self) -> MutexGuard<'_, BTreeMap<PodUid, String>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong, when records cannot be written. What they say is in memory as long as the agent runs.
    pub fn trouble(&self) -> Option<String> {
        let unwritten = self.unwritten();
        let error = unwritten.values().next()?;
        let hint = what_to_do(error).map(|hint| format!("; {hint}")).unwrap_or_default();
        Some(format!("records of {} pods cannot be written in {}: {error}{hint}", unwritten.len(), self.dir.display()))
    }

    /// All records that can be read.
    pub fn load(&self) -> Vec<Record> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::error!(dir = %self.dir.display(), %error, "cannot read the pod journal, starting without it");
                return Vec::new();
            }
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(|path| path.extension().is_some_and(|e| e == "json")).filter_map(|path| read(&path)).collect()
    }

    /// Writes a record; answers whether that was possible.
    pub fn store(&self, uid: &PodUid, record: &Record) -> bool {
        let path = self.path(uid);
        let temporary = path.with_extension("tmp");
        let written = serde_json::to_vec(record)
            .map_err(io::Error::other)
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &path));
        match &written {
            Ok(()) => drop(self.unwritten().remove(uid)),
            Err(error) => {
                let before = self.unwritten().insert(uid.clone(), error.to_string());
                // It is tried again every ten seconds: the same trouble is told once.
                if before.is_none_or(|before| before != error.to_string()) {
                    tracing::warn!(path = %path.display(), %error, "cannot write the pod journal; trying again every ten seconds");
                }
                // What could be written of it takes room on a disk that may be full.
                let _ = std::fs::remove_file(&temporary);
            }
        }
        written.is_ok()
    }

    /// Removes a record.
    pub fn remove(&self, uid: &PodUid) {
        self.unwritten().remove(uid);
        if let Err(error) = std::fs::remove_file(self.path(uid))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(pod_uid = %uid, %error, "cannot remove a pod's journal record");
        }
    }

    /// UIDs are made by the API server or by us, but they come over a wire: nothing of them may leave the directory.
    fn path(&self, uid: &PodUid) -> PathBuf {
        let safe: String =
            uid.as_str().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.dir.join(format!("{safe}.json"))
    }
}

fn read(path: &Path) -> Option<Record> {
    let problem = match std::fs::read_to_string(path) {
        Ok(text) => match serde_json::from_str::<Record>(&text) {
            Ok(record) if record.version == VERSION => return Some(record),
            Ok(record) => format!("version {} instead of {VERSION}", record.version),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    let aside = path.with_extension("corrupt");
    tracing::error!(path = %path.display(), %problem, aside = %aside.display(), "unreadable pod record set aside");
    if let Err(error) = std::fs::rename(path, &aside) {
        tracing::warn!(path = %path.display(), %error, "cannot set the record aside");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        Record::new(SourceName::Api, pod, PodStatus::default(), Lifecycle::Syncing, 7)
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("pods")).unwrap();
        journal.store(&PodUid::new("u-1"), &record("a"));
        let loaded = journal.load();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].pod.metadata.name.as_deref(), Some("a"));
        journal.remove(&PodUid::new("u-1"));
        assert!(journal.load().is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_written_is_a_trouble_until_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("pods")).unwrap();
        std::fs::remove_dir_all(dir.path().join("pods")).unwrap();
        assert!(!journal.store(&PodUid::new("u-1"), &record("a")) && !journal.store(&PodUid::new("u-2"), &record("b")));
        let told = journal.trouble().unwrap();
        assert!(told.starts_with("records of 2 pods cannot be written in ") && told.contains("No such file"), "{told}");
        std::fs::create_dir(dir.path().join("pods")).unwrap();
        assert!(journal.store(&PodUid::new("u-1"), &record("a")));
        journal.remove(&PodUid::new("u-2"));
        assert_eq!(journal.trouble(), None);
    }

    #[test]
    fn a_record_cut_off_at_any_byte_is_set_aside_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().into()).unwrap();
        journal.store(&PodUid::new("good"), &record("good"));
        let bytes = serde_json::to_vec(&record("bad")).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(dir.path().join("bad.json"), &bytes[..length]).unwrap();
            let names: Vec<_> = journal.load().into_iter().filter_map(|r| r.pod.metadata.name).collect();
            assert_eq!(names, ["good"], "cut at {length}");
            assert!(dir.path().join("bad.corrupt").exists());
        }
    }

    #[test]
    fn a_record_that_a_killed_agent_had_not_finished_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().into()).unwrap();
        journal.store(&PodUid::new("good"), &record("good"));
        std::fs::write(dir.path().join("gone.tmp"), "{\"ver").unwrap();
        assert_eq!(Journal::open(dir.path().into()).unwrap().load().len(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_uid_cannot_name_a_path_outside_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path().join("pods")).unwrap();
        journal.store(&PodUid::new("../../etc/passwd"), &record("x"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(journal.load().len(), 1);
    }
}
