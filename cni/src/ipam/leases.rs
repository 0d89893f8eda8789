use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::protocol::AttachmentId;

/// One owner and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who has it; `None` after a recovery, which knows the interface only.
    pub owner: Option<AttachmentId>,
    /// The node's end of the veth pair: [`host_ifname`] of the owner.
    pub interface: String,
    /// One per range set.
    pub addresses: Vec<IpAddr>,
    /// Seconds since the epoch when it was made.
    pub since: u64,
}

/// All leases of one network, and how far each range has been walked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    leases: Vec<Lease>,
    /// Range (its subnet as text) to the address given out last.
    pub(super) last: BTreeMap<String, IpAddr>,
}

impl Lease {
    /// Whether `owner` has this lease; a recovered one is recognised by the name of its interface.
    pub fn belongs_to(&self, owner: &AttachmentId) -> bool {
        match &self.owner {
            Some(known) => known == owner,
            None => self.interface == host_ifname(owner),
        }
    }
}

impl Leases {
    /// Leases as far as the kernel's routes tell them.
    pub(super) fn recovered(routes: Vec<(IpAddr, String)>, now: u64) -> Self {
        let mut by_interface: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (address, interface) in routes {
            by_interface.entry(interface).or_default().push(address);
        }
        let lease = |(interface, addresses)| Lease { owner: None, interface, addresses, since: now };
        Self { leases: by_interface.into_iter().map(lease).collect(), last: BTreeMap::new() }
    }

    /// The lease of `owner`.
    pub fn find(&self, owner: &AttachmentId) -> Option<&Lease> {
        self.leases.iter().find(|lease| lease.belongs_to(owner))
    }

    /// Every lease, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.iter()
    }

    /// Every address that is not free.
    pub fn taken(&self) -> BTreeSet<IpAddr> {
        self.leases.iter().flat_map(|lease| &lease.addresses).copied().collect()
    }

    pub(super) fn insert(&mut self, owner: &AttachmentId, addresses: Vec<IpAddr>, now: u64) {
        let interface = host_ifname(owner);
        self.leases.push(Lease { owner: Some(owner.clone()), interface, addresses, since: now });
    }

    pub(super) fn remove(&mut self, owner: &AttachmentId) -> Option<Lease> {
        let index = self.leases.iter().position(|lease| lease.belongs_to(owner))?;
        Some(self.leases.remove(index))
    }

    /// Removes exactly this lease.
    pub(crate) fn forget(&mut self, lease: &Lease) {
        self.leases.retain(|other| other != lease);
    }

    /// Takes the leases out that GC may release: owner not in `valid`, and older than `grace` seconds. A clock that was
    /// set back makes a lease look new, which spares it until the clock has caught up.
    pub fn take_stale(&mut self, valid: &[AttachmentId], now: u64, grace: u64) -> Vec<Lease> {
        let stale = |lease: &mut Lease| {
            now.saturating_sub(lease.since) >= grace && !valid.iter().any(|owner| lease.belongs_to(owner))
        };
        self.leases.extract_if(.., stale).collect()
    }
}

/// The name of the node's end of an attachment's veth pair: `veth` and 44 bits of the owner's hash, 15 bytes, the most
/// that the kernel takes. It follows from the owner alone, so DEL finds the interface when every record is lost. Two of
/// 250 pods collide with probability 2e-9, and then ADD fails with EEXIST and touches nothing.
pub fn host_ifname(owner: &AttachmentId) -> String {
    format!("veth{:011x}", fnv1a(owner) & 0xfff_ffff_ffff)
}

/// FNV-1a, 64 bits: the owners are random identifiers of the runtime, not chosen by an adversary.
pub(crate) fn fnv1a(owner: &AttachmentId) -> u64 {
    let bytes = owner.container_id.bytes().chain([0]).chain(owner.ifname.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
