//! A virtual packet: the way of a connection's first packet through our rules, without a kernel. Pure.
//!
//! It does with [`Maps`] what the rules of [`structure`](super::structure) do with the sets in the kernel, hook by hook:
//!
//! ```text
//!  firewalled? ─► which view ─► services ─► endpoints ─► refused, dropped? ─► masqueraded?
//! ```
//!
//! What is walked are elements, not Services: those that the programmer wants ([`Maps::of`]), or those that a kernel
//! holds ([`Maps::read`]). So the answer shows what elements come to, and a table of flows that is run here and with
//! real sockets keeps this file and the rules the same. What it does not know: routes (whether an address is this node's
//! is told by `own`), later packets of a connection, and the rules of others.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

pub mod maps;

pub use maps::Maps;

use super::element::family;
use super::program::{Element, Verdict, View};
use super::structure::{MULTICAST, SetName};
use super::{Backend, Cidr, Front, Local, Settings};

/// Where a packet comes from, as the hooks see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A process of this node.
    Process,
    /// A pod, or somebody outside: by this interface.
    Interface(Box<str>),
}

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub entry: Entry,
    /// Its source address.
    pub source: IpAddr,
    /// Its destination.
    pub to: Front,
    /// The endpoint that the client had last at this destination, where the kernel remembers one.
    pub remembered: Option<Backend>,
}

/// An entry that decided something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hit {
    /// An element of a front.
    Element(Element),
    /// An address in `cluster-ips`.
    ClusterIp(IpAddr),
    /// An address in `hairpin`.
    Hairpin(IpAddr),
    /// What the client had last.
    Remembered(Front, Backend),
    /// A range of ClusterIPs, of which nobody has this one.
    Range(Cidr),
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let front = |front: &Front| format!("{} . {:?} . {}", front.address, front.protocol, front.port);
        match self {
            Self::Element(element) => {
                write!(f, "{}: {}", element.set().name(), front(element.front()))?;
                match element {
                    Element::Service(_, _, Verdict::Drop) => f.write_str(" : drop"),
                    Element::Service(_, _, Verdict::Pick(count, is_sticky)) => {
                        let sticky = if *is_sticky { ", the client's last one first" } else { "" };
                        write!(f, " : one of {count}{sticky}")
                    }
                    Element::Endpoint(_, _, slot, to) => write!(f, " . {slot} : {} . {}", to.address, to.port),
                    Element::Affinity(_, seconds) => write!(f, " : remember for {seconds} s"),
                    Element::Allowed(_, source) => write!(f, " . {}/{}", source.address, source.prefix),
                    Element::NoEndpoints(_) | Element::Masquerade(_) | Element::Firewalled(_) => Ok(()),
                }
            }
            Self::ClusterIp(address) => write!(f, "{}: {address}", SetName::ClusterIps.name()),
            Self::Hairpin(address) => write!(f, "{}: {address} . {address}", SetName::Hairpin.name()),
            Self::Remembered(to, backend) => {
                write!(f, "{}: {} : {} . {}", SetName::Affinity.name(), front(to), backend.address, backend.port)
            }
            Self::Range(range) => write!(f, "range of ClusterIPs: {}/{}", range.address, range.prefix),
        }
    }
}

/// How a packet ends on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It goes on, with an address of this node as its source or with its own.
    Sent {
        /// Whether it gets an address of this node.
        masquerade: bool,
    },
    /// Its sender is told that nobody serves.
    Rejected,
    /// Nobody is told.
    Dropped,
}

/// An endpoint that a packet may be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The endpoint.
    pub backend: Backend,
    /// How many of the slots are its own: the weight of its chance.
    pub slots: u32,
    /// What becomes of the packet then.
    pub end: End,
    /// What it hits from the choice on, in order.
    pub hits: Vec<Hit>,
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is for a Service: one of these, each of them once.
    To(Vec<Choice>),
    /// It is not translated: refused or dropped by us, or none of ours.
    Untranslated(End),
}

/// The way of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// What it hits until an endpoint is chosen, in order.
    pub hits: Vec<Hit>,
    /// What happens to it.
    pub outcome: Outcome,
}

impl Walk {
    /// Whether a connection would be refused or dropped by our rules, whichever endpoint is chosen.
    pub fn is_turned_away(&self) -> bool {
        let is_away = |end: &End| matches!(end, End::Rejected | End::Dropped);
        match &self.outcome {
            Outcome::To(choices) => choices.iter().all(|choice| is_away(&choice.end)),
            Outcome::Untranslated(end) => is_away(end),
        }
    }
}

/// Everything that decides: elements, and the settings that are in rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// The elements.
    pub maps: &'a Maps,
    /// The settings.
    pub settings: &'a Settings,
    /// All addresses of this node: what goes there is not sent on.
    pub own: &'a [IpAddr],
}

/// What the NAT hook before routing comes to.
enum Picked {
    Nothing,
    Dropped,
    One(BTreeMap<Backend, (u32, Hit)>),
}

impl Rules<'_> {
    /// Walks a packet.
    pub fn walk(&self, packet: &Packet) -> Walk {
        let mut hits = Vec::new();
        let picked = if self.is_allowed(packet, &mut hits) { self.pick(packet, &mut hits) } else { Picked::Dropped };
        let outcome = match picked {
            Picked::Dropped => Outcome::Untranslated(End::Dropped),
            Picked::Nothing => Outcome::Untranslated(self.end(packet, None, &mut hits)),
            Picked::One(choices) => {
                let choice = |(backend, (slots, hit)): (Backend, (u32, Hit))| {
                    let mut hits = vec![hit];
                    let end = self.end(packet, Some(&backend), &mut hits);
                    Choice { backend, slots, end, hits }
                };
                Outcome::To(choices.into_iter().map(choice).collect())
            }
        };
        Walk { hits, outcome }
    }

    fn is_allowed(&self, packet: &Packet, hits: &mut Vec<Hit>) -> bool {
        if !self.maps.firewalled.contains(&packet.to) {
            return true;
        }
        hits.push(Hit::Element(Element::Firewalled(packet.to)));
        let allowed = self.maps.allowed.get(&packet.to).into_iter().flatten();
        let source = allowed.into_iter().find(|source| source.contains(packet.source));
        hits.extend(source.map(|source| Hit::Element(Element::Allowed(packet.to, *source))));
        source.is_some()
    }

    /// Whether it is told to be of this cluster's pods.
    fn is_local(&self, packet: &Packet) -> bool {
        let interface = match &packet.entry {
            Entry::Process => "",
            Entry::Interface(name) => name,
        };
        match &self.settings.local {
            Local::Networks(networks) => networks.iter().any(|network| network.contains(packet.source)),
            Local::Interface(name) => interface == name,
            Local::InterfacePrefix(prefix) => interface.starts_with(prefix),
        }
    }

    /// Whether pods can be told from others at all.
    fn can_tell(&self, packet: &Packet) -> bool {
        match &self.settings.local {
            Local::Networks(networks) => networks.iter().any(|n| family(n.address) == family(packet.source)),
            Local::Interface(_) | Local::InterfacePrefix(_) => true,
        }
    }

    fn pick(&self, packet: &Packet, hits: &mut Vec<Hit>) -> Picked {
        let is_from_outside = packet.entry != Entry::Process && !self.is_local(packet);
        let views: &[View] = if is_from_outside { &[View::Local, View::All] } else { &[View::All] };
        let found = views.iter().find_map(|view| Some((*view, *self.maps.services.get(&(*view, packet.to))?)));
        let Some((view, verdict)) = found else { return Picked::Nothing };
        hits.push(Hit::Element(Element::Service(view, packet.to, verdict)));
        match verdict {
            Verdict::Drop => Picked::Dropped,
            Verdict::Pick(count, is_sticky) => {
                if let Some(backend) = packet.remembered.filter(|_| is_sticky) {
                    return Picked::One([(backend, (count, Hit::Remembered(packet.to, backend)))].into());
                }
                self.slots(view, &packet.to, count)
            }
        }
    }

    /// The chain for a number of endpoints: one of the slots by chance, and slot 0 for those that are empty.
    fn slots(&self, view: View, front: &Front, count: u32) -> Picked {
        let slots = self.maps.endpoints.range((view, *front, 0)..(view, *front, count));
        let mut choices: BTreeMap<Backend, (u32, Hit)> = BTreeMap::new();
        let mut empty = count;
        for ((_, _, slot), backend) in slots {
            let hit = Hit::Element(Element::Endpoint(view, *front, *slot, *backend));
            choices.entry(*backend).or_insert((0, hit)).0 += 1;
            empty -= 1;
        }
        if empty > 0 {
            match self.maps.endpoints.get(&(view, *front, 0)).and_then(|first| choices.get_mut(first)) {
                Some((slots, _)) => *slots += empty,
                // Some packets would find nothing: said for all of them, so that nobody takes it for served.
                None => return Picked::Nothing,
            }
        }
        Picked::One(choices)
    }

    /// The hooks after the translation.
    fn end(&self, packet: &Packet, backend: Option<&Backend>, hits: &mut Vec<Hit>) -> End {
        let at = backend.map_or(packet.to, |b| Front { address: b.address, port: b.port, ..packet.to });
        let is_input = packet.entry != Entry::Process && self.own.contains(&at.address);
        if self.maps.no_endpoints.contains(&at) {
            hits.push(Hit::Element(Element::NoEndpoints(at)));
            return End::Rejected;
        }
        if !is_input {
            if self.maps.cluster_ips.contains(&at.address) {
                hits.push(Hit::ClusterIp(at.address));
                return End::Rejected;
            }
            if let Some(range) = self.settings.service_cidrs.iter().find(|range| range.contains(at.address)) {
                hits.push(Hit::Range(*range));
                return End::Dropped;
            }
        }
        if let Some(seconds) = self.maps.affinities.get(&packet.to).filter(|_| backend.is_some()) {
            hits.push(Hit::Element(Element::Affinity(packet.to, *seconds)));
        }
        // What stays on this node does not come by the hook that masquerades.
        let masquerade = !is_input && self.is_masqueraded(packet, at.address, backend.is_some(), hits);
        End::Sent { masquerade }
    }

    fn is_masqueraded(&self, packet: &Packet, to: IpAddr, is_translated: bool, hits: &mut Vec<Hit>) -> bool {
        if !is_translated {
            return self.leaves(packet, to);
        }
        if packet.source == to && self.maps.hairpin.contains(&to) {
            hits.push(Hit::Hairpin(to));
            return true;
        }
        if self.maps.masquerade.contains(&packet.to) {
            hits.push(Hit::Element(Element::Masquerade(packet.to)));
            return true;
        }
        let is_other = self.settings.masquerade_all || (self.can_tell(packet) && !self.is_local(packet));
        if is_other && self.maps.cluster_ips.contains(&packet.to.address) {
            hits.push(Hit::ClusterIp(packet.to.address));
            return true;
        }
        self.leaves(packet, to)
    }

    /// Whether a pod of this node sends it out of the cluster, and our own network masks that.
    fn leaves(&self, packet: &Packet, to: IpAddr) -> bool {
        let Some(egress) = &self.settings.egress else { return false };
        let is_in = |networks: &[Cidr], address: IpAddr| networks.iter().any(|network| network.contains(address));
        is_in(&egress.pods, packet.source) && !is_in(&egress.inside, to) && !is_in(&MULTICAST, to)
    }
}

#[cfg(test)]
mod tests;
