//! CHECK: `prevResult` against the kernel and the leases. Finds every difference before it fails.

use std::net::IpAddr;

use crate::cidr::Cidr;
use crate::ipam;
use crate::netlink::{KernelRoute, Link, Netlink};
use crate::plugin::{open_sides, open_store, routes_of_pods};
use crate::protocol::{AddResult, Attachment, CniError, Code, Interface, NetConf, Route};

/// Compares an attachment with the result of its ADD.
///
/// # Errors
/// Code 103 with every difference found; code 7 without a `prevResult`, as the specification has the runtime send one.
pub(crate) fn check(conf: &NetConf, attachment: &Attachment) -> Result<(), CniError> {
    let Some(previous) = &conf.prev_result else {
        return Err(CniError::new(Code::InvalidConfig, "CHECK needs prevResult, the result of the ADD"));
    };
    let (_namespaces, mut host, mut pod) = open_sides(&attachment.netns)?;
    let mut found = Vec::new();
    let ours = previous.interfaces.iter().position(|i| !i.sandbox.is_empty() && i.name == attachment.id.ifname);
    let Some(ours) = ours else {
        let msg = format!("prevResult has no interface {} in a sandbox", attachment.id.ifname);
        return Err(CniError::new(Code::InvalidConfig, msg));
    };
    let addresses: Vec<Cidr> =
        previous.ips.iter().filter(|ip| ip.interface.is_none_or(|index| index == ours)).map(|ip| ip.address).collect();
    check_pod(&mut pod, previous, &previous.interfaces[ours], &addresses, &mut found)?;
    check_host(&mut host, attachment, &addresses, &mut found)?;
    check_lease(conf, attachment, &addresses, &mut found)?;
    if found.is_empty() { Ok(()) } else { Err(CniError::new(Code::CheckFailed, found.join("; "))) }
}

fn check_pod(
    pod: &mut Netlink,
    previous: &AddResult,
    expected: &Interface,
    addresses: &[Cidr],
    found: &mut Vec<String>,
) -> Result<(), CniError> {
    let Some(link) = pod.link(&expected.name)? else {
        found.push(format!("interface {} is missing in the container", expected.name));
        return Ok(());
    };
    check_link(&link, expected, found);
    let actual = pod.addresses(link.index)?;
    let missing = addresses.iter().filter(|address| !actual.contains(address));
    found.extend(missing.map(|address| format!("address {address} is missing on {}", expected.name)));
    let routes = pod.routes()?;
    let missing = previous.routes.iter().filter(|route| !is_present(route, previous, &routes));
    found.extend(missing.map(|route| format!("route to {} is missing in the container", route.dst)));
    Ok(())
}

fn check_link(link: &Link, expected: &Interface, found: &mut Vec<String>) {
    if !link.up {
        found.push(format!("interface {} is down", link.name));
    }
    let mac: Vec<_> = link.mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let mac = mac.join(":");
    if !expected.mac.is_empty() && !mac.eq_ignore_ascii_case(&expected.mac) {
        found.push(format!("interface {} has MAC {mac}, expected {}", link.name, expected.mac));
    }
    if let Some(mtu) = expected.mtu.filter(|mtu| *mtu != 0 && *mtu != link.mtu) {
        found.push(format!("interface {} has MTU {}, expected {mtu}", link.name, link.mtu));
    }
}

/// A route without `gw` goes through the gateway of an address of its family, or is on the link.
fn is_present(route: &Route, previous: &AddResult, actual: &[KernelRoute]) -> bool {
    let same_family = |gateway: &IpAddr| gateway.is_ipv4() == route.dst.addr().is_ipv4();
    let default = || previous.ips.iter().filter_map(|ip| ip.gateway).find(same_family);
    let gateway = route.gw.or_else(default);
    // Another table than main is another plugin's business; ours makes none.
    let in_main = route.rest.get("table").and_then(serde_json::Value::as_u64).is_none_or(|table| table == 254);
    !in_main
        || actual.iter().any(|candidate| {
            candidate.dst == route.dst.network()
                && (candidate.gateway == gateway || (route.gw.is_none() && candidate.gateway.is_none()))
        })
}

fn check_host(
    host: &mut Netlink,
    attachment: &Attachment,
    addresses: &[Cidr],
    found: &mut Vec<String>,
) -> Result<(), CniError> {
    let name = ipam::host_ifname(&attachment.id);
    match host.link(&name)? {
        None => found.push(format!("interface {name} is missing on the node")),
        Some(link) if !link.up => found.push(format!("interface {name} on the node is down")),
        Some(_) => {}
    }
    for address in addresses {
        let leaves = host.route_to(address.addr())?.map(|link| link.name);
        if leaves.as_deref() != Some(name.as_str()) {
            let actual = leaves.as_deref().unwrap_or("nowhere");
            found.push(format!("the node routes {} to {actual}, expected {name}", address.addr()));
        }
    }
    Ok(())
}

fn check_lease(
    conf: &NetConf,
    attachment: &Attachment,
    addresses: &[Cidr],
    found: &mut Vec<String>,
) -> Result<(), CniError> {
    let leases = ipam::load_or_recover(&mut open_store(conf)?, 0, routes_of_pods)?;
    let leased = leases.find(&attachment.id).map(|lease| lease.addresses.clone()).unwrap_or_default();
    let missing = addresses.iter().filter(|address| !leased.contains(&address.addr()));
    found.extend(missing.map(|address| format!("address {} is not leased to this container", address.addr())));
    Ok(())
}
