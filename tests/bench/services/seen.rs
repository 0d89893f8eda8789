//! The floor: a bare watch that notes when an object's change arrived.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Arrival of the newest event of each object, by name.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    newest: Arc<Mutex<HashMap<String, (u64, Instant)>>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Seen {
    /// Watches from now on. The API server ends the watch after some minutes at the earliest, longer than a run of changes.
    pub(crate) async fn watch<K>(api: Api<K>) -> anyhow::Result<Self>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let at =
            api.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version.unwrap_or_default();
        let mut events = api.watch(&WatchParams::default().timeout(290), &at).await?.boxed();
        let seen = Self { newest: Arc::default(), changed: Arc::new(watch::Sender::new(0)) };
        let follower = seen.clone();
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                let now = Instant::now();
                if let WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) = event {
                    let mut newest = follower.newest.lock().unwrap_or_else(PoisonError::into_inner);
                    let count = newest.get(&object.name_any()).map_or(0, |(count, _)| *count);
                    newest.insert(object.name_any(), (count + 1, now));
                }
                follower.changed.send_modify(|count| *count += 1);
            }
        });
        Ok(seen)
    }

    /// Number of events of an object so far.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).get(name).map_or(0, |(count, _)| *count)
    }

    /// When the next event of `name` after the first `count` arrived.
    pub(crate) async fn after(&self, name: &str, count: u64) -> anyhow::Result<Instant> {
        let mut changes = self.changed.subscribe();
        let look = || {
            let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            newest.get(name).filter(|(seen, _)| *seen > count).map(|(_, at)| *at)
        };
        let waiting = async {
            loop {
                if let Some(at) = look() {
                    return anyhow::Ok(at);
                }
                changes.changed().await?;
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, waiting).await.with_context(|| format!("no event of {name} within {limit:?}"))?
    }
}
