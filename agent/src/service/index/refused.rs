//! What the kernel refuses is left out of what the index says, for a while. Pure.

use std::time::Instant;

use super::{Index, Service};
use crate::service::Front;
use crate::service::refusal::{Refusals, Refused};

impl Index {
    /// The kernel does not take this: it is left out from now on, until [`Index::retry_refused`] finds it time for another try.
    pub fn refuse(&mut self, front: Front, refused: Refused, error: &str, now: Instant) {
        self.refusals.note(front, refused, error, now);
        self.touch_front(&front);
    }

    /// Asks again for what was refused long enough ago; answers whether there is something like that.
    pub fn retry_refused(&mut self, now: Instant) -> bool {
        let due = self.refusals.try_again(now);
        due.iter().for_each(|front| self.touch_front(front));
        !due.is_empty()
    }

    /// The kernel has everything that it was asked for. Names the fronts of which something was refused before.
    pub fn all_taken(&mut self) -> Vec<Front> {
        self.refusals.taken()
    }

    /// What the kernel does not take.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Marks everybody who claims a front.
    fn touch_front(&mut self, front: &Front) {
        let claims = |service: &Service| {
            service.ports.iter().any(|port| self.fronts(service, port).any(|(claimed, _)| claimed == *front))
        };
        let services = self.services.iter().filter(|(_, service)| claims(service)).map(|(key, _)| key);
        let concerned: Vec<_> = services.chain(self.host_ports.keys()).cloned().collect();
        self.dirty.extend(concerned);
    }
}
