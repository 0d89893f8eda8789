//! The mistakes that the API server would have refused, found without one.
//!
//! All of them are collected, each with the path of its field. Only what is wrong for every node is refused here; what
//! this agent or this node cannot do is said by the domain that cannot do it.
//!
//! Source: `pkg/apis/core/validation` of Kubernetes 1.37, in the parts that a node depends on.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, Secret, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Object;

mod container;
mod volume;

pub(super) use volume::sources as volume_sources;

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Path of the field such as `spec.containers[0].ports[1].containerPort`.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
}

/// Collects findings.
#[derive(Default)]
struct Report(Vec<Invalid>);

impl Report {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Invalid { path: path.into(), message: message.into() });
    }

    fn required(&mut self, path: impl Into<String>) {
        self.add(path, "is required");
    }

    /// Checks that `value`, when set, is one of `allowed`.
    fn one_of(&mut self, path: impl Into<String>, value: Option<&str>, allowed: &[&str]) {
        if let Some(value) = value.filter(|v| !allowed.contains(v)) {
            let path = path.into();
            self.add(path, format!("expected one of {}, found {value:?}", allowed.join(", ")));
        }
    }

    fn port_number(&mut self, path: impl Into<String>, port: i32) {
        if !(1..=65_535).contains(&port) {
            self.add(path, format!("expected a port from 1 to 65535, found {port}"));
        }
    }

    fn dns_label(&mut self, path: impl Into<String>, value: &str) {
        if value.is_empty() {
            self.required(path);
        } else if !is_dns_label(value) {
            self.add(
                path,
                format!(
                    "expected a DNS label (RFC 1123): at most 63 of a-z, 0-9 and '-', beginning and ending with a letter \
                     or digit; found {value:?}"
                ),
            );
        }
    }

    fn dns_subdomain(&mut self, path: impl Into<String>, value: &str) {
        if value.is_empty() {
            self.required(path);
        } else if !is_dns_subdomain(value) {
            self.add(
                path,
                format!(
                    "expected a DNS name (RFC 1123): at most 253 of a-z, 0-9, '-' and '.', each part beginning and \
                     ending with a letter or digit; found {value:?}"
                ),
            );
        }
    }

    fn ip(&mut self, path: impl Into<String>, value: &str) {
        if value.parse::<IpAddr>().is_err() {
            self.add(path, format!("expected an IP address, found {value:?}"));
        }
    }
}

/// At most 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit.
fn is_dns_label(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_dns_subdomain(text: &str) -> bool {
    let part_ok = |part: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    text.len() <= 253 && text.split('.').all(part_ok)
}

/// RFC 6335: at most 15 lower-case letters, digits and single `-`, with at least one letter.
fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && text.chars().any(|c| c.is_ascii_lowercase())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}

const PORT_NAME: &str = "expected a port name (RFC 6335): at most 15 of a-z, 0-9 and '-', with a letter";

/// Keys of ConfigMaps and Secrets become file names.
fn is_data_key(key: &str) -> bool {
    (1..=253).contains(&key.len())
        && key != "."
        && !key.starts_with("..")
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// Checks any object of a manifest.
pub(super) fn object(object: &Object) -> Vec<Invalid> {
    match object {
        Object::Pod(pod) => validate_pod(pod),
        Object::ConfigMap(map) => config_map(map),
        Object::Secret(secret) => secret_object(secret),
        Object::Service(service) => service_object(service),
        Object::EndpointSlice(slice) => endpoint_slice(slice),
    }
}

/// Checks a defaulted pod ([`super::pod_defaults`]); an empty answer means that it is good.
pub fn validate_pod(pod: &Pod) -> Vec<Invalid> {
    let mut report = Report::default();
    metadata(&mut report, &pod.metadata);
    match &pod.spec {
        None => report.required("spec"),
        Some(spec) => {
            pod_fields(&mut report, spec);
            volume::check(&mut report, spec);
            container::check(&mut report, spec);
        }
    }
    report.0
}

fn metadata(report: &mut Report, meta: &ObjectMeta) {
    report.dns_subdomain("metadata.name", meta.name.as_deref().unwrap_or_default());
    if let Some(namespace) = &meta.namespace {
        report.dns_label("metadata.namespace", namespace);
    }
    for (key, value) in meta.labels.iter().flatten() {
        if !is_label_key(key) {
            report
                .add("metadata.labels", format!("expected a label key such as app or example.org/app, found {key:?}"));
        }
        if !is_label_value(value) {
            report.add(
                "metadata.labels",
                format!("{key}: expected at most 63 letters, digits, '-', '_' and '.', found {value:?}"),
            );
        }
    }
    for key in meta.annotations.iter().flatten().map(|(key, _)| key).filter(|k| !is_label_key(&k.to_lowercase())) {
        report.add("metadata.annotations", format!("expected a key such as note or example.org/note, found {key:?}"));
    }
}

fn is_label_value(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.is_empty()
        || text.len() <= 63
            && edge(text.chars().next())
            && edge(text.chars().last())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && !name.is_empty() && is_label_value(name),
        None => !key.is_empty() && is_label_value(key),
    }
}

fn pod_fields(report: &mut Report, spec: &PodSpec) {
    report.one_of("spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    report.one_of(
        "spec.dnsPolicy",
        spec.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    let nameservers = spec.dns_config.iter().flat_map(|c| c.nameservers.iter().flatten()).collect::<Vec<_>>();
    if spec.dns_policy.as_deref() == Some("None") && nameservers.is_empty() {
        report.add("spec.dnsConfig.nameservers", "at least one is required with dnsPolicy None");
    }
    for (i, server) in nameservers.iter().enumerate() {
        report.ip(format!("spec.dnsConfig.nameservers[{i}]"), server);
    }
    if let Some(seconds) = spec.active_deadline_seconds.filter(|s| *s < 1) {
        report.add("spec.activeDeadlineSeconds", format!("expected at least 1, found {seconds}"));
    }
    if let Some(hostname) = &spec.hostname {
        report.dns_label("spec.hostname", hostname);
    }
    if let Some(subdomain) = &spec.subdomain {
        report.dns_label("spec.subdomain", subdomain);
    }
    for (i, alias) in spec.host_aliases.iter().flatten().enumerate() {
        report.ip(format!("spec.hostAliases[{i}].ip"), &alias.ip);
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            report.dns_subdomain(format!("spec.hostAliases[{i}].hostnames[{j}]"), name);
        }
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|c| !c.is_empty()) {
        report.add("spec.ephemeralContainers", "can only be added to a running pod, not in a manifest");
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        report.add("spec.shareProcessNamespace", "cannot be true together with hostPID");
    }
    if let Some(context) = &spec.security_context {
        for (field, id) in
            [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group), ("fsGroup", context.fs_group)]
        {
            user_id(report, &format!("spec.securityContext.{field}"), id);
        }
    }
}

fn user_id(report: &mut Report, path: &str, id: Option<i64>) {
    if let Some(id) = id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        report.add(path, format!("expected a number from 0 to 2147483647, found {id}"));
    }
}

fn data_keys<'a>(report: &mut Report, field: &str, keys: impl Iterator<Item = &'a String>) {
    for key in keys.filter(|k| !is_data_key(k)) {
        report.add(
            field,
            format!("expected keys of letters, digits, '-', '_' and '.' that do not begin with '..', found {key:?}"),
        );
    }
}

fn config_map(map: &ConfigMap) -> Vec<Invalid> {
    let mut report = Report::default();
    metadata(&mut report, &map.metadata);
    data_keys(&mut report, "data", map.data.iter().flatten().map(|(k, _)| k));
    data_keys(&mut report, "binaryData", map.binary_data.iter().flatten().map(|(k, _)| k));
    let data = map.data.iter().flatten().map(|(k, _)| k).collect::<BTreeSet<_>>();
    for key in map.binary_data.iter().flatten().map(|(k, _)| k).filter(|k| data.contains(k)) {
        report.add("binaryData", format!("key {key:?} is also in data"));
    }
    report.0
}

fn secret_object(secret: &Secret) -> Vec<Invalid> {
    let mut report = Report::default();
    metadata(&mut report, &secret.metadata);
    data_keys(&mut report, "data", secret.data.iter().flatten().map(|(k, _)| k));
    report.0
}

fn service_object(service: &Service) -> Vec<Invalid> {
    let mut report = Report::default();
    metadata(&mut report, &service.metadata);
    let name = service.metadata.name.as_deref().unwrap_or_default();
    if is_dns_subdomain(name) && (!is_dns_label(name) || name.starts_with(|c: char| c.is_ascii_digit())) {
        report
            .add("metadata.name", format!("expected a DNS label that begins with a letter (RFC 1035), found {name:?}"));
    }
    match &service.spec {
        None => report.required("spec"),
        Some(spec) => service_spec(&mut report, spec),
    }
    report.0
}

fn service_spec(report: &mut Report, spec: &ServiceSpec) {
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    report.one_of("spec.type", spec.type_.as_deref(), &types);
    report.one_of("spec.sessionAffinity", spec.session_affinity.as_deref(), &["None", "ClientIP"]);
    report.one_of("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref(), &["Cluster", "Local"]);
    report.one_of("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), &["Cluster", "Local"]);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let external = spec.type_.as_deref() == Some("ExternalName");
    if ports.is_empty() && !headless && !external {
        report.required("spec.ports");
    }
    if headless && matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer")) {
        report.add("spec.clusterIP", "None is not possible with type NodePort or LoadBalancer");
    }
    for (i, address) in spec.cluster_ips.iter().flatten().enumerate().filter(|(_, a)| *a != "None") {
        report.ip(format!("spec.clusterIPs[{i}]"), address);
    }
    if let Some(address) = spec.cluster_ip.as_deref().filter(|a| !a.is_empty() && *a != "None") {
        report.ip("spec.clusterIP", address);
        if spec.cluster_ips.as_ref().and_then(|l| l.first()).is_some_and(|first| first != address) {
            report.add("spec.clusterIPs[0]", format!("must be the same as clusterIP ({address})"));
        }
    }
    for (i, address) in spec.external_ips.iter().flatten().enumerate() {
        report.ip(format!("spec.externalIPs[{i}]"), address);
    }
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        report.port_number(at("port"), port.port);
        report.one_of(at("protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
        match &port.target_port {
            Some(IntOrString::Int(number)) => report.port_number(at("targetPort"), *number),
            Some(IntOrString::String(name)) if !is_port_name(name) => {
                report.add(at("targetPort"), format!("{PORT_NAME}; found {name:?}"));
            }
            _ => {}
        }
        if let Some(node_port) = port.node_port.filter(|p| *p != 0) {
            report.port_number(at("nodePort"), node_port);
            if spec.type_.as_deref() == Some("ClusterIP") {
                report.add(at("nodePort"), "is only possible with type NodePort or LoadBalancer");
            }
        }
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            report.add(at("name"), "is required when a Service has more than one port");
        } else if !name.is_empty() {
            report.dns_label(at("name"), name);
            if !names.insert(name) {
                report.add(at("name"), format!("{name:?} is used twice"));
            }
        }
        if !seen.insert((port.protocol.as_deref(), port.port)) {
            report.add(at("port"), format!("{} is used twice with the same protocol", port.port));
        }
    }
}

fn endpoint_slice(slice: &EndpointSlice) -> Vec<Invalid> {
    let mut report = Report::default();
    metadata(&mut report, &slice.metadata);
    report.one_of("addressType", Some(&slice.address_type), &["IPv4", "IPv6", "FQDN"]);
    for (i, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        let path = format!("endpoints[{i}].addresses");
        if endpoint.addresses.is_empty() {
            report.required(path.clone());
        }
        for (j, address) in endpoint.addresses.iter().enumerate() {
            let good = match (slice.address_type.as_str(), address.parse::<IpAddr>()) {
                ("IPv4", Ok(ip)) => ip.is_ipv4(),
                ("IPv6", Ok(ip)) => ip.is_ipv6(),
                ("IPv4" | "IPv6", Err(_)) => false,
                _ => true,
            };
            if !good {
                report.add(
                    format!("{path}[{j}]"),
                    format!("expected an {} address, found {address:?}", slice.address_type),
                );
            }
        }
    }
    for (i, port) in slice.ports.iter().flatten().enumerate() {
        if let Some(number) = port.port {
            report.port_number(format!("ports[{i}].port"), number);
        }
        report.one_of(format!("ports[{i}].protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
    }
    report.0
}
