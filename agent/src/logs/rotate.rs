//! Rotation of container logs, which runtimes do not do themselves.
//!
//! A log that has reached `containerLogMaxSize` is renamed to `N.log.YYYYMMDD-hhmmss` and the runtime opens a new one; of
//! the older files all but the newest are compressed, and `containerLogMaxFiles` are kept in all. Names and modes are
//! kubelet's, so that log shippers find what they know. The newest rotated file stays as it is: shippers still read it.
//!
//! kubelet looks every `containerLogMonitorInterval` (10 s), and within that a container that writes 100 MB/s fills
//! 1 GB. Here every look measures how fast a log grows, and the next one comes after half of the time that it needs to
//! reach the limit. A log that does not grow costs one `stat` per interval and nothing else: which containers run is
//! known from their statuses, the runtime is not asked. A new log is not held up by the compression of an old one.
//!
//! It does not rotate logs of containers that have ended (they do not grow), nor bound what a container writes within a
//! second.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cri::{Nanos, Runtime};
use crate::ids::ContainerId;

pub mod execute;
pub mod local_time;
pub mod plan;

use plan::{Growth, Policy};

/// The log of a container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The container.
    pub id: ContainerId,
    /// Absolute path.
    pub path: PathBuf,
}

/// Tells which logs are being written.
pub trait Writers: Send + Sync + 'static {
    /// Logs of all containers that run.
    fn running_logs(&self) -> Vec<LogFile>;
}

/// What rotation works with.
pub struct Rotation {
    /// Who writes.
    pub writers: Arc<dyn Writers>,
    /// Opens logs again.
    pub runtime: Runtime,
    /// Sizes and times.
    pub policy: Policy,
    /// `containerLogMaxWorkers`: files that are compressed at once.
    pub workers: usize,
}

/// What is remembered of one log.
struct Watched {
    path: PathBuf,
    growth: Option<Growth>,
    /// When to look at it.
    due: Nanos,
    /// A rotation or compression of it is under way.
    busy: Busy,
    /// The trouble that was told last.
    told: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Busy {
    rotating: bool,
    compressing: bool,
}

/// What a piece of work comes to.
enum Done {
    Rotated(Result<Vec<PathBuf>, String>),
    Reopened(Result<(), String>),
    Compressed(Result<(), String>),
}

struct Rotator {
    rotation: Rotation,
    logs: HashMap<ContainerId, Watched>,
    work: JoinSet<(ContainerId, Done)>,
    slots: Arc<Semaphore>,
    began: Instant,
    next_sweep: Nanos,
}

/// Runs until shutdown.
pub async fn run(rotation: Rotation, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(rotation.workers));
    let logs = HashMap::new();
    let mut rotator = Rotator { rotation, logs, work: JoinSet::new(), slots, began: Instant::now(), next_sweep: 0 };
    loop {
        let wake = rotator.next_wake();
        tokio::select! {
            // Cancel-safe: join_next loses nothing, sleep_until holds no state.
            () = shutdown.cancelled() => return,
            Some(done) = rotator.work.join_next(), if !rotator.work.is_empty() => match done {
                Ok((id, done)) => rotator.take(&id, done),
                Err(error) => tracing::error!(%error, "a log rotation panicked"),
            },
            () = tokio::time::sleep_until(wake) => rotator.look().await,
        }
    }
}

impl Rotator {
    fn now(&self) -> Nanos {
        i64::try_from(self.began.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }

    fn next_wake(&self) -> Instant {
        let due = self.logs.values().filter(|log| !log.busy.rotating).map(|log| log.due);
        let at = due.fold(self.next_sweep, Nanos::min);
        self.began + Duration::from_nanos(u64::try_from(at).unwrap_or(0))
    }

    /// Looks at the logs that are due; at all of them once an interval.
    async fn look(&mut self) {
        let now = self.now();
        if now >= self.next_sweep {
            self.next_sweep = now + self.rotation.policy.interval;
            self.sweep(now);
        }
        let due = self.logs.iter().filter(|(_, log)| !log.busy.rotating && log.due <= now);
        let due: Vec<LogFile> = due.map(|(id, log)| LogFile { id: id.clone(), path: log.path.clone() }).collect();
        if due.is_empty() {
            return;
        }
        let sized = tokio::task::spawn_blocking(move || {
            due.into_iter().map(|log| (log.id, execute::size(&log.path))).collect::<Vec<_>>()
        });
        let Ok(sized) = sized.await else { return };
        for (id, size) in sized {
            self.take_size(id, size, now);
        }
    }

    /// Takes in which containers run now.
    fn sweep(&mut self, now: Nanos) {
        let running = self.rotation.writers.running_logs();
        let mut known = std::mem::take(&mut self.logs);
        for LogFile { id, path } in running {
            let fresh = || Watched { path, growth: None, due: now, busy: Busy::default(), told: None };
            let log = known.remove(&id).unwrap_or_else(fresh);
            self.logs.insert(id, log);
        }
    }

    fn take_size(&mut self, id: ContainerId, size: std::io::Result<Option<u64>>, now: Nanos) {
        let policy = self.rotation.policy;
        let Some(log) = self.logs.get_mut(&id) else { return };
        match size {
            Ok(Some(size)) => {
                let growth = plan::look(log.growth.as_ref(), size, now, &policy);
                log.due = growth.due;
                log.growth = Some(growth);
                if growth.is_over {
                    log.busy.rotating = true;
                    let (path, runtime) = (log.path.clone(), self.rotation.runtime.clone());
                    let compressing = log.busy.compressing;
                    self.work.spawn(async move {
                        let done = execute::rotate(&runtime, &id, &path, policy, compressing).await;
                        (id, Done::Rotated(done))
                    });
                }
            }
            // kubelet does the same: somebody has removed the log, and the runtime writes into a file without a name.
            Ok(None) => {
                log.due = now + policy.interval;
                log.busy.rotating = true;
                let runtime = self.rotation.runtime.clone();
                self.work.spawn(async move {
                    let done = runtime.reopen_log(&id).await.map_err(|error| error.to_string());
                    (id, Done::Reopened(done))
                });
            }
            Err(error) => {
                log.due = now + policy.interval;
                tell(log, &id, Some(format!("cannot look at the log: {error}")));
            }
        }
    }

    fn take(&mut self, id: &ContainerId, done: Done) {
        let (now, policy) = (self.now(), self.rotation.policy);
        // A container that has ended meanwhile: what was begun is done, and nothing follows.
        let Some(log) = self.logs.get_mut(id) else { return };
        match done {
            Done::Rotated(Ok(compress)) => {
                log.busy.rotating = false;
                let growth = plan::rotated(log.growth.as_ref(), now, &policy);
                log.due = growth.due;
                log.growth = Some(growth);
                tell(log, id, None);
                self.compress(id, compress);
            }
            Done::Rotated(Err(error)) => {
                log.busy.rotating = false;
                log.due = now + policy.interval;
                tell(log, id, Some(format!("cannot rotate the log: {error}")));
            }
            Done::Reopened(result) => {
                log.busy.rotating = false;
                let trouble =
                    result.err().map(|error| format!("the log is not there and was not opened again: {error}"));
                tell(log, id, trouble);
            }
            Done::Compressed(result) => {
                log.busy.compressing = false;
                tell(log, id, result.err().map(|error| format!("cannot compress a rotated log: {error}")));
            }
        }
    }

    /// Compresses beside everything else, as many files at once as there are workers. While one log is at it, its next
    /// rotation leaves files uncompressed; they are found again by the one after.
    fn compress(&mut self, id: &ContainerId, files: Vec<PathBuf>) {
        let Some(log) = self.logs.get_mut(id).filter(|log| !log.busy.compressing && !files.is_empty()) else { return };
        log.busy.compressing = true;
        let (slots, id) = (self.slots.clone(), id.clone());
        self.work.spawn(async move {
            let _slot = slots.acquire_owned().await;
            let work = move || files.iter().try_for_each(|file| execute::compress(file));
            let result = tokio::task::spawn_blocking(work).await;
            let result = result.map_err(|error| error.to_string()).and_then(|done| done.map_err(|e| e.to_string()));
            (id, Done::Compressed(result))
        });
    }
}

/// Says a trouble once, until it is another one.
fn tell(log: &mut Watched, id: &ContainerId, trouble: Option<String>) {
    if let Some(text) = trouble.as_ref().filter(|text| log.told.as_ref() != Some(*text)) {
        tracing::warn!(container = %id, path = %log.path.display(), "{text}");
    }
    log.told = trouble;
}
