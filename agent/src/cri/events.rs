//! Runtime events: the wake-ups of pod workers.
//!
//! ```text
//!  CRI GetContainerEvents ──(Unimplemented)──► containerd events (/tasks/exit, /tasks/oom)
//!          │ stream ends                                │ stream ends
//!          └────────────► wait, reconnect, Resync ◄─────┘
//! ```
//!
//! Events carry no truth: they name a pod or an id, and the worker looks. Losing one delays (the slow relist finds it),
//! never corrupts. After every reconnect a [`RuntimeEvent::Resync`] makes all workers look.

use std::time::Duration;

use nodelet_proto::cri;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{CriError, Runtime, convert, labels};
use crate::ids::PodUid;
use crate::metrics::METRICS;

/// Something changed in the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container or sandbox changed.
    Changed {
        /// The pod, where the event names it.
        pod: Option<PodUid>,
        /// Container or sandbox id.
        id: String,
        /// What happened.
        kind: ChangeKind,
    },
    /// The stream was (re)opened: anything may have been missed.
    Resync,
    /// The runtime cannot be reached; the text says why.
    Lost(String),
}

/// What happened to a container or sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was created.
    Created,
    /// It was started.
    Started,
    /// Its process ended.
    Stopped,
    /// It was removed.
    Deleted,
    /// The kernel killed one of its processes for memory.
    OutOfMemory,
}

/// Reads events until `shutdown`, reconnecting with a back-off of 100 ms to 5 s.
pub async fn run(runtime: Runtime, tx: mpsc::Sender<RuntimeEvent>, shutdown: CancellationToken) {
    let mut delay = Duration::from_millis(100);
    loop {
        let outcome = tokio::select! {
            // Cancel-safe: the stream is dropped as a whole when the agent stops.
            () = shutdown.cancelled() => return,
            outcome = read(&runtime, &tx) => outcome,
        };
        let text = match outcome {
            Ok(()) => {
                delay = Duration::from_millis(100);
                "the event stream ended".to_owned()
            }
            Err(error) => {
                METRICS.relist.stream_errors.increment();
                error.to_string()
            }
        };
        tracing::warn!(error = %text, "runtime events interrupted, reconnecting");
        if tx.send(RuntimeEvent::Lost(text)).await.is_err() {
            return;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(Duration::from_secs(5)),
        }
    }
}

/// One connection's worth of events; `Ok` when the stream was open and ended.
async fn read(runtime: &Runtime, tx: &mpsc::Sender<RuntimeEvent>) -> Result<(), CriError> {
    // containerd answers the headers of an event stream only with the first event, so that opening it cannot be
    // awaited before a Resync. A cheap call proves that the runtime is there; the Resync follows the subscription.
    runtime.version().await?;
    let stream = runtime.container_events();
    tokio::pin!(stream);
    let opened = tokio::time::timeout(Duration::from_millis(250), &mut stream).await;
    let mut events = match opened {
        Ok(Err(error)) if error.is_unimplemented() => return fallback(runtime, tx).await,
        Ok(answer) => {
            send(tx, RuntimeEvent::Resync).await;
            answer?
        }
        Err(_pending) => {
            send(tx, RuntimeEvent::Resync).await;
            stream.await?
        }
    };
    METRICS.relist.streams.increment();
    while let Some(event) = events.message().await.map_err(|status| stream_error(&status))? {
        if let Some(event) = from_cri(&event) {
            send(tx, event).await;
        }
    }
    Ok(())
}

async fn send(tx: &mpsc::Sender<RuntimeEvent>, event: RuntimeEvent) {
    // The receiver goes away only when the agent stops, and then nobody cares for the event.
    let _ = tx.send(event).await;
}

fn stream_error(status: &tonic::Status) -> CriError {
    CriError::Failed { call: "GetContainerEvents", code: status.code(), message: status.message().to_owned() }
}

fn from_cri(event: &cri::ContainerEventResponse) -> Option<RuntimeEvent> {
    let sandbox_labels = event.pod_sandbox_status.as_ref().map(|s| &s.labels);
    let kind = match event.container_event_type() {
        cri::ContainerEventType::ContainerCreatedEvent => ChangeKind::Created,
        cri::ContainerEventType::ContainerStartedEvent => ChangeKind::Started,
        cri::ContainerEventType::ContainerStoppedEvent => ChangeKind::Stopped,
        cri::ContainerEventType::ContainerDeletedEvent => ChangeKind::Deleted,
    };
    let pod = sandbox_labels.and_then(convert::identity).map(|identity| identity.uid);
    let from_containers =
        || event.containers_statuses.iter().find_map(|c| c.labels.get(labels::POD_UID)).map(PodUid::new);
    Some(RuntimeEvent::Changed { pod: pod.or_else(from_containers), id: event.container_id.clone(), kind })
}

#[cfg(not(feature = "containerd"))]
async fn fallback(_runtime: &Runtime, _tx: &mpsc::Sender<RuntimeEvent>) -> Result<(), CriError> {
    Err(CriError::Failed {
        call: "GetContainerEvents",
        code: tonic::Code::Unimplemented,
        message: "this runtime has no CRI events, and nodelet was built without the containerd feature".into(),
    })
}

#[cfg(feature = "containerd")]
use containerd_events::fallback;

#[cfg(feature = "containerd")]
mod containerd_events {
    //! containerd's own event service, for versions whose CRI has no events (1.6).

    use containerd_client::events::{TaskExit, TaskOom};
    use containerd_client::services::v1::SubscribeRequest;
    use containerd_client::services::v1::events_client::EventsClient;
    use prost::Message;

    use super::{ChangeKind, CriError, Runtime, RuntimeEvent, mpsc, send};
    use crate::cri::client::channel;

    /// Filters select by namespace and topic; CRI's containers live in `k8s.io`.
    const FILTERS: [&str; 2] =
        [r#"namespace==k8s.io,topic~="^/tasks/exit""#, r#"namespace==k8s.io,topic~="^/tasks/oom""#];

    pub(super) async fn fallback(runtime: &Runtime, tx: &mpsc::Sender<RuntimeEvent>) -> Result<(), CriError> {
        let failed = |status: tonic::Status| CriError::Failed {
            call: "containerd Events.Subscribe",
            code: status.code(),
            message: status.message().to_owned(),
        };
        let mut client = EventsClient::new(channel(runtime.socket().clone()));
        let request = SubscribeRequest { filters: FILTERS.map(str::to_owned).to_vec() };
        let subscription = client.subscribe(request);
        tokio::pin!(subscription);
        // As with CRI events, the headers may come only with the first event.
        let opened = tokio::time::timeout(std::time::Duration::from_millis(250), &mut subscription).await;
        send(tx, RuntimeEvent::Resync).await;
        let answer = match opened {
            Ok(answer) => answer,
            Err(_pending) => subscription.await,
        };
        let mut events = answer.map_err(failed)?.into_inner();
        while let Some(envelope) = events.message().await.map_err(failed)? {
            let Some(any) = envelope.event else { continue };
            if let Some(event) = decode(&envelope.topic, &any.value) {
                send(tx, event).await;
            }
        }
        Ok(())
    }

    fn decode(topic: &str, value: &[u8]) -> Option<RuntimeEvent> {
        match topic {
            // An exec's exit has an id of its own; only the first process says something about the container.
            "/tasks/exit" => TaskExit::decode(value)
                .ok()
                .filter(|e| e.id == e.container_id)
                .map(|exit| RuntimeEvent::Changed { pod: None, id: exit.container_id, kind: ChangeKind::Stopped }),
            "/tasks/oom" => TaskOom::decode(value).ok().map(|oom| RuntimeEvent::Changed {
                pod: None,
                id: oom.container_id,
                kind: ChangeKind::OutOfMemory,
            }),
            _ => None,
        }
    }
}
