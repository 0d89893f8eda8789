//! Security contexts: from the pod's and container's fields to what the runtime is told. Pure.
//!
//! Every field is mapped in one place and for every start. A value that is not known, or empty, is refused, never treated
//! as less; so is what this runtime or kernel would silently ignore ([`check_runtime`], and AppArmor in `admit`).
//! Container fields win over pod fields. Source: KEP-24, KEP-135 (seccomp), KEP-4265 (procMount), KEP-3619
//! (supplementalGroupsPolicy) and the API documentation of `SecurityContext`.

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, PodSecurityContext, SELinuxOptions, SecurityContext};
use nodelet_proto::cri;
use nodelet_proto::cri::security_profile::ProfileType;

use super::facilities::{IdRange, RuntimeFeatures};
use super::spec;
use crate::ids::ContainerId;

mod profiles;

pub use profiles::apparmor_profiles;
use profiles::{apparmor, profile, seccomp};

/// Why a container may not be made like this; kubelet's `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// The image's user is root, or cannot be told, and the pod asks for non-root.
    #[error("{0}")]
    RunsAsRoot(String),
    /// The runtime or the rest of the spec makes it impossible.
    #[error("{0}")]
    Impossible(String),
    /// A field has a value that this agent does not know.
    #[error("{field} has unknown value {value:?}; allowed are {allowed}")]
    Unknown {
        /// Path of the field below the security context.
        field: &'static str,
        /// What was found.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// The user that an image names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// Numeric user.
    pub uid: Option<i64>,
    /// User by name; empty when numeric or absent.
    pub username: String,
}

/// What security needs to know about the node.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `seccompDefault`: no profile means RuntimeDefault instead of Unconfined.
    pub seccomp_default: bool,
    /// Directory of Localhost seccomp profiles.
    pub seccomp_root: String,
    /// Paths that containers may not see unless `procMount` is Unmasked: [`MASKED_PATHS`] and those of the node's CPUs.
    pub masked_paths: Vec<String>,
}

/// Paths masked by default. Source: `DefaultMaskedPaths` of the OCI default spec, as kubelet sends it.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that are read-only by default.
pub const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whether the pod has a user namespace of its own (`hostUsers: false`).
pub fn has_own_users(pod: &Pod) -> bool {
    spec::spec(pod).host_users == Some(false)
}

/// Refuses what the runtime would ignore, before there is a sandbox. `handler` is the RuntimeClass's; empty is the default.
pub fn check_runtime(pod: &Pod, handler: &str, features: RuntimeFeatures) -> Result<(), SecurityError> {
    if has_own_users(pod) && !features.user_namespaces {
        let who = match handler {
            "" => "runtime".to_owned(),
            handler => format!("RuntimeClass handler {handler:?}"),
        };
        let text = format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces");
        return Err(SecurityError::Impossible(text));
    }
    let policy = spec::spec(pod).security_context.as_ref().and_then(|c| c.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && !features.strict_groups {
        let text = "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned();
        return Err(SecurityError::Impossible(text));
    }
    Ok(())
}

/// Ids of the pod and what they are on the node. Nothing for pods with the node's users.
pub fn id_mappings(users: Option<IdRange>) -> Vec<cri::IdMapping> {
    users
        .map(|range| cri::IdMapping { host_id: range.first, container_id: 0, length: range.length })
        .into_iter()
        .collect()
}

/// The user namespace: the node's, or one of the pod's own, which needs a range.
fn user_namespace(pod: &Pod, users: Option<IdRange>) -> Result<cri::UserNamespace, SecurityError> {
    let spec = spec::spec(pod);
    let (mode, users) = match (has_own_users(pod), users) {
        (false, _) => (cri::NamespaceMode::Node, None),
        (true, None) => {
            return Err(SecurityError::Impossible("the pod has hostUsers: false and no range of ids".to_owned()));
        }
        (true, Some(range)) => (cri::NamespaceMode::Pod, Some(range)),
    };
    let of_node = [("hostNetwork", spec.host_network), ("hostIPC", spec.host_ipc), ("hostPID", spec.host_pid)];
    if let Some((field, _)) = of_node.into_iter().find(|(_, flag)| users.is_some() && *flag == Some(true)) {
        return Err(SecurityError::Impossible(format!("hostUsers: false cannot be had together with {field}: true")));
    }
    let ids = id_mappings(users);
    Ok(cri::UserNamespace { mode: mode.into(), uids: ids.clone(), gids: ids })
}

/// The namespaces of a pod's containers, or of its sandbox when `target` is `None`.
pub fn namespaces(
    pod: &Pod,
    target: Option<&ContainerId>,
    users: Option<IdRange>,
) -> Result<cri::NamespaceOption, SecurityError> {
    let spec = spec::spec(pod);
    let node_if = |flag: Option<bool>, other: cri::NamespaceMode| {
        if flag == Some(true) { cri::NamespaceMode::Node } else { other }
    };
    let own_pid = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    let userns_options = Some(user_namespace(pod, users)?);
    let mut options = cri::NamespaceOption { userns_options, ..cri::NamespaceOption::default() };
    options.set_network(node_if(spec.host_network, cri::NamespaceMode::Pod));
    options.set_ipc(node_if(spec.host_ipc, cri::NamespaceMode::Pod));
    options.set_pid(node_if(spec.host_pid, own_pid));
    if let Some(target) = target
        && options.pid() == cri::NamespaceMode::Container
    {
        options.set_pid(cri::NamespaceMode::Target);
        options.target_id = target.to_string();
    }
    Ok(options)
}

/// The security context of a sandbox.
pub fn sandbox(pod: &Pod, users: Option<IdRange>) -> Result<cri::LinuxSandboxSecurityContext, SecurityError> {
    let empty = PodSecurityContext::default();
    let context = spec::spec(pod).security_context.as_ref().unwrap_or(&empty);
    let spec = spec::spec(pod);
    check_ids(context, &SecurityContext::default())?;
    let privileged = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .any(|c| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    Ok(cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None, users)?),
        selinux_options: context.se_linux_options.as_ref().map(selinux),
        run_as_user: context.run_as_user.map(|value| cri::Int64Value { value }),
        run_as_group: context.run_as_group.map(|value| cri::Int64Value { value }),
        supplemental_groups: groups(context),
        supplemental_groups_policy: groups_policy(context)?.into(),
        privileged,
        // The sandbox runs only the pause program, so the stricter profile costs nothing.
        seccomp: Some(profile(ProfileType::RuntimeDefault, String::new())),
        ..Default::default()
    })
}

/// The security context of a container.
pub fn container(
    pod: &Pod,
    container: &Container,
    image_user: &ImageUser,
    target: Option<&ContainerId>,
    users: Option<IdRange>,
    settings: &Settings,
) -> Result<cri::LinuxContainerSecurityContext, SecurityError> {
    let (no_pod, no_container) = (PodSecurityContext::default(), SecurityContext::default());
    let of_pod = spec::spec(pod).security_context.as_ref().unwrap_or(&no_pod);
    let own = container.security_context.as_ref().unwrap_or(&no_container);
    check_ids(of_pod, own)?;
    let run_as_user = own.run_as_user.or(of_pod.run_as_user);
    let run_as_group = own.run_as_group.or(of_pod.run_as_group);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        check_non_root(pod, container, run_as_user, image_user)?;
    }
    let privileged = own.privileged == Some(true);
    let unmasked = match own.proc_mount.as_deref() {
        None | Some("Default") => false,
        Some("Unmasked") => true,
        Some(other) => return Err(unknown("procMount", other, "Default, Unmasked")),
    };
    let owned = |paths: &[&str]| paths.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: own.capabilities.as_ref().map(capabilities).transpose()?,
        privileged,
        namespace_options: Some(namespaces(pod, target, users)?),
        selinux_options: own.se_linux_options.as_ref().or(of_pod.se_linux_options.as_ref()).map(selinux),
        run_as_user: run_as_user.or(image_user.uid).map(|value| cri::Int64Value { value }),
        run_as_username: if run_as_user.is_none() { image_user.username.clone() } else { String::new() },
        run_as_group: run_as_group.map(|value| cri::Int64Value { value }),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups(of_pod),
        supplemental_groups_policy: groups_policy(of_pod)?.into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked { Vec::new() } else { settings.masked_paths.clone() },
        readonly_paths: if unmasked { Vec::new() } else { owned(&READONLY_PATHS) },
        seccomp: Some(seccomp(own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()), privileged, settings)?),
        apparmor: apparmor(pod, container)?,
        ..Default::default()
    })
}

/// `runAsNonRoot` is checked before the container exists; the texts are kubelet's.
fn check_non_root(
    pod: &Pod,
    container: &Container,
    run_as_user: Option<i64>,
    image: &ImageUser,
) -> Result<(), SecurityError> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let of = format!(
        "(pod: \"{}_{}({})\", container: {})",
        text(&meta.name),
        text(&meta.namespace),
        text(&meta.uid),
        container.name
    );
    let problem = match (run_as_user, image.uid, image.username.as_str()) {
        (Some(0), _, _) => format!("container's runAsUser breaks non-root policy {of}"),
        (Some(_), _, _) => return Ok(()),
        (None, Some(0), _) | (None, None, "") => {
            format!("container has runAsNonRoot and image will run as root {of}")
        }
        (None, Some(_), _) => return Ok(()),
        (None, None, name) => format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {of}"
        ),
    };
    Err(SecurityError::RunsAsRoot(problem))
}

/// Ids that are none: dropping one silently would run the container as somebody else.
fn check_ids(of_pod: &PodSecurityContext, own: &SecurityContext) -> Result<(), SecurityError> {
    let one = [
        ("runAsUser", own.run_as_user),
        ("runAsUser", of_pod.run_as_user),
        ("runAsGroup", own.run_as_group),
        ("runAsGroup", of_pod.run_as_group),
        ("fsGroup", of_pod.fs_group),
    ];
    let one = one.into_iter().filter_map(|(field, id)| Some((field, id?)));
    let groups = of_pod.supplemental_groups.iter().flatten().map(|id| ("supplementalGroups", *id));
    match one.chain(groups).find(|(_, id)| !(0..=i64::from(i32::MAX)).contains(id)) {
        Some((field, id)) => Err(unknown(field, &id.to_string(), "0 to 2147483647")),
        None => Ok(()),
    }
}

/// Capabilities as runtimes name them: in capitals, without `CAP_`. A name with it would be added as nothing, and, which
/// is worse, dropped as nothing.
fn capabilities(wanted: &Capabilities) -> Result<cri::Capability, SecurityError> {
    let names = |field: &'static str, list: &Option<Vec<String>>| -> Result<Vec<String>, SecurityError> {
        let plain = |name: &String| {
            let capitals = name.to_ascii_uppercase();
            match capitals.strip_prefix("CAP_").unwrap_or(&capitals) {
                "" => Err(unknown(field, name, "names such as NET_ADMIN, and ALL")),
                plain => Ok(plain.to_owned()),
            }
        };
        list.iter().flatten().map(plain).collect()
    };
    Ok(cri::Capability {
        add_capabilities: names("capabilities.add", &wanted.add)?,
        drop_capabilities: names("capabilities.drop", &wanted.drop)?,
        ..Default::default()
    })
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    context.fs_group.into_iter().chain(context.supplemental_groups.iter().flatten().copied()).collect()
}

fn groups_policy(context: &PodSecurityContext) -> Result<cri::SupplementalGroupsPolicy, SecurityError> {
    match context.supplemental_groups_policy.as_deref() {
        None | Some("Merge") => Ok(cri::SupplementalGroupsPolicy::Merge),
        Some("Strict") => Ok(cri::SupplementalGroupsPolicy::Strict),
        Some(other) => Err(unknown("supplementalGroupsPolicy", other, "Merge, Strict")),
    }
}

fn unknown(field: &'static str, value: &str, allowed: &'static str) -> SecurityError {
    SecurityError::Unknown { field, value: value.to_owned(), allowed }
}

fn selinux(options: &SELinuxOptions) -> cri::SeLinuxOption {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    cri::SeLinuxOption {
        user: text(&options.user),
        role: text(&options.role),
        r#type: text(&options.type_),
        level: text(&options.level),
    }
}

#[cfg(test)]
mod tests;
