//! Lists that take as little room as their family allows. Pure.
//!
//! An [`IpAddr`] is 17 bytes, of which IPv4 needs 4; a node of a large cluster keeps 100,000 endpoints and as many
//! backends. A list of IPv4 alone, as nearly all are, is kept without the rest: 10 bytes an endpoint instead of 24, and 6 a
//! backend instead of 20.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};

use super::Backend;
use super::select::{Endpoint, Hints, Standing};

/// What has a short form, where its address is IPv4.
pub trait Pack: Copy + PartialEq {
    /// The short form.
    type Short: Copy + Debug + PartialEq + Eq;
    /// Into the short form; `None` for what has none.
    fn short(&self) -> Option<Self::Short>;
    /// What a short form stands for.
    fn whole(short: Self::Short) -> Self;
}

/// A list that does not change. Equal lists are kept in the same form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed<T: Pack> {
    /// All have a short form.
    Short(Box<[T::Short]>),
    /// At least one has none.
    Whole(Box<[T]>),
}

impl<T: Pack> Packed<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Short(all) => all.len(),
            Self::Whole(all) => all.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + Clone + '_ {
        let (short, whole): (&[T::Short], &[T]) = match self {
            Self::Short(all) => (all, &[]),
            Self::Whole(all) => (&[], all),
        };
        short.iter().map(|short| T::whole(*short)).chain(whole.iter().copied())
    }
}

impl<T: Pack> Default for Packed<T> {
    fn default() -> Self {
        Self::Short(Box::default())
    }
}

impl<T: Pack> From<Vec<T>> for Packed<T> {
    fn from(all: Vec<T>) -> Self {
        match all.iter().map(Pack::short).collect() {
            Some(short) => Self::Short(short),
            None => Self::Whole(all.into()),
        }
    }
}

impl<T: Pack> FromIterator<T> for Packed<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        Vec::from_iter(all).into()
    }
}

/// A [`Backend`] of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortBackend {
    address: [u8; 4],
    port: u16,
}

impl Pack for Backend {
    type Short = ShortBackend;

    fn short(&self) -> Option<ShortBackend> {
        Some(ShortBackend { address: v4(self.address)?, port: self.port })
    }

    fn whole(ShortBackend { address, port }: ShortBackend) -> Self {
        Self { address: address.into(), port }
    }
}

/// An [`Endpoint`] of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortEndpoint {
    address: [u8; 4],
    zones: u16,
    node: Option<bool>,
    standing: Standing,
    local: bool,
}

impl Pack for Endpoint {
    type Short = ShortEndpoint;

    fn short(&self) -> Option<ShortEndpoint> {
        let Self { address, standing, local, hints: Hints { node, zones } } = *self;
        Some(ShortEndpoint { address: v4(address)?, zones, node, standing, local })
    }

    fn whole(ShortEndpoint { address, zones, node, standing, local }: ShortEndpoint) -> Self {
        Self { address: address.into(), standing, local, hints: Hints { node, zones } }
    }
}

fn v4(address: IpAddr) -> Option<[u8; 4]> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::octets(&address)),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let standing = prop_oneof![Just(Standing::Ready), Just(Standing::Draining), Just(Standing::Out)];
        let hints = (any::<Option<bool>>(), any::<u16>()).prop_map(|(node, zones)| Hints { node, zones });
        let address = prop_oneof![9 => any::<Ipv4Addr>().prop_map(IpAddr::V4), 1 => any::<IpAddr>()];
        (address, standing, any::<bool>(), hints).prop_map(|(address, standing, local, hints)| Endpoint {
            address,
            standing,
            local,
            hints,
        })
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out_as_it_was(all in prop::collection::vec(endpoint(), 0..12)) {
            let packed: Packed<Endpoint> = all.clone().into();
            prop_assert_eq!(packed.len(), all.len());
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), all.clone());
            let backend = |e: &Endpoint| Backend { address: e.address, port: e.hints.zones };
            let backends: Vec<Backend> = all.iter().map(backend).collect();
            let packed: Packed<Backend> = backends.iter().copied().collect();
            prop_assert_eq!(packed.iter().collect::<Vec<_>>(), backends);
        }
    }

    #[test]
    fn ipv4_is_short() {
        assert_eq!([size_of::<ShortEndpoint>(), size_of::<ShortBackend>()], [10, 6]);
    }
}
