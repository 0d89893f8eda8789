//! What the API server fills in before a node sees an object.
//!
//! Source: `pkg/apis/core/v1/defaults.go` of Kubernetes 1.37, the parts that matter on a node. Defaulting twice changes
//! nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, Container, EmptyDirVolumeSource, EnvVar, Lifecycle, LifecycleHandler, ObjectFieldSelector, Pod,
    PodSpec, Probe, ResourceRequirements, Secret, Service, SessionAffinityConfig, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Object;

/// 0644: the mode of projected files.
const FILE_MODE: i32 = 0o644;

/// Defaults for any object of a manifest.
pub(super) fn apply(object: &mut Object) {
    match object {
        Object::Pod(pod) => pod_defaults(pod),
        Object::Service(service) => service_defaults(service),
        Object::Secret(secret) => secret_defaults(secret),
        Object::EndpointSlice(slice) => {
            for port in slice.ports.iter_mut().flatten() {
                port.name.get_or_insert_default();
                fill(&mut port.protocol, "TCP");
            }
        }
        Object::ConfigMap(_) => {}
    }
}

fn fill(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}

/// Sets a number that is absent or zero.
fn fill_number(field: &mut Option<i32>, value: i32) {
    if field.is_none_or(|v| v == 0) {
        *field = Some(value);
    }
}

/// Applies the API server's defaults to a pod.
pub fn pod_defaults(pod: &mut Pod) {
    let Some(spec) = pod.spec.as_mut() else { return };
    fill(&mut spec.restart_policy, "Always");
    fill(&mut spec.dns_policy, "ClusterFirst");
    fill(&mut spec.scheduler_name, "default-scheduler");
    match spec.termination_grace_period_seconds {
        None => spec.termination_grace_period_seconds = Some(30),
        Some(seconds) if seconds < 0 => spec.termination_grace_period_seconds = Some(1),
        Some(_) => {}
    }
    spec.security_context.get_or_insert_default();
    spec.enable_service_links.get_or_insert(true);
    // `serviceAccount` is the old name of `serviceAccountName`; both say the same.
    if spec.service_account_name.as_deref().is_none_or(str::is_empty) {
        spec.service_account_name.clone_from(&spec.service_account);
    }
    spec.service_account.clone_from(&spec.service_account_name);
    containers(spec);
    for volume in spec.volumes.iter_mut().flatten() {
        volume_defaults(volume);
    }
}

fn containers(spec: &mut PodSpec) {
    let host_network = spec.host_network == Some(true);
    for container in spec.init_containers.iter_mut().flatten().chain(spec.containers.iter_mut()) {
        container_defaults(container);
        if host_network {
            for port in container.ports.iter_mut().flatten() {
                fill_number(&mut port.host_port, port.container_port);
            }
        }
    }
    // Pod-level requests follow pod-level limits, as those of containers do.
    spec.resources.as_mut().map(requests_from_limits);
}

fn container_defaults(container: &mut Container) {
    let image = container.image.as_deref().unwrap_or_default();
    fill(&mut container.image_pull_policy, default_pull_policy(image));
    fill(&mut container.termination_message_path, "/dev/termination-log");
    fill(&mut container.termination_message_policy, "File");
    for port in container.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    for env in container.env.iter_mut().flatten() {
        env_defaults(env);
    }
    container.resources.as_mut().map(requests_from_limits);
    for probe in [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe] {
        probe.as_mut().map(probe_defaults);
    }
    if let Some(Lifecycle { post_start, pre_stop, .. }) = &mut container.lifecycle {
        post_start.as_mut().map(handler_defaults);
        pre_stop.as_mut().map(handler_defaults);
    }
}

/// `Always` for the tag `latest` and for no tag at all, else `IfNotPresent`; a digest pins the content.
fn default_pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn env_defaults(env: &mut EnvVar) {
    if let Some(field) = env.value_from.as_mut().and_then(|s| s.field_ref.as_mut()) {
        field_defaults(field);
    }
}

fn field_defaults(field: &mut ObjectFieldSelector) {
    fill(&mut field.api_version, "v1");
}

fn requests_from_limits(resources: &mut ResourceRequirements) {
    if let Some(limits) = &resources.limits {
        let requests = resources.requests.get_or_insert_with(BTreeMap::new);
        for (name, quantity) in limits {
            requests.entry(name.clone()).or_insert_with(|| quantity.clone());
        }
    }
}

fn probe_defaults(probe: &mut Probe) {
    fill_number(&mut probe.timeout_seconds, 1);
    fill_number(&mut probe.period_seconds, 10);
    fill_number(&mut probe.success_threshold, 1);
    fill_number(&mut probe.failure_threshold, 3);
    if let Some(http) = &mut probe.http_get {
        fill(&mut http.path, "/");
        fill(&mut http.scheme, "HTTP");
    }
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn handler_defaults(handler: &mut LifecycleHandler) {
    if let Some(http) = &mut handler.http_get {
        fill(&mut http.path, "/");
        fill(&mut http.scheme, "HTTP");
    }
}

fn volume_defaults(volume: &mut Volume) {
    if super::validate::volume_sources(volume).is_empty() {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(source) = &mut volume.config_map {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.secret {
        source.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(source) = &mut volume.downward_api {
        source.default_mode.get_or_insert(FILE_MODE);
        source.items.iter_mut().flatten().filter_map(|i| i.field_ref.as_mut()).for_each(field_defaults);
    }
    if let Some(source) = &mut volume.projected {
        source.default_mode.get_or_insert(FILE_MODE);
        source.sources.iter_mut().flatten().for_each(projection_defaults);
    }
    if let Some(source) = &mut volume.host_path {
        source.type_.get_or_insert_default();
    }
    if let Some(source) = &mut volume.image {
        let policy = default_pull_policy(source.reference.as_deref().unwrap_or_default());
        fill(&mut source.pull_policy, policy);
    }
}

fn projection_defaults(projection: &mut VolumeProjection) {
    if let Some(token) = &mut projection.service_account_token {
        token.expiration_seconds.get_or_insert(3600);
    }
    if let Some(downward) = &mut projection.downward_api {
        downward.items.iter_mut().flatten().filter_map(|i| i.field_ref.as_mut()).for_each(field_defaults);
    }
}

fn secret_defaults(secret: &mut Secret) {
    fill(&mut secret.type_, "Opaque");
    if let Some(plain) = secret.string_data.take() {
        let data = secret.data.get_or_insert_default();
        data.extend(plain.into_iter().map(|(key, text)| (key, k8s_openapi::ByteString(text.into_bytes()))));
    }
}

/// Applies the API server's defaults to a Service.
pub fn service_defaults(service: &mut Service) {
    let Some(spec) = service.spec.as_mut() else { return };
    fill(&mut spec.type_, "ClusterIP");
    fill(&mut spec.session_affinity, "None");
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config: &mut SessionAffinityConfig = spec.session_affinity_config.get_or_insert_default();
        let client: &mut ClientIPConfig = config.client_ip.get_or_insert_default();
        client.timeout_seconds.get_or_insert(10_800);
    }
    for port in spec.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::String(name)) => name.is_empty(),
            Some(IntOrString::Int(_)) => false,
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => {
            fill(&mut spec.external_traffic_policy, "Cluster");
            fill(&mut spec.internal_traffic_policy, "Cluster");
        }
        Some("ClusterIP") => fill(&mut spec.internal_traffic_policy, "Cluster"),
        _ => {}
    }
}
