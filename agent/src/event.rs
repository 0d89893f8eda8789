//! Kubernetes Events: what the agent tells people about their objects.
//!
//! Modules hold a [`Recorder`] and never wait for it. Where events go (API server with aggregation, local ring for
//! `nodelet describe`) is decided by whoever owns the receiving end.

use tokio::sync::mpsc;

use crate::ids::{ObjectKey, PodUid};

pub mod ring;

/// Severity as the API knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Something expected happened.
    Normal,
    /// Somebody should look.
    Warning,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// This agent's Node.
    Node,
    /// A pod, or one of its containers.
    Pod {
        /// Namespace and name.
        key: ObjectKey,
        /// UID.
        uid: PodUid,
        /// `spec.containers{name}`, `spec.initContainers{name}` or empty for the pod as a whole.
        field_path: String,
    },
    /// A Service.
    Service {
        /// Namespace and name.
        key: ObjectKey,
    },
}

/// One occurrence. Repeats are counted by the sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub subject: Subject,
    /// Severity.
    pub kind: EventType,
    /// Machine-readable reason, as kubelet and kube-proxy name it.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
}

/// Cheap handle for emitting events; a full queue drops the event and counts it rather than blocking a pod.
#[derive(Clone, Debug)]
pub struct Recorder {
    tx: mpsc::Sender<Event>,
}

impl Recorder {
    /// A recorder and the end that its owner drains. The queue holds 1000 events, as client-go's broadcaster does.
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (tx, rx) = mpsc::channel(1000);
        (Self { tx }, rx)
    }

    /// Queues an event.
    pub fn emit(&self, event: Event) {
        if let Err(error) = self.tx.try_send(event) {
            tracing::debug!(%error, "event dropped");
        }
    }
}
