//! What a pod has been given of what it asks for. Pure; [`checkpoint`] keeps it on disk.
//!
//! A resize changes what the API server asks for (*desired*) while the pod runs. The node may not have it now, so that
//! two more facts are kept for each pod, in kubelet's own files, from which either agent goes on after the other:
//!
//! - *allocated*: what the node has set aside. Everything that this agent does with a pod (cgroups, containers, admission
//!   of others) goes by this; [`ResourceInfo::apply`] puts it in the place of what is desired. Written by the manager.
//! - *actuated*: what the runtime and the pod's cgroup were last told. It differs from *allocated* exactly while a resize is
//!   under way, also after a restart of the agent. Written by the pod's operations, each step when it is done.
//!
//! [`super::resize`] decides when the first follows what is desired, and how the second follows the first.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use serde::{Deserialize, Deserializer, Serialize};

use crate::cgroup::resources::{CPU, MEMORY, init_and_regular, resource_list};
use crate::quantity::{Format, Quantity};

pub mod checkpoint;

/// The resources of one pod, in the form and with the names of kubelet's checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceInfo {
    /// By container name; init containers included, ephemeral ones not.
    #[serde(deserialize_with = "null_is_empty")]
    pub container_resources: BTreeMap<String, ResourceRequirements>,
    /// `spec.resources`.
    pub pod_level_resources: Option<ResourceRequirements>,
    /// Size limits of volumes in memory; written only by a kubelet with an alpha gate, and kept as they are.
    pub empty_dir_volume_limits: Option<BTreeMap<String, Option<ApiQuantity>>>,
}

// All amounts are texts.
impl Eq for ResourceInfo {}

fn null_is_empty<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, ResourceRequirements>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The resource that a step of a resize is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// `cpu`.
    Cpu,
    /// `memory`.
    Memory,
}

impl Resource {
    /// The name in resource lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => CPU,
            Self::Memory => MEMORY,
        }
    }
}

/// What can be resized of one container or of a pod: CPU in thousandths, memory in bytes, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// `requests.cpu`.
    pub cpu_request: i64,
    /// `limits.cpu`, or that of the pod as a whole.
    pub cpu_limit: i64,
    /// `requests.memory`.
    pub memory_request: i64,
    /// `limits.memory`, or that of the pod as a whole.
    pub memory_limit: i64,
}

impl Amounts {
    /// Request and limit of one resource.
    pub fn of(self, resource: Resource) -> (i64, i64) {
        match resource {
            Resource::Cpu => (self.cpu_request, self.cpu_limit),
            Resource::Memory => (self.memory_request, self.memory_limit),
        }
    }

    /// The same with one resource of `other`.
    pub fn with(self, resource: Resource, other: Self) -> Self {
        match resource {
            Resource::Cpu => Self { cpu_request: other.cpu_request, cpu_limit: other.cpu_limit, ..self },
            Resource::Memory => Self { memory_request: other.memory_request, memory_limit: other.memory_limit, ..self },
        }
    }

    /// The amounts of a container; a limit that it does not have is the pod's.
    pub fn new(pod: Option<&ResourceRequirements>, container: Option<&ResourceRequirements>) -> Self {
        let entry = |list: Option<&BTreeMap<String, ApiQuantity>>, name: &str| {
            let parsed = list.and_then(|list| Quantity::parse(&list.get(name)?.0).ok());
            parsed.unwrap_or(Quantity::from_millis(0))
        };
        let request = |name: &str| entry(container.and_then(|r| r.requests.as_ref()), name);
        let limit = |name: &str| match entry(container.and_then(|r| r.limits.as_ref()), name) {
            none if none.is_zero() => entry(pod.and_then(|r| r.limits.as_ref()), name),
            own => own,
        };
        Self {
            cpu_request: request(CPU).milli_value(),
            cpu_limit: limit(CPU).milli_value(),
            memory_request: request(MEMORY).value(),
            memory_limit: limit(MEMORY).value(),
        }
    }
}

impl ResourceInfo {
    /// What a pod's spec says.
    pub fn of(pod: &Pod) -> Self {
        let resources = |c: &Container| (c.name.clone(), c.resources.clone().unwrap_or_default());
        Self {
            container_resources: init_and_regular(pod).map(resources).collect(),
            pod_level_resources: pod.spec.as_ref().and_then(|spec| spec.resources.clone()),
            empty_dir_volume_limits: None,
        }
    }

    /// Whether both mean the same, however it is written.
    pub fn means(&self, other: &Self) -> bool {
        let pod_level = same_level(self.pod_level_resources.as_ref(), other.pod_level_resources.as_ref());
        let (ours, theirs) = (&self.container_resources, &other.container_resources);
        let known = |name: &String| theirs.get(name).is_some_and(|theirs| same(&ours[name], theirs));
        pod_level && ours.len() == theirs.len() && ours.keys().all(known)
    }

    /// The pod with these resources in the place of its own; the very same one when nothing differs. Containers that are not
    /// known here keep what their spec says.
    pub fn apply(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        let Some(spec) = pod.spec.as_ref() else { return pod.clone() };
        let level_is_same = same_level(self.pod_level_resources.as_ref(), spec.resources.as_ref());
        if level_is_same && init_and_regular(pod).all(|c| self.other_than(c).is_none()) {
            return pod.clone();
        }
        let mut given = pod.as_ref().clone();
        if let Some(spec) = &mut given.spec {
            if !level_is_same {
                spec.resources = self.pod_level_resources.clone();
            }
            for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
                // The same meaning stays in the words that the API server used.
                if let Some(resources) = self.other_than(container).cloned() {
                    container.resources = Some(resources);
                }
            }
        }
        Arc::new(given)
    }

    /// What is known of a container, where that differs from what its spec says.
    fn other_than(&self, container: &Container) -> Option<&ResourceRequirements> {
        let own = container.resources.clone().unwrap_or_default();
        self.container_resources.get(&container.name).filter(|known| !same(known, &own))
    }

    /// Amounts of a container as they are kept here.
    pub fn amounts(&self, container: &str) -> Amounts {
        Amounts::new(self.pod_level_resources.as_ref(), self.container_resources.get(container))
    }

    /// Amounts of the pod as a whole.
    pub fn pod_amounts(&self) -> Amounts {
        Amounts::new(None, self.pod_level_resources.as_ref())
    }

    /// Takes one resource of a container over from `allocated`, limits of the pod included, as kubelet records them.
    pub fn take(&mut self, container: &str, resource: Resource, allocated: &Self) {
        let amounts = allocated.amounts(container);
        let from = allocated.container_resources.get(container).cloned().unwrap_or_default();
        let to = self.container_resources.entry(container.to_owned()).or_default();
        let limit = amounts.of(resource).1;
        let limit = from.limits.as_ref().and_then(|l| l.get(resource.name())).cloned().filter(|_| limit != 0).or_else(
            || match (limit, resource) {
                (0, _) => None,
                (limit, Resource::Cpu) => Some(ApiQuantity(Quantity::from_millis(limit).to_string())),
                (limit, Resource::Memory) => {
                    Some(ApiQuantity(Quantity::from_units(limit, Format::BinarySi).to_string()))
                }
            },
        );
        put(&mut to.limits, resource, limit);
        put(&mut to.requests, resource, from.requests.as_ref().and_then(|r| r.get(resource.name())).cloned());
    }

    /// Takes everything of a container over from `allocated`.
    pub fn take_container(&mut self, container: &str, allocated: &Self) {
        let own = allocated.container_resources.get(container).cloned().unwrap_or_default();
        self.container_resources.insert(container.to_owned(), own);
        self.take(container, Resource::Cpu, allocated);
        self.take(container, Resource::Memory, allocated);
    }

    /// Takes one resource of the pod as a whole over from `allocated`.
    pub fn take_pod_level(&mut self, resource: Resource, allocated: &Self) {
        let Some(from) = &allocated.pod_level_resources else { return };
        let to = self.pod_level_resources.get_or_insert_default();
        put(&mut to.requests, resource, from.requests.as_ref().and_then(|r| r.get(resource.name())).cloned());
        put(&mut to.limits, resource, from.limits.as_ref().and_then(|l| l.get(resource.name())).cloned());
    }
}

fn put(list: &mut Option<BTreeMap<String, ApiQuantity>>, resource: Resource, amount: Option<ApiQuantity>) {
    match amount {
        Some(amount) => drop(list.get_or_insert_default().insert(resource.name().to_owned(), amount)),
        None => {
            if let Some(list) = list {
                list.remove(resource.name());
            }
        }
    }
}

/// Whether two requirements mean the same; `1` CPU and `1000m` do.
fn same(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    let lists = |r: &ResourceRequirements| (resource_list(r.requests.as_ref()), resource_list(r.limits.as_ref()));
    lists(a) == lists(b) && a.claims.as_deref().unwrap_or_default() == b.claims.as_deref().unwrap_or_default()
}

fn same_level(a: Option<&ResourceRequirements>, b: Option<&ResourceRequirements>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => same(a, b),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// The pod as it weighs on the node: while a container still has more than it was allocated, that counts.
pub fn held<'a>(allocated: &'a Pod, actuated: Option<&ResourceInfo>) -> Cow<'a, Pod> {
    let Some(actuated) = actuated else { return Cow::Borrowed(allocated) };
    let own = ResourceInfo::of(allocated);
    let larger = |resource: Resource, had: Amounts, has: Amounts| had.of(resource).0 > has.of(resource).0;
    let mut pod = Cow::Borrowed(allocated);
    for resource in [Resource::Cpu, Resource::Memory] {
        let names = own.container_resources.keys();
        for name in names.filter(|name| larger(resource, actuated.amounts(name), own.amounts(name))) {
            let more = actuated.container_resources.get(name).and_then(|r| r.requests.as_ref());
            let more = more.and_then(|requests| requests.get(resource.name())).cloned();
            let spec = pod.to_mut().spec.as_mut();
            let mut all =
                spec.into_iter().flat_map(|s| s.init_containers.iter_mut().flatten().chain(&mut s.containers));
            if let Some(container) = all.find(|c| c.name == *name) {
                put(&mut container.resources.get_or_insert_default().requests, resource, more);
            }
        }
        if larger(resource, actuated.pod_amounts(), own.pod_amounts()) {
            let more = actuated.pod_level_resources.as_ref().and_then(|r| r.requests.as_ref());
            let more = more.and_then(|requests| requests.get(resource.name())).cloned();
            if let Some(level) = pod.to_mut().spec.as_mut().and_then(|spec| spec.resources.as_mut()) {
                put(&mut level.requests, resource, more);
            }
        }
    }
    pod
}

#[cfg(test)]
mod tests;
