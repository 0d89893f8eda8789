//! What the API server showed of pods that should not change, whatever happens to their agent.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::rig::Rig;

/// A watch over the pods of one label `app`, which notes every state but the expected one.
pub(crate) struct Seen {
    other: Arc<Mutex<Vec<String>>>,
    watch: tokio::task::JoinHandle<()>,
}

impl Seen {
    /// Watches from now on. `state` is what of a pod may not change; `expected` has it by the name of the pod.
    pub(crate) fn of<S: Debug + PartialEq + Send + Sync + 'static>(
        rig: &Rig,
        app: &str,
        expected: BTreeMap<String, S>,
        state: fn(&Pod) -> S,
    ) -> Self {
        let other = Arc::new(Mutex::new(Vec::new()));
        let found = other.clone();
        let selected = watcher::Config::default().labels(&format!("app={app}"));
        let pods = watcher(rig.api::<Pod>(), selected).applied_objects();
        let watch = tokio::spawn(async move {
            let mut pods = std::pin::pin!(pods);
            let note = |text| found.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            loop {
                match pods.try_next().await {
                    Ok(Some(pod)) => {
                        let (name, now) = (name(&pod), state(&pod));
                        let before = expected.get(&name);
                        if before != Some(&now) {
                            note(format!("{name}: {before:#?} became {now:#?}"));
                        }
                    }
                    Ok(None) => return,
                    Err(error) => note(format!("the watch of the test: {error}")),
                }
            }
        });
        Self { other, watch }
    }

    /// Fails if anything else was seen.
    pub(crate) fn changes(self) -> anyhow::Result<()> {
        ensure!(!self.watch.is_finished(), "the watch of the test ended");
        self.watch.abort();
        let other = self.other.lock().unwrap_or_else(PoisonError::into_inner);
        let first = other.first().map(String::as_str).unwrap_or_default();
        ensure!(other.is_empty(), "{} changes of pods that should not change, the first: {first}", other.len());
        Ok(())
    }
}

/// The name of a pod.
pub(crate) fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}
