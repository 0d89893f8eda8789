//! Services: from Services and EndpointSlices to elements of shared nftables maps.
//!
//! ```text
//!  watches ─► Index (convert) ─► dirty Services ─► programmer thread: select ─► a Program for each front
//!                                                    ─► table: elements of old and new, the difference ─► one netlink batch
//!                                                    ─► commit ─► stale flows deleted, clients of gone endpoints forgotten
//!  somebody else's commit ─► kernel: read, compare sums, repair
//! ```
//!
//! One table for each family, shared maps, and one chain per endpoint *count*: a packet to `address . protocol . port`
//! finds in `services` the chain for its number of endpoints, and that chain looks `address . protocol . port . random
//! slot` up in `endpoints`. So one changed endpoint is one changed element, whatever the size of the cluster. NodePorts,
//! external and load-balancer addresses are fronts like ClusterIPs; under `externalTrafficPolicy: Local` a front has a
//! second view for what comes from outside ([`program`]). A front without endpoints is in `no-endpoints` and is refused;
//! other ports of a ClusterIP are refused too. All sets, chains and rules are in [`structure`]. Hooks are those of
//! kube-proxy's nftables mode: DNAT before routing (prerouting and output at -100), refusal in the filter hooks after it,
//! masquerade in postrouting.
//!
//! At start the table that is in the kernel is read and only the difference is committed: nothing is flushed, no
//! connection breaks. Nothing is removed before Services and EndpointSlices have been listed once.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::config::proxy::Conntrack;

pub mod affinity;
pub mod conntrack;
pub mod convert;
pub mod element;
pub mod explain;
pub mod handle;
pub mod host_ports;
pub mod index;
pub mod isolate;
pub mod kernel;
pub mod leaving;
pub mod metrics;
pub mod node_ports;
pub mod notes;
pub mod notice;
pub mod packed;
pub mod program;
pub mod programmer;
pub mod refusal;
pub mod select;
pub mod slim;
pub mod structure;
pub mod sysctls;
pub mod table;
pub mod takeover;
pub mod walk;

pub use handle::ServiceHandle;
pub use programmer::spawn;

/// A transport protocol with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// From the IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// From the API's word; the API's default is TCP.
    pub fn from_api(word: Option<&str>) -> Option<Self> {
        match word {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// What clients connect to: an address, protocol and port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// ClusterIP, node, external or load-balancer address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// What a connection is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Pod address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// Address of the network, host bits zero.
    pub address: IpAddr,
    /// Length of the prefix.
    pub prefix: u8,
}

impl Cidr {
    /// Reads `ADDRESS/PREFIX`; host bits are cleared.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (parse_address(address)?, prefix.parse().ok()?);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then(|| Self { address: first(address, prefix), prefix })
    }

    /// Whether an address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && first(address, self.prefix) == self.address
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Reads an address as the API does: numbers of IPv4 may have leading zeros, which mean nothing, and an IPv4 address in
/// IPv6 form is an IPv4 address.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let with_zeros = || {
        let mut octets = text.split('.').map(|n| {
            let is_number = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
            if is_number { n.parse().ok() } else { None }
        });
        let address = [octets.next()??, octets.next()??, octets.next()??, octets.next()??];
        octets.next().is_none().then(|| IpAddr::from(address))
    };
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical()).or_else(with_zeros)
}

/// First address of the network that an address is in.
fn first(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(prefix.into())).unwrap_or(0);
            IpAddr::from((v4.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(prefix.into())).unwrap_or(0);
            IpAddr::from((v6.to_bits() & mask).to_be_bytes())
        }
    }
}

/// How traffic of this cluster's pods is told from other traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// By its source; without any network all traffic is taken for other traffic only where that does no harm.
    Networks(Vec<Cidr>),
    /// By the interface that it comes from.
    Interface(String),
    /// By the beginning of that interface's name.
    InterfacePrefix(String),
}

impl Default for Local {
    fn default() -> Self {
        Self::Networks(Vec::new())
    }
}

/// Masquerade of what pods send out of the cluster, where the network is the project's own plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// Networks of this node's pods.
    pub pods: Vec<Cidr>,
    /// Networks of all pods: what goes there keeps its source.
    pub inside: Vec<Cidr>,
}

/// Settings of the service half.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of this node: endpoints of this name are local.
    pub node_name: String,
    /// Addresses that serve NodePorts.
    pub node_addresses: Vec<IpAddr>,
    /// What is not of this cluster's pods is masqueraded on its way to a Service.
    pub local: Local,
    /// Masquerade everything that goes to a Service.
    pub masquerade_all: bool,
    /// What leaves the cluster is masqueraded; `None` leaves that to the network plugin.
    pub egress: Option<Egress>,
    /// Ranges of ClusterIPs: what goes to one that no Service has is dropped.
    pub service_cidrs: Vec<Cidr>,
    /// Whether hostPorts will be told, so that those of a former agent stay until then.
    pub awaits_host_ports: bool,
    /// Settings of connection tracking; `None` leaves them alone.
    pub conntrack: Option<Conntrack>,
    /// The only external addresses that are served; `None` serves all.
    pub external_ip_ranges: Option<Vec<Cidr>>,
}

#[cfg(test)]
mod tests;
