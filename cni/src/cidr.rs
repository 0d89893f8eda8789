//! An address with a prefix length, as CNI configurations and results write it (`10.244.1.7/24`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An IP address and the length of its prefix. The address may have host bits set: `network()` removes them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

/// A text that is not an address with a prefix length.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not ADDRESS/PREFIX, for example 10.244.1.0/24 or fd00:10:244:1::/64")]
pub struct CidrError(String);

impl Cidr {
    /// An address with a prefix; `None` if the prefix is longer than the family allows.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(addr)).then_some(Self { addr, prefix })
    }

    /// The address as one host: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, prefix: width(addr) }
    }

    /// `0.0.0.0/0` or `::/0`, in the family of `addr`.
    pub fn default_route(addr: IpAddr) -> Self {
        let addr = match addr {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { addr, prefix: 0 }
    }

    /// The address as written.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The prefix length in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The same network without host bits.
    pub fn network(&self) -> Self {
        Self { addr: from_bits(self.addr, self.first_bits()), prefix: self.prefix }
    }

    /// Whether `addr` is of the same family and inside this network.
    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.addr.is_ipv4() && (self.first_bits()..=self.last_bits()).contains(&to_bits(addr))
    }

    /// The lowest address of the network as a number; IPv4 uses the low 32 bits.
    pub(crate) fn first_bits(&self) -> u128 {
        to_bits(self.addr) & !self.host_mask()
    }

    /// The highest address of the network as a number.
    pub(crate) fn last_bits(&self) -> u128 {
        to_bits(self.addr) | self.host_mask()
    }

    fn host_mask(&self) -> u128 {
        match width(self.addr) - self.prefix {
            128 => u128::MAX,
            host => (1 << host) - 1,
        }
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

pub(crate) fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address with these bits, in the family of `like`.
pub(crate) fn from_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let parse = || {
            let (addr, prefix) = text.split_once('/')?;
            Self::new(addr.parse().ok()?, prefix.parse().ok()?)
        };
        parse().ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_first_and_last_address_only() {
        let net: Cidr = "10.244.1.7/24".parse().unwrap();
        assert_eq!(net.network().to_string(), "10.244.1.0/24");
        for (addr, inside) in [("10.244.1.0", true), ("10.244.1.255", true), ("10.244.2.0", false), ("::1", false)] {
            assert_eq!(net.contains(addr.parse().unwrap()), inside, "{addr}");
        }
        let all: Cidr = "::/0".parse().unwrap();
        assert!(all.contains("ffff::1".parse().unwrap()));
    }

    #[test]
    fn a_prefix_longer_than_the_family_is_refused() {
        for text in ["10.0.0.0/33", "fd00::/129", "10.0.0.0", "10.0.0/8", "/8", "10.0.0.0/-1"] {
            assert_eq!(text.parse::<Cidr>(), Err(CidrError(text.to_owned())));
        }
    }
}
