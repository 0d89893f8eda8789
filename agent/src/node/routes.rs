//! Routes to the pods of other nodes, for clusters whose network is the project's own plugin: on a link that nodes share, a
//! route to each node's pod CIDRs through its address is all that is needed.
//!
//! ```text
//!  Nodes (watch) ─► Peers ─┐
//!  own addresses ──────────┴─► plan (pure) ─► routes of PROTOCOL that are missing or too many ─► rtnetlink
//! ```
//! Only routes that carry our protocol number are ever changed. A node that is not on a link of ours gets none: its pods
//! need a router that knows them, or an overlay from somebody else. Nothing is removed before the list of nodes is complete.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use nodelet_cni::cidr::Cidr;
use rtnetlink::RouteMessageBuilder;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::client::ApiClient;
use crate::api::watch::{WatchHandle, spawn_watch};
use crate::ids::NodeName;
use crate::watch::{WatchEvent, WatchSink};

/// Marks routes as ours (rtnetlink(7): numbers above 4 are for users; `ip route` shows `proto 78`). No routing daemon in
/// iproute2's rt_protos has it.
const PROTOCOL: u8 = 78;
/// Full check, for links that came and routes that somebody removed.
const CHECK: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(10);
/// Nodes that join together are one change.
const GATHER: Duration = Duration::from_millis(100);

/// Pod CIDRs and addresses of the other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Peer {
    cidrs: Vec<Cidr>,
    addresses: Vec<IpAddr>,
}

/// An address of this node with its network and interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Local {
    network: Cidr,
    interface: u32,
}

/// Where a pod CIDR is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hop {
    gateway: IpAddr,
    interface: u32,
}

/// The routes that there should be. Pure.
fn plan<'a>(peers: impl Iterator<Item = &'a Peer>, locals: &[Local]) -> BTreeMap<Cidr, Hop> {
    let mut routes = BTreeMap::new();
    for peer in peers {
        for cidr in &peer.cidrs {
            let on_link = peer.addresses.iter().filter(|ip| ip.is_ipv4() == cidr.addr().is_ipv4()).find_map(|ip| {
                let local = locals.iter().find(|local| local.network.contains(*ip))?;
                Some(Hop { gateway: *ip, interface: local.interface })
            });
            if let Some(hop) = on_link {
                routes.insert(cidr.network(), hop);
            }
        }
    }
    routes
}

#[derive(Default)]
struct State {
    peers: BTreeMap<String, Peer>,
    listed: BTreeMap<String, Peer>,
    synced: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Peers {
    shared: Arc<Shared>,
    own: NodeName,
}

impl Peers {
    fn peer(&self, node: &Node) -> Option<(String, Peer)> {
        let name = node.metadata.name.clone().filter(|name| name != self.own.as_str())?;
        let spec = node.spec.as_ref();
        let cidrs = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let internal = addresses.filter(|address| address.type_ == "InternalIP");
        let peer = Peer {
            cidrs: cidrs.iter().filter_map(|text| text.parse().ok()).collect(),
            addresses: internal.filter_map(|address| address.address.parse().ok()).collect(),
        };
        Some((name, peer))
    }
}

impl WatchSink<Node> for Peers {
    fn handle(&mut self, event: WatchEvent<Node>) {
        let mut state = self.shared.lock();
        let changed = match event {
            WatchEvent::Restart => {
                state.listed.clear();
                false
            }
            WatchEvent::InitApply(node) => {
                state.listed.extend(self.peer(&node));
                false
            }
            WatchEvent::InitDone => {
                let listed = std::mem::take(&mut state.listed);
                let changed = !state.synced || state.peers != listed;
                (state.peers, state.synced) = (listed, true);
                changed
            }
            // Most updates are heartbeats.
            WatchEvent::Apply(node) => match self.peer(&node) {
                Some((name, peer)) => state.peers.insert(name, peer.clone()) != Some(peer),
                None => false,
            },
            WatchEvent::Delete(node) => node.metadata.name.is_some_and(|name| state.peers.remove(&name).is_some()),
        };
        drop(state);
        if changed {
            self.shared.changed.notify_one();
        }
    }
}

/// Keeps routes until `shutdown`, and tells the pod CIDRs of the other nodes as they change. `client` must be allowed to list
/// nodes, as system:kube-proxy is.
pub async fn run(client: ApiClient, own: NodeName, told: impl Fn(&[Cidr]) + Send, shutdown: CancellationToken) {
    let shared = Arc::new(Shared { state: Mutex::default(), changed: Notify::new() });
    let sink = Peers { shared: shared.clone(), own };
    let _watch: WatchHandle = spawn_watch(Api::<Node>::all(client.kube()), watcher::Config::default(), sink);
    let mut pause = CHECK;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = shared.changed.notified() => tokio::time::sleep(GATHER).await,
            () = tokio::time::sleep(pause) => {}
        }
        let peers: Vec<Peer> = {
            let state = shared.lock();
            if !state.synced {
                continue;
            }
            state.peers.values().cloned().collect()
        };
        told(&peers.iter().flat_map(|peer| &peer.cidrs).copied().collect::<Vec<_>>());
        pause = match apply(&peers).await {
            Ok(0) => CHECK,
            Ok(changes) => {
                tracing::info!(changes, nodes = peers.len(), "routes to pods of other nodes");
                CHECK
            }
            Err(error) => {
                tracing::warn!(error, "cannot set routes to pods of other nodes; trying again");
                RETRY
            }
        };
    }
}

/// Brings the kernel's routes in line; answers how many were changed.
async fn apply(peers: &[Peer]) -> Result<usize, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| format!("rtnetlink socket: {error}"))?;
    let task = tokio::spawn(connection);
    let result = reconcile(&handle, peers).await.map_err(|error| format!("rtnetlink: {error}"));
    task.abort();
    result
}

async fn reconcile(handle: &rtnetlink::Handle, peers: &[Peer]) -> Result<usize, rtnetlink::Error> {
    let wanted = plan(peers.iter(), &locals(handle).await?);
    let found = own_routes(handle).await?;
    let mut changes = 0;
    for (cidr, message) in &found {
        if !wanted.contains_key(cidr) {
            handle.route().del(message.clone()).execute().await?;
            changes += 1;
        }
    }
    for (cidr, hop) in wanted {
        let same = found.iter().any(|(known, message)| *known == cidr && hop_of(message) == Some(hop));
        if !same {
            handle.route().add(route(cidr, hop)).replace().execute().await?;
            changes += 1;
        }
    }
    Ok(changes)
}

fn route(cidr: Cidr, hop: Hop) -> RouteMessage {
    let message = match (cidr.addr(), hop.gateway) {
        (IpAddr::V4(network), IpAddr::V4(gateway)) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(network, cidr.prefix())
            .gateway(gateway)
            .output_interface(hop.interface)
            .build(),
        (IpAddr::V6(network), IpAddr::V6(gateway)) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(network, cidr.prefix())
            .gateway(gateway)
            .output_interface(hop.interface)
            .build(),
        // `plan` joins addresses of one family only; a default route is no pod CIDR and would be refused.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => RouteMessage::default(),
    };
    let mut message = message;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message
}

async fn locals(handle: &rtnetlink::Handle) -> Result<Vec<Local>, rtnetlink::Error> {
    let mut locals = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await? {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let network = address.and_then(|ip| Cidr::new(ip, message.header.prefix_len));
        let usable = network.filter(|network| !network.addr().is_loopback() && *network != Cidr::host(network.addr()));
        locals.extend(usable.map(|network| Local { network: network.network(), interface: message.header.index }));
    }
    Ok(locals)
}

/// Routes of our protocol in any table.
async fn own_routes(handle: &rtnetlink::Handle) -> Result<Vec<(Cidr, RouteMessage)>, rtnetlink::Error> {
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    let mut found = Vec::new();
    for filter in [v4, v6] {
        let mut routes = handle.route().get(filter).execute();
        while let Some(message) = routes.try_next().await? {
            if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
                continue;
            }
            let destination = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(address) => ip(address),
                _ => None,
            });
            let cidr = destination.and_then(|ip| Cidr::new(ip, message.header.destination_prefix_length));
            found.extend(cidr.map(|cidr| (cidr, message)));
        }
    }
    Ok(found)
}

fn hop_of(message: &RouteMessage) -> Option<Hop> {
    let (mut gateway, mut interface) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Oif(index) => interface = Some(*index),
            _ => {}
        }
    }
    Some(Hop { gateway: gateway?, interface: interface? })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(cidrs: &[&str], addresses: &[&str]) -> Peer {
        Peer {
            cidrs: cidrs.iter().map(|text| text.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_node_on_a_link_of_ours_is_the_gateway_to_its_pods_in_each_family() {
        let locals = [("10.0.0.0/24", 2), ("fd00::/64", 3)];
        let locals = locals.map(|(network, interface)| Local { network: network.parse().unwrap(), interface });
        let peers = [
            peer(&["10.244.1.0/24", "fd01:1::/64"], &["10.0.0.7", "fd00::7"]),
            peer(&["10.244.2.0/24"], &["192.168.9.9"]),
            peer(&["10.244.3.0/24"], &["192.168.9.9", "10.0.0.8"]),
            peer(&["fd01:4::/64"], &["10.0.0.9"]),
        ];
        let planned: Vec<String> = plan(peers.iter(), &locals)
            .into_iter()
            .map(|(cidr, hop)| format!("{cidr} via {} dev {}", hop.gateway, hop.interface))
            .collect();
        let expected = ["10.244.1.0/24 via 10.0.0.7 dev 2", "10.244.3.0/24 via 10.0.0.8 dev 2"];
        assert_eq!(planned[..2], expected);
        assert_eq!(planned[2..], ["fd01:1::/64 via fd00::7 dev 3"]);
    }

    #[test]
    fn heartbeats_and_the_own_node_change_nothing() {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Notify::new() });
        let mut peers = Peers { shared: shared.clone(), own: NodeName::new("me") };
        let node = |name: &str, beat: &str| -> Node {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": name, "resourceVersion": beat },
                "spec": { "podCIDRs": ["10.244.1.0/24"] },
                "status": { "addresses": [{ "type": "InternalIP", "address": "10.0.0.7" }] },
            }))
            .unwrap()
        };
        peers.handle(WatchEvent::Apply(node("other", "1")));
        peers.handle(WatchEvent::Apply(node("me", "1")));
        assert_eq!(shared.lock().peers.len(), 1);
        let woken = || futures_util::FutureExt::now_or_never(shared.changed.notified()).is_some();
        assert!(woken());
        peers.handle(WatchEvent::Apply(node("other", "2")));
        assert!(!woken());
    }
}
