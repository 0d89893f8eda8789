//! The addresses of a Service CIDR. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::ids::ObjectKey;

/// No more offsets than this are used of a range, as the API server's bitmap does (`/108` of IPv6).
const MAX_OFFSETS: u128 = 1 << 20;

/// A range that ClusterIPs come from, such as `10.96.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    base: IpAddr,
    prefix: u8,
}

/// The text is no Service CIDR.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a range such as 10.96.0.0/16 or fd00:10:96::/112 with at least 4 addresses, found {0:?}")]
pub struct ParseCidrError(String);

impl FromStr for ServiceCidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, ParseCidrError> {
        let wrong = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.trim().split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
        if prefix > bits - 2 || prefix == 0 {
            return Err(wrong());
        }
        let host_mask = (1u128 << (bits - prefix)) - 1;
        Ok(Self { base: from_number(to_number(address) & !host_mask, address.is_ipv4()), prefix })
    }
}

impl fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn from_number(number: u128, v4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if v4 => IpAddr::V4(Ipv4Addr::from(number)),
        _ => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl ServiceCidr {
    /// `IPv4` or `IPv6`.
    pub fn family(&self) -> &'static str {
        if self.base.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    fn bits(&self) -> u8 {
        if self.base.is_ipv4() { 32 } else { 128 }
    }

    /// Usable offsets: `1..=last`. The network address is never used, and in IPv4 not the broadcast address.
    fn last(&self) -> u128 {
        let size = 1u128 << (self.bits() - self.prefix);
        let usable = if self.base.is_ipv4() { size - 2 } else { size - 1 };
        usable.min(MAX_OFFSETS)
    }

    /// May this address be a ClusterIP?
    pub fn contains(&self, address: IpAddr) -> bool {
        if address.is_ipv4() != self.base.is_ipv4() {
            return false;
        }
        let offset = to_number(address).wrapping_sub(to_number(self.base));
        let size = 1u128 << (self.bits() - self.prefix);
        offset >= 1 && offset < if self.base.is_ipv4() { size - 1 } else { size }
    }

    /// A free address for a Service. The search begins at a hash of its name, so that the same manifests get the same
    /// addresses even when the state was lost. The lower band is kept for addresses that manifests ask for, and used
    /// only when the rest is full (KEP-3070).
    pub fn pick(&self, key: &ObjectKey, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let last = self.last();
        // A fixed-key hasher: the same on each run of the same build; the state file covers everything else.
        let mut hasher = DefaultHasher::new();
        (&key.namespace, &key.name).hash(&mut hasher);
        let hash = u128::from(hasher.finish());
        let reserved = (last / 16).clamp(16, 256).min(last / 2);
        let upper = last - reserved;
        let in_upper = (0..upper).map(|i| reserved + 1 + (hash + i) % upper);
        let in_lower = (0..reserved).map(|i| 1 + (hash + i) % reserved);
        in_upper.chain(in_lower).map(|offset| self.at(offset)).find(|address| !used.contains(address))
    }

    fn at(&self, offset: u128) -> IpAddr {
        from_number(to_number(self.base) + offset, self.base.is_ipv4())
    }
}
