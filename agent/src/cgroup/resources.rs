//! What a pod asks for as a whole: sums over its containers, pod-level resources, overhead, and the QoS class. Pure.
//!
//! Sources: KEP-753 (how sidecars and init containers add up), KEP-2837 (pod-level resources),
//! KEP-688 (pod overhead).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::quantity::Quantity;

/// Amounts by resource name (`cpu`, `memory`, `hugepages-2Mi`, ...).
pub type ResourceList = BTreeMap<String, Quantity>;

/// `cpu`.
pub const CPU: &str = "cpu";
/// `memory`.
pub const MEMORY: &str = "memory";
/// What the name of a huge page resource starts with; its page size follows.
pub const HUGE_PAGES_PREFIX: &str = "hugepages-";

/// Quality of service class of a pod; decides its place in the cgroup tree and its OOM score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QosClass {
    /// Requests equal limits for CPU and memory of every container.
    Guaranteed,
    /// Something is requested or limited, but not everything equally.
    Burstable,
    /// Nothing is requested or limited.
    BestEffort,
}

impl QosClass {
    /// The name as pod status has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What to leave out of a pod's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overhead {
    /// Count `spec.overhead`, as the scheduler and the pod's cgroup do.
    Included,
    /// Leave it out, as the sandbox's resources do.
    Excluded,
}

/// Reads an API resource list; entries that are not quantities are left out (the API server admits none).
pub fn resource_list(list: Option<&BTreeMap<String, ApiQuantity>>) -> ResourceList {
    let Some(list) = list else { return ResourceList::new() };
    list.iter().filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(&amount.0).ok()?))).collect()
}

/// Requests of one container.
pub fn container_requests(container: &Container) -> ResourceList {
    resource_list(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

/// Limits of one container.
pub fn container_limits(container: &Container) -> ResourceList {
    resource_list(container.resources.as_ref().and_then(|r| r.limits.as_ref()))
}

/// The amount of a resource, zero when the list does not name it.
pub fn amount(list: &ResourceList, name: &str) -> Quantity {
    list.get(name).copied().unwrap_or(Quantity::from_millis(0))
}

/// Whether an init container is a sidecar: it starts before and runs beside the pod's containers.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Init containers, then containers.
pub fn init_and_regular(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let regular = spec.map(|s| s.containers.as_slice()).unwrap_or_default();
    init.iter().chain(regular)
}

/// What the pod requests, pod-level requests taking precedence over sums of containers.
pub fn pod_requests(pod: &Pod, overhead: Overhead) -> ResourceList {
    let mut total = sum_containers(pod, container_requests);
    for (name, quantity) in resource_list(pod_level(pod).and_then(|r| r.requests.as_ref())) {
        if is_pod_level_resource(&name) {
            total.insert(name, quantity);
        }
    }
    if overhead == Overhead::Included {
        add(&mut total, &pod_overhead(pod));
    }
    total
}

/// What the containers request together, without pod-level resources and overhead.
pub fn all_container_requests(pod: &Pod) -> ResourceList {
    sum_containers(pod, container_requests)
}

/// What the pod is limited to; overhead is added to limits that exist only.
pub fn pod_limits(pod: &Pod, overhead: Overhead) -> ResourceList {
    let mut total = sum_containers(pod, container_limits);
    for (name, quantity) in resource_list(pod_level(pod).and_then(|r| r.limits.as_ref())) {
        if is_pod_level_resource(&name) {
            total.insert(name, quantity);
        }
    }
    if overhead == Overhead::Included {
        for (name, extra) in pod_overhead(pod) {
            if let Some(value) = total.get_mut(&name)
                && !value.is_zero()
            {
                *value = value.plus(extra);
            }
        }
    }
    total
}

/// `spec.overhead`: what the runtime class of the pod costs by itself.
pub fn pod_overhead(pod: &Pod) -> ResourceList {
    resource_list(pod.spec.as_ref().and_then(|s| s.overhead.as_ref()))
}

/// `spec.resources`, if it names at least one resource that can be set for a whole pod.
pub fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    let resources = pod.spec.as_ref()?.resources.as_ref()?;
    let names = |list: &Option<BTreeMap<String, ApiQuantity>>| {
        list.as_ref().is_some_and(|l| l.keys().any(|name| is_pod_level_resource(name)))
    };
    (names(&resources.requests) || names(&resources.limits)).then_some(resources)
}

/// Whether a resource can be requested for the pod as a whole.
pub fn is_pod_level_resource(name: &str) -> bool {
    name == CPU || name == MEMORY || name.starts_with(HUGE_PAGES_PREFIX)
}

/// The QoS class: what status already says, else computed from the spec.
pub fn qos_class(pod: &Pod) -> QosClass {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => QosClass::Guaranteed,
        Some("Burstable") => QosClass::Burstable,
        Some("BestEffort") => QosClass::BestEffort,
        _ => compute_qos_class(pod),
    }
}

fn compute_qos_class(pod: &Pod) -> QosClass {
    if let Some(resources) = pod_level(pod) {
        return requirements_class(Some(resources));
    }
    let mut class = None;
    for container in init_and_regular(pod) {
        match (class, requirements_class(container.resources.as_ref())) {
            (_, QosClass::Burstable) => return QosClass::Burstable,
            (None, found) => class = Some(found),
            (Some(before), found) if before != found => return QosClass::Burstable,
            (Some(_), _) => {}
        }
    }
    class.unwrap_or(QosClass::BestEffort)
}

fn requirements_class(resources: Option<&ResourceRequirements>) -> QosClass {
    let requests = resource_list(resources.and_then(|r| r.requests.as_ref()));
    let limits = resource_list(resources.and_then(|r| r.limits.as_ref()));
    let class_of = |name: &str| {
        let (request, limit) = (amount(&requests, name), amount(&limits, name));
        if request != limit {
            QosClass::Burstable
        } else if request.is_zero() {
            QosClass::BestEffort
        } else {
            QosClass::Guaranteed
        }
    };
    match (class_of(CPU), class_of(MEMORY)) {
        (cpu, memory) if cpu == memory => cpu,
        _ => QosClass::Burstable,
    }
}

/// The most that is used at any time: while init container `i` runs (with the sidecars before it), or afterwards.
fn sum_containers(pod: &Pod, list: fn(&Container) -> ResourceList) -> ResourceList {
    let Some(spec) = pod.spec.as_ref() else { return ResourceList::new() };
    let mut steady = ResourceList::new();
    for container in &spec.containers {
        add(&mut steady, &list(container));
    }
    let mut sidecars = ResourceList::new();
    let mut starting = ResourceList::new();
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        let own = list(container);
        if is_sidecar(container) {
            add(&mut steady, &own);
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut together = own;
            add(&mut together, &sidecars);
            raise(&mut starting, &together);
        }
    }
    raise(&mut steady, &starting);
    steady
}

fn add(total: &mut ResourceList, more: &ResourceList) {
    for (name, quantity) in more {
        total.entry(name.clone()).and_modify(|value| *value = value.plus(*quantity)).or_insert(*quantity);
    }
}

fn raise(total: &mut ResourceList, other: &ResourceList) {
    for (name, quantity) in other {
        let value = total.entry(name.clone()).or_insert(*quantity);
        *value = (*value).max(*quantity);
    }
}
