//! From API objects to the compact forms that the index keeps. Pure. What an API server would not admit is left out here,
//! part by part, so that one bad object never costs another Service.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::notes::Notes;
use super::packed::Packed;
use super::select::{Endpoint, Hints, Standing, Zones};
use super::slim::{self, HEADLESS, LAST_CHANGE, SERVICE_NAME, SERVICE_PROXY_NAME};
use super::{Cidr, Protocol, parse_address};
use crate::ids::ObjectKey;

/// kube-proxy's and the API's default: three hours.
const AFFINITY_SECONDS: u32 = 10_800;

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; joins it with the port of a slice.
    pub name: Arc<str>,
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
    pub ports: Box<[(Arc<str>, Protocol, u16)]>,
    /// Its endpoints.
    pub endpoints: Packed<Endpoint>,
}

impl Slice {
    /// The number of a port of its Service.
    pub fn number(&self, port: &Port) -> Option<u16> {
        let found = self.ports.iter().find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        found.map(|(_, _, number)| *number)
    }
}

/// Namespace and name.
pub fn key(meta: &ObjectMeta) -> Option<ObjectKey> {
    Some(ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

fn has_label(meta: &ObjectMeta, name: &str) -> bool {
    meta.labels.as_ref().is_some_and(|labels| labels.contains_key(name))
}

/// Why an address is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAddress {
    /// There is none.
    Missing,
    /// The text is no address.
    Unreadable,
    /// It is not of the family that its slice says.
    OtherFamily,
    /// It is of one link.
    LinkLocal,
    /// It would reach this machine.
    Loopback,
    /// It is nobody's.
    Unspecified,
    /// It is of many.
    Multicast,
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "missing",
            Self::Unreadable => "not an IP address",
            Self::OtherFamily => "not of the family of its slice",
            Self::LinkLocal => "an address of one link",
            Self::Loopback => "a loopback address",
            Self::Unspecified => "no address of anybody",
            Self::Multicast => "a multicast address",
        })
    }
}

/// Reads an address that can be anybody's but this machine's or this link's own.
fn routable(text: &str) -> Result<IpAddr, BadAddress> {
    let address = parse_address(text).ok_or(BadAddress::Unreadable)?;
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match () {
        () if is_link_local => Err(BadAddress::LinkLocal),
        () if address.is_loopback() => Err(BadAddress::Loopback),
        () if address.is_unspecified() => Err(BadAddress::Unspecified),
        () if address.is_multicast() => Err(BadAddress::Multicast),
        () => Ok(address),
    }
}

/// The address of an endpoint of a slice of a family. An address that would reach the node itself, or one of the other
/// family, is nobody's endpoint.
pub fn endpoint_address(endpoint: &slim::Endpoint, v6: bool) -> Result<IpAddr, BadAddress> {
    let address = routable(endpoint.addresses.first().ok_or(BadAddress::Missing)?)?;
    if address.is_ipv6() == v6 { Ok(address) } else { Err(BadAddress::OtherFamily) }
}

/// Reads addresses; what cannot be one goes into the notes.
fn addresses<'a>(what: &'static str, texts: impl Iterator<Item = &'a String>, notes: &mut Notes) -> Box<[IpAddr]> {
    // Nobody checks externalIPs for being empty, and it means nothing.
    let texts = texts.filter(|text| !text.trim().is_empty());
    texts.filter_map(|text| address(what, text, notes)).collect()
}

fn address(what: &'static str, text: &str, notes: &mut Notes) -> Option<IpAddr> {
    match routable(text) {
        Ok(address) => return Some(address),
        Err(why @ BadAddress::Unreadable) => notes.add(|| format!("{what} {text:?} is {why}")),
        Err(why) => notes.add(|| format!("{what} {text} is {why}")),
    }
    None
}

fn port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}

/// Why a Service is not served by rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// It is a name only.
    ExternalName,
    /// It names another service proxy.
    OtherProxy,
    /// It is headless by its label.
    HeadlessLabel,
    /// It has no address, as those without `clusterIP`.
    NoClusterIp,
}

/// A Service that is served by rules, or why it is not.
pub fn service(
    service: &slim::Service,
    external_ip_ranges: Option<&[Cidr]>,
    notes: &mut Notes,
) -> Result<Service, Unserved> {
    let spec = &service.spec;
    if spec.kind.as_deref() == Some("ExternalName") {
        return Err(Unserved::ExternalName);
    }
    if has_label(&service.metadata, SERVICE_PROXY_NAME) {
        return Err(Unserved::OtherProxy);
    }
    if has_label(&service.metadata, HEADLESS) {
        return Err(Unserved::HeadlessLabel);
    }
    let first = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_empty());
    let cluster_ips = spec.cluster_ips.iter().chain(first).filter(|text| *text != "None");
    let cluster_ips = addresses("clusterIP", cluster_ips, notes);
    if cluster_ips.is_empty() {
        return Err(Unserved::NoClusterIp);
    }
    let ingress = service.status.load_balancer.ingress.iter();
    let ingress = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let is_load_balancer = spec.kind.as_deref() == Some("LoadBalancer");
    let has_affinity = spec.session_affinity.as_deref() == Some("ClientIP");
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
    let seconds = seconds.and_then(|s| u32::try_from(s).ok()).filter(|s| *s > 0).unwrap_or(AFFINITY_SECONDS);
    let external_local = spec.external_traffic_policy.as_deref() == Some("Local");
    let service = Service {
        external_ips: external_ips(&spec.external_ips, external_ip_ranges, notes),
        ingress_ips: if is_load_balancer { addresses("load balancer address", ingress, notes) } else { Box::default() },
        source_ranges: source_ranges(&spec.load_balancer_source_ranges, notes),
        ports: spec.ports.iter().filter_map(|port| service_port(port, notes)).collect(),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        external_local,
        affinity: has_affinity.then_some(seconds),
        health_check_port: if external_local { spec.health_check_node_port.and_then(port).unwrap_or(0) } else { 0 },
        cluster_ips,
    };
    for other in service.external_ips.iter().chain(&service.ingress_ips) {
        if !service.cluster_ips.iter().any(|own| own.is_ipv6() == other.is_ipv6()) {
            notes.add(|| format!("{other} is of a family that the Service does not have"));
        }
    }
    Ok(service)
}

fn external_ips(texts: &[String], ranges: Option<&[Cidr]>, notes: &mut Notes) -> Box<[IpAddr]> {
    let mut allowed = Vec::new();
    for ip in addresses("externalIP", texts.iter(), notes) {
        if ranges.is_none_or(|all| all.iter().any(|range| range.contains(ip))) {
            allowed.push(ip);
        } else {
            notes.add(|| format!("externalIP {ip} is in none of the ranges that this node's configuration allows"));
        }
    }
    allowed.into()
}

fn service_port(of: &slim::ServicePort, notes: &mut Notes) -> Option<Port> {
    let (protocol, number) = (Protocol::from_api(of.protocol.as_deref()), port(of.port));
    let (Some(protocol), Some(number)) = (protocol, number) else {
        notes.add(|| format!("port {} of protocol {:?} is none that can be served", of.port, of.protocol));
        return None;
    };
    let node_port = of.node_port.filter(|port| *port != 0);
    if let Some(wrong) = node_port.filter(|number| port(*number).is_none()) {
        notes.add(|| format!("nodePort {wrong} is not between 1 and 65535"));
    }
    let name = of.name.as_deref().unwrap_or_default().into();
    Some(Port { name, protocol, port: number, node_port: node_port.and_then(port).unwrap_or(0) })
}

/// Ranges without those that lie in another one: the kernel refuses ranges that overlap.
fn source_ranges(texts: &[String], notes: &mut Notes) -> Box<[Cidr]> {
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    let (mut ranges, mut is_limited) = (Vec::<Cidr>::new(), false);
    for text in texts {
        is_limited = true;
        match Cidr::parse(text) {
            Some(range) => ranges.push(range),
            None => notes.add(|| format!("source range {text:?} is not a network such as 192.0.2.0/24")),
        }
    }
    if is_limited && ranges.is_empty() {
        notes.add(|| "no source range is left, so everybody may connect".to_owned());
    }
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

/// The Service of an EndpointSlice.
pub fn service_of(slice: &slim::EndpointSlice) -> Option<ObjectKey> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.metadata.namespace.as_deref()?, name))
}

/// An EndpointSlice of a Service; `None` for one of nobody, of a headless Service, or of names instead of addresses.
pub fn slice(slice: &slim::EndpointSlice, node_name: &str, zones: &mut Zones, notes: &mut Notes) -> Option<Slice> {
    if has_label(&slice.metadata, HEADLESS) {
        return None;
    }
    let service = service_of(slice)?;
    let v6 = match slice.address_type.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        _ => return None,
    };
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for e in &slice.endpoints {
        let text = || e.addresses.first().map(String::as_str).unwrap_or_default();
        match endpoint_address(e, v6) {
            Ok(address) => endpoints.push(endpoint(e, address, node_name, zones)),
            Err(BadAddress::Missing) => notes.add(|| "an endpoint has no address".to_owned()),
            Err(BadAddress::OtherFamily) => {
                notes.add(|| format!("endpoint {} is not of the family {}", text(), slice.address_type));
            }
            Err(why @ BadAddress::Unreadable) => notes.add(|| format!("endpoint {:?} is {why}", text())),
            Err(why) => notes.add(|| format!("endpoint {} is {why}", text())),
        }
    }
    let ports = slice.ports.iter().filter_map(|p| slice_port(p, notes)).collect();
    Some(Slice { service, ports, endpoints: endpoints.into() })
}

/// A port without a name has the empty one, as the API server makes it.
fn slice_port(of: &slim::EndpointPort, notes: &mut Notes) -> Option<(Arc<str>, Protocol, u16)> {
    let (protocol, number) = (Protocol::from_api(of.protocol.as_deref()), of.port.and_then(port));
    let (Some(protocol), Some(number)) = (protocol, number) else {
        let name = of.name.as_deref().unwrap_or_default();
        notes.add(|| format!("port {name:?} with number {:?} and protocol {:?} is none", of.port, of.protocol));
        return None;
    };
    Some((of.name.as_deref().unwrap_or_default().into(), protocol, number))
}

/// An endpoint at an address that can be one's.
pub fn endpoint(endpoint: &slim::Endpoint, address: IpAddr, node_name: &str, zones: &mut Zones) -> Endpoint {
    let conditions = &endpoint.conditions;
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(true);
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
