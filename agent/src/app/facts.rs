//! A few facts about the machine that the wiring itself needs before the node domain is up.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};

use crate::config::Kubelet;
use crate::node::facts::MachineFacts;
use crate::quantity::{Format, Quantity};

/// What pods may use of the node: capacity less what is reserved, and (for `hard`) less the memory that an eviction
/// threshold keeps free.
pub fn allocatable(machine: &MachineFacts, kubelet: &Kubelet, hard: bool) -> BTreeMap<String, Quantity> {
    let memory = i64::try_from(machine.memory).unwrap_or(i64::MAX);
    let mut amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_units(i64::from(machine.cpus), Format::DecimalSi)),
        ("memory".to_owned(), Quantity::from_units(memory, Format::BinarySi)),
    ]);
    for (name, reserved) in &kubelet.reserved {
        if let Some(amount) = amounts.get_mut(name) {
            *amount = amount.minus(*reserved);
        }
    }
    let threshold = kubelet.eviction_hard.iter().find(|(signal, _)| signal == "memory.available");
    if let Some((_, text)) = threshold.filter(|_| hard)
        && let Some(amount) = amounts.get_mut("memory")
    {
        let keep = match text.strip_suffix('%').and_then(|p| p.parse::<f64>().ok()) {
            Some(percent) => Quantity::from_units((memory as f64 * percent / 100.0) as i64, Format::BinarySi),
            None => Quantity::parse(text).unwrap_or_else(|_| Quantity::from_units(0, Format::BinarySi)),
        };
        *amount = amount.minus(keep);
    }
    amounts
}

/// The node's addresses: those of the configuration, else the source address of the default routes (connecting a UDP
/// socket sends nothing), else loopback, so that a node without a network still runs its pods.
pub fn node_addresses(configured: &[IpAddr]) -> Vec<IpAddr> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    // Documentation addresses (RFC 5737, RFC 3849): routed like anything unknown.
    let routes = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    let source = |(local, remote): (&str, &str)| {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
    };
    let found: Vec<IpAddr> = routes.into_iter().filter_map(source).collect();
    if found.is_empty() { vec![IpAddr::from([127, 0, 0, 1])] } else { found }
}
