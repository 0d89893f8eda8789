//! Which addresses of the node serve NodePorts (`nodePortAddresses`). Pure.
//!
//! As in kube-proxy's nftables mode: unset means `primary`, which is the first address of the Node in each family; a family
//! of which nothing is named is served on all of its addresses; loopback serves none, because that takes `route_localnet`
//! (CVE-2020-8558) or a proxy in user space (KEP-6032, alpha). Health checks listen on loopback where it is named.
//!
//! What differs: link-local addresses are served only where a CIDR names them. Every pod's interface brings one, and a
//! change of the node's addresses touches every NodePort.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Cidr;

/// One item of `nodePortAddresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `primary`: the addresses that the Node shows first.
    Primary,
    /// `localhost`.
    Localhost,
    /// `all`.
    All,
    /// A CIDR.
    Network(Cidr),
}

impl Place {
    /// From the text of the configuration.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "primary" => Some(Self::Primary),
            "localhost" => Some(Self::Localhost),
            "all" => Some(Self::All),
            cidr => Cidr::parse(cidr).map(Self::Network),
        }
    }
}

/// What `nodePortAddresses` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePorts {
    places: Box<[Place]>,
}

/// What it comes to on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Addresses that serve NodePorts, in order.
    pub addresses: Vec<IpAddr>,
    /// Addresses that health checks listen on: `0.0.0.0` or `::` where a family has no limits.
    pub listen: Vec<IpAddr>,
}

impl NodePorts {
    /// From the items of the configuration; none means [`Place::Primary`].
    pub fn new(places: &[Place]) -> Self {
        Self { places: if places.is_empty() { [Place::Primary].into() } else { places.into() } }
    }

    /// The addresses that serve, of a node with these addresses, its primary ones first, on a machine with those.
    pub fn serving(&self, node: &[IpAddr], machine: &[IpAddr]) -> Serving {
        let mut serving = Serving::default();
        for v6 in [false, true] {
            self.add_family(&mut serving, v6, node, machine);
        }
        serving
    }

    fn add_family(&self, serving: &mut Serving, v6: bool, node: &[IpAddr], machine: &[IpAddr]) {
        let of_family = |ip: &&IpAddr| ip.is_ipv6() == v6;
        let primary = node.iter().filter(of_family).copied().find(|ip| !ip.is_loopback());
        let ranges: Vec<Cidr> = self.places.iter().filter_map(|place| range(*place, v6, primary)).collect();
        let machine = machine.iter().filter(of_family).copied();
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix == 0) {
            let all: BTreeSet<IpAddr> = machine.chain(primary).filter(|ip| !is_link_local(*ip)).collect();
            serving.addresses.extend(all.iter().filter(|ip| !ip.is_loopback()));
            serving.listen.push(if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() });
            return;
        }
        // The primary address is served also while the machine has it not yet, or not any more for a moment.
        let named: BTreeSet<IpAddr> =
            machine.chain(primary).filter(|ip| ranges.iter().any(|range| range.contains(*ip))).collect();
        serving.addresses.extend(named.iter().filter(|ip| !ip.is_loopback()));
        serving.listen.extend(&named);
    }
}

/// The range of a family that an item stands for.
fn range(place: Place, v6: bool, primary: Option<IpAddr>) -> Option<Cidr> {
    let (any, loopback): (IpAddr, Cidr) = match v6 {
        false => (Ipv4Addr::UNSPECIFIED.into(), Cidr { address: [127, 0, 0, 0].into(), prefix: 8 }),
        true => (Ipv6Addr::UNSPECIFIED.into(), Cidr { address: Ipv6Addr::LOCALHOST.into(), prefix: 128 }),
    };
    match place {
        Place::Primary => primary.map(|address| Cidr { address, prefix: if v6 { 128 } else { 32 } }),
        Place::Localhost => Some(loopback),
        Place::All => Some(Cidr { address: any, prefix: 0 }),
        Place::Network(cidr) => Some(cidr).filter(|cidr| cidr.address.is_ipv6() == v6),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &str) -> Vec<IpAddr> {
        texts.split_whitespace().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn keywords_and_cidrs_choose_addresses_as_kube_proxy_does_in_nftables_mode() {
        let machine = ips("127.0.0.1 10.0.0.5 10.1.0.5 169.254.20.10 ::1 fd00::5 fe80::5");
        for (what, places, node, addresses, listen) in [
            ("unset is primary", "", "10.0.0.5 fd00::5", "10.0.0.5 fd00::5", "10.0.0.5 fd00::5"),
            (
                "the first of each family",
                "primary",
                "10.1.0.5 10.0.0.5 fd00::5",
                "10.1.0.5 fd00::5",
                "10.1.0.5 fd00::5",
            ),
            ("all of a family that is not named", "primary", "10.0.0.5", "10.0.0.5 fd00::5", "10.0.0.5 ::"),
            ("all", "all", "10.0.0.5", "10.0.0.5 10.1.0.5 fd00::5", "0.0.0.0 ::"),
            ("localhost serves health checks only", "localhost", "10.0.0.5", "", "127.0.0.1 ::1"),
            ("a network", "10.1.0.0/16", "10.0.0.5", "10.1.0.5 fd00::5", "10.1.0.5 ::"),
            (
                "a network of everything",
                "0.0.0.0/0 fd00::/8",
                "10.0.0.5",
                "10.0.0.5 10.1.0.5 fd00::5",
                "0.0.0.0 fd00::5",
            ),
            (
                "together",
                "primary localhost 10.1.0.0/24",
                "10.0.0.5",
                "10.0.0.5 10.1.0.5",
                "10.0.0.5 10.1.0.5 127.0.0.1 ::1",
            ),
            ("link-local by name", "169.254.0.0/16 ::1/128", "10.0.0.5", "169.254.20.10", "169.254.20.10 ::1"),
            ("a network that nobody is in", "192.0.2.0/24 2001:db8::/64", "10.0.0.5", "", ""),
            ("a node on loopback only", "primary", "127.0.0.1", "10.0.0.5 10.1.0.5 fd00::5", "0.0.0.0 ::"),
            (
                "a primary address that is not there yet",
                "primary",
                "10.9.9.9 fd00::5",
                "10.9.9.9 fd00::5",
                "10.9.9.9 fd00::5",
            ),
        ] {
            let places: Vec<Place> = places.split_whitespace().map(|text| Place::parse(text).unwrap()).collect();
            let found = NodePorts::new(&places).serving(&ips(node), &machine);
            assert_eq!(found, Serving { addresses: ips(addresses), listen: ips(listen) }, "{what}");
        }
    }

    #[test]
    fn addresses_of_the_machine_come_and_go_in_any_order_without_a_change() {
        let all = NodePorts::new(&[Place::All]);
        let (one, other) = (ips("10.0.0.5 10.1.0.5 fe80::1"), ips("fe80::2 10.1.0.5 127.0.0.1 10.0.0.5"));
        assert_eq!(all.serving(&[], &one), all.serving(&[], &other));
    }
}
