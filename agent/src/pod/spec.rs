//! Small questions about a pod's spec. Pure.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, EphemeralContainer, Lifecycle, Pod, PodSpec, Probe};

use super::images::reference::Reference;
use crate::ids::{ObjectKey, PodUid};

pub mod rules;

pub use rules::restarts;

/// Grace period of a pod whose spec does not say: the API server's default.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Annotation with which mirror pods are told apart.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What role a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: started in order, then kept running (KEP-753).
    Sidecar,
    /// A regular container.
    App,
    /// Added to a running pod for debugging; never restarted (KEP-277).
    Ephemeral,
}

/// A container of the spec with its role. Ephemeral containers are seen as regular ones without ports and probes.
#[derive(Clone, Debug)]
pub struct SpecContainer {
    /// Role.
    pub role: Role,
    /// The container as the spec has it.
    pub container: Container,
    /// For ephemeral containers: the container whose process namespace is joined.
    pub target: Option<String>,
}

/// The UID of a pod; sources guarantee that there is one.
pub fn uid(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default())
}

/// Namespace and name.
pub fn key(pod: &Pod) -> ObjectKey {
    ObjectKey::new(
        pod.metadata.namespace.as_deref().unwrap_or("default"),
        pod.metadata.name.as_deref().unwrap_or_default(),
    )
}

/// The spec. A pod without one (which no API server admits) is an empty pod.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// Role of an init container.
pub fn init_role(container: &Container) -> Role {
    if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init }
}

/// Init containers and sidecars in their order, then regular containers, then ephemeral ones: names and roles.
pub fn roles(pod: &Pod) -> impl Iterator<Item = (&str, Role)> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten().map(|c| (c.name.as_str(), init_role(c)));
    let app = spec.containers.iter().map(|c| (c.name.as_str(), Role::App));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (c.name.as_str(), Role::Ephemeral));
    init.chain(app).chain(ephemeral)
}

/// The container of a name, whichever list of the spec it is in.
pub fn find(pod: &Pod, name: &str) -> Option<SpecContainer> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten().map(|c| (init_role(c), c));
    let app = spec.containers.iter().map(|c| (Role::App, c));
    if let Some((role, container)) = init.chain(app).find(|(_, c)| c.name == name) {
        return Some(SpecContainer { role, container: container.clone(), target: None });
    }
    spec.ephemeral_containers.iter().flatten().find(|c| c.name == name).map(from_ephemeral)
}

fn from_ephemeral(e: &EphemeralContainer) -> SpecContainer {
    let container = Container {
        name: e.name.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        command: e.command.clone(),
        args: e.args.clone(),
        working_dir: e.working_dir.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        volume_mounts: e.volume_mounts.clone(),
        volume_devices: e.volume_devices.clone(),
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        ..Container::default()
    };
    SpecContainer {
        role: Role::Ephemeral,
        container,
        target: e.target_container_name.clone().filter(|t| !t.is_empty()),
    }
}

/// Image of a container of the spec.
pub fn image<'a>(pod: &'a Pod, name: &str) -> &'a str {
    let spec = spec(pod);
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers);
    regular
        .filter(|c| c.name == name)
        .map(|c| c.image.as_deref())
        .chain(spec.ephemeral_containers.iter().flatten().filter(|c| c.name == name).map(|c| c.image.as_deref()))
        .flatten()
        .next()
        .unwrap_or_default()
}

/// Images of all containers and image volumes of a pod, as the spec names them.
pub fn image_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let spec = spec(pod);
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| &c.image);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| &c.image);
    let volumes =
        spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()).map(|image| &image.reference);
    regular.chain(ephemeral).chain(volumes).filter_map(|name| name.as_deref())
}

/// Image volumes that a container mounts: volume name and reference.
pub fn image_volumes<'a>(pod: &'a Pod, name: &str) -> Vec<(&'a str, &'a str)> {
    let volumes = spec(pod).volumes.as_deref().unwrap_or_default();
    if volumes.iter().all(|volume| volume.image.is_none()) {
        return Vec::new();
    }
    let mounted = find(pod, name).and_then(|found| found.container.volume_mounts).unwrap_or_default();
    volumes
        .iter()
        .filter(|volume| mounted.iter().any(|mount| mount.name == volume.name))
        .filter_map(|volume| {
            Some((volume.name.as_str(), volume.image.as_ref()?.reference.as_deref().unwrap_or_default()))
        })
        .collect()
}

/// Pull policy of an image volume, where it has one.
pub fn volume_pull_policy(pod: &Pod, volume: &str) -> Option<String> {
    let volume = spec(pod).volumes.iter().flatten().find(|v| v.name == volume)?;
    volume.image.as_ref()?.pull_policy.clone()
}

/// What the API server makes of a policy that is not written: `:latest` is always asked for.
pub fn default_pull_policy(image: &str) -> &'static str {
    match Reference::parse(image) {
        Ok(Reference { digest: None, tag, .. }) if tag.as_deref().unwrap_or("latest") == "latest" => "Always",
        Ok(_) | Err(_) => "IfNotPresent",
    }
}

/// Hooks of a container of the spec.
pub fn lifecycle<'a>(pod: &'a Pod, name: &str) -> Option<&'a Lifecycle> {
    let spec = spec(pod);
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.find(|c| c.name == name)?.lifecycle.as_ref()
}

/// Whether the pod uses the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// The pod's restart policy.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Whether the API server wants the pod gone.
pub fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Annotation that says which source a pod came from.
pub const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";

/// Whether the pod is a file below `staticPodPath`. The source of API pods writes the annotation, so nobody else can.
pub fn is_static(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(SOURCE_ANNOTATION)).is_some_and(|source| source == "file")
}

/// Seconds between TERM and KILL.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let wanted = if is_deleted(pod) { pod.metadata.deletion_grace_period_seconds } else { None };
    wanted.or(spec(pod).termination_grace_period_seconds).unwrap_or(DEFAULT_GRACE_SECONDS).max(0)
}

/// Startup, liveness and readiness probes of a container.
pub fn probes<'a>(pod: &'a Pod, name: &str) -> [Option<&'a Probe>; 3] {
    let spec = spec(pod);
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    match all.find(|c| c.name == name) {
        Some(c) => [c.startup_probe.as_ref(), c.liveness_probe.as_ref(), c.readiness_probe.as_ref()],
        None => [None; 3],
    }
}

/// The status of a container in a list of statuses.
pub fn status_of<'a>(statuses: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|s| s.name == name)
}
