//! Who is where: three nodes, their pods and what is outside, as the virtual and the real network have it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nodelet::service::{Cidr, Egress, Local, Settings};

use super::table::{Answer, Flow};
use crate::rig::OUTSIDE;

/// Names of nodes; node `a` is called `node-a`.
pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];
/// Pods, by the name of their node and a number.
pub(crate) const PODS: [&str; 6] = ["a0", "a1", "a9", "b0", "b9", "c9"];
/// Ports that every pod serves; nodes serve the first one.
pub(crate) const POD_PORTS: [u16; 2] = [8080, 9090];
/// Ports of who is called `balancer`.
pub(crate) const BALANCER_PORTS: [u16; 2] = [80, 53];
/// Interfaces towards the pods of a node begin so.
pub(crate) const POD_INTERFACE: &str = "pod";
/// Zones of the nodes.
pub(crate) const ZONES: [Option<&str>; 3] = [Some("east"), Some("west"), None];

/// Whom a connection reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Answered {
        who: String,
        peer: IpAddr,
    },
    Refused,
    Dropped,
    /// What no test expects.
    Odd(String),
}

fn ip(texts: [String; 2], family: usize) -> IpAddr {
    texts[family].parse().unwrap()
}

/// The place of a node among [`NODES`].
pub(crate) fn index(node: &str) -> usize {
    NODES.iter().position(|name| *name == node).unwrap_or_else(|| panic!("node {node}"))
}

/// An address of a node: `a`, or `a2` for its second one.
pub(crate) fn node_address(name: &str, family: usize) -> IpAddr {
    let (node, second) = name.split_at(1);
    let host = index(node) + if second.is_empty() { 11 } else { 21 };
    ip([format!("10.89.0.{host}"), format!("fd89::{host}")], family)
}

/// The address of a node towards its pods.
pub(crate) fn gateway(node: usize, family: usize) -> IpAddr {
    let node = node + 1;
    ip([format!("10.244.{node}.1"), format!("fd00:10:244:{node}::1")], family)
}

/// The network of a node's pods.
pub(crate) fn pod_network(node: usize, family: usize) -> String {
    let node = node + 1;
    [format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64")][family].clone()
}

/// Networks that who is outside reaches by a node.
pub(crate) fn routes_from_outside() -> Vec<(String, usize)> {
    let services = ["10.96.0.0/16", "198.51.100.0/24", "203.0.113.0/24"];
    let services6 = ["fd00:10:96::/112", "2001:db8:1::/64", "2001:db8:2::/64"];
    let services = services.into_iter().chain(services6).map(|network| (network.to_owned(), 0));
    let pods = (0..NODES.len()).flat_map(|node| [0, 1].map(|family| (pod_network(node, family), node)));
    services.chain(pods).collect()
}

/// The node of a pod or process.
pub(crate) fn node_of(name: &str) -> Option<usize> {
    match name.strip_prefix("node-") {
        Some(node) => Some(index(node)),
        None if name == "out" || name == "balancer" => None,
        None => Some(index(&name[..1])),
    }
}

/// What slices call the node of an endpoint.
pub(crate) fn node_name_of(name: &str) -> String {
    format!("node-{}", NODES[node_of(name).expect("an endpoint is on a node")])
}

/// The address of a pod, a node or the client outside.
pub(crate) fn address_of(name: &str, family: usize) -> IpAddr {
    if let Some(node) = name.strip_prefix("node-") {
        return node_address(node, family);
    }
    if name == "out" {
        return OUTSIDE[family].parse().unwrap();
    }
    let (node, pod) = (index(&name[..1]) + 1, 10 + name[1..].parse::<u8>().unwrap());
    ip([format!("10.244.{node}.{pod}"), format!("fd00:10:244:{node}::{pod}")], family)
}

/// The address that a client takes for a destination: that itself where it is its own. Second addresses of the same network
/// are different in IPv4: their routes name the first one.
pub(crate) fn source_address(source: &str, to: IpAddr) -> IpAddr {
    let node = node_of(source).filter(|_| source.starts_with("node-") && to.is_ipv6());
    let is_own = node.is_some_and(|node| own_addresses(node).contains(&to));
    if is_own { to } else { address_of(source, usize::from(to.is_ipv6())) }
}

/// All addresses of a node.
pub(crate) fn own_addresses(node: usize) -> Vec<IpAddr> {
    let name = NODES[node];
    let of = |family| [node_address(name, family), node_address(&format!("{name}2"), family), gateway(node, family)];
    [0, 1].into_iter().flat_map(of).collect()
}

/// The address that a node gives to what it masks on its way to somebody.
pub(crate) fn mask(node: usize, who: &str, family: usize) -> IpAddr {
    let is_pod_here = node_of(who) == Some(node) && !who.starts_with("node-");
    if is_pod_here { gateway(node, family) } else { node_address(NODES[node], family) }
}

/// The settings of a node.
pub(crate) fn settings(node: usize) -> Settings {
    let cidrs = |texts: &[&str]| texts.iter().map(|text| Cidr::parse(text).unwrap()).collect::<Vec<_>>();
    let cluster = cidrs(&["10.244.0.0/16", "fd00:10:244::/48"]);
    let is_last = node == 2;
    let own = [0, 1].map(|family| pod_network(node, family));
    let serving = if is_last { "c2".to_owned() } else { NODES[node].to_owned() };
    Settings {
        node_name: format!("node-{}", NODES[node]),
        node_addresses: [0, 1].map(|family| node_address(&serving, family)).to_vec(),
        local: if is_last { Local::InterfacePrefix(POD_INTERFACE.into()) } else { Local::Networks(cluster.clone()) },
        egress: (node == 0).then(|| Egress { pods: cidrs(&own.each_ref().map(String::as_str)), inside: cluster }),
        service_cidrs: cidrs(&["10.96.0.0/16", "fd00:10:96::/112"]),
        ..Settings::default()
    }
}

/// What a flow is to find, as all outcomes that it may have.
pub(crate) fn expected(flow: &Flow) -> BTreeSet<Outcome> {
    let family = usize::from(flow.to.is_ipv6());
    let answered = |who: &String| {
        let itself = node_of(&flow.source).filter(|_| *who == flow.source && !who.starts_with("node-"));
        let masked_by = itself.or(flow.masked_by.as_deref().map(index));
        let peer = masked_by.map_or_else(|| source_address(&flow.source, flow.to.ip()), |node| mask(node, who, family));
        Outcome::Answered { who: who.clone(), peer }
    };
    match &flow.answer {
        Answer::Each(names) | Answer::One(names) => names.iter().map(answered).collect(),
        Answer::Refused => [Outcome::Refused].into(),
        Answer::Dropped => [Outcome::Dropped].into(),
    }
}
