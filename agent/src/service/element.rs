//! Elements as bytes: keys and values of our sets, written and read. Pure.

use std::net::IpAddr;

use super::program::{Element, Verdict, View};
use super::structure::{Numbered, SetName};
use super::{Backend, Cidr, Front, Protocol};
use crate::nft::Family;
use crate::nft::batch::Batch;
use crate::nft::decode::{ElementData, Raw};
use crate::nft::expr;

/// The family of an address.
pub fn family(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Appends the bytes of an address.
pub fn octets(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => out.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => out.extend_from_slice(&v6.octets()),
    }
}

/// Key of a front: address, protocol and port, each padded to four bytes.
fn front_key(front: &Front) -> Vec<u8> {
    let mut key = Vec::with_capacity(44);
    octets(front.address, &mut key);
    key.extend_from_slice(&[front.protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&front.port.to_be_bytes());
    key.extend_from_slice(&[0, 0]);
    key
}

fn push_backend(backend: &Backend, out: &mut Vec<u8>) {
    octets(backend.address, out);
    out.extend_from_slice(&backend.port.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
}

/// Last address of a network.
fn last(cidr: &Cidr) -> IpAddr {
    match cidr.address {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(u32::from(cidr.prefix)).unwrap_or(0);
            IpAddr::from((v4.to_bits() | host).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(u32::from(cidr.prefix)).unwrap_or(0);
            IpAddr::from((v6.to_bits() | host).to_be_bytes())
        }
    }
}

/// Network from its first and last address.
fn network(first: IpAddr, last: IpAddr) -> Option<Cidr> {
    let prefix = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    };
    let cidr = Cidr { address: first, prefix: u8::try_from(prefix).ok()? };
    (self::last(&cidr) == last).then_some(cidr)
}

impl Element {
    /// The set that it belongs to.
    pub fn set(&self) -> SetName {
        match self {
            Self::Service(View::All, ..) => SetName::Services,
            Self::Service(View::Local, ..) => SetName::LocalServices,
            Self::Endpoint(View::All, ..) => SetName::Endpoints,
            Self::Endpoint(View::Local, ..) => SetName::LocalEndpoints,
            Self::Affinity(..) => SetName::Affinities,
            Self::NoEndpoints(_) => SetName::NoEndpoints,
            Self::Masquerade(_) => SetName::Masquerade,
            Self::Firewalled(_) => SetName::Firewalled,
            Self::Allowed(..) => SetName::Allowed,
        }
    }

    /// Writes the key, which is all that a deletion needs.
    pub fn write_key(&self, batch: &mut Batch) {
        let mut key = front_key(self.front());
        match self {
            Self::Endpoint(_, _, slot, _) => key.extend_from_slice(&slot.to_ne_bytes()),
            Self::Allowed(_, source) => {
                let mut end = key.clone();
                octets(source.address, &mut key);
                octets(last(source), &mut end);
                expr::value(batch, 1, &key);
                return expr::value(batch, 10, &end);
            }
            Self::Service(..)
            | Self::Affinity(..)
            | Self::NoEndpoints(_)
            | Self::Masquerade(_)
            | Self::Firewalled(_) => {}
        }
        expr::value(batch, 1, &key);
    }

    /// Writes key and value.
    pub fn write(&self, batch: &mut Batch) {
        self.write_key(batch);
        match self {
            Self::Service(_, _, Verdict::Drop) => expr::verdict(batch, 2, expr::Verdict::Drop),
            Self::Service(view, _, Verdict::Pick(count, is_sticky)) => {
                let chain = Numbered::Pick(*view, *count, *is_sticky).name();
                expr::verdict(batch, 2, expr::Verdict::Goto(&chain));
            }
            Self::Affinity(_, seconds) => {
                expr::verdict(batch, 2, expr::Verdict::Jump(&Numbered::Remember(*seconds).name()));
            }
            Self::Endpoint(_, _, _, backend) => {
                let mut value = Vec::with_capacity(20);
                push_backend(backend, &mut value);
                expr::value(batch, 2, &value);
            }
            Self::NoEndpoints(_) | Self::Masquerade(_) | Self::Firewalled(_) | Self::Allowed(..) => {}
        }
    }

    /// The chain that must stand before it is written.
    pub fn chain(&self) -> Option<Numbered> {
        match self {
            Self::Service(view, _, Verdict::Pick(count, is_sticky)) => Some(Numbered::Pick(*view, *count, *is_sticky)),
            Self::Affinity(_, seconds) => Some(Numbered::Remember(*seconds)),
            Self::Service(_, _, Verdict::Drop)
            | Self::Endpoint(..)
            | Self::NoEndpoints(_)
            | Self::Masquerade(_)
            | Self::Firewalled(_)
            | Self::Allowed(..) => None,
        }
    }

    /// Reads an element of a set; `None` when it is nothing that we write.
    pub fn read(family: Family, set: SetName, raw: &Raw<'_>) -> Option<Self> {
        let (front, rest) = read_front(family, raw.key)?;
        let view = set.view();
        Some(match set {
            SetName::Services | SetName::LocalServices => Self::Service(view, front, read_verdict(view, raw.data)?),
            SetName::Endpoints | SetName::LocalEndpoints => {
                let ElementData::Value(value) = raw.data else { return None };
                let (backend, _) = read_backend(family, value)?;
                Self::Endpoint(view, front, u32::from_ne_bytes(rest.try_into().ok()?), backend)
            }
            SetName::Affinities => match raw.data {
                ElementData::Chain(name) => match Numbered::parse(name)? {
                    Numbered::Remember(seconds) => Self::Affinity(front, seconds),
                    Numbered::Pick(..) => return None,
                },
                ElementData::None | ElementData::Value(_) | ElementData::Drop => return None,
            },
            SetName::NoEndpoints => Self::NoEndpoints(front),
            SetName::Masquerade => Self::Masquerade(front),
            SetName::Firewalled => Self::Firewalled(front),
            SetName::Allowed => {
                let (first, _) = read_address(family, rest)?;
                let (same, rest) = read_front(family, raw.end.unwrap_or(raw.key))?;
                let (last, _) = read_address(family, rest)?;
                (same == front).then_some(Self::Allowed(front, network(first, last)?))?
            }
            SetName::ClusterIps | SetName::Hairpin | SetName::Affinity => return None,
        })
    }
}

/// Reads what a client is remembered for: front, client and endpoint.
pub fn read_affinity(family: Family, raw: &Raw<'_>) -> Option<(Front, IpAddr, Backend)> {
    let (front, rest) = read_front(family, raw.key)?;
    let (client, _) = read_address(family, rest)?;
    let ElementData::Value(value) = raw.data else { return None };
    Some((front, client, read_backend(family, value)?.0))
}

fn read_verdict(view: View, data: ElementData<'_>) -> Option<Verdict> {
    match data {
        ElementData::Drop => Some(Verdict::Drop),
        ElementData::Chain(name) => match Numbered::parse(name)? {
            Numbered::Pick(of, count, is_sticky) => (of == view).then_some(Verdict::Pick(count, is_sticky)),
            Numbered::Remember(_) => None,
        },
        ElementData::None | ElementData::Value(_) => None,
    }
}

/// Reads an address of a family, and what follows it.
pub fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(address, rest)| (IpAddr::from(*address), rest)),
        Family::V6 => bytes.split_first_chunk::<16>().map(|(address, rest)| (IpAddr::from(*address), rest)),
    }
}

fn read_backend(family: Family, bytes: &[u8]) -> Option<(Backend, &[u8])> {
    let (address, rest) = read_address(family, bytes)?;
    let port = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
    Some((Backend { address, port }, rest.get(4..)?))
}

fn read_front(family: Family, key: &[u8]) -> Option<(Front, &[u8])> {
    let (address, rest) = read_address(family, key)?;
    let protocol = Protocol::from_number(*rest.first()?)?;
    let port = u16::from_be_bytes([*rest.get(4)?, *rest.get(5)?]);
    Some((Front { address, protocol, port }, rest.get(8..)?))
}

/// A hash that is the same in every run.
pub fn digest(element: &impl std::hash::Hash) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    element.hash(&mut hasher);
    hasher.finish()
}
