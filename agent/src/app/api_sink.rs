//! Statuses on their way to the API server, and what this node's own rules have to know before it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::api::status_writer::{PodRef, StatusWriter};
use crate::ids::PodUid;
use crate::pod::facilities::StatusSink;
use crate::pod::spec;
use crate::service::ServiceHandle;
use crate::source::static_pods::mirror::MirrorHandle;

/// How long a pod's SIGTERM waits for its rules to go; a commit takes a millisecond.
const RULES_PATIENCE: Duration = Duration::from_millis(250);

/// Sends the statuses of pods to the API server, those of static pods to their mirrors.
pub struct ApiSink {
    writer: StatusWriter,
    mirrors: MirrorHandle,
    services: Option<ServiceHandle>,
    /// Pods that stop, with the addresses that were taken out of the rules.
    stopping: Mutex<HashMap<PodUid, Vec<IpAddr>>>,
}

impl ApiSink {
    /// A sink; without `services` there are no rules of ours.
    pub fn new(writer: StatusWriter, mirrors: MirrorHandle, services: Option<ServiceHandle>) -> Self {
        Self { writer, mirrors, services, stopping: Mutex::default() }
    }

    fn stopping(&self) -> MutexGuard<'_, HashMap<PodUid, Vec<IpAddr>>> {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the rules that the pod stops, once.
    fn leave(&self, pod: &Pod, status: &PodStatus) {
        let Some(services) = &self.services else { return };
        let addresses = addresses(pod, status);
        let is_new = self.stopping().insert(spec::uid(pod), addresses.clone()).is_none_or(|old| old != addresses);
        if is_new && !addresses.is_empty() {
            services.pod_stops(&addresses);
        }
    }
}

/// Addresses that are the pod's own; those of the host network are shared with others.
fn addresses(pod: &Pod, status: &PodStatus) -> Vec<IpAddr> {
    match spec::host_network(pod) {
        true => Vec::new(),
        false => status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect(),
    }
}

fn pod_ref(pod: &Pod) -> PodRef {
    PodRef { key: spec::key(pod), uid: spec::uid(pod) }
}

impl StatusSink for ApiSink {
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        let stops = self.stopping().contains_key(&spec::uid(pod));
        if spec::is_deleted(pod) {
            // An agent that was restarted midway has not seen the beginning.
            self.leave(pod, status);
        } else if let Some(services) = self.services.as_ref().filter(|_| !stops) {
            services.pod_has(&addresses(pod, status));
        }
        match spec::is_static(pod) {
            true => self.mirrors.publish(&spec::uid(pod), status.as_ref().clone()),
            false => self.writer.publish(pod_ref(pod), status.as_ref().clone()),
        }
    }

    fn finish<'a>(&'a self, pod: &'a Arc<Pod>, status: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>> {
        if !spec::is_static(pod) {
            self.writer.publish(pod_ref(pod), status.as_ref().clone());
            self.writer.delete(pod_ref(pod));
        }
        Box::pin(async { Ok(()) })
    }

    fn forget(&self, uid: &PodUid) {
        let addresses = self.stopping().remove(uid);
        if let (Some(services), Some(addresses)) = (&self.services, addresses) {
            services.pod_is_gone(&addresses);
        }
        self.mirrors.finished(uid);
        self.writer.forget(uid);
    }

    fn terminating(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        self.leave(pod, status);
    }

    fn left<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()> {
        let waits = self.stopping().get(uid).is_some_and(|addresses| !addresses.is_empty());
        let services = self.services.clone().filter(|_| waits);
        Box::pin(async move {
            if let Some(services) = services {
                // Rules that cannot be written, or are not known yet, hold up nobody's end.
                let _ = tokio::task::spawn_blocking(move || services.programmed(RULES_PATIENCE)).await;
            }
        })
    }
}
