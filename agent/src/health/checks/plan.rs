//! Which ports are to be closed and opened. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::ids::ObjectKey;
use crate::service::index::HealthChecks;

/// How long to wait before an address that is in use is tried again.
pub const BIND_RETRY: Duration = Duration::from_secs(5);

/// A port of a Service at one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// The Service.
    pub service: ObjectKey,
    /// Where it is asked for.
    pub address: SocketAddr,
}

/// How a listener does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Open,
    /// The system refused it.
    Refused {
        /// Why.
        error: String,
        /// When to try again.
        again: Instant,
    },
}

impl State {
    /// When to try again.
    pub fn again(&self) -> Option<Instant> {
        match self {
            Self::Open => None,
            Self::Refused { again, .. } => Some(*again),
        }
    }
}

/// What to do, closing first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// No longer wanted.
    pub close: Vec<Listener>,
    /// Wanted and not there, or to be tried again.
    pub open: Vec<Listener>,
}

/// A listener for each Service at each address of a family that the Service has.
pub fn wanted(checks: &HealthChecks, addresses: &[IpAddr]) -> BTreeSet<Listener> {
    let of = |(service, check): (&ObjectKey, &crate::service::index::HealthCheck)| {
        let (service, check) = (service.clone(), *check);
        let addresses = addresses.iter().filter(move |ip| check.families[usize::from(ip.is_ipv6())]);
        addresses.map(move |ip| Listener { service: service.clone(), address: SocketAddr::new(*ip, check.port) })
    };
    checks.iter().flat_map(of).collect()
}

/// From what there is to what is wanted.
pub fn plan(wanted: &BTreeSet<Listener>, states: &BTreeMap<Listener, State>, now: Instant) -> Plan {
    let is_due = |listener: &&Listener| match states.get(listener) {
        None => true,
        Some(State::Open) => false,
        Some(State::Refused { again, .. }) => *again <= now,
    };
    Plan {
        close: states.keys().filter(|listener| !wanted.contains(listener)).cloned().collect(),
        open: wanted.iter().filter(is_due).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::index::HealthCheck;

    fn listeners(texts: &[&str]) -> BTreeSet<Listener> {
        let parse = |text: &&str| {
            let (name, address) = text.split_once(' ').unwrap();
            Listener { service: ObjectKey::new("default", name), address: address.parse().unwrap() }
        };
        texts.iter().map(parse).collect()
    }

    #[test]
    fn a_service_is_asked_for_at_the_addresses_of_its_families() {
        let check = |port, families| HealthCheck { port, families };
        let checks = HealthChecks::from([
            (ObjectKey::new("default", "both"), check(30000, [true, true])),
            (ObjectKey::new("default", "four"), check(30001, [true, false])),
        ]);
        let addresses = ["10.0.0.5", "::"].map(|ip| ip.parse().unwrap());
        let expected = listeners(&["both 10.0.0.5:30000", "both [::]:30000", "four 10.0.0.5:30001"]);
        assert_eq!(wanted(&checks, &addresses), expected);
    }

    #[test]
    fn ports_come_go_and_are_tried_again() {
        let now = Instant::now();
        let all = listeners(&["a 10.0.0.5:1", "b 10.0.0.5:2", "c 10.0.0.5:3", "d 10.0.0.5:4"]);
        let of = |name: &str| all.iter().find(|l| &*l.service.name == name).unwrap().clone();
        let refused = |again| State::Refused { error: "in use".into(), again };
        let states = BTreeMap::from([
            (of("a"), State::Open),
            (of("b"), State::Open),
            (of("c"), refused(now)),
            (of("d"), refused(now + BIND_RETRY)),
        ]);
        let mut wanted = listeners(&["e 10.0.0.5:2"]);
        wanted.extend([of("a"), of("c"), of("d")]);
        let plan = plan(&wanted, &states, now);
        assert_eq!(plan.close, [of("b")]);
        assert_eq!(plan.open, listeners(&["c 10.0.0.5:3", "e 10.0.0.5:2"]).into_iter().collect::<Vec<_>>());
    }
}
