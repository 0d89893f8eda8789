//! The virtual network: each node's elements as its programmer would write them, and packets that walk from node to node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use nodelet::service::index::Index;
use nodelet::service::table::Tables;
use nodelet::service::walk::{End, Entry, Maps, Outcome as Fate, Packet, Rules};
use nodelet::service::{Backend, Front, Protocol, Settings};
use nodelet::watch::WatchEvent;
use serde_json::Value;

use super::table::Flow;
use super::topology::{self, BALANCER_PORTS, NODES, Outcome, POD_INTERFACE, POD_PORTS, PODS};

/// How many nodes a packet passes at most: that it enters at, and that of the endpoint, and one that sent it on.
const HOPS: usize = 3;

struct Node {
    settings: Settings,
    maps: Maps,
    own: Vec<IpAddr>,
}

/// The nodes, and addresses that are left to who is outside.
pub(crate) struct Model {
    nodes: Vec<Node>,
    balancer: BTreeSet<IpAddr>,
}

fn slim<T: serde::de::DeserializeOwned>(json: &Value) -> T {
    serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

fn node(number: usize, objects: &[Value]) -> Node {
    let settings = topology::settings(number);
    let mut index = Index::new(&settings);
    index.set_zone(topology::ZONES[number]);
    for object in objects {
        match object["kind"].as_str() {
            Some("Service") => index.service_event(WatchEvent::Apply(slim(object))),
            _ => index.slice_event(WatchEvent::Apply(slim(object))),
        }
    }
    let (mut tables, mut pending) = (Tables::new(), index.keys());
    tables.step(&index, &mut pending, usize::MAX);
    Node { settings, maps: Maps::of(&tables), own: topology::own_addresses(number) }
}

/// Where a packet is.
enum Place {
    Outside,
    Node(usize, Entry),
}

impl Model {
    /// Nodes that know of these objects.
    pub(crate) fn new(objects: &[Value], balancer: BTreeSet<IpAddr>) -> Self {
        Self { nodes: (0..NODES.len()).map(|number| node(number, objects)).collect(), balancer }
    }

    /// All outcomes that a flow may have, where the client had an endpoint before or not.
    pub(crate) fn outcomes(&self, flow: &Flow, remembered: Option<Backend>) -> BTreeSet<Outcome> {
        let protocol = if flow.is_udp { Protocol::Udp } else { Protocol::Tcp };
        let to = Front { address: flow.to.ip(), protocol, port: flow.to.port() };
        let source = topology::source_address(&flow.source, to.address);
        let entry = if flow.source.starts_with("node-") { Entry::Process } else { interface(true) };
        let place = topology::node_of(&flow.source).map_or(Place::Outside, |node| Place::Node(node, entry));
        let mut outcomes = BTreeSet::new();
        self.travel(place, source, to, remembered, HOPS, &mut outcomes);
        outcomes
    }

    fn travel(
        &self,
        place: Place,
        source: IpAddr,
        to: Front,
        remembered: Option<Backend>,
        hops: usize,
        outcomes: &mut BTreeSet<Outcome>,
    ) {
        let (number, entry) = match place {
            Place::Outside if self.balancer.contains(&to.address) => {
                outcomes.insert(listener("balancer", &BALANCER_PORTS, source, &to));
                return;
            }
            // Everything but the addresses of nodes is sent to the first one.
            Place::Outside => (self.owner(to.address).unwrap_or(0), interface(false)),
            Place::Node(number, entry) => (number, entry),
        };
        let node = &self.nodes[number];
        let walk = Rules { maps: &node.maps, settings: &node.settings, own: &node.own }.walk(&Packet {
            entry,
            source,
            to,
            remembered,
        });
        let ends = match walk.outcome {
            Fate::Untranslated(end) => vec![(to, end)],
            Fate::To(choices) => {
                let translated = |backend: Backend| Front { address: backend.address, port: backend.port, ..to };
                choices.into_iter().map(|choice| (translated(choice.backend), choice.end)).collect()
            }
        };
        for (to, end) in ends {
            match end {
                End::Rejected => drop(outcomes.insert(Outcome::Refused)),
                End::Dropped => drop(outcomes.insert(Outcome::Dropped)),
                End::Sent { masquerade } => {
                    let source = if masquerade { self.mask(number, to.address) } else { source };
                    self.arrive(number, source, to, remembered, hops, outcomes);
                }
            }
        }
    }

    fn arrive(
        &self,
        from: usize,
        source: IpAddr,
        to: Front,
        remembered: Option<Backend>,
        hops: usize,
        outcomes: &mut BTreeSet<Outcome>,
    ) {
        let place = match (self.owner(to.address), pod(to.address)) {
            (Some(node), None) if node == from => {
                let name = format!("node-{}", NODES[node]);
                outcomes.insert(listener(&name, &POD_PORTS[..1], source, &to));
                return;
            }
            (Some(node), Some(name)) if node == from => {
                outcomes.insert(listener(name, &POD_PORTS, source, &to));
                return;
            }
            (Some(node), _) => Place::Node(node, interface(false)),
            (None, _) => Place::Outside,
        };
        if hops == 0 {
            outcomes.insert(Outcome::Odd("a packet in a circle".into()));
            return;
        }
        self.travel(place, source, to, remembered, hops - 1, outcomes);
    }

    /// The node that has an address, itself or in a pod.
    fn owner(&self, address: IpAddr) -> Option<usize> {
        let own = self.nodes.iter().position(|node| node.own.contains(&address));
        own.or_else(|| topology::node_of(pod(address)?))
    }

    fn mask(&self, node: usize, to: IpAddr) -> IpAddr {
        topology::mask(node, pod(to).unwrap_or("out"), usize::from(to.is_ipv6()))
    }
}

fn interface(is_pod: bool) -> Entry {
    Entry::Interface(if is_pod { format!("{POD_INTERFACE}0") } else { "eth0".to_owned() }.into())
}

fn pod(address: IpAddr) -> Option<&'static str> {
    PODS.into_iter().find(|name| topology::address_of(name, usize::from(address.is_ipv6())) == address)
}

fn listener(name: &str, ports: &[u16], peer: IpAddr, to: &Front) -> Outcome {
    if ports.contains(&to.port) { Outcome::Answered { who: name.to_owned(), peer } } else { Outcome::Refused }
}
