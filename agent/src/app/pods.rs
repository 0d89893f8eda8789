//! The pod half: everything that running pods takes, built and then started.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::board::Troubles;
use super::facilities::{self, NodeFacilities};
use super::network::Network;
use super::{enforce, runtime_health, settings, start_checks};
use crate::cgroup::{self, Cgroups};
use crate::config::Config;
use crate::cri::{Runtime, events};
use crate::event::Recorder;
use crate::ids::PodUid;
use crate::node::{RuntimeHealth, facts as machine, oom};
use crate::objects::Objects;
use crate::pod::admit;
use crate::pod::allocation::checkpoint::{self, Checkpoint};
use crate::pod::facilities::StatusSink;
use crate::pod::images::Images;
use crate::pod::journal::Journal;
use crate::pod::manager::census::Question;
use crate::pod::manager::{Inputs, Manager};
use crate::pod::shared::{self, Shared};
use crate::probe::{self, Prober};
use crate::source::{SourceName, SourceUpdate};
use crate::volume::{self, Volumes};

/// The pod half, built and not yet running.
pub struct PodHalf {
    shared: Arc<Shared>,
    prober: Arc<Prober>,
    cgroups: Cgroups,
    volumes: Volumes,
    probes: mpsc::UnboundedReceiver<PodUid>,
    announced: mpsc::UnboundedReceiver<PodUid>,
    health: watch::Sender<RuntimeHealth>,
    network: Network,
    node_changed: (mpsc::Sender<()>, mpsc::Receiver<()>),
    freed: mpsc::UnboundedReceiver<()>,
    questions: (mpsc::Sender<Question>, mpsc::Receiver<Question>),
}

/// What the kubelet API shows of the pod half.
#[derive(Clone)]
pub struct Served {
    /// The runtime.
    pub runtime: Runtime,
    /// Probes.
    pub prober: Arc<Prober>,
    /// The cgroup tree.
    pub cgroups: Cgroups,
    /// Volumes.
    pub volumes: Volumes,
}

/// The addresses that pods show as those of their host.
pub struct HostAddresses {
    shared: Arc<Shared>,
    changed: mpsc::Sender<()>,
}

impl HostAddresses {
    /// Other ones; every pod computes its status again.
    pub fn set(&self, addresses: &[IpAddr]) {
        self.shared.host_ips.store(Arc::new(addresses.iter().map(ToString::to_string).collect()));
        // One wake that waits is as good as two.
        let _ = self.changed.try_send(());
    }
}

impl PodHalf {
    /// Waits for the runtime and prepares directories and cgroups. `health` is told how the runtime does; `shutdown` ends what
    /// is tried again.
    pub async fn new(
        config: &Config,
        recorder: Recorder,
        objects: Arc<dyn Objects>,
        sink: Arc<dyn StatusSink>,
        addresses: &[IpAddr],
        health: watch::Sender<RuntimeHealth>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let kubelet = &config.kubelet;
        let images = kubelet.image_endpoint.clone().unwrap_or_else(|| kubelet.runtime_endpoint.clone());
        let runtime = Runtime::new(kubelet.runtime_endpoint.clone(), images, kubelet.runtime_timeout);
        let version = wait_for_runtime(&runtime).await;
        // Known before the first pod: what the runtime can do decides how pods are made.
        if let Ok(status) = runtime.status().await {
            health.send_replace(RuntimeHealth::from_cri(&version, &status));
        }
        let machine = machine::read(&config.root_dir);
        let hierarchies = cgroup::Hierarchies::detect()?;
        let cgroups = Cgroups::new(settings::cgroups(config, &machine, driver(&runtime).await, &hierarchies))?;
        cgroups.ensure_roots().await.context("cannot make the cgroups of pods")?;
        start_checks::warn_of_swap(&machine, &recorder);
        enforce::start(&cgroups, &settings::reserved(config), &recorder, shutdown).await?;
        // kubelet gives a pod 2 min 3 s for its volumes before it says so.
        let volume_settings =
            volume::Settings { root_dir: config.root_dir.clone(), deadline: Duration::from_secs(123) };
        let volumes = Volumes::new(volume_settings, objects.clone(), recorder.clone())?;
        let (probes_tx, probes) = mpsc::unbounded_channel();
        let (announced_tx, announced) = mpsc::unbounded_channel();
        let (freed_tx, freed) = mpsc::unbounded_channel();
        let prober =
            Prober::new(probe::Settings::default(), facilities::exec(runtime.clone()), probes_tx, recorder.clone());
        let prober = Arc::new(prober);
        let images =
            Images::new(runtime.clone(), settings::images(config)).context("cannot keep records of image pulls")?;
        images.recover().await;
        let settings = settings::pods(config);
        for directory in [Some(&settings.log_dir), settings.container_links.as_ref()].into_iter().flatten() {
            std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let node = Arc::new(ArcSwap::from_pointee(super::settings::admission(config, &machine)));
        let shared = Arc::new(Shared {
            images,
            runtime,
            objects,
            facilities: Arc::new(NodeFacilities {
                volumes: volumes.clone(),
                cgroups: cgroups.clone(),
                allocatable: super::settings::allocatable(config, &machine),
                node: node.clone(),
                health: health.subscribe(),
            }),
            probes: prober.clone(),
            sink,
            recorder,
            journal: Journal::open(config.state_dir.join("pods"))?,
            allocated: Checkpoint::open(&config.root_dir, checkpoint::ALLOCATED)?,
            actuated: Checkpoint::open(&config.root_dir, checkpoint::ACTUATED)?,
            freed: freed_tx,
            settings,
            node,
            host_ips: ArcSwap::from_pointee(addresses.iter().map(ToString::to_string).collect()),
            runtime_name: ArcSwap::from_pointee(version.runtime_name),
            announced: announced_tx,
            clock: shared::now,
            start_slots: Arc::new(Semaphore::new(2 * machine.cpus as usize)),
        });
        Ok(Self {
            network: Network::new(shared.runtime.clone(), config.cni_conf_dir.as_deref()),
            shared,
            prober,
            cgroups,
            volumes,
            probes,
            announced,
            health,
            node_changed: mpsc::channel(1),
            freed,
            questions: mpsc::channel(4),
        })
    }

    /// Where other addresses of the node are told.
    pub fn host_addresses(&self) -> HostAddresses {
        HostAddresses { shared: self.shared.clone(), changed: self.node_changed.0.clone() }
    }

    /// What pods are admitted against.
    pub fn admission(&self) -> Arc<ArcSwap<admit::Node>> {
        self.shared.node.clone()
    }

    /// What the kubelet API shows.
    pub fn served(&self) -> Served {
        Served {
            runtime: self.runtime(),
            prober: self.prober.clone(),
            cgroups: self.cgroups.clone(),
            volumes: self.volumes.clone(),
        }
    }

    /// Tells what is wrong with the runtime and with the agent's own records.
    pub fn troubles(&self) -> Troubles {
        let (health, shared) = (self.health.subscribe(), self.shared.clone());
        Box::new(move || {
            let health = health.borrow();
            let runtime = health.runtime_ready.clone().err();
            // Without a runtime nobody knows about the network.
            let network = health.network_ready.clone().err().filter(|_| runtime.is_none());
            runtime.into_iter().chain(network).chain(shared.journal.trouble()).collect()
        })
    }

    /// What all workers share.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Where the manager is asked.
    pub fn questions(&self) -> mpsc::Sender<Question> {
        self.questions.0.clone()
    }

    /// The runtime.
    pub fn runtime(&self) -> Runtime {
        self.shared.runtime.clone()
    }

    /// Starts events and the manager; answers where sources send their pods.
    pub fn start(
        self,
        awaited: BTreeSet<SourceName>,
        objects: mpsc::UnboundedReceiver<PodUid>,
        shutdown: &CancellationToken,
    ) -> mpsc::UnboundedSender<SourceUpdate> {
        let (sources_tx, sources) = mpsc::unbounded_channel();
        let (raw_tx, raw) = mpsc::channel(256);
        let (runtime_tx, runtime) = mpsc::channel(256);
        let client = self.shared.runtime.clone();
        tokio::spawn(events::run(client.clone(), raw_tx, shutdown.clone()));
        tokio::spawn(oom::run(self.shared.recorder.clone(), shutdown.clone()));
        tokio::spawn(self.network.clone().tidy(self.shared.recorder.clone(), shutdown.clone()));
        let health = runtime_health::run(client, self.network, raw, runtime_tx, self.health, shutdown.clone());
        tokio::spawn(health);
        let (probes, announced, node) = (self.probes, self.announced, self.node_changed.1);
        let (freed, questions) = (self.freed, self.questions.1);
        let inputs = Inputs { sources, runtime, probes, objects, announced, node, freed, questions };
        let manager = Manager::new(self.shared, awaited);
        tokio::spawn(manager.run(inputs, shutdown.clone()));
        sources_tx
    }
}

/// Waits for the runtime to answer; an agent that starts before it is usual at boot.
async fn wait_for_runtime(runtime: &Runtime) -> nodelet_proto::cri::VersionResponse {
    let mut delay = Duration::from_millis(100);
    loop {
        match runtime.version().await {
            Ok(version) => {
                tracing::info!(name = %version.runtime_name, version = %version.runtime_version, "container runtime");
                return version;
            }
            Err(error) => {
                tracing::warn!(%error, socket = %runtime.socket().display(), "waiting for the container runtime");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(5));
            }
        }
    }
}

/// The runtime's cgroup driver, where it says (KEP-4033); an older one does not know the call.
async fn driver(runtime: &Runtime) -> Option<cgroup::Driver> {
    match runtime.runtime_config().await {
        Ok(answer) => answer.linux.map(|linux| match linux.cgroup_driver() {
            nodelet_proto::cri::CgroupDriver::Systemd => cgroup::Driver::Systemd,
            nodelet_proto::cri::CgroupDriver::Cgroupfs => cgroup::Driver::Cgroupfs,
        }),
        Err(_) => None,
    }
}
