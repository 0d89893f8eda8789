//! From *allocated* and *actuated* to the steps between them. Pure.
//!
//! Memory comes before CPU, and each by itself in the order that keeps every container within its pod at any moment: a
//! pod's cgroup grows before its containers and shrinks after them, and containers that shrink come before those that grow.
//! Every step is recorded when it is done, so that whatever ends a resize in the middle, the next plan finds what is left.

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::restarts_for;
use crate::cgroup::resources::init_and_regular;
use crate::cgroup::{PodCgroup, Values};
use crate::ids::ContainerId;
use crate::pod::allocation::{Amounts, Resource, ResourceInfo};
use crate::pod::spec::{self, Role};
use crate::pod::view::PodView;
use crate::quantity::{Format, Quantity};

/// What a running container needs to have what it was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing.
    Nothing,
    /// The runtime can change it in place.
    Update,
    /// Its resize policy asks for a restart.
    Restart,
}

/// What one container of a pod needs, were it running.
fn need(pod: &Pod, container: &Container, actuated: &ResourceInfo) -> Need {
    let level = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let (new, old) = (Amounts::new(level, container.resources.as_ref()), actuated.amounts(&container.name));
    if new == old {
        return Need::Nothing;
    }
    let restarts =
        |resource: Resource| new.of(resource) != old.of(resource) && restarts_for(container, resource.name());
    if restarts(Resource::Cpu) || restarts(Resource::Memory) { Need::Restart } else { Need::Update }
}

/// Where the resize of a pod stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Running containers that have to be restarted.
    pub restart: Vec<ContainerId>,
    /// Names of the containers that cannot be started before the pod's cgroup is as they need it.
    pub held: Vec<String>,
    /// Whether there is anything to do but restarts.
    pub is_due: bool,
    /// Whether the pod does not have yet what it was allocated.
    pub in_progress: bool,
}

/// Looks at all containers of a pod. What is not known to have been actuated is taken to be as allocated.
pub fn standing(view: &PodView<'_>) -> Standing {
    let Some(actuated) = view.memory.actuated.as_deref() else { return Standing::default() };
    let mut standing = Standing::default();
    for ((name, role), container) in spec::roles(view.pod).zip(init_and_regular(view.pod)) {
        let need = need(view.pod, container, actuated);
        let running = view.runtime.current(name).filter(|c| c.is_running());
        let restarting = view.memory.containers.get(name).is_some_and(|memory| memory.restarts_anyway);
        // Once it has begun to be restarted, its resize ends with its start.
        standing.in_progress |= restarting;
        match (need, running) {
            (Need::Nothing, _) => {}
            (Need::Restart, Some(running)) => {
                standing.restart.push(running.id.clone());
                standing.in_progress = true;
            }
            (Need::Update, Some(_)) => {
                standing.is_due = true;
                standing.in_progress |= role != Role::Init;
            }
            (Need::Update | Need::Restart, None) => {
                standing.held.push(name.to_owned());
                standing.is_due = true;
            }
        }
    }
    let level = view.pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    if level.is_some() && Amounts::new(None, level) != actuated.pod_amounts() {
        standing.is_due = true;
        standing.in_progress = true;
    }
    standing
}

/// A running container that may have to be updated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: ContainerId,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write these values to the pod's cgroup.
    Pod(Values),
    /// Tell the runtime what a container has from now on, then record the resource as actuated.
    Container {
        /// Name and id.
        container: Running,
        /// The container as the runtime is told: one resource is new, the other as it is at that moment.
        spec: Box<Container>,
        /// The resource that is new.
        resource: Resource,
    },
    /// Record one resource of the pod as a whole as actuated.
    PodLevel(Resource),
}

/// The steps of a resize. `desired` is what the pod's cgroup is to have.
pub fn steps(
    pod: &Pod,
    actuated: &ResourceInfo,
    running: &[Running],
    current: PodCgroup,
    desired: &Values,
) -> Vec<Step> {
    let allocated = ResourceInfo::of(pod);
    let mut steps = Vec::new();
    let mut now = actuated.clone();
    for resource in [Resource::Memory, Resource::Cpu] {
        let (before, after) = pod_steps(resource, current, desired);
        steps.extend(before);
        for container in in_order(resource, running, &allocated, &now) {
            let Some(found) = spec::find(pod, &container.name) else { continue };
            let amounts = now.amounts(&container.name).with(resource, allocated.amounts(&container.name));
            let spec = Box::new(with_amounts(found.container, amounts));
            steps.push(Step::Container { container: container.clone(), spec, resource });
            now.take(&container.name, resource, &allocated);
        }
        steps.extend(after);
        if allocated.pod_level_resources.is_some() {
            steps.push(Step::PodLevel(resource));
        }
    }
    steps
}

/// Writes to the pod's cgroup before and after those of the containers. A limit that is not desired stays as it is, as under
/// kubelet, which does not take limits away (kubernetes#128675).
fn pod_steps(resource: Resource, current: PodCgroup, desired: &Values) -> (Vec<Step>, Vec<Step>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    match resource {
        Resource::Memory => {
            let values = Values { memory: desired.memory, unified: desired.unified.clone(), ..Values::default() };
            match desired.memory.unwrap_or(current.memory_limit) {
                limit if limit > current.memory_limit => before.push(Step::Pod(values)),
                limit if limit < current.memory_limit => after.push(Step::Pod(values)),
                _ => {}
            }
        }
        Resource::Cpu => {
            let period = desired.cpu_period.unwrap_or(current.cpu_period);
            let limit = Values { cpu_quota: desired.cpu_quota, cpu_period: desired.cpu_period, ..Values::default() };
            let request = Values { cpu_shares: desired.cpu_shares, ..Values::default() };
            let quota = desired.cpu_quota.map(|quota| if quota < 0 { i64::MAX } else { quota });
            let (new, old) = (quota.unwrap_or(i64::MAX), current.quota_in(period));
            let (new, shares) = (if quota.is_some() { new } else { old }, desired.cpu_shares.unwrap_or_default());
            // A request never exceeds its limit, also in between.
            if new > old {
                before.push(Step::Pod(limit.clone()));
            }
            if shares > current.cpu_shares {
                before.push(Step::Pod(request.clone()));
            }
            if shares < current.cpu_shares {
                after.push(Step::Pod(request));
            }
            if new < old {
                after.push(Step::Pod(limit));
            }
        }
    }
    (before, after)
}

/// Containers whose amount of a resource changes, those that shrink first.
fn in_order<'a>(
    resource: Resource,
    running: &'a [Running],
    allocated: &ResourceInfo,
    actuated: &ResourceInfo,
) -> Vec<&'a Running> {
    let pair = |c: &Running| (allocated.amounts(&c.name).of(resource), actuated.amounts(&c.name).of(resource));
    let changed = running.iter().filter(|c| {
        let (new, old) = pair(c);
        new != old
    });
    let mut changed: Vec<&Running> = changed.collect();
    changed.sort_by_key(|c| {
        let ((new_request, new_limit), (old_request, old_limit)) = pair(c);
        // The limit decides where it changes.
        if new_limit != old_limit { new_limit > old_limit } else { new_request > old_request }
    });
    changed
}

/// The container with other amounts of CPU and memory; its other resources (huge pages) stay.
fn with_amounts(mut container: Container, amounts: Amounts) -> Container {
    let resources = container.resources.get_or_insert_default();
    let cpu = |milli: i64| Quantity::from_millis(milli).to_string();
    let memory = |bytes: i64| Quantity::from_units(bytes, Format::BinarySi).to_string();
    let (requests, limits) = (resources.requests.get_or_insert_default(), resources.limits.get_or_insert_default());
    let all = [
        (
            requests,
            [
                ("cpu", amounts.cpu_request, cpu(amounts.cpu_request)),
                ("memory", amounts.memory_request, memory(amounts.memory_request)),
            ],
        ),
        (
            limits,
            [
                ("cpu", amounts.cpu_limit, cpu(amounts.cpu_limit)),
                ("memory", amounts.memory_limit, memory(amounts.memory_limit)),
            ],
        ),
    ];
    for (list, entries) in all {
        for (name, amount, text) in entries {
            match amount {
                0 => drop(list.remove(name)),
                _ => drop(list.insert(name.to_owned(), ApiQuantity(text))),
            }
        }
    }
    container
}

/// Memory limits that become smaller: that of the pod, and those of containers by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shrinking {
    /// The pod's new limit.
    pub pod: Option<i64>,
    /// New limits of running containers.
    pub containers: Vec<(Running, i64)>,
}

/// Which memory limits a resize makes smaller.
pub fn shrinking(
    pod: &Pod,
    actuated: &ResourceInfo,
    running: &[Running],
    current: PodCgroup,
    desired: &Values,
) -> Shrinking {
    let allocated = ResourceInfo::of(pod);
    let smaller = |c: &Running| {
        let (new, old) = (allocated.amounts(&c.name).memory_limit, actuated.amounts(&c.name).memory_limit);
        (new != 0 && (old == 0 || new < old)).then(|| (c.clone(), new))
    };
    Shrinking {
        pod: desired.memory.filter(|limit| *limit > 0 && *limit < current.memory_limit),
        containers: running.iter().filter_map(smaller).collect(),
    }
}

/// Why memory limits cannot be made smaller: something already uses more. `usages` are those of `shrinking.containers`.
pub fn refusal(shrinking: &Shrinking, pod_usage: u64, usages: &[Option<u64>]) -> Option<String> {
    let exceeds = |limit: i64, usage: u64| usage >= u64::try_from(limit).unwrap_or(0);
    let mut problems = Vec::new();
    if let Some(limit) = shrinking.pod.filter(|limit| exceeds(*limit, pod_usage)) {
        problems.push(format!("attempting to set pod memory limit ({limit}) below current usage ({pod_usage})"));
    }
    for ((container, limit), usage) in shrinking.containers.iter().zip(usages) {
        let name = &container.name;
        match usage {
            None => problems.push(format!("missing container \"{name}\" memory usage")),
            Some(usage) if exceeds(*limit, *usage) => problems.push(format!(
                "attempting to set container \"{name}\" memory limit ({limit}) below current usage ({usage})"
            )),
            Some(_) => {}
        }
    }
    let text = match problems.as_slice() {
        [] => return None,
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    Some(format!("cannot decrease memory limits: {text}"))
}
