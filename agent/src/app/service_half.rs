//! The service half: the programmer, and the ports that tell how it does.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::own_network::OwnNetwork;
use super::settings;
use crate::config::proxy::LocalMode;
use crate::config::{Config, Mode};
use crate::event::Recorder;
use crate::health::{self, ProxyProgress, checks};
use crate::ids::ObjectKey;
use crate::node::address;
use crate::service::node_ports::{NodePorts, Place, Serving};
use crate::service::{self, Local, ServiceHandle};

/// The running service half.
#[derive(Clone)]
pub struct ServiceHalf {
    /// The programmer.
    pub handle: ServiceHandle,
    /// What 10256 tells.
    pub progress: ProxyProgress,
    /// What it does for pods of our own network, where there may be some.
    pub own_network: Option<Arc<OwnNetwork>>,
    addresses: Arc<Addresses>,
    /// Whether pods are told by the CIDRs of the own Node.
    by_node_cidr: bool,
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
        self.handle.set_host_addresses(every_address(machine));
        self.addresses.listen.send_if_modified(|known| {
            let is_news = *known != listen;
            *known = listen;
            is_news
        });
    }
}

/// Addresses that hostPorts without an address are served on.
fn every_address(machine: &[IpAddr]) -> Vec<IpAddr> {
    NodePorts::new(&[Place::All]).serving(&[], machine).addresses
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
    let machine = address::of_machine().await;
    let serving = addresses.serving(node, &machine);
    addresses.listen.send_replace(serving.listen);
    let handle = service::spawn(settings::services(config, serving.addresses), recorder.clone())?;
    handle.set_host_addresses(every_address(&machine));
    let conf_dir = config.cni_conf_dir.as_deref().filter(|_| settings::may_own_network(config));
    let own_network = conf_dir.map(|dir| OwnNetwork::new(handle.clone(), settings::cluster_cidrs(config), dir));
    let progress = ProxyProgress::new(config.proxy.sync_period);
    if let Some(address) = config.proxy.healthz {
        let asked = handle.clone();
        let routes = health::proxy_routes(progress.clone(), move |progress| observe(&asked, progress));
        tokio::spawn(health::serve("healthz of the service half", address, routes, shutdown.clone()));
    }
    if let Some(address) = config.proxy.metrics {
        let (asked, counted) = (handle.clone(), progress.clone());
        let more = move || format!("{}{}", asked.metrics(), counted.metrics());
        let routes = health::metrics_routes(more, configz(config));
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
    let by_node_cidr = matches!(config.mode, Mode::Joined { .. }) && config.proxy.local_mode == LocalMode::NodeCidr;
    Ok(ServiceHalf { handle, progress, own_network, addresses: Arc::new(addresses), by_node_cidr })
}

/// The configuration in effect, under the name that kube-proxy gives it: what was given, and what is filled in or is
/// otherwise than it was given.
fn configz(config: &Config) -> Value {
    let proxy = &config.proxy;
    let mut shown = proxy.given.clone();
    let address = |address: Option<SocketAddr>| Value::from(address.map(|a| a.to_string()).unwrap_or_default());
    let duration = |duration: Duration| Value::from(crate::config::duration::format(duration));
    for (name, value) in [
        ("mode", "nftables".into()),
        ("healthzBindAddress", address(proxy.healthz)),
        ("metricsBindAddress", address(proxy.metrics)),
        ("hostnameOverride", config.node_name.as_str().into()),
        ("detectLocalMode", proxy.local_mode.name().into()),
        ("clusterCIDR", proxy.cluster_cidrs.join(",").into()),
    ] {
        shown[name] = value;
    }
    shown["nftables"]["masqueradeAll"] = proxy.masquerade_all.into();
    shown["nftables"]["syncPeriod"] = duration(proxy.sync_period);
    shown["nftables"]["minSyncPeriod"] = duration(proxy.min_sync_period);
    json!({ "kubeproxy.config.k8s.io": shown })
}

/// Label with the zone of a node, which topology-aware Services go by.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Keeps the zone, and what load balancers are told, in step with the own Node.
pub async fn follow_node(half: ServiceHalf, mut node: watch::Receiver<Option<Arc<Node>>>) {
    let mut known = None;
    let mut known_cidrs = Vec::new();
    // Before the Node was seen nothing is known against it.
    while node.changed().await.is_ok() {
        let seen = node.borrow_and_update().clone();
        half.progress.node_seen(seen.as_deref());
        let zone = seen.as_ref().and_then(|node| node.metadata.labels.as_ref()?.get(ZONE).cloned());
        if zone != known {
            half.handle.set_zone(zone.as_deref());
            known = zone;
        }
        let cidrs = seen.and_then(|node| node.spec.as_ref()?.pod_cidrs.clone()).unwrap_or_default();
        if half.by_node_cidr && !cidrs.is_empty() && cidrs != known_cidrs {
            let networks = settings::parse_cidrs(&cidrs);
            half.handle.reconfigure(|settings| settings.local = Local::Networks(networks));
            known_cidrs = cidrs;
        }
    }
}
