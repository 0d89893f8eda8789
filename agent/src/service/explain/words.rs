//! Words for what the rules are made of. Pure.

use super::report::FrontKind;
use crate::ids::ObjectKey;
use crate::service::convert::{Port, Unserved};
use crate::service::index::Rank;
use crate::service::program::{Element, Verdict};
use crate::service::walk::Hit;
use crate::service::{Cidr, host_ports};

pub(super) fn cidrs(cidrs: &[Cidr]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `80/TCP (http), 443/TCP`.
pub(super) fn ports(ports: &[Port]) -> String {
    let word = |port: &Port| {
        let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
        format!("{}/{}{name}", port.port, port.protocol)
    };
    match ports {
        [] => "none that rules could serve".to_owned(),
        ports => ports.iter().map(word).collect::<Vec<_>>().join(", "),
    }
}

/// `1 endpoint`, `3 endpoints`.
pub(super) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Not more than a few of many.
pub(super) fn few(texts: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = texts.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = texts.len().saturating_sub(SHOWN);
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

/// What the front of a Service is; it has no hostPorts.
pub(super) fn kind(rank: Rank) -> FrontKind {
    match rank {
        Rank::ClusterIp => FrontKind::ClusterIp,
        Rank::NodePort | Rank::HostPort => FrontKind::NodePort,
        Rank::Ingress => FrontKind::LoadBalancer,
        Rank::External => FrontKind::ExternalIp,
    }
}

/// A Service, or a pod with a hostPort.
pub(super) fn owner(key: &ObjectKey) -> String {
    match host_ports::pod_name(key) {
        Some(name) => format!("the hostPort of pod {}/{name}", key.namespace),
        None => format!("Service {key}"),
    }
}

pub(super) fn unserved(why: Unserved) -> &'static str {
    match why {
        Unserved::ExternalName => {
            "it is of type ExternalName: cluster DNS answers for it with another name, and no address is served"
        }
        Unserved::OtherProxy => {
            "its label service.kubernetes.io/service-proxy-name gives it to another service proxy; remove the label to have it served here"
        }
        Unserved::HeadlessLabel => {
            "its label service.kubernetes.io/headless says that it is headless: clients find endpoints by DNS, and no address is served"
        }
        Unserved::NoClusterIp => {
            "it is headless (clusterIP is None, or it has none yet): clients find endpoints by DNS, and no address is served"
        }
    }
}

/// An element with the name of its set, as `nft list set` shows it.
pub(super) fn element(element: &Element) -> String {
    let what = match element {
        Element::Service(_, _, Verdict::Pick(number, false)) => format!("one of {number}"),
        Element::Service(_, _, Verdict::Pick(number, true)) => {
            format!("the one that the client had last, else one of {number}")
        }
        Element::Service(_, _, Verdict::Drop) => "drop".to_owned(),
        Element::Endpoint(_, _, slot, to) => format!("slot {slot} is {}", to),
        Element::Affinity(_, seconds) => format!("a client keeps its endpoint for {seconds} s"),
        Element::NoEndpoints(_) => "refuse".to_owned(),
        Element::Masquerade(_) => "give it an address of this node as its source".to_owned(),
        Element::Firewalled(_) => "only allowed sources".to_owned(),
        Element::Allowed(_, source) => format!("allow {}", source),
    };
    format!("{}: {what}", element.set().name())
}

/// An entry that a packet hits.
pub(super) fn hit(hit: &Hit) -> String {
    match hit {
        Hit::Element(found) => element(found),
        Hit::ClusterIp(address) => format!("cluster-ips: {address}"),
        Hit::Hairpin(address) => format!("hairpin: {address} to itself"),
        Hit::Remembered(_, to) => format!("affinity: the client had {} last", to),
        Hit::Range(range) => format!("the range of ClusterIPs {}", range),
    }
}
