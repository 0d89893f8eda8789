//! From API objects to the compact forms that the index keeps. Pure. What an API server would not admit is left out here,
//! part by part, so that one bad object never costs another Service.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::select::{Endpoint, Hints, Standing, Zones};
use super::slim::{self, HEADLESS, LAST_CHANGE, SERVICE_NAME, SERVICE_PROXY_NAME};
use super::{Cidr, Protocol};
use crate::ids::ObjectKey;

/// kube-proxy's and the API's default: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; joins it with the port of a slice.
    pub name: Box<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the Service's addresses.
    pub port: u16,
    /// Port of the nodes; 0 where there is none.
    pub node_port: u16,
}

/// A Service that is served by rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// ClusterIPs.
    pub cluster_ips: Box<[IpAddr]>,
    /// External addresses.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of load balancers that send packets on as they came.
    pub ingress_ips: Box<[IpAddr]>,
    /// The only sources that may connect to ingress addresses, by family; empty where all may.
    pub source_ranges: Box<[Cidr]>,
    /// Ports.
    pub ports: Box<[Port]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Seconds of session affinity by client address.
    pub affinity: Option<u32>,
    /// Where load balancers ask whether this node has endpoints; 0 where nobody does.
    pub health_check_port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service that it belongs to.
    pub service: ObjectKey,
    /// Its ports: name, protocol, number.
    pub ports: Box<[(Box<str>, Protocol, u16)]>,
    /// Its endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// Namespace and name.
pub fn key(meta: &ObjectMeta) -> Option<ObjectKey> {
    Some(ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

fn has_label(meta: &ObjectMeta, name: &str) -> bool {
    meta.labels.as_ref().is_some_and(|labels| labels.contains_key(name))
}

/// Whether an address can be anybody's but this machine's or this link's own.
fn is_routable(address: &IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(is_link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Box<[IpAddr]> {
    texts.filter_map(|text| text.parse().ok()).filter(is_routable).collect()
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// A Service that is served by rules; `None` for headless and ExternalName ones, and those of another service proxy.
pub fn service(service: &slim::Service, external_ip_ranges: Option<&[Cidr]>) -> Option<Service> {
    let spec = &service.spec;
    if spec.kind.as_deref() == Some("ExternalName") {
        return None;
    }
    if has_label(&service.metadata, SERVICE_PROXY_NAME) || has_label(&service.metadata, HEADLESS) {
        return None;
    }
    let first = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_empty());
    let cluster_ips = addresses(spec.cluster_ips.iter().chain(first));
    if cluster_ips.is_empty() {
        return None;
    }
    let ingress = service.status.load_balancer.ingress.iter();
    let ingress = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let is_load_balancer = spec.kind.as_deref() == Some("LoadBalancer");
    let external_ips = addresses(spec.external_ips.iter()).into_iter();
    let external_ips =
        external_ips.filter(|ip| external_ip_ranges.is_none_or(|all| all.iter().any(|r| r.contains(*ip))));
    let ports = spec.ports.iter().filter_map(|p| {
        Some(Port {
            name: p.name.as_deref().unwrap_or_default().into(),
            protocol: Protocol::from_api(p.protocol.as_deref())?,
            port: port(p.port)?,
            node_port: p.node_port.and_then(port).unwrap_or(0),
        })
    });
    let has_affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
    let seconds = seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS);
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    Some(Service {
        cluster_ips,
        external_ips: external_ips.collect(),
        ingress_ips: if is_load_balancer { addresses(ingress) } else { Box::default() },
        source_ranges: source_ranges(&spec.load_balancer_source_ranges),
        ports: ports.collect(),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        affinity: has_affinity.then_some(seconds),
        health_check_port: if external_local { spec.health_check_node_port.and_then(port).unwrap_or(0) } else { 0 },
    })
}

/// Ranges without those that lie in another one: the kernel refuses ranges that overlap.
fn source_ranges(texts: &[String]) -> Box<[Cidr]> {
    let mut ranges: Vec<Cidr> = texts.iter().filter_map(|text| Cidr::parse(text.trim())).collect();
    ranges.sort_by_key(|range| (range.prefix, range.address));
    let mut kept: Vec<Cidr> = Vec::new();
    for range in ranges {
        if !kept.iter().any(|outer| outer.contains(range.address)) {
            kept.push(range);
        }
    }
    kept.into()
}

/// When the pods changed that made the control plane write this slice, and whether it is IPv6.
pub fn trigger(slice: &slim::EndpointSlice) -> Option<(Timestamp, bool)> {
    let text = slice.metadata.annotations.as_ref()?.get(LAST_CHANGE)?;
    Some((text.parse().ok()?, slice.address_type == "IPv6"))
}

/// An EndpointSlice of a Service; `None` for one of nobody, of a headless Service, or of names instead of addresses.
pub fn slice(slice: &slim::EndpointSlice, node_name: &str, zones: &mut Zones) -> Option<Slice> {
    if has_label(&slice.metadata, HEADLESS) {
        return None;
    }
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let service = ObjectKey::new(slice.metadata.namespace.as_deref()?, name);
    let v6 = match slice.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        _ => return None,
    };
    let endpoints = slice.endpoints.iter().filter_map(|e| {
        let address: IpAddr = e.addresses.first()?.parse().ok()?;
        // An address of the other family, or one that would reach the node itself, is nobody's endpoint.
        (address.is_ipv6() == v6 && is_routable(&address)).then(|| endpoint(e, address, node_name, zones))
    });
    let endpoints = endpoints.collect();
    let ports = slice.ports.iter().filter_map(|p| {
        let protocol = Protocol::from_api(p.protocol.as_deref())?;
        Some((p.name.as_deref().unwrap_or_default().into(), protocol, port(p.port?)?))
    });
    Some(Slice { service, ports: ports.collect(), endpoints })
}

fn endpoint(endpoint: &slim::Endpoint, address: IpAddr, node_name: &str, zones: &mut Zones) -> Endpoint {
    let conditions = &endpoint.conditions;
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    let standing = match (ready, serving && conditions.terminating == Some(true)) {
        (true, _) => Standing::Ready,
        (false, true) => Standing::Draining,
        (false, false) => Standing::Out,
    };
    let nodes = &endpoint.hints.for_nodes;
    let hints = Hints {
        node: (!nodes.is_empty()).then(|| nodes.iter().any(|node| node.name == node_name)),
        zones: endpoint.hints.for_zones.iter().fold(0, |all, zone| all | zones.bit(&zone.name)),
    };
    let local = endpoint.node_name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(node_name));
    Endpoint { address, standing, local, hints }
}
