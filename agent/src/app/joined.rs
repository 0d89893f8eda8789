//! A node of a control plane: pods, Services and the node's own objects come from the API server and go back to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::watcher;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::addresses;
use super::admission;
use super::api_sink::ApiSink;
use super::board::Board;
use super::garbage;
use super::identity::{Identity, VERSION};
use super::node_extras;
use super::own_network::OwnNetwork;
use super::pods::{HostAddresses, PodHalf};
use super::service_half::{self, ServiceHalf};
use super::settings;
use crate::api::client::ApiClient;
use crate::api::objects::JoinedObjects;
use crate::api::service_envs::{ServiceEnvSink, ServiceEnvs};
use crate::api::status_writer::StatusWriter;
use crate::api::watch::{WatchHandle, spawn_watch};
use crate::config::{Config, KUBELET_VERSION, Only};
use crate::control;
use crate::event::Recorder;
use crate::garbage::Ask;
use crate::ids::{NodeName, ObjectKey};
use crate::node::heartbeat::{self, NodeHandle, NodeInputs};
use crate::node::settings::NodeSettings;
use crate::node::{NodeExtras, RuntimeHealth, address, routes};
use crate::objects::{ServiceEnv, ServiceEnvPort};
use crate::pod::facilities::StatusSink;
use crate::service::{self, ServiceHandle, slim};
use crate::source::static_pods::mirror::{self, MirrorInputs};
use crate::source::static_pods::{self, StaticPods, StaticSource};
use crate::source::{SourceName, SourceUpdate, api as pod_source};
use crate::watch::{WatchEvent, WatchSink};

/// Services that a service proxy of another name serves, and headless ones, are not ours (kube-proxy's selector).
const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
const SLICE_LABELS: &str = "!service.kubernetes.io/headless";

/// What the joined mode starts from.
pub struct Parts<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// Where events go.
    pub recorder: Recorder,
    /// Ends everything.
    pub shutdown: &'a CancellationToken,
    /// The service half, where it runs.
    pub services: Option<ServiceHalf>,
    /// The node's addresses.
    pub addresses: &'a [IpAddr],
}

/// What runs; dropping it ends the watches.
pub struct Joined {
    /// For views.
    pub board: Arc<Board>,
    /// Client for events.
    pub client: kube::Client,
    /// Client for Services and EndpointSlices.
    pub services: kube::Client,
    /// Where requests of `nodelet gc` go.
    pub garbage: control::Garbage,
    _watches: Vec<WatchHandle>,
    _node: Option<NodeHandle>,
    _extras: Arc<watch::Sender<NodeExtras>>,
    _stopping: watch::Sender<bool>,
}

/// Connects, registers and starts both halves.
pub async fn run(parts: Parts<'_>, identity: &Identity) -> anyhow::Result<Joined> {
    let config = parts.config;
    let client = ApiClient::from_file(identity.kubeconfig(), VERSION)?;
    identity.keep(&client);
    let service_client = match &config.proxy.kubeconfig {
        Some(path) if path != identity.kubeconfig() => ApiClient::from_file(path, VERSION)?,
        _ => client.clone(),
    };
    let envs = Arc::new(ServiceEnvs::default());
    let handle = parts.services.as_ref().map(|half| &half.handle);
    let mut watches = watch_services(&service_client, handle, &envs);
    let extras = Arc::new(watch::Sender::new(NodeExtras::default()));
    let (stopping_tx, stopping) = watch::channel(false);
    let (kube, services) = (client.kube(), service_client.kube());
    let (board, node, garbage) = match config.only {
        Only::Services => {
            if let Some(half) = &parts.services {
                let (own, node) = heartbeat::watch_own(&service_client, &NodeName::new(&config.node_name));
                watches.push(own);
                follow_addresses(&parts, node.clone(), address::changes(), None);
                tokio::spawn(service_half::follow_node(half.clone(), node));
            }
            (Arc::new(Board::new(Vec::new(), no_services(), config.kubelet.pod_logs_dir.clone())), None, None)
        }
        Only::Both | Only::Pods => {
            let started = start_pods(&parts, (client, service_client), envs, &extras, stopping).await?;
            watches.push(started.watch);
            (started.board, Some(started.node), Some(started.garbage))
        }
    };
    let (_watches, _node, _extras, _stopping) = (watches, node, extras, stopping_tx);
    Ok(Joined { board, client: kube, services, garbage, _watches, _node, _extras, _stopping })
}

/// The running pod half of a joined node.
struct StartedPods {
    board: Arc<Board>,
    node: NodeHandle,
    watch: WatchHandle,
    garbage: mpsc::Sender<Ask>,
}

async fn start_pods(
    parts: &Parts<'_>,
    (client, service_client): (ApiClient, ApiClient),
    envs: Arc<ServiceEnvs>,
    extras: &Arc<watch::Sender<NodeExtras>>,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<StartedPods> {
    let Parts { config, recorder, shutdown, services, addresses } = parts;
    let name = NodeName::new(&config.node_name);
    // The node is told of before the runtime answers: a runtime that is late makes it NotReady, with the reason.
    let health = watch::Sender::new(RuntimeHealth::unknown());
    let machine = address::changes();
    let inputs = NodeInputs {
        runtime: health.subscribe(),
        extras: extras.subscribe(),
        shutdown: stopping,
        addresses: machine.clone(),
        events: recorder.clone(),
    };
    let settings = Arc::new(NodeSettings::new(config, KUBELET_VERSION));
    let node = heartbeat::spawn(client.clone(), settings, inputs);
    if let Some(half) = services {
        tokio::spawn(service_half::follow_node(half.clone(), node.node()));
    }
    if let Some(dir) = config.cni_conf_dir.clone() {
        let dirs = (dir, config.state_dir.clone());
        let own = services.as_ref().and_then(|half| half.own_network.clone());
        tokio::spawn(keep_network(node.node(), dirs, (service_client, name.clone(), own), (*shutdown).clone()));
    }
    let writer = StatusWriter::new(client.kube());
    let (notes_tx, notes) = mpsc::unbounded_channel();
    let (static_tx, static_rx) = watch::channel(StaticPods::new());
    // Without a staticPodPath, too: mirrors that are left from when there was one have to go.
    let mirrors = mirror::spawn(MirrorInputs {
        client: client.kube(),
        writer: writer.clone(),
        pods: static_rx,
        notes,
        node: node.node(),
    });
    let handle = services.as_ref().map(|half| half.handle.clone());
    let sink = Arc::new(ApiSink::new(writer.clone(), mirrors, handle));
    let own = services.as_ref().and_then(|half| half.own_network.clone());
    let listeners =
        own.map(|own| own as Arc<dyn StatusSink>).into_iter().chain([sink as Arc<dyn StatusSink>]).collect();
    let board = Arc::new(Board::new(listeners, no_services(), config.kubelet.pod_logs_dir.clone()));
    let (objects_tx, changed) = mpsc::unbounded_channel();
    let objects = Arc::new(JoinedObjects::new(client.kube(), objects_tx, envs, node.node(), recorder.clone()));
    let half = PodHalf::new(config, recorder.clone(), objects, board.clone(), addresses, health, shutdown).await?;
    super::server::start(super::server::Parts {
        config,
        client: client.clone(),
        node: node.node(),
        served: half.served(),
        board: board.clone(),
        addresses,
        shutdown,
    })?;
    board.ask_for_troubles(half.troubles());
    let garbage = garbage::start(config, &half, board.clone(), shutdown);
    follow_addresses(parts, node.node(), machine, Some(half.host_addresses()));
    let period = config.kubelet.status_report;
    tokio::spawn(node_extras::run(half.runtime(), extras.clone(), period, (*shutdown).clone()));
    let admission = half.admission();
    let awaited = config.kubelet.static_pod_path.iter().map(|_| SourceName::Static).chain([SourceName::Api]);
    let updates = half.start(awaited.collect(), changed, shutdown);
    start_static(parts, updates.clone(), static_tx);
    let observer = Box::new(move |pod: &Pod| writer.observed(pod));
    let outlets = pod_source::Outlets { updates, mirrors: notes_tx, observer };
    admission::learn(node.node(), admission).await;
    let watch = pod_source::spawn(client.kube(), &name, outlets);
    Ok(StartedPods { board, node, watch, garbage })
}

/// Follows `staticPodPath`. Without one, `pods` stays empty and open: the mirror task ends with its inputs.
fn start_static(parts: &Parts<'_>, updates: mpsc::UnboundedSender<SourceUpdate>, pods: watch::Sender<StaticPods>) {
    match parts.config.kubelet.static_pod_path.clone() {
        Some(path) => {
            let (node, events) = (NodeName::new(&parts.config.node_name), parts.recorder.clone());
            tokio::spawn(static_pods::run(StaticSource { path, node, updates, pods, events }));
        }
        None => drop(tokio::spawn(async move { pods.closed().await })),
    }
}

/// Keeps pods and NodePorts on the addresses that the Node shows.
fn follow_addresses(
    parts: &Parts<'_>,
    node: watch::Receiver<Option<Arc<Node>>>,
    machine: watch::Receiver<u64>,
    pods: Option<HostAddresses>,
) {
    let listeners = addresses::Listeners { pods, services: parts.services.clone() };
    let (configured, known) = (parts.config.node_ips.clone(), parts.addresses.to_vec());
    tokio::spawn(addresses::follow(configured, known, machine, node, listeners, parts.shutdown.clone()));
}

fn no_services() -> super::board::ServiceView {
    Box::new(|| (Vec::<Value>::new(), Vec::<Value>::new()))
}

/// One watch of Services feeds rules and environments, one of EndpointSlices the rules.
fn watch_services(client: &ApiClient, services: Option<&ServiceHandle>, envs: &Arc<ServiceEnvs>) -> Vec<WatchHandle> {
    let env_sink = ServiceEnvSink::new(envs.clone(), service_env);
    let rules = services.map(ServiceHandle::service_sink);
    let config = watcher::Config::default().labels(SERVICE_LABELS);
    let mut watches = vec![spawn_watch(Api::<slim::Service>::all(client.kube()), config, Both { env_sink, rules })];
    if let Some(services) = services {
        let config = watcher::Config::default().labels(SLICE_LABELS);
        let slices = Api::<slim::EndpointSlice>::all(client.kube());
        watches.push(spawn_watch(slices, config, services.slice_sink()));
        let ranges = Api::<slim::ServiceCidr>::all(client.kube());
        let sink = ServiceCidrs::new(services.clone());
        watches.push(spawn_watch(ranges, watcher::Config::default(), sink));
    }
    watches
}

/// Ranges of ClusterIPs by the name of their object.
struct ServiceCidrs {
    services: ServiceHandle,
    known: BTreeMap<String, Vec<String>>,
    /// Those of a list that still runs.
    listed: BTreeMap<String, Vec<String>>,
}

impl ServiceCidrs {
    fn new(services: ServiceHandle) -> Self {
        Self { services, known: BTreeMap::new(), listed: BTreeMap::new() }
    }

    fn tell(&self) {
        let all: BTreeSet<service::Cidr> =
            settings::parse_cidrs(&self.known.values().flatten().cloned().collect::<Vec<_>>()).into_iter().collect();
        self.services.reconfigure(|settings| settings.service_cidrs = all.into_iter().collect());
    }
}

impl WatchSink<slim::ServiceCidr> for ServiceCidrs {
    fn handle(&mut self, event: WatchEvent<slim::ServiceCidr>) {
        let name = |range: &slim::ServiceCidr| range.metadata.name.clone().unwrap_or_default();
        match event {
            WatchEvent::Restart => return self.listed.clear(),
            WatchEvent::InitApply(range) => return drop(self.listed.insert(name(&range), range.spec.cidrs)),
            WatchEvent::InitDone => self.known = std::mem::take(&mut self.listed),
            WatchEvent::Apply(range) => drop(self.known.insert(name(&range), range.spec.cidrs)),
            WatchEvent::Delete(range) => drop(self.known.remove(&name(&range))),
        }
        self.tell();
    }
}

struct Both<A, B> {
    env_sink: A,
    rules: Option<B>,
}

impl<A: WatchSink<slim::Service>, B: WatchSink<slim::Service>> WatchSink<slim::Service> for Both<A, B> {
    fn handle(&mut self, event: WatchEvent<slim::Service>) {
        if let Some(rules) = &mut self.rules {
            rules.handle(event.clone());
        }
        self.env_sink.handle(event);
    }
}

/// A Service as environments describe it; `None` without a ClusterIP.
fn service_env(service: &slim::Service) -> (ObjectKey, Option<ServiceEnv>) {
    let meta = &service.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let key = ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), &name);
    let address = service.spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None");
    let ports = service.spec.ports.iter().filter_map(|port| {
        Some(ServiceEnvPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port: u16::try_from(port.port).ok()?,
        })
    });
    let env = address.map(|cluster_ip| ServiceEnv { name, cluster_ip, ports: ports.collect() });
    (key, env)
}

/// Writes a network configuration for the node's pod CIDRs where there is none, and keeps it current. Where pods use it,
/// they also get routes to the pods of other nodes.
async fn keep_network(
    mut node: watch::Receiver<Option<Arc<Node>>>,
    (dir, state_dir): (PathBuf, PathBuf),
    (client, name, own): (ApiClient, NodeName, Option<Arc<OwnNetwork>>),
    shutdown: CancellationToken,
) {
    let mut written: Option<Vec<String>> = None;
    let mut peers = Some((client, name));
    loop {
        let cidrs = node.borrow_and_update().as_ref().and_then(|node| node.spec.as_ref()?.pod_cidrs.clone());
        if let Some(cidrs) = cidrs.filter(|cidrs| !cidrs.is_empty() && written.as_ref() != Some(cidrs)) {
            let pods = super::ensure_network(&dir, &cidrs, &state_dir);
            written = Some(cidrs);
            if let (Some(own), Some(pods)) = (&own, &pods) {
                own.is_ours(pods);
            }
            if let Some((client, name)) = peers.take_if(|_| pods.is_some()) {
                let told = own.clone();
                let told = move |peers: &[nodelet_cni::cidr::Cidr]| {
                    if let Some(own) = &told {
                        own.set_peers(peers);
                    }
                };
                tokio::spawn(routes::run(client, name, told, shutdown.clone()));
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = node.changed() => if changed.is_err() { return },
        }
    }
}
