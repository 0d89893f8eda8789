//! What stands in our tables whatever the Services are: sets, chains and rules. Pure.
//!
//! ```text
//!  prerouting ─► firewalled? ─► from a pod? ─no─► local-services ─┐
//!                                   │ yes            │ not there  │
//!  output ───────► firewalled? ─────┴──► services ◄──┘            │
//!                                           │ goto n3             │ goto l3
//!                                           ▼                     ▼
//!                            endpoints[front, random mod 3] ─► DNAT
//!                                                                │
//!  input, postrouting ─► translated? ─► affinities: remember ────┴─► hairpin, masquerade?
//! ```
//!
//! Two things concern packets that no Service has translated. In `unserved`, what goes to an address of the ranges of
//! ClusterIPs that no Service has is dropped. In `egress`, what pods send out of the cluster is masqueraded, where the
//! network is the project's own plugin.
//!
//! With session affinity the chain is `n3s`, which first looks into `affinity` for the endpoint that the client had last.
//! After the translation `affinities` says for how long to remember it, and the packet writes it down. Entries for
//! endpoints that are gone are deleted by [`affinity`](super::affinity); a rule could not tell, because `nft` cannot print
//! a look-up of what a look-up has found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::element::{family, octets};
use super::program::View;
use super::{Cidr, Egress, Local, Settings};
use crate::nft::Family;
use crate::nft::batch::Batch;
use crate::nft::expr::{self, Data, Field, Hook, Kind, Rule, Verdict, rule};

/// Name of our table in both families.
pub const TABLE: &str = "nodelet";

/// Our sets and maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// ClusterIPs: what is not for one of their ports is refused.
    ClusterIps,
    /// Pairs of an address with itself: a pod that reaches itself through a Service.
    Hairpin,
    /// Fronts without endpoints.
    NoEndpoints,
    /// Fronts whose connections are masqueraded.
    Masquerade,
    /// Fronts that only some sources may connect to.
    Firewalled,
    /// Those sources.
    Allowed,
    /// From fronts to the chain for their number of endpoints.
    Services,
    /// The same for connections from outside under `externalTrafficPolicy: Local`.
    LocalServices,
    /// From fronts and slots to endpoints.
    Endpoints,
    /// The same for connections from outside.
    LocalEndpoints,
    /// From fronts to the chain that remembers a client's endpoint for so long.
    Affinities,
    /// The endpoint that a client had last; written by the packets themselves.
    Affinity,
}

/// All of them, in the order of their numbers in a batch.
pub const SETS: [SetName; 12] = [
    SetName::ClusterIps,
    SetName::Hairpin,
    SetName::NoEndpoints,
    SetName::Masquerade,
    SetName::Firewalled,
    SetName::Allowed,
    SetName::Services,
    SetName::LocalServices,
    SetName::Endpoints,
    SetName::LocalEndpoints,
    SetName::Affinities,
    SetName::Affinity,
];

/// Clients that are remembered at most. When there are more, the newest have no affinity, but are served.
const AFFINITY_SIZE: u32 = 1 << 18;

impl SetName {
    /// Its name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIps => "cluster-ips",
            Self::Hairpin => "hairpin",
            Self::NoEndpoints => "no-endpoints",
            Self::Masquerade => "masquerading",
            Self::Firewalled => "firewalled",
            Self::Allowed => "allowed",
            Self::Services => "services",
            Self::LocalServices => "local-services",
            Self::Endpoints => "endpoints",
            Self::LocalEndpoints => "local-endpoints",
            Self::Affinities => "affinities",
            Self::Affinity => "affinity",
        }
    }

    /// The view that its elements belong to.
    pub fn view(self) -> View {
        match self {
            Self::LocalServices | Self::LocalEndpoints => View::Local,
            Self::ClusterIps
            | Self::Hairpin
            | Self::NoEndpoints
            | Self::Masquerade
            | Self::Firewalled
            | Self::Allowed
            | Self::Services
            | Self::Endpoints
            | Self::Affinities
            | Self::Affinity => View::All,
        }
    }

    /// Whether only we write it.
    pub fn is_ours(self) -> bool {
        self != Self::Affinity
    }

    fn write(self, batch: &mut Batch, family: Family, id: u32) {
        use Field::{Address, Port, Protocol, Slot};
        const FRONT: [Field; 3] = [Address, Protocol, Port];
        let (key, data, kind): (&[Field], Data<'_>, Kind) = match self {
            Self::ClusterIps => (&[Address], Data::None, Kind::Plain),
            Self::Hairpin => (&[Address, Address], Data::None, Kind::Plain),
            Self::NoEndpoints | Self::Masquerade | Self::Firewalled => (&FRONT, Data::None, Kind::Plain),
            Self::Allowed => (&[Address, Protocol, Port, Address], Data::None, Kind::Interval),
            Self::Services | Self::LocalServices | Self::Affinities => (&FRONT, Data::Verdict, Kind::Plain),
            Self::Endpoints | Self::LocalEndpoints => {
                (&[Address, Protocol, Port, Slot], Data::Fields(&[Address, Port]), Kind::Plain)
            }
            Self::Affinity => {
                let kind = Kind::Dynamic { size: AFFINITY_SIZE };
                (&[Address, Protocol, Port, Address], Data::Fields(&[Address, Port]), kind)
            }
        };
        expr::add_set(batch, family, TABLE, expr::Set { name: self.name(), id, key, data, kind });
    }
}

/// A chain that stands for a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numbered {
    /// Picks one of so many endpoints, the one that the client had last where there is affinity.
    Pick(View, u32, bool),
    /// Remembers the client's endpoint for so many seconds.
    Remember(u32),
}

impl Numbered {
    /// Its name in the kernel.
    pub fn name(self) -> String {
        match self {
            Self::Pick(View::All, count, false) => format!("n{count}"),
            Self::Pick(View::All, count, true) => format!("n{count}s"),
            Self::Pick(View::Local, count, false) => format!("l{count}"),
            Self::Pick(View::Local, count, true) => format!("l{count}s"),
            Self::Remember(seconds) => format!("remember-{seconds}"),
        }
    }

    /// The chain of a name.
    pub fn parse(name: &str) -> Option<Self> {
        let parsed = match name.strip_prefix("remember-") {
            Some(seconds) => Self::Remember(seconds.parse().ok()?),
            None => {
                let view = match name.as_bytes().first()? {
                    b'n' => View::All,
                    b'l' => View::Local,
                    _ => return None,
                };
                let count = name.get(1..)?;
                let (count, is_sticky) = count.strip_suffix('s').map_or((count, false), |count| (count, true));
                Self::Pick(view, count.parse().ok().filter(|count| *count > 0)?, is_sticky)
            }
        };
        (parsed.name() == name).then_some(parsed)
    }

    /// Writes it; what it holds already is replaced.
    pub fn write(self, batch: &mut Batch, family: Family) {
        let name = self.name();
        expr::add_chain(batch, family, TABLE, &name, None);
        expr::flush_chain(batch, family, TABLE, &name);
        match self {
            Self::Pick(view, count, is_sticky) => write_pick(batch, family, &name, (view, count, is_sticky)),
            Self::Remember(seconds) => {
                rule(batch, family, TABLE, &name, |r| r.remember(SetName::Affinity.name(), seconds));
            }
        }
    }
}

fn write_pick(batch: &mut Batch, family: Family, name: &str, (view, count, is_sticky): (View, u32, bool)) {
    let endpoints = match view {
        View::All => SetName::Endpoints,
        View::Local => SetName::LocalEndpoints,
    };
    if is_sticky {
        rule(batch, family, TABLE, name, |r| {
            let client = r.destination();
            r.saddr(client);
            r.map(SetName::Affinity.name()).dnat();
        });
    }
    // A packet that got here by the chain of the former count while a transaction took its slot away finds nothing under a
    // high slot; slot 0 is there as long as anybody serves.
    for modulus in [count, 1].into_iter().take(if count == 1 { 1 } else { 2 }) {
        rule(batch, family, TABLE, name, |r| {
            let slot = r.destination();
            r.random(slot, modulus);
            r.map(endpoints.name()).dnat();
        });
    }
}

const NAT_PREROUTING: &str = "nat-prerouting";
const NAT_OUTPUT: &str = "nat-output";
const NAT_INPUT: &str = "nat-input";
const NAT_POSTROUTING: &str = "nat-postrouting";
const FILTER_INPUT: &str = "filter-input";
const FILTER_FORWARD: &str = "filter-forward";
const FILTER_OUTPUT: &str = "filter-output";
const PICK: &str = "pick";
const FIREWALL: &str = "firewall";
const UNSERVED: &str = "unserved";
const REFUSE: &str = "refuse";
const EGRESS: &str = "egress";

const HOOKS: [(&str, Hook); 7] = [
    (NAT_PREROUTING, Hook { kind: "nat", number: 0, priority: -100 }),
    (NAT_OUTPUT, Hook { kind: "nat", number: 3, priority: -100 }),
    (NAT_INPUT, Hook { kind: "nat", number: 1, priority: 100 }),
    (NAT_POSTROUTING, Hook { kind: "nat", number: 4, priority: 100 }),
    (FILTER_INPUT, Hook { kind: "filter", number: 1, priority: 0 }),
    (FILTER_FORWARD, Hook { kind: "filter", number: 2, priority: 0 }),
    (FILTER_OUTPUT, Hook { kind: "filter", number: 3, priority: 0 }),
];

const CHAINS: [&str; 5] = [PICK, FIREWALL, UNSERVED, REFUSE, EGRESS];

/// Whether a chain of this name is ours.
pub fn is_known_chain(name: &str) -> bool {
    CHAINS.contains(&name) || HOOKS.iter().any(|(hook, _)| *hook == name) || Numbered::parse(name).is_some()
}

/// Writes table, sets, chains and rules; elements stay. `present` are chains that are there already: those that pick are
/// written anew, those that nobody knows are removed.
pub fn write<'a>(
    batch: &mut Batch,
    family: Family,
    settings: &Settings,
    present: impl Iterator<Item = &'a str> + Clone,
) {
    expr::add_table(batch, family, TABLE);
    for (id, set) in (1..).zip(SETS) {
        set.write(batch, family, id);
    }
    for name in CHAINS {
        expr::add_chain(batch, family, TABLE, name, None);
        expr::flush_chain(batch, family, TABLE, name);
    }
    for (name, hook) in HOOKS {
        expr::add_chain(batch, family, TABLE, name, Some(hook));
        expr::flush_chain(batch, family, TABLE, name);
    }
    write_rules(batch, family, settings);
    let unknown = present.clone().filter(|name| !is_known_chain(name));
    unknown.clone().for_each(|name| expr::flush_chain(batch, family, TABLE, name));
    unknown.for_each(|name| expr::delete_chain(batch, family, TABLE, name));
    present.filter_map(Numbered::parse).for_each(|chain| chain.write(batch, family));
}

fn write_rules(batch: &mut Batch, family: Family, settings: &Settings) {
    let mut add = |chain: &str, build: &dyn Fn(&mut Rule<'_>)| rule(batch, family, TABLE, chain, |r| build(r));
    for chain in [NAT_PREROUTING, NAT_OUTPUT] {
        add(chain, &|r| {
            r.destination();
            r.in_set(SetName::Firewalled.name()).verdict(Verdict::Jump(FIREWALL));
        });
    }
    add(FIREWALL, &|r| {
        let slot = r.destination();
        r.saddr(slot);
        r.in_set(SetName::Allowed.name()).verdict(Verdict::Return);
    });
    add(FIREWALL, &|r| {
        r.verdict(Verdict::Drop);
    });
    for local in local_matches(family, &settings.local) {
        add(NAT_PREROUTING, &|r| {
            local.write(r, true);
            r.verdict(Verdict::Goto(PICK));
        });
    }
    add(NAT_PREROUTING, &|r| {
        r.destination();
        r.vmap(SetName::LocalServices.name());
    });
    for chain in [NAT_PREROUTING, NAT_OUTPUT] {
        add(chain, &|r| {
            r.verdict(Verdict::Goto(PICK));
        });
    }
    add(PICK, &|r| {
        r.destination();
        r.vmap(SetName::Services.name());
    });
    write_refusals(&mut add, family, settings);
    write_masquerade(&mut add, family, settings);
}

type Add<'a> = dyn FnMut(&str, &dyn Fn(&mut Rule<'_>)) + 'a;

fn write_refusals(add: &mut Add<'_>, family: Family, settings: &Settings) {
    for chain in [FILTER_INPUT, UNSERVED] {
        add(chain, &|r| {
            r.is_new().destination();
            r.in_set(SetName::NoEndpoints.name()).verdict(Verdict::Goto(REFUSE));
        });
    }
    for chain in [FILTER_FORWARD, FILTER_OUTPUT] {
        add(chain, &|r| {
            r.verdict(Verdict::Jump(UNSERVED));
        });
    }
    add(UNSERVED, &|r| {
        r.daddr(0);
        r.in_set(SetName::ClusterIps.name()).verdict(Verdict::Goto(REFUSE));
    });
    for cidr in of_family(&settings.service_cidrs, family) {
        add(UNSERVED, &|r| {
            r.daddr_within(&network_bytes(cidr), cidr.prefix).verdict(Verdict::Drop);
        });
    }
    // The kernel limits the ICMP errors that it sends to one client; it does not limit resets.
    add(REFUSE, &|r| {
        r.is_tcp().reject_with_reset();
    });
    add(REFUSE, &|r| {
        r.reject();
    });
}

fn of_family(cidrs: &[Cidr], of: Family) -> impl Iterator<Item = &Cidr> {
    cidrs.iter().filter(move |cidr| family(cidr.address) == of)
}

fn network_bytes(cidr: &Cidr) -> Vec<u8> {
    let mut bytes = Vec::new();
    octets(cidr.address, &mut bytes);
    bytes
}

/// Multicast has no answers that would find their way back.
pub(super) const MULTICAST: [Cidr; 2] = [
    Cidr { address: IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), prefix: 4 },
    Cidr { address: IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), prefix: 8 },
];

/// The end of `egress`; who goes there is said in postrouting.
fn write_egress(add: &mut Add<'_>, family: Family, egress: &Egress) {
    if of_family(&egress.pods, family).next().is_none() {
        return;
    }
    for cidr in of_family(&egress.inside, family).chain(of_family(&MULTICAST, family)) {
        add(EGRESS, &|r| {
            r.daddr_within(&network_bytes(cidr), cidr.prefix).verdict(Verdict::Return);
        });
    }
    add(EGRESS, &|r| {
        r.masquerade();
    });
}

fn write_masquerade(add: &mut Add<'_>, family: Family, settings: &Settings) {
    let pods = || of_family(settings.egress.as_ref().map_or(&[], |egress| egress.pods.as_slice()), family);
    for cidr in pods() {
        add(NAT_POSTROUTING, &|r| {
            r.is_not_translated().saddr_within(false, &network_bytes(cidr), cidr.prefix);
            r.verdict(Verdict::Goto(EGRESS));
        });
    }
    for chain in [NAT_INPUT, NAT_POSTROUTING] {
        add(chain, &|r| {
            r.is_not_translated().verdict(Verdict::Return);
        });
        add(chain, &|r| {
            r.original_destination();
            r.vmap(SetName::Affinities.name());
        });
    }
    add(NAT_POSTROUTING, &|r| {
        let slot = r.saddr(0);
        r.daddr(slot);
        r.in_set(SetName::Hairpin.name()).masquerade();
    });
    add(NAT_POSTROUTING, &|r| {
        r.original_destination();
        r.in_set(SetName::Masquerade.name()).masquerade();
    });
    let local = local_matches(family, &settings.local);
    if settings.masquerade_all || !local.is_empty() {
        add(NAT_POSTROUTING, &|r| {
            if !settings.masquerade_all {
                local.iter().for_each(|local| local.write(r, false));
            }
            r.original_daddr();
            r.in_set(SetName::ClusterIps.name()).masquerade();
        });
    }
    // An endpoint outside of the cluster.
    for cidr in pods() {
        add(NAT_POSTROUTING, &|r| {
            r.saddr_within(false, &network_bytes(cidr), cidr.prefix);
            r.verdict(Verdict::Goto(EGRESS));
        });
    }
    if let Some(egress) = &settings.egress {
        write_egress(add, family, egress);
    }
}

/// What tells local traffic from other traffic.
enum LocalMatch<'a> {
    Network(&'a Cidr),
    Interface(&'a str, bool),
}

impl LocalMatch<'_> {
    fn write(&self, rule: &mut Rule<'_>, is_local: bool) {
        match self {
            Self::Network(cidr) => {
                rule.saddr_within(!is_local, &network_bytes(cidr), cidr.prefix);
            }
            Self::Interface(name, is_prefix) => rule.input_interface(!is_local, name, *is_prefix),
        }
    }
}

fn local_matches(of: Family, local: &Local) -> Vec<LocalMatch<'_>> {
    match local {
        Local::Networks(cidrs) => {
            let cidrs = cidrs.iter().filter(|cidr| family(cidr.address) == of);
            cidrs.map(LocalMatch::Network).collect()
        }
        Local::Interface(name) => vec![LocalMatch::Interface(name, false)],
        Local::InterfacePrefix(name) => vec![LocalMatch::Interface(name, true)],
    }
}
