//! What one front comes to, and the elements that say so in the kernel. Pure.

use std::collections::BTreeSet;

use super::packed::Packed;
use super::{Backend, Cidr, Front};

/// Which of the two views of a front an element belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum View {
    /// What pods and the node itself find, and everybody where no policy says otherwise.
    All,
    /// What comes from outside finds under `externalTrafficPolicy: Local`.
    Local,
}

/// What happens to a new connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Nobody serves it: refused.
    #[default]
    Reject,
    /// Nobody serves it here, but somebody elsewhere: dropped, so that a client tries again.
    Drop,
    /// One of these, by slot.
    To(Packed<Backend>),
}

impl Way {
    /// Its endpoints by slot.
    pub fn backends(&self) -> impl Iterator<Item = Backend> + Clone + '_ {
        self.to().into_iter().flat_map(Packed::iter)
    }

    /// How many endpoints it has.
    pub fn count(&self) -> usize {
        self.to().map_or(0, Packed::len)
    }

    fn to(&self) -> Option<&Packed<Backend>> {
        match self {
            Self::To(backends) => Some(backends),
            Self::Reject | Self::Drop => None,
        }
    }

    /// The same endpoints, in slots such that those that `old` had keep theirs: one replaced endpoint is one element.
    pub fn arranged(self, old: &Self) -> Self {
        match self {
            Self::To(wanted) => {
                let (old, wanted): (Vec<_>, Vec<_>) = (old.backends().collect(), wanted.iter().collect());
                Self::To(arrange(&old, &wanted).into())
            }
            other @ (Self::Reject | Self::Drop) => other,
        }
    }
}

/// All that the kernel is told of a front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// The first view.
    pub all: Way,
    /// The second view, where it differs.
    pub local: Option<Way>,
    /// Whether connections are masqueraded wherever they come from.
    pub masquerade: bool,
    /// Seconds for which a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// The only sources that may connect.
    pub sources: Option<Box<[Cidr]>>,
}

/// Where an element of `services` sends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// To one of so many endpoints, to that which the client had last where there is affinity.
    Pick(u32, bool),
    /// Nowhere.
    Drop,
}

/// One element of one of our sets that belong to fronts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// How a connection goes on.
    Service(View, Front, Verdict),
    /// The endpoint of a slot.
    Endpoint(View, Front, u32, Backend),
    /// How many seconds clients keep their endpoint.
    Affinity(Front, u32),
    /// Refused.
    NoEndpoints(Front),
    /// Masqueraded.
    Masquerade(Front),
    /// Only allowed sources may connect.
    Firewalled(Front),
    /// An allowed source.
    Allowed(Front, Cidr),
}

impl Element {
    /// The front that it belongs to.
    pub fn front(&self) -> &Front {
        match self {
            Self::Service(_, front, _)
            | Self::Endpoint(_, front, _, _)
            | Self::Affinity(front, _)
            | Self::NoEndpoints(front)
            | Self::Masquerade(front)
            | Self::Firewalled(front)
            | Self::Allowed(front, _) => front,
        }
    }
}

impl Program {
    /// A way of a view; a view that does not differ has none.
    pub fn way(&self, view: View) -> Option<&Way> {
        match view {
            View::All => Some(&self.all),
            View::Local => self.local.as_ref(),
        }
    }

    /// The same program with endpoints in the slots where `old` has them.
    pub fn arranged(self, old: Option<&Self>) -> Self {
        let Some(old) = old else { return self };
        Self {
            all: self.all.arranged(&old.all),
            local: self.local.map(|way| way.arranged(old.local.as_ref().unwrap_or(&Way::Reject))),
            ..self
        }
    }

    /// The elements that stand for it.
    pub fn elements(&self, front: &Front) -> BTreeSet<Element> {
        let mut elements = BTreeSet::new();
        if self.all == Way::Reject {
            elements.insert(Element::NoEndpoints(*front));
        }
        for view in [View::All, View::Local] {
            match self.way(view) {
                None | Some(Way::Reject) => {}
                Some(Way::Drop) => {
                    elements.insert(Element::Service(view, *front, Verdict::Drop));
                }
                Some(Way::To(backends)) => self.push_backends(&mut elements, view, front, backends),
            }
        }
        if self.masquerade {
            elements.insert(Element::Masquerade(*front));
        }
        if let Some(sources) = &self.sources {
            elements.insert(Element::Firewalled(*front));
            elements.extend(sources.iter().map(|source| Element::Allowed(*front, *source)));
        }
        elements
    }

    fn push_backends(&self, elements: &mut BTreeSet<Element>, view: View, front: &Front, backends: &Packed<Backend>) {
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        elements.insert(Element::Service(view, *front, Verdict::Pick(count, self.affinity.is_some())));
        elements.extend(self.affinity.map(|seconds| Element::Affinity(*front, seconds)));
        for (slot, backend) in (0..).zip(backends.iter()) {
            elements.insert(Element::Endpoint(view, *front, slot, backend));
        }
    }

    /// Takes in one element, as [`Program::elements`] would have made it. What does not fit together shows when the
    /// elements of the result are compared with what was taken in.
    pub fn take_in(&mut self, element: &Element) {
        match element {
            Element::Service(view, _, verdict) => {
                let way = self.way_mut(*view);
                match (verdict, &*way) {
                    (Verdict::Drop, _) => *way = Way::Drop,
                    (Verdict::Pick(..), Way::Reject | Way::Drop) => *way = Way::To(Packed::default()),
                    (Verdict::Pick(..), Way::To(_)) => {}
                }
            }
            Element::Endpoint(view, _, slot, backend) => {
                let way = self.way_mut(*view);
                let mut backends = match std::mem::take(way) {
                    Way::To(backends) => backends.iter().collect(),
                    Way::Reject | Way::Drop => Vec::new(),
                };
                // Far more than a Service has; a slot beyond is not ours.
                if let Some(slot) = usize::try_from(*slot).ok().filter(|slot| *slot < 65_536) {
                    backends.resize(backends.len().max(slot + 1), *backend);
                    backends[slot] = *backend;
                }
                *way = Way::To(backends.into());
            }
            // That follows from there being none.
            Element::NoEndpoints(_) => {}
            Element::Affinity(_, seconds) => self.affinity = Some(*seconds),
            Element::Masquerade(_) => self.masquerade = true,
            Element::Firewalled(_) => {
                self.sources.get_or_insert_default();
            }
            Element::Allowed(_, source) => {
                let mut sources = self.sources.take().unwrap_or_default().into_vec();
                sources.push(*source);
                self.sources = Some(sources.into());
            }
        }
    }

    fn way_mut(&mut self, view: View) -> &mut Way {
        match view {
            View::All => &mut self.all,
            View::Local => self.local.get_or_insert_default(),
        }
    }
}

/// Puts the wanted endpoints into slots so that those that stay keep theirs.
fn arrange(old: &[Backend], wanted: &[Backend]) -> Vec<Backend> {
    let wanted_set: BTreeSet<&Backend> = wanted.iter().collect();
    let mut kept = BTreeSet::new();
    let mut slots: Vec<Option<Backend>> = vec![None; wanted.len()];
    for (slot, backend) in slots.iter_mut().zip(old) {
        if wanted_set.contains(backend) && kept.insert(*backend) {
            *slot = Some(*backend);
        }
    }
    let mut rest = wanted.iter().filter(|backend| !kept.contains(backend));
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next().copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backend(n: u8) -> Backend {
        Backend { address: [10, 0, 0, n].into(), port: 80 }
    }

    #[test]
    fn a_replaced_endpoint_changes_one_slot() {
        let old = [1, 2, 3].map(backend);
        let new = arrange(&old, &[1, 3, 9].map(backend));
        assert_eq!(new, [1, 9, 3].map(backend));
    }

    proptest! {
        #[test]
        fn arranging_keeps_the_wanted_backends_and_nothing_else(old in prop::collection::btree_set(0u8..20, 0..10), wanted in prop::collection::btree_set(0u8..20, 0..10)) {
            let old: Vec<_> = old.into_iter().map(backend).collect();
            let wanted: Vec<_> = wanted.into_iter().map(backend).collect();
            let mut new = arrange(&old, &wanted);
            let moved = new.iter().zip(&old).filter(|(a, b)| a != b).count();
            let gone = old.iter().take(wanted.len()).filter(|b| !wanted.contains(b)).count();
            prop_assert!(moved <= gone, "only vacated slots are filled again");
            new.sort();
            prop_assert_eq!(new, wanted);
        }
    }
}
