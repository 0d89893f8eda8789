//! What the endpoints of a node alone know about its pods, and how pod workers tell it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::mpsc;

use crate::ids::PodUid;
use crate::pod::facilities::StatusSink;

/// A pod and its newest status.
#[derive(Clone, Debug)]
pub struct PodObserved {
    /// UID.
    pub uid: PodUid,
    /// The pod as it is desired.
    pub pod: Arc<Pod>,
    /// Its status.
    pub status: Arc<PodStatus>,
    /// It is being stopped. Without an API server there is no `deletionTimestamp` to say so.
    pub terminating: bool,
}

impl PodObserved {
    /// Is its Ready condition true?
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    }

    /// Is it being stopped?
    pub fn is_terminating(&self) -> bool {
        self.terminating || self.pod.metadata.deletion_timestamp.is_some()
    }
}

/// News about pods.
#[derive(Clone, Debug)]
pub enum PodUpdate {
    /// A new status; once terminating, a pod stays so.
    Status(PodObserved),
    /// Nothing of it is left.
    Gone(PodUid),
    /// Every pod that ran when the agent started has been told.
    Synced,
}

/// Takes statuses from pod workers. Cheap to clone; it never waits.
#[derive(Clone, Debug)]
pub struct PodUpdates {
    tx: mpsc::UnboundedSender<PodUpdate>,
}

impl PodUpdates {
    /// A handle and the end that [`super::Alone::run`] reads.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<PodUpdate>) {
        let (tx, rx) = mpsc::unbounded_channel();
        (Self { tx }, rx)
    }

    /// Tells that every pod that ran at the start has been told.
    pub fn synced(&self) {
        self.send(PodUpdate::Synced);
    }

    fn send(&self, update: PodUpdate) {
        // The reader is gone only while the agent stops.
        let _ = self.tx.send(update);
    }

    fn status(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>, terminating: bool) {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        self.send(PodUpdate::Status(PodObserved { uid, pod: pod.clone(), status: status.clone(), terminating }));
    }
}

impl StatusSink for PodUpdates {
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        self.status(pod, status, false);
    }

    /// Alone there is no API server that could keep the pod waiting.
    fn finish<'a>(&'a self, pod: &'a Arc<Pod>, status: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>> {
        self.status(pod, status, true);
        Box::pin(async { Ok(()) })
    }

    fn forget(&self, uid: &PodUid) {
        self.send(PodUpdate::Gone(uid.clone()));
    }

    fn terminating(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        self.status(pod, status, true);
    }

    fn synced(&self) {
        Self::synced(self);
    }
}
