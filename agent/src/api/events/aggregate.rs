//! Which events are written, and as what. Pure.
//!
//! Three rules, with the numbers of client-go's event correlator: an equal event raises the count of the first one; the
//! eleventh event within ten minutes that differs only in its message joins one "(combined from similar events)"; an
//! object may have 25 events at once and one more every five minutes.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::event::{Event, EventType, Subject};

const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: i64 = 600;
const SPAM_BURST: f64 = 25.0;
const SPAM_PER_SECOND: f64 = 1.0 / 300.0;
/// Entries per table; the ones used longest ago make room.
const MOST: usize = 1024;

/// What is written for one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Distinguishes the object's events; equal for repeats.
    pub id: u64,
    /// The text, possibly of the combined event.
    pub message: String,
    /// 1 for a new event.
    pub count: i32,
    /// When it occurred first, in seconds since the epoch.
    pub first: i64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Similar {
    subject: Subject,
    warning: bool,
    reason: &'static str,
}

/// Remembers what was written.
#[derive(Default)]
pub struct Aggregator {
    written: Table<(Similar, String), Write>,
    similar: Table<Similar, (i64, BTreeSet<u64>)>,
    spam: Table<Subject, f64>,
    next_id: u64,
}

/// A map with the time of last use.
struct Table<K, V> {
    entries: HashMap<K, (i64, V)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone, V> Table<K, V> {
    fn entry(&mut self, key: K, now: i64, new: impl FnOnce() -> V) -> (i64, &mut V) {
        if self.entries.len() >= MOST && !self.entries.contains_key(&key) {
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.entries.remove(&oldest));
        }
        let (used, value) = self.entries.entry(key).or_insert_with(|| (now, new()));
        (std::mem::replace(used, now), value)
    }
}

impl Aggregator {
    /// What to write for an event at `now`, in seconds since the epoch; `None` when its object is throttled.
    pub fn take(&mut self, event: &Event, now: i64) -> Option<Write> {
        let similar =
            Similar { subject: event.subject.clone(), warning: event.kind == EventType::Warning, reason: event.reason };
        let message = match self.is_one_of_many(&similar, &event.message, now) {
            true => format!("(combined from similar events): {}", event.message),
            false => event.message.clone(),
        };
        // Combined events count as one whatever their newest message is.
        let combined = message.len() != event.message.len();
        let key = (similar, if combined { "(combined)".to_owned() } else { message.clone() });
        if self.next_id == 0 {
            // Names have to differ from those of an earlier run of this agent.
            self.next_id = u64::try_from(now).unwrap_or(0) << 24;
        }
        let id = self.next_id;
        let (_, write) = self.written.entry(key, now, || Write { id, message: String::new(), count: 0, first: now });
        if write.count == 0 {
            self.next_id += 1;
        }
        write.count = write.count.saturating_add(1);
        write.message = message;
        let write = write.clone();
        self.allow(object(&event.subject), now).then_some(write)
    }

    fn is_one_of_many(&mut self, similar: &Similar, message: &str, now: i64) -> bool {
        let (_, (since, messages)) = self.similar.entry(similar.clone(), now, || (now, BTreeSet::new()));
        if now - *since > SIMILAR_WINDOW {
            *since = now;
            messages.clear();
        }
        if messages.len() >= SIMILAR_MAX {
            return !messages.contains(&hash(message));
        }
        messages.insert(hash(message));
        false
    }

    fn allow(&mut self, subject: Subject, now: i64) -> bool {
        let (before, tokens) = self.spam.entry(subject, now, || SPAM_BURST);
        *tokens = (*tokens + (now - before) as f64 * SPAM_PER_SECOND).min(SPAM_BURST);
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }
}

/// A pod's containers share its allowance.
fn object(subject: &Subject) -> Subject {
    match subject {
        Subject::Pod { key, uid, .. } => Subject::Pod { key: key.clone(), uid: uid.clone(), field_path: String::new() },
        Subject::Node | Subject::Service { .. } => subject.clone(),
    }
}

fn hash(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: &'static str, message: &str) -> Event {
        Event { subject: Subject::Node, kind: EventType::Warning, reason, message: message.into() }
    }

    #[test]
    fn equal_events_are_counted_on_one_object() {
        let mut aggregator = Aggregator::default();
        let first = aggregator.take(&event("BackOff", "x"), 100).expect("written");
        let second = aggregator.take(&event("BackOff", "x"), 160).expect("written");
        assert_eq!((first.id, first.count, second.count, second.first), (second.id, 1, 2, 100));
        let other = aggregator.take(&event("BackOff", "y"), 160).expect("written");
        assert_ne!(other.id, first.id);
    }

    #[test]
    fn many_similar_events_are_combined() {
        let mut aggregator = Aggregator::default();
        let writes: Vec<Write> =
            (0..13).filter_map(|n| aggregator.take(&event("Failed", &format!("m{n}")), 100)).collect();
        assert_eq!(writes[9].message, "m9");
        assert_eq!(writes[10].message, "(combined from similar events): m10");
        assert_eq!((writes[12].id, writes[12].count), (writes[10].id, 3));
        let later = aggregator.take(&event("Failed", "m99"), 100 + SIMILAR_WINDOW + 1).expect("written");
        assert_eq!(later.message, "m99");
    }

    #[test]
    fn an_object_that_never_stops_is_throttled() {
        let mut aggregator = Aggregator::default();
        let written = (0..100).filter(|_| aggregator.take(&event("BackOff", "x"), 100).is_some()).count();
        assert_eq!(written, 25);
        assert!(aggregator.take(&event("BackOff", "x"), 399).is_none());
        let write = aggregator.take(&event("BackOff", "x"), 400).expect("one more after five minutes");
        assert_eq!(write.count, 102, "what was not written is counted");
    }

    #[test]
    fn memory_is_bounded() {
        let mut aggregator = Aggregator::default();
        for n in 0..3 * MOST {
            let key = crate::ids::ObjectKey::new("ns", format!("p{n}"));
            let subject = Subject::Service { key };
            let message = String::from("m");
            aggregator.take(&Event { subject, kind: EventType::Normal, reason: "r", message }, n as i64);
        }
        assert!(aggregator.written.entries.len() <= MOST && aggregator.spam.entries.len() <= MOST);
    }
}
