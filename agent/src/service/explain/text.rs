//! A report for people. Pure.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::report::{Conditions, EndpointReport, FrontReport, Policies, PortReport, Report, Verdict};

/// The report as text: the way of a packet from top to bottom, then what is wrong, then the answer.
pub fn text(report: &Report) -> String {
    let mut out = Text(String::new());
    out.head(report);
    report.ports.iter().for_each(|port| out.port(port));
    out.list("What is wrong", &report.wrong);
    out.list("Good to know", &report.notes);
    out.line(0, "");
    out.line(0, if report.passes { "Traffic passes." } else { "Traffic does not pass." });
    out.0
}

struct Text(String);

impl Text {
    fn line(&mut self, depth: usize, text: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{}{text}", "  ".repeat(depth));
    }

    /// A word at the beginning of the first of some lines.
    fn labelled(&mut self, depth: usize, label: &str, lines: &[String]) {
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            self.line(depth, &format!("{label:<9}{line}"));
        }
    }

    fn list(&mut self, title: &str, items: &[String]) {
        if items.is_empty() {
            return;
        }
        self.line(0, "");
        self.line(0, title);
        items.iter().for_each(|item| self.line(1, &format!("- {item}")));
    }

    fn head(&mut self, report: &Report) {
        let kind = report.kind.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
        let zone = report.zone.as_ref().map(|zone| format!(" in zone {zone}")).unwrap_or_default();
        self.line(0, &format!("Service {}{kind}, on node {}{zone}", report.service, report.node));
        if let Some(policies) = &report.policies {
            self.line(1, &words(policies));
        }
    }

    fn port(&mut self, port: &PortReport) {
        let name = if port.name.is_empty() { String::new() } else { format!(" ({})", port.name) };
        self.line(0, "");
        self.line(0, &format!("Port {}/{}{name}", port.port, port.protocol));
        if port.endpoints.is_empty() {
            self.line(1, "no endpoints");
        } else {
            self.endpoints(&port.endpoints);
        }
        port.fronts.iter().for_each(|front| self.front(front, &port.protocol));
    }

    fn endpoints(&mut self, endpoints: &[EndpointReport]) {
        let rows: Vec<[String; 5]> = endpoints.iter().map(row).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 4] = std::array::from_fn(width);
        for [address, pod, place, conditions, verdict] in &rows {
            let [a, b, c, d] = widths;
            self.line(1, &format!("{address:<a$}  {pod:<b$}  {place:<c$}  {conditions:<d$}  {verdict}"));
        }
    }

    fn front(&mut self, front: &FrontReport, protocol: &str) {
        let at = SocketAddr::new(front.address, front.port);
        self.line(1, &format!("{} {at}/{protocol}", front.kind.word()));
        match &front.lost_to {
            Some(other) => self.labelled(2, "wanted", &[format!("nothing: it belongs to {other}")]),
            None => self.labelled(2, "wanted", &front.wanted),
        }
        match front.kernel.as_slice() {
            [] => self.labelled(2, "kernel", &["nothing".to_owned()]),
            lines => self.labelled(2, "kernel", lines),
        }
        self.labelled(2, "lacks", &front.missing);
        self.labelled(2, "too much", &front.unexpected);
        for packet in &front.packets {
            let mark = if packet.passes { "passes" } else { "fails" };
            self.labelled(2, mark, &[format!("from {}: {}", packet.from, packet.result)]);
            if !packet.by.is_empty() {
                self.labelled(2, "", &[format!("by {}", packet.by.join("; "))]);
            }
        }
    }
}

fn words(policies: &Policies) -> String {
    let policy = |is_local: bool| if is_local { "Local" } else { "Cluster" };
    let mut words = vec![
        format!("internalTrafficPolicy {}", policy(policies.internal_local)),
        format!("externalTrafficPolicy {}", policy(policies.external_local)),
        match policies.affinity_seconds {
            Some(seconds) => format!("session affinity ClientIP for {seconds} s"),
            None => "no session affinity".to_owned(),
        },
    ];
    if !policies.source_ranges.is_empty() {
        words.push(format!("loadBalancerSourceRanges {}", policies.source_ranges.join(", ")));
    }
    words.join(", ")
}

/// Address, pod, place, conditions and verdict.
fn row(endpoint: &EndpointReport) -> [String; 5] {
    let address = match (endpoint.address.parse(), endpoint.port) {
        (Ok(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Err(_), Some(port)) => format!("{}:{port}", endpoint.address),
        (_, None) => endpoint.address.clone(),
    };
    let node = match (&endpoint.node, endpoint.is_local) {
        (Some(node), true) => format!("node {node} (this one)"),
        (Some(node), false) => format!("node {node}"),
        (None, _) => "-".to_owned(),
    };
    let zone = endpoint.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
    let pod = endpoint.pod.as_ref().map_or_else(|| "-".to_owned(), |pod| format!("pod {pod}"));
    let mut words = verdict(&endpoint.inside);
    if let Some(outside) = &endpoint.outside {
        words = format!("{words}; from outside {}", verdict(outside));
    }
    [address, pod, node + &zone, conditions(endpoint.conditions), words]
}

fn verdict(verdict: &Verdict) -> String {
    format!("{}: {}", if verdict.is_in() { "IN" } else { "OUT" }, verdict.why)
}

fn conditions(conditions: Conditions) -> String {
    let ready = if conditions.ready { "ready" } else { "not ready" };
    let terminating = conditions.terminating.then_some("terminating");
    // It is looked at only where a pod terminates.
    let serving = (conditions.terminating && conditions.serving).then_some("serving");
    [Some(ready), terminating, serving].into_iter().flatten().collect::<Vec<_>>().join(", ")
}
