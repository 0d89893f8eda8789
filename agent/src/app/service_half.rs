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
use crate::event::Recorder;
use crate::health::{self, ProxyProgress, checks};
use crate::ids::ObjectKey;
use crate::node::address;
use crate::service::node_ports::{NodePorts, Serving};
use crate::service::{self, ServiceHandle};

/// The running service half.
#[derive(Clone)]
pub struct ServiceHalf {
    /// The programmer.
    pub handle: ServiceHandle,
    /// What 10256 tells.
    pub progress: ProxyProgress,
    addresses: Arc<Addresses>,
}

/// Which of the node's addresses serve NodePorts, and who listens to that.
struct Addresses {
    /// `bindAddress`, which goes before what the Node shows.
    bind: Option<IpAddr>,
    node_ports: NodePorts,
    /// Where health checks listen.
    listen: watch::Sender<Vec<IpAddr>>,
}

impl Addresses {
    fn serving(&self, node: &[IpAddr], machine: &[IpAddr]) -> Serving {
        let primary: Vec<IpAddr> = self.bind.into_iter().chain(node.iter().copied()).collect();
        self.node_ports.serving(&primary, machine)
    }
}

impl ServiceHalf {
    /// The node has these addresses, its primary ones first, and the machine those.
    pub fn set_addresses(&self, node: &[IpAddr], machine: &[IpAddr]) {
        let Serving { addresses, listen } = self.addresses.serving(node, machine);
        self.handle.set_node_addresses(addresses);
        self.addresses.listen.send_if_modified(|known| {
            let is_news = *known != listen;
            *known = listen;
            is_news
        });
    }
}

/// What health checks of Services are answered from.
struct Checked {
    handle: ServiceHandle,
    progress: ProxyProgress,
}

impl checks::Source for Checked {
    fn local_endpoints(&self, service: &ObjectKey, v6: bool) -> usize {
        self.handle.local_endpoints(service, v6)
    }

    fn is_healthy(&self) -> bool {
        observe(&self.handle, &self.progress);
        self.progress.is_healthy()
    }
}

/// Brings the progress up to date.
fn observe(handle: &ServiceHandle, progress: &ProxyProgress) {
    let status = handle.status();
    let time = |at: Option<SystemTime>| at.and_then(|at| Timestamp::try_from(at).ok());
    progress.observed(time(status.last_commit), time(status.waiting_since));
}

/// Starts the programmer and serves 10256, 10249 and the health check ports of Services.
pub async fn start(
    config: &Config,
    node: &[IpAddr],
    recorder: &Recorder,
    shutdown: &CancellationToken,
) -> anyhow::Result<ServiceHalf> {
    let addresses = Addresses {
        bind: config.proxy.bind_address,
        node_ports: settings::node_ports(config),
        listen: watch::Sender::new(Vec::new()),
    };
    let serving = addresses.serving(node, &address::of_machine().await);
    addresses.listen.send_replace(serving.listen);
    let handle = service::spawn(settings::services(config, serving.addresses))?;
    let progress = ProxyProgress::new(config.proxy.sync_period);
    if let Some(address) = config.proxy.healthz {
        let asked = handle.clone();
        let routes = health::proxy_routes(progress.clone(), move |progress| observe(&asked, progress));
        tokio::spawn(health::serve("healthz of the service half", address, routes, shutdown.clone()));
    }
    if let Some(address) = config.proxy.metrics {
        let routes = health::metrics_routes(String::new);
        tokio::spawn(health::serve("metrics of the service half", address, routes, shutdown.clone()));
    }
    let inputs = checks::Inputs {
        checks: handle.health_checks(),
        addresses: addresses.listen.subscribe(),
        source: Arc::new(Checked { handle: handle.clone(), progress: progress.clone() }),
        recorder: recorder.clone(),
        node_name: config.node_name.clone(),
    };
    tokio::spawn(checks::run(inputs, shutdown.clone()));
    Ok(ServiceHalf { handle, progress, addresses: Arc::new(addresses) })
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
