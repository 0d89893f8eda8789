//! What people are told of their Services: a log line and an event each, once for each change.

use std::io;

use super::index::Ignored;
use super::refusal::{Part, Refused};
use super::table::Conflict;
use super::{Front, host_ports};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::ObjectKey;

/// The log line is there already.
fn event(recorder: &Recorder, owner: &ObjectKey, reason: &'static str, message: String) {
    // A hostPort is a pod's, and an event of a Service of its name would be refused.
    if host_ports::pod_name(owner).is_none() {
        let subject = Subject::Service { key: owner.clone() };
        recorder.emit(Event { subject, kind: EventType::Warning, reason, message });
    }
}

/// Parts of an object are left out.
pub(super) fn ignored(recorder: &Recorder, ignored: Ignored) {
    let Ignored { service, reason, message } = ignored;
    tracing::warn!(%service, "{message}");
    event(recorder, &service, reason, message);
}

/// Somebody else has more right to an address and port.
pub(super) fn conflict(recorder: &Recorder, conflict: &Conflict) {
    let Conflict { front, winner, loser } = conflict;
    let message = format!("{front} is served for {winner}, which has more right to it, and not for this Service");
    tracing::warn!(service = %loser, "{message}");
    event(recorder, loser, "AddressConflict", message);
}

/// The kernel does not take something.
pub(super) fn refused(
    recorder: &Recorder,
    owner: Option<&ObjectKey>,
    front: &Front,
    refused: &Refused,
    error: &io::Error,
) {
    let message = format!("the kernel refuses {} ({error}); trying again later", words(front, refused));
    tracing::error!(service = owner.map(tracing::field::display), "{message}");
    if let Some(owner) = owner {
        event(recorder, owner, "RefusedByKernel", message);
    }
}

/// What is refused, in words.
pub fn words(front: &Front, refused: &Refused) -> String {
    let Refused::Parts(parts) = refused else { return format!("to serve {front} at all") };
    let list = |of: &dyn Fn(&Part) -> Option<String>| parts.iter().filter_map(of).collect::<Vec<_>>().join(", ");
    let backends = list(&|part| match part {
        Part::Backend(backend) => Some(backend.to_string()),
        Part::Source(_) => None,
    });
    let sources = list(&|part| match part {
        Part::Source(source) => Some(source.to_string()),
        Part::Backend(_) => None,
    });
    let of = |name: &str, list: String| if list.is_empty() { None } else { Some(format!("{name} {list}")) };
    let all: Vec<_> = [of("endpoints", backends), of("sources", sources)].into_iter().flatten().collect();
    format!("{} of {front}", all.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Protocol;

    /// The API server would not take an event of a Service with a name like that.
    #[test]
    fn what_becomes_of_a_host_port_is_no_event_of_a_service() {
        let (recorder, mut events) = Recorder::new();
        let front = Front { address: [10, 0, 0, 5].into(), protocol: Protocol::Tcp, port: 80 };
        let service = ObjectKey::new("shop", "web");
        for loser in [host_ports::key("shop", "web-1", "u-1"), service.clone()] {
            conflict(&recorder, &Conflict { front, winner: ObjectKey::new("shop", "other"), loser });
        }
        let told = events.try_recv().map(|event| event.subject);
        assert_eq!(told, Ok(Subject::Service { key: service }));
        assert!(events.try_recv().is_err());
    }
}
