//! The table of flows as data: `tests/data/services/flow-table.txt`, whose head says what a line means.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::topology::{self, address_of, node_name_of};

const TEXT: &str = include_str!("../../data/services/flow-table.txt");

/// A Service with its slices, and what connections to it find.
#[derive(Debug)]
pub(crate) struct Scenario {
    name: String,
    number: u8,
    spec: Value,
    labels: Value,
    ingress: Value,
    slices: Vec<String>,
    is_absent: bool,
    rows: Vec<String>,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// All of these, in turn.
    Each(Vec<String>),
    /// One of these, always the same.
    One(Vec<String>),
    Refused,
    Dropped,
}

/// One connection and what it finds.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// For a person.
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) to: SocketAddr,
    pub(crate) is_udp: bool,
    pub(crate) answer: Answer,
    /// The node whose address the endpoint sees.
    pub(crate) masked_by: Option<String>,
}

/// All scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Vec::new();
    let lines = TEXT.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "service" {
            let number = u8::try_from(all.len() + 1).unwrap();
            all.push(Scenario::new(rest, number));
            continue;
        }
        let scenario = all.last_mut().expect("the first line names a Service");
        let value = || serde_json::from_str(rest).unwrap_or_else(|e| panic!("{line}: {e}"));
        match word {
            "spec" => scenario.spec = value(),
            "labels" => scenario.labels = value(),
            "ingress" => scenario.ingress = value(),
            "endpoints" => scenario.slices.push(rest.to_owned()),
            "absent" => scenario.is_absent = true,
            _ => scenario.rows.push(line.to_owned()),
        }
    }
    all
}

/// All flows.
pub(crate) fn flows(scenarios: &[Scenario]) -> Vec<Flow> {
    scenarios.iter().flat_map(|scenario| scenario.rows.iter().flat_map(|row| scenario.flows(row))).collect()
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            value => into[key] = value.clone(),
        }
    }
}

impl Scenario {
    fn new(name: &str, number: u8) -> Self {
        let [spec, labels, ingress] = [(); 3].map(|()| Value::Object(Map::new()));
        Self { name: name.to_owned(), number, spec, labels, ingress, slices: vec![], is_absent: false, rows: vec![] }
    }

    fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// The Service and its slices.
    pub(crate) fn objects(&self) -> Vec<Value> {
        if self.is_absent {
            return Vec::new();
        }
        let [ips, vips, externals] = ["cluster", "vip", "external"].map(|kind| [0, 1].map(|f| self.at(kind, f)));
        let has_node_port = self.spec["allocateLoadBalancerNodePorts"] != false;
        let node_port = has_node_port.then(|| self.node_port());
        let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port});
        let mut service = json!({
            "kind": "Service", "metadata": {"name": self.name, "namespace": "default", "labels": self.labels},
            "spec": {
                "type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "externalIPs": externals,
                "ports": [port("web", "TCP", 80), port("dns", "UDP", 53)],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": vips[0]}, {"ip": vips[1]}]}},
        });
        merge(&mut service["spec"], &self.spec);
        for ingress in service["status"]["loadBalancer"]["ingress"].as_array_mut().unwrap() {
            merge(ingress, &self.ingress);
        }
        let slices = self.slices.iter().enumerate().flat_map(|(n, text)| [0, 1].map(|f| self.slice(n, text, f)));
        std::iter::once(service).chain(slices).collect()
    }

    fn slice(&self, number: usize, text: &str, family: usize) -> Value {
        let kind = ["IPv4", "IPv6"][family];
        let (ports, endpoints): (Vec<&str>, Vec<&str>) = text.split_whitespace().partition(|word| word.contains('='));
        let ports = if ports.is_empty() { vec!["web=8080", "dns=8080"] } else { ports };
        let port = |text: &&str| {
            let (name, number) = text.split_once('=').unwrap();
            json!({"name": name, "port": number.parse::<u16>().unwrap(), "protocol": if name == "web" { "TCP" } else { "UDP" }})
        };
        json!({
            "kind": "EndpointSlice", "addressType": kind,
            "metadata": {"name": format!("{}-{number}-{kind}", self.name), "namespace": "default", "labels": {"kubernetes.io/service-name": self.name}},
            "endpoints": endpoints.iter().map(|text| endpoint(text, family)).collect::<Vec<_>>(),
            "ports": ports.iter().map(port).collect::<Vec<_>>(),
        })
    }

    /// An address of the Service, or the one that stands for it.
    fn at(&self, target: &str, family: usize) -> IpAddr {
        let number = self.number;
        let [v4, v6] = match target {
            "cluster" | "unused" => [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")],
            "vip" => [format!("198.51.100.{number}"), format!("2001:db8:1::{number}")],
            "external" => [format!("203.0.113.{number}"), format!("2001:db8:2::{number}")],
            other => {
                let node = other.strip_prefix("node-port:").unwrap_or_else(|| panic!("target {other}"));
                return topology::node_address(node, family);
            }
        };
        [v4, v6][family].parse().unwrap()
    }

    fn flows(&self, row: &str) -> Vec<Flow> {
        let parts = row.split_once('>').and_then(|(from, rest)| Some((from, rest.split_once('=')?)));
        let (sources, (targets, answer)) = parts.unwrap_or_else(|| panic!("{}: {row}", self.name));
        let (answer, masked_by) = match answer.split_once(" by ") {
            Some((answer, node)) => (answer, Some(node.trim().to_owned())),
            None => (answer, None),
        };
        let words: Vec<String> = answer.split_whitespace().map(str::to_owned).collect();
        let answer = match words[0].as_str() {
            "refused" => Answer::Refused,
            "dropped" => Answer::Dropped,
            "one" => Answer::One(words[1..].to_vec()),
            _ => Answer::Each(words),
        };
        let mut flows = Vec::new();
        for (source, target) in sources.split_whitespace().flat_map(|s| targets.split_whitespace().map(move |t| (s, t)))
        {
            let (target, only) = target.split_once('/').unwrap_or((target, ""));
            let all = [0, 1].into_iter().flat_map(|family| [false, true].map(|is_udp| (family, is_udp)));
            for (family, is_udp) in all {
                if [["v4", "v6"][1 - family], ["tcp", "udp"][usize::from(!is_udp)]].contains(&only) {
                    continue;
                }
                let port = if is_udp { 53 } else { 80 };
                let port = match target {
                    "unused" => port + 1,
                    _ if target.starts_with("node-port") => self.node_port(),
                    _ => port,
                };
                let to = SocketAddr::new(self.at(target, family), port);
                let kind = if is_udp { "UDP" } else { "TCP" };
                let name = format!("{}: {source} > {target} ({kind} {to})", self.name);
                let (source, answer, masked_by) = (source.to_owned(), answer.clone(), masked_by.clone());
                flows.push(Flow { name, source, to, is_udp, answer, masked_by });
            }
        }
        flows
    }
}

/// `NAME[:STATE][@ZONE][^NODE]`.
fn endpoint(text: &str, family: usize) -> Value {
    let (text, for_node) = text.split_once('^').map_or((text, None), |(text, node)| (text, Some(node)));
    let (text, zone) = text.split_once('@').map_or((text, None), |(text, zone)| (text, Some(zone)));
    let (name, state) = text.split_once(':').unwrap_or((text, "ready"));
    let (ready, serving, terminating) = match state {
        "ready" => (true, true, false),
        "draining" => (false, true, true),
        "unready" => (false, false, false),
        "gone" => (false, false, true),
        other => panic!("state {other}"),
    };
    let hint = |name: Option<&str>| name.map(|name| json!([{"name": name}]));
    json!({
        "addresses": [address_of(name, family)], "nodeName": node_name_of(name),
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "hints": {"forZones": hint(zone), "forNodes": hint(for_node)},
    })
}
