//! The pod status: a projection of one snapshot. Pure.
//!
//! It starts from what was written last ([`Context::last`]), because some things are decided once and kept: transition
//! times, the start time, a terminal phase, the end of containers that the runtime has forgotten. Reasons and messages
//! are kubelet's, because people and controllers match on them.
//! Source: `generateAPIPodStatus` and `pkg/kubelet/status/generate.go` of k8s.io/kubernetes v1.37.

use k8s_openapi::api::core::v1::{HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::lifecycle::{Cause, Lifecycle};
use super::view::PodView;
use super::{resize, spec};
use crate::cgroup::Values;
use crate::cri::{ContainerView, Nanos};

pub mod conditions;
pub mod containers;
pub mod phase;
pub mod resources;
mod terminal;
#[cfg(test)]
mod tests;

/// What a status needs besides the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The status as it was last published, or as the API server has it.
    pub last: &'a PodStatus,
    /// The node's addresses, primary first.
    pub host_ips: &'a [String],
    /// Name of the runtime, the scheme of `containerID`.
    pub runtime_name: &'a str,
    /// QoS class of the pod.
    pub qos_class: &'a str,
    /// What the pod's cgroup was last told, in kernel units.
    pub pod_values: &'a Values,
    /// Where the pod's resizes are.
    pub resize: &'a resize::State,
    /// The runtime can mount recursively read-only.
    pub recursive_read_only: bool,
    /// Now.
    pub now: Nanos,
}

/// A point in time as the API writes it: whole seconds.
pub fn time(nanos: Nanos) -> Time {
    Time(Timestamp::from_second(nanos.div_euclid(1_000_000_000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Computes the status.
pub fn status(view: &PodView<'_>, context: &Context<'_>) -> PodStatus {
    let statuses = containers::statuses(view, context);
    let last = context.last;
    let mut phase = phase::phase(view, &statuses);
    let mut reason = None;
    let mut message = None;
    let ended = |phase: Option<&str>| matches!(phase, Some("Succeeded" | "Failed"));
    if ended(last.phase.as_deref()) {
        // A terminal phase never changes.
        phase = if last.phase.as_deref() == Some("Failed") { "Failed" } else { "Succeeded" };
    }
    if last.phase.as_deref() == Some(phase) {
        reason = last.reason.clone();
        message = last.message.clone();
    }
    if let Some(Cause::Failed { reason: why, message: text }) = view.lifecycle.termination().map(|t| &t.cause) {
        (phase, reason, message) = ("Failed", Some(why.clone()), Some(text.clone()));
    }
    if ended(Some(phase)) && !ended(last.phase.as_deref()) && may_run(view) {
        // Controllers replace a pod that has ended, so it has not while something of it runs.
        phase = if last.phase.as_deref() == Some("Pending") { "Pending" } else { "Running" };
        (reason, message) = (last.reason.clone(), last.message.clone());
    }
    let (pod_ips, host_ips) = addresses(view, context);
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: reason.filter(|r| !r.is_empty()),
        message: message.filter(|m| !m.is_empty()),
        conditions: Some(conditions::conditions(view, context, &statuses, phase)),
        observed_generation: view.pod.metadata.generation,
        host_ip: host_ips.first().cloned(),
        host_ips: non_empty(host_ips.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: non_empty(pod_ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: last.start_time.clone().or_else(|| (view.started_at > 0).then(|| time(view.started_at))),
        qos_class: last.qos_class.clone().filter(|q| !q.is_empty()).or_else(|| Some(context.qos_class.to_owned())),
        init_container_statuses: non_empty(statuses.init),
        container_statuses: non_empty(statuses.app),
        ephemeral_container_statuses: non_empty(statuses.ephemeral),
        allocated_resources: resources::allocated(view.pod),
        resources: Some(resources::of_pod(view.pod, context.pod_values, phase)),
        resource_claim_statuses: last.resource_claim_statuses.clone(),
        nominated_node_name: last.nominated_node_name.clone(),
        ..PodStatus::default()
    }
}

fn may_run(view: &PodView<'_>) -> bool {
    view.may_be_starting() || view.runtime.containers.iter().any(ContainerView::is_running)
}

fn non_empty<T>(items: Vec<T>) -> Option<Vec<T>> {
    if items.is_empty() { None } else { Some(items) }
}

/// Pod and host addresses, the node's primary family first.
fn addresses(view: &PodView<'_>, context: &Context<'_>) -> (Vec<String>, Vec<String>) {
    let host_ips: Vec<String> = context.host_ips.iter().take(2).cloned().collect();
    let kept = || context.last.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect::<Vec<_>>();
    if spec::host_network(view.pod) {
        let kept = kept();
        return (if kept.is_empty() { host_ips.clone() } else { kept }, host_ips);
    }
    let runs = |lifecycle: &Lifecycle| matches!(lifecycle, Lifecycle::Syncing | Lifecycle::Terminating(_));
    let sandbox = view.runtime.sandbox();
    let current = sandbox.filter(|s| s.ready && !s.ips.is_empty());
    let pod_ips = match current {
        Some(sandbox) => sort_by_family(&sandbox.ips, host_ips.first()),
        // While its sandbox goes away a pod keeps the addresses it had; a new sandbox has none until it is ready.
        None if view.lifecycle.termination().is_some() || !runs(view.lifecycle) => kept(),
        None => Vec::new(),
    };
    (pod_ips, host_ips)
}

/// At most one address of each family, the family of `primary` first.
pub fn sort_by_family(ips: &[String], primary: Option<&String>) -> Vec<String> {
    let prefers_v6 = primary.is_some_and(|ip| ip.contains(':'));
    let of = |v6: bool| ips.iter().find(|ip| ip.contains(':') == v6).cloned();
    of(prefers_v6).into_iter().chain(of(!prefers_v6)).collect()
}
