//! What happens to the first packet of a connection to a front, by the elements that the kernel holds. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ask::Sender;
use super::report::PacketReport;
use super::{Ask, Facts, LocalPod, Refusal, words};
use crate::ids::ObjectKey;
use crate::service::index::Rank;
use crate::service::program::{Element, Verdict};
use crate::service::walk::{Choice, End, Entry, Hit, Outcome, Packet, Rules, Walk};
use crate::service::{Cidr, Front, Local, Protocol};

/// Who sends a packet.
struct Source {
    name: String,
    entry: Entry,
    address: IpAddr,
}

/// All packets that were asked for, walked.
pub(super) fn reports(facts: &Facts, ask: &Ask, (front, rank): (&Front, Rank)) -> Result<Vec<PacketReport>, Refusal> {
    let rules = Rules { maps: &facts.held.maps, settings: &facts.settings, own: &facts.own };
    let walked = |source: Source| {
        let remembered = facts.held.remembered.get(&(*front, source.address)).copied();
        let packet = Packet { entry: source.entry, source: source.address, to: *front, remembered };
        describe(facts, (front, rank), source.name, &rules.walk(&packet))
    };
    Ok(sources(facts, ask, (front, rank))?.into_iter().map(walked).collect())
}

fn sources(facts: &Facts, ask: &Ask, (front, rank): (&Front, Rank)) -> Result<Vec<Source>, Refusal> {
    let v6 = front.address.is_ipv6();
    Ok(match &ask.from {
        Sender::Anybody => {
            let outside = (rank != Rank::ClusterIp).then(|| somebody_outside(facts, front));
            [some_pod(facts, v6)].into_iter().chain(outside).collect()
        }
        Sender::Node => process(facts, v6, "a process of this node").into_iter().collect(),
        Sender::Pod(namespace, name) => {
            let namespace = namespace.as_deref().unwrap_or(&ask.service.namespace);
            let key = ObjectKey::new(namespace, name);
            let found = facts.pods.iter().find(|pod| pod.key == key).ok_or_else(|| Refusal::NoPod(key.clone()))?;
            if found.addresses.is_empty() {
                return Err(Refusal::NoAddress(key));
            }
            of_pod(facts, found, v6).into_iter().collect()
        }
        Sender::Address(address) if address.is_ipv6() != v6 => Vec::new(),
        Sender::Address(address) => vec![at(facts, *address)],
    })
}

fn is_in(networks: &[Cidr], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// The interface of a pod of this node, as far as rules go by it.
fn pods_interface(facts: &Facts) -> Entry {
    Entry::Interface(match &facts.settings.local {
        Local::Networks(_) => "pod".into(),
        Local::Interface(name) | Local::InterfacePrefix(name) => name.as_str().into(),
    })
}

/// The interface of everybody else. No interface has such a name.
fn other_interface() -> Entry {
    Entry::Interface("/outside".into())
}

fn process(facts: &Facts, v6: bool, name: &str) -> Option<Source> {
    let mut own = facts.own.iter().filter(|own| own.is_ipv6() == v6 && !own.is_loopback());
    let address = *own.next()?;
    Some(Source { name: format!("{name} ({address})"), entry: Entry::Process, address })
}

fn of_pod(facts: &Facts, pod: &LocalPod, v6: bool) -> Option<Source> {
    if pod.host_network {
        return process(facts, v6, &format!("pod {} on the node's network", pod.key));
    }
    let address = *pod.addresses.iter().find(|address| address.is_ipv6() == v6)?;
    Some(Source { name: format!("pod {} ({address})", pod.key), entry: pods_interface(facts), address })
}

/// Whoever has an address, as far as it tells.
fn at(facts: &Facts, address: IpAddr) -> Source {
    let own_pod = facts.pods.iter().find(|pod| !pod.host_network && pod.addresses.contains(&address));
    if let Some(source) = own_pod.and_then(|pod| of_pod(facts, pod, address.is_ipv6())) {
        return source;
    }
    if facts.own.contains(&address) || address.is_loopback() {
        return Source { name: format!("a process of this node ({address})"), entry: Entry::Process, address };
    }
    let is_here = facts.settings.egress.as_ref().is_some_and(|egress| is_in(&egress.pods, address));
    let (who, entry) = match &facts.settings.local {
        _ if is_here => ("a pod of this node", pods_interface(facts)),
        Local::Networks(networks) if is_in(networks, address) => ("a pod of another node", other_interface()),
        Local::Networks(_) | Local::Interface(_) | Local::InterfacePrefix(_) => ("outside", other_interface()),
    };
    Source { name: format!("{who} ({address})"), entry, address }
}

/// A pod of this node that is no endpoint of the Service, or one that could be.
fn some_pod(facts: &Facts, v6: bool) -> Source {
    let is_endpoint = |address: &IpAddr| facts.known.local.contains(address);
    let others = facts.pods.iter().filter(|pod| !pod.host_network && !pod.addresses.iter().any(is_endpoint));
    if let Some(source) = others.filter_map(|pod| of_pod(facts, pod, v6)).next() {
        return source;
    }
    let networks = match &facts.settings.local {
        Local::Networks(networks) => networks.as_slice(),
        Local::Interface(_) | Local::InterfacePrefix(_) => &[],
    };
    let here = facts.settings.egress.iter().flat_map(|egress| &egress.pods).chain(networks);
    let address = here.filter(|network| network.address.is_ipv6() == v6).map(|network| network.address).next();
    // The address of a network is no pod's, so it is no endpoint's.
    let address = address.unwrap_or_else(|| documentation(v6));
    Source { name: "a pod of this node".to_owned(), entry: pods_interface(facts), address }
}

/// Somebody who may connect, where only some may.
fn somebody_outside(facts: &Facts, front: &Front) -> Source {
    let claim = facts.known.desired.get(front);
    let allowed = claim.and_then(|claim| claim.program.sources.as_deref()?.first());
    let (name, address) = match allowed {
        Some(range) => (format!("outside, from {}", range), range.address),
        None => ("outside".to_owned(), documentation(front.address.is_ipv6())),
    };
    Source { name, entry: other_interface(), address }
}

/// Addresses that nobody has (RFC 5737, RFC 3849).
fn documentation(v6: bool) -> IpAddr {
    match v6 {
        false => Ipv4Addr::new(192, 0, 2, 1).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    }
}

fn describe(facts: &Facts, (front, rank): (&Front, Rank), from: String, walk: &Walk) -> PacketReport {
    let mut by: Vec<String> = walk.hits.iter().map(words::hit).collect();
    let (passes, result) = match &walk.outcome {
        Outcome::Untranslated(end) => (false, untranslated(facts, (front, rank), walk, *end)),
        Outcome::To(choices) => {
            // Of hits after the choice those that do not differ by endpoint are worth a line.
            let later = choices.iter().flat_map(|choice| &choice.hits).filter(|hit| !is_of_one(hit)).map(words::hit);
            for hit in later {
                if !by.contains(&hit) {
                    by.push(hit);
                }
            }
            let is_sent = |choice: &Choice| matches!(choice.end, End::Sent { .. });
            (choices.iter().all(is_sent), translated(facts, front, choices))
        }
    };
    PacketReport { from, passes, result, by }
}

fn is_of_one(hit: &Hit) -> bool {
    matches!(hit, Hit::Element(Element::Endpoint(..)) | Hit::Hairpin(_))
}

/// Endpoints were to be chosen from.
fn is_pick(hit: &Hit) -> bool {
    matches!(hit, Hit::Element(Element::Service(_, _, Verdict::Pick(..))))
}

/// How a refusal looks to who is refused.
fn refused(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "refused with a TCP reset (\"connection refused\")",
        Protocol::Udp | Protocol::Sctp => "refused with ICMP port unreachable",
    }
}

fn untranslated(facts: &Facts, (front, rank): (&Front, Rank), walk: &Walk, end: End) -> String {
    let policy = match rank {
        Rank::ClusterIp => "internalTrafficPolicy",
        Rank::NodePort | Rank::HostPort | Rank::Ingress | Rank::External => "externalTrafficPolicy",
    };
    match (end, walk.hits.last()) {
        (End::Rejected, Some(Hit::Element(Element::NoEndpoints(_)))) => {
            format!("{}: no endpoint serves", refused(front.protocol))
        }
        (End::Rejected, _) if walk.hits.iter().any(is_pick) => {
            format!("{}, at least sometimes: the kernel has no endpoint in the first slot", refused(front.protocol))
        }
        (End::Rejected, _) => format!("{}: the kernel knows the ClusterIP, but not this port", refused(front.protocol)),
        (End::Dropped, Some(Hit::Element(Element::Firewalled(_)))) => {
            "dropped without an answer: loadBalancerSourceRanges do not allow this source".to_owned()
        }
        (End::Dropped, Some(Hit::Element(Element::Service(_, _, Verdict::Drop)))) => {
            format!("dropped without an answer: no endpoint serves on this node, and {policy} is Local")
        }
        (End::Dropped, Some(Hit::Range(_))) => {
            "dropped without an answer: the kernel knows no Service with this ClusterIP".to_owned()
        }
        (End::Dropped, _) => "dropped without an answer".to_owned(),
        (End::Sent { .. }, _) if facts.own.contains(&front.address) => {
            "not taken for the Service: it reaches the node itself, where a process may listen".to_owned()
        }
        (End::Sent { .. }, _) => {
            format!("not taken for the Service: it goes on to {} as it is", front.address)
        }
    }
}

fn translated(facts: &Facts, front: &Front, choices: &[Choice]) -> String {
    let total: u32 = choices.iter().map(|choice| choice.slots).sum();
    let is_even = choices.iter().all(|choice| choice.slots == choices.first().map_or(0, |first| first.slots));
    let name = |choice: &Choice| {
        let weight = if is_even { String::new() } else { format!(" (with {} of {total} slots)", choice.slots) };
        choice.backend.to_string() + &weight
    };
    let of = |wanted: &dyn Fn(&Choice) -> bool| choices.iter().filter(|c| wanted(c)).map(name).collect::<Vec<_>>();
    let sent = of(&|choice| matches!(choice.end, End::Sent { .. }));
    let refused_by = of(&|choice| choice.end == End::Rejected);
    let dropped = of(&|choice| choice.end == End::Dropped);
    let mut parts = Vec::new();
    match sent.as_slice() {
        [] => {}
        [one] if is_remembered(choices) => parts.push(format!("goes to {one}, the endpoint that this client had last")),
        [one] => parts.push(format!("goes to {one}")),
        all => parts.push(format!("goes to one of {}: {}", words::count(all.len(), "endpoint"), words::few(all))),
    }
    if !sent.is_empty() {
        parts.push(source(facts, choices));
    }
    if !refused_by.is_empty() {
        let how = refused(front.protocol);
        parts.push(format!("{how} where it is sent to {}, itself an address of a Service", words::few(&refused_by)));
    }
    if !dropped.is_empty() {
        parts.push(format!("dropped where it is sent to {}, in a range of ClusterIPs", words::few(&dropped)));
    }
    parts.join("; ")
}

fn is_remembered(choices: &[Choice]) -> bool {
    choices.iter().any(|choice| choice.hits.iter().any(|hit| matches!(hit, Hit::Remembered(..))))
}

/// Which source the endpoint sees, and why.
fn source(facts: &Facts, choices: &[Choice]) -> String {
    let is_masked = |choice: &&Choice| choice.end == End::Sent { masquerade: true };
    let is_sent = |choice: &&Choice| matches!(choice.end, End::Sent { .. });
    let masked: Vec<&Choice> = choices.iter().filter(is_masked).collect();
    let is_hairpin = |choice: &&Choice| choice.hits.iter().any(|hit| matches!(hit, Hit::Hairpin(_)));
    let others: Vec<&Choice> = masked.iter().copied().filter(|choice| !is_hairpin(choice)).collect();
    let mut text = match others.first() {
        None => "the endpoint sees its source as it is".to_owned(),
        Some(first) => {
            let is_hit = |wanted: &dyn Fn(&Hit) -> bool| first.hits.iter().any(wanted);
            let why = if is_hit(&|hit| matches!(hit, Hit::Element(Element::Masquerade(_)))) {
                "externalTrafficPolicy is Cluster"
            } else if is_hit(&|hit| matches!(hit, Hit::ClusterIp(_))) {
                if facts.settings.masquerade_all {
                    "masqueradeAll is set"
                } else {
                    "it is not from a pod of this cluster"
                }
            } else {
                "it leaves the cluster"
            };
            format!("the endpoint sees an address of this node as its source, because {why}")
        }
    };
    let own: Vec<String> = masked.iter().filter(|c| is_hairpin(c)).map(|c| c.backend.to_string()).collect();
    if !own.is_empty() {
        let all_own = own.len() == choices.iter().filter(is_sent).count();
        let seen = "sees an address of this node as its source, because it is the sender itself";
        text = if all_own { format!("the endpoint {seen}") } else { format!("{text} ({} {seen})", words::few(&own)) };
    }
    text
}
