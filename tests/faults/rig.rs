//! The pod half over the fake runtime, and what is asked of it after each fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use harness::eventually::eventually;
use harness::fake_cri::FakeCri;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use nodelet::app::board::Board;
use nodelet::app::network::Network;
use nodelet::app::runtime_health;
use nodelet::cri::{Runtime, events};
use nodelet::event::{Event, Recorder, Subject};
use nodelet::garbage::collector::Uses;
use nodelet::garbage::images::{Disk, Policy};
use nodelet::garbage::report::Report;
use nodelet::garbage::{Ask, Collector};
use nodelet::ids::PodUid;
use nodelet::logs::rotate::{self, Rotation};
use nodelet::node::RuntimeHealth;
use nodelet::pod::allocation::checkpoint::{self, Checkpoint};
use nodelet::pod::facilities::StatusSink;
use nodelet::pod::images::Images;
use nodelet::pod::journal::Journal;
use nodelet::pod::manager::census::Question;
use nodelet::pod::manager::{Inputs, Manager};
use nodelet::pod::memory::{Eviction, Ousting};
use nodelet::pod::shared::{self, Shared};
use nodelet::probe::{self, ExecError, ExecOutcome, Prober};
use nodelet::source::{SourceName, SourceUpdate};
use nodelet_proto::cri;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

mod surroundings;

use surroundings::{NoObjects, Places, admit_all, pulls, settings};

/// Limit of calls to the runtime; minutes in a real agent.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(1);
/// Everything that is waited for comes within this time on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Pods that are started at once.
pub(crate) const SLOTS: usize = 4;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every status that was published, by pod name.
struct Published(Mutex<BTreeMap<String, Vec<PodStatus>>>, watch::Sender<bool>);

impl StatusSink for Published {
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        lock(&self.0).entry(name).or_default().push(status.as_ref().clone());
    }

    fn finish<'a>(&'a self, _: &'a Arc<Pod>, _: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn forget(&self, _: &PodUid) {}

    fn synced(&self) {
        self.1.send_replace(true);
    }

    fn terminating(&self, _: &Arc<Pod>, _: &Arc<PodStatus>) {}
}

/// All pods of the rig have the same image.
pub(crate) const IMAGE: &str = "localhost/app:1";

impl Uses for Published {
    fn image_names(&self) -> BTreeSet<String> {
        if lock(&self.0).is_empty() { BTreeSet::new() } else { BTreeSet::from([IMAGE.to_owned()]) }
    }

    fn is_complete(&self) -> watch::Receiver<bool> {
        self.1.subscribe()
    }
}

/// A pod half that runs.
struct Running {
    sources: mpsc::UnboundedSender<SourceUpdate>,
    _objects: mpsc::UnboundedSender<PodUid>,
    _node: mpsc::Sender<()>,
    asks: mpsc::Sender<Ask>,
    questions: mpsc::Sender<Question>,
    health: watch::Receiver<RuntimeHealth>,
    _stop: DropGuard,
}

/// A fake runtime with a pod half over it.
pub(crate) struct Rig {
    pub(crate) fake: FakeCri,
    dir: tempfile::TempDir,
    running: Option<Running>,
    published: Arc<Published>,
    events: Arc<Mutex<Vec<Event>>>,
    wanted: BTreeMap<String, Arc<Pod>>,
    /// When images are removed; from the next start on.
    pub(crate) garbage: Policy,
    /// Size at which logs are rotated; from the next start on.
    pub(crate) log_size: u64,
    /// Longest pause after a crash; from the next start on.
    pub(crate) crash_delay: Duration,
}

/// What may not change of a pod that is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Steady {
    containers: BTreeSet<String>,
    ip: Option<String>,
}

impl Rig {
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let fake = FakeCri::start(dir.path().join("cri.sock")).await?;
        let published = Arc::new(Published(Mutex::default(), watch::Sender::new(false)));
        let garbage = Policy { high: 100, low: 80, min_age: 0, max_age: 0 };
        let (events, wanted) = Default::default();
        let crash_delay = Duration::from_secs(300);
        let mut rig =
            Self { fake, dir, running: None, published, events, wanted, garbage, log_size: 1 << 20, crash_delay };
        rig.start_agent()?;
        Ok(rig)
    }

    /// Ends the pod half where it is and starts another one from what is written down.
    pub(crate) fn restart_agent(&mut self) -> anyhow::Result<()> {
        self.running = None;
        self.start_agent()
    }

    fn start_agent(&mut self) -> anyhow::Result<()> {
        let runtime = Runtime::new(self.fake.path().into(), self.fake.path().into(), CALL_LIMIT);
        let (recorder, mut told) = Recorder::new();
        let collected = self.events.clone();
        tokio::spawn(async move {
            while let Some(event) = told.recv().await {
                lock(&collected).push(event);
            }
        });
        let ((probes_tx, probes), (announced_tx, announced)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (freed_tx, freed) = mpsc::unbounded_channel();
        let exec = runtime.clone();
        let exec: probe::ExecFn = Arc::new(move |id, command, limit| {
            let exec = exec.clone();
            Box::pin(async move {
                let done = exec.exec(&id, command, limit).await.map_err(|error| ExecError::Failed(error.text()))?;
                Ok(ExecOutcome { exit_code: done.exit_code, output: Vec::new() })
            })
        });
        let board = Board::new(
            vec![self.published.clone()],
            Box::new(|| (Vec::new(), Vec::new())),
            self.dir.path().join("logs"),
        );
        let board = Arc::new(board);
        let prober = Prober::new(probe::Settings::default(), exec, probes_tx, recorder.clone());
        let shared = Arc::new(Shared {
            images: Images::new(runtime.clone(), pulls(self.dir.path().into()))?,
            objects: Arc::new(NoObjects),
            facilities: Arc::new(Places(self.dir.path().into())),
            probes: Arc::new(prober),
            sink: board.clone(),
            recorder,
            journal: Journal::open(self.dir.path().join("journal"))?,
            allocated: Checkpoint::open(self.dir.path(), checkpoint::ALLOCATED)?,
            actuated: Checkpoint::open(self.dir.path(), checkpoint::ACTUATED)?,
            freed: freed_tx,
            settings: settings(self.dir.path().into(), self.crash_delay),
            node: Arc::new(ArcSwap::from_pointee(admit_all())),
            host_ips: ArcSwap::from_pointee(vec!["192.0.2.1".to_owned()]),
            runtime_name: ArcSwap::from_pointee("containerd".to_owned()),
            announced: announced_tx,
            clock: shared::now,
            start_slots: Arc::new(Semaphore::new(SLOTS)),
            runtime: runtime.clone(),
        });
        let stop = CancellationToken::new();
        let (raw_tx, raw) = mpsc::channel(256);
        let (runtime_tx, runtime_rx) = mpsc::channel(256);
        tokio::spawn(events::run(runtime.clone(), raw_tx, stop.clone()));
        let (health_tx, health) = watch::channel(RuntimeHealth::unknown());
        let network = Network::new(runtime.clone(), Some(self.dir.path()));
        tokio::spawn(runtime_health::run(runtime.clone(), network, raw, runtime_tx, health_tx, stop.clone()));
        let policy = rotate::plan::Policy { max_size: self.log_size, max_files: 2, interval: 500_000_000 };
        tokio::spawn(rotate::run(Rotation { writers: board, runtime, policy, workers: 1 }, stop.clone()));
        let (sources, updates) = mpsc::unbounded_channel();
        let ((objects_tx, objects), (node_tx, node)) = (mpsc::unbounded_channel(), mpsc::channel(1));
        let (questions_tx, questions) = mpsc::channel(4);
        let inputs =
            Inputs { sources: updates, runtime: runtime_rx, probes, objects, announced, node, freed, questions };
        let manager = Manager::new(shared.clone(), BTreeSet::from([SourceName::Manifests]));
        tokio::spawn(manager.run(inputs, stop.clone()));
        let (asks, asked) = mpsc::channel(1);
        let (policy, uses) = (self.garbage, self.published.clone());
        let collector = Collector { shared, policy, uses, questions: questions_tx.clone(), disk: full_disk };
        tokio::spawn(collector.run(asked, stop.clone()));
        for pod in self.wanted.values() {
            sources.send(SourceUpdate::Upsert(SourceName::Manifests, pod.clone()))?;
        }
        let named = self.wanted.values().map(|pod| PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()));
        sources.send(SourceUpdate::Synced(SourceName::Manifests, named.collect()))?;
        self.running = Some(Running {
            sources,
            _objects: objects_tx,
            _node: node_tx,
            asks,
            questions: questions_tx,
            health,
            _stop: stop.drop_guard(),
        });
        Ok(())
    }

    /// What `nodelet gc` gets.
    pub(crate) async fn gc(&self, dry_run: bool, free: Option<u64>) -> anyhow::Result<Report> {
        let (reply, report) = oneshot::channel();
        self.running.as_ref().context("no agent runs")?.asks.send(Ask { dry_run, free, reply }).await?;
        Ok(report.await?)
    }

    /// Has unused images removed, and what pods left, and does not wait for it.
    pub(crate) fn begin_gc(&self, free: u64) -> anyhow::Result<()> {
        let ask = Ask { dry_run: false, free: Some(free), reply: oneshot::channel().0 };
        Ok(self.running.as_ref().context("no agent runs")?.asks.try_send(ask)?)
    }

    /// What the node says of its runtime.
    pub(crate) fn health(&self) -> anyhow::Result<RuntimeHealth> {
        Ok(self.running.as_ref().context("no agent runs")?.health.borrow().clone())
    }

    /// Texts of the events of a pod with this reason.
    pub(crate) fn pod_events(&self, name: &str, reason: &str) -> Vec<String> {
        let is_its = |event: &&Event| {
            matches!(&event.subject, Subject::Pod { key, .. } if *key.name == *name) && event.reason == reason
        };
        lock(&self.events).iter().filter(is_its).map(|event| event.message.clone()).collect()
    }

    /// Texts of all events of a pod.
    pub(crate) fn events_of(&self, name: &str) -> Vec<String> {
        let is_its = |event: &&Event| matches!(&event.subject, Subject::Pod { key, .. } if *key.name == *name);
        lock(&self.events).iter().filter(is_its).map(|event| event.message.clone()).collect()
    }

    /// Bytes of all that the agent wrote down of pods.
    pub(crate) fn journal_bytes(&self) -> u64 {
        let entries = std::fs::read_dir(self.dir.path().join("journal")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
    }

    /// Has a pod evicted.
    pub(crate) async fn evict(&self, name: &str, message: &str) -> anyhow::Result<()> {
        let eviction =
            Eviction { why: Ousting::Limit("emptydirfs.limit"), message: message.to_owned(), grace_seconds: 1 };
        let question = Question::Evict(PodUid::new(format!("uid-{name}")), eviction);
        Ok(self.running.as_ref().context("no agent runs")?.questions.send(question).await?)
    }

    /// Reasons and texts of the events about the node.
    pub(crate) fn node_events(&self) -> Vec<(&'static str, String)> {
        let of_node = |event: &Event| event.subject == Subject::Node;
        lock(&self.events).iter().filter(|event| of_node(event)).map(|e| (e.reason, e.message.clone())).collect()
    }

    fn tell(&self, update: SourceUpdate) -> anyhow::Result<()> {
        Ok(self.running.as_ref().context("no agent runs")?.sources.send(update)?)
    }

    /// Asks for a pod with a readiness probe and one container that runs until it is told to stop.
    pub(crate) fn add(&mut self, name: &str) -> anyhow::Result<()> {
        self.add_with(name, serde_json::Value::Null)
    }

    /// The same with hooks.
    pub(crate) fn add_with(&mut self, name: &str, lifecycle: serde_json::Value) -> anyhow::Result<()> {
        let probe = serde_json::json!({ "exec": { "command": ["true"] }, "periodSeconds": 1, "timeoutSeconds": 5 });
        let container = serde_json::json!({ "name": "app", "image": IMAGE, "readinessProbe": probe,
            "lifecycle": lifecycle });
        self.add_pod(name, &serde_json::json!({ "containers": [container], "terminationGracePeriodSeconds": 1 }))
    }

    /// Asks for a pod.
    pub(crate) fn add_pod(&mut self, name: &str, spec: &serde_json::Value) -> anyhow::Result<()> {
        let pod = Arc::new(serde_json::from_value::<Pod>(serde_json::json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}") },
            "spec": spec,
        }))?);
        self.wanted.insert(name.to_owned(), pod.clone());
        self.tell(SourceUpdate::Upsert(SourceName::Manifests, pod))
    }

    /// Asks for other resources of a pod's first container.
    pub(crate) fn resize(&mut self, name: &str, resources: &serde_json::Value) -> anyhow::Result<()> {
        let mut spec = serde_json::to_value(&self.wanted.get(name).context("no such pod")?.spec)?;
        spec["containers"][0]["resources"] = resources.clone();
        self.add_pod(name, &spec)
    }

    /// Records of pods that the agent has written down.
    pub(crate) fn records(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("journal")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Nothing is wanted any more; waits until nothing of any pod is left in the runtime and in the journal.
    pub(crate) async fn empty(&mut self) -> anyhow::Result<()> {
        for name in self.wanted.keys().cloned().collect::<Vec<_>>() {
            self.remove(&name)?;
        }
        eventually(LONG, "nothing to be left", async || {
            let (sandboxes, containers) = (self.fake.sandboxes(), self.fake.containers());
            ensure!(sandboxes.is_empty() && containers.is_empty(), "{sandboxes:?} {containers:?}");
            let records = self.records();
            ensure!(records.is_empty(), "{records:?}");
            Ok(())
        })
        .await
    }

    /// The pod is not wanted any more.
    pub(crate) fn remove(&mut self, name: &str) -> anyhow::Result<()> {
        self.wanted.remove(name);
        self.tell(SourceUpdate::Remove(SourceName::Manifests, PodUid::new(format!("uid-{name}"))))
    }

    /// The newest status of a pod.
    pub(crate) fn status(&self, name: &str) -> Option<PodStatus> {
        lock(&self.published.0).get(name)?.last().cloned()
    }

    /// Fails unless these pods are Ready.
    pub(crate) fn are_ready(&self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            let status = self.status(name).with_context(|| format!("{name} has no status"))?;
            ensure!(is_ready(&status), "{name}: {:?} {:?}", status.container_statuses, status.conditions);
        }
        Ok(())
    }

    pub(crate) async fn until_ready(&self, names: &[&str]) -> anyhow::Result<()> {
        eventually(LONG, &format!("{names:?} to be ready"), async || self.are_ready(names)).await
    }

    /// Fails while the runtime has something of the pod.
    pub(crate) fn is_gone(&self, name: &str) -> anyhow::Result<()> {
        let of = |labels: &std::collections::HashMap<String, String>| {
            labels.get("io.kubernetes.pod.name").is_some_and(|pod| pod == name)
        };
        ensure!(!self.fake.sandboxes().iter().any(|s| of(&s.labels)), "{name} has a sandbox");
        ensure!(!self.fake.containers().iter().any(|c| of(&c.labels)), "{name} has a container");
        Ok(())
    }

    pub(crate) async fn until_gone(&self, name: &str) -> anyhow::Result<()> {
        eventually(LONG, &format!("{name} to be gone"), async || self.is_gone(name)).await
    }

    /// Ids of the containers that run, by pod.
    pub(crate) fn containers(&self, name: &str) -> Vec<String> {
        let all = self.fake.containers().into_iter();
        let of_pod = all.filter(|c| c.labels.get("io.kubernetes.pod.name").is_some_and(|pod| pod == name));
        of_pod.filter(|c| c.state() == cri::ContainerState::ContainerRunning).map(|c| c.id).collect()
    }

    /// Ids of a pod's sandboxes.
    pub(crate) fn sandboxes(&self, name: &str) -> Vec<String> {
        let all = self.fake.sandboxes().into_iter();
        all.filter(|s| s.metadata.as_ref().is_some_and(|meta| meta.name == name)).map(|s| s.id).collect()
    }

    pub(crate) fn steady(&self, name: &str) -> Steady {
        let ip = self.status(name).and_then(|status| status.pod_ip);
        Steady { containers: self.containers(name).into_iter().chain(self.sandboxes(name)).collect(), ip }
    }

    /// Fails when a pod that was ready has been anything else, or is not what it was.
    pub(crate) fn is_undisturbed(&self, name: &str, before: &Steady) -> anyhow::Result<()> {
        let after = self.steady(name);
        ensure!(after == *before, "{name} was {before:?} and is {after:?}");
        let published = lock(&self.published.0).get(name).cloned().unwrap_or_default();
        for status in published.iter().skip_while(|status| !is_ready(status)) {
            ensure!(is_ready(status), "{name} was not ready: {:?}", status.conditions);
            let restarts: i32 = status.container_statuses.iter().flatten().map(|c| c.restart_count).sum();
            ensure!(restarts == 0 && status.pod_ip == before.ip, "{name}: {status:?}");
        }
        Ok(())
    }

    /// Fails unless such an event was told.
    pub(crate) fn was_told(&self, reason: &str, text: &str) -> anyhow::Result<()> {
        let events = lock(&self.events);
        let told = events.iter().any(|event| event.reason == reason && event.message.contains(text));
        let messages: Vec<_> = events.iter().map(|event| (event.reason, event.message.as_str())).collect();
        ensure!(told, "no {reason} with {text:?} among {messages:?}");
        Ok(())
    }

    /// Texts of the events with this reason, in order.
    pub(crate) fn told(&self, reason: &str) -> Vec<String> {
        lock(&self.events).iter().filter(|event| event.reason == reason).map(|event| event.message.clone()).collect()
    }

    /// Every status of a pod, in order.
    pub(crate) fn statuses(&self, name: &str) -> Vec<PodStatus> {
        lock(&self.published.0).get(name).cloned().unwrap_or_default()
    }

    /// Fails when an event says this.
    pub(crate) fn was_not_told(&self, text: &str) -> anyhow::Result<()> {
        let events = lock(&self.events);
        let said = events.iter().find(|event| event.message.contains(text));
        ensure!(said.is_none(), "{said:?}");
        Ok(())
    }

    /// Makes every worker look at the runtime: the stream of events breaks and comes back.
    pub(crate) fn interrupt(&self) {
        self.fake.break_event_streams();
    }
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A disk of 100 MiB of which 10 are left.
fn full_disk(_: &std::path::Path) -> std::io::Result<Disk> {
    Ok(Disk { capacity: 100 << 20, available: 10 << 20 })
}
