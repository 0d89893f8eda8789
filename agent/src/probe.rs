//! Startup, liveness and readiness probes.
//!
//! ```text
//!  pod worker ── ensure(pod, ips, running) ─► Prober ── one task per probe ─► http · tcp · grpc · exec
//!       ▲                                                 │
//!       └────────── PodUid, when a published result changed ◄── state::Machine (pure: thresholds, delays, gating)
//! ```
//!
//! - A probe's task sleeps on tokio's timer wheel until its next turn; between turns nothing runs.
//! - Results belong to a container ID. A new ID starts afresh, with kubelet's initial values: not ready, alive, not started.
//! - The first probe comes right after the start (plus `initialDelaySeconds`). Only probes of adopted containers are spread
//!   over one period, because a restarted agent would otherwise send all of them at once.
//! - `timeoutSeconds` counts from the moment of sending. A probe that this process was too busy to serve says nothing about the
//!   container and is inconclusive; so is one that could not be sent at all (no exec slot, runtime away).
//! - What it does not do: kill or restart. It publishes results; the pod plan decides.
//!
//! Sources: KEP-950 (startup probes), KEP-2727 (gRPC), KEP-1972 (exec timeouts), `pkg/kubelet/prober` of Kubernetes 1.37.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::event::{Recorder, Subject};
use crate::ids::{ContainerId, ObjectKey, PodUid};
use crate::metrics::text::Text;

mod exec;
mod figures;
mod grpc;
mod http;
mod pods;
mod spec;
mod state;
mod tcp;
#[cfg(test)]
mod tests;
mod worker;

use figures::Figures;

pub(crate) use http::{NO_TLS, Page, fetch};
pub(crate) use spec::resolve_port;

pub use exec::{ExecError, ExecFn, ExecOutcome};
pub use spec::{Handler, ProbeSpec};
pub use state::{Machine, Outcome};

/// Which probe of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Holds back the other two until it succeeded once.
    Startup,
    /// Its failure restarts the container.
    Liveness,
    /// Decides whether the container is Ready.
    Readiness,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// The word that begins event messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Startup => 0,
            Self::Liveness => 1,
            Self::Readiness => 2,
        }
    }
}

/// What a probe says at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeResult {
    /// Not decided yet.
    #[default]
    Unknown,
    /// It succeeded `successThreshold` times in a row.
    Success,
    /// It failed `failureThreshold` times in a row, or has never succeeded (readiness).
    Failure,
}

/// How the prober behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `major.minor` of the implemented Kubernetes level, for `User-Agent: kube-probe/1.37`.
    pub version: String,
    /// Exec probes that may run at once; each costs the runtime a process and a shim call.
    pub exec_concurrency: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { version: "1.37".to_owned(), exec_concurrency: (2 * cores).max(4) }
    }
}

/// A running container and its probes.
#[derive(Clone, Debug)]
pub struct ContainerProbes {
    /// Its name.
    pub name: String,
    /// The runtime's id.
    pub id: ContainerId,
    /// When it was started.
    pub started_at: Instant,
    /// It stands in `spec.initContainers` (a sidecar).
    pub init: bool,
    /// Its probes; empty is possible.
    pub probes: Vec<ProbeSpec>,
}

/// The running containers of a pod.
#[derive(Clone, Debug)]
pub struct PodProbes {
    /// UID of the pod.
    pub uid: PodUid,
    /// Namespace and name, for events.
    pub key: ObjectKey,
    /// Where network probes go when they name no host. `None` until the pod has an address.
    pub pod_ip: Option<String>,
    /// Its running containers; a container that is not named is no longer probed.
    pub containers: Vec<ContainerProbes>,
    /// The pod is being stopped: whether it is ready still counts, but nothing is restarted any more.
    pub is_stopping: bool,
}

/// Results of one container, by [`Kind::index`].
type Results = Arc<Mutex<[ProbeResult; 3]>>;

/// What is shared by the probes of one container.
struct Running {
    id: ContainerId,
    results: Results,
    gate: Arc<watch::Sender<bool>>,
    tasks: Vec<(Kind, tokio::task::AbortHandle)>,
}

impl Running {
    /// Ends what could restart the container; as under kubelet it counts as started and alive from now on.
    fn leave_only_readiness(&mut self) {
        self.tasks.retain(|(kind, task)| {
            if *kind != Kind::Readiness {
                task.abort();
                worker::set(&self.results, *kind, ProbeResult::Success);
            }
            *kind == Kind::Readiness
        });
        self.gate.send_replace(true);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}

struct PodEntry {
    key: ObjectKey,
    /// By container and probe: they stay when a container starts again.
    figures: BTreeMap<(String, Kind), Arc<Figures>>,
    ip: watch::Sender<Option<String>>,
    containers: BTreeMap<String, Running>,
}

#[derive(Default)]
struct Table {
    pods: HashMap<PodUid, PodEntry>,
    /// Results from before a restart of the agent, until `ensure` takes them over.
    seeds: HashMap<PodUid, HashMap<(ContainerId, Kind), ProbeResult>>,
}

/// What all probe tasks use.
pub(crate) struct Tools {
    exec: ExecFn,
    exec_slots: Semaphore,
    user_agent: String,
    recorder: Recorder,
    tls: tokio_rustls::TlsConnector,
}

/// Runs probes. Cheap to share.
pub struct Prober {
    tools: Arc<Tools>,
    changed: mpsc::UnboundedSender<PodUid>,
    table: Mutex<Table>,
}

impl Prober {
    /// A prober that reports on `changed` the pod whose published results changed. It must live inside a tokio runtime.
    pub fn new(settings: Settings, exec: ExecFn, changed: mpsc::UnboundedSender<PodUid>, recorder: Recorder) -> Self {
        let tools = Tools {
            exec,
            exec_slots: Semaphore::new(settings.exec_concurrency.max(1)),
            user_agent: format!("kube-probe/{}", settings.version),
            recorder,
            tls: http::unverified_tls(),
        };
        Self { tools: Arc::new(tools), changed, table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing panics under this lock, and the table is whole after each statement.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the probes of exactly these containers. Idempotent: a container that is already probed under its ID is left alone.
    pub fn ensure(&self, pod: PodProbes) {
        let mut table = self.lock();
        let mut seeds = table.seeds.remove(&pod.uid).unwrap_or_default();
        let entry = table.pods.entry(pod.uid.clone()).or_insert_with(|| PodEntry {
            key: pod.key.clone(),
            figures: BTreeMap::new(),
            ip: watch::Sender::new(None),
            containers: BTreeMap::new(),
        });
        entry.ip.send_if_modified(|ip| {
            let differs = *ip != pod.pod_ip;
            ip.clone_from(&pod.pod_ip);
            differs
        });
        entry.containers.retain(|name, old| pod.containers.iter().any(|c| c.name == *name && c.id == old.id));
        for container in &pod.containers {
            if !entry.containers.contains_key(&container.name) {
                let running = self.start(&pod, container, entry, &mut seeds);
                entry.containers.insert(container.name.clone(), running);
            }
        }
        if pod.is_stopping {
            entry.containers.values_mut().for_each(Running::leave_only_readiness);
        }
    }

    fn start(
        &self,
        pod: &PodProbes,
        container: &ContainerProbes,
        entry: &mut PodEntry,
        seeds: &mut HashMap<(ContainerId, Kind), ProbeResult>,
    ) -> Running {
        let mut seed = |kind| seeds.remove(&(container.id.clone(), kind));
        let seeded = Kind::ALL.map(&mut seed);
        let has_startup = container.probes.iter().any(|p| p.kind == Kind::Startup);
        let open = !has_startup || seeded[Kind::Startup.index()] == Some(ProbeResult::Success);
        let gate = Arc::new(watch::Sender::new(open));
        let results: Results = Arc::default();
        let list = if container.init { "initContainers" } else { "containers" };
        let mut tasks = Vec::new();
        for probe in &container.probes {
            let seed = seeded[probe.kind.index()];
            let now = Instant::now();
            let adopted = seeded.iter().any(Option::is_some);
            let jitter = if adopted { spread(&container.id, probe.kind, probe.period) } else { Duration::ZERO };
            let machine = Machine::new(probe.clone(), container.started_at, open, seed, jitter, now);
            worker::set(&results, probe.kind, machine.result());
            let task = worker::Worker {
                tools: self.tools.clone(),
                changed: self.changed.clone(),
                uid: pod.uid.clone(),
                subject: Subject::Pod {
                    key: pod.key.clone(),
                    uid: pod.uid.clone(),
                    field_path: format!("spec.{list}{{{}}}", container.name),
                },
                container: container.id.clone(),
                results: results.clone(),
                gate: gate.clone(),
                ip: entry.ip.subscribe(),
                figures: entry
                    .figures
                    .entry((container.name.clone(), probe.kind))
                    .or_insert_with(|| Arc::new(Figures::new()))
                    .clone(),
                probe: probe.clone(),
            };
            tasks.push((probe.kind, tokio::spawn(task.run(machine)).abort_handle()));
        }
        Running { id: container.id.clone(), results, gate, tasks }
    }

    /// Writes `/metrics/probes`.
    pub fn write_figures(&self, text: &mut Text) {
        figures::write(&self.lock(), text);
    }

    /// Ends all probes of a pod and forgets their results.
    pub fn remove(&self, uid: &PodUid) {
        let mut table = self.lock();
        table.pods.remove(uid);
        table.seeds.remove(uid);
    }

    /// What a probe says now; `Unknown` when it is not running.
    pub fn result(&self, uid: &PodUid, container: &str, id: &ContainerId, kind: Kind) -> ProbeResult {
        let table = self.lock();
        let running = table.pods.get(uid).and_then(|p| p.containers.get(container)).filter(|c| c.id == *id);
        running.map_or(ProbeResult::Unknown, |c| worker::get(&c.results, kind))
    }

    /// Tells a result from before a restart of the agent; it counts until the probe has decided anew. Has no effect once
    /// `ensure` runs the probe.
    pub fn seed(&self, uid: &PodUid, id: &ContainerId, kind: Kind, result: ProbeResult) {
        self.lock().seeds.entry(uid.clone()).or_default().insert((id.clone(), kind), result);
    }
}

/// A moment of the first period that is different for each probe and the same after each restart.
fn spread(id: &ContainerId, kind: Kind, period: Duration) -> Duration {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (id, kind).hash(&mut hasher);
    period.mul_f64((hasher.finish() % 1000) as f64 / 1000.0)
}

/// The probes of a container in the order startup, liveness, readiness.
pub fn container_probes(container: &Container) -> Vec<ProbeSpec> {
    let declared = [
        (Kind::Startup, &container.startup_probe),
        (Kind::Liveness, &container.liveness_probe),
        (Kind::Readiness, &container.readiness_probe),
    ];
    declared.into_iter().filter_map(|(kind, probe)| Some(ProbeSpec::new(kind, probe.as_ref()?, container))).collect()
}

/// The container, and whether it is an init container.
fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<(&'a Container, bool)> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten().map(|c| (c, true));
    init.chain(spec.containers.iter().map(|c| (c, false))).find(|(c, _)| c.name == name)
}
