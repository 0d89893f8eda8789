//! Wiring: the only file that knows all modules. It builds every value completely before anything runs, starts tasks in
//! the order of what they need, and waits for the signal to stop.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use nodelet_cni::conflist::{Conflist, Outcome, ensure_conflist};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::events::Rate;
use crate::config::{Config, Mode, Only};
use crate::control::{self, StateDir};
use crate::event::{Event, Recorder};
use crate::health::{self, ProxyProgress};
use crate::ids::NodeName;
use crate::pod::shared::now;
use crate::service::{self, ServiceHandle};
use crate::{alone, api, task};

pub mod board;
pub mod facilities;
pub mod facts;
pub mod joined;
pub mod pods;
pub mod runtime_health;
pub mod server;
pub mod settings;

use board::Board;
use pods::PodHalf;

/// Runs the agent until SIGTERM or SIGINT. Pods, rules and mounts stay as they are when it ends.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let state_dir = StateDir::acquire(&config.state_dir)?;
    let listener = state_dir.bind()?;
    let shutdown = CancellationToken::new();
    task::cancel_on_signal(shutdown.clone())?;
    let (recorder, events) = Recorder::new();
    let addresses = facts::node_addresses(&config.node_ips);
    let services = match config.only {
        Only::Pods => None,
        Only::Both | Only::Services => Some(start_services(&config, &addresses, &shutdown)?),
    };
    match &config.mode {
        Mode::Alone { manifests, service_cidrs, pod_cidrs } => {
            if let Some(dir) = config.cni_conf_dir.as_ref().filter(|_| config.only != Only::Services) {
                ensure_network(dir, pod_cidrs, &config.state_dir);
            }
            let parts = Parts { config: &config, recorder, shutdown: &shutdown, services, addresses: &addresses };
            let board = run_alone(parts, manifests, service_cidrs).await?;
            tokio::spawn(record_events(events, board.clone(), None));
            tokio::spawn(control::serve(listener, board, shutdown.clone()));
            wait(&config, &shutdown).await;
        }
        Mode::Joined { kubeconfig, .. } => {
            let shutdown = &shutdown;
            let parts = joined::Parts { config: &config, recorder, shutdown, services, addresses: &addresses };
            let joined = joined::run(parts, kubeconfig).await?;
            let (events_tx, events_rx) = mpsc::channel(1000);
            let (per_second, burst) = config.kubelet.event_qps;
            let rate = Rate { per_second: per_second as f64, burst: burst as f64 };
            let node = NodeName::new(&config.node_name);
            tokio::spawn(api::events::run(joined.client.clone(), node, rate, events_rx));
            tokio::spawn(record_events(events, joined.board.clone(), Some(events_tx)));
            tokio::spawn(control::serve(listener, joined.board.clone(), shutdown.clone()));
            wait(&config, shutdown).await;
        }
    }
    Ok(())
}

async fn wait(config: &Config, shutdown: &CancellationToken) {
    start_healthz(config, shutdown);
    tracing::info!(node = %config.node_name, "nodelet is up");
    task::notify::notify(task::notify::READY);
    shutdown.cancelled().await;
    task::notify::notify(task::notify::STOPPING);
    tracing::info!("stopping; pods and rules stay as they are");
}

/// Writes a network configuration for these pod CIDRs where there is none. Leases are kept in the state directory: two
/// agents on one machine, each with its own, give out their addresses apart from each other.
fn ensure_network(dir: &Path, pod_cidrs: &[String], state_dir: &Path) {
    let cidrs: Vec<_> = pod_cidrs.iter().filter_map(|text| text.parse().ok()).collect();
    // The plugin is run by the runtime, in a working directory of its own.
    let leases = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned()).join("cni");
    let conflist = Conflist { pod_cidrs: cidrs, mtu: 0, data_dir: leases };
    match std::fs::create_dir_all(dir).map_err(anyhow::Error::from).and_then(|()| Ok(ensure_conflist(dir, &conflist)?))
    {
        Ok(Outcome::Unchanged) => {}
        Ok(Outcome::Foreign(path)) => {
            tracing::info!(path = %path.display(), "pods use the network configuration that is there")
        }
        Ok(outcome @ (Outcome::Written | Outcome::Updated)) => {
            tracing::info!(dir = %dir.display(), ?outcome, "network configuration for nodelet-cni")
        }
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot write a network configuration; pods wait until there is one")
        }
    }
}

/// What the mode without a control plane starts from.
struct Parts<'a> {
    config: &'a Config,
    recorder: Recorder,
    shutdown: &'a CancellationToken,
    services: Option<ServiceHandle>,
    addresses: &'a [IpAddr],
}

/// Removes what the agent put into the kernel.
pub fn cleanup() -> anyhow::Result<()> {
    Ok(service::programmer::cleanup()?)
}

fn start_services(
    config: &Config,
    addresses: &[IpAddr],
    shutdown: &CancellationToken,
) -> anyhow::Result<ServiceHandle> {
    let handle = service::spawn(settings::services(config, addresses))?;
    let progress = ProxyProgress::new(config.proxy.sync_period);
    if let Some(address) = config.proxy.healthz {
        let routes = health::proxy_routes(progress);
        tokio::spawn(health::serve("healthz of the service half", address, routes, shutdown.clone()));
    }
    if let Some(address) = config.proxy.metrics {
        let routes = health::metrics_routes(String::new);
        tokio::spawn(health::serve("metrics of the service half", address, routes, shutdown.clone()));
    }
    Ok(handle)
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

/// A node without a control plane: manifests are the source of everything.
async fn run_alone(parts: Parts<'_>, manifests: &Path, service_cidrs: &[String]) -> anyhow::Result<Arc<Board>> {
    use crate::source::SourceName;
    use crate::source::manifest_dir::{self, AloneObjects, ManifestDir};
    let Parts { config, recorder, shutdown, services, addresses } = parts;
    let (objects_tx, changed_objects) = mpsc::unbounded_channel();
    let objects = Arc::new(AloneObjects::new(objects_tx));
    let (pod_updates, pod_updates_rx) = alone::PodUpdates::new();
    let (manifests_tx, mut manifest_pods) = mpsc::channel(256);
    let (services_tx, services_rx) = mpsc::unbounded_channel();
    let node_name = NodeName::new(&config.node_name);
    let source = ManifestDir::open(
        manifest_dir::Settings {
            dir: manifests.to_owned(),
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
    let joiner = alone::Alone::new(
        alone::Settings {
            service_cidrs: service_cidrs.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
            state_file: config.state_dir.join("alone.json"),
            node_name,
        },
        alone::Outputs {
            services: sink_or_nothing(services.as_ref().map(ServiceHandle::service_sink)),
            slices: sink_or_nothing(services.as_ref().map(ServiceHandle::slice_sink)),
            objects: objects.clone(),
            recorder: recorder.clone(),
        },
    );
    let view = joiner.view();
    let shown = move || {
        let snapshot = view.get();
        let json = |value: Result<serde_json::Value, serde_json::Error>| value.ok();
        let services = snapshot.services.iter().filter_map(|s| json(serde_json::to_value(s))).collect();
        (services, snapshot.slices.iter().filter_map(|s| json(serde_json::to_value(s))).collect())
    };
    let log_dir = config.kubelet.pod_logs_dir.clone();
    let board = Arc::new(Board::new(vec![Arc::new(pod_updates)], Box::new(shown), log_dir));
    let half = PodHalf::new(config, recorder, objects, board.clone(), addresses).await?;
    let sources = half.start([SourceName::Manifests].into(), changed_objects, shutdown);
    tokio::spawn(async move {
        while let Some(update) = manifest_pods.recv().await {
            if sources.send(update).is_err() {
                return;
            }
        }
    });
    tokio::spawn(joiner.run(services_rx, pod_updates_rx, shutdown.clone()));
    tokio::spawn(source.run(shutdown.clone()));
    Ok(board)
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
