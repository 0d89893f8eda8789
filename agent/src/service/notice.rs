//! What people are told of their Services: a log line and an event each, once for each change.

use std::io;

use super::Front;
use super::index::Ignored;
use super::refusal::{Part, Refused};
use super::table::Conflict;
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::ObjectKey;

fn warn(recorder: &Recorder, service: &ObjectKey, reason: &'static str, message: String) {
    tracing::warn!(%service, "{message}");
    let subject = Subject::Service { key: service.clone() };
    recorder.emit(Event { subject, kind: EventType::Warning, reason, message });
}

/// Parts of an object are left out.
pub(super) fn ignored(recorder: &Recorder, ignored: Ignored) {
    let Ignored { service, reason, message } = ignored;
    warn(recorder, &service, reason, message);
}

/// Somebody else has more right to an address and port.
pub(super) fn conflict(recorder: &Recorder, conflict: &Conflict) {
    let Conflict { front, winner, loser } = conflict;
    let message = format!("{front} is served for {winner}, which has more right to it, and not for this Service");
    // Pods with hostPorts are told apart by their names: nobody reads events of a Service that is none.
    warn(recorder, loser, "AddressConflict", message);
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
    if let Some(key) = owner {
        let subject = Subject::Service { key: key.clone() };
        recorder.emit(Event { subject, kind: EventType::Warning, reason: "RefusedByKernel", message });
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
