//! The board: pods of this node with their newest statuses and events, for views and for whoever has to know at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::Value;
use tokio::sync::watch;

use crate::control::View;
use crate::event::ring::{Record, Ring};
use crate::eviction::limits::{Limits, limits};
use crate::eviction::measure::Limited;
use crate::garbage::collector::Uses;
use crate::ids::{ContainerId, PodUid};
use crate::logs::choose;
use crate::logs::rotate::{LogFile, Writers};
use crate::pod::container_config::log_path;
use crate::pod::facilities::StatusSink;
use crate::pod::sandbox_config::log_directory_name;
use crate::pod::spec;

/// Where Services and EndpointSlices are shown from.
pub type ServiceView = Box<dyn Fn() -> (Vec<Value>, Vec<Value>) + Send + Sync>;

/// What is wrong with the node, as far as the pod half knows.
pub type Troubles = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// Pods with their newest statuses.
type Known = BTreeMap<PodUid, (Arc<Pod>, Arc<PodStatus>)>;

/// See the module's documentation.
pub struct Board {
    pods: Mutex<Known>,
    /// The newest events.
    pub ring: Mutex<Ring>,
    listeners: Vec<Arc<dyn StatusSink>>,
    services: ServiceView,
    log_dir: PathBuf,
    /// Every source has delivered, and every pod has published.
    complete: watch::Sender<bool>,
    /// Limits of pods that are not at their end and have some.
    limits: Mutex<BTreeMap<PodUid, Limits>>,
    /// How many these are.
    limited: watch::Sender<usize>,
    /// Known once the pod half has begun.
    troubles: OnceLock<Troubles>,
}

impl Board {
    /// A board that passes everything on to `listeners`.
    pub fn new(listeners: Vec<Arc<dyn StatusSink>>, services: ServiceView, log_dir: PathBuf) -> Self {
        let complete = watch::Sender::new(false);
        let limited = watch::Sender::new(0);
        let (pods, ring, limits) = Default::default();
        Self { pods, ring, listeners, services, log_dir, complete, limits, limited, troubles: OnceLock::new() }
    }

    /// Asks here for what is wrong, from now on. The first who says so is asked.
    pub fn ask_for_troubles(&self, troubles: Troubles) {
        let _ = self.troubles.set(troubles);
    }

    fn put(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        // The maps are valid after any statement, so a poisoned lock is as good as any.
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.insert(spec::uid(pod), (pod.clone(), status.clone()));
        drop(pods);
        let found = if is_over(status) { None } else { limits(pod) };
        self.change_limits(|all| match found {
            Some(found) => drop(all.insert(spec::uid(pod), found)),
            None => drop(all.remove(&spec::uid(pod))),
        });
    }

    fn change_limits(&self, change: impl FnOnce(&mut BTreeMap<PodUid, Limits>)) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut limits);
        let count = limits.len();
        self.limited.send_if_modified(|before| std::mem::replace(before, count) != count);
    }
}

fn is_over(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

impl Limited for Board {
    fn limited(&self) -> Vec<(Arc<Pod>, Limits)> {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        limits.into_iter().filter_map(|(uid, limits)| Some((pods.get(&uid)?.0.clone(), limits))).collect()
    }

    fn count(&self) -> watch::Receiver<usize> {
        self.limited.subscribe()
    }
}

impl StatusSink for Board {
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        self.put(pod, status);
        self.listeners.iter().for_each(|listener| listener.publish(pod, status));
    }

    fn finish<'a>(&'a self, pod: &'a Arc<Pod>, status: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            for listener in &self.listeners {
                listener.finish(pod, status).await?;
            }
            Ok(())
        })
    }

    fn forget(&self, uid: &PodUid) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.change_limits(|all| drop(all.remove(uid)));
        self.listeners.iter().for_each(|listener| listener.forget(uid));
    }

    fn synced(&self) {
        self.complete.send_replace(true);
        self.listeners.iter().for_each(|listener| listener.synced());
    }

    fn terminating(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        self.put(pod, status);
        self.listeners.iter().for_each(|listener| listener.terminating(pod, status));
    }

    fn left<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            for listener in &self.listeners {
                listener.left(uid).await;
            }
        })
    }
}

impl Uses for Board {
    fn image_names(&self) -> BTreeSet<String> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let going = pods.values().filter(|(_, status)| !is_over(status));
        going.flat_map(|(pod, _)| spec::image_names(pod)).map(str::to_owned).collect()
    }

    fn is_complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }
}

impl Writers for Board {
    fn running_logs(&self) -> Vec<LogFile> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let of_pod = |(pod, status): &(Arc<Pod>, Arc<PodStatus>)| {
            let directory = self.log_dir.join(log_directory_name(pod));
            let running = choose::all(status).filter(|c| c.state.as_ref().is_some_and(|state| state.running.is_some()));
            let log = move |container: &ContainerStatus| {
                let (_, id) = container.container_id.as_deref()?.split_once("://")?;
                let attempt = u32::try_from(container.restart_count).ok()?;
                let path = directory.join(log_path(&container.name, attempt));
                Some(LogFile { id: ContainerId::new(id), path })
            };
            running.filter_map(log).collect::<Vec<_>>()
        };
        pods.values().flat_map(of_pod).collect()
    }
}

impl View for Board {
    fn pods(&self) -> Vec<Pod> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let with_status = |(pod, status): &(Arc<Pod>, Arc<PodStatus>)| Pod {
            status: Some(status.as_ref().clone()),
            ..pod.as_ref().clone()
        };
        pods.values().map(with_status).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        // The newest of a name: the one before it may still be on its way out.
        let found =
            pods.values().filter(|(pod, _)| is_it(pod)).max_by_key(|(pod, _)| pod.metadata.creation_timestamp.clone());
        found.map(|(pod, status)| Pod { status: Some(status.as_ref().clone()), ..pod.as_ref().clone() })
    }

    fn services(&self) -> Vec<Value> {
        (self.services)().0
    }

    fn endpoint_slices(&self) -> Vec<Value> {
        (self.services)().1
    }

    fn events(&self, uid: &PodUid) -> Vec<Record> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).of_pod(uid)
    }

    fn troubles(&self) -> Vec<String> {
        self.troubles.get().map(|ask| ask()).unwrap_or_default()
    }

    fn log_dir(&self) -> PathBuf {
        self.log_dir.clone()
    }
}
