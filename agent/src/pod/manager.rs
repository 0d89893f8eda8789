//! The pod manager: one worker for each pod, and every message to the worker that it concerns.
//!
//! It also decides what is nobody's: pods that only the runtime knows are stopped, and what no worker stands for on disk
//! is removed, but only after every source has delivered once, because until then absence says nothing. Looks at the runtime
//! as a whole run beside the loop ([`look`]): a list that hangs holds up no pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::journal::Record;
use super::leftovers::{self, Found, Left};
use super::resize;
use super::shared::Shared;
use super::worker::{self, Message, Start};
use super::{lifecycle, spec};
use crate::cri::events::ChangeKind;
use crate::cri::{PodIdentity, RuntimeEvent, RuntimePods};
use crate::ids::PodUid;
use crate::metrics::METRICS;
use crate::source::{SourceName, SourceUpdate};

mod arrivals;
pub mod census;
mod look;
mod resizes;

use arrivals::Arriving;
use census::Question;
use look::{Looking, Seen};

/// The full check that finds what lost events would have told: every five minutes, jittered by up to a fifth so that
/// nodes do not move in step.
const RELIST: Duration = Duration::from_secs(300);

/// What the manager listens to.
pub struct Inputs {
    /// Desired pods.
    pub sources: mpsc::UnboundedReceiver<SourceUpdate>,
    /// Runtime events.
    pub runtime: mpsc::Receiver<RuntimeEvent>,
    /// Pods whose probe results changed.
    pub probes: mpsc::UnboundedReceiver<PodUid>,
    /// Pods whose objects changed.
    pub objects: mpsc::UnboundedReceiver<PodUid>,
    /// Pods that have published a status for the first time.
    pub announced: mpsc::UnboundedReceiver<PodUid>,
    /// The node changed.
    pub node: mpsc::Receiver<()>,
    /// A pod holds less than before.
    pub freed: mpsc::UnboundedReceiver<()>,
    /// What others want to know.
    pub questions: mpsc::Receiver<Question>,
}

struct Handle {
    tx: mpsc::UnboundedSender<Message>,
    /// As the source wants it.
    desired: Arc<Pod>,
    /// With the resources that it was allocated: what later pods are admitted beside.
    pod: Arc<Pod>,
    /// The resize that waits.
    pending: Option<resize::Pending>,
    /// Whether it holds no resources of the node any more.
    released: Arc<AtomicBool>,
    /// It was told to go, or an earlier agent has told it.
    ousted: bool,
    source: SourceName,
    wanted: bool,
    /// A pod of this UID that came back while the old one was still being stopped.
    successor: Option<(SourceName, Arc<Pod>)>,
}

/// The manager's state.
pub struct Manager {
    shared: Arc<Shared>,
    workers: HashMap<PodUid, Handle>,
    tasks: JoinSet<bool>,
    task_pods: HashMap<Id, PodUid>,
    looks: JoinSet<Seen>,
    looking: Looking,
    /// Container and sandbox ids, for events that do not name the pod.
    ids: HashMap<String, PodUid>,
    sources: BTreeSet<SourceName>,
    /// Sources that have not delivered yet.
    awaited: BTreeSet<SourceName>,
    /// Whether every pod that the runtime had has got a worker; a pod without one is then new to it.
    knows_runtime: bool,
    /// When all of the runtime was listed last.
    listed: Option<Instant>,
    /// Pods whose resizes are to be decided: they are new, deferred, or the sources had not delivered yet.
    resizing: BTreeSet<PodUid>,
    /// Critical pods for which room is being made. They have no worker yet.
    arriving: BTreeMap<PodUid, Arriving>,
    /// Pods of the start that have not published yet; `None` once the sink was told that all have.
    silent: Option<BTreeSet<PodUid>>,
}

impl Manager {
    /// A manager that waits for these sources before it calls anything nobody's.
    pub fn new(shared: Arc<Shared>, sources: BTreeSet<SourceName>) -> Self {
        Self {
            shared,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            task_pods: HashMap::new(),
            looks: JoinSet::new(),
            looking: Looking::default(),
            ids: HashMap::new(),
            awaited: sources.clone(),
            sources,
            knows_runtime: false,
            listed: None,
            resizing: BTreeSet::new(),
            arriving: BTreeMap::new(),
            silent: Some(BTreeSet::new()),
        }
    }

    /// Runs until shutdown. Workers are then dropped where they are: everything that matters is written down.
    pub async fn run(mut self, mut inputs: Inputs, shutdown: CancellationToken) {
        for record in self.shared.journal.load() {
            self.resume(record);
        }
        let mut relist = Box::pin(tokio::time::sleep(jittered(RELIST)));
        loop {
            METRICS.health.sync_loop.set((self.shared.clock)() / lifecycle::SECOND);
            tokio::select! {
                // All arms are cancel-safe: channel receives, join_next and sleeps until a fixed time lose nothing.
                () = shutdown.cancelled() => return,
                Some(update) = inputs.sources.recv() => self.take_source(update),
                Some(event) = inputs.runtime.recv() => self.take_event(event),
                Some(uid) = inputs.probes.recv() => self.tell(&uid, Message::Probe),
                Some(uid) = inputs.objects.recv() => self.tell(&uid, Message::Objects),
                Some(uid) = inputs.announced.recv() => self.heard_of(&uid),
                Some(()) = inputs.freed.recv() => {
                    while inputs.freed.try_recv().is_ok() {}
                    self.decide_arrivals();
                    self.decide_resizes();
                }
                Some(()) = inputs.node.recv() => self.tell_all(&Message::Node),
                Some(question) = inputs.questions.recv() => self.answer(question),
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.take_end(ended),
                Some(seen) = self.looks.join_next(), if !self.looks.is_empty() => self.take_look(seen),
                () = arrivals::patience(&self.arriving), if !self.arriving.is_empty() => self.decide_arrivals(),
                () = &mut relist => {
                    relist = Box::pin(tokio::time::sleep(jittered(RELIST)));
                    self.check();
                }
            }
        }
    }

    /// Goes on with a pod that an earlier agent wrote down. Its source confirms or drops it when it has synced.
    fn resume(&mut self, record: Record) {
        let (source, pod) = (record.source, self.as_allocated(&Arc::new(record.pod.clone())));
        if !self.workers.contains_key(&spec::uid(&pod)) {
            // A node that ran alone before has nobody who will ever say that its manifests are gone.
            let wanted = self.sources.contains(&source);
            let released = Arc::default();
            self.spawn(Start { source, pod, record: Some(record), wanted, is_fresh: false, rejection: None, released });
        }
    }

    fn spawn(&mut self, start: Start) {
        let uid = spec::uid(&start.pod);
        let (tx, rx) = mpsc::unbounded_channel();
        let handle = Handle {
            tx,
            desired: start.pod.clone(),
            pod: start.pod.clone(),
            pending: start.record.as_ref().and_then(|record| {
                resize::State::from_conditions(record.status.conditions.as_deref().unwrap_or_default()).pending
            }),
            released: start.released.clone(),
            ousted: start.record.as_ref().is_some_and(|record| record.lifecycle.termination().is_some()),
            source: start.source,
            wanted: start.wanted,
            successor: None,
        };
        tracing::info!(pod = %spec::key(&start.pod), pod_uid = %uid, source = ?start.source, wanted = start.wanted, "pod worker starts");
        METRICS
            .pods
            .containers
            .observe_count(u32::try_from(spec::spec(&start.pod).containers.len()).unwrap_or(u32::MAX));
        let (shared, seen) = (self.shared.clone(), Instant::now());
        let task = self.tasks.spawn(async move {
            METRICS.pods.worker_start.observe(seen.elapsed());
            worker::run(shared, start, rx).await
        });
        self.task_pods.insert(task.id(), uid.clone());
        if let Some(silent) = &mut self.silent {
            silent.insert(uid.clone());
        }
        self.workers.insert(uid, handle);
    }

    fn take_source(&mut self, update: SourceUpdate) {
        match update {
            SourceUpdate::Upsert(source, pod) => self.upsert(source, pod),
            SourceUpdate::Remove(source, uid) => self.drop_pod(source, &uid),
            SourceUpdate::Synced(source, named) => {
                let gone: Vec<PodUid> = self
                    .workers
                    .iter()
                    .filter(|(uid, handle)| handle.source == source && handle.wanted && !named.contains(*uid))
                    .map(|(uid, _)| uid.clone())
                    .collect();
                for uid in gone {
                    self.drop_pod(source, &uid);
                }
                self.arriving.retain(|uid, arriving| arriving.source != source || named.contains(uid));
                if self.awaited.remove(&source) && self.awaited.is_empty() {
                    self.check_silence();
                    self.find_orphans();
                    self.decide_resizes();
                }
            }
        }
    }

    /// Tells the sink when every pod that was there at the start has spoken, so that nobody takes silence for absence.
    fn heard_of(&mut self, uid: &PodUid) {
        if let Some(silent) = &mut self.silent {
            silent.remove(uid);
            self.check_silence();
        }
    }

    fn check_silence(&mut self) {
        if self.awaited.is_empty() && self.silent.as_ref().is_some_and(BTreeSet::is_empty) {
            self.silent = None;
            self.shared.sink.synced();
        }
    }

    fn upsert(&mut self, source: SourceName, pod: Arc<Pod>) {
        let uid = spec::uid(&pod);
        match self.workers.get_mut(&uid) {
            Some(handle) if !handle.wanted => handle.successor = Some((source, pod)),
            Some(handle) => {
                handle.source = source;
                self.take_update(&uid, pod);
            }
            None => self.take_new(source, pod),
        }
    }

    fn drop_pod(&mut self, source: SourceName, uid: &PodUid) {
        self.arriving.remove(uid);
        if let Some(handle) = self.workers.get_mut(uid).filter(|h| h.source == source) {
            handle.wanted = false;
            handle.successor = None;
            let _ = handle.tx.send(Message::Unwanted);
        }
    }

    fn take_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Changed { pod, id, kind } => match pod.or_else(|| self.ids.get(&id).cloned()) {
                Some(pod) => self.tell_event(&pod, id, kind),
                // containerd 1.6 does not say which pod it is.
                None => {
                    self.looking.place(id, kind);
                    self.start_look();
                }
            },
            RuntimeEvent::Resync => {
                self.tell_all(&Message::Resync);
                self.find_orphans();
            }
            RuntimeEvent::Lost(_) => {}
        }
    }

    fn tell_event(&mut self, pod: &PodUid, id: String, kind: ChangeKind) {
        if !self.workers.contains_key(pod) && matches!(kind, ChangeKind::Created | ChangeKind::Started) {
            // The last thing that an earlier agent asked for may come true only now.
            self.find_orphans();
        }
        self.tell(pod, Message::Runtime(id, kind));
    }

    /// Looks for pods that the runtime knows and no source names, and for what unknown pods left elsewhere. Until every
    /// source has delivered, to be named by none says nothing.
    fn find_orphans(&mut self) {
        if self.awaited.is_empty() {
            self.looking.want_orphans();
            self.start_look();
        }
    }

    fn start_look(&mut self) {
        if let Some(wanted) = self.looking.begin() {
            let began = Instant::now();
            if let Some(last) = self.listed.replace(began) {
                METRICS.relist.interval.observe(began.duration_since(last));
            }
            self.looks.spawn(look::look(self.shared.clone(), wanted));
        }
    }

    fn take_look(&mut self, seen: Result<Seen, tokio::task::JoinError>) {
        let seen = seen.unwrap_or_else(|error| {
            tracing::error!(%error, "a look at the runtime panicked");
            Seen::failed()
        });
        let Some(pods) = seen.pods else {
            self.looking.fail();
            return self.start_look();
        };
        let pairs = pods.iter().flat_map(|(uid, pod)| pod.ids.iter().map(move |id| (id.clone(), uid.clone())));
        self.ids = pairs.collect();
        for (id, kind) in self.looking.end() {
            if let Some(pod) = self.ids.get(&id).cloned() {
                self.tell_event(&pod, id, kind);
            }
        }
        if let Some(left) = seen.left {
            self.take_orphans(pods, left);
        }
        self.start_look();
    }

    /// Stops pods that nobody names, and removes what unknown pods left.
    fn take_orphans(&mut self, pods: RuntimePods, left: Result<Left, String>) {
        // Written down under a source that will be asked after a restart, too, and will not name it.
        let Some(source) = self.sources.first().copied() else { return };
        let unknown = pods.into_values().filter(|pod| !self.workers.contains_key(&pod.identity.uid));
        for pod in unknown.collect::<Vec<_>>() {
            METRICS.pods.orphaned.increment();
            let orphan = Arc::new(orphan_pod(&pod.identity));
            let released = Arc::default();
            self.spawn(Start {
                source,
                pod: orphan,
                record: None,
                wanted: false,
                is_fresh: false,
                rejection: None,
                released,
            });
        }
        self.knows_runtime = true;
        self.shared.allocated.retain(|uid| self.workers.contains_key(uid));
        self.shared.actuated.retain(|uid| self.workers.contains_key(uid));
        match left {
            Ok((places, logs)) => {
                METRICS.garbage.orphans.0.set(0);
                METRICS.garbage.orphans.1.set(0);
                for (uid, found) in leftovers::plan(places, logs, |uid| self.workers.contains_key(uid)) {
                    self.sweep(source, uid, found);
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look for what pods left; trying again later"),
        }
    }

    /// Removes what an unknown pod left. Should the pod come back meanwhile, it waits for the end like any successor.
    fn sweep(&mut self, source: SourceName, uid: PodUid, found: Found) {
        let (tx, _) = mpsc::unbounded_channel();
        let (shared, pod) = (self.shared.clone(), uid.clone());
        let task = self.tasks.spawn(async move {
            leftovers::remove(shared, pod, found).await;
            true
        });
        self.task_pods.insert(task.id(), uid.clone());
        let released = Arc::new(AtomicBool::new(true));
        let (desired, pod) = (Arc::default(), Arc::default());
        let (pending, successor) = (None, None);
        let handle = Handle { tx, desired, pod, pending, released, ousted: true, source, wanted: false, successor };
        self.workers.insert(uid, handle);
    }

    fn tell(&self, uid: &PodUid, message: Message) {
        if let Some(handle) = self.workers.get(uid) {
            let _ = handle.tx.send(message);
        }
    }

    fn tell_all(&self, message: &Message) {
        for handle in self.workers.values() {
            let _ = handle.tx.send(message.clone());
        }
    }

    fn take_end(&mut self, ended: Result<(Id, bool), tokio::task::JoinError>) {
        let (id, panicked) = match &ended {
            Ok((id, _)) => (*id, false),
            Err(error) => {
                tracing::error!(%error, "a pod worker panicked; it is started again from its record");
                (error.id(), true)
            }
        };
        let Some(uid) = self.task_pods.remove(&id) else { return };
        let Some(handle) = self.workers.remove(&uid) else { return };
        self.ids.retain(|_, pod| *pod != uid);
        self.resizing.remove(&uid);
        self.heard_of(&uid);
        tracing::info!(pod_uid = %uid, "pod worker ended");
        if !panicked {
            self.shared.allocated.remove(&uid);
            self.shared.actuated.remove(&uid);
        }
        if let Some((source, pod)) = handle.successor {
            self.take_new(source, pod);
        } else if panicked {
            let record = self.shared.journal.load().into_iter().find(|record| spec::uid(&record.pod) == uid);
            if let Some(record) = record {
                self.resume(record);
            }
        }
    }
}

/// As much of a pod as the labels in the runtime tell.
fn orphan_pod(identity: &PodIdentity) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(identity.name.clone());
    pod.metadata.namespace = Some(identity.namespace.clone());
    pod.metadata.uid = Some(identity.uid.to_string());
    pod
}

fn jittered(period: Duration) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    period + period.mul_f64((random % 1000) as f64 / 5000.0)
}
