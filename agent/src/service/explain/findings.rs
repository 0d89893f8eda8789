//! What is wrong with a Service on this node, and what is good to know. Pure.

use k8s_openapi::api::core::v1::Service as Object;

use super::endpoints::Slices;
use super::report::{EndpointReport, FrontKind, PortReport, Reason};
use super::{Ask, Facts, words};
use crate::service::Cidr;
use crate::service::convert::{self, Service};
use crate::service::notes::Notes;
use crate::service::walk::maps::RulesFound;
use crate::service::{notice, slim};

/// What is wrong, and what is good to know.
pub(super) fn findings(facts: &Facts, ask: &Ask, slices: &Slices, ports: &[PortReport]) -> (Vec<String>, Vec<String>) {
    let mut found = Found::default();
    let object = facts.objects.as_ref().ok().and_then(|objects| objects.service.as_ref());
    found.of_agent(facts, slices);
    found.of_object(facts, object);
    if let Some(service) = &facts.known.service {
        found.of_spec(facts, service);
        found.of_slices(ask, slices, object);
        ports.iter().for_each(|port| found.of_port(service, port));
        found.of_clients(facts, service, ports);
    }
    (found.wrong, found.notes)
}

#[derive(Default)]
struct Found {
    wrong: Vec<String>,
    notes: Vec<String>,
}

impl Found {
    fn wrong(&mut self, text: impl Into<String>) {
        self.wrong.push(text.into());
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// What stands between the objects and the kernel.
    fn of_agent(&mut self, facts: &Facts, slices: &Slices) {
        if !facts.known.is_synced {
            self.wrong("this agent has not listed Services and EndpointSlices since it started, so it changes no rules yet; those of its predecessor stay");
        }
        if let Some(error) = &facts.programming.error {
            self.wrong(format!("the last commit failed: {error}; the agent tries again, its log has more"));
        }
        if facts.programming.is_pending {
            self.wrong("changes wait to be committed; what differs below may be that");
        }
        for (family, rules) in ["ip", "ip6"].into_iter().zip(facts.held.rules) {
            match rules {
                RulesFound::Ours => {}
                RulesFound::Missing => self.wrong(format!("the kernel has no table {family} nodelet; a running agent writes it at once")),
                RulesFound::Changed => self.wrong(format!(
                    "chains or rules of the table {family} nodelet are not those of this agent, so packets may go other ways than is said here"
                )),
            }
        }
        for (front, (refused, error)) in &facts.known.refused {
            self.wrong(format!(
                "the kernel refuses {} ({error}); it is asked again later",
                notice::words(front, refused)
            ));
        }
        for name in &slices.stale {
            self.wrong(format!(
                "EndpointSlice {name} is not the same here as in the API: this agent has not seen its newest change, unless it changed just now"
            ));
        }
        if let Err(error) = &facts.objects {
            self.note(format!("the objects could not be read ({error}); what is said of them is what this agent keeps, without zones and names of other nodes"));
        }
    }

    /// Whether it is served at all.
    fn of_object(&mut self, facts: &Facts, object: Option<&Object>) {
        let is_known = facts.known.service.is_some();
        let Some(object) = object else {
            if facts.objects.is_ok() && is_known {
                self.wrong("the API has no such Service any more, and this agent has not seen that yet");
            }
            return;
        };
        let slim: Option<slim::Service> =
            serde_json::to_value(object).ok().and_then(|json| serde_json::from_value(json).ok());
        let Some(slim) = slim else { return };
        let mut left_out = Notes::default();
        let converted = convert::service(&slim, facts.known.external_ip_ranges.as_deref(), &mut left_out);
        if let Some(left_out) = left_out.message() {
            self.wrong(left_out);
        }
        match (converted, &facts.known.service) {
            (Err(why), None) => self.wrong(format!("this Service is not served by rules: {}", words::unserved(why))),
            (Ok(_), None) => self.wrong("this agent has not seen the Service yet"),
            (Err(_), Some(_)) => {
                self.wrong("the Service is not to be served any more, and this agent has not seen that yet")
            }
            (Ok(new), Some(known)) if new != *known => {
                self.wrong("the Service is not the same here as in the API: this agent has not seen its newest change");
            }
            (Ok(_), Some(_)) => {}
        }
    }

    /// Addresses and ports that are not served, or not as one may think.
    fn of_spec(&mut self, facts: &Facts, service: &Service) {
        if service.ports.is_empty() {
            self.wrong("the Service has no port that rules could serve");
        }
        let has_node_port = service.ports.iter().any(|port| port.node_port > 0);
        if has_node_port && facts.settings.node_addresses.is_empty() {
            self.wrong("the Service has NodePorts, but no address of this node serves them; see nodePortAddresses");
        }
        if !service.source_ranges.is_empty() && service.ingress_ips.is_empty() {
            self.note("loadBalancerSourceRanges concern load-balancer addresses only, and there are none that this node serves");
        }
        if service.source_ranges.iter().any(|range: &Cidr| range.prefix == 0) {
            self.note("loadBalancerSourceRanges have a range of all addresses, so they keep out nobody of its family");
        }
    }

    /// Where endpoints come from.
    fn of_slices(&mut self, ask: &Ask, slices: &Slices, object: Option<&Object>) {
        let selector = object.and_then(|object| object.spec.as_ref()?.selector.as_ref()).filter(|s| !s.is_empty());
        let selector = selector.map(|selector| {
            selector.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
        });
        let endpoints = slices.all.iter().map(|slice| slice.endpoints.len()).sum::<usize>();
        let name = &ask.service.name;
        match (slices.all.is_empty(), endpoints, selector) {
            (true, _, None) if object.is_some() => self.wrong(format!(
                "the Service has no selector and no EndpointSlice; somebody has to write one with the label kubernetes.io/service-name={name}"
            )),
            (true, _, None) => self.wrong("no EndpointSlice names the Service, so it has no endpoints"),
            (true, _, Some(selector)) => self.wrong(format!(
                "the Service has no endpoints: no EndpointSlice names it, so no running pod has the labels {selector}, or the EndpointSlice controller does not work"
            )),
            (false, 0, None) => self.wrong("the EndpointSlices of the Service have no endpoints"),
            (false, 0, Some(selector)) => {
                self.wrong(format!("the Service has no endpoints: no running pod has the labels {selector}"));
            }
            (false, _, _) => {}
        }
        for (slice, why) in slices.all.iter().filter_map(|slice| Some((slice, slice.v6.as_ref().err()?))) {
            self.wrong(format!("EndpointSlice {} is of no use: {why}", slice.name));
        }
    }

    /// Who serves a port.
    fn of_port(&mut self, service: &Service, port: &PortReport) {
        let name = format!("port {}/{}", port.port, port.protocol);
        let has_port = |endpoint: &&EndpointReport| endpoint.port.is_some();
        let all = &port.endpoints;
        let ours: Vec<&EndpointReport> = all.iter().filter(has_port).collect();
        let is_in = |endpoint: &EndpointReport| {
            endpoint.inside.is_in() || endpoint.outside.as_ref().is_some_and(|outside| outside.is_in())
        };
        let serving = ours.iter().filter(|endpoint| is_in(endpoint)).count();
        if let (true, Some(first)) = (ours.is_empty(), all.first()) {
            self.wrong(format!(
                "{name} has no endpoint, although there are some: {}; the port of a slice has the name of the Service's port, and it is missing where targetPort is a name that no container port has",
                first.inside.why
            ));
        } else if !ours.is_empty() && serving == 0 && !ours.iter().any(|endpoint| is_elsewhere(endpoint)) {
            let reasons = reasons(&ours);
            self.wrong(format!("{name}: none of {} serves: {reasons}", words::count(ours.len(), "endpoint")));
        }
        let terminating = ours.iter().filter(|e| is_in(e) && e.conditions.terminating).count();
        if terminating > 0 && terminating == serving {
            self.wrong(format!("{name} is served by pods that terminate only"));
        }
        self.of_families(port, &name);
        self.of_policies(service, port, &name);
        for front in &port.fronts {
            let at = format!("{} {}", front.kind.word(), std::net::SocketAddr::new(front.address, front.port));
            if let Some(other) = &front.lost_to {
                self.wrong(format!(
                    "{at} belongs to {other}, which has more right to it; only one of them is served there"
                ));
            }
            let drift = [(&front.missing, "lacks"), (&front.unexpected, "has, against what this agent wants,")];
            for (elements, verb) in drift.into_iter().filter(|(elements, _)| !elements.is_empty()) {
                self.wrong(format!("{at}: the kernel {verb} {}", words::few(elements)));
            }
        }
    }

    /// A family with addresses and without endpoints.
    fn of_families(&mut self, port: &PortReport, name: &str) {
        let has = |v6: bool| {
            let address = |e: &EndpointReport| e.address.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_ipv6() == v6);
            port.endpoints.iter().any(address)
        };
        for (v6, word) in [(false, "IPv4"), (true, "IPv6")] {
            if has(!v6) && !has(v6) && port.fronts.iter().any(|front| front.address.is_ipv6() == v6) {
                self.wrong(format!("{name} has {word} addresses, but no endpoint has one"));
            }
        }
    }

    /// Policies that leave this node without endpoints.
    fn of_policies(&mut self, service: &Service, port: &PortReport, name: &str) {
        let others = port.endpoints.iter().filter(|endpoint| is_elsewhere(endpoint)).count();
        let inside = port.endpoints.iter().filter(|endpoint| endpoint.inside.is_in()).count();
        let outside = port.endpoints.iter().filter(|e| e.outside.as_ref().unwrap_or(&e.inside).is_in()).count();
        if service.internal_local && inside == 0 && others > 0 {
            self.wrong(format!(
                "{name}: internalTrafficPolicy is Local, and no endpoint that serves is on this node ({others} elsewhere): connections from this node to the ClusterIP are dropped"
            ));
        }
        let has_external = port.fronts.iter().any(|front| front.kind != FrontKind::ClusterIp);
        if service.external_local && has_external && outside == 0 && others > 0 {
            let asked = match service.health_check_port {
                0 => String::new(),
                port => format!("; load balancers learn that from the health check on port {port}"),
            };
            self.wrong(format!(
                "{name}: externalTrafficPolicy is Local, and no endpoint that serves is on this node ({others} elsewhere): what comes here from outside is dropped{asked}"
            ));
        }
    }

    /// What is remembered of clients, and who is meant by hints.
    fn of_clients(&mut self, facts: &Facts, service: &Service, ports: &[PortReport]) {
        if let Some(seconds) = service.affinity {
            let fronts = facts.known.fronts.iter().flatten().map(|(front, _)| front);
            let clients = fronts.map(|front| facts.held.remembered.keys().filter(|(of, _)| of == front).count());
            let clients = words::count(clients.sum(), "client");
            self.note(format!(
                "session affinity keeps a client at its endpoint until {seconds} s after its last connection; {clients} {} remembered now",
                if clients.starts_with("1 ") { "is" } else { "are" }
            ));
        }
        let is_hinted = |e: &EndpointReport| matches!(e.inside.reason, Reason::OtherNode | Reason::OtherZone);
        if ports.iter().flat_map(|port| &port.endpoints).any(is_hinted) {
            self.note("hints of the EndpointSlices are followed: traffic stays in this zone, or on this node");
        }
    }
}

/// Ready, but not where the policy wants it.
fn is_elsewhere(endpoint: &EndpointReport) -> bool {
    let mut verdicts = endpoint.outside.iter().chain([&endpoint.inside]);
    endpoint.conditions.ready && verdicts.any(|verdict| verdict.reason == Reason::Elsewhere)
}

/// Why endpoints do not serve, each reason once with how many have it.
fn reasons(endpoints: &[&EndpointReport]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for endpoint in endpoints {
        match counts.iter_mut().find(|(why, _)| *why == endpoint.inside.why) {
            Some((_, count)) => *count += 1,
            None => counts.push((&endpoint.inside.why, 1)),
        }
    }
    counts.iter().map(|(why, count)| format!("{why} ({count})")).collect::<Vec<_>>().join(", ")
}
