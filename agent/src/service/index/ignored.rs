//! Parts of objects that are left out: told once, until something else is left out. Pure.

use std::collections::{BTreeSet, HashMap};

use crate::ids::ObjectKey;
use crate::service::element::digest;
use crate::service::notes::Notes;

/// Parts of an object are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The Service that it is about.
    pub service: ObjectKey,
    /// For the event.
    pub reason: &'static str,
    /// Which, and why.
    pub message: String,
}

/// Which list an object is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Service,
    EndpointSlice,
}

/// What was said of objects: nothing of most.
#[derive(Debug, Default)]
pub(super) struct Said {
    digests: HashMap<(Kind, ObjectKey), u64>,
    fresh: Vec<Ignored>,
}

impl Said {
    /// Takes in what is left out of an object now.
    pub(super) fn note(&mut self, object: (Kind, &ObjectKey), service: &ObjectKey, notes: &Notes) {
        let Some(left_out) = notes.message() else { return self.forget(object) };
        let (kind, key) = object;
        let now = digest(&left_out);
        if self.digests.insert((kind, key.clone()), now) == Some(now) {
            return;
        }
        let (reason, message) = match kind {
            Kind::Service => ("InvalidService", left_out),
            Kind::EndpointSlice => ("InvalidEndpointSlice", format!("EndpointSlice {}: {left_out}", key.name)),
        };
        self.fresh.push(Ignored { service: service.clone(), reason, message });
    }

    /// The object is gone, or nothing is left out any more.
    pub(super) fn forget(&mut self, (kind, key): (Kind, &ObjectKey)) {
        // Nearly always empty; then no key is copied.
        if !self.digests.is_empty() {
            self.digests.remove(&(kind, key.clone()));
        }
    }

    /// Of this kind only these objects are left.
    pub(super) fn keep(&mut self, of: Kind, listed: &BTreeSet<ObjectKey>) {
        self.digests.retain(|(kind, key), _| *kind != of || listed.contains(key));
    }

    pub(super) fn take(&mut self) -> Vec<Ignored> {
        std::mem::take(&mut self.fresh)
    }
}
