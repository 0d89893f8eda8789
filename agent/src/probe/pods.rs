//! The prober as the pod domain sees it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::{ContainerProbes, Kind, PodProbes, ProbeResult, Prober, container_probes, find_container};
use crate::cri::{ContainerView, Nanos};
use crate::ids::PodUid;
use crate::pod::facilities::{ProbeTarget, Probes};
use crate::pod::spec::{self, Role, rules};
use crate::pod::view::{ProbeFailure, ProbeView};

/// A moment of the wall clock on the monotonic clock; the future is now.
fn instant(at: Nanos) -> Instant {
    let at = UNIX_EPOCH + Duration::from_nanos(u64::try_from(at).unwrap_or(0));
    let ago = SystemTime::now().duration_since(at).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(ago).unwrap_or(now)
}

/// Text of the Killing event of a container that a probe has given up on, in kubelet's words.
fn failure_text(pod: &Pod, name: &str, word: &str) -> String {
    let role = spec::roles(pod).find(|(other, _)| *other == name).map_or(Role::App, |(_, role)| role);
    match role {
        Role::Init | Role::Sidecar => format!("Init container {name} failed {word} probe"),
        Role::App | Role::Ephemeral if rules::restarts_after_probe(pod, name, role) => {
            format!("Container {name} failed {word} probe, will be restarted")
        }
        Role::App | Role::Ephemeral => format!("Container {name} failed {word} probe"),
    }
}

impl Probes for Prober {
    fn ensure(&self, pod: &Arc<Pod>, pod_ips: &[String], running: Vec<ProbeTarget>, is_stopping: bool) {
        let containers = running.into_iter().filter_map(|target| {
            let (container, init) = find_container(pod, &target.name)?;
            let probes = container_probes(container);
            let started_at = instant(target.started_at);
            Some(ContainerProbes { name: target.name, id: target.id, started_at, init, probes })
        });
        let containers = containers.collect();
        let (uid, pod_ip) = (spec::uid(pod), pod_ips.first().cloned());
        Prober::ensure(self, PodProbes { uid, key: spec::key(pod), pod_ip, containers, is_stopping });
    }

    fn remove(&self, uid: &PodUid) {
        Prober::remove(self, uid);
    }

    fn view(&self, pod: &Pod, container: &ContainerView) -> ProbeView {
        let uid = spec::uid(pod);
        let probes = spec::probes(pod, &container.name);
        let result = |kind| self.result(&uid, &container.name, &container.id, kind);
        let [startup, liveness, readiness] = probes;
        let started = startup.is_none() || result(Kind::Startup) == ProbeResult::Success;
        let ready = started && (readiness.is_none() || result(Kind::Readiness) == ProbeResult::Success);
        let failed = |kind: Kind, word: &str| {
            let probe = match kind {
                Kind::Startup => startup,
                Kind::Liveness => liveness,
                Kind::Readiness => readiness,
            }?;
            (result(kind) == ProbeResult::Failure).then(|| ProbeFailure {
                message: failure_text(pod, &container.name, word),
                grace_seconds: probe.termination_grace_period_seconds,
            })
        };
        let failure = failed(Kind::Liveness, "liveness").or_else(|| failed(Kind::Startup, "startup"));
        ProbeView { started, ready, failure }
    }

    fn seed(&self, pod: &Arc<Pod>, container: &ContainerView, started: bool, ready: bool) {
        let uid = spec::uid(pod);
        if started {
            Prober::seed(self, &uid, &container.id, Kind::Startup, ProbeResult::Success);
        }
        let readiness = if ready { ProbeResult::Success } else { ProbeResult::Failure };
        Prober::seed(self, &uid, &container.id, Kind::Readiness, readiness);
        Prober::seed(self, &uid, &container.id, Kind::Liveness, ProbeResult::Success);
    }
}
