//! EndpointSlices of a Service from its selector and the node's pods. Pure.
//!
//! Source: `k8s.io/endpointslice` 0.37. All pods are local, so there is one slice for each address family and each set of
//! target ports (named ports may differ between pods).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::observed::PodObserved;
use crate::ids::NodeName;

/// Does the Service choose its endpoints by a selector, and this pod with it?
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty());
    let labels = pod.metadata.labels.as_ref();
    service.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|s| s.iter().all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value)))
}

/// Ports of a slice: name, protocol, number, application protocol.
type Ports = Vec<(String, String, i32, Option<String>)>;

/// The slices of `service` over `pods`, which may include pods that it does not select. Empty without a selector.
pub fn slices<'a>(
    service: &Service,
    pods: impl Iterator<Item = &'a PodObserved>,
    node: &NodeName,
) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") || spec.selector.as_ref().is_none_or(BTreeMap::is_empty) {
        return Vec::new();
    }
    let families = match spec.ip_families.as_deref() {
        Some(list) if !list.is_empty() => list.to_vec(),
        // Headless Services of a node alone have no families of their own: all that pods have.
        _ => vec!["IPv4".to_owned(), "IPv6".to_owned()],
    };
    let publish_unready = spec.publish_not_ready_addresses == Some(true);
    let mut groups: BTreeMap<(String, Ports), Vec<Endpoint>> = BTreeMap::new();
    for observed in pods.filter(|p| selects(service, &p.pod)) {
        if matches!(observed.status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            continue;
        }
        let ports = target_ports(spec.ports.as_deref().unwrap_or_default(), &observed.pod);
        for family in &families {
            let Some(address) = address(observed, family) else { continue };
            let endpoint = endpoint(service, observed, address, publish_unready, node);
            groups.entry((family.clone(), ports.clone())).or_default().push(endpoint);
        }
    }
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let built = groups.into_iter().map(|((family, ports), mut endpoints)| {
        let number = numbers.entry(family.clone()).and_modify(|n| *n += 1).or_insert(0);
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        slice(service, &family, *number, ports, endpoints)
    });
    built.collect()
}

fn slice(service: &Service, family: &str, number: usize, ports: Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = service.metadata.name.clone().unwrap_or_default();
    let suffix = if number == 0 { String::new() } else { format!("-{number}") };
    let labels = BTreeMap::from([
        ("kubernetes.io/service-name".to_owned(), name.clone()),
        ("endpointslice.kubernetes.io/managed-by".to_owned(), "nodelet".to_owned()),
    ]);
    let owner = service.metadata.uid.clone().map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: name.clone(),
        uid,
        controller: Some(true),
        block_owner_deletion: Some(true),
    });
    EndpointSlice {
        metadata: ObjectMeta {
            namespace: service.metadata.namespace.clone(),
            name: Some(format!("{name}-{}{suffix}", family.to_lowercase())),
            labels: Some(labels),
            owner_references: owner.map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        ports: Some(
            ports
                .into_iter()
                .map(|(name, protocol, port, app_protocol)| EndpointPort {
                    name: Some(name),
                    protocol: Some(protocol),
                    port: Some(port),
                    app_protocol,
                })
                .collect(),
        ),
        endpoints: Some(endpoints),
    }
}

/// The pod's address of a family.
fn address(observed: &PodObserved, family: &str) -> Option<String> {
    let status = &observed.status;
    let list = status.pod_ips.iter().flatten().map(|p| p.ip.as_str()).chain(status.pod_ip.as_deref());
    list.filter(|ip| !ip.is_empty()).find(|ip| ip.contains(':') == (family == "IPv6")).map(str::to_owned)
}

/// The Service's ports on this pod; a port name that the pod does not have is left out.
fn target_ports(ports: &[ServicePort], pod: &Pod) -> Ports {
    let resolve = |port: &ServicePort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = match &port.target_port {
            None => port.port,
            Some(IntOrString::Int(number)) => *number,
            Some(IntOrString::String(name)) => named(pod, name, &protocol)?,
        };
        Some((port.name.clone().unwrap_or_default(), protocol, number, port.app_protocol.clone()))
    };
    ports.iter().filter_map(resolve).collect()
}

fn named(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecar = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
    let matching =
        ports.find(|p| p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol);
    matching.map(|p| p.container_port)
}

fn endpoint(
    service: &Service,
    observed: &PodObserved,
    address: String,
    publish_unready: bool,
    node: &NodeName,
) -> Endpoint {
    let pod = &observed.pod;
    let serving = publish_unready || observed.is_ready();
    let terminating = observed.is_terminating();
    let spec = pod.spec.as_ref();
    let hostname = spec.and_then(|s| s.hostname.clone().filter(|_| s.subdomain == service.metadata.name));
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish_unready || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: Some(node.to_string()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}
