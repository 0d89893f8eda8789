use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Leases;
use crate::cidr::{Cidr, from_bits, to_bits};
use crate::protocol::{NetConf, RangeConf};

/// The ranges of one network: a list of sets, each set a list of ranges of one family. A pod gets one address per set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    sets: Vec<Vec<Range>>,
}

/// One checked range.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    subnet: Cidr,
    first: u128,
    last: u128,
    gateway: IpAddr,
}

/// An address with the gateway of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// The pod's address.
    pub address: IpAddr,
    /// The node's address towards the pod.
    pub gateway: IpAddr,
}

/// Why a pool cannot be made or has no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// Nothing is free.
    #[error("no free address in {ranges}: all {size} are leased")]
    Exhausted {
        /// The ranges of the set.
        ranges: String,
        /// How many addresses they have.
        size: u128,
    },
    /// A requested address cannot be given.
    #[error("requested address {address} {reason}")]
    Requested {
        /// The address.
        address: IpAddr,
        /// Why not.
        reason: &'static str,
    },
}

impl Pool {
    /// The pool of a configuration: `ranges` if there are any, else one set per pod CIDR.
    pub fn from_conf(conf: &NetConf) -> Result<Self, PoolError> {
        let sets: Vec<Vec<RangeConf>> = if conf.ranges.is_empty() {
            let whole = |subnet| vec![RangeConf { subnet, range_start: None, range_end: None, gateway: None }];
            conf.pod_cidrs.iter().copied().map(whole).collect()
        } else {
            conf.ranges.clone()
        };
        if sets.is_empty() {
            let msg = "neither podCIDRs nor ranges: expected for example \"podCIDRs\": [\"10.244.1.0/24\"]";
            return Err(PoolError::Config(msg.to_owned()));
        }
        let sets = sets.iter().map(|set| check_set(set)).collect::<Result<Vec<_>, _>>()?;
        let all: Vec<&Range> = sets.iter().flatten().collect();
        for (index, range) in all.iter().enumerate() {
            let same_family = |other: &&&Range| other.gateway.is_ipv4() == range.gateway.is_ipv4();
            if let Some(other) = all[..index].iter().filter(same_family).find(|other| range.overlaps(other)) {
                return Err(PoolError::Config(format!("range {} overlaps range {}", range.subnet, other.subnet)));
            }
        }
        Ok(Self { sets })
    }

    /// Whether the pool has ranges of IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.sets.iter().flatten().any(|range| range.gateway.is_ipv6())
    }

    /// Picks one free address per set, or checks the requested ones.
    pub fn choose(&self, leases: &Leases, requested: &[IpAddr]) -> Result<Vec<Assigned>, PoolError> {
        let taken = leases.taken();
        if !requested.is_empty() {
            return self.check_requested(&taken, requested);
        }
        self.sets.iter().map(|set| next_free(set, leases, &taken)).collect()
    }

    fn check_requested(&self, taken: &BTreeSet<IpAddr>, requested: &[IpAddr]) -> Result<Vec<Assigned>, PoolError> {
        let mut seen = taken.clone();
        let mut check = |address: IpAddr| {
            let refuse = |reason| Err(PoolError::Requested { address, reason });
            let Some(range) = self.range_of(address) else { return refuse("is in no range of this network") };
            if !(range.first..=range.last).contains(&to_bits(address)) || address == range.gateway {
                return refuse("is reserved: the gateway, or outside rangeStart to rangeEnd");
            }
            if !seen.insert(address) {
                return refuse("is leased already");
            }
            Ok(Assigned { address, gateway: range.gateway })
        };
        requested.iter().map(|address| check(*address)).collect()
    }

    /// Adds the gateways to addresses that were leased before.
    pub fn describe(&self, addresses: &[IpAddr]) -> Result<Vec<Assigned>, PoolError> {
        let describe = |&address| match self.range_of(address) {
            Some(range) => Ok(Assigned { address, gateway: range.gateway }),
            None => Err(PoolError::Requested { address, reason: "was leased earlier and is in no range any more" }),
        };
        addresses.iter().map(describe).collect()
    }

    /// Remembers how far the walk went, so that the next pod gets a later address.
    pub(super) fn advance(&self, leases: &mut Leases, given: &[Assigned]) {
        leases.last.retain(|subnet, _| self.sets.iter().flatten().any(|range| range.subnet.to_string() == *subnet));
        for assigned in given {
            if let Some(range) = self.range_of(assigned.address) {
                leases.last.insert(range.subnet.to_string(), assigned.address);
            }
        }
    }

    fn range_of(&self, address: IpAddr) -> Option<&Range> {
        let ranges = || self.sets.iter().flatten();
        let inside = |range: &&Range| range.subnet.contains(address);
        // Several ranges of one subnet differ by their bounds.
        let exact = |range: &&Range| inside(range) && (range.first..=range.last).contains(&to_bits(address));
        ranges().find(exact).or_else(|| ranges().find(inside))
    }
}

/// Round robin: the first free address behind the one given out last, wrapping around once.
///
/// Every address looked at is taken, the gateway, or the answer, so the walk takes at most `taken + 2` steps however
/// large the range (a /64 has 1.8e19 addresses).
fn next_free(set: &[Range], leases: &Leases, taken: &BTreeSet<IpAddr>) -> Result<Assigned, PoolError> {
    for range in set {
        let last = leases.last.get(&range.subnet.to_string()).map(|address| to_bits(*address));
        let start = last.filter(|last| (range.first..range.last).contains(last)).map_or(range.first, |last| last + 1);
        let free = |bits: &u128| {
            let address = from_bits(range.gateway, *bits);
            address != range.gateway && !taken.contains(&address)
        };
        if let Some(bits) = (start..=range.last).find(free).or_else(|| (range.first..start).find(free)) {
            return Ok(Assigned { address: from_bits(range.gateway, bits), gateway: range.gateway });
        }
    }
    let ranges: Vec<_> = set.iter().map(|range| range.subnet.to_string()).collect();
    Err(PoolError::Exhausted { ranges: ranges.join(", "), size: set.iter().map(Range::size).sum() })
}

fn check_set(set: &[RangeConf]) -> Result<Vec<Range>, PoolError> {
    let ranges = set.iter().map(Range::check).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = ranges.first() else { return Err(PoolError::Config("a set of ranges is empty".to_owned())) };
    match ranges.iter().find(|range| range.gateway.is_ipv4() != first.gateway.is_ipv4()) {
        Some(other) => Err(PoolError::Config(format!(
            "{} and {} are in one set and of different families; a set gives one address",
            first.subnet, other.subnet
        ))),
        None => Ok(ranges),
    }
}

impl Range {
    fn check(conf: &RangeConf) -> Result<Self, PoolError> {
        let subnet = conf.subnet.network();
        let config = |msg: String| Err(PoolError::Config(msg));
        let is_v4 = subnet.addr().is_ipv4();
        // The first address names the network (IPv4) or any router (IPv6, RFC 4291 2.6.1); IPv4's last is broadcast.
        let (low, high) = (subnet.first_bits() + 1, subnet.last_bits() - u128::from(is_v4));
        if subnet.prefix() + 2 > if is_v4 { 32 } else { 128 } {
            return config(format!(
                "{subnet} is too small: a gateway and at least one pod need /30 (IPv4) or /126 (IPv6)"
            ));
        }
        for (field, value) in
            [("rangeStart", conf.range_start), ("rangeEnd", conf.range_end), ("gateway", conf.gateway)]
        {
            if let Some(address) = value.filter(|address| !subnet.contains(*address)) {
                return config(format!("{field} {address} is not in subnet {subnet}"));
            }
        }
        let first = conf.range_start.map_or(low, |address| to_bits(address).max(low));
        let last = conf.range_end.map_or(high, |address| to_bits(address).min(high));
        if first > last {
            return config(format!("rangeStart is above rangeEnd in subnet {subnet}"));
        }
        let gateway = conf.gateway.unwrap_or_else(|| from_bits(subnet.addr(), low));
        Ok(Self { subnet, first, last, gateway })
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn size(&self) -> u128 {
        let gateway = (self.first..=self.last).contains(&to_bits(self.gateway));
        (self.last - self.first).saturating_add(1) - u128::from(gateway)
    }
}
