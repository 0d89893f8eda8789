//! What the services, the processes and the handle of one fake have in common.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Response, Status};

use super::Options;
use super::events::Events;
use super::faults::{Faults, Stage};
use super::holes::Holes;
use super::model::Model;
use super::script::Script;

macro_rules! rpcs {
    ($($name:ident),* $(,)?) => {
        /// The calls that the fake answers, to aim faults at and to count.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        pub enum Rpc { $($name),* }
    };
}

rpcs!(
    Version,
    RunPodSandbox,
    StopPodSandbox,
    RemovePodSandbox,
    PodSandboxStatus,
    ListPodSandbox,
    CreateContainer,
    StartContainer,
    StopContainer,
    RemoveContainer,
    ListContainers,
    ContainerStatus,
    UpdateContainerResources,
    ReopenContainerLog,
    ExecSync,
    ContainerStats,
    ListContainerStats,
    PodSandboxStats,
    ListPodSandboxStats,
    UpdateRuntimeConfig,
    Status,
    RuntimeConfig,
    GetContainerEvents,
    ListImages,
    ImageStatus,
    PullImage,
    RemoveImage,
    ImageFsInfo,
);

/// One call that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub rpc: Rpc,
    /// What it was about: ids and names, empty for calls about nothing in particular.
    pub about: Vec<String>,
    /// When it arrived.
    pub at: Instant,
}

/// Answers an exec that carries no script of its own.
pub(super) type ExecAnswer = Arc<dyn Fn(&str, &[String]) -> Script + Send + Sync>;

pub(super) struct Shared {
    pub(super) options: Mutex<Options>,
    model: Mutex<Model>,
    version: watch::Sender<u64>,
    pub(super) events: Events,
    pub(super) faults: Faults,
    pub(super) hidden: Mutex<BTreeSet<String>>,
    pub(super) exec: Mutex<ExecAnswer>,
    pub(super) calls: Mutex<Vec<Call>>,
    started: (SystemTime, Instant),
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Locks, also after a test panicked with the lock held: the data is still whole, and other tests need their own verdict.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options: Mutex::new(options),
            model: Mutex::default(),
            version: watch::Sender::new(0),
            events: Events::default(),
            faults: Faults::default(),
            hidden: Mutex::default(),
            exec: Mutex::new(Arc::new(|_, _| Script::exit(0))),
            calls: Mutex::default(),
            started: (SystemTime::now(), Instant::now()),
        }
    }

    /// Nanoseconds since the epoch; follows tokio's clock, so that paused time shows in timestamps.
    pub(super) fn now(&self) -> i64 {
        let at_start = self.started.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from((at_start + self.started.1.elapsed()).as_nanos()).unwrap_or(i64::MAX)
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&lock(&self.model))
    }

    /// Changes the model and wakes everybody who waits for a change.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let result = change(&mut lock(&self.model));
        self.version.send_modify(|version| *version += 1);
        result
    }

    /// Sees a change for each later [`update`](Self::update).
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Waits until `done` returns something.
    pub(super) async fn until<T>(&self, done: impl Fn(&Model) -> Option<T>) -> T {
        let mut changes = self.changes();
        loop {
            if let Some(result) = self.read(&done) {
                return result;
            }
            // `self` holds the sender, so this cannot fail while we wait.
            let _ = changes.changed().await;
        }
    }

    /// Records a call, lets its faults happen, and does its work in a task of its own: as in a runtime, work that began
    /// goes on when the caller has hung up.
    pub(super) async fn call<T, W>(
        self: &Arc<Self>,
        rpc: Rpc,
        about: Vec<String>,
        work: W,
    ) -> Result<Response<T>, Status>
    where
        T: Holes + Send + 'static,
        W: Future<Output = Result<T, Status>> + Send + 'static,
    {
        lock(&self.calls).push(Call { rpc, about: about.clone(), at: Instant::now() });
        self.version.send_modify(|version| *version += 1);
        let shared = Arc::clone(self);
        let task = tokio::spawn(async move {
            shared.faults.strike(rpc, Stage::Before, &about).await?;
            let mut answer = work.await?;
            let lacks = shared.faults.strike(rpc, Stage::After, &about).await?;
            lacks.into_iter().for_each(|lack| answer.lose(lack));
            Ok(Response::new(answer))
        });
        task.await.map_err(|error| Status::internal(format!("the fake failed in {rpc:?}: {error}")))?
    }
}
