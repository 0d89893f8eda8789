//! Keeps the Node object true: registration, its own watch, status and lease.
//!
//! ```text
//!  wait for {runtime, extras, shutdown, own Node, timer} ─► status::build ─► patch::urgency
//!      Now ─► PATCH at once    Soon ─► PATCH within the update period    Nothing ─► PATCH when the report is due
//! ```
//! Facts and addresses are read again with each report (five minutes), and when the kernel announces other addresses; while
//! no address can be found with each update, since nobody announces what DNS says.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio::time::Instant;

use super::facts::{self, MachineFacts};
use super::lease::LeaseState;
use super::patch::{self, Urgency};
use super::status::{Inputs, build};
use super::{NodeExtras, NodeSettings, RuntimeHealth, address, lease, register};
use crate::api::client::ApiClient;
use crate::api::watch::{Backoff, ListState, WatchHandle, error_text, spawn_watch};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::NodeName;
use crate::watch::{WatchEvent, WatchSink};

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long the first status waits for the runtime's first answer.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(10);
/// A network that comes up changes addresses several times in a row.
const SETTLE: Duration = Duration::from_millis(200);
/// Least time between two writes: an admission webhook that undoes ours must not turn this into a busy loop.
const MIN_GAP: Duration = Duration::from_millis(500);

/// What the node task listens to.
pub struct NodeInputs {
    /// Filled from CRI.
    pub runtime: watch::Receiver<RuntimeHealth>,
    /// Filled by eviction, volumes, images and devices.
    pub extras: watch::Receiver<NodeExtras>,
    /// Whether the machine is shutting down.
    pub shutdown: watch::Receiver<bool>,
    /// Counts changes of the machine's addresses: see [`address::changes`].
    pub addresses: watch::Receiver<u64>,
    /// For NodeReady, NodeHasSufficientMemory, Rebooted and the like.
    pub events: Recorder,
}

/// The running node tasks; dropping it ends them.
pub struct NodeHandle {
    node: watch::Receiver<Option<Arc<Node>>>,
    lease: watch::Receiver<LeaseState>,
    own: WatchHandle,
    task: tokio::task::AbortHandle,
}

impl NodeHandle {
    /// The own Node object as the API server has it; `None` until it has been seen, and after it was deleted.
    pub fn node(&self) -> watch::Receiver<Option<Arc<Node>>> {
        self.node.clone()
    }

    /// State of the lease.
    pub fn lease(&self) -> watch::Receiver<LeaseState> {
        self.lease.clone()
    }

    /// State of the watch of the own Node.
    pub fn list_state(&self) -> watch::Receiver<ListState> {
        self.own.state()
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts registration, own watch, heartbeat and lease.
pub fn spawn(client: ApiClient, settings: Arc<NodeSettings>, inputs: NodeInputs) -> NodeHandle {
    let (lease_tx, lease) = watch::channel(LeaseState::Starting);
    let (own, node) = watch_own(&client, &settings.name);
    let task = tokio::spawn(run(client, settings, inputs, node.clone(), lease_tx)).abort_handle();
    NodeHandle { node, lease, own, task }
}

/// Follows the own Node; `None` until it has been seen, and after it was deleted.
pub fn watch_own(client: &ApiClient, name: &NodeName) -> (WatchHandle, watch::Receiver<Option<Arc<Node>>>) {
    let (tx, node) = watch::channel(None);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    (spawn_watch(Api::<Node>::all(client.kube()), config, OwnNode { tx, listed: None }), node)
}

/// Keeps the newest own Node.
struct OwnNode {
    tx: watch::Sender<Option<Arc<Node>>>,
    listed: Option<Arc<Node>>,
}

impl WatchSink<Node> for OwnNode {
    fn handle(&mut self, event: WatchEvent<Node>) {
        let slim = |mut node: Node| {
            node.metadata.managed_fields = None;
            Some(Arc::new(node))
        };
        match event {
            WatchEvent::Restart => self.listed = None,
            WatchEvent::InitApply(node) => self.listed = slim(node),
            WatchEvent::InitDone => drop(self.tx.send_replace(self.listed.take())),
            WatchEvent::Apply(node) => drop(self.tx.send_replace(slim(node))),
            WatchEvent::Delete(_) => drop(self.tx.send_replace(None)),
        }
    }
}

/// What is known about the machine, and when it was read.
struct Machine {
    facts: MachineFacts,
    addresses: Result<Vec<IpAddr>, String>,
    read_at: Instant,
}

impl Machine {
    async fn read(settings: &NodeSettings) -> Self {
        let net = address::local().await.unwrap_or_else(|error| {
            tracing::warn!(error, "cannot list addresses of this machine");
            address::LocalNet::default()
        });
        let resolved: Vec<IpAddr> = match settings.node_ips.is_empty() {
            // A resolver that hangs must not hold the heartbeat.
            true => {
                tokio::time::timeout(Duration::from_secs(2), tokio::net::lookup_host((settings.hostname.as_str(), 0)))
                    .await
                    .ok()
                    .and_then(Result::ok)
                    .map(|found| found.map(|socket| socket.ip()).collect())
                    .unwrap_or_default()
            }
            false => Vec::new(),
        };
        let addresses = address::choose(settings.name.as_str(), &settings.node_ips, &resolved, &net);
        Self {
            facts: facts::read(&settings.root_dir),
            addresses: addresses.map_err(|error| error.to_string()),
            read_at: Instant::now(),
        }
    }
}

async fn run(
    client: ApiClient,
    settings: Arc<NodeSettings>,
    mut inputs: NodeInputs,
    mut own: watch::Receiver<Option<Arc<Node>>>,
    lease_state: watch::Sender<LeaseState>,
) {
    let mut machine = Machine::read(&settings).await;
    let node = register::register(client.kube(), &settings, || current(&settings, &machine, &inputs, None)).await;
    report_reboot(&settings, &machine, &node, &inputs.events);
    let lease = lease::run(client.clone(), settings.name.clone(), settings.lease_duration, node.clone(), lease_state);
    let lease = AbortOnDrop(tokio::spawn(lease).abort_handle());
    // A restarted agent must not make a node NotReady only because it has not asked the runtime yet.
    let known = inputs.runtime.wait_for(|runtime| *runtime != RuntimeHealth::unknown());
    if let Ok(Err(_)) = tokio::time::timeout(RUNTIME_PATIENCE, known).await {
        return;
    }
    let api: Api<Node> = Api::all(client.kube());
    let mut node = Arc::new(node);
    let mut sent_at: Option<Instant> = None;
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        if let Some(seen) = own.borrow_and_update().clone()
            && version(&seen) > version(&node)
        {
            node = seen;
        }
        inputs.runtime.borrow_and_update();
        inputs.extras.borrow_and_update();
        inputs.shutdown.borrow_and_update();
        let base = node.status.clone().unwrap_or_default();
        let new = current(&settings, &machine, &inputs, Some(&base));
        let due = due(patch::urgency(&base, &new), sent_at, &settings);
        if due <= Instant::now() {
            match send(&api, &settings, &base, &new).await {
                Ok(answer) => {
                    report_transitions(&settings, &base, &new, &inputs.events);
                    node = Arc::new(answer);
                    sent_at = Some(Instant::now());
                    backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
                }
                Err(error) => {
                    tracing::warn!(node = %settings.name, error = error_text(&error), "cannot write the node status");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
            continue;
        }
        let stale = if machine.addresses.is_ok() { settings.status_report } else { settings.status_update };
        let read_again = machine.read_at + stale;
        // Each arm only waits; a change that is seen by none of them is still there in the next round.
        let closed = tokio::select! {
            changed = inputs.runtime.changed() => changed.is_err(),
            changed = inputs.extras.changed() => changed.is_err(),
            changed = inputs.shutdown.changed() => changed.is_err(),
            changed = own.changed() => changed.is_err(),
            Ok(()) = inputs.addresses.changed() => {
                tokio::time::sleep(SETTLE).await;
                inputs.addresses.borrow_and_update();
                machine = Machine::read(&settings).await;
                false
            }
            () = tokio::time::sleep_until(due) => false,
            () = tokio::time::sleep_until(read_again) => {
                machine = Machine::read(&settings).await;
                false
            }
        };
        if closed {
            // Its senders live as long as the agent: it is being taken down.
            drop(lease);
            return;
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// When a difference of this urgency is to be sent.
fn due(urgency: Urgency, sent_at: Option<Instant>, settings: &NodeSettings) -> Instant {
    let Some(sent_at) = sent_at else { return Instant::now() };
    match urgency {
        Urgency::Now => sent_at + MIN_GAP,
        Urgency::Soon => sent_at + settings.status_update,
        Urgency::Nothing => sent_at + settings.status_report,
    }
}

fn version(node: &Node) -> u64 {
    node.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn current(
    settings: &NodeSettings,
    machine: &Machine,
    inputs: &NodeInputs,
    previous: Option<&NodeStatus>,
) -> NodeStatus {
    // The API has whole seconds; anything finer would look like a change.
    let now = k8s_openapi::jiff::Timestamp::now();
    let now = Time(k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now));
    build(&Inputs {
        settings,
        facts: &machine.facts,
        addresses: &machine.addresses,
        runtime: &inputs.runtime.borrow(),
        extras: &inputs.extras.borrow(),
        shutting_down: *inputs.shutdown.borrow(),
        previous,
        now: &now,
    })
}

async fn send(
    api: &Api<Node>,
    settings: &NodeSettings,
    base: &NodeStatus,
    new: &NodeStatus,
) -> Result<Node, kube::Error> {
    let patch = Patch::Strategic(patch::build(base, new));
    api.patch_status(settings.name.as_str(), &PatchParams::default(), &patch).await
}

fn emit(events: &Recorder, kind: EventType, reason: &'static str, message: String) {
    events.emit(Event { subject: Subject::Node, kind, reason, message });
}

fn report_reboot(settings: &NodeSettings, machine: &Machine, node: &Node, events: &Recorder) {
    let before = node.status.as_ref().and_then(|status| status.node_info.as_ref()).map(|info| info.boot_id.as_str());
    let now = &machine.facts.boot_id;
    if before.is_some_and(|before| !before.is_empty() && before != now) {
        let message = format!("Node {} has been rebooted, boot id: {now}", settings.name);
        emit(events, EventType::Warning, "Rebooted", message);
    }
}

fn report_transitions(settings: &NodeSettings, base: &NodeStatus, new: &NodeStatus, events: &Recorder) {
    for condition in new.conditions.iter().flatten() {
        let before = base.conditions.iter().flatten().find(|old| old.type_ == condition.type_);
        if before.is_some_and(|before| before.status == condition.status) {
            continue;
        }
        let reason = match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready", "True") => "NodeReady",
            ("Ready", _) => "NodeNotReady",
            ("MemoryPressure", "True") => "NodeHasInsufficientMemory",
            ("MemoryPressure", _) => "NodeHasSufficientMemory",
            ("DiskPressure", "True") => "NodeHasDiskPressure",
            ("DiskPressure", _) => "NodeHasNoDiskPressure",
            ("PIDPressure", "True") => "NodeHasInsufficientPID",
            ("PIDPressure", _) => "NodeHasSufficientPID",
            _ => continue,
        };
        emit(events, EventType::Normal, reason, format!("Node {} status is now: {reason}", settings.name));
    }
}
