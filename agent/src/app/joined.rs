//! A node of a control plane: pods, Services and the node's own objects come from the API server and go back to it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use kube::Api;
use kube::runtime::watcher;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::pods::PodHalf;
use crate::api::client::ApiClient;
use crate::api::objects::JoinedObjects;
use crate::api::service_envs::{ServiceEnvSink, ServiceEnvs};
use crate::api::status_writer::{PodRef, StatusWriter};
use crate::api::watch::{WatchHandle, spawn_watch};
use crate::config::{Config, KUBELET_VERSION, Only};
use crate::event::Recorder;
use crate::ids::{NodeName, ObjectKey, PodUid};
use crate::node::heartbeat::{self, NodeHandle, NodeInputs};
use crate::node::settings::NodeSettings;
use crate::node::{NodeExtras, RuntimeHealth};
use crate::objects::{ServiceEnv, ServiceEnvPort};
use crate::pod::facilities::StatusSink;
use crate::pod::spec;
use crate::service::{ServiceHandle, slim};
use crate::source::{SourceName, api as pod_source};
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
    pub services: Option<ServiceHandle>,
    /// The node's addresses.
    pub addresses: &'a [IpAddr],
}

/// What runs; dropping it ends the watches.
pub struct Joined {
    /// For views.
    pub board: Arc<Board>,
    /// Client for events.
    pub client: kube::Client,
    _watches: Vec<WatchHandle>,
    _node: Option<NodeHandle>,
    _held: watch::Sender<NodeExtras>,
    _stopping: watch::Sender<bool>,
}

/// Connects, registers and starts both halves.
pub async fn run(parts: Parts<'_>, kubeconfig: &Path) -> anyhow::Result<Joined> {
    let Parts { config, recorder, shutdown, services, addresses } = parts;
    let client = ApiClient::from_file(kubeconfig, env!("CARGO_PKG_VERSION"))?;
    let service_client = match &config.proxy.kubeconfig {
        Some(path) if path != kubeconfig => ApiClient::from_file(path, env!("CARGO_PKG_VERSION"))?,
        _ => client.clone(),
    };
    let envs = Arc::new(ServiceEnvs::default());
    let mut watches = watch_services(&service_client, services.as_ref(), &envs);
    let (extras_tx, extras) = watch::channel(NodeExtras::default());
    let (stopping_tx, stopping) = watch::channel(false);
    let writer = StatusWriter::new(client.kube());
    let sink = Arc::new(ApiSink { writer: writer.clone() });
    let log_dir = config.kubelet.pod_logs_dir.clone();
    let board = Arc::new(Board::new(vec![sink], no_services(), log_dir));
    if config.only == Only::Services {
        let client = client.kube();
        return Ok(Joined { board, client, _watches: watches, _node: None, _held: extras_tx, _stopping: stopping_tx });
    }
    let (objects_tx, changed) = mpsc::unbounded_channel();
    let objects = Arc::new(JoinedObjects::new(client.kube(), objects_tx, envs));
    let half = PodHalf::new(config, recorder.clone(), objects, board.clone(), addresses).await?;
    super::server::start(config, client.kube(), half.runtime(), board.clone(), addresses, shutdown)?;
    let runtime: watch::Receiver<RuntimeHealth> = half.health();
    let settings = Arc::new(NodeSettings::new(config, KUBELET_VERSION));
    let inputs = NodeInputs { runtime, extras, shutdown: stopping, events: recorder };
    let node = heartbeat::spawn(client.clone(), settings, inputs);
    if let Some(dir) = config.cni_conf_dir.clone() {
        tokio::spawn(keep_conflist(node.node(), dir, config.state_dir.clone(), shutdown.clone()));
    }
    let updates = half.start([SourceName::Api].into(), changed, shutdown);
    let (mirrors, _mirror_notes) = mpsc::unbounded_channel();
    let observer = Box::new(move |pod: &Pod| writer.observed(pod));
    let outlets = pod_source::Outlets { updates, mirrors, observer };
    watches.push(pod_source::spawn(client.kube(), &NodeName::new(&config.node_name), outlets));
    let client = client.kube();
    Ok(Joined { board, client, _watches: watches, _node: Some(node), _held: extras_tx, _stopping: stopping_tx })
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
    }
    watches
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

/// Writes a network configuration for the node's pod CIDRs where there is none, and keeps it current.
async fn keep_conflist(
    mut node: watch::Receiver<Option<Arc<Node>>>,
    dir: PathBuf,
    state_dir: PathBuf,
    shutdown: CancellationToken,
) {
    let mut written: Option<Vec<String>> = None;
    loop {
        let cidrs = node.borrow_and_update().as_ref().and_then(|node| node.spec.as_ref()?.pod_cidrs.clone());
        if let Some(cidrs) = cidrs.filter(|cidrs| !cidrs.is_empty() && written.as_ref() != Some(cidrs)) {
            super::ensure_network(&dir, &cidrs, &state_dir);
            written = Some(cidrs);
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = node.changed() => if changed.is_err() { return },
        }
    }
}

/// Sends statuses to the API server.
struct ApiSink {
    writer: StatusWriter,
}

fn pod_ref(pod: &Pod) -> PodRef {
    PodRef { key: spec::key(pod), uid: spec::uid(pod) }
}

impl StatusSink for ApiSink {
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        self.writer.publish(pod_ref(pod), status.as_ref().clone());
    }

    fn finish<'a>(&'a self, pod: &'a Arc<Pod>, status: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>> {
        self.writer.publish(pod_ref(pod), status.as_ref().clone());
        self.writer.delete(pod_ref(pod));
        Box::pin(async { Ok(()) })
    }

    fn forget(&self, uid: &PodUid) {
        self.writer.forget(uid);
    }

    fn terminating(&self, _pod: &Arc<Pod>, _status: &Arc<PodStatus>) {}
}
