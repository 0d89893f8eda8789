//! A node with pods and a network outside, and the service programmer on it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::eventually::{eventually, patience};
use harness::netns::{Lan, Netns};
use nodelet::event::{Event, Recorder, Subject};
use nodelet::service::{self, Cidr, Local, ServiceHandle, Settings, slim};
use nodelet::watch::{WatchEvent, WatchSink};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::traffic;

/// The port of every server in a pod.
pub(crate) const POD_PORT: u16 = 8080;
/// Addresses of the node.
pub(crate) const NODE: [&str; 2] = ["10.89.0.11", "fd89::11"];
/// Addresses of the client outside of the cluster.
pub(crate) const OUTSIDE: [&str; 2] = ["10.89.0.1", "fd89::1"];
/// Addresses of the node towards its pods.
pub(crate) const GATEWAY: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
/// The name of the node in slices.
pub(crate) const NODE_NAME: &str = "node-a";

/// Both families.
pub(crate) const FAMILIES: [usize; 2] = [0, 1];

/// An address and port.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// A namespace that stands for a pod, with a server called like it.
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    /// IPv4 and IPv6.
    pub(crate) addresses: [String; 2],
}

/// The node and what is around it.
pub(crate) struct Rig {
    pub(crate) lan: Lan,
    pub(crate) node: Netns,
    pub(crate) pods: Vec<Pod>,
    pub(crate) settings: Settings,
    agent: Option<Agent>,
    /// What the running programmer tells people.
    events: Option<Receiver<Event>>,
}

/// The running programmer, as the watches see it.
struct Agent {
    handle: ServiceHandle,
    services: Box<dyn WatchSink<slim::Service>>,
    slices: Box<dyn WatchSink<slim::EndpointSlice>>,
}

fn slim<T: serde::de::DeserializeOwned>(json: &Value) -> T {
    serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{e}: {json}"))
}

impl Rig {
    /// A node with pods named `pod0` and so on; nothing is programmed yet.
    pub(crate) fn new(pods: usize) -> Self {
        let lan = Lan::new().unwrap();
        let node = Netns::new().unwrap();
        without_address_detection(&node);
        lan.attach(&node, 11).unwrap();
        node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1").unwrap();
        // A redirect to a client on the same link would use up the one error a second that the kernel sends to it.
        let names = ["all", "default", "eth0"].map(|name| format!("net.ipv4.conf.{name}.send_redirects=0"));
        node.sh(&format!("sysctl -qw {}", names.join(" "))).unwrap();
        node.ip("-6 route add default via fd89::1").unwrap();
        // ClusterIPs that the network outside sends here by mistake or on purpose.
        lan.netns().ip(&format!("route add 10.96.0.0/16 via {}", NODE[0])).unwrap();
        lan.netns().ip(&format!("-6 route add fd00:10:96::/64 via {}", NODE[1])).unwrap();
        let cidrs = ["10.244.0.0/16", "fd00:10:244::/48"].map(|text| Cidr::parse(text).unwrap());
        let settings = Settings {
            node_name: NODE_NAME.into(),
            node_addresses: NODE.map(|text| text.parse().unwrap()).to_vec(),
            local: Local::Networks(cidrs.to_vec()),
            ..Settings::default()
        };
        let mut rig = Self { lan, node, pods: Vec::new(), settings, agent: None, events: None };
        (0..pods).for_each(|_| rig.add_pod());
        rig
    }

    /// A node with pods and a running programmer that knows of nothing.
    pub(crate) fn started(pods: usize) -> Self {
        let mut rig = Self::new(pods);
        rig.start(&[]);
        rig
    }

    fn add_pod(&mut self) {
        let number = self.pods.len();
        let netns = Netns::new().unwrap();
        without_address_detection(&netns);
        let addresses = [format!("10.244.1.{}", 10 + number), format!("fd00:10:244:1::{}", 10 + number)];
        let port = harness::names::interface("p");
        self.node.ip(&format!("link add {port} type veth peer name eth0 netns {}", netns.name())).unwrap();
        for (index, bits) in [32, 128].into_iter().enumerate() {
            let (gateway, address) = (GATEWAY[index], &addresses[index]);
            let family = if index == 0 { "-4" } else { "-6" };
            let nodad = if index == 0 { "" } else { "nodad" };
            self.node.ip(&format!("{family} addr add {gateway}/{bits} dev {port} {nodad}")).unwrap();
            netns.ip(&format!("{family} addr add {address}/{bits} dev eth0 {nodad}")).unwrap();
        }
        self.node.ip(&format!("link set {port} up")).unwrap();
        netns.ip("link set eth0 up").unwrap();
        for (family, index) in [("-4", 0), ("-6", 1)] {
            let (gateway, address) = (GATEWAY[index], &addresses[index]);
            let prefix = if index == 0 { 32 } else { 128 };
            self.node.ip(&format!("{family} route add {address}/{prefix} dev {port}")).unwrap();
            netns.ip(&format!("{family} route add {gateway}/{prefix} dev eth0")).unwrap();
            netns.ip(&format!("{family} route add default via {gateway} dev eth0")).unwrap();
        }
        traffic::serve(&netns, &format!("pod{number}"), POD_PORT);
        self.pods.push(Pod { netns, addresses });
    }

    /// Starts the programmer and lists these Services and EndpointSlices to it.
    pub(crate) fn start(&mut self, objects: &[Value]) {
        self.spawn();
        self.relist(objects);
        self.settle();
    }

    /// Starts the programmer; it is told nothing.
    pub(crate) fn spawn(&mut self) {
        let settings = self.settings.clone();
        let (recorder, events) = Recorder::new();
        let handle = self.node.within(|| service::spawn(settings, recorder)).unwrap().unwrap();
        self.events = Some(events);
        let (services, slices) = (Box::new(handle.service_sink()), Box::new(handle.slice_sink()));
        self.agent = Some(Agent { handle, services, slices });
    }

    /// Ends the programmer; its rules stay.
    pub(crate) fn stop(&mut self) {
        let agent = self.agent.take().expect("a programmer runs");
        let handle = agent.handle.clone();
        drop((agent.services, agent.slices, agent.handle));
        drop(handle);
    }

    fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("a programmer runs")
    }

    /// The running programmer.
    pub(crate) fn handle(&self) -> &ServiceHandle {
        &self.agent.as_ref().expect("a programmer runs").handle
    }

    /// A whole list of both resources.
    pub(crate) fn relist(&mut self, objects: &[Value]) {
        let agent = self.agent();
        agent.services.handle(WatchEvent::Restart);
        agent.slices.handle(WatchEvent::Restart);
        for object in objects {
            match object["kind"].as_str() {
                Some("Service") => agent.services.handle(WatchEvent::InitApply(slim(object))),
                _ => agent.slices.handle(WatchEvent::InitApply(slim(object))),
            }
        }
        agent.services.handle(WatchEvent::InitDone);
        agent.slices.handle(WatchEvent::InitDone);
    }

    /// The first half of a list, which never ends.
    pub(crate) fn half_a_list(&mut self, objects: &[Value]) {
        let agent = self.agent();
        agent.services.handle(WatchEvent::Restart);
        agent.slices.handle(WatchEvent::Restart);
        for object in objects.iter().take(objects.len() / 2).filter(|object| object["kind"] == "Service") {
            agent.services.handle(WatchEvent::InitApply(slim(object)));
        }
        agent.services.handle(WatchEvent::InitDone);
    }

    /// Adds or changes objects, and waits until that is in the kernel.
    pub(crate) fn apply(&mut self, objects: &[Value]) {
        for object in objects {
            match object["kind"].as_str() {
                Some("Service") => self.agent().services.handle(WatchEvent::Apply(slim(object))),
                _ => self.agent().slices.handle(WatchEvent::Apply(slim(object))),
            }
        }
        self.settle();
    }

    /// Removes objects, and waits until that is in the kernel.
    pub(crate) fn delete(&mut self, objects: &[Value]) {
        for object in objects {
            match object["kind"].as_str() {
                Some("Service") => self.agent().services.handle(WatchEvent::Delete(slim(object))),
                _ => self.agent().slices.handle(WatchEvent::Delete(slim(object))),
            }
        }
        self.settle();
    }

    /// Waits until everything that was told is in the kernel.
    pub(crate) fn settle(&self) {
        let programmed = self.handle().programmed(patience(Duration::from_secs(10)));
        assert!(programmed, "not programmed: {:?}", self.handle().status());
    }

    /// Ready endpoints on this node for a Service, one slice for each family, for these pods.
    pub(crate) fn slices(&self, service: &str, pods: &[usize]) -> Vec<Value> {
        let ready = json!({"ready": true, "serving": true, "terminating": false});
        self.slices_with(service, &pods.iter().map(|pod| (*pod, ready.clone())).collect::<Vec<_>>())
    }

    /// The same with conditions.
    pub(crate) fn slices_with(&self, service: &str, pods: &[(usize, Value)]) -> Vec<Value> {
        let of = |family: usize| {
            let endpoint = |(pod, conditions): &(usize, Value)| json!({"addresses": [self.pods[*pod].addresses[family]], "conditions": conditions, "nodeName": NODE_NAME});
            slice(service, family, pods.iter().map(endpoint).collect())
        };
        FAMILIES.map(of).to_vec()
    }

    /// Events since the last call: reason and Service, and the message.
    pub(crate) fn events(&mut self) -> Vec<(&'static str, String, String)> {
        let events = self.events.as_mut().expect("a programmer ran");
        let text = |event: Event| match event.subject {
            Subject::Service { key } => (event.reason, key.to_string(), event.message),
            other => panic!("an event of {other:?}"),
        };
        std::iter::from_fn(|| events.try_recv().ok()).map(text).collect()
    }

    /// An address of a pod.
    pub(crate) fn address(&self, pod: usize, family: usize) -> IpAddr {
        self.pods[pod].addresses[family].parse().unwrap()
    }

    /// What `nft list table` prints of our table.
    pub(crate) fn listing(&self, family: &str) -> String {
        self.node.sh(&format!("nft list table {family} nodelet")).unwrap()
    }

    /// Conntrack entries of UDP to a port, as the tool prints them.
    pub(crate) fn flows(&self, family: usize) -> String {
        let family = ["ipv4", "ipv6"][family];
        self.node.sh(&format!("conntrack -L -f {family} -p udp 2>/dev/null")).unwrap()
    }
}

/// Duplicate address detection would keep link-local addresses, which neighbour discovery uses, back for a second.
pub(crate) fn without_address_detection(netns: &Netns) {
    netns.sh("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0").unwrap();
}

/// A slice of a family with these endpoints, on the port of the servers, for the port called `web` in TCP and UDP.
pub(crate) fn slice(service: &str, family: usize, endpoints: Vec<Value>) -> Value {
    let kind = ["IPv4", "IPv6"][family];
    json!({
        "kind": "EndpointSlice", "addressType": kind, "endpoints": endpoints,
        "metadata": {"name": format!("{service}-{kind}"), "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "web", "port": POD_PORT, "protocol": "TCP"}, {"name": "dns", "port": POD_PORT, "protocol": "UDP"}],
    })
}

/// ClusterIPs of the Service of this number.
pub(crate) fn cluster_ips(number: u8) -> [String; 2] {
    [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")]
}

/// A dual-stack Service with ports 80/TCP and 53/UDP and, where `node_port` is not 0, that NodePort for both.
pub(crate) fn service(name: &str, number: u8, node_port: u16) -> Value {
    let ips = cluster_ips(number);
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "nodePort": Some(node_port).filter(|n| *n > 0)});
    json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": if node_port > 0 { "NodePort" } else { "ClusterIP" }, "clusterIP": ips[0], "clusterIPs": ips,
            "ports": [port("web", "TCP", 80), port("dns", "UDP", 53)],
        },
    })
}

/// Waits until a check holds; for what happens without being told.
pub(crate) fn until<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(eventually(limit, what, async || check())).unwrap()
}
