//! What containers and pods have of CPU and memory, as a status says it. Pure.
//!
//! Starts from what was allocated; CPU and memory are those that the runtime (for a pod: its cgroup) was really told, so that
//! a resize shows when it is in effect. Source: `convertContainerStatusResources` and
//! `convertToAPIPodLevelResourcesStatus` of kubelet v1.37.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::cgroup::Values;
use crate::cgroup::plan::{MIN_SHARES, milli_cpu_to_shares, quota_to_milli_cpu, shares_to_milli_cpu, shares_to_weight};
use crate::cgroup::resources::{CPU, MEMORY, Overhead, ResourceList, pod_limits, pod_requests};
use crate::cri::{ContainerLimits, ContainerView};
use crate::pod::view::PodView;
use crate::quantity::{Format, Quantity};

type ApiList = BTreeMap<String, ApiQuantity>;

/// CPU limits up to here all come to the least quota, so what was asked for is shown.
const LEAST_LIMIT: i64 = 10;

/// `resources` of a container's status.
pub fn of_container(view: &PodView<'_>, container: &Container, latest: &ContainerView) -> ResourceRequirements {
    let mut shown = container.resources.clone().unwrap_or_default();
    if !latest.is_running() {
        return shown;
    }
    let Some(has) = latest.resources.filter(|has| *has != ContainerLimits::default()) else {
        // The runtime does not say (containerd 1.6): what it was told.
        let actuated = view.memory.actuated.as_ref();
        return actuated.and_then(|a| a.container_resources.get(&container.name)).cloned().unwrap_or(shown);
    };
    if let Some(limits) = &mut shown.limits {
        let milli = if has.cpu_period > 0 { quota_to_milli_cpu(has.cpu_quota, has.cpu_period) } else { 0 };
        if milli > 0 {
            show_cpu(limits, milli, LEAST_LIMIT);
        }
        if has.memory > 0 {
            limits.insert(MEMORY.to_owned(), bytes(has.memory));
        }
    }
    if let Some(requests) = &mut shown.requests {
        let milli = shares_to_milli_cpu(has.cpu_shares);
        if milli > 0 {
            show_cpu(requests, milli, i64::try_from(MIN_SHARES).unwrap_or(i64::MAX));
        }
    }
    shown
}

/// Amounts that are both at the kernel's minimum stay as they were asked for.
fn show_cpu(list: &mut ApiList, milli: i64, least: i64) {
    if milli > least || milli_of(list) > least {
        list.insert(CPU.to_owned(), ApiQuantity(Quantity::from_millis(milli).to_string()));
    }
}

fn milli_of(list: &ApiList) -> i64 {
    list.get(CPU).and_then(|cpu| Quantity::parse(&cpu.0).ok()).map_or(0, Quantity::milli_value)
}

fn bytes(amount: i64) -> ApiQuantity {
    ApiQuantity(Quantity::from_units(amount, Format::BinarySi).to_string())
}

fn api(list: ResourceList) -> Option<ApiList> {
    let list: ApiList = list.into_iter().map(|(name, amount)| (name, ApiQuantity(amount.to_string()))).collect();
    (!list.is_empty()).then_some(list)
}

/// `allocatedResources` of a pod's status.
pub fn allocated(pod: &Pod) -> Option<ApiList> {
    api(pod_requests(pod, Overhead::Included))
}

/// `resources` of a pod's status; `values` are what its cgroup was told.
pub fn of_pod(pod: &Pod, values: &Values, phase: &str) -> ResourceRequirements {
    let level = pod.spec.as_ref().and_then(|spec| spec.resources.clone()).unwrap_or_default();
    if phase != "Running" {
        let (requests, limits) = (pod_requests(pod, Overhead::Included), pod_limits(pod, Overhead::Included));
        return ResourceRequirements { requests: api(requests), limits: api(limits), ..level };
    }
    let (mut requests, mut limits) = (level.requests.unwrap_or_default(), level.limits.unwrap_or_default());
    let shares = values.cpu_shares.unwrap_or_default();
    // Shares that differ by less than a step of cpu.weight are the same in the kernel.
    let is_same = shares_to_weight(milli_cpu_to_shares(milli_of(&requests))) == shares_to_weight(shares);
    let milli = shares_to_milli_cpu(i64::try_from(shares).unwrap_or(i64::MAX));
    if milli > 0 && !(is_same && requests.contains_key(CPU)) {
        show_cpu(&mut requests, milli, i64::try_from(MIN_SHARES).unwrap_or(i64::MAX));
    }
    if !requests.contains_key(MEMORY)
        && let Some(memory) = pod_requests(pod, Overhead::Included).get(MEMORY)
    {
        requests.insert(MEMORY.to_owned(), ApiQuantity(memory.to_string()));
    }
    let quota = values.cpu_quota.zip(values.cpu_period.and_then(|period| i64::try_from(period).ok()));
    let milli = quota.map_or(0, |(quota, period)| quota_to_milli_cpu(quota, period));
    if milli > 0 {
        show_cpu(&mut limits, milli, LEAST_LIMIT);
    }
    if let Some(memory) = values.memory.filter(|memory| *memory > 0) {
        limits.insert(MEMORY.to_owned(), bytes(memory));
    }
    let some = |list: ApiList| (!list.is_empty()).then_some(list);
    ResourceRequirements { requests: some(requests), limits: some(limits), claims: level.claims }
}
