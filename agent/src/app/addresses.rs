//! The node's addresses while it runs: DHCP renumbers, an operator adds an address, a cloud controller sets others.
//!
//! ```text
//!  kernel (rtnetlink) ─► node::heartbeat reads the machine again ─► Node.status.addresses ─┐
//!  cloud controller ───────────────────────────────────────────────────────────────────────┴─► own Node (watch)
//!       own Node, else the machine ─► host addresses of pods · NodePorts and health checks of Services
//! ```
//! A joined node has the addresses that its Node object shows, so that `hostIP` and the Node never disagree. Which of them,
//! and which of the machine's, serve NodePorts is said by [`node_ports`](crate::service::node_ports).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::facts;
use super::pods::HostAddresses;
use super::service_half::ServiceHalf;
use crate::node::address;

/// Who is told.
pub struct Listeners {
    /// Pods, where they run.
    pub pods: Option<HostAddresses>,
    /// NodePorts, where they are served.
    pub services: Option<ServiceHalf>,
}

/// A network that comes up changes addresses several times in a row.
const SETTLE: Duration = Duration::from_millis(500);

/// Follows machine and Node until `shutdown`. `known` is what the listeners started with.
pub async fn follow(
    configured: Vec<IpAddr>,
    mut known: Vec<IpAddr>,
    mut machine: watch::Receiver<u64>,
    mut node: watch::Receiver<Option<Arc<Node>>>,
    listeners: Listeners,
    shutdown: CancellationToken,
) {
    loop {
        let shown = node.borrow_and_update().as_deref().map(internal_addresses).unwrap_or_default();
        machine.borrow_and_update();
        let now = merge(&shown, &facts::node_addresses(&configured));
        if let Some(services) = &listeners.services {
            // Which serve NodePorts may change with an address that the Node does not show.
            services.set_addresses(&now, &address::of_machine().await);
        }
        if now != known {
            tracing::info!(addresses = ?now, before = ?known, "addresses of the node");
            if let Some(pods) = &listeners.pods {
                // Pods show what the Node shows; both families only where it does.
                pods.set(if shown.is_empty() { &now } else { &shown });
            }
            known = now;
        }
        // A closed channel never changes again; the other one may.
        tokio::select! {
            () = shutdown.cancelled() => return,
            Ok(()) = machine.changed() => {}
            Ok(()) = node.changed() => {}
            else => return shutdown.cancelled().await,
        }
        tokio::time::sleep(SETTLE).await;
    }
}

fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect()
}

/// What the Node shows, and of families that it does not show, what the machine has. Pure.
fn merge(shown: &[IpAddr], machine: &[IpAddr]) -> Vec<IpAddr> {
    let missing = machine.iter().filter(|ip| shown.iter().all(|known| known.is_ipv4() != ip.is_ipv4()));
    shown.iter().chain(missing).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_object_wins_in_the_families_that_it_shows() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(merge(&ips(&["10.0.0.1"]), &ips(&["10.9.9.9", "fd00::1"])), ips(&["10.0.0.1", "fd00::1"]));
        assert_eq!(merge(&[], &ips(&["10.9.9.9"])), ips(&["10.9.9.9"]));
    }
}
