//! What is in the kernel, and the smallest batch that changes it. Pure but for the batch that it writes into.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::index::Index;
use super::{Backend, Cidr, Front, Protocol, Settings};
use crate::ids::ObjectKey;
use crate::nft::Family;
use crate::nft::batch::{Batch, Message};
use crate::nft::decode::ElementData;
use crate::nft::expr::{self, Data, Field, Hook, Verdict, elements, rule};

/// Name of our table in both families.
pub const TABLE: &str = "nodelet";
/// Map from fronts to the chain for their number of endpoints.
pub const SERVICES: &str = "services";
/// Map from fronts and slots to endpoints.
pub const ENDPOINTS: &str = "endpoints";
/// Set of fronts without endpoints.
pub const NO_ENDPOINTS: &str = "no-endpoints";
/// Set of ClusterIPs.
pub const CLUSTER_IPS: &str = "cluster-ips";
/// Set of the other front addresses; connections to them are masqueraded.
pub const EXTERNAL_IPS: &str = "external-ips";
/// Set of pairs of an address with itself: a pod that reaches itself through a Service.
pub const HAIRPIN: &str = "hairpin";

/// The family of an address.
pub fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn octets(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
}

/// Key of a front: address, protocol and port, each padded to four bytes.
pub fn front_key(front: &Front) -> Vec<u8> {
    let mut key = Vec::with_capacity(28);
    octets(front.address, &mut key);
    key.extend_from_slice(&[front.protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&front.port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    key
}

fn slot_key(front: &Front, slot: usize) -> Vec<u8> {
    let mut key = front_key(front);
    key.extend_from_slice(&u32::try_from(slot).unwrap_or(u32::MAX).to_ne_bytes());
    key
}

fn backend_value(backend: &Backend) -> Vec<u8> {
    let mut value = Vec::with_capacity(20);
    octets(backend.address, &mut value);
    value.extend_from_slice(&backend.port.to_be_bytes());
    value.extend_from_slice(&[0, 0]);
    value
}

fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::from(*address), rest))
        }
        Family::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::from(*address), rest))
        }
    }
}

fn read_front(family: Family, key: &[u8]) -> Option<(Front, &[u8])> {
    let (address, rest) = read_address(family, key)?;
    let protocol = match rest.first()? {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => return None,
    };
    let port = u16::from_be_bytes([*rest.get(4)?, *rest.get(5)?]);
    Some((Front { address, protocol, port }, rest.get(8..)?))
}

#[derive(Clone, Debug, Default)]
struct Installed {
    /// The Service that it belongs to; none right after adoption.
    owner: Option<ObjectKey>,
    /// By slot.
    backends: Box<[Backend]>,
}

/// A set of addresses that many fronts or endpoints share.
#[derive(Debug, Default)]
struct Addresses {
    wanted: HashMap<IpAddr, u32>,
    installed: HashSet<IpAddr>,
    touched: BTreeSet<IpAddr>,
}

impl Addresses {
    fn want(&mut self, address: IpAddr) {
        *self.wanted.entry(address).or_default() += 1;
        self.touched.insert(address);
    }

    fn release(&mut self, address: IpAddr) {
        if let Some(count) = self.wanted.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.wanted.remove(&address);
            }
        }
        self.touched.insert(address);
    }

    /// What is to be added and what is to be removed, which is then taken as done.
    fn settle(&mut self) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let (mut add, mut remove) = (Vec::new(), Vec::new());
        for address in std::mem::take(&mut self.touched) {
            match (self.wanted.contains_key(&address), self.installed.contains(&address)) {
                (true, false) => add.push(address),
                (false, true) => remove.push(address),
                (true, true) | (false, false) => {}
            }
        }
        self.installed.extend(add.iter().copied());
        for address in &remove {
            self.installed.remove(address);
        }
        (add, remove)
    }
}

#[derive(Debug, Default)]
struct Owned {
    fronts: Box<[(Front, bool)]>,
    local: Box<[IpAddr]>,
}

/// Element changes of one transaction, in the order in which they are written: deletions first.
#[derive(Debug, Default)]
struct Changes {
    del_services: Vec<Front>,
    add_services: Vec<(Front, usize)>,
    del_endpoints: Vec<(Front, usize)>,
    add_endpoints: Vec<(Front, usize, Backend)>,
    del_none: Vec<Front>,
    add_none: Vec<Front>,
}

/// What our tables in the kernel hold.
#[derive(Debug, Default)]
pub struct Tables {
    fronts: HashMap<Front, Installed>,
    owned: HashMap<ObjectKey, Owned>,
    counts: BTreeSet<(Family, usize)>,
    cluster_ips: Addresses,
    external_ips: Addresses,
    hairpin: Addresses,
    changes: Changes,
    /// UDP fronts that changed or went; conntrack is asked about them.
    pub udp_touched: BTreeSet<Front>,
}

impl Tables {
    /// Nothing is installed.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many fronts and endpoints are installed.
    pub fn size(&self) -> (usize, usize) {
        (self.fronts.len(), self.fronts.values().map(|f| f.backends.len()).sum())
    }

    /// The backends of a front; `None` when it is not installed.
    pub fn backends(&self, front: &Front) -> Option<&[Backend]> {
        self.fronts.get(front).map(|installed| &*installed.backends)
    }

    /// All fronts of UDP and SCTP, whose connections outlive their endpoints.
    pub fn udp_fronts(&self) -> BTreeSet<Front> {
        self.fronts.keys().filter(|front| front.protocol == Protocol::Udp).copied().collect()
    }

    /// Takes in an element that the kernel already has.
    pub fn adopt(&mut self, family: Family, set: &str, key: &[u8], data: ElementData<'_>) {
        match set {
            SERVICES | NO_ENDPOINTS => {
                if let Some((front, _)) = read_front(family, key) {
                    self.fronts.entry(front).or_default();
                }
            }
            ENDPOINTS => {
                let Some((front, rest)) = read_front(family, key) else { return };
                let slot = rest.try_into().map_or(usize::MAX, |b: [u8; 4]| u32::from_ne_bytes(b) as usize);
                let ElementData::Value(value) = data else { return };
                let Some((address, rest)) = read_address(family, value) else { return };
                let port = rest.get(..2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes);
                let installed = self.fronts.entry(front).or_default();
                let mut backends = std::mem::take(&mut installed.backends).into_vec();
                let nothing =
                    Backend { address: if family == Family::V4 { [0; 4].into() } else { [0; 16].into() }, port: 0 };
                if slot < 65_536 {
                    backends.resize(backends.len().max(slot + 1), nothing);
                    backends[slot] = Backend { address, port };
                }
                installed.backends = backends.into_boxed_slice();
            }
            CLUSTER_IPS | EXTERNAL_IPS | HAIRPIN => {
                let Some((address, _)) = read_address(family, key) else { return };
                let addresses = match set {
                    CLUSTER_IPS => &mut self.cluster_ips,
                    EXTERNAL_IPS => &mut self.external_ips,
                    _ => &mut self.hairpin,
                };
                addresses.installed.insert(address);
                addresses.touched.insert(address);
            }
            _ => {}
        }
    }

    /// Takes note of a chain for a number of endpoints that the kernel already has.
    pub fn adopt_chain(&mut self, family: Family, name: &str) {
        if let Some(count) = name.strip_prefix('n').and_then(|n| n.parse().ok()) {
            self.counts.insert((family, count));
        }
    }

    /// Brings one Service to what the index says.
    pub fn update(&mut self, index: &Index, key: &ObjectKey) {
        let desired = index.desired(key);
        let local = index.local_addresses(key);
        let old = self.owned.remove(key).unwrap_or_default();
        for (front, external) in &old.fronts {
            self.addresses_of(*external).release(front.address);
            let ours = self.fronts.get(front).is_some_and(|f| f.owner.as_ref() == Some(key));
            if ours && !desired.contains_key(front) {
                self.remove(front);
            }
        }
        old.local.iter().for_each(|address| self.hairpin.release(*address));
        let mut owned = Vec::with_capacity(desired.len());
        for (front, backends) in &desired {
            let other = self.fronts.get(front).and_then(|f| f.owner.as_ref()).filter(|owner| *owner != key);
            if let Some(other) = other {
                tracing::warn!(service = %key, %other, address = %front.address, port = front.port, "another Service has this address and port; it keeps them");
                continue;
            }
            let external = index.is_external(key, front.address);
            self.addresses_of(external).want(front.address);
            self.set(front, backends, key);
            owned.push((*front, external));
        }
        local.iter().for_each(|address| self.hairpin.want(*address));
        if !owned.is_empty() || !local.is_empty() {
            self.owned.insert(key.clone(), Owned { fronts: owned.into(), local: local.into_iter().collect() });
        }
    }

    fn addresses_of(&mut self, external: bool) -> &mut Addresses {
        if external { &mut self.external_ips } else { &mut self.cluster_ips }
    }

    /// Removes what was adopted and belongs to no Service.
    pub fn drop_unowned(&mut self) {
        let unowned: Vec<Front> =
            self.fronts.iter().filter(|(_, f)| f.owner.is_none()).map(|(front, _)| *front).collect();
        unowned.iter().for_each(|front| self.remove(front));
    }

    fn remove(&mut self, front: &Front) {
        let Some(installed) = self.fronts.remove(front) else { return };
        if front.protocol == Protocol::Udp {
            self.udp_touched.insert(*front);
        }
        if installed.backends.is_empty() {
            self.changes.del_none.push(*front);
            return;
        }
        self.changes.del_services.push(*front);
        self.changes.del_endpoints.extend((0..installed.backends.len()).map(|slot| (*front, slot)));
    }

    fn set(&mut self, front: &Front, wanted: &[Backend], owner: &ObjectKey) {
        let known = self.fronts.contains_key(front);
        let installed = self.fronts.entry(*front).or_default();
        installed.owner = Some(owner.clone());
        let old = std::mem::take(&mut installed.backends);
        let new = arrange(&old, wanted);
        let changes = &mut self.changes;
        for slot in 0..old.len().max(new.len()) {
            match (old.get(slot), new.get(slot)) {
                (Some(before), Some(after)) if before == after => {}
                (before, after) => {
                    changes.del_endpoints.extend(before.map(|_| (*front, slot)));
                    changes.add_endpoints.extend(after.map(|backend| (*front, slot, *backend)));
                }
            }
        }
        if !known || old.len() != new.len() {
            match (known, old.len()) {
                (false, _) => {}
                (true, 0) => changes.del_none.push(*front),
                (true, _) => changes.del_services.push(*front),
            }
            match new.len() {
                0 => changes.add_none.push(*front),
                count => changes.add_services.push((*front, count)),
            }
        }
        if front.protocol == Protocol::Udp && *old != *new {
            self.udp_touched.insert(*front);
        }
        installed.backends = new.into_boxed_slice();
    }

    /// Writes all changes since the last call.
    pub fn write(&mut self, batch: &mut Batch) {
        let changes = std::mem::take(&mut self.changes);
        for (front, count) in &changes.add_services {
            if self.counts.insert((family(front.address), *count)) {
                write_count_chain(batch, family(front.address), *count);
            }
        }
        let (add_cluster, del_cluster) = self.cluster_ips.settle();
        let (add_external, del_external) = self.external_ips.settle();
        let (add_hairpin, del_hairpin) = self.hairpin.settle();
        for of in [Family::V4, Family::V6] {
            let here = |front: &&Front| family(front.address) == of;
            let keys = |batch: &mut Batch, message, set, fronts: &[Front]| {
                elements(batch, message, (of, TABLE, set), fronts.iter().filter(here), |b, front| {
                    expr::value(b, 1, &front_key(front));
                });
            };
            keys(batch, Message::DelElements, SERVICES, &changes.del_services);
            keys(batch, Message::DelElements, NO_ENDPOINTS, &changes.del_none);
            let slots = changes.del_endpoints.iter().filter(|(front, _)| here(&front));
            elements(batch, Message::DelElements, (of, TABLE, ENDPOINTS), slots, |b, (front, slot)| {
                expr::value(b, 1, &slot_key(front, *slot));
            });
            let slots = changes.add_endpoints.iter().filter(|(front, _, _)| here(&front));
            elements(batch, Message::NewElements, (of, TABLE, ENDPOINTS), slots, |b, (front, slot, backend)| {
                expr::value(b, 1, &slot_key(front, *slot));
                expr::value(b, 2, &backend_value(backend));
            });
            let services = changes.add_services.iter().filter(|(front, _)| here(&front));
            elements(batch, Message::NewElements, (of, TABLE, SERVICES), services, |b, (front, count)| {
                expr::value(b, 1, &front_key(front));
                expr::verdict(b, 2, Verdict::Goto(&count_chain(*count)));
            });
            keys(batch, Message::NewElements, NO_ENDPOINTS, &changes.add_none);
            let single = |batch: &mut Batch, message, set, addresses: &[IpAddr]| {
                let addresses = addresses.iter().filter(|a| family(**a) == of);
                elements(batch, message, (of, TABLE, set), addresses, |b, address| {
                    let mut key = Vec::new();
                    octets(**address, &mut key);
                    if set == HAIRPIN {
                        octets(**address, &mut key);
                    }
                    expr::value(b, 1, &key);
                });
            };
            single(batch, Message::DelElements, CLUSTER_IPS, &del_cluster);
            single(batch, Message::DelElements, EXTERNAL_IPS, &del_external);
            single(batch, Message::DelElements, HAIRPIN, &del_hairpin);
            single(batch, Message::NewElements, CLUSTER_IPS, &add_cluster);
            single(batch, Message::NewElements, EXTERNAL_IPS, &add_external);
            single(batch, Message::NewElements, HAIRPIN, &add_hairpin);
        }
    }
}

/// Puts the wanted backends into slots so that those that stay keep theirs: one replaced endpoint is one element.
fn arrange(old: &[Backend], wanted: &[Backend]) -> Vec<Backend> {
    let wanted_set: BTreeSet<&Backend> = wanted.iter().collect();
    let mut placed: BTreeMap<usize, Backend> = BTreeMap::new();
    let mut kept = BTreeSet::new();
    for (slot, backend) in old.iter().enumerate().take(wanted.len()) {
        if wanted_set.contains(backend) && kept.insert(*backend) {
            placed.insert(slot, *backend);
        }
    }
    let mut rest = wanted.iter().filter(|backend| !kept.contains(backend));
    (0..wanted.len()).filter_map(|slot| placed.get(&slot).copied().or_else(|| rest.next().copied())).collect()
}

fn count_chain(count: usize) -> String {
    format!("n{count}")
}

/// The chain that picks one of `count` endpoints.
fn write_count_chain(batch: &mut Batch, family: Family, count: usize) {
    let name = count_chain(count);
    expr::add_chain(batch, family, TABLE, &name, None);
    rule(batch, family, TABLE, &name, |r| {
        let slot = r.destination();
        r.random(slot, u32::try_from(count).unwrap_or(u32::MAX));
        r.map(ENDPOINTS).dnat();
    });
}

const HOOKS: [(&str, Hook); 6] = [
    ("nat-prerouting", Hook { kind: "nat", number: 0, priority: -100 }),
    ("nat-output", Hook { kind: "nat", number: 3, priority: -100 }),
    ("nat-postrouting", Hook { kind: "nat", number: 4, priority: 100 }),
    ("filter-input", Hook { kind: "filter", number: 1, priority: 0 }),
    ("filter-forward", Hook { kind: "filter", number: 2, priority: 0 }),
    ("filter-output", Hook { kind: "filter", number: 3, priority: 0 }),
];

/// Name of the chain that says which rules stand in the table; it changes with the rules.
pub fn schema(family: Family, settings: &Settings) -> String {
    use sha2::{Digest, Sha256};
    let cidrs: Vec<&Cidr> = settings.cluster_cidrs.iter().filter(|c| self::family(c.address) == family).collect();
    let text = format!("1 {cidrs:?} {}", settings.masquerade_all);
    let hash: String = Sha256::digest(text).iter().take(6).map(|b| format!("{b:02x}")).collect();
    format!("schema-{hash}")
}

/// Writes table, sets, chains and static rules. `present` are the chains that are there already; elements stay.
pub fn write_structure(batch: &mut Batch, family: Family, settings: &Settings, present: &BTreeSet<String>) {
    use Field::{Address, Port, Protocol, Slot};
    expr::add_table(batch, family, TABLE);
    let sets: [(&str, &[Field], Data<'_>); 6] = [
        (CLUSTER_IPS, &[Address], Data::None),
        (EXTERNAL_IPS, &[Address], Data::None),
        (HAIRPIN, &[Address, Address], Data::None),
        (NO_ENDPOINTS, &[Address, Protocol, Port], Data::None),
        (SERVICES, &[Address, Protocol, Port], Data::Verdict),
        (ENDPOINTS, &[Address, Protocol, Port, Slot], Data::Fields(&[Address, Port])),
    ];
    for (id, (name, key, data)) in (1..).zip(sets) {
        expr::add_set(batch, family, TABLE, name, id, key, data);
    }
    for name in ["nat-services", "reject-unserved"] {
        expr::add_chain(batch, family, TABLE, name, None);
        expr::flush_chain(batch, family, TABLE, name);
    }
    for (name, hook) in HOOKS {
        expr::add_chain(batch, family, TABLE, name, Some(hook));
        expr::flush_chain(batch, family, TABLE, name);
    }
    write_rules(batch, family, settings);
    for old in present.iter().filter(|name| name.starts_with("schema-")) {
        expr::delete_chain(batch, family, TABLE, old);
    }
    expr::add_chain(batch, family, TABLE, &schema(family, settings), None);
}

fn write_rules(batch: &mut Batch, family: Family, settings: &Settings) {
    rule(batch, family, TABLE, "nat-services", |r| {
        r.destination();
        r.vmap(SERVICES);
    });
    for (chain, target) in [
        ("nat-prerouting", "nat-services"),
        ("nat-output", "nat-services"),
        ("filter-forward", "reject-unserved"),
        ("filter-output", "reject-unserved"),
    ] {
        rule(batch, family, TABLE, chain, |r| {
            r.verdict(Verdict::Jump(target));
        });
    }
    for chain in ["filter-input", "reject-unserved"] {
        rule(batch, family, TABLE, chain, |r| {
            r.is_new().destination();
            r.in_set(NO_ENDPOINTS).reject();
        });
    }
    rule(batch, family, TABLE, "reject-unserved", |r| {
        r.daddr(0);
        r.in_set(CLUSTER_IPS).reject();
    });
    write_masquerade(batch, family, settings);
}

fn write_masquerade(batch: &mut Batch, family: Family, settings: &Settings) {
    const CHAIN: &str = "nat-postrouting";
    rule(batch, family, TABLE, CHAIN, |r| {
        r.is_not_translated().verdict(Verdict::Return);
    });
    rule(batch, family, TABLE, CHAIN, |r| {
        let slot = r.saddr(0);
        r.daddr(slot);
        r.in_set(HAIRPIN).masquerade();
    });
    rule(batch, family, TABLE, CHAIN, |r| {
        r.original_daddr().in_set(EXTERNAL_IPS).masquerade();
    });
    let cidrs: Vec<&Cidr> = settings.cluster_cidrs.iter().filter(|c| self::family(c.address) == family).collect();
    if settings.masquerade_all {
        rule(batch, family, TABLE, CHAIN, |r| {
            r.masquerade();
        });
    } else if !cidrs.is_empty() {
        rule(batch, family, TABLE, CHAIN, |r| {
            for cidr in cidrs {
                let mut network = Vec::new();
                octets(cidr.address, &mut network);
                r.saddr_outside(&network, cidr.prefix);
            }
            r.masquerade();
        });
    }
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
