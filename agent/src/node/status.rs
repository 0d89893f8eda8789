//! The node status: facts, health and settings become what the API server is told. Pure.
//!
//! Conditions have kubelet's types, reasons and messages; Ready is last, because old controllers stop reading there
//! (kubernetes#16961). Amounts are those of [`capacity`]. `kubeProxyVersion` stays empty (KEP-4004).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::capacity::{self, Resources};
use super::facts::MachineFacts;
use super::{NodeExtras, NodeSettings, RuntimeHealth};

/// What pods may ask for beyond what every kubelet of the last releases can do; the scheduler places them by it (KEP-5328).
const DECLARED: [&str; 1] = ["RestartAllContainersOnContainerExits"];

/// Names per image in the status.
const NAMES_PER_IMAGE: usize = 5;

/// Everything that a status is made of.
pub struct Inputs<'a> {
    /// The operator's decisions.
    pub settings: &'a NodeSettings,
    /// The machine.
    pub facts: &'a MachineFacts,
    /// Published addresses, or why there are none.
    pub addresses: &'a Result<Vec<IpAddr>, String>,
    /// The runtime.
    pub runtime: &'a RuntimeHealth,
    /// Other modules' part.
    pub extras: &'a NodeExtras,
    /// Whether the node is being shut down.
    pub shutting_down: bool,
    /// The status as the API server has it: transition times and what is not ours come from there.
    pub previous: Option<&'a NodeStatus>,
    /// Now.
    pub now: &'a Time,
}

/// Builds the status.
pub fn build(inputs: &Inputs<'_>) -> NodeStatus {
    let (capacity, allocatable) = amounts(inputs);
    NodeStatus {
        addresses: addresses(inputs),
        conditions: Some(conditions(inputs, &capacity)),
        capacity: Some(to_api(capacity)),
        allocatable: Some(to_api(allocatable)),
        declared_features: Some(DECLARED.map(str::to_owned).to_vec()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(inputs.settings.port) }),
        }),
        features: inputs
            .runtime
            .supplemental_groups_policy
            .map(|policy| NodeFeatures { supplemental_groups_policy: Some(policy) }),
        images: images(inputs).or_else(|| inputs.previous.and_then(|status| status.images.clone())),
        node_info: Some(node_info(inputs)),
        runtime_handlers: Some(handlers(inputs.runtime)),
        volumes_in_use: inputs
            .extras
            .volumes_in_use
            .clone()
            .or_else(|| inputs.previous.and_then(|status| status.volumes_in_use.clone())),
        ..NodeStatus::default()
    }
}

/// Capacity and allocatable, with what devices other modules found.
fn amounts(inputs: &Inputs<'_>) -> (Resources, Resources) {
    let mut capacity = capacity::capacity(inputs.settings, inputs.facts);
    let mut allocatable = capacity::allocatable(inputs.settings, &capacity);
    for (name, (total, free)) in &inputs.extras.devices {
        capacity.insert(name.clone(), *total);
        allocatable.insert(name.clone(), *free);
    }
    (capacity, allocatable)
}

fn to_api(resources: Resources) -> BTreeMap<String, ApiQuantity> {
    resources.into_iter().map(|(name, quantity)| (name, ApiQuantity(quantity.to_string()))).collect()
}

fn addresses(inputs: &Inputs<'_>) -> Option<Vec<NodeAddress>> {
    let previous = inputs.previous.and_then(|status| status.addresses.clone()).filter(|list| !list.is_empty());
    let hostname = NodeAddress { type_: "Hostname".to_owned(), address: inputs.settings.hostname.clone() };
    if inputs.settings.external_cloud {
        // The cloud controller owns them once it has set them; until then only what the operator said is certain.
        if previous.is_some() {
            return previous;
        }
        if inputs.settings.node_ips.is_empty() {
            return Some(vec![hostname]);
        }
    }
    match inputs.addresses {
        Ok(ips) => {
            let internal = ips.iter().map(|ip| NodeAddress { type_: "InternalIP".to_owned(), address: ip.to_string() });
            Some(internal.chain([hostname]).collect())
        }
        // An address that cannot be found for a moment is not withdrawn: the API server would lose the node.
        Err(_) => previous,
    }
}

fn node_info(inputs: &Inputs<'_>) -> NodeSystemInfo {
    let (facts, runtime) = (inputs.facts, inputs.runtime);
    let previous = inputs.previous.and_then(|status| status.node_info.as_ref());
    let runtime_version = match (runtime.version.is_empty(), previous) {
        (false, _) => format!("{}://{}", runtime.name, runtime.version.trim_start_matches('v')),
        (true, Some(info)) if !info.container_runtime_version.is_empty() => info.container_runtime_version.clone(),
        (true, _) => "containerd://Unknown".to_owned(),
    };
    NodeSystemInfo {
        architecture: facts.architecture.to_owned(),
        boot_id: facts.boot_id.clone(),
        container_runtime_version: runtime_version,
        kernel_version: facts.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: inputs.settings.kubelet_version.clone(),
        machine_id: facts.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: facts.os_image.clone(),
        swap: (facts.swap > 0).then(|| NodeSwapStatus { capacity: i64::try_from(facts.swap).ok() }),
        system_uuid: facts.system_uuid.clone(),
    }
}

fn handlers(runtime: &RuntimeHealth) -> Vec<NodeRuntimeHandler> {
    let handler = |handler: &super::Handler| NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
            user_namespaces: Some(handler.user_namespaces),
        }),
    };
    let mut handlers: Vec<_> = runtime.handlers.iter().map(handler).collect();
    // containerd lists them in the order of a Go map; without sorting every answer would look like a change.
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    handlers
}

fn images(inputs: &Inputs<'_>) -> Option<Vec<ContainerImage>> {
    let mut images: Vec<_> = inputs.extras.images.as_ref()?.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.names.cmp(&b.names)));
    if let Ok(limit) = usize::try_from(inputs.settings.max_images) {
        images.truncate(limit);
    }
    let listed = images.into_iter().map(|image| ContainerImage {
        names: Some(image.names.iter().take(NAMES_PER_IMAGE).cloned().collect()),
        size_bytes: Some(image.size),
    });
    Some(listed.collect())
}

struct Pressure {
    kind: &'static str,
    on: bool,
    when_on: (&'static str, &'static str),
    when_off: (&'static str, &'static str),
}

fn conditions(inputs: &Inputs<'_>, capacity: &Resources) -> Vec<NodeCondition> {
    let extras = inputs.extras;
    let pressures = [
        Pressure {
            kind: "MemoryPressure",
            on: extras.memory_pressure,
            when_on: ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            when_off: ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        },
        Pressure {
            kind: "DiskPressure",
            on: extras.disk_pressure,
            when_on: ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            when_off: ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        },
        Pressure {
            kind: "PIDPressure",
            on: extras.pid_pressure,
            when_on: ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            when_off: ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        },
    ];
    let mut conditions: Vec<NodeCondition> = pressures
        .into_iter()
        .map(|pressure| {
            let (reason, message) = if pressure.on { pressure.when_on } else { pressure.when_off };
            condition(inputs, pressure.kind, pressure.on, reason, message.to_owned())
        })
        .collect();
    conditions.push(ready(inputs, capacity));
    conditions
}

fn ready(inputs: &Inputs<'_>, capacity: &Resources) -> NodeCondition {
    let mut errors: Vec<String> = Vec::new();
    errors.extend(inputs.runtime.runtime_ready.clone().err());
    errors.extend(inputs.runtime.network_ready.clone().err());
    errors.extend(inputs.extras.storage_ready.clone());
    if inputs.shutting_down {
        errors.push("node is shutting down".to_owned());
    }
    let missing: Vec<&str> = ["cpu", "memory", "pods", "ephemeral-storage"]
        .into_iter()
        .filter(|name| !capacity.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        errors.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    if let (Err(error), false) = (inputs.addresses, inputs.settings.external_cloud) {
        errors.push(error.clone());
    }
    match errors.as_slice() {
        [] => condition(inputs, "Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        [one] => condition(inputs, "Ready", false, "KubeletNotReady", one.clone()),
        many => condition(inputs, "Ready", false, "KubeletNotReady", format!("[{}]", many.join(", "))),
    }
}

fn condition(inputs: &Inputs<'_>, kind: &str, on: bool, reason: &str, message: String) -> NodeCondition {
    let status = if on { "True" } else { "False" };
    let previous = inputs
        .previous
        .and_then(|node| node.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == kind));
    let since = previous.filter(|old| old.status == status).and_then(|old| old.last_transition_time.clone());
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(inputs.now.clone()),
        last_transition_time: Some(since.unwrap_or_else(|| inputs.now.clone())),
    }
}

#[cfg(test)]
#[path = "status/tests.rs"]
pub(super) mod tests;
