//! Tasks: how the agent starts, restarts and ends its loops.
//!
//! [`Tasks`] owns every task that `app` starts. A task has a name (its tracing span), ends when the shutdown token is
//! cancelled, and is waited for with a deadline; what has not ended by then is aborted and named.
//!
//! ```text
//!   once:     run ──► ended ──► (cause: shutdown? fine : the agent ends)
//!   restart:  run ──► ended ──► wait 1 s, 2 s, ... 1 min ──► run      (a run of 5 min resets the wait)
//! ```
//!
//! What it does not do: catch panics. Release builds abort, and the service manager starts the agent again.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub mod notify;

/// First wait before a task is started again.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A task that ran for so long is taken for healthy: its next failure waits the first wait again.
const HEALTHY: Duration = Duration::from_secs(300);

/// How a task ended.
pub type Outcome = anyhow::Result<()>;

/// The tasks of the agent.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<(&'static str, Outcome)>,
    shutdown: CancellationToken,
}

/// Why [`Tasks::until_end`] returned.
#[derive(Debug)]
pub enum End {
    /// Shutdown was asked for.
    Shutdown,
    /// A task that the agent cannot do without ended by itself.
    Task {
        /// Its name.
        name: &'static str,
        /// What it said; `Ok` means that it just returned.
        outcome: Outcome,
    },
}

impl Tasks {
    /// No tasks; all that are added end when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { set: JoinSet::new(), shutdown }
    }

    /// The token that ends everything.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a task that the agent cannot do without: when it ends before shutdown, the agent ends.
    pub fn once<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let span = tracing::info_span!("task", name);
        self.set.spawn(async move { (name, task.await) }.instrument(span));
    }

    /// Starts a task that is started again after it ended, with back-off, until shutdown.
    pub fn restart<F, Fut>(&mut self, name: &'static str, make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let shutdown = self.shutdown.clone();
        let span = tracing::info_span!("task", name);
        self.set.spawn(async move { (name, keep_running(make, shutdown).await) }.instrument(span));
    }

    /// Waits until shutdown is asked for or a task ends that must not.
    pub async fn until_end(&mut self) -> End {
        tokio::select! {
            // Cancel safe: a token and a JoinSet both keep their state.
            () = self.shutdown.cancelled() => End::Shutdown,
            Some(ended) = self.set.join_next() => match ended {
                Ok((name, outcome)) => End::Task { name, outcome },
                Err(error) => End::Task { name: "unknown", outcome: Err(error.into()) },
            },
        }
    }

    /// Asks all tasks to end and waits for them; whatever goes on after `deadline` is aborted. Answers how many were.
    pub async fn drain(mut self, deadline: Duration) -> usize {
        self.shutdown.cancel();
        let all = async {
            while let Some(ended) = self.set.join_next().await {
                match ended {
                    Ok((name, Err(error))) => tracing::warn!(task = name, "ended with {error:#}"),
                    Ok((name, Ok(()))) => tracing::debug!(task = name, "ended"),
                    Err(error) => tracing::warn!(%error, "a task failed"),
                }
            }
        };
        // A timeout leaves the tasks that are still there in the set.
        let _ = tokio::time::timeout(deadline, all).await;
        let left = self.set.len();
        if left > 0 {
            tracing::warn!(tasks = left, "still running after {deadline:?}; aborted");
            self.set.shutdown().await;
        }
        left
    }
}

async fn keep_running<F, Fut>(mut make: F, shutdown: CancellationToken) -> Outcome
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Outcome>,
{
    let mut wait = None;
    loop {
        let began = Instant::now();
        let outcome = make().await;
        if shutdown.is_cancelled() {
            return outcome;
        }
        let pause = next_wait(wait, began.elapsed());
        wait = Some(pause);
        match outcome {
            Ok(()) => tracing::warn!("ended; starts again in {pause:?}"),
            Err(error) => tracing::warn!("failed: {error:#}; starts again in {pause:?}"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How long to wait before the next start, given the wait before the last one and how long that one ran. Pure.
fn next_wait(last: Option<Duration>, ran: Duration) -> Duration {
    match last {
        Some(last) if ran < HEALTHY => (last * 2).min(LONGEST_WAIT),
        Some(_) | None => FIRST_WAIT,
    }
}

/// Cancels `shutdown` at SIGTERM or SIGINT.
pub fn cancel_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(
        async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: the agent ends, pods and Services stay"),
                _ = interrupt.recv() => tracing::info!("SIGINT: the agent ends, pods and Services stay"),
            }
            shutdown.cancel();
        }
        .instrument(tracing::info_span!("signals")),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute_and_a_long_run_resets_them() {
        let mut wait = None;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let next = next_wait(wait, Duration::from_secs(1));
            waits.push(next.as_secs());
            wait = Some(next);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(next_wait(wait, HEALTHY), FIRST_WAIT);
    }

    #[tokio::test]
    async fn a_task_that_ends_is_started_again_until_shutdown() {
        let mut tasks = Tasks::default();
        let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
        tasks.restart("failing", move || {
            let told = tx.send(());
            async move {
                told.expect("the test listens");
                anyhow::bail!("no")
            }
        });
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(10), rx.recv()).await.expect("a start in time").unwrap();
        }
        assert_eq!(tasks.drain(Duration::from_secs(10)).await, 0, "a task that waits for its turn ends at once");
    }

    #[tokio::test]
    async fn a_task_that_hangs_is_aborted_after_the_deadline() {
        let mut tasks = Tasks::default();
        tasks.once("hanging", std::future::pending());
        let shutdown = tasks.shutdown();
        tasks.once("polite", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        assert_eq!(tasks.drain(Duration::from_millis(50)).await, 1);
    }

    #[tokio::test]
    async fn the_end_of_a_needed_task_is_reported_with_its_name() {
        let mut tasks = Tasks::default();
        tasks.once("short", async { anyhow::bail!("socket is gone") });
        match tasks.until_end().await {
            End::Task { name, outcome } => {
                assert_eq!((name, outcome.unwrap_err().to_string().as_str()), ("short", "socket is gone"));
            }
            End::Shutdown => panic!("nobody asked"),
        }
    }
}
