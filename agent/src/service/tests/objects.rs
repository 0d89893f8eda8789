//! Services and slices in many forms, as an API server has them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What the API server has: Services and slices by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    pub(super) services: BTreeMap<u8, Value>,
    pub(super) slices: BTreeMap<u8, Value>,
}

pub(super) fn name(number: u8) -> String {
    format!("s{number}")
}

/// One of many forms of a Service. Some of them claim an address of another Service.
pub(super) fn service(number: u8, form: u16) -> Value {
    let bit = |n: u16| form >> n & 1 == 1;
    let mut ips = vec![format!("10.96.0.{}", number + 1)];
    if bit(0) {
        ips.push(format!("fd00::{}", number + 1));
    }
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "nodePort": if bit(1) { 30000 + u16::from(number) } else { 0 }});
    let mut ports = vec![port("web", "TCP", 80)];
    if bit(2) {
        ports.push(port("dns", "UDP", 53));
    }
    let external = [
        vec![],
        vec!["198.51.100.9".to_owned()],
        vec!["10.96.0.1".to_owned()],
        vec!["fd00::9".to_owned(), "10.96.0.3".to_owned()],
    ];
    json!({
        "metadata": {"name": name(number), "namespace": "default"},
        "spec": {
            "type": if bit(3) { "LoadBalancer" } else { "ClusterIP" }, "clusterIP": ips[0], "clusterIPs": ips, "ports": ports,
            "externalIPs": external[usize::from(form >> 4 & 3)],
            "sessionAffinity": if bit(6) { "ClientIP" } else { "None" },
            "externalTrafficPolicy": if bit(7) { "Local" } else { "Cluster" },
            "internalTrafficPolicy": if bit(8) { "Local" } else { "Cluster" },
            "loadBalancerSourceRanges": if bit(9) { json!(["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"]) } else { json!([]) },
        },
        "status": {"loadBalancer": {"ingress": if bit(3) { json!([{"ip": "198.51.100.9"}, {"ip": format!("198.51.100.{number}")}]) } else { json!([]) }}},
    })
}

/// A slice with up to six endpoints in two bits each: absent, ready here, ready elsewhere, draining here.
pub(super) fn slice(number: u8, of: u8, form: u16) -> Value {
    let v6 = form >> 12 & 1 == 1;
    let endpoints = (0..6u8).filter_map(|n| {
        let address = if v6 { format!("fd01::{}", n + 1) } else { format!("10.244.0.{}", n + 1) };
        let (ready, node) = match form >> (2 * n) & 3 {
            0 => return None,
            1 => (true, "here"),
            2 => (true, "there"),
            _ => (false, "here"),
        };
        Some(json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready, "serving": true, "terminating": !ready}}))
    });
    json!({
        "metadata": {"name": format!("slice{number}"), "namespace": "default", "labels": {"kubernetes.io/service-name": name(of)}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
    })
}

pub(super) fn slim<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}
