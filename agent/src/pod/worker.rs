//! The worker of one pod: the only task that acts on it.
//!
//! ```text
//!  ┌─► snapshot ─► plan ─► start operations ─► publish status ─► wait ─┐
//!  │      messages (desired, runtime, probes, objects), outcomes, timer │
//!  └────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Operations run beside the loop, so that a delete never waits for a pull. Messages only wake: what is true is looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::action::{Action, Failure, ImageUse, KillReason, Op, OpKey, Output};
use super::admit::Rejection;
use super::execute::{Context, Extra, execute};
use super::expected::ExpectedExits;
use super::facilities::{PodVolumes, ProbeTarget};
use super::figures::Figures;
use super::images::Image;
use super::journal::Record;
use super::lifecycle::{Cause, Lifecycle};
use super::memory::{Eviction, Memory, finished_at};
use super::plan::plan;
use super::shared::Shared;
use super::start_slot::StartSlot;
use super::status;
use super::view::{PodView, ProbeView};
use super::{lifecycle, resize, spec};
use crate::cri::events::ChangeKind;
use crate::cri::{ContainerState, Known, Nanos, PodRuntime};
use crate::ids::PodUid;
use crate::source::SourceName;

mod outcome;
mod resizes;
mod tell;

/// Pause before a record that could not be written (the disk is full) is tried again.
const STORE_AGAIN: Nanos = 10 * lifecycle::SECOND;

/// What may wake a worker.
#[derive(Clone, Debug)]
pub enum Message {
    /// The pod is desired like this, with the resources that it was allocated.
    Desired(SourceName, Arc<Pod>),
    /// What became of a resize.
    Resize(resize::News),
    /// The source no longer names the pod.
    Unwanted,
    /// The runtime says that something of this pod changed.
    Runtime(String, ChangeKind),
    /// Events may have been missed: look at the runtime.
    Resync,
    /// A probe result changed.
    Probe,
    /// A ConfigMap, Secret or token of the pod changed.
    Objects,
    /// The node changed (its addresses): compute the status again.
    Node,
    /// The node does not let it go on.
    Evict(Eviction),
}

/// How a worker begins.
pub struct Start {
    /// Source of the pod.
    pub source: SourceName,
    /// The pod as desired, with the resources that it was allocated.
    pub pod: Arc<Pod>,
    /// What an earlier agent wrote down.
    pub record: Option<Record>,
    /// Whether the source names it. What only the runtime knows is not wanted.
    pub wanted: bool,
    /// Whether the runtime is known to have nothing of it, so that it need not be asked.
    pub is_fresh: bool,
    /// Why the node does not take it.
    pub rejection: Option<Rejection>,
    /// Set when the pod holds no resources of the node any more.
    pub released: Arc<AtomicBool>,
}

struct Worker {
    uid: PodUid,
    shared: Arc<Shared>,
    source: SourceName,
    pod: Arc<Pod>,
    wanted: bool,
    lifecycle: Lifecycle,
    runtime: PodRuntime,
    /// What an earlier agent knew of the runtime, until this one has looked.
    remembered: Known,
    memory: Memory,
    volumes: Arc<PodVolumes>,
    images: BTreeMap<ImageUse, Image>,
    started_at: Nanos,
    last: Arc<PodStatus>,
    adopted: Option<Arc<PodStatus>>,
    inflight: BTreeMap<OpKey, AbortHandle>,
    keys: BTreeSet<OpKey>,
    operations: JoinSet<(OpKey, u64, Result<Output, Failure>, Extra)>,
    /// Counts outcomes; an inspection that began before the last one has seen an older world.
    generation: u64,
    slot: Option<StartSlot>,
    look_again: bool,
    refresh_volumes: bool,
    announced: bool,
    /// When the record is to be written again, because it could not be.
    store_at: Option<Nanos>,
    expected: ExpectedExits,
    backoff_told: BTreeMap<String, Nanos>,
    figures: Figures,
    resize: resize::State,
    /// Failed pulls whose back-off was told: container, and when the next one is due.
    pull_backoff_told: BTreeMap<String, Nanos>,
    released: Arc<AtomicBool>,
}

/// Runs the worker until nothing of the pod is left, or the channel closes because the agent stops.
/// Answers true in the first case.
pub async fn run(shared: Arc<Shared>, start: Start, mut inbox: mpsc::UnboundedReceiver<Message>) -> bool {
    let mut worker = Worker::new(shared, start);
    worker.register_objects();
    worker.store();
    loop {
        let wake_at = worker.turn();
        if worker.lifecycle == Lifecycle::Removed {
            worker.shared.probes.remove(&worker.uid);
            worker.shared.objects.unregister(&worker.uid);
            worker.shared.journal.remove(&worker.uid);
            worker.shared.sink.forget(&worker.uid);
            return true;
        }
        let delay = wake_at.map(|at| Duration::from_nanos(u64::try_from(at - worker.now()).unwrap_or(0)));
        tokio::select! {
            // Cancel-safe: recv loses no message.
            message = inbox.recv() => match message {
                Some(message) => {
                    worker.hear(message);
                    while let Ok(more) = inbox.try_recv() {
                        worker.hear(more);
                    }
                }
                None => return false,
            },
            // Cancel-safe: join_next leaves unfinished operations in the set.
            Some(outcome) = worker.operations.join_next(), if !worker.operations.is_empty() => {
                worker.take(outcome);
            }
            () = sleep_or_forever(delay) => {}
        }
    }
}

async fn sleep_or_forever(delay: Option<Duration>) {
    match delay {
        // A millisecond more, so that the clock has passed the deadline when the plan looks at it.
        Some(delay) => tokio::time::sleep(delay + Duration::from_millis(1)).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    fn new(shared: Arc<Shared>, start: Start) -> Self {
        let uid = spec::uid(&start.pod);
        let api_status = start.pod.status.clone().unwrap_or_default();
        let now = (shared.clock)();
        let remembered = start.record.as_ref().map(Record::known).unwrap_or_default();
        let (lifecycle, started_at, last) = match start.record {
            Some(record) => (record.lifecycle, record.started_at, record.status),
            None => {
                let known = api_status.start_time.as_ref().map(|t| t.0.as_second() * lifecycle::SECOND);
                (Lifecycle::Syncing, known.unwrap_or(now), api_status)
            }
        };
        let lifecycle = match start.rejection {
            Some(rejection) => {
                let message = rejection.status_message();
                lifecycle::begin(Cause::Failed { reason: rejection.reason, message }, 0, now)
            }
            None => lifecycle,
        };
        let resize = resize::State::from_conditions(last.conditions.as_deref().unwrap_or_default());
        let last = Arc::new(last);
        let max_crash_delay = Some(shared.settings.max_crash_delay);
        // An orphan has no spec, so nothing can be allocated to it.
        let actuated = start.pod.spec.as_ref().and_then(|_| shared.actuated_or_allocated(&uid, &start.pod));
        let dead_containers = Some(shared.settings.dead_containers);
        let mut memory =
            Memory { max_crash_delay, dead_containers, actuated, observed: start.is_fresh, ..Memory::default() };
        memory.count_attempts_of(&last);
        Self {
            uid,
            source: start.source,
            pod: start.pod,
            wanted: start.wanted,
            lifecycle,
            runtime: PodRuntime::default(),
            remembered,
            memory,
            volumes: Arc::new(PodVolumes::default()),
            images: BTreeMap::new(),
            started_at,
            adopted: (!start.is_fresh).then(|| last.clone()),
            last,
            inflight: BTreeMap::new(),
            keys: BTreeSet::new(),
            operations: JoinSet::new(),
            generation: 0,
            slot: None,
            look_again: false,
            refresh_volumes: false,
            announced: false,
            store_at: None,
            expected: ExpectedExits::default(),
            backoff_told: BTreeMap::new(),
            figures: Figures::new(start.is_fresh, Instant::now()),
            resize,
            pull_backoff_told: BTreeMap::new(),
            released: start.released,
            shared,
        }
    }

    fn now(&self) -> Nanos {
        (self.shared.clock)()
    }

    /// One turn of the loop; answers when to turn again if nothing happens.
    fn turn(&mut self) -> Option<Nanos> {
        let now = self.now();
        self.sync_probes();
        let probes = self.probe_views();
        let view = self.view(&probes);
        let planned = plan(&view, now);
        let lifecycle_changed = planned.lifecycle != self.lifecycle;
        let stops = lifecycle_changed && self.lifecycle.may_start() && !planned.lifecycle.may_start();
        self.lifecycle = planned.lifecycle;
        if matches!(self.lifecycle, Lifecycle::Terminated(_) | Lifecycle::Removed)
            && !self.released.swap(true, Ordering::Relaxed)
        {
            self.shared.tell_freed();
        }
        self.figures.is_at(&self.lifecycle, self.wanted, &self.pod);
        let mut wake_at = planned.wake_at;
        if stops {
            self.figures.stopping();
            // The node's own rules lose the pod before its containers hear of the stop.
            self.shared.sink.terminating(&self.pod, &self.last);
            self.tell_deadline();
        }
        for action in planned.actions {
            match action {
                Action::Start(op) => self.begin(op, now),
                Action::Cancel(key) => self.cancel(&key),
            }
        }
        wake_at = earliest(wake_at, self.look(now));
        wake_at = earliest(wake_at, self.refresh(now));
        let starting = self.keys.iter().any(|k| matches!(k, OpKey::Sandbox | OpKey::Start(_) | OpKey::Volumes));
        if !starting {
            self.slot = None;
        }
        if self.keys.is_empty() {
            self.figures.rest(Instant::now());
        }
        let published = self.publish(now);
        let unwritten = self.store_at.is_some_and(|at| at <= now);
        if unwritten || (lifecycle_changed && !published) {
            self.store();
        }
        earliest(wake_at, self.store_at)
    }

    fn view<'a>(&'a self, probes: &'a BTreeMap<String, ProbeView>) -> PodView<'a> {
        PodView {
            pod: &self.pod,
            wanted: self.wanted,
            lifecycle: &self.lifecycle,
            runtime: &self.runtime,
            memory: &self.memory,
            inflight: &self.keys,
            probes,
            started_at: self.started_at,
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Desired(source, pod) => {
                // Labels and annotations may be in downward API volumes.
                let (old, new) = (&self.pod.metadata, &pod.metadata);
                self.refresh_volumes |= old.labels != new.labels || old.annotations != new.annotations;
                self.source = source;
                self.pod = pod;
                self.wanted = true;
                self.figures.updated();
                self.register_objects();
                self.store();
            }
            Message::Resize(news) => {
                if news == resize::News::Accepted {
                    // What failed for an earlier resize says nothing about this one.
                    self.memory.cleanup.remove(&OpKey::Resize);
                }
                self.resize.hear(news, self.pod.metadata.generation, self.now());
            }
            Message::Unwanted => self.wanted = false,
            Message::Runtime(id, kind) => self.hear_runtime(id, kind),
            Message::Resync => {
                self.look_again = true;
                self.memory.retry_now();
            }
            Message::Objects => self.hear_objects(),
            Message::Evict(eviction) => self.hear_eviction(eviction),
            Message::Probe | Message::Node => {}
        }
    }

    /// An event says something new unless the worker has already seen it through its own call.
    fn hear_runtime(&mut self, id: String, kind: ChangeKind) {
        let container = self.runtime.containers.iter().find(|c| c.id.as_str() == id);
        let sandbox = self.runtime.sandboxes.iter().find(|s| s.id.as_str() == id);
        let own_operation = !self.keys.is_empty();
        match kind {
            ChangeKind::Created | ChangeKind::Started if own_operation || container.is_some() || sandbox.is_some() => {}
            ChangeKind::Stopped if container.is_some_and(|c| c.is_exited()) || sandbox.is_some_and(|s| !s.ready) => {}
            ChangeKind::Deleted if container.is_none() && sandbox.is_none() => {}
            ChangeKind::Stopped => {
                let being_stopped = self.keys.iter().any(|k| match k {
                    OpKey::Kill(killed, _) => killed.as_str() == id,
                    OpKey::StopSandbox(stopped) => stopped.as_str() == id,
                    _ => false,
                });
                if !being_stopped {
                    self.expected.announce(id);
                    self.look_again = true;
                }
            }
            ChangeKind::Created | ChangeKind::Started | ChangeKind::Deleted | ChangeKind::OutOfMemory => {
                self.look_again = true;
            }
        }
    }

    fn hear_objects(&mut self) {
        self.refresh_volumes = true;
        // What failed for want of an object is tried at once.
        if let Some(failed) = match &mut self.memory.volumes {
            super::memory::Step::Failed(failed) => Some(failed),
            super::memory::Step::Todo | super::memory::Step::Done => None,
        } {
            failed.retry_at = 0;
        }
        for memory in self.memory.containers.values_mut() {
            if let Some(failed) = memory.start.as_mut().filter(|f| f.reason == "CreateContainerConfigError") {
                failed.retry_at = 0;
            }
        }
    }

    /// Starts an inspection when one is asked for and none is running; answers when to look again for an expected exit.
    fn look(&mut self, now: Nanos) -> Option<Nanos> {
        let is_starting = self.keys.iter().any(|key| matches!(key, OpKey::Sandbox | OpKey::Start(_)));
        let due = self.expected.is_due(&self.runtime, is_starting, now);
        if let Some(failed) = self.memory.cleanup.get(&OpKey::Inspect).filter(|failed| failed.retry_at > now) {
            return earliest(self.expected.next(now), self.look_again.then_some(failed.retry_at));
        }
        if (self.look_again || due) && !self.keys.contains(&OpKey::Inspect) && self.memory.observed {
            self.look_again = false;
            self.expected.looked(&self.runtime, is_starting, now);
            self.begin(Op::Inspect, now);
        }
        self.expected.next(now)
    }

    /// Brings volumes up to date when an object changed or a token has to be renewed.
    fn refresh(&mut self, now: Nanos) -> Option<Nanos> {
        if !self.lifecycle.may_start() || !self.memory.volumes.is_done() {
            return None;
        }
        let expires = self.volumes.refresh_at.is_some_and(|at| at <= now);
        if (self.refresh_volumes || expires) && !self.keys.contains(&OpKey::Volumes) {
            self.refresh_volumes = false;
            self.begin(Op::PrepareVolumes, now);
            return None;
        }
        self.volumes.refresh_at.filter(|at| *at > now)
    }

    fn begin(&mut self, op: Op, now: Nanos) {
        let key = op.key();
        let (mut image, mut target, mut stopping) = (None, None, None);
        match &op {
            Op::CreateSandbox { attempt } if *attempt > 0 => self.tell_sandbox_change(),
            Op::StartContainer { container, .. } => {
                image = self.images.get(&ImageUse::Container(container.clone())).cloned();
                let ended = self.runtime.latest(container).filter(|c| c.is_exited()).map(finished_at);
                if let Some(ended) = ended {
                    self.memory.note_restart(container, ended, now);
                }
                let found = spec::find(&self.pod, container);
                let joined = found.and_then(|f| f.target);
                target = joined.and_then(|name| self.runtime.current(&name).map(|c| c.id.clone()));
            }
            Op::KillContainer { id, .. } | Op::PreStop { id, .. } | Op::RemoveContainer(id) => {
                if let Op::KillContainer { container, reason, .. } = &op
                    && matches!(reason, KillReason::Resized | KillReason::DefinitionChanged)
                {
                    self.memory.note_change(container);
                }
                stopping = self.runtime.containers.iter().find(|c| c.id == *id).cloned();
            }
            _ => {}
        }
        let host_ips = self.shared.host_ips.load();
        let sandbox = self.runtime.sandbox();
        let context = Context {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            known: if self.memory.observed { Known::from(&self.runtime) } else { self.remembered.clone() },
            volumes: self.volumes.clone(),
            pod_ips: sandbox.map(|s| status::sort_by_family(&s.ips, host_ips.first())).unwrap_or_default(),
            sandbox: sandbox.filter(|_| !matches!(op, Op::CreateSandbox { .. })).cloned(),
            image,
            volume_images: self.volume_images(),
            target,
            status: self.last.clone(),
            stopping,
            running: match op {
                Op::Resize => self.running(),
                _ => Vec::new(),
            },
        };
        tracing::debug!(pod = %spec::key(&self.pod), operation = ?op, "begin");
        self.figures.begin(Instant::now());
        let generation = self.generation;
        let task_key = key.clone();
        let task = self.operations.spawn(async move {
            let (result, extra) = execute(context, op).await;
            (task_key, generation, result, extra)
        });
        self.keys.insert(key.clone());
        self.inflight.insert(key, task);
    }

    /// Images of image volumes that are there, by volume name.
    fn volume_images(&self) -> BTreeMap<String, Image> {
        let volume = |(for_use, image): (&ImageUse, &Image)| match for_use {
            ImageUse::Volume(name) => Some((name.clone(), image.clone())),
            ImageUse::Container(_) => None,
        };
        self.images.iter().filter_map(volume).collect()
    }

    fn cancel(&mut self, key: &OpKey) {
        if let Some(task) = self.inflight.remove(key) {
            task.abort();
            self.keys.remove(key);
        }
    }

    /// Runs the probes of the containers that run, and no others.
    fn sync_probes(&mut self) {
        if !self.memory.observed {
            return;
        }
        let running = self.runtime.containers.iter().filter_map(|c| match c.state {
            ContainerState::Running { started_at } => {
                Some(ProbeTarget { name: c.name.clone(), id: c.id.clone(), started_at })
            }
            ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => None,
        });
        let running: Vec<ProbeTarget> = running.collect();
        let ips = self.pod_ips();
        let is_stopping = !self.lifecycle.may_start() || spec::is_deleted(&self.pod);
        self.shared.probes.ensure(&self.pod, &ips, running, is_stopping);
    }

    fn pod_ips(&self) -> Vec<String> {
        if spec::host_network(&self.pod) {
            return self.shared.host_ips.load().as_ref().clone();
        }
        let host_ips = self.shared.host_ips.load();
        self.runtime.sandbox().map(|s| status::sort_by_family(&s.ips, host_ips.first())).unwrap_or_default()
    }

    fn probe_views(&self) -> BTreeMap<String, ProbeView> {
        let running = self.runtime.containers.iter().filter(|c| c.is_running());
        running.map(|c| (c.name.clone(), self.shared.probes.view(&self.pod, c))).collect()
    }
}

fn earliest(a: Option<Nanos>, b: Option<Nanos>) -> Option<Nanos> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
