//! The manifest directory of `nodelet run --manifests DIR`: desired state without a control plane.
//!
//! Every `*.yaml`, `*.yml` and `*.json` directly below the directory is read; other files, dotfiles (editors' swap files)
//! and sub-directories are not. A file may be a symlink, so a mounted ConfigMap (`..data` swapped by rename) works.
//!
//! ```text
//!  inotify ─► Debounce (pure: is a writer still busy? is a file only being replaced?) ─► scan (reads what changed)
//!          ─► State::apply (pure) ─► Changes ─┬─► SourceUpdate to the pod manager
//!                                             ├─► AloneObjects: ConfigMaps, Secrets
//!                                             └─► Services, EndpointSlices to `alone`
//! ```
//!
//! - A file that cannot be read or decoded keeps its last good state, also over a restart of the agent: good contents
//!   are copied to the state directory. It is logged and evented once for each content.
//! - An object in two files: the file whose name sorts first wins, so that a restart decides alike.
//! - A pod's UID is a hash of namespace, name and spec. A changed spec is a new pod (old UID removed, new one wanted); labels
//!   and annotations change in place; the file that it stands in does not matter.
//! - Losing every inotify event only delays: the whole directory is checked again each five minutes.
//! - A directory that vanishes (unmounted, renamed) is not an order to stop everything: the state is kept and said.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchMask};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::NodeName;
use crate::source::{SourceName, SourceUpdate};
use crate::watch::WatchEvent;

mod debounce;
mod objects;
mod scan;
mod state;

#[cfg(test)]
mod tests;

pub use objects::AloneObjects;
pub use state::{Changes, FileRead, Note, Scan, State};

use debounce::{Debounce, Touch};

/// Full check of the directory, for events that the kernel or a network file system did not deliver.
const RESCAN: Duration = Duration::from_secs(300);

/// How long a vanished directory is left alone before it is looked for again.
const REOPEN: Duration = Duration::from_secs(5);

/// Where manifests are and what their pods are told about the node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The manifest directory.
    pub dir: PathBuf,
    /// Directory for copies of good manifests, readable by root only; made when missing.
    pub last_good: PathBuf,
    /// `spec.nodeName` of every pod.
    pub node_name: NodeName,
}

/// A Service or EndpointSlice of the manifests, for [`crate::alone`].
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "few, short-lived, and most are the large one")]
pub enum ServiceUpdate {
    /// About Services.
    Service(WatchEvent<Service>),
    /// About EndpointSlices written by hand.
    Slice(WatchEvent<EndpointSlice>),
}

/// Where the directory's content goes.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// Pods, for the pod manager.
    pub pods: mpsc::Sender<SourceUpdate>,
    /// ConfigMaps and Secrets.
    pub objects: Arc<AloneObjects>,
    /// Services and EndpointSlices. Unbounded: its reader never waits for this task.
    pub services: mpsc::UnboundedSender<ServiceUpdate>,
    /// Events about files that cannot be used.
    pub recorder: Recorder,
}

/// The directory could not be opened at start.
#[derive(Debug, thiserror::Error)]
#[error("manifest directory {dir}: {source}; make it, or name another with --manifests")]
pub struct OpenError {
    dir: String,
    source: std::io::Error,
}

/// A manifest directory that is being watched.
pub struct ManifestDir {
    settings: Settings,
    outputs: Outputs,
    events: EventStream<[u8; 4096]>,
    debounce: Debounce,
    state: State,
    scanner: scan::Scanner,
    first: bool,
}

impl ManifestDir {
    /// Opens the directory, so that a wrong path is found at start. Nothing is read yet.
    pub fn open(settings: Settings, outputs: Outputs) -> Result<Self, OpenError> {
        let events = watch(&settings)?;
        let state = State::new(settings.node_name.clone());
        let scanner = scan::Scanner::new(settings.dir.clone(), settings.last_good.clone());
        Ok(Self { settings, outputs, events, debounce: Debounce::default(), state, scanner, first: true })
    }

    /// Reads and follows the directory until `stop`. Ends early only when a receiver is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut rescan = Instant::now() + RESCAN;
        if self.scan().await.is_err() {
            return;
        }
        loop {
            let due = self.debounce.due().map_or(rescan, |due| Instant::from_std(due).min(rescan));
            tokio::select! {
                () = stop.cancelled() => return,
                event = self.events.next() => match event {
                    Some(Ok(event)) if gone(&event) => {
                        tracing::warn!(dir = %self.settings.dir.display(), "manifest directory is gone; its pods stay as they are until it is back");
                        if !self.reopen(&stop).await {
                            return;
                        }
                        self.debounce.everything(std::time::Instant::now());
                    }
                    Some(Ok(event)) => self.touch(&event),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "inotify read failed");
                        self.debounce.everything(std::time::Instant::now());
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(due) => {
                    let now = Instant::now();
                    if now >= rescan {
                        self.debounce.everything(now.into_std());
                        rescan = now + RESCAN;
                    }
                    if self.scan().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn touch(&mut self, event: &EventOwned) {
        let now = std::time::Instant::now();
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return self.debounce.everything(now);
        }
        let Some(name) = event.name.as_ref().and_then(|n| n.to_str()) else { return };
        let touch = if event.mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO) {
            Touch::Complete
        } else if event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            Touch::Gone
        } else if event.mask.contains(EventMask::CREATE) {
            Touch::Created
        } else {
            Touch::Writing
        };
        if scan::is_manifest(name) {
            self.debounce.touch(name, touch, now);
        } else if name.starts_with("..") {
            // A ConfigMap mount swaps all of its files at once by renaming ..data.
            self.debounce.everything(now);
        }
    }

    async fn reopen(&mut self, stop: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(REOPEN) => {}
            }
            if let Ok(events) = watch(&self.settings) {
                tracing::info!(dir = %self.settings.dir.display(), "manifest directory is back");
                self.events = events;
                return true;
            }
        }
    }

    /// One pass: read what changed, decide, tell. The error means that nobody listens any more.
    async fn scan(&mut self) -> Result<(), ()> {
        let work = self.debounce.take(std::time::Instant::now());
        let mut scanner = std::mem::take(&mut self.scanner);
        let read = tokio::task::spawn_blocking(move || {
            let result = scanner.scan(&work);
            (scanner, result)
        })
        .await;
        let (scanner, result) = read.map_err(|error| tracing::error!(%error, "reading manifests failed"))?;
        self.scanner = scanner;
        match result {
            Ok(scan) => {
                let changes = self.state.apply(scan);
                self.publish(changes).await
            }
            Err(error) => {
                tracing::warn!(dir = %self.settings.dir.display(), %error, "manifest directory cannot be listed; its pods stay as they are");
                Ok(())
            }
        }
    }

    async fn publish(&mut self, changes: Changes) -> Result<(), ()> {
        let Changes { removed_pods, pods, services, slices, notes, good_files, gone_files } = changes;
        for note in &notes {
            self.report(note);
        }
        // Objects before the pods that use them.
        self.outputs.objects.replace(self.state.config_maps(), self.state.secrets());
        let first = std::mem::take(&mut self.first);
        self.publish_services(first, services, slices)?;
        for uid in removed_pods {
            self.send(SourceUpdate::Remove(SourceName::Manifests, uid)).await?;
        }
        for pod in pods {
            self.send(SourceUpdate::Upsert(SourceName::Manifests, pod)).await?;
        }
        if first {
            let uids: BTreeSet<_> = self.state.pod_uids();
            self.send(SourceUpdate::Synced(SourceName::Manifests, uids)).await?;
        }
        if !good_files.is_empty() || !gone_files.is_empty() {
            let scanner = self.scanner.copies();
            let written = tokio::task::spawn_blocking(move || scanner.keep(&good_files, &gone_files)).await;
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "copies of good manifests cannot be kept; a manifest that breaks is forgotten at the next start");
                }
                Err(error) => tracing::error!(%error, "keeping copies of manifests failed"),
            }
        }
        Ok(())
    }

    fn publish_services(
        &self,
        first: bool,
        services: Vec<WatchEvent<Service>>,
        slices: Vec<WatchEvent<EndpointSlice>>,
    ) -> Result<(), ()> {
        let send = |update| self.outputs.services.send(update).map_err(|_| ());
        if first {
            send(ServiceUpdate::Slice(WatchEvent::Restart))?;
            send(ServiceUpdate::Service(WatchEvent::Restart))?;
        }
        for event in slices {
            send(ServiceUpdate::Slice(as_list(first, event)))?;
        }
        for event in services {
            send(ServiceUpdate::Service(as_list(first, event)))?;
        }
        if first {
            send(ServiceUpdate::Slice(WatchEvent::InitDone))?;
            send(ServiceUpdate::Service(WatchEvent::InitDone))?;
        }
        Ok(())
    }

    async fn send(&self, update: SourceUpdate) -> Result<(), ()> {
        self.outputs.pods.send(update).await.map_err(|_| ())
    }

    fn report(&self, note: &Note) {
        match note {
            Note::Warning(text) => tracing::warn!("{text}"),
            Note::Refused(text) => {
                tracing::error!("{text}");
                self.outputs.recorder.emit(Event {
                    subject: Subject::Node,
                    kind: EventType::Warning,
                    reason: "FailedValidation",
                    message: text.clone(),
                });
            }
        }
    }
}

/// The first pass is a list in the sense of [`WatchEvent`].
fn as_list<K>(first: bool, event: WatchEvent<K>) -> WatchEvent<K> {
    match event {
        WatchEvent::Apply(object) if first => WatchEvent::InitApply(object),
        other => other,
    }
}

fn gone(event: &EventOwned) -> bool {
    event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED)
}

fn watch(settings: &Settings) -> Result<EventStream<[u8; 4096]>, OpenError> {
    let open = || {
        let inotify = Inotify::init()?;
        inotify.watches().add(
            &settings.dir,
            WatchMask::CREATE
                | WatchMask::MODIFY
                | WatchMask::CLOSE_WRITE
                | WatchMask::MOVED_TO
                | WatchMask::MOVED_FROM
                | WatchMask::DELETE
                | WatchMask::DELETE_SELF
                | WatchMask::MOVE_SELF
                | WatchMask::ONLYDIR,
        )?;
        inotify.into_event_stream([0; 4096])
    };
    open().map_err(|source| OpenError { dir: settings.dir.display().to_string(), source })
}
