//! Address management: which pod has which address.
//!
//! [`Pool`] decides (pure, over a [`Leases`] value), a [`Store`] keeps: [`disk`] for real, [`fake`] with faults for tests.
//! [`reserve`] and [`release`] join the two: lock, read, decide, write, unlock.
//!
//! ```text
//!             reserve (recorded on disk before the kernel is touched)
//!   free ────────────────────────────────► leased to (container, interface)
//!    ▲   release (after the interface is gone; GC for owners that are no more)     │
//!    └──────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: an address has at most one owner; an owner that reserves again gets what it has (so a killed ADD can be
//! repeated); a lease exists from before its interface until after it, so that GC finds every leftover by its lease; a
//! freed address is given out again only after the rest of its range (peers and conntrack may still remember it).
//!
//! It does not talk to other nodes: each node has its own podCIDRs.

pub mod disk;
pub mod fake;
mod leases;
mod pool;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

pub(crate) use leases::fnv1a as host_mac_bits;
pub use leases::{Lease, Leases, host_ifname};
pub use pool::{Assigned, Pool, PoolError};

use crate::protocol::AttachmentId;

/// Where leases are kept. Holding the value is holding the network's lock: nobody else reads or writes.
pub trait Store {
    /// The leases as last written; empty when nothing was ever written.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when what is there cannot be trusted; the caller rebuilds and saves.
    fn load(&mut self) -> Result<Leases, StoreError>;

    /// Replaces the leases: after a crash at any moment `load` returns the old or the new ones, never a mixture.
    fn save(&mut self, leases: &Leases) -> Result<(), StoreError>;
}

/// Why leases could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not what was written.
    #[error("{path} is damaged ({reason}); it was set aside as {aside}")]
    Damaged {
        /// The lease file.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// Where it is now.
        aside: String,
    },
}

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The decision failed.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// Reading or writing failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a reservation returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// One address per range set, in the order of the configuration.
    pub addresses: Vec<Assigned>,
    /// Whether this call made the lease (then a failed ADD takes it back) or found it.
    pub origin: Origin,
}

/// Where a lease came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Made by this call.
    New,
    /// An earlier call of the same owner made it.
    Found,
}

/// Reserves one address of each set for `owner`, or exactly `requested`. `recover` lists the addresses that the kernel
/// routes to pods, as (address, host interface); it is asked only when the lease file was damaged.
///
/// # Errors
/// When a set is exhausted, a requested address is taken or foreign, or the store fails. Nothing is reserved then.
pub fn reserve(
    store: &mut impl Store,
    pool: &Pool,
    owner: &AttachmentId,
    requested: &[IpAddr],
    now: u64,
    recover: impl FnOnce() -> Vec<(IpAddr, String)>,
) -> Result<Reservation, IpamError> {
    let mut leases = load_or_recover(store, now, recover)?;
    if let Some(lease) = leases.find(owner) {
        let addresses = pool.describe(&lease.addresses)?;
        return Ok(Reservation { addresses, origin: Origin::Found });
    }
    let addresses = pool.choose(&leases, requested)?;
    leases.insert(owner, addresses.iter().map(|assigned| assigned.address).collect(), now);
    if requested.is_empty() {
        pool.advance(&mut leases, &addresses);
    }
    store.save(&leases)?;
    Ok(Reservation { addresses, origin: Origin::New })
}

/// Gives the addresses of `owner` back and returns them; an unknown owner is no error and writes nothing.
pub fn release(
    store: &mut impl Store,
    owner: &AttachmentId,
    now: u64,
    recover: impl FnOnce() -> Vec<(IpAddr, String)>,
) -> Result<Vec<IpAddr>, StoreError> {
    let mut leases = load_or_recover(store, now, recover)?;
    let Some(lease) = leases.remove(owner) else { return Ok(Vec::new()) };
    store.save(&leases)?;
    Ok(lease.addresses)
}

/// Reads the leases; damaged ones are rebuilt from the kernel's routes, with owners known by interface name only.
pub fn load_or_recover(
    store: &mut impl Store,
    now: u64,
    recover: impl FnOnce() -> Vec<(IpAddr, String)>,
) -> Result<Leases, StoreError> {
    match store.load() {
        Err(StoreError::Damaged { .. }) => {
            let leases = Leases::recovered(recover(), now);
            store.save(&leases)?;
            Ok(leases)
        }
        other => other,
    }
}
