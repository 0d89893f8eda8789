//! Feeds one resource from the API server into a [`WatchSink`], for ever.
//!
//! ```text
//!  Starting ──list complete──► Synced ──error──► Disturbed ──next event──► Synced
//!     └──error──► Starting { error }
//! ```
//! The list comes as a stream (KEP-3157), so that no list body is ever held; servers that refuse it get pages instead.
//! An error never ends the watch and never clears the sink: what was known stays until a new list is complete.
//! Back-off doubles from 0.5 s to 30 s with jitter, and is forgotten with the next event. Memory is one object at a time.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::{Api, Resource};
use tokio::sync::watch;

use crate::watch::{WatchEvent, WatchSink};

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A server that ignores `sendInitialEvents` (before 1.27) never says that the list is complete.
const STREAMING_LIST_PATIENCE: Duration = Duration::from_secs(60);

/// How far a watch has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListState {
    /// No list has been completed yet; the last error, if any.
    Starting {
        /// What the server or the connection said.
        error: Option<Arc<str>>,
    },
    /// The sink equals the server's state, up to latency.
    Synced,
    /// The sink was complete once and may be behind now.
    Disturbed {
        /// What the server or the connection said.
        error: Arc<str>,
    },
}

impl ListState {
    /// Whether a list has been completed once: the sink may be acted on.
    pub fn has_synced(&self) -> bool {
        match self {
            Self::Starting { .. } => false,
            Self::Synced | Self::Disturbed { .. } => true,
        }
    }

    /// The last error, if it has not been followed by an event.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Starting { error } => error.as_deref(),
            Self::Synced => None,
            Self::Disturbed { error } => Some(error),
        }
    }

    fn failed(&self, error: Arc<str>) -> Self {
        match self {
            Self::Starting { .. } => Self::Starting { error: Some(error) },
            Self::Synced | Self::Disturbed { .. } => Self::Disturbed { error },
        }
    }
}

/// A running watch; dropping it ends the watch.
#[derive(Debug)]
pub struct WatchHandle {
    state: watch::Receiver<ListState>,
    task: tokio::task::AbortHandle,
}

impl WatchHandle {
    /// The state and its changes.
    pub fn state(&self) -> watch::Receiver<ListState> {
        self.state.clone()
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) {
        // The sender lives as long as the task, which only this handle ends.
        let _ = self.state.clone().wait_for(ListState::has_synced).await;
    }
}

impl Drop for WatchHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a watch. `config` gives selectors; list strategy and timeout are chosen here.
pub fn spawn_watch<K>(api: Api<K>, config: watcher::Config, sink: impl WatchSink<K>) -> WatchHandle
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (tx, state) = watch::channel(ListState::Starting { error: None });
    let task = tokio::spawn(run(api, config, sink, tx)).abort_handle();
    WatchHandle { state, task }
}

async fn run<K>(api: Api<K>, config: watcher::Config, mut sink: impl WatchSink<K>, state: watch::Sender<ListState>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut strategy = InitialListStrategy::StreamingList;
    loop {
        let mut config = config.clone();
        config.initial_list_strategy = strategy.clone();
        // Watches end together on the server otherwise; kubelet spreads 5 to 10 minutes, kube allows up to 295 s.
        config.timeout = Some(200 + (jitter() * 90.0) as u32);
        strategy = follow(api.clone(), config, &mut sink, &state).await;
        tracing::info!(path = api.resource_url(), ?strategy, "the API server cannot stream lists");
    }
}

/// Follows one watcher; returns only to go on with another list strategy.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    sink: &mut impl WatchSink<K>,
    state: &watch::Sender<ListState>,
) -> InitialListStrategy
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let streaming = config.initial_list_strategy == InitialListStrategy::StreamingList;
    let path = api.resource_url().to_owned();
    let mut stream = pin!(watcher::watcher(api, config));
    let mut backoff = Backoff::default();
    let mut list_deadline = None;
    loop {
        let next = match list_deadline {
            Some(deadline) if streaming => match tokio::time::timeout_at(deadline, stream.next()).await {
                Ok(next) => next,
                Err(_) => return InitialListStrategy::ListWatch,
            },
            _ => stream.next().await,
        };
        match next {
            Some(Ok(event)) => {
                match event {
                    Event::Init => list_deadline = Some(tokio::time::Instant::now() + STREAMING_LIST_PATIENCE),
                    Event::InitDone => list_deadline = None,
                    Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
                }
                take_event(event, sink, state, &mut backoff);
            }
            Some(Err(error)) if streaming && refuses_streaming(&error) => return InitialListStrategy::ListWatch,
            Some(Err(error)) => {
                let text: Arc<str> = error_text(&error).into();
                let relist = is_expired(&error);
                tracing::debug!(path, error = %text, relist, "watch interrupted");
                list_deadline = None;
                if relist {
                    // History was compacted while we were away: a new list repairs it, nobody needs to know.
                    continue;
                }
                state.send_modify(|state| *state = state.failed(text));
                tokio::time::sleep(backoff.next()).await;
            }
            // kube's watcher never ends; if it did, starting over is right.
            None => return InitialListStrategy::StreamingList,
        }
    }
}

fn take_event<K>(
    event: Event<K>,
    sink: &mut impl WatchSink<K>,
    state: &watch::Sender<ListState>,
    backoff: &mut Backoff,
) {
    let (event, progress) = match event {
        // `Init` comes before the server has said anything.
        Event::Init => (WatchEvent::Restart, false),
        Event::InitApply(object) => (WatchEvent::InitApply(object), false),
        Event::InitDone => (WatchEvent::InitDone, true),
        Event::Apply(object) => (WatchEvent::Apply(object), true),
        Event::Delete(object) => (WatchEvent::Delete(object), true),
    };
    sink.handle(event);
    if progress {
        *backoff = Backoff::default();
        state.send_if_modified(|state| {
            let changed = *state != ListState::Synced;
            *state = ListState::Synced;
            changed
        });
    }
}

fn refuses_streaming(error: &watcher::Error) -> bool {
    match error {
        // 422 "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"; 400 from
        // aggregated servers that do not know the field.
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => matches!(status.code, 400 | 422),
        watcher::Error::WatchError(status) => matches!(status.code, 400 | 422),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// The whole chain of an error in one line; kube's outer texts alone say only "ServiceError".
pub fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        source = error.source();
    }
    text
}

/// Doubling back-off with full jitter on its upper half.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(BACKOFF_FIRST, BACKOFF_MAX)
    }
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Self {
        Self { next: first, max }
    }

    /// The time to wait now, between half and all of the current step.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step.mul_f64(0.5 + jitter() / 2.0)
    }
}

/// A number in `0.0..1.0` that differs between nodes and calls; it spreads load and needs no quality.
pub(crate) fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_to_its_limit_and_stays_below_each_step() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(8));
        for step in [1u64, 2, 4, 8, 8, 8] {
            let wait = backoff.next();
            assert!(
                wait >= Duration::from_millis(step * 500) && wait <= Duration::from_secs(step),
                "{wait:?} of {step}"
            );
        }
    }

    #[test]
    fn an_error_before_the_first_list_does_not_count_as_synced() {
        let state = ListState::Starting { error: None }.failed("refused".into());
        assert!(!state.has_synced());
        assert_eq!(state.error(), Some("refused"));
        let state = ListState::Synced.failed("refused".into());
        assert!(state.has_synced(), "what was listed stays known");
        assert_eq!(state.error(), Some("refused"));
    }
}
