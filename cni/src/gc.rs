//! GC: releases every lease whose attachment is not in the list, with its interface.
//!
//! A lease exists from before its interface until after it, so walking the leases finds everything. Leases younger than
//! `gcGraceSeconds` stay: the caller made its list before it called, and an ADD may have run in between.

use crate::ipam::{self, Store};
use crate::netlink::Netlink;
use crate::plugin::{open_store, routes_of_pods};
use crate::protocol::{AttachmentId, CniError, Code, NetConf};

/// Removes what belongs to none of `valid`; goes on after an error and reports all of them at the end.
pub(crate) fn gc(conf: &NetConf, valid: &[AttachmentId], now: u64) -> Result<(), CniError> {
    let mut netlink = Netlink::open()?;
    let mut store = open_store(conf)?;
    let mut leases = ipam::load_or_recover(&mut store, now, routes_of_pods)?;
    let mut problems = Vec::new();
    let mut released = leases.clone();
    let stale = released.take_stale(valid, now, conf.gc_grace_seconds);
    if stale.is_empty() {
        return Ok(());
    }
    for lease in stale {
        match netlink.delete_link(&lease.interface) {
            Ok(_) => leases.forget(&lease),
            Err(e) => problems.push(e.to_string()),
        }
    }
    store.save(&leases)?;
    match problems.is_empty() {
        true => Ok(()),
        false => Err(CniError::new(Code::Kernel, problems.join("; "))),
    }
}
