//! Which addresses the node publishes.
//!
//! In this order, as kubelet does it: `--node-ip` (one, or one per family), which must be an address of this machine;
//! a node name that is itself an address; what DNS says the node name is, if that is an address of this machine; the
//! address of the interface of the default route. `0.0.0.0` and `::` choose the family of the last two.
//! [`choose`] is pure; [`local`] reads interfaces and routes over rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

/// Addresses and default routes of this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNet {
    /// Interface index and address.
    pub addresses: Vec<(u32, IpAddr)>,
    /// Interface indexes of default routes by metric, lowest first, with the family.
    pub defaults: Vec<(u32, Family)>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Why there is no address to publish.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// `--node-ip` is not an address of this machine.
    #[error("node IP: {ip:?} not found in the host's network interfaces; correct --node-ip, or add the address")]
    NotLocal {
        /// The configured address.
        ip: IpAddr,
    },
    /// `--node-ip` is of a kind that no other machine can use.
    #[error("nodeIP {ip} can't be a {kind} address")]
    Unusable {
        /// The configured address.
        ip: IpAddr,
        /// `loopback`, `multicast`, ...
        kind: &'static str,
    },
    /// Nothing is configured and nothing was found.
    #[error("can't get ip address of node {node}: no interface has a usable {family:?} address; set --node-ip")]
    None {
        /// The node.
        node: String,
        /// The preferred family.
        family: Family,
    },
}

/// Chooses the published addresses, the primary one first. `resolved` is what DNS says about the node's name.
pub fn choose(
    node: &str,
    configured: &[IpAddr],
    resolved: &[IpAddr],
    net: &LocalNet,
) -> Result<Vec<IpAddr>, AddressError> {
    let specified: Vec<IpAddr> = configured.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    for ip in &specified {
        validate(*ip, net)?;
    }
    if !specified.is_empty() {
        return Ok(specified);
    }
    if let Ok(ip) = node.parse() {
        return Ok(vec![ip]);
    }
    let family = configured.first().map_or(Family::V4, |ip| Family::of(*ip));
    let valid: Vec<IpAddr> = resolved.iter().copied().filter(|ip| validate(*ip, net).is_ok()).collect();
    let by_name = valid.iter().find(|ip| Family::of(**ip) == family).or(valid.first()).copied();
    by_name
        .or_else(|| by_default_route(family, net))
        .or_else(|| net.addresses.iter().map(|(_, ip)| *ip).find(|ip| Family::of(*ip) == family && is_global(*ip)))
        .map(|ip| vec![ip])
        .ok_or_else(|| AddressError::None { node: node.to_owned(), family })
}

fn by_default_route(family: Family, net: &LocalNet) -> Option<IpAddr> {
    let other = match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    };
    [family, other].into_iter().find_map(|family| {
        net.defaults.iter().filter(|(_, default)| *default == family).find_map(|(link, _)| {
            let on_link = net.addresses.iter().filter(|(index, _)| index == link).map(|(_, ip)| *ip);
            on_link.into_iter().find(|ip| Family::of(*ip) == family && is_global(*ip))
        })
    })
}

fn validate(ip: IpAddr, net: &LocalNet) -> Result<(), AddressError> {
    let kind = match ip {
        ip if ip.is_loopback() => Some("loopback"),
        ip if ip.is_multicast() => Some("multicast"),
        ip if ip.is_unspecified() => Some("all zeros"),
        ip if is_link_local(ip) => Some("link-local unicast"),
        _ => None,
    };
    if let Some(kind) = kind {
        return Err(AddressError::Unusable { ip, kind });
    }
    match net.addresses.iter().any(|(_, local)| *local == ip) {
        true => Ok(()),
        false => Err(AddressError::NotLocal { ip }),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn is_global(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || is_link_local(ip))
}

/// Reads addresses and default routes of the current network namespace.
pub async fn local() -> Result<LocalNet, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| format!("rtnetlink socket: {error}"))?;
    let task = tokio::spawn(connection);
    let result = read(&handle).await.map_err(|error| format!("rtnetlink dump: {error}"));
    task.abort();
    result
}

/// The addresses of all interfaces in this network namespace; none, and a line in the log, where they cannot be read.
pub async fn of_machine() -> Vec<IpAddr> {
    let read = async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
        let task = tokio::spawn(connection);
        let read = read_addresses(&handle).await.map_err(|error| error.to_string());
        task.abort();
        read
    };
    match read.await {
        Ok(addresses) => addresses.into_iter().map(|(_, ip)| ip).collect(),
        Err(error) => {
            tracing::error!(
                error,
                "cannot read the addresses of this machine from rtnetlink; only the Node's are used"
            );
            Vec::new()
        }
    }
}

/// Counts changes of addresses and default routes in this network namespace, from now until the receivers are gone. A
/// kernel that does not let us listen is reported once; then the count stays.
pub fn changes() -> watch::Receiver<u64> {
    let (tx, rx) = watch::channel(0);
    let groups =
        [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    match rtnetlink::new_multicast_connection(&groups) {
        Ok((connection, _, mut messages)) => {
            let task = tokio::spawn(connection);
            tokio::spawn(async move {
                while let Some((message, _)) = messages.next().await {
                    if is_about_addresses(&message.payload) {
                        tx.send_modify(|count| *count += 1);
                    }
                    if tx.is_closed() {
                        break;
                    }
                }
                task.abort();
            });
        }
        Err(error) => {
            tracing::warn!(%error, "cannot listen to address changes; they are seen with the next full check")
        }
    }
    rx
}

/// Pods' routes come and go all the time and say nothing about the node.
fn is_about_addresses(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_)) => true,
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            default_route(route).is_some()
        }
        _ => false,
    }
}

async fn read(handle: &rtnetlink::Handle) -> Result<LocalNet, rtnetlink::Error> {
    let mut net = LocalNet { addresses: read_addresses(handle).await?, ..LocalNet::default() };
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut defaults = Vec::new();
    for (family, filter) in [(Family::V4, v4), (Family::V6, v6)] {
        let mut routes = handle.route().get(filter).execute();
        while let Some(route) = routes.try_next().await? {
            defaults.extend(default_route(&route).map(|(metric, link)| (metric, link, family)));
        }
    }
    defaults.sort_by_key(|(metric, ..)| *metric);
    net.defaults = defaults.into_iter().map(|(_, link, family)| (link, family)).collect();
    Ok(net)
}

/// Interface index and address of all addresses.
async fn read_addresses(handle: &rtnetlink::Handle) -> Result<Vec<(u32, IpAddr)>, rtnetlink::Error> {
    let mut found = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        // IFA_LOCAL is the own end of a point-to-point link; IFA_ADDRESS is the peer there.
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        found.extend(local.or(address).map(|ip| (message.header.index, ip)));
    }
    Ok(found)
}

/// Metric and interface of a default route of the main table; unreachable routes have no interface but `lo`.
fn default_route(route: &RouteMessage) -> Option<(u32, u32)> {
    const MAIN_TABLE: u8 = 254;
    if route.header.destination_prefix_length != 0 || route.header.table != MAIN_TABLE {
        return None;
    }
    let mut metric = 0;
    let mut link = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Some((metric, link?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn net() -> LocalNet {
        LocalNet {
            addresses: vec![
                (1, ip("127.0.0.1")),
                (2, ip("169.254.1.1")),
                (2, ip("10.0.0.5")),
                (2, ip("fd00::5")),
                (2, ip("fe80::1")),
                (3, ip("192.168.7.1")),
            ],
            defaults: vec![(3, Family::V4), (2, Family::V4), (2, Family::V6)],
        }
    }

    #[test]
    fn addresses_are_chosen_in_kubelets_order() {
        let choose = |configured: &[&str], node: &str, resolved: &[&str]| {
            let configured: Vec<IpAddr> = configured.iter().map(|text| ip(text)).collect();
            let resolved: Vec<IpAddr> = resolved.iter().map(|text| ip(text)).collect();
            super::choose(node, &configured, &resolved, &net())
                .map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
                .map_err(|error| error.to_string())
        };
        assert_eq!(choose(&["10.0.0.5"], "n", &[]), Ok("10.0.0.5".into()));
        assert_eq!(choose(&["fd00::5", "10.0.0.5"], "n", &[]), Ok("fd00::5,10.0.0.5".into()));
        assert_eq!(choose(&[], "10.9.9.9", &[]), Ok("10.9.9.9".into()));
        assert_eq!(choose(&[], "n", &["127.0.0.1", "8.8.8.8", "10.0.0.5"]), Ok("10.0.0.5".into()));
        assert_eq!(choose(&[], "n", &["127.0.1.1"]), Ok("192.168.7.1".into()), "interface of the best default route");
        assert_eq!(choose(&["::"], "n", &[]), Ok("fd00::5".into()));
        assert!(choose(&["10.0.0.6"], "n", &[]).expect_err("not local").contains("not found in the host's network"));
        assert!(choose(&["127.0.0.1"], "n", &[]).expect_err("loopback").contains("can't be a loopback address"));
    }

    #[test]
    fn a_machine_without_default_route_uses_any_usable_address() {
        let net = LocalNet { defaults: Vec::new(), ..net() };
        assert_eq!(choose("n", &[], &[], &net), Ok(vec![ip("10.0.0.5")]));
        let none = choose("n", &[], &[], &LocalNet::default());
        assert_eq!(none, Err(AddressError::None { node: "n".into(), family: Family::V4 }));
    }

    #[tokio::test]
    async fn the_kernel_lists_the_loopback_address() {
        let net = local().await.expect("rtnetlink");
        assert!(net.addresses.contains(&(1, ip("127.0.0.1"))), "{net:?}");
    }
}
