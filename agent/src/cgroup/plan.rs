//! From resources to kernel values: CPU shares and quota, memory limits, OOM scores. Pure.
//!
//! Sources: kernel `Documentation/scheduler/sched-bwc.rst` and `kernel/sched/sched.h` for ranges, KEP-2400 (swap),
//! KEP-2837 (pod-level resources), KEP-753 (sidecars). Numbers are those of kubelet, which others on the node rely on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use nodelet_proto::cri;

use crate::quantity::Quantity;

use super::memory_qos::{self, MemoryQos};
use super::resources::{
    CPU, MEMORY, Overhead, QosClass, ResourceList, all_container_requests, amount, container_limits,
    container_requests, init_and_regular, is_sidecar, pod_level, pod_limits, pod_overhead, pod_requests, qos_class,
    resource_list,
};
use super::{huge_pages, swap};

/// Least `cpu.shares` that the kernel accepts.
pub const MIN_SHARES: u64 = 2;
/// Most `cpu.shares` that the kernel accepts.
pub const MAX_SHARES: u64 = 262_144;
/// Default CFS period in microseconds (100 ms).
pub const DEFAULT_PERIOD: u64 = 100_000;
/// Process ids among amounts; no pod requests them.
const PIDS: &str = "pid";
/// Least CFS quota that the kernel accepts, in microseconds (1 ms).
const MIN_QUOTA: i64 = 1_000;
const GUARANTEED_OOM_SCORE: i64 = -997;
const BEST_EFFORT_OOM_SCORE: i64 = 1000;
/// Where the priorities of critical system pods begin; the API server lets no user exceed half of it.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What is written to the files of one cgroup. `None` leaves a file alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// `cpu.shares`; on v2 converted to `cpu.weight`.
    pub cpu_shares: Option<u64>,
    /// CFS quota in microseconds per period; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory limit in bytes; not positive means no limit is written.
    pub memory: Option<i64>,
    /// Most processes.
    pub pids: Option<i64>,
    /// Limit in bytes by page size in bytes.
    pub huge_pages: BTreeMap<i64, i64>,
    /// Files of cgroup v2 by name; ignored on v1.
    pub unified: BTreeMap<String, String>,
}

/// What a pod's cgroup has, unlimited being the largest number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    /// CFS shares.
    pub cpu_shares: u64,
    /// CFS quota in microseconds in a period.
    pub cpu_quota: i64,
    /// CFS period in microseconds.
    pub cpu_period: u64,
    /// Limit in bytes.
    pub memory_limit: i64,
    /// Usage in bytes.
    pub memory_usage: u64,
}

impl PodCgroup {
    /// The quota in a period of another length.
    pub fn quota_in(self, period: u64) -> i64 {
        if self.cpu_quota == i64::MAX || self.cpu_period == 0 || self.cpu_period == period {
            return self.cpu_quota;
        }
        let quota = i128::from(self.cpu_quota) * i128::from(period) / i128::from(self.cpu_period);
        i64::try_from(quota).unwrap_or(i64::MAX)
    }
}

/// Whether containers are held to their CPU limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CfsQuota {
    /// `cpuCFSQuota: true`, with the period in microseconds.
    Enforced {
        /// `cpuCFSQuotaPeriod`.
        period: u64,
    },
    /// `cpuCFSQuota: false`.
    Off,
}

impl CfsQuota {
    fn period(self) -> u64 {
        match self {
            Self::Enforced { period } => period,
            Self::Off => DEFAULT_PERIOD,
        }
    }
}

/// Which files the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller (also when a v2 mount without controllers is beside them).
    V1,
    /// The unified hierarchy.
    V2,
}

/// What the values of a container depend on besides its pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerFacts {
    /// Memory of the node in bytes; the base of OOM scores.
    pub memory_capacity: i64,
    /// Which files the kernel offers.
    pub version: CgroupVersion,
    /// Whether CPU limits are enforced.
    pub cfs_quota: CfsQuota,
    /// How much swap containers may use.
    pub swap: swap::SwapBehavior,
    /// Protection and throttling of memory.
    pub memory_qos: MemoryQos,
    /// Huge page sizes of the kernel in bytes.
    pub huge_page_sizes: Vec<i64>,
    /// `singleProcessOOMKill`: `false` makes the kernel kill a whole container (v2 only).
    pub single_process_oom_kill: bool,
}

/// CFS shares for an amount of CPU.
pub fn milli_cpu_to_shares(milli: i64) -> u64 {
    let shares = milli.saturating_mul(1024) / 1000;
    u64::try_from(shares).unwrap_or(0).clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota in microseconds for an amount of CPU; 0 (no quota) for no limit.
pub fn milli_cpu_to_quota(milli: i64, period: u64) -> i64 {
    if milli == 0 {
        return 0;
    }
    let quota = i128::from(milli) * i128::from(period) / 1000;
    i64::try_from(quota).unwrap_or(i64::MAX).max(MIN_QUOTA)
}

/// CPU in thousandths for CFS shares, rounded up; 0 for less than the kernel has.
pub fn shares_to_milli_cpu(shares: i64) -> i64 {
    if shares < MIN_SHARES as i64 { 0 } else { shares.saturating_mul(1000).saturating_add(1023) / 1024 }
}

/// CPU in thousandths for a CFS quota; 0 for none.
pub fn quota_to_milli_cpu(quota: i64, period: i64) -> i64 {
    if quota <= 0 || period <= 0 { 0 } else { quota.saturating_mul(1000) / period }
}

/// CFS shares for a `cpu.weight`, the way back of [`shares_to_weight`]; rounded up, so that both ways come to the same weight.
pub fn weight_to_shares(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1).saturating_mul(262_142).div_ceil(9999)
}

/// `cpu.weight` for `cpu.shares`, linearly, as kubelet writes it for pods and QoS classes.
///
/// runc ≥ 1.3.2 converts container shares by another curve; both are meant.
pub fn shares_to_weight(shares: u64) -> u64 {
    let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
    1 + (shares - 2) * 9999 / 262_142
}

/// Values of the cgroup of all pods: the node's allocatable, so that pods cannot starve the system.
pub fn kubepods_values(allocatable: &ResourceList) -> Values {
    Values {
        cpu_shares: allocatable.get(CPU).map(|cpu| milli_cpu_to_shares(cpu.milli_value())),
        memory: allocatable.get(MEMORY).map(|memory| memory.value()),
        pids: allocatable.get(PIDS).map(|pids| pids.value()),
        huge_pages: huge_pages::limits(allocatable),
        ..Values::default()
    }
}

/// Values of a QoS class, given the CPU requests of its pods in thousandths. Huge pages are not bounded at this level.
pub fn qos_values(class: QosClass, requested_milli: i64, huge_page_sizes: &[i64]) -> Values {
    let cpu_shares = match class {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some(milli_cpu_to_shares(requested_milli)),
        QosClass::BestEffort => Some(MIN_SHARES),
    };
    let huge_pages = huge_page_sizes.iter().map(|size| (*size, 1 << 62)).collect();
    Values { cpu_shares, huge_pages, ..Values::default() }
}

/// Values of a pod's cgroup, pod overhead included.
///
/// A limit is written only if every container has one (or the pod as a whole): one unlimited container makes the pod
/// unlimited.
pub fn pod_values(pod: &Pod, cfs_quota: CfsQuota, pids_limit: Option<i64>) -> Values {
    let requests = pod_requests(pod, Overhead::Included);
    let limits = pod_limits(pod, Overhead::Included);
    let mut values = Values { pids: pids_limit, huge_pages: huge_pages::limits(&requests), ..Values::default() };
    let class = qos_class(pod);
    if class == QosClass::BestEffort {
        values.cpu_shares = Some(MIN_SHARES);
        return values;
    }
    values.cpu_shares = Some(milli_cpu_to_shares(amount(&requests, CPU).milli_value()));
    let limited = |name: &str| class == QosClass::Guaranteed || is_limited(pod, name);
    if limited(CPU) {
        let period = cfs_quota.period();
        values.cpu_period = Some(period);
        values.cpu_quota = Some(match cfs_quota {
            CfsQuota::Enforced { .. } => milli_cpu_to_quota(amount(&limits, CPU).milli_value(), period),
            CfsQuota::Off => -1,
        });
    }
    if limited(MEMORY) {
        values.memory = Some(amount(&limits, MEMORY).value());
    }
    values
}

/// Values of a cgroup of daemons that is held to what is reserved for them; of CPU only, where memory and process ids
/// would have to be taken away from what runs (`*-compressible`).
pub fn reserved_values(amounts: &ResourceList, is_cpu_only: bool, qos: MemoryQos) -> Values {
    let cpu_shares = amounts.get(CPU).map(|cpu| milli_cpu_to_shares(cpu.milli_value()));
    if is_cpu_only {
        return Values { cpu_shares, ..Values::default() };
    }
    let memory = amounts.get(MEMORY).map(|memory| memory.value());
    let pids = amounts.get(PIDS).map(|pids| pids.value());
    Values { cpu_shares, memory, pids, unified: memory_qos::of_reserved(memory, qos), ..Values::default() }
}

/// The memory limit of the pod as a whole in bytes; `None` if one of its containers has none.
pub fn pod_memory_limit(pod: &Pod) -> Option<i64> {
    pod_values(pod, CfsQuota::Off, None).memory.filter(|limit| *limit > 0)
}

/// What a pod adds to the values of its class and of all pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its class.
    pub class: QosClass,
    /// CPU in thousandths.
    pub milli_cpu: i64,
    /// Memory in bytes.
    pub memory: i64,
}

impl Request {
    /// What a pod requests as a whole.
    pub fn of(pod: &Pod) -> Self {
        let requests = pod_requests(pod, Overhead::Included);
        let (cpu, memory) = (amount(&requests, CPU), amount(&requests, MEMORY));
        Self { class: qos_class(pod), milli_cpu: cpu.milli_value(), memory: memory.value() }
    }
}

/// What the runtime is told to hold a container to.
pub fn container_resources(pod: &Pod, container: &Container, facts: &ContainerFacts) -> cri::LinuxContainerResources {
    let requests = container_requests(container);
    let limits = container_limits(container);
    let pod_limits = resource_list(pod_level(pod).and_then(|r| r.limits.as_ref()));
    let limit = |name: &str| match amount(&limits, name) {
        none if none.is_zero() => amount(&pod_limits, name),
        own => own,
    };
    let cpu_request = requests.get(CPU).copied().unwrap_or_else(|| limit(CPU));
    let mut resources = linux_resources(cpu_request, limit(CPU), limit(MEMORY), facts);
    resources.oom_score_adj = oom_score_adj(pod, container, facts.memory_capacity);
    resources.hugepage_limits = huge_pages::of_container(&pod_limits, &limits, &facts.huge_page_sizes);
    swap::set(&mut resources, pod, container, facts);
    if facts.version == CgroupVersion::V2 {
        resources.unified.extend(memory_qos::of_container(pod, container, facts.memory_qos));
    }
    resources
}

/// What the runtime is told about the sandbox: the pod without its overhead, and the overhead.
pub fn sandbox_resources(
    pod: &Pod,
    facts: &ContainerFacts,
) -> (cri::LinuxContainerResources, cri::LinuxContainerResources) {
    let requests = pod_requests(pod, Overhead::Excluded);
    let limits = pod_limits(pod, Overhead::Excluded);
    let (cpu, memory) = (amount(&limits, CPU), amount(&limits, MEMORY));
    let resources = linux_resources(requests.get(CPU).copied().unwrap_or(cpu), cpu, memory, facts);
    let overhead = pod_overhead(pod);
    if overhead.is_empty() {
        return (resources, cri::LinuxContainerResources::default());
    }
    let (cpu, memory) = (amount(&overhead, CPU), amount(&overhead, MEMORY));
    (resources, linux_resources(cpu, cpu, memory, facts))
}

/// `oom_score_adj` of a container: who is killed first when the node runs out of memory.
///
/// Guaranteed and node-critical pods come last, BestEffort first; between them, the more of the node's memory a
/// container requests, the longer it lives. A sidecar lives at least as long as the containers that it serves.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if is_node_critical(pod) {
        return GUARANTEED_OOM_SCORE;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => return GUARANTEED_OOM_SCORE,
        QosClass::BestEffort => return BEST_EFFORT_OOM_SCORE,
        QosClass::Burstable => {}
    }
    let share = unassigned_memory_share(pod);
    let score = |request: i64| {
        let part = i128::from(request.saturating_add(share)) * 1000 / i128::from(memory_capacity.max(1));
        1000 - i64::try_from(part).unwrap_or(i64::MAX)
    };
    let memory_of = |c: &Container| amount(&container_requests(c), MEMORY).value();
    let mut adjust = score(memory_of(container));
    if is_init_sidecar(pod, container) {
        let regular = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
        if let Some(least) = regular.iter().map(memory_of).min() {
            adjust = adjust.min(score(least));
        }
    }
    adjust.clamp(1000 + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
}

fn linux_resources(
    cpu_request: Quantity,
    cpu_limit: Quantity,
    memory_limit: Quantity,
    facts: &ContainerFacts,
) -> cri::LinuxContainerResources {
    let mut resources = cri::LinuxContainerResources {
        cpu_shares: i64::try_from(milli_cpu_to_shares(cpu_request.milli_value())).unwrap_or(i64::MAX),
        memory_limit_in_bytes: memory_limit.value(),
        ..cri::LinuxContainerResources::default()
    };
    if let CfsQuota::Enforced { period } = facts.cfs_quota {
        resources.cpu_quota = milli_cpu_to_quota(cpu_limit.milli_value(), period);
        resources.cpu_period = i64::try_from(period).unwrap_or(i64::MAX);
    }
    if facts.version == CgroupVersion::V2 && !facts.single_process_oom_kill {
        resources.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    resources
}

/// What the pod requests beyond its containers, divided among them.
fn unassigned_memory_share(pod: &Pod) -> i64 {
    let pod_level = resource_list(pod_level(pod).and_then(|r| r.requests.as_ref()));
    let Some(total) = pod_level.get(MEMORY) else { return 0 };
    let containers = i64::try_from(init_and_regular(pod).count()).unwrap_or(i64::MAX);
    let assigned = amount(&all_container_requests(pod), MEMORY).value();
    (total.value() - assigned).max(0) / containers.max(1)
}

fn is_init_sidecar(pod: &Pod, container: &Container) -> bool {
    let init = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    is_sidecar(container) && init.iter().any(|c| c.name == container.name)
}

fn is_node_critical(pod: &Pod) -> bool {
    is_critical(pod) && pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()) == Some("system-node-critical")
}

/// Whether the node comes before all else with this pod: static, a mirror of one, or of a critical priority.
pub fn is_critical(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|a| a.get("kubernetes.io/config.source")).map(String::as_str);
    let is_mirror = annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    is_mirror
        || source.is_some_and(|s| s != "api")
        || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= CRITICAL_PRIORITY)
}

/// Whether the pod has a limit for a resource: its own, or one of every container.
fn is_limited(pod: &Pod, name: &str) -> bool {
    let own = resource_list(pod_level(pod).and_then(|r| r.limits.as_ref()));
    !amount(&own, name).is_zero() || init_and_regular(pod).all(|c| !amount(&container_limits(c), name).is_zero())
}

#[cfg(test)]
pub(super) mod tests;
