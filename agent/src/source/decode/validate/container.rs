//! Checks of `spec.containers` and `spec.initContainers`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, HTTPGetAction, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as RawQuantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{PORT_NAME, Report, is_port_name};
use crate::quantity::Quantity;

pub(super) fn check(report: &mut Report, spec: &PodSpec) {
    if spec.containers.is_empty() {
        report.add("spec.containers", "at least one container is required");
    }
    let volumes = spec.volumes.iter().flatten().map(|v| v.name.as_str()).collect::<BTreeSet<_>>();
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    let init = spec.init_containers.iter().flatten().enumerate().map(|(i, c)| ("initContainers", i, c));
    let main = spec.containers.iter().enumerate().map(|(i, c)| ("containers", i, c));
    for (list, i, container) in init.chain(main) {
        let path = format!("spec.{list}[{i}]");
        if !container.name.is_empty() && !names.insert(container.name.as_str()) {
            report.add(format!("{path}.name"), format!("{:?} is used by two containers", container.name));
        }
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        basics(report, &path, container);
        ports(
            report,
            &path,
            container,
            spec.host_network == Some(true),
            &mut host_ports,
            list == "containers" || sidecar,
        );
        env(report, &path, container);
        mounts(report, &path, container, &volumes);
        resources(report, &path, container);
        if list == "initContainers" {
            init_rules(report, &path, container, sidecar);
        }
        probes(report, &path, container);
    }
}

fn basics(report: &mut Report, path: &str, container: &Container) {
    report.dns_label(format!("{path}.name"), &container.name);
    match container.image.as_deref() {
        None | Some("") => report.required(format!("{path}.image")),
        Some(image) if image.trim() != image || image.contains(char::is_whitespace) => {
            report.add(format!("{path}.image"), format!("must not contain white space, found {image:?}"));
        }
        Some(_) => {}
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    report.one_of(format!("{path}.imagePullPolicy"), container.image_pull_policy.as_deref(), &policies);
    let message = ["File", "FallbackToLogsOnError"];
    report.one_of(
        format!("{path}.terminationMessagePolicy"),
        container.termination_message_policy.as_deref(),
        &message,
    );
    let restart = ["Always", "OnFailure", "Never"];
    report.one_of(format!("{path}.restartPolicy"), container.restart_policy.as_deref(), &restart);
    if let Some(context) = &container.security_context {
        super::user_id(report, &format!("{path}.securityContext.runAsUser"), context.run_as_user);
        super::user_id(report, &format!("{path}.securityContext.runAsGroup"), context.run_as_group);
        if context.privileged == Some(true) && context.allow_privilege_escalation == Some(false) {
            report.add(
                format!("{path}.securityContext.allowPrivilegeEscalation"),
                "cannot be false in a privileged container",
            );
        }
    }
    for (name, handler) in [
        ("postStart", container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())),
        ("preStop", container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref())),
    ] {
        let Some(h) = handler else { continue };
        let at = format!("{path}.lifecycle.{name}");
        let set = [h.exec.is_some(), h.http_get.is_some(), h.sleep.is_some(), h.tcp_socket.is_some()];
        if set.into_iter().filter(|s| *s).count() != 1 {
            report.add(&at, "expected exactly one of exec, httpGet, sleep");
        }
        if let Some(http) = &h.http_get {
            http_get(report, &format!("{at}.httpGet"), http, container);
        }
    }
}

type HostPort<'a> = (&'a str, &'a str, i32);

fn ports<'a>(
    report: &mut Report,
    path: &str,
    container: &'a Container,
    host_network: bool,
    host_ports: &mut BTreeSet<HostPort<'a>>,
    at_once: bool,
) {
    let mut names = BTreeSet::new();
    for (i, port) in container.ports.iter().flatten().enumerate() {
        let at = |field: &str| format!("{path}.ports[{i}].{field}");
        report.port_number(at("containerPort"), port.container_port);
        report.one_of(at("protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            if !is_port_name(name) {
                report.add(at("name"), format!("{PORT_NAME}; found {name:?}"));
            } else if !names.insert(name) {
                report.add(at("name"), format!("{name:?} is used by two ports"));
            }
        }
        let Some(host_port) = port.host_port.filter(|p| *p != 0) else { continue };
        report.port_number(at("hostPort"), host_port);
        if host_network && host_port != port.container_port {
            report.add(at("hostPort"), format!("must be containerPort ({}) with hostNetwork", port.container_port));
        }
        let key = (port.host_ip.as_deref().unwrap_or_default(), port.protocol.as_deref().unwrap_or("TCP"), host_port);
        // Init containers run one after the other and may share a port.
        if at_once && !host_ports.insert(key) {
            report.add(at("hostPort"), format!("{host_port} is used twice in this pod"));
        }
    }
}

fn env(report: &mut Report, path: &str, container: &Container) {
    for (i, var) in container.env.iter().flatten().enumerate() {
        env_var(report, &format!("{path}.env[{i}]"), var);
    }
    for (i, from) in container.env_from.iter().flatten().enumerate() {
        let at = format!("{path}.envFrom[{i}]");
        match (&from.config_map_ref, &from.secret_ref) {
            (Some(_), Some(_)) => report.add(&at, "expected configMapRef or secretRef, found both"),
            (None, None) => report.add(&at, "expected configMapRef or secretRef"),
            (Some(r), None) if r.name.is_empty() => report.required(format!("{at}.configMapRef.name")),
            (None, Some(r)) if r.name.is_empty() => report.required(format!("{at}.secretRef.name")),
            _ => {}
        }
    }
}

fn env_var(report: &mut Report, at: &str, var: &EnvVar) {
    if var.name.is_empty() {
        report.required(format!("{at}.name"));
    } else if var.name.contains('=') || !var.name.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        report.add(format!("{at}.name"), format!("expected printable ASCII without '=', found {:?}", var.name));
    }
    let Some(source) = &var.value_from else { return };
    if var.value.as_deref().is_some_and(|v| !v.is_empty()) {
        report.add(at, "expected value or valueFrom, found both");
    }
    env_source(report, &format!("{at}.valueFrom"), source);
}

fn env_source(report: &mut Report, at: &str, source: &EnvVarSource) {
    let set = [
        source.config_map_key_ref.is_some(),
        source.field_ref.is_some(),
        source.file_key_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.secret_key_ref.is_some(),
    ];
    if set.into_iter().filter(|s| *s).count() != 1 {
        report.add(at, "expected exactly one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef, fileKeyRef");
    }
    for (kind, name, key) in [
        source.config_map_key_ref.as_ref().map(|r| ("configMapKeyRef", &r.name, &r.key)),
        source.secret_key_ref.as_ref().map(|r| ("secretKeyRef", &r.name, &r.key)),
    ]
    .into_iter()
    .flatten()
    {
        if name.is_empty() {
            report.required(format!("{at}.{kind}.name"));
        }
        if key.is_empty() {
            report.required(format!("{at}.{kind}.key"));
        }
    }
    if let Some(field) = &source.field_ref {
        field_path(report, &format!("{at}.fieldRef.fieldPath"), &field.field_path, false);
    }
    if let Some(resource) = &source.resource_field_ref {
        resource_name(report, &format!("{at}.resourceFieldRef.resource"), &resource.resource);
    }
}

/// Fields of the pod that a downward API reference may name; `file` is true in volumes.
pub(super) fn field_path(report: &mut Report, path: &str, field: &str, file: bool) {
    const BOTH: [&str; 3] = ["metadata.name", "metadata.namespace", "metadata.uid"];
    const ENV: [&str; 6] = [
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    const FILE: [&str; 2] = ["metadata.labels", "metadata.annotations"];
    let key =
        ["metadata.labels['", "metadata.annotations['"].iter().any(|p| field.starts_with(p)) && field.ends_with("']");
    let good = key || BOTH.contains(&field) || if file { FILE.contains(&field) } else { ENV.contains(&field) };
    if !good {
        let place = if file { FILE.join(", ") } else { ENV.join(", ") };
        let found = if field.is_empty() { String::new() } else { format!("; found {field:?}") };
        report.add(
            path,
            format!(
                "expected one of {}, {place}, metadata.labels['KEY'], metadata.annotations['KEY']{found}",
                BOTH.join(", ")
            ),
        );
    }
}

pub(super) fn resource_name(report: &mut Report, path: &str, name: &str) {
    let good = ["cpu", "memory", "ephemeral-storage"]
        .iter()
        .any(|r| name.strip_prefix("limits.").or_else(|| name.strip_prefix("requests.")) == Some(r))
        || name.starts_with("limits.hugepages-")
        || name.starts_with("requests.hugepages-");
    if !good {
        report.add(
            path,
            format!(
                "expected limits. or requests. with cpu, memory, ephemeral-storage or hugepages-SIZE; found {name:?}"
            ),
        );
    }
}

fn mounts(report: &mut Report, path: &str, container: &Container, volumes: &BTreeSet<&str>) {
    let known = || volumes.iter().copied().collect::<Vec<_>>().join(", ");
    let mut paths = BTreeSet::new();
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let at = |field: &str| format!("{path}.volumeMounts[{i}].{field}");
        if mount.name.is_empty() {
            report.required(at("name"));
        } else if !volumes.contains(mount.name.as_str()) {
            let have = if volumes.is_empty() { "has no volumes".to_owned() } else { format!("has {}", known()) };
            report.add(at("name"), format!("no volume {:?} in spec.volumes, which {have}", mount.name));
        }
        if mount.mount_path.is_empty() {
            report.required(at("mountPath"));
        } else if mount.mount_path.contains(':') {
            report.add(at("mountPath"), format!("must not contain ':', found {:?}", mount.mount_path));
        } else if !paths.insert(mount.mount_path.as_str()) {
            report.add(at("mountPath"), format!("{:?} is used by two mounts", mount.mount_path));
        }
        let sub_path = mount.sub_path.as_deref().filter(|s| !s.is_empty());
        let expr = mount.sub_path_expr.as_deref().filter(|s| !s.is_empty());
        for (field, value) in [("subPath", sub_path), ("subPathExpr", expr)] {
            if let Some(value) = value.filter(|v| v.starts_with('/') || v.split('/').any(|part| part == "..")) {
                report.add(at(field), format!("expected a relative path without '..', found {value:?}"));
            }
        }
        if sub_path.is_some() && expr.is_some() {
            report.add(at("subPathExpr"), "expected subPath or subPathExpr, found both");
        }
        let kinds = ["None", "HostToContainer", "Bidirectional"];
        report.one_of(at("mountPropagation"), mount.mount_propagation.as_deref(), &kinds);
    }
    for (i, device) in container.volume_devices.iter().flatten().enumerate() {
        if !volumes.contains(device.name.as_str()) {
            report
                .add(format!("{path}.volumeDevices[{i}].name"), format!("no volume {:?} in spec.volumes", device.name));
        }
    }
}

/// Checks one quantity and gives it back parsed.
pub(super) fn quantity(report: &mut Report, path: &str, raw: &RawQuantity) -> Option<Quantity> {
    match Quantity::parse(&raw.0) {
        Ok(q) if q.milli_value() < 0 => {
            report.add(path, format!("must not be negative, found {}", raw.0));
            None
        }
        Ok(q) => Some(q),
        Err(_) => {
            report.add(path, format!("expected a quantity such as 100m, 0.5, 64Mi or 1G, found {:?}", raw.0));
            None
        }
    }
}

fn resources(report: &mut Report, path: &str, container: &Container) {
    let Some(resources) = &container.resources else { return };
    let mut parsed = |list: &Option<BTreeMap<String, RawQuantity>>, field: &str| {
        let mut out = BTreeMap::new();
        for (name, raw) in list.iter().flatten() {
            // A request that defaulting copied from its limit would only repeat the limit's finding.
            let copied = field == "requests" && resources.limits.as_ref().and_then(|l| l.get(name)) == Some(raw);
            if copied {
                continue;
            }
            if let Some(q) = quantity(report, &format!("{path}.resources.{field}.{name}"), raw) {
                out.insert(name.clone(), q);
            }
        }
        out
    };
    let limits = parsed(&resources.limits, "limits");
    let requests = parsed(&resources.requests, "requests");
    for (name, request) in requests {
        if limits.get(&name).is_some_and(|limit| request.milli_value() > limit.milli_value()) {
            report.add(format!("{path}.resources.requests.{name}"), "must not be larger than the limit");
        }
    }
}

/// Init containers run to completion before the pod is up; only sidecars (restartPolicy Always, KEP-753) have probes
/// and hooks.
fn init_rules(report: &mut Report, path: &str, container: &Container, sidecar: bool) {
    if sidecar {
        return;
    }
    for (field, set) in [
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
        ("lifecycle", container.lifecycle.is_some()),
    ] {
        if set {
            report.add(format!("{path}.{field}"), "is only possible in an init container with restartPolicy: Always");
        }
    }
}

fn probes(report: &mut Report, path: &str, container: &Container) {
    for (field, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ] {
        let Some(probe) = probe else { continue };
        let at = format!("{path}.{field}");
        probe_rules(report, &at, probe, container);
        if field != "readinessProbe" && probe.success_threshold.is_some_and(|t| t > 1) {
            report.add(format!("{at}.successThreshold"), "must be 1 for liveness and startup probes");
        }
        if field == "readinessProbe" && probe.termination_grace_period_seconds.is_some() {
            report.add(format!("{at}.terminationGracePeriodSeconds"), "is not possible in a readiness probe");
        }
    }
}

fn probe_rules(report: &mut Report, at: &str, probe: &Probe, container: &Container) {
    let set = [probe.exec.is_some(), probe.grpc.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some()];
    if set.into_iter().filter(|s| *s).count() != 1 {
        report.add(at, "expected exactly one of exec, grpc, httpGet, tcpSocket");
    }
    for (field, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if let Some(value) = value.filter(|v| *v < 0) {
            report.add(format!("{at}.{field}"), format!("must not be negative, found {value}"));
        }
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|s| *s < 1) {
        report.add(format!("{at}.terminationGracePeriodSeconds"), format!("expected at least 1, found {seconds}"));
    }
    if let Some(exec) = &probe.exec
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        report.required(format!("{at}.exec.command"));
    }
    if let Some(http) = &probe.http_get {
        http_get(report, &format!("{at}.httpGet"), http, container);
    }
    if let Some(tcp) = &probe.tcp_socket {
        handler_port(report, &format!("{at}.tcpSocket.port"), &tcp.port, container);
    }
    if let Some(grpc) = &probe.grpc {
        report.port_number(format!("{at}.grpc.port"), grpc.port);
    }
}

fn http_get(report: &mut Report, at: &str, http: &HTTPGetAction, container: &Container) {
    handler_port(report, &format!("{at}.port"), &http.port, container);
    report.one_of(format!("{at}.scheme"), http.scheme.as_deref(), &["HTTP", "HTTPS"]);
    for (i, header) in http.http_headers.iter().flatten().enumerate() {
        if header.name.is_empty() || !header.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            report.add(
                format!("{at}.httpHeaders[{i}].name"),
                format!("expected a header name of letters, digits and '-', found {:?}", header.name),
            );
        }
    }
}

fn handler_port(report: &mut Report, path: &str, port: &IntOrString, container: &Container) {
    match port {
        IntOrString::Int(number) => report.port_number(path, *number),
        IntOrString::String(name) => {
            let known = container.ports.iter().flatten().any(|p| p.name.as_deref() == Some(name));
            if !is_port_name(name) {
                report.add(path, format!("{PORT_NAME}, or a number; found {name:?}"));
            } else if !known {
                report.add(path, format!("this container has no port named {name:?}"));
            }
        }
    }
}
