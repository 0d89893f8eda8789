//! Whether this node takes a pod: kubelet's last word after the scheduler's. Pure.
//!
//! The scheduler decides on what it knew; a static pod never met it, and labels, ports and resources may have changed since. The order of
//! the checks, the reasons and the texts are kubelet's (`OutOfcpu`, `NodeAffinity`, ...), because controllers and people
//! look for them. A pod that is refused becomes `Failed`; a pod that runs already is never asked again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::{security, spec};
use crate::cgroup::ResourceList;
use crate::cgroup::resources::{Overhead, amount, pod_requests};
use crate::quantity::{Format, Quantity};
use crate::selector;

/// What is compared with a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels, as the API server has them.
    pub labels: BTreeMap<String, String>,
    /// Taints, as the API server has them.
    pub taints: Vec<Taint>,
    /// What pods may use, by resource name; `pods` is how many there may be.
    pub allocatable: ResourceList,
    /// Sysctls beyond the safe ones: names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// The kernel enforces AppArmor profiles.
    pub has_apparmor: bool,
    /// The runtime honours `supplementalGroupsPolicy: Strict`; `None` until the Node object says so or not.
    pub strict_groups: Option<bool>,
}

/// Why a pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`.
    pub reason: String,
    /// What is wrong, for the event.
    pub message: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// The reason as events have it: one of a fixed set.
    pub fn event_reason(&self) -> &'static str {
        const REASONS: [&str; 13] = [
            "AppArmor",
            "SupplementalGroupsPolicyNotSupported",
            "SysctlForbidden",
            "PodOSSelectorNodeLabelDoesNotMatch",
            "PodOSNotSupported",
            "OutOfpods",
            "OutOfcpu",
            "OutOfmemory",
            "OutOfephemeral-storage",
            "NodeAffinity",
            "NodeName",
            "NodePorts",
            "TaintToleration",
        ];
        REASONS.into_iter().find(|reason| *reason == self.reason).unwrap_or("OutOfResource")
    }

    /// `status.message`.
    pub fn status_message(&self) -> String {
        format!("Pod was rejected: {}", self.message)
    }
}

/// Sysctls that are namespaced and isolated, so that every pod may set them. Source: "Using sysctls in a Kubernetes
/// Cluster" of the documentation, as of v1.37. Some need a kernel of at most 4.15; openat2(2), without which the agent does
/// not run, came with 5.6.
const SAFE_SYSCTLS: [&str; 14] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Decides about a pod beside `others`, the pods that this node runs or is about to. `is_static` pods ignore taints.
pub fn admit(pod: &Pod, is_static: bool, node: &Node, others: &[&Pod]) -> Result<(), Rejection> {
    sysctls(pod, node)?;
    apparmor(pod, node)?;
    supplemental_groups(pod, node)?;
    operating_system(pod, node)?;
    resources(pod, node, others)?;
    if !matches_node(pod, node) {
        let message = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        return Err(Rejection::new("NodeAffinity", message));
    }
    if spec::spec(pod).node_name.as_deref().is_some_and(|name| !name.is_empty() && name != node.name) {
        let message = "Predicate NodeName failed: node(s) didn't match the requested node name";
        return Err(Rejection::new("NodeName", message));
    }
    host_ports(pod, others)?;
    let tolerations = spec::spec(pod).tolerations.as_deref().unwrap_or_default();
    let mut evicting = node.taints.iter().filter(|taint| taint.effect == "NoExecute");
    if !is_static && evicting.any(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint))) {
        let message = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        return Err(Rejection::new("TaintToleration", message));
    }
    Ok(())
}

/// A profile that the kernel would not enforce is worse than none: somebody relies on it.
fn apparmor(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let wanted = security::apparmor_profiles(pod);
    if !node.has_apparmor && wanted.iter().any(|profile| profile != "Unconfined") {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Rejection::new("AppArmor", message));
    }
    Ok(())
}

fn supplemental_groups(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let context = spec::spec(pod).security_context.as_ref();
    let policy = context.and_then(|context| context.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && node.strict_groups == Some(false) {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return Err(Rejection::new("SupplementalGroupsPolicyNotSupported", message));
    }
    Ok(())
}

fn sysctls(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let context = spec::spec(pod).security_context.as_ref();
    for sysctl in context.into_iter().flat_map(|context| context.sysctls.iter().flatten()) {
        // Slashes separate as dots do, where the first separator is a slash (sysctl.d(5)).
        let name = normalized(&sysctl.name);
        let forbidden =
            |why: &str| Err(Rejection::new("SysctlForbidden", format!("forbidden sysctl: \"{}\" {why}", sysctl.name)));
        let is_allowed = SAFE_SYSCTLS.contains(&name.as_str())
            || node.allowed_unsafe_sysctls.iter().any(|allowed| match normalized(allowed).strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => normalized(allowed) == name,
            });
        if !is_allowed {
            return forbidden("not allowlisted");
        }
        if name.starts_with("net.") && spec::host_network(pod) {
            return forbidden("not allowed with host net enabled");
        }
        let is_ipc =
            ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|start| name.starts_with(start));
        if is_ipc && spec::spec(pod).host_ipc == Some(true) {
            return forbidden("not allowed with host ipc enabled");
        }
    }
    Ok(())
}

fn normalized(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        Some(_) | None => name.to_owned(),
    }
}

fn operating_system(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    const LABEL: &str = "kubernetes.io/os";
    let wanted = spec::spec(pod).node_selector.as_ref().and_then(|selector| selector.get(LABEL));
    let ours = node.labels.get(LABEL).map_or("linux", String::as_str);
    if wanted.is_some_and(|wanted| wanted != ours) {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if spec::spec(pod).os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::new("PodOSNotSupported", message));
    }
    Ok(())
}

fn resources(pod: &Pod, node: &Node, others: &[&Pod]) -> Result<(), Rejection> {
    let short = |name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Err(Rejection::new(format!("OutOf{name}"), message))
    };
    if let Some(pods) = node.allocatable.get("pods") {
        let (count, capacity) = (i64::try_from(others.len()).unwrap_or(i64::MAX), pods.value());
        if count + 1 > capacity {
            return short("pods", 1, count, capacity);
        }
    }
    let requests = pod_requests(pod, Overhead::Included);
    for (name, requested) in requests.iter().filter(|(_, requested)| !requested.is_zero()) {
        // What the node does not have is some device's, and that one's manager decides.
        let Some(capacity) = node.allocatable.get(name) else { continue };
        let zero = Quantity::from_units(0, Format::DecimalSi);
        let used =
            others.iter().fold(zero, |sum, other| sum.plus(amount(&pod_requests(other, Overhead::Included), name)));
        let unit = |quantity: Quantity| if name == "cpu" { quantity.milli_value() } else { quantity.value() };
        let (requested, used, capacity) = (unit(*requested), unit(used), unit(*capacity));
        if requested.saturating_add(used) > capacity {
            return short(name, requested, used, capacity);
        }
    }
    Ok(())
}

/// Node selector and required node affinity.
fn matches_node(pod: &Pod, node: &Node) -> bool {
    let spec = spec::spec(pod);
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(name, value)| node.labels.get(name) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    match affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref()) {
        // Terms are alternatives, and none of them is none.
        Some(required) => selector::matches(&required.node_selector_terms, &node.name, &node.labels),
        None => true,
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        _ => false,
    }
}

/// A host port and where it is bound.
#[derive(PartialEq, Eq)]
struct HostPort<'a> {
    ip: &'a str,
    protocol: &'a str,
    port: i32,
}

impl HostPort<'_> {
    fn conflicts(&self, other: &HostPort<'_>) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

fn ports(pod: &Pod) -> impl Iterator<Item = HostPort<'_>> {
    let spec = spec::spec(pod);
    // Sidecars run as long as containers do; other init containers are gone by then.
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten()).filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        Some(HostPort { ip, protocol: port.protocol.as_deref().unwrap_or("TCP"), port: number })
    })
}

fn host_ports(pod: &Pod, others: &[&Pod]) -> Result<(), Rejection> {
    let taken = |wanted: &HostPort<'_>| others.iter().any(|other| ports(other).any(|held| held.conflicts(wanted)));
    if ports(pod).any(|wanted| taken(&wanted)) {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection::new("NodePorts", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
