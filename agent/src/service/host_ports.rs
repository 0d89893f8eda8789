//! hostPorts of pods, where the network is the project's own plugin: fronts like those of Services, in the same maps.
//!
//! So they have one writer and are repaired like everything else, which `portmap`'s rules are not. Where pods use somebody
//! else's network, its `portmap` does this, and nothing comes in here.
//!
//! A hostPort without an address is served on all addresses of the node but loopback, which would take `route_localnet`
//! (CVE-2020-8558). Pure.

use std::net::IpAddr;

use super::index::{Claim, Desired, Rank};
use super::program::{Program, Way};
use super::{Backend, Front, Protocol};
use crate::ids::ObjectKey;

/// A hostPort of a pod, for one of the pod's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `hostIP`; `None`, `0.0.0.0` and `::` stand for all addresses of the node.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the node.
    pub port: u16,
    /// The pod.
    pub pod: Backend,
}

impl HostPort {
    fn fronts<'a>(&'a self, node: &'a [IpAddr]) -> impl Iterator<Item = Front> + 'a {
        let v6 = self.pod.address.is_ipv6();
        let is_served = move |ip: &IpAddr| ip.is_ipv6() == v6 && !ip.is_loopback();
        let all = match self.address {
            Some(ip) if !ip.is_unspecified() => &[],
            Some(ip) if ip.is_ipv6() != v6 => &[],
            Some(_) | None => node,
        };
        let named = self.address.filter(|ip| !ip.is_unspecified());
        let addresses = all.iter().copied().chain(named).filter(is_served);
        addresses.map(|address| Front { address, protocol: self.protocol, port: self.port })
    }
}

/// The key of a pod among those of Services, none of which has a space.
pub fn key(namespace: &str, name: &str, uid: &str) -> ObjectKey {
    ObjectKey::new(namespace, format!("pod {name} {uid}"))
}

/// The name of the pod that a [`key`] stands for; `None` for that of a Service.
pub fn pod_name(key: &ObjectKey) -> Option<&str> {
    key.name.strip_prefix("pod ")?.split_once(' ').map(|(name, _)| name)
}

/// What the hostPorts of a pod come to on a node with these addresses.
pub fn desired(ports: &[HostPort], node: &[IpAddr]) -> Desired {
    let claim = |port: &HostPort| Claim {
        program: Program { all: Way::To([port.pod].into_iter().collect()), ..Program::default() },
        rank: Rank::HostPort,
    };
    ports.iter().flat_map(|port| port.fronts(node).map(move |front| (front, claim(port)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_the_name_of_its_pod_and_a_services_key_none() {
        assert_eq!(pod_name(&key("shop", "web-1", "u-1")), Some("web-1"));
        assert_eq!(pod_name(&ObjectKey::new("shop", "pod-web")), None);
    }

    #[test]
    fn a_host_port_is_served_at_its_address_or_at_all_but_loopback() {
        let node: Vec<IpAddr> = ["10.0.0.5", "10.1.0.5", "127.0.0.1", "fd00::5"].map(|ip| ip.parse().unwrap()).to_vec();
        for (address, pod, expected) in [
            (None, "10.244.0.2", vec!["10.0.0.5", "10.1.0.5"]),
            (None, "fd01::2", vec!["fd00::5"]),
            (Some("0.0.0.0"), "10.244.0.2", vec!["10.0.0.5", "10.1.0.5"]),
            (Some("0.0.0.0"), "fd01::2", vec![]),
            (Some("::"), "fd01::2", vec!["fd00::5"]),
            (Some("10.1.0.5"), "10.244.0.2", vec!["10.1.0.5"]),
            (Some("10.1.0.5"), "fd01::2", vec![]),
            (Some("127.0.0.1"), "10.244.0.2", vec![]),
        ] {
            let pod = Backend { address: pod.parse().unwrap(), port: 80 };
            let address = address.map(|text| text.parse().unwrap());
            let port = HostPort { address, protocol: Protocol::Tcp, port: 8080, pod };
            let found: Vec<String> = desired(&[port], &node).keys().map(|front| front.address.to_string()).collect();
            assert_eq!(found, expected, "{address:?} {pod:?}");
        }
    }
}
