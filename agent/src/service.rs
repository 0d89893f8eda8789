//! Services: from Services and EndpointSlices to elements of shared nftables maps.
//!
//! ```text
//!  watches ─► Index (sync) ─► dirty Services ─► programmer thread: endpoints::select ─► desired fronts
//!                                                  ─► table::change (pure diff of one front) ─► one netlink batch
//!                                                  ─► commit ─► stale UDP conntrack entries deleted
//!  somebody else's commit ─► audit: dump, diff, commit the difference
//! ```
//!
//! One table for each family, two shared maps, and one chain per endpoint *count*: a packet to `address . protocol . port`
//! finds in `services` the chain for its number of endpoints, and that chain looks `address . protocol . port . random
//! slot` up in `endpoints`. So one changed endpoint is one changed element, whatever the size of the cluster. NodePorts,
//! external and load-balancer addresses are fronts like ClusterIPs. A front without endpoints is in `no-endpoints` and is
//! rejected; other ports of a ClusterIP are rejected too. Hooks are those of kube-proxy's nftables mode: DNAT before
//! routing (prerouting and output at -100), rejection in the filter hooks after it, masquerade in postrouting.
//!
//! At start the table that is in the kernel is read and only the difference is committed: nothing is flushed, no
//! connection breaks. Nothing is removed before Services and EndpointSlices have been listed once.

use std::net::IpAddr;

pub mod conntrack;
pub mod index;
pub mod programmer;
pub mod slim;
pub mod table;

pub use programmer::{ServiceHandle, spawn};

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

/// What a connection is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Pod address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                IpAddr::from((v4.to_bits() & mask).to_be_bytes())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                IpAddr::from((v6.to_bits() & mask).to_be_bytes())
            }
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, prefix })
    }

    /// Whether an address is in the network.
    pub fn contains(&self, address: IpAddr) -> bool {
        let whole = Self::parse(&format!("{address}/{}", self.prefix));
        whole.is_some_and(|network| network.address == self.address)
    }
}

/// Settings of the service half.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Name of this node: endpoints of this name are local.
    pub node_name: String,
    /// Addresses that serve NodePorts.
    pub node_addresses: Vec<IpAddr>,
    /// Pod networks of the cluster: traffic from elsewhere to a Service is masqueraded.
    pub cluster_cidrs: Vec<Cidr>,
    /// Masquerade everything that goes to a Service.
    pub masquerade_all: bool,
}
