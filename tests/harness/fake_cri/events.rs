//! The event stream, and what can go wrong with it.

use std::pin::Pin;
use std::sync::Mutex;

use futures_util::{Stream, stream};
use nodelet_proto::cri::{ContainerEventResponse, ContainerEventType};
use tokio::sync::broadcast;
use tonic::Status;

use super::model::Model;
use super::shared::lock;

/// What happens to the next events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFault {
    /// So many are never sent.
    Drop(usize),
    /// So many are sent twice.
    Duplicate(usize),
    /// So many are held back and sent in the opposite order.
    Reverse(usize),
    /// So many name neither pod nor container.
    Blank(usize),
}

pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEventResponse, Status>> + Send>>;

#[derive(Debug, Default)]
struct Disturbance {
    drop: usize,
    duplicate: usize,
    reverse: usize,
    blank: usize,
    held: Vec<ContainerEventResponse>,
}

#[derive(Debug)]
pub(super) struct Events {
    /// `None` tells streams to end.
    sender: broadcast::Sender<Option<ContainerEventResponse>>,
    disturbance: Mutex<Disturbance>,
}

impl Default for Events {
    fn default() -> Self {
        // containerd buffers 1000 as well and drops what a slow reader misses.
        Self { sender: broadcast::Sender::new(1000), disturbance: Mutex::default() }
    }
}

impl Events {
    pub(super) fn disturb(&self, fault: EventFault) {
        let mut state = lock(&self.disturbance);
        match fault {
            EventFault::Drop(count) => state.drop = count,
            EventFault::Duplicate(count) => state.duplicate = count,
            EventFault::Reverse(count) => state.reverse = count,
            EventFault::Blank(count) => state.blank = count,
        }
    }

    /// Sends one event as the disturbance of the moment lets it.
    pub(super) fn publish(&self, event: ContainerEventResponse) {
        let mut state = lock(&self.disturbance);
        let mut out = Vec::new();
        if state.drop > 0 {
            state.drop -= 1;
        } else if state.reverse > 0 {
            state.held.push(event);
            state.reverse -= 1;
            if state.reverse == 0 {
                out.extend(std::mem::take(&mut state.held).into_iter().rev());
            }
        } else if state.duplicate > 0 {
            state.duplicate -= 1;
            out.extend([event.clone(), event]);
        } else if state.blank > 0 {
            state.blank -= 1;
            out.push(ContainerEventResponse::default());
        } else {
            out.push(event);
        }
        for event in out {
            // Nobody listening is fine: there is no replay.
            let _ = self.sender.send(Some(event));
        }
    }

    pub(super) fn break_streams(&self) {
        let _ = self.sender.send(None);
    }

    /// Events from now on.
    pub(super) fn stream(&self) -> EventStream {
        Box::pin(stream::unfold(Some(self.sender.subscribe()), |receiver| async move {
            let mut receiver = receiver?;
            loop {
                match receiver.recv().await {
                    Ok(Some(event)) => return Some((Ok(event), Some(receiver))),
                    Ok(None) => return Some((Err(Status::unavailable("the runtime closes its event stream")), None)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        }))
    }
}

/// An event about a container, or about a sandbox as a container of its own id, with the pod's status as it is now.
pub(super) fn event(
    model: &Model,
    id: &str,
    sandbox: &str,
    kind: ContainerEventType,
    now: i64,
) -> ContainerEventResponse {
    ContainerEventResponse {
        container_id: id.to_owned(),
        container_event_type: kind as i32,
        created_at: now,
        pod_sandbox_status: model.sandboxes.get(sandbox).map(|found| found.status()),
        containers_statuses: model.containers_of(sandbox).map(|container| container.status()).collect(),
    }
}
