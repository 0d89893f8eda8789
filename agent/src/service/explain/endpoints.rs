//! Endpoints of a Service: each with whether it takes traffic, and why. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::Facts;
use super::report::{Conditions, EndpointReport, Reason, Verdict};
use crate::service::convert::{self, BadAddress, Port, Service, Slice};
use crate::service::notes::Notes;
use crate::service::select::{Criteria, Endpoint, Standing, Unused, Zones};
use crate::service::slim;

/// An endpoint as its slice has it.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    /// What it is for rules, or why it is nothing.
    pub(super) endpoint: Result<Endpoint, BadAddress>,
    address: String,
    pod: Option<String>,
    node: Option<String>,
    zone: Option<String>,
    hinted: Vec<String>,
    conditions: Conditions,
}

/// A slice.
#[derive(Clone, Debug)]
pub(super) struct ShownSlice {
    /// Its name.
    pub(super) name: String,
    /// Whether it is of IPv6; an error where it is of no family that is served.
    pub(super) v6: Result<bool, String>,
    /// Its ports as people read them.
    pub(super) ports: Vec<String>,
    /// What the index makes of it, where that is anything.
    slice: Option<Slice>,
    /// Names of ports that have no number.
    unnumbered: Vec<String>,
    /// Its endpoints.
    pub(super) endpoints: Vec<Shown>,
}

/// All slices of a Service.
#[derive(Clone, Debug)]
pub(super) struct Slices {
    pub(super) all: Vec<ShownSlice>,
    /// Slices that the index has otherwise than the API.
    pub(super) stale: Vec<String>,
}

/// A slice without what rules do not need.
fn slim(slice: &EndpointSlice) -> Option<slim::EndpointSlice> {
    serde_json::from_value(serde_json::to_value(slice).ok()?).ok()
}

impl Slices {
    /// From the objects, or from what the index keeps where they could not be read.
    pub(super) fn new(facts: &Facts) -> Self {
        let known = &facts.known;
        let Ok(objects) = &facts.objects else {
            let all = known.slices.iter().map(|(key, slice)| from_index(&key.name, slice, &known.node_name)).collect();
            return Self { all, stale: Vec::new() };
        };
        let mut zones = known.zones.clone();
        let mut all = Vec::new();
        for slice in &objects.slices {
            all.extend(slim(slice).map(|slim| from_api(slice, &slim, &known.node_name, &mut zones)));
        }
        let of_api = |name: &str| all.iter().find(|shown| shown.name == name).and_then(|shown| shown.slice.as_ref());
        let of_index = |name: &str| known.slices.iter().find(|(key, _)| *key.name == *name).map(|(_, slice)| slice);
        let names = all.iter().map(|shown| shown.name.as_str()).chain(known.slices.keys().map(|key| &*key.name));
        let names: BTreeSet<&str> = names.collect();
        // Slices of a Service that is not served are kept, too: whoever asks why it is not has no use for that.
        let is_stale = |name: &&str| known.service.is_some() && of_api(name) != of_index(name);
        let stale = names.into_iter().filter(is_stale).map(str::to_owned).collect();
        Self { all, stale }
    }

    /// The endpoints of a port, with what becomes of each.
    pub(super) fn endpoints(&self, facts: &Facts, service: &Service, port: &Port) -> Vec<EndpointReport> {
        let standing = |mut endpoint: Endpoint| {
            if is_leaving(facts, &endpoint) {
                endpoint.standing = Standing::Draining;
            }
            endpoint
        };
        let number = |slice: &ShownSlice| slice.slice.as_ref().and_then(|slice| slice.number(port));
        let usable = self.all.iter().filter_map(|slice| Some((slice, number(slice)?)));
        let usable = usable.flat_map(|(slice, number)| {
            let endpoints = slice.endpoints.iter().filter_map(|shown| shown.endpoint.ok());
            endpoints.map(move |endpoint| (standing(endpoint), number))
        });
        let usable: Vec<(Endpoint, u16)> = usable.collect();
        let criteria = [false, true].map(|v6| Criteria::of(&usable, v6, facts.known.zone));
        let mut seen: BTreeSet<(IpAddr, u16)> = BTreeSet::new();
        let mut reports = Vec::new();
        for slice in &self.all {
            for shown in &slice.endpoints {
                let judged = match (&slice.v6, shown.endpoint, number(slice)) {
                    (Err(why), ..) => out(Reason::BadSlice, why),
                    (Ok(_), Err(bad), _) => out(Reason::BadAddress, format!("its address is {bad}")),
                    (Ok(_), Ok(_), None) => out(Reason::NoPort, no_port(slice, port)),
                    (Ok(v6), Ok(endpoint), Some(number)) => match seen.insert((endpoint.address, number)) {
                        true => Ok((standing(endpoint), criteria[usize::from(*v6)])),
                        false => out(Reason::Duplicate, "it is listed twice, and counts once"),
                    },
                };
                reports.push(shown.report(facts, service, (slice, number(slice)), judged));
            }
        }
        reports
    }
}

fn out<T>(reason: Reason, why: impl Into<String>) -> Result<T, Verdict> {
    Err(Verdict { reason, why: why.into() })
}

/// A pod of this node that stops, of which its slice does not know yet.
fn is_leaving(facts: &Facts, endpoint: &Endpoint) -> bool {
    endpoint.local && endpoint.standing == Standing::Ready && facts.known.leaving.contains(&endpoint.address)
}

fn no_port(slice: &ShownSlice, port: &Port) -> String {
    let wanted = match &*port.name {
        "" => format!("a port for {} without a name", port.protocol),
        name => format!("a port {name} for {}", port.protocol),
    };
    if slice.unnumbered.iter().any(|name| **name == *port.name) {
        return format!("its slice has {wanted}, but no number for it");
    }
    let has = if slice.ports.is_empty() { "no port".to_owned() } else { format!("only {}", slice.ports.join(", ")) };
    format!("its slice has not {wanted}: it has {has}")
}

impl Shown {
    fn report(
        &self,
        facts: &Facts,
        service: &Service,
        (slice, port): (&ShownSlice, Option<u16>),
        judged: Result<(Endpoint, Criteria), Verdict>,
    ) -> EndpointReport {
        let (inside, outside) = match judged {
            Err(verdict) => (verdict, None),
            Ok((endpoint, criteria)) => {
                let judge = |policy: &str, is_local: bool| {
                    let result = if is_local { criteria.for_local(&endpoint) } else { criteria.for_cluster(&endpoint) };
                    match result {
                        Ok(()) => self.used(facts, &endpoint),
                        Err(why) => self.unused(facts, why, policy),
                    }
                };
                let inside = judge("internalTrafficPolicy", service.internal_local);
                let outside = judge("externalTrafficPolicy", service.external_local);
                let differs = service.internal_local != service.external_local && outside != inside;
                (inside, differs.then_some(outside))
            }
        };
        EndpointReport {
            address: self.address.clone(),
            port,
            slice: slice.name.clone(),
            pod: self.pod.clone(),
            node: self.node.clone(),
            is_local: self.endpoint.is_ok_and(|endpoint| endpoint.local),
            zone: self.zone.clone(),
            conditions: self.conditions,
            inside,
            outside,
        }
    }

    fn used(&self, facts: &Facts, endpoint: &Endpoint) -> Verdict {
        let (reason, why) = match endpoint.standing {
            Standing::Draining if self.is_stopping_here(facts) => {
                (Reason::NothingElse, "its pod stops, and nothing else is ready")
            }
            Standing::Draining => (Reason::NothingElse, "it terminates, and nothing is ready"),
            Standing::Ready | Standing::Out => (Reason::Ready, "ready"),
        };
        Verdict { reason, why: why.to_owned() }
    }

    fn is_stopping_here(&self, facts: &Facts) -> bool {
        self.endpoint.is_ok_and(|endpoint| is_leaving(facts, &endpoint))
    }

    fn unused(&self, facts: &Facts, why: Unused, policy: &str) -> Verdict {
        let hinted = || if self.hinted.is_empty() { "others".to_owned() } else { self.hinted.join(", ") };
        let node = || self.node.as_ref().map_or_else(|| "another node".to_owned(), |node| format!("node {node}"));
        let (reason, why) = match why {
            Unused::NotReady if self.conditions.terminating => {
                (Reason::NotReady, "it terminates and does not serve any more".to_owned())
            }
            Unused::NotReady => (Reason::NotReady, "it is not ready".to_owned()),
            Unused::Draining if self.is_stopping_here(facts) => {
                let why = "its pod stops, which this node knows before the API server says so, and others are ready";
                (Reason::Terminating, why.to_owned())
            }
            Unused::Draining => (Reason::Terminating, "it terminates, and others are ready".to_owned()),
            Unused::Elsewhere => (Reason::Elsewhere, format!("it is on {}, and {policy} is Local", node())),
            Unused::OtherNode => (Reason::OtherNode, format!("it is meant for {} (hints)", hinted())),
            Unused::OtherZone => {
                let zone = facts.known.zones.name(facts.known.zone).unwrap_or("another zone");
                let why = format!("it is meant for {} (hints), and this node is in {zone}", hinted());
                (Reason::OtherZone, why)
            }
        };
        Verdict { reason, why }
    }
}

fn from_api(slice: &EndpointSlice, slim: &slim::EndpointSlice, node_name: &str, zones: &mut Zones) -> ShownSlice {
    let converted = convert::slice(slim, node_name, zones, &mut Notes::default());
    let v6 = match slim.address_type.as_str() {
        "IPv4" => Ok(false),
        "IPv6" => Ok(true),
        other => Err(format!("its slice has addresses of type {other}, which no rule can serve")),
    };
    // Without a family nothing is refused for being of another one.
    let family = v6.clone().unwrap_or_default();
    let typed = slice.endpoints.iter().flatten();
    let endpoints = typed.zip(&slim.endpoints).map(|(full, slim)| {
        let address = convert::endpoint_address(slim, family);
        let hints = full.hints.clone().unwrap_or_default();
        let nodes = hints.for_nodes.unwrap_or_default().into_iter().map(|node| format!("node {}", node.name));
        let hinted = hints.for_zones.unwrap_or_default().into_iter().map(|zone| format!("zone {}", zone.name));
        Shown {
            endpoint: address.map(|address| convert::endpoint(slim, address, node_name, zones)),
            address: full.addresses.first().cloned().unwrap_or_default(),
            pod: full.target_ref.as_ref().filter(|of| of.kind.as_deref() == Some("Pod")).and_then(|of| of.name.clone()),
            node: full.node_name.clone(),
            zone: full.zone.clone(),
            hinted: nodes.chain(hinted).collect(),
            conditions: conditions(&slim.conditions),
        }
    });
    let endpoints = endpoints.collect();
    let name = |port: &slim::EndpointPort| port.name.clone().unwrap_or_default();
    let word = |port: &slim::EndpointPort| {
        let number = port.port.map_or_else(|| "no number".to_owned(), |number| number.to_string());
        let name = if name(port).is_empty() { "one without a name".to_owned() } else { name(port) };
        format!("{name} ({number}/{})", port.protocol.as_deref().unwrap_or("TCP"))
    };
    ShownSlice {
        name: slim.metadata.name.clone().unwrap_or_default(),
        v6,
        ports: slim.ports.iter().map(word).collect(),
        unnumbered: slim.ports.iter().filter(|port| port.port.is_none()).map(name).collect(),
        slice: converted,
        endpoints,
    }
}

/// The API's defaults are those that the index goes by.
fn conditions(conditions: &slim::Conditions) -> Conditions {
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(true);
    Conditions { ready, serving, terminating: conditions.terminating == Some(true) }
}

/// What the index keeps is less, and says so by what is absent.
fn from_index(name: &str, slice: &Slice, node_name: &str) -> ShownSlice {
    let shown = |endpoint: Endpoint| Shown {
        endpoint: Ok(endpoint),
        address: endpoint.address.to_string(),
        pod: None,
        node: endpoint.local.then(|| node_name.to_owned()),
        zone: None,
        hinted: Vec::new(),
        conditions: match endpoint.standing {
            Standing::Ready => Conditions { ready: true, serving: true, terminating: false },
            Standing::Draining => Conditions { ready: false, serving: true, terminating: true },
            Standing::Out => Conditions::default(),
        },
    };
    let word = |(name, protocol, number): &(Arc<str>, _, u16)| format!("{name} ({number}/{})", protocol);
    ShownSlice {
        name: name.to_owned(),
        v6: Ok(slice.endpoints.iter().next().is_some_and(|endpoint| endpoint.address.is_ipv6())),
        ports: slice.ports.iter().map(word).collect(),
        unnumbered: Vec::new(),
        endpoints: slice.endpoints.iter().map(shown).collect(),
        slice: Some(slice.clone()),
    }
}
