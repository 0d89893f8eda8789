//! Static pods: files below `staticPodPath`, run without asking anybody. kubeadm's control plane is made of them.
//!
//! A file is one Pod in YAML or JSON. Its identity is derived from its content ([`identity`]), so an edited file is another
//! pod: the old one stops, the new one starts. A bad file is reported once, and what it last said stays. Reading is
//! triggered by inotify when a writer has closed the file; a rescan every few minutes covers file systems that do not tell.
//! [`mirror`] shows static pods at the API server.
//!
//! What it does not do: pods from a URL (`staticPodURL`), and remember a good file across a restart of the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{SourceName, SourceUpdate};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::{NodeName, ObjectKey, PodUid};

pub mod identity;
pub mod mirror;

/// Full check, for events that the file system did not deliver.
const RESCAN: Duration = Duration::from_secs(300);
/// How often a directory that does not exist is looked for.
const REOPEN: Duration = Duration::from_secs(20);
/// As kubelet reads at most.
const READ_LIMIT: u64 = 10 << 20;
/// Somebody who writes without end does not hold back the other files for longer.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The static pods that are wanted now, by namespace and name.
pub type StaticPods = BTreeMap<ObjectKey, Arc<Pod>>;

/// Where static pods come from and go to.
pub struct StaticSource {
    /// A directory, or a single file.
    pub path: PathBuf,
    /// The node, part of every name.
    pub node: NodeName,
    /// The pod manager.
    pub updates: mpsc::UnboundedSender<SourceUpdate>,
    /// For [`mirror`].
    pub pods: watch::Sender<StaticPods>,
    /// Bad files.
    pub events: Recorder,
}

/// What is known about one file.
#[derive(Default)]
struct FileState {
    content: Option<Vec<u8>>,
    pod: Option<Arc<Pod>>,
    problem: Option<String>,
}

/// What one pass found in one file.
pub(crate) enum FileRead {
    /// Its content.
    Content(Vec<u8>),
    /// It cannot be read now.
    Failed(String),
}

/// The directory as it was last understood. Pure.
#[derive(Default)]
pub(crate) struct Files {
    files: BTreeMap<PathBuf, FileState>,
}

impl Files {
    /// Takes in one complete pass. Answers problems that have not been reported before.
    pub(crate) fn apply(&mut self, read: BTreeMap<PathBuf, FileRead>, node: &NodeName, now: &str) -> Vec<String> {
        self.files.retain(|path, _| read.contains_key(path));
        let mut reports = Vec::new();
        for (path, read) in read {
            let state = self.files.entry(path.clone()).or_default();
            let problem = match read {
                FileRead::Content(content) if state.content.as_ref() == Some(&content) => continue,
                FileRead::Content(content) => {
                    let result = identity::static_pod(&path, &content, node, now);
                    state.content = Some(content);
                    match result {
                        Ok(pod) => {
                            // The same pod keeps its object: `config.seen` is the first time.
                            let known = state.pod.as_ref().filter(|old| old.metadata.uid == pod.metadata.uid);
                            state.pod = Some(known.cloned().unwrap_or_else(|| Arc::new(pod)));
                            None
                        }
                        Err(error) => Some(error),
                    }
                }
                FileRead::Failed(error) => Some(format!("{}: {error}", path.display())),
            };
            if problem.is_some() && state.problem != problem {
                let stays = if state.pod.is_some() { "; its last good state stays" } else { "; nothing of it is used" };
                reports.extend(problem.as_ref().map(|text| format!("{text}{stays}")));
            }
            state.problem = problem;
        }
        reports
    }

    /// The wanted pods; of two files with one pod the first by name counts.
    pub(crate) fn pods(&self) -> (StaticPods, Vec<String>) {
        let mut pods = StaticPods::new();
        let mut reports = Vec::new();
        for (path, pod) in self.files.iter().filter_map(|(path, state)| Some((path, state.pod.as_ref()?))) {
            let meta = &pod.metadata;
            let key =
                ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
            match pods.entry(key) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(pod.clone())),
                std::collections::btree_map::Entry::Occupied(entry) => reports.push(format!(
                    "{}: pod {} is already defined in another file; this one is not used",
                    path.display(),
                    entry.key()
                )),
            }
        }
        (pods, reports)
    }
}

/// The changes from one set of pods to the next: removals first, so that ports are free.
pub(crate) fn diff(old: &StaticPods, new: &StaticPods) -> Vec<SourceUpdate> {
    let uids = |pods: &StaticPods| -> BTreeSet<PodUid> { pods.values().filter_map(|pod| uid(pod)).collect() };
    let (before, after) = (uids(old), uids(new));
    let removed = before.difference(&after).map(|uid| SourceUpdate::Remove(SourceName::Static, uid.clone()));
    let added = new.values().filter(|pod| uid(pod).is_some_and(|uid| !before.contains(&uid)));
    removed.chain(added.map(|pod| SourceUpdate::Upsert(SourceName::Static, pod.clone()))).collect()
}

fn uid(pod: &Pod) -> Option<PodUid> {
    pod.metadata.uid.as_deref().map(PodUid::new)
}

/// Reads and follows the path for ever. Ends when the pod manager is gone.
pub async fn run(source: StaticSource) {
    let mut files = Files::default();
    let mut current = StaticPods::new();
    let mut told = BTreeSet::new();
    let mut first = true;
    loop {
        // Opened before the pass, so that no change falls between the two.
        let mut events = watch_path(&source.path);
        if let Ok(read) = read_all(source.path.clone()).await {
            let now = jiff::Timestamp::now().to_string();
            let mut reports = files.apply(read, &source.node, &now);
            let (pods, duplicates) = files.pods();
            reports.extend(duplicates.iter().filter(|text| !told.contains(*text)).cloned());
            told = duplicates.into_iter().collect();
            report(&source, reports);
            for update in diff(&current, &pods) {
                if source.updates.send(update).is_err() {
                    return;
                }
            }
            current = pods.clone();
            source.pods.send_replace(pods);
        }
        if std::mem::take(&mut first) {
            // A path that cannot be read is a source without pods: waiting for it would keep all others waiting.
            let uids = current.values().filter_map(|pod| uid(pod)).collect();
            if source.updates.send(SourceUpdate::Synced(SourceName::Static, uids)).is_err() {
                return;
            }
        }
        wait(&mut events).await;
    }
}

fn report(source: &StaticSource, reports: Vec<String>) {
    for message in reports {
        tracing::error!("static pod: {message}");
        source.events.emit(Event {
            subject: Subject::Node,
            kind: EventType::Warning,
            reason: "FailedValidation",
            message,
        });
    }
}

type Events = EventStream<[u8; 4096]>;

fn watch_path(path: &Path) -> Option<Events> {
    let open = || {
        let inotify = Inotify::init()?;
        inotify.watches().add(
            path,
            WatchMask::CREATE
                | WatchMask::MODIFY
                | WatchMask::CLOSE_WRITE
                | WatchMask::MOVED_TO
                | WatchMask::MOVED_FROM
                | WatchMask::DELETE
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF,
        )?;
        inotify.into_event_stream([0; 4096])
    };
    open().inspect_err(|error: &std::io::Error| tracing::debug!(path = %path.display(), %error, "cannot watch")).ok()
}

/// Waits until the path may be read again: see [`settle`]; or until a rescan is due.
async fn wait(events: &mut Option<Events>) {
    let Some(events) = events else { return tokio::time::sleep(REOPEN).await };
    let rescan = Instant::now() + RESCAN;
    let mut due = rescan;
    let mut latest = None;
    loop {
        // Cancel-safe: an event that is not taken here is still queued, and the pass after this reads everything anyway.
        match tokio::time::timeout_at(due, events.next()).await {
            Err(_) | Ok(None) => return,
            Ok(Some(Err(_))) => return tokio::time::sleep(settle(EventMask::CREATE)).await,
            Ok(Some(Ok(event))) => {
                let now = Instant::now();
                let latest = *latest.get_or_insert(now + MAX_DELAY);
                due = (now + settle(event.mask)).min(latest).min(rescan);
            }
        }
    }
}

/// How long after an event the files are complete: a prefix of a YAML file is often a good YAML file, and an editor
/// moves the old file away before the new one is there.
fn settle(mask: EventMask) -> Duration {
    let millis = match () {
        () if mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) => 10,
        () if mask.contains(EventMask::MODIFY) => 1000,
        () if mask.contains(EventMask::CREATE) => 200,
        () => 100,
    };
    Duration::from_millis(millis)
}

/// One pass; an error means that nothing is known, not that there are no files.
async fn read_all(path: PathBuf) -> Result<BTreeMap<PathBuf, FileRead>, ()> {
    let task = tokio::task::spawn_blocking(move || list(&path).map_err(|error| (path, error)));
    match task.await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err((path, error))) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::debug!(path = %path.display(), "staticPodPath does not exist; its pods stay as they are");
            Err(())
        }
        Ok(Err((path, error))) => {
            tracing::warn!(path = %path.display(), %error, "staticPodPath cannot be read; its pods stay as they are");
            Err(())
        }
        Err(error) => {
            tracing::error!(%error, "reading static pods failed");
            Err(())
        }
    }
}

fn list(path: &Path) -> std::io::Result<BTreeMap<PathBuf, FileRead>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(BTreeMap::from([(path.to_owned(), read_file(path))]));
    }
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => drop(files.insert(path.clone(), read_file(&path))),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => drop(files.insert(path, FileRead::Failed(error.to_string()))),
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> FileRead {
    let mut content = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(READ_LIMIT + 1).read_to_end(&mut content));
    match read {
        Ok(length) if length as u64 > READ_LIMIT => FileRead::Failed(format!("is larger than {READ_LIMIT} bytes")),
        Ok(_) => FileRead::Content(content),
        Err(error) => FileRead::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
