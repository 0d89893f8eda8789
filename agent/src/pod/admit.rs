//! Whether this node takes a pod: kubelet's last word after the scheduler's. Pure.
//!
//! The scheduler decides on what it knew; a static pod never met it, and labels, ports and resources may have changed since. The order of
//! the checks, the reasons and the texts are kubelet's (`OutOfcpu`, `NodeAffinity`, ...), because controllers and people
//! look for them. A pod that is refused becomes `Failed`; a pod that runs already is never asked again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::{security, spec};
use crate::cgroup::ResourceList;
use crate::cgroup::resources::{CPU, MEMORY, Overhead, amount, pod_requests};
use crate::quantity::Quantity;
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
        const REASONS: [&str; 20] = [
            // Page sizes of amd64 and arm64.
            "OutOfhugepages-64Ki",
            "OutOfhugepages-2Mi",
            "OutOfhugepages-16Mi",
            "OutOfhugepages-32Mi",
            "OutOfhugepages-512Mi",
            "OutOfhugepages-1Gi",
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
            "UnexpectedAdmissionError",
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
    beforehand(pod, node)?;
    if let Some(shortage) = shortages(pod, node, others).into_iter().next() {
        return Err(shortage.rejection());
    }
    place(pod, is_static, node, others)?;
    apparmor(pod, node)
}

/// The same as if the node had resources without end.
pub fn admit_but_for_resources(pod: &Pod, is_static: bool, node: &Node, others: &[&Pod]) -> Result<(), Rejection> {
    beforehand(pod, node)?;
    place(pod, is_static, node, others)?;
    apparmor(pod, node)
}

/// What is looked at before resources are.
fn beforehand(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    sysctls(pod, node)?;
    operating_system(pod)?;
    supplemental_groups(pod, node)
}

/// What no other pod's end would change: labels, names, ports and taints.
fn place(pod: &Pod, is_static: bool, node: &Node, others: &[&Pod]) -> Result<(), Rejection> {
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

/// A pod says by a label which operating system it is for, so that no node of another one takes it; a node selector of this
/// name is matched like any other.
fn operating_system(pod: &Pod) -> Result<(), Rejection> {
    const LABEL: &str = "kubernetes.io/os";
    if pod.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL)).is_some_and(|wanted| wanted != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Rejection::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if spec::spec(pod).os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Rejection::new("PodOSNotSupported", message));
    }
    Ok(())
}

/// A resource that the node has not enough of: thousandths of CPU, otherwise units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Its name.
    pub resource: String,
    /// What the pod asks for.
    pub requested: i64,
    /// What others have.
    pub used: i64,
    /// What there is.
    pub capacity: i64,
}

impl Shortage {
    /// What others would have to give up.
    pub fn missing(&self) -> i64 {
        self.requested.saturating_sub(self.capacity.saturating_sub(self.used))
    }

    fn rejection(&self) -> Rejection {
        let Self { resource, requested, used, capacity } = self;
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        Rejection::new(format!("OutOf{resource}"), message)
    }
}

/// The amount of a resource as [`Shortage`] counts it.
pub fn units(name: &str, quantity: Quantity) -> i64 {
    if name == CPU { quantity.milli_value() } else { quantity.value() }
}

/// What the node has not enough of for a pod, in the order in which the scheduler looks.
pub fn shortages(pod: &Pod, node: &Node, others: &[&Pod]) -> Vec<Shortage> {
    const FIRST: [&str; 3] = [CPU, MEMORY, "ephemeral-storage"];
    let mut shortages = Vec::new();
    if let Some(pods) = node.allocatable.get("pods") {
        let (used, capacity) = (i64::try_from(others.len()).unwrap_or(i64::MAX), pods.value());
        if used >= capacity {
            shortages.push(Shortage { resource: "pods".to_owned(), requested: 1, used, capacity });
        }
    }
    let requests = pod_requests(pod, Overhead::Included);
    let rest = requests.keys().map(String::as_str).filter(|name| !FIRST.contains(name));
    let asked: Vec<&str> = FIRST.into_iter().chain(rest).filter(|name| !amount(&requests, name).is_zero()).collect();
    if asked.is_empty() {
        return shortages;
    }
    let held: Vec<ResourceList> = others.iter().map(|other| pod_requests(other, Overhead::Included)).collect();
    for name in asked {
        let capacity = match node.allocatable.get(name) {
            Some(capacity) => units(name, *capacity),
            // Devices of the cluster, or ones that nobody has told of yet: the scheduler or their manager decides.
            None if is_extended(name) => continue,
            None => 0,
        };
        let requested = units(name, amount(&requests, name));
        let used = held.iter().fold(0i64, |sum, held| sum.saturating_add(units(name, amount(held, name))));
        if requested > capacity.saturating_sub(used) {
            shortages.push(Shortage { resource: name.to_owned(), requested, used, capacity });
        }
    }
    shortages
}

/// Whether a resource is somebody's own, with a domain before its name.
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
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
