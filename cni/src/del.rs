//! DEL: interface first, then lease, so that nobody gets an address that still has a route.
//!
//! Everything may be missing already, and CNI_NETNS is not needed: the name of the node's end follows from the container
//! and the interface, and removing one end of a pair removes the other in whichever namespace it is.

use crate::ipam;
use crate::netlink::Netlink;
use crate::plugin::{open_store, routes_of_pods};
use crate::protocol::{AttachmentId, CniError, NetConf};

/// Detaches a container.
pub(crate) fn del(conf: &NetConf, id: &AttachmentId, now: u64) -> Result<(), CniError> {
    Netlink::open()?.delete_link(&ipam::host_ifname(id))?;
    ipam::release(&mut open_store(conf)?, id, now, routes_of_pods)?;
    Ok(())
}
