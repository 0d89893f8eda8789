//! The real network: the same nodes as namespaces, each with a programmer, and servers that say who they are.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::eventually::patience;
use harness::netns::{Lan, Netns};
use nodelet::event::Recorder;
use nodelet::service::{self, ServiceHandle};
use nodelet::watch::{WatchEvent, WatchSink};
use serde_json::Value;

use super::table::{Answer, Flow};
use super::topology::{self, BALANCER_PORTS, NODES, Outcome, POD_INTERFACE, POD_PORTS, PODS};
use crate::explain;
use crate::rig::without_address_detection;
use crate::traffic::{self, Answer as Said};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long nothing may come where nothing is to come.
const SILENCE: Duration = Duration::from_millis(250);
/// Connections at most until every endpoint was seen: with three of them, one is missed in one of 10^13 flows.
const DRAWS: usize = 80;
/// Connections at least, so that an endpoint that is not to be there is seen, too.
const DRAWS_MIN: usize = 6;

struct Node {
    netns: Netns,
    handle: ServiceHandle,
}

/// The network.
pub(crate) struct Real {
    nodes: Vec<Node>,
    pods: Vec<Netns>,
    lan: Lan,
}

fn slim<T: serde::de::DeserializeOwned>(json: &Value) -> T {
    serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

impl Real {
    /// Nodes that have programmed these objects.
    pub(crate) fn new(objects: &[Value], balancer: &BTreeSet<IpAddr>) -> Self {
        let lan = Lan::new().unwrap();
        for (network, node) in topology::routes_from_outside() {
            lan.netns()
                .ip(&format!("route add {network} via {}", topology::node_address(NODES[node], v6(&network))))
                .unwrap();
        }
        for address in balancer {
            let (bits, nodad) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
            lan.netns().ip(&format!("addr add {address}/{bits} dev lo {nodad}")).unwrap();
            BALANCER_PORTS.iter().for_each(|port| traffic::serve_at(lan.netns(), "balancer", (*address, *port).into()));
        }
        let nodes: Vec<Node> = (0..NODES.len()).map(|number| node(&lan, number)).collect();
        let pods = PODS.map(|name| pod(&nodes[topology::node_of(name).unwrap()].netns, name)).into();
        nodes.iter().for_each(|node| list(&node.handle, objects));
        for node in &nodes {
            let handle = &node.handle;
            assert!(handle.programmed(patience(Duration::from_secs(20))), "not programmed: {:?}", handle.status());
        }
        Self { nodes, pods, lan }
    }

    fn netns(&self, source: &str) -> &Netns {
        match PODS.iter().position(|name| *name == source) {
            Some(pod) => &self.pods[pod],
            None => topology::node_of(source).map_or(self.lan.netns(), |node| &self.nodes[node].netns),
        }
    }

    /// What each flow finds, in the order of flows.
    pub(crate) fn outcomes(&self, flows: &[Flow]) -> Vec<BTreeSet<Outcome>> {
        let (next, found) = (AtomicUsize::new(0), Mutex::new(vec![BTreeSet::new(); flows.len()]));
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(flow) = flows.get(number) else { return };
                let outcomes = self.netns(&flow.source).within(|| observe(flow)).unwrap();
                found.lock().unwrap()[number] = outcomes;
            }
        };
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(work))));
        found.into_inner().unwrap()
    }
}

impl Real {
    /// Where kernels differ from what is wanted, as `explain` says it, and how many addresses it compared.
    pub(crate) fn differences(&self, objects: &[Value]) -> (Vec<String>, usize) {
        let of = self.nodes.iter().map(|node| explain::differences(&node.netns, &node.handle, objects));
        of.fold((Vec::new(), 0), |(all, sum), (found, fronts)| ([all, found].concat(), sum + fronts))
    }
}

fn v6(network: &str) -> usize {
    usize::from(network.contains(':'))
}

fn node(lan: &Lan, number: usize) -> Node {
    let netns = Netns::new().unwrap();
    without_address_detection(&netns);
    lan.attach(&netns, 11 + u8::try_from(number).unwrap()).unwrap();
    let second = [0, 1].map(|family| topology::node_address(&format!("{}2", NODES[number]), family));
    netns.ip(&format!("addr add {}/24 dev eth0", second[0])).unwrap();
    // Deprecated: no connection gets it as its source by chance.
    netns.ip(&format!("addr add {}/64 dev eth0 nodad preferred_lft 0", second[1])).unwrap();
    netns.ip("-6 route add default via fd89::1").unwrap();
    for (other, name) in NODES.iter().enumerate().filter(|(other, _)| *other != number) {
        for family in [0, 1] {
            let (network, via) = (topology::pod_network(other, family), topology::node_address(name, family));
            netns.ip(&format!("route add {network} via {via}")).unwrap();
        }
    }
    let redirects = ["all", "default", "eth0"].map(|name| format!("net.ipv4.conf.{name}.send_redirects=0"));
    netns.sh(&format!("sysctl -qw {}", redirects.join(" "))).unwrap();
    // Every refusal is to be told, however many there are in a second.
    netns.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratelimit=0").unwrap();
    for family in [0, 1] {
        // At one address: an answer to a datagram would come from another one.
        let address = topology::node_address(NODES[number], family);
        traffic::serve_at(&netns, &format!("node-{}", NODES[number]), (address, POD_PORTS[0]).into());
    }
    let settings = topology::settings(number);
    let handle = netns.within(|| service::spawn(settings, Recorder::new().0)).unwrap().unwrap();
    handle.set_zone(topology::ZONES[number]);
    Node { netns, handle }
}

fn pod(node: &Netns, name: &str) -> Netns {
    let netns = Netns::new().unwrap();
    without_address_detection(&netns);
    let port = harness::names::interface(POD_INTERFACE);
    node.ip(&format!("link add {port} type veth peer name eth0 netns {}", netns.name())).unwrap();
    let number = topology::node_of(name).unwrap();
    let addresses = [0, 1].map(|family| (topology::gateway(number, family), topology::address_of(name, family)));
    for ((gateway, address), bits) in addresses.iter().zip(["32", "128 nodad"]) {
        let (bits, nodad) = bits.split_once(' ').unwrap_or((bits, ""));
        node.ip(&format!("addr add {gateway}/{bits} dev {port} {nodad}")).unwrap();
        netns.ip(&format!("addr add {address}/{bits} dev eth0 {nodad}")).unwrap();
    }
    node.ip(&format!("link set {port} up")).unwrap();
    netns.ip("link set eth0 up").unwrap();
    for (gateway, address) in addresses {
        node.ip(&format!("route add {address} dev {port}")).unwrap();
        netns.ip(&format!("route add {gateway} dev eth0")).unwrap();
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        netns.ip(&format!("{family} route add default via {gateway} dev eth0")).unwrap();
    }
    POD_PORTS.iter().for_each(|port| traffic::serve(&netns, name, *port));
    netns
}

fn list(handle: &ServiceHandle, objects: &[Value]) {
    let (mut services, mut slices) = (handle.service_sink(), handle.slice_sink());
    services.handle(WatchEvent::Restart);
    slices.handle(WatchEvent::Restart);
    for object in objects {
        match object["kind"].as_str() {
            Some("Service") => services.handle(WatchEvent::InitApply(slim(object))),
            _ => slices.handle(WatchEvent::InitApply(slim(object))),
        }
    }
    services.handle(WatchEvent::InitDone);
    slices.handle(WatchEvent::InitDone);
}

/// Connects until everything that the table says was seen, or something else.
fn observe(flow: &Flow) -> BTreeSet<Outcome> {
    let expected = topology::expected(flow);
    let (min, max) = match flow.answer {
        Answer::Each(_) => (DRAWS_MIN, DRAWS),
        Answer::One(_) => (DRAWS_MIN, DRAWS_MIN),
        Answer::Refused => (2, 2),
        Answer::Dropped => (1, 1),
    };
    let limit = patience(if flow.answer == Answer::Dropped { SILENCE } else { PATIENCE });
    let mut found = BTreeSet::new();
    for draw in 1..=max {
        let asked = if flow.is_udp { udp(flow.to, limit) } else { tcp(flow.to, limit) };
        found.insert(match asked {
            Ok(Said { who, peer }) => Outcome::Answered { who, peer },
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Outcome::Refused,
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Dropped,
                _ => Outcome::Odd(error.to_string()),
            },
        });
        if !found.is_subset(&expected) || (draw >= min && found == expected) {
            break;
        }
    }
    found
}

fn tcp(to: SocketAddr, limit: Duration) -> io::Result<Said> {
    traffic::read_answer(TcpStream::connect_timeout(&to, limit)?, limit)
}

fn udp(to: SocketAddr, limit: Duration) -> io::Result<Said> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit))?;
    match socket.send(b"?") {
        // Our own hook did not let it out; whether it also told so is read from the socket.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            socket.set_read_timeout(Some(patience(SILENCE)))?
        }
        other => drop(other?),
    }
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    Said::parse(&buffer[..length])
}
