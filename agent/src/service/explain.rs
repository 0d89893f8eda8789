//! `nodelet explain service`: what happens to packets for a Service on this node, and why. Pure.
//!
//! ```text
//!  the objects as the API has them ─┐
//!  what the index made of them ─────┼─► endpoints (in or out, and why) ─┐
//!                                   └─► fronts: wanted ⇄ in the kernel ─┼─► findings ─► Report ─► text
//!  elements read back from the kernel ──► packets (walk) ───────────────┘
//! ```
//! Nothing is decided here. Who serves is asked of [`Criteria`](super::select::Criteria), which selects for the rules, too;
//! what a front comes to is what the index tells the programmer; a packet is walked through the elements that the kernel
//! holds. So an explanation cannot differ from what is done, and it costs nothing until somebody asks: names of nodes and zones,
//! which the index does not keep, come with the objects, which are fetched for the one Service.
//!
//! What it does not look at: routes, other tables of the kernel, and whether an endpoint answers.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Settings;
use super::index::known::Known;
use super::walk::maps::Held;
use crate::ids::ObjectKey;

pub mod ask;
mod endpoints;
mod findings;
mod fronts;
mod packets;
pub mod report;
pub mod text;
mod words;

pub use ask::Ask;
pub use report::Report;

use ask::PortAsked;
use endpoints::Slices;
use report::{Policies, PortReport};

/// A Service and its slices as the API has them.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The Service, where there is one.
    pub service: Option<Service>,
    /// Slices that name it.
    pub slices: Vec<EndpointSlice>,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Its addresses; those of the node where it is on the node's network.
    pub addresses: Vec<IpAddr>,
    /// Whether it is on the node's network.
    pub host_network: bool,
}

/// How the programmer does.
#[derive(Clone, Debug, Default)]
pub struct Programming {
    /// Changes were told that the kernel does not have yet.
    pub is_pending: bool,
    /// Why the last commit failed.
    pub error: Option<String>,
}

/// Everything that an explanation follows from.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the index knows.
    pub known: Known,
    /// The objects, or why they could not be read.
    pub objects: Result<Objects, String>,
    /// What the kernel holds.
    pub held: Held,
    /// Settings that are in rules.
    pub settings: Settings,
    /// All addresses of this machine, those of the Node first.
    pub own: Vec<IpAddr>,
    /// Pods of this node, the newest of a name first.
    pub pods: Vec<LocalPod>,
    /// How the programmer does.
    pub programming: Programming,
}

/// Why there is no explanation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such Service.
    #[error("there is no Service {0}; `nodelet explain service NAMESPACE/NAME` takes one of the cluster")]
    NoService(ObjectKey),
    /// The agent does not know it, and could not ask.
    #[error("Service {0} is not among those that this node serves, and nobody can say whether there is one: {1}")]
    Unknown(ObjectKey, String),
    /// The Service has no such port.
    #[error("Service {service} has no port {asked}; it has {has}")]
    NoPort {
        /// The Service.
        service: ObjectKey,
        /// What was asked for.
        asked: String,
        /// Its ports.
        has: String,
    },
    /// The pod is not known.
    #[error("there is no pod {0} on this node; give the address of a pod elsewhere: --from IP")]
    NoPod(ObjectKey),
    /// The pod has no address.
    #[error("pod {0} has no address yet, so nothing comes from it")]
    NoAddress(ObjectKey),
    /// The source and the Service have no family in common.
    #[error("Service {0} has no address of the family of {1}, so nothing from there can reach it")]
    OtherFamily(ObjectKey, String),
}

/// Explains a Service.
pub fn report(facts: &Facts, ask: &Ask) -> Result<Report, Refusal> {
    let object = facts.objects.as_ref().ok().and_then(|objects| objects.service.as_ref());
    if object.is_none() && facts.known.service.is_none() {
        return Err(match &facts.objects {
            Ok(_) => Refusal::NoService(ask.service.clone()),
            Err(error) => Refusal::Unknown(ask.service.clone(), error.clone()),
        });
    }
    let slices = Slices::new(facts);
    let ports = ports(facts, ask, &slices)?;
    let packets: Vec<bool> =
        ports.iter().flat_map(|port| &port.fronts).flat_map(|front| &front.packets).map(|p| p.passes).collect();
    let is_served = facts.known.service.is_some() && !ports.is_empty();
    if is_served && packets.is_empty() && ports.iter().any(|port| !port.fronts.is_empty()) {
        return Err(Refusal::OtherFamily(ask.service.clone(), ask.from.to_string()));
    }
    let (wrong, notes) = findings::findings(facts, ask, &slices, &ports);
    let is_walked_truly = !facts.held.has_foreign_rules();
    Ok(Report {
        service: ask.service.to_string(),
        kind: object.and_then(|service| service.spec.as_ref()?.type_.clone()),
        node: facts.known.node_name.to_string(),
        zone: facts.known.zones.name(facts.known.zone).map(str::to_owned),
        policies: facts.known.service.as_ref().map(|service| Policies {
            internal_local: service.internal_local,
            external_local: service.external_local,
            affinity_seconds: service.affinity,
            source_ranges: service.source_ranges.iter().map(ToString::to_string).collect(),
        }),
        passes: is_walked_truly && !packets.is_empty() && packets.iter().all(|passes| *passes),
        ports,
        wrong,
        notes,
    })
}

/// The ports that were asked for.
fn ports(facts: &Facts, ask: &Ask, slices: &Slices) -> Result<Vec<PortReport>, Refusal> {
    let Some(service) = &facts.known.service else { return Ok(Vec::new()) };
    let is_asked = |port: &super::convert::Port| {
        let is_it = match &ask.port {
            None => true,
            Some(PortAsked::Number(number)) => port.port == *number,
            Some(PortAsked::Name(name)) => *port.name == **name,
        };
        is_it && ask.protocol.is_none_or(|protocol| port.protocol == protocol)
    };
    let mut reports = Vec::new();
    for (port, fronts) in service.ports.iter().zip(&facts.known.fronts).filter(|(port, _)| is_asked(port)) {
        let fronts = fronts.iter().map(|front| fronts::report(facts, ask, front)).collect::<Result<_, _>>()?;
        reports.push(PortReport {
            name: port.name.to_string(),
            protocol: port.protocol.to_string(),
            port: port.port,
            endpoints: slices.endpoints(facts, service, port),
            fronts,
        });
    }
    if reports.is_empty() && (ask.port.is_some() || ask.protocol.is_some()) {
        let asked = ask.port.as_ref().map(ToString::to_string);
        let protocol = ask.protocol.map(|protocol| protocol.to_string());
        return Err(Refusal::NoPort {
            service: ask.service.clone(),
            asked: asked.into_iter().chain(protocol).collect::<Vec<_>>().join("/"),
            has: words::ports(&service.ports),
        });
    }
    Ok(reports)
}

#[cfg(test)]
mod tests;
