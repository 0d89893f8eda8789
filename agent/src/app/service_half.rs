//! The service half: the programmer, and the ports that tell how it does.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::settings;
use crate::config::Config;
use crate::health::{self, ProxyProgress};
use crate::service::{self, ServiceHandle};

/// The running service half.
#[derive(Clone)]
pub struct ServiceHalf {
    /// The programmer.
    pub handle: ServiceHandle,
    /// What 10256 tells.
    pub progress: ProxyProgress,
}

/// Starts the programmer and serves 10256 and 10249.
pub fn start(config: &Config, addresses: &[IpAddr], shutdown: &CancellationToken) -> anyhow::Result<ServiceHalf> {
    let handle = service::spawn(settings::services(config, addresses))?;
    let progress = ProxyProgress::new(config.proxy.sync_period);
    if let Some(address) = config.proxy.healthz {
        let asked = handle.clone();
        let look = move |progress: &ProxyProgress| {
            let status = asked.status();
            let time = |at: Option<SystemTime>| at.and_then(|at| Timestamp::try_from(at).ok());
            progress.observed(time(status.last_commit), time(status.waiting_since));
        };
        let routes = health::proxy_routes(progress.clone(), look);
        tokio::spawn(health::serve("healthz of the service half", address, routes, shutdown.clone()));
    }
    if let Some(address) = config.proxy.metrics {
        let routes = health::metrics_routes(String::new);
        tokio::spawn(health::serve("metrics of the service half", address, routes, shutdown.clone()));
    }
    Ok(ServiceHalf { handle, progress })
}

/// Label with the zone of a node, which topology-aware Services go by.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Keeps the zone, and what load balancers are told, in step with the own Node.
pub async fn follow_node(half: ServiceHalf, mut node: watch::Receiver<Option<Arc<Node>>>) {
    let mut known = None;
    // Before the Node was seen nothing is known against it.
    while node.changed().await.is_ok() {
        let seen = node.borrow_and_update().clone();
        half.progress.node_seen(seen.as_deref());
        let zone = seen.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
        if zone != known {
            half.handle.set_zone(zone.as_deref());
            known = zone;
        }
    }
}
