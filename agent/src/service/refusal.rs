//! What the kernel refuses of what a Service asks for. Pure but for the way in which a set of changes is tried.
//!
//! A batch is taken as a whole or not at all, so one element that the kernel does not take would keep everything else from being
//! programmed. [`sort_out`] finds who is to blame, and [`Refusals`] remembers it: the index leaves that out of what it says should
//! be, until it is worth another try.
//!
//! ```text
//!  refused ──► Withheld ──time is up──► OnTrial ──taken──► forgotten
//!                 ▲                        │
//!                 └────refused, for twice as long
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::index::Desired;
use super::program::{Program, Way};
use super::{Backend, Cidr, Front};

/// Until the first further try.
const DELAY: Duration = Duration::from_secs(1);
/// Between tries at most. What makes a kernel refuse (no memory, a full set) passes without telling anybody.
const DELAY_MAX: Duration = Duration::from_secs(300);

/// A part of a front that the rest does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// An endpoint.
    Backend(Backend),
    /// A source that may connect.
    Source(Cidr),
}

/// What of a front is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// All of it.
    Whole,
    /// Some parts; the rest is served.
    Parts(BTreeSet<Part>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Withheld { until: Instant },
    OnTrial,
}

/// What is known of a front of which something was refused.
#[derive(Clone, Debug)]
struct Case {
    refused: Refused,
    error: Box<str>,
    delay: Duration,
    state: State,
}

/// All fronts of which something was refused.
#[derive(Debug, Default)]
pub struct Refusals {
    cases: BTreeMap<Front, Case>,
}

impl Refusals {
    /// Takes note of a refusal. One that was on trial waits twice as long for the next.
    pub fn note(&mut self, front: Front, refused: Refused, error: &str, now: Instant) {
        let delay = self.cases.get(&front).map_or(DELAY, |case| (case.delay * 2).min(DELAY_MAX));
        let state = State::Withheld { until: now + delay };
        self.cases.insert(front, Case { refused, error: error.into(), delay, state });
    }

    /// Leaves out what is refused at present.
    pub fn leave_out(&self, desired: &mut Desired) {
        for (front, case) in self.cases.iter().filter(|(_, case)| case.state != State::OnTrial) {
            match &case.refused {
                Refused::Whole => drop(desired.remove(front)),
                Refused::Parts(parts) => {
                    if let Some(claim) = desired.get_mut(front) {
                        claim.program = std::mem::take(&mut claim.program).without(parts);
                    }
                }
            }
        }
    }

    /// When something is to be tried again.
    pub fn next_trial(&self) -> Option<Instant> {
        self.cases
            .values()
            .filter_map(|case| if let State::Withheld { until } = case.state { Some(until) } else { None })
            .min()
    }

    /// Puts those on trial whose time is up, and names their fronts.
    pub fn try_again(&mut self, now: Instant) -> Vec<Front> {
        let is_due = |case: &Case| matches!(case.state, State::Withheld { until } if until <= now);
        let due = self.cases.iter_mut().filter(|(_, case)| is_due(case));
        due.map(|(front, case)| {
            case.state = State::OnTrial;
            *front
        })
        .collect()
    }

    /// The kernel has everything that was on trial: forgets it, and names the fronts.
    pub fn taken(&mut self) -> Vec<Front> {
        let taken: Vec<Front> =
            self.cases.iter().filter(|(_, case)| case.state == State::OnTrial).map(|(front, _)| *front).collect();
        taken.iter().for_each(|front| drop(self.cases.remove(front)));
        taken
    }

    /// What is refused of a front, and the kernel's words.
    pub fn of(&self, front: &Front) -> Option<(&Refused, &str)> {
        self.cases.get(front).map(|case| (&case.refused, &*case.error))
    }

    /// How many fronts are concerned.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }
}

impl Program {
    /// Its parts.
    pub fn parts(&self) -> BTreeSet<Part> {
        let local = self.local.iter().flat_map(Way::backends);
        let backends = self.all.backends().chain(local).map(Part::Backend);
        backends.chain(self.sources.iter().flatten().map(|source| Part::Source(*source))).collect()
    }

    /// The same without some parts. Who loses all endpoints refuses connections; nobody gets in where all sources are lost.
    pub fn without(self, parts: &BTreeSet<Part>) -> Self {
        let rest = |way: Way| match way {
            Way::To(backends) => {
                let rest = backends.iter().filter(|backend| !parts.contains(&Part::Backend(*backend)));
                Way::To(rest.collect())
            }
            other @ (Way::Reject | Way::Drop) => other,
        };
        let all = match rest(self.all) {
            Way::To(backends) if backends.is_empty() => Way::Reject,
            other => other,
        };
        let local = match self.local.map(rest) {
            // Nobody is left here: as where nobody was.
            Some(Way::To(backends)) if backends.is_empty() => Some(Way::Drop).filter(|_| all != Way::Reject),
            other => other,
        };
        let sources = self
            .sources
            .map(|sources| sources.iter().filter(|source| !parts.contains(&Part::Source(**source))).copied().collect());
        Self { all, local, sources, ..self }
    }
}

/// How many sets are tried at most: what is left then counts as refused, and has its turn later.
const TRIES: usize = 400;

/// Sorts items into those that are taken together and those that are not. `takes` says whether these are, by themselves;
/// for r refused ones of n it is asked about r·log n times.
pub fn sort_out<T: Copy, E>(
    items: &[T],
    mut takes: impl FnMut(&[T]) -> Result<bool, E>,
) -> Result<(Vec<T>, Vec<T>), E> {
    let (mut taken, mut refused, mut tries) = (Vec::new(), Vec::new(), TRIES);
    // Left to right, so that in the end exactly what is answered was tried as a whole.
    let mut rest: Vec<&[T]> = vec![items];
    while let Some(some) = rest.pop() {
        if some.is_empty() {
            continue;
        }
        if tries == 0 {
            refused.extend_from_slice(some);
            continue;
        }
        tries -= 1;
        let before = taken.len();
        taken.extend_from_slice(some);
        if takes(&taken)? {
            continue;
        }
        taken.truncate(before);
        match some {
            [one] => refused.push(*one),
            many => {
                let (left, right) = many.split_at(many.len() / 2);
                rest.extend([right, left]);
            }
        }
    }
    Ok((taken, refused))
}

#[cfg(test)]
mod tests;
