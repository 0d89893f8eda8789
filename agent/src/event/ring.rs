//! The newest events of this node, for `nodelet describe`. Bounded; equal events are counted. Pure.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Event, EventType, Subject};
use crate::cri::Nanos;
use crate::ids::PodUid;

/// Most events that are kept: ten for each of 200 pods, about 1 MiB when full.
const MOST: usize = 2000;

/// Bytes of a message that are kept: texts of runtimes and probes may be long, and full of them the ring would take 30 MiB.
const LONGEST: usize = 2048;

/// Occurrences of one event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// `Normal` or `Warning`.
    pub kind: String,
    /// Reason.
    pub reason: String,
    /// `spec.containers{name}` or empty.
    pub field_path: String,
    /// Text.
    pub message: String,
    /// When it occurred first.
    pub first: Nanos,
    /// When it occurred last.
    pub last: Nanos,
    /// How often.
    pub count: u32,
    /// The pod, where it is about one.
    pub pod: Option<String>,
}

/// The newest events.
#[derive(Debug, Default)]
pub struct Ring {
    records: VecDeque<Record>,
}

impl Ring {
    /// Takes in one event.
    pub fn record(&mut self, event: &Event, now: Nanos) {
        let message = &event.message[..event.message.floor_char_boundary(LONGEST)];
        let (pod, field_path) = match &event.subject {
            Subject::Pod { uid, field_path, .. } => (Some(uid.to_string()), field_path.clone()),
            Subject::Node | Subject::Service { .. } => (None, String::new()),
        };
        let same = |r: &&mut Record| {
            r.pod == pod && r.reason == event.reason && r.field_path == field_path && r.message == message
        };
        if let Some(known) = self.records.iter_mut().rev().find(same) {
            known.count += 1;
            known.last = now;
            return;
        }
        if self.records.len() == MOST {
            self.records.pop_front();
        }
        let kind = match event.kind {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        self.records.push_back(Record {
            kind: kind.into(),
            reason: event.reason.into(),
            field_path,
            message: message.to_owned(),
            first: now,
            last: now,
            count: 1,
            pod,
        });
    }

    /// Events of a pod, oldest first.
    pub fn of_pod(&self, uid: &PodUid) -> Vec<Record> {
        self.records.iter().filter(|r| r.pod.as_deref() == Some(uid.as_str())).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ObjectKey;

    fn event(uid: &str, message: &str) -> Event {
        let subject = Subject::Pod { key: ObjectKey::new("a", "b"), uid: PodUid::new(uid), field_path: String::new() };
        Event { subject, kind: EventType::Normal, reason: "Pulled", message: message.into() }
    }

    #[test]
    fn equal_events_are_counted_and_old_ones_make_room() {
        let mut ring = Ring::default();
        ring.record(&event("u", "x"), 1);
        ring.record(&event("u", "x"), 5);
        let records = ring.of_pod(&PodUid::new("u"));
        assert_eq!((records.len(), records[0].count, records[0].first, records[0].last), (1, 2, 1, 5));
        for n in 0..MOST {
            ring.record(&event("v", &n.to_string()), 9);
        }
        assert!(ring.of_pod(&PodUid::new("u")).is_empty());
        assert_eq!(ring.of_pod(&PodUid::new("v")).len(), MOST);
    }

    #[test]
    fn a_long_message_is_kept_in_part() {
        let mut ring = Ring::default();
        let long = "\u{e4}".repeat(50_000);
        ring.record(&event("u", &long), 1);
        ring.record(&event("u", &long), 2);
        let records = ring.of_pod(&PodUid::new("u"));
        assert_eq!((records.len(), records[0].count, records[0].message.len()), (1, 2, 2048));
    }
}
