//! Wiring: the only file that knows all modules. It builds every value completely before anything runs, starts tasks in
//! the order of what they need, and waits for the signal to stop.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use nodelet_cni::cidr::Cidr;
use nodelet_cni::conflist::{Conflist, Outcome, ensure_conflist};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::api::events::Rate;
use crate::config::{Config, Mode, Only};
use crate::control::{self, Answers, StateDir};
use crate::event::{Event, Recorder};
use crate::garbage::Ask;
use crate::health;
use crate::ids::NodeName;
use crate::node::{RuntimeHealth, address, facts as machine};
use crate::pod::facilities::StatusSink;
use crate::pod::shared::now;
use crate::service::{self, ServiceHandle};
use crate::source::manifest_dir::{self, AloneObjects, ManifestDir};
use crate::source::static_pods::{self, StaticSource};
use crate::source::{SourceName, SourceUpdate};
use crate::{alone, api, memory, task};

pub mod addresses;
pub mod admission;
pub mod api_sink;
pub mod board;
pub mod enforce;
pub mod explain;
pub mod facilities;
pub mod facts;
pub mod garbage;
pub mod identity;
pub mod joined;
pub mod network;
pub mod node_extras;
pub mod own_network;
pub mod pods;
pub mod runtime_health;
pub mod server;
pub mod service_half;
pub mod settings;
pub mod start_checks;

use board::Board;
use explain::{Source, explainer};
use pods::PodHalf;
use service_half::ServiceHalf;

/// Runs the agent until SIGTERM or SIGINT. Pods, rules and mounts stay as they are when it ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    if config.only != Only::Services {
        start_checks::check(&config, &machine::read(&config.root_dir))?;
        start_checks::set_oom_score(config.kubelet.oom_score_adj);
    }
    let state_dir = StateDir::acquire(&config.state_dir)?;
    let listener = state_dir.bind()?;
    let shutdown = CancellationToken::new();
    task::cancel_on_signal(shutdown.clone())?;
    let (recorder, events) = Recorder::new();
    let addresses = facts::node_addresses(&config.node_ips);
    let services = match (config.only, &config.mode) {
        // Static pods alone have no Services.
        (Only::Pods, _) | (_, Mode::Alone { manifests: None, .. }) => None,
        (Only::Both | Only::Services, _) => Some(service_half::start(&config, &addresses, &recorder, &shutdown).await?),
    };
    let programmer = services.as_ref().map(|half| half.handle.clone());
    match &config.mode {
        Mode::Alone { manifests, service_cidrs, pod_cidrs } => {
            if let Some(dir) = config.cni_conf_dir.as_ref().filter(|_| config.only != Only::Services) {
                let pods = ensure_network(dir, pod_cidrs, &config.state_dir);
                if let (Some(own), Some(pods)) = (services.as_ref().and_then(|half| half.own_network.as_ref()), pods) {
                    own.is_ours(&pods);
                }
            }
            let parts = Parts { config: &config, recorder, shutdown: &shutdown, services, addresses: &addresses };
            // The runtime may take minutes to answer, or never do: the signal to stop counts meanwhile, too.
            let starting = Box::pin(run_alone(parts, manifests.as_deref(), service_cidrs));
            let started = shutdown.run_until_cancelled(starting).await;
            let Some((board, garbage)) = started.transpose()? else { return Ok(()) };
            tokio::spawn(record_events(events, board.clone(), None));
            let source = Source::Shown(board.clone());
            let answers = Answers {
                garbage: Some(garbage),
                services: programmer.map(|programmer| explainer(programmer, board.clone(), addresses, source)),
                view: board,
            };
            tokio::spawn(control::serve(listener, answers, shutdown.clone()));
            wait(&config, &shutdown).await;
        }
        Mode::Joined { kubeconfig, bootstrap } => {
            let shutdown = &shutdown;
            let identity = identity::Identity::new(&config, kubeconfig, bootstrap.as_deref());
            if !identity.ensure(shutdown).await? {
                return Ok(());
            }
            let parts = joined::Parts { config: &config, recorder, shutdown, services, addresses: &addresses };
            let started = shutdown.run_until_cancelled(Box::pin(joined::run(parts, &identity))).await;
            let Some(joined) = started.transpose()? else { return Ok(()) };
            let (events_tx, events_rx) = mpsc::channel(1000);
            let (per_second, burst) = config.kubelet.event_qps;
            let rate = Rate { per_second: per_second as f64, burst: burst as f64 };
            let node = NodeName::new(&config.node_name);
            tokio::spawn(api::events::run(joined.client.clone(), node, rate, events_rx));
            tokio::spawn(record_events(events, joined.board.clone(), Some(events_tx)));
            let source = Source::Api(joined.services.clone());
            let answers = Answers {
                garbage: joined.garbage.clone(),
                services: programmer.map(|programmer| explainer(programmer, joined.board.clone(), addresses, source)),
                view: joined.board.clone(),
            };
            tokio::spawn(control::serve(listener, answers, shutdown.clone()));
            wait(&config, shutdown).await;
        }
    }
    Ok(())
}

async fn wait(config: &Config, shutdown: &CancellationToken) {
    start_healthz(config, shutdown);
    tokio::spawn(memory::run(shutdown.clone()));
    tracing::info!(node = %config.node_name, "nodelet is up");
    task::notify::notify(task::notify::READY);
    shutdown.cancelled().await;
    task::notify::notify(task::notify::STOPPING);
    tracing::info!("stopping; pods and rules stay as they are");
}

/// Writes a network configuration for these pod CIDRs where there is none. Leases are kept in the state directory: two
/// agents on one machine, each with its own, give out their addresses apart from each other. Answers the networks of pods,
/// where they use ours.
fn ensure_network(dir: &Path, pod_cidrs: &[String], state_dir: &Path) -> Option<Vec<Cidr>> {
    let cidrs: Vec<_> = pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
    // The plugin is run by the runtime, in a working directory of its own.
    let leases = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned()).join("cni");
    let conflist = Conflist { pod_cidrs: cidrs, mtu: 0, data_dir: leases };
    let ours = || Some(conflist.pod_cidrs.clone());
    match std::fs::create_dir_all(dir).map_err(anyhow::Error::from).and_then(|()| Ok(ensure_conflist(dir, &conflist)?))
    {
        Ok(Outcome::Unchanged) => ours(),
        Ok(Outcome::Foreign(path)) => {
            tracing::info!(path = %path.display(), "pods use the network configuration that is there");
            None
        }
        Ok(outcome @ (Outcome::Written | Outcome::Updated)) => {
            tracing::info!(dir = %dir.display(), ?outcome, "network configuration for nodelet-cni");
            ours()
        }
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot write a network configuration; pods wait until there is one");
            None
        }
    }
}

/// What the mode without a control plane starts from.
struct Parts<'a> {
    config: &'a Config,
    recorder: Recorder,
    shutdown: &'a CancellationToken,
    services: Option<ServiceHalf>,
    addresses: &'a [IpAddr],
}

/// Removes what the agent put into the kernel.
pub fn cleanup() -> anyhow::Result<()> {
    Ok(service::programmer::cleanup()?)
}

fn start_healthz(config: &Config, shutdown: &CancellationToken) {
    if config.only != Only::Services && config.kubelet.healthz_port != 0 {
        let address = (config.kubelet.healthz_address, config.kubelet.healthz_port).into();
        tokio::spawn(health::serve("healthz", address, health::kubelet_routes(), shutdown.clone()));
    }
}

/// Puts events on the board and, joined, on their way to the API server; what does not fit there is dropped, not waited for.
async fn record_events(mut events: mpsc::Receiver<Event>, board: Arc<Board>, api: Option<mpsc::Sender<Event>>) {
    while let Some(event) = events.recv().await {
        tracing::info!(reason = event.reason, subject = ?event.subject, "{}", event.message);
        board.ring.lock().unwrap_or_else(PoisonError::into_inner).record(&event, now());
        if let Some(api) = &api
            && api.try_send(event).is_err()
        {
            tracing::debug!("event not sent to the API server: too many wait");
        }
    }
}

/// A node without a control plane: files are the source of everything.
async fn run_alone(
    parts: Parts<'_>,
    manifests: Option<&Path>,
    service_cidrs: &[String],
) -> anyhow::Result<(Arc<Board>, mpsc::Sender<Ask>)> {
    let Parts { config, recorder, shutdown, .. } = &parts;
    let (objects_tx, changed_objects) = mpsc::unbounded_channel();
    let objects = Arc::new(AloneObjects::new(objects_tx));
    let files = match manifests {
        Some(dir) => Some(Manifests::open(&parts, dir, service_cidrs, &objects)?),
        None => None,
    };
    let own = parts.services.as_ref().and_then(|half| half.own_network.clone());
    let own = own.map(|own| own as Arc<dyn StatusSink>);
    let (listeners, shown) = match &files {
        Some(files) => (own.into_iter().chain([files.listener.clone()]).collect(), files.shown()),
        None => (Vec::new(), Box::new(|| (Vec::new(), Vec::new())) as board::ServiceView),
    };
    let board = Arc::new(Board::new(listeners, shown, config.kubelet.pod_logs_dir.clone()));
    let health = watch::Sender::new(RuntimeHealth::unknown());
    let half =
        PodHalf::new(config, recorder.clone(), objects, board.clone(), parts.addresses, health, shutdown).await?;
    board.ask_for_troubles(half.troubles());
    let garbage = garbage::start(config, &half, board.clone(), shutdown);
    let listeners = addresses::Listeners { pods: Some(half.host_addresses()), services: parts.services.clone() };
    let (known, configured, stop) = (parts.addresses.to_vec(), config.node_ips.clone(), (*shutdown).clone());
    let (_, no_node) = watch::channel(None);
    tokio::spawn(addresses::follow(configured, known, address::changes(), no_node, listeners, stop));
    let static_path = config.kubelet.static_pod_path.clone();
    let awaited = files.iter().map(|_| SourceName::Manifests).chain(static_path.iter().map(|_| SourceName::Static));
    let updates = half.start(awaited.collect(), changed_objects, shutdown);
    if let Some(path) = static_path {
        let node = NodeName::new(&config.node_name);
        let (pods, _) = watch::channel(static_pods::StaticPods::new());
        let events = recorder.clone();
        tokio::spawn(static_pods::run(StaticSource { path, node, updates: updates.clone(), pods, events }));
    }
    if let Some(files) = files {
        files.start(updates, shutdown);
    }
    Ok((board, garbage))
}

/// The manifest directory with what makes Services of it, opened and not yet running.
struct Manifests {
    source: ManifestDir,
    joiner: alone::Alone,
    pods: mpsc::Receiver<SourceUpdate>,
    services: mpsc::UnboundedReceiver<manifest_dir::ServiceUpdate>,
    pod_updates: mpsc::UnboundedReceiver<alone::PodUpdate>,
    listener: Arc<dyn StatusSink>,
}

impl Manifests {
    fn open(
        parts: &Parts<'_>,
        dir: &Path,
        service_cidrs: &[String],
        objects: &Arc<AloneObjects>,
    ) -> anyhow::Result<Self> {
        let Parts { config, recorder, services, .. } = parts;
        let (pod_updates, pod_updates_rx) = alone::PodUpdates::new();
        let (manifests_tx, pods) = mpsc::channel(256);
        let (services_tx, services_rx) = mpsc::unbounded_channel();
        let node_name = NodeName::new(&config.node_name);
        let source = ManifestDir::open(
            manifest_dir::Settings {
                dir: dir.to_owned(),
                last_good: config.state_dir.join("manifests"),
                node_name: node_name.clone(),
            },
            manifest_dir::Outputs {
                pods: manifests_tx,
                objects: objects.clone(),
                services: services_tx,
                recorder: recorder.clone(),
            },
        )?;
        let handle = services.as_ref().map(|half| &half.handle);
        let joiner = alone::Alone::new(
            alone::Settings {
                service_cidrs: service_cidrs.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
                state_file: config.state_dir.join("alone.json"),
                node_name,
            },
            alone::Outputs {
                services: sink_or_nothing(handle.map(ServiceHandle::service_sink)),
                slices: sink_or_nothing(handle.map(ServiceHandle::slice_sink)),
                objects: objects.clone(),
                recorder: recorder.clone(),
            },
        );
        let listener = Arc::new(pod_updates);
        Ok(Self { source, joiner, pods, services: services_rx, pod_updates: pod_updates_rx, listener })
    }

    /// Services and EndpointSlices for views.
    fn shown(&self) -> board::ServiceView {
        let view = self.joiner.view();
        Box::new(move || {
            let snapshot = view.get();
            let json = |value: Result<serde_json::Value, serde_json::Error>| value.ok();
            let services = snapshot.services.iter().filter_map(|s| json(serde_json::to_value(s))).collect();
            (services, snapshot.slices.iter().filter_map(|s| json(serde_json::to_value(s))).collect())
        })
    }

    fn start(self, updates: mpsc::UnboundedSender<SourceUpdate>, shutdown: &CancellationToken) {
        let Self { source, joiner, mut pods, services, pod_updates, .. } = self;
        tokio::spawn(async move {
            while let Some(update) = pods.recv().await {
                if updates.send(update).is_err() {
                    return;
                }
            }
        });
        tokio::spawn(joiner.run(services, pod_updates, shutdown.clone()));
        tokio::spawn(source.run(shutdown.clone()));
    }
}

/// The service half's sink, or one that takes nothing in (`--only pods`).
fn sink_or_nothing<K, S, A>(sink: Option<S>) -> Box<dyn crate::watch::WatchSink<A>>
where
    A: serde::Serialize + Send + 'static,
    K: serde::de::DeserializeOwned + Send + 'static,
    S: crate::watch::WatchSink<K>,
{
    struct Nothing;
    impl<A> crate::watch::WatchSink<A> for Nothing {
        fn handle(&mut self, _event: crate::watch::WatchEvent<A>) {}
    }
    match sink {
        Some(sink) => Box::new(alone::JsonSink::<S, K>::new(sink)),
        None => Box::new(Nothing),
    }
}
