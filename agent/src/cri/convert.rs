//! Wire messages to plain data. Pure.

use std::collections::HashMap;

use nodelet_proto::cri;

use super::{ContainerState, ContainerUser, ContainerView, PodIdentity, SandboxView, labels};
use crate::ids::{ContainerId, PodUid, SandboxId};

/// The pod that labels name; `None` for what no kubelet made.
pub fn identity(labels: &HashMap<String, String>) -> Option<PodIdentity> {
    Some(PodIdentity {
        uid: PodUid::new(labels.get(labels::POD_UID)?),
        namespace: labels.get(labels::POD_NAMESPACE)?.clone(),
        name: labels.get(labels::POD_NAME)?.clone(),
    })
}

/// A sandbox from its status.
pub fn sandbox(status: &cri::PodSandboxStatus) -> SandboxView {
    let network = status.network.as_ref();
    let ips = network
        .into_iter()
        .flat_map(|n| std::iter::once(&n.ip).chain(n.additional_ips.iter().map(|ip| &ip.ip)))
        .filter(|ip| !ip.is_empty())
        .cloned()
        .collect();
    let options = status.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
    SandboxView {
        id: SandboxId::new(&status.id),
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        ready: status.state() == cri::PodSandboxState::SandboxReady,
        created_at: status.created_at,
        ips,
        host_network: options.is_some_and(|o| o.network() == cri::NamespaceMode::Node),
    }
}

/// A container from its status. The status does not name the sandbox, so the caller gives it from the list.
pub fn container(status: &cri::ContainerStatus, sandbox: &str) -> ContainerView {
    let annotation = |key: &str| status.annotations.get(key);
    let attempt = annotation(labels::RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .or(status.metadata.as_ref().map(|m| m.attempt))
        .unwrap_or(0);
    let termination_path = annotation(labels::TERMINATION_PATH).filter(|p| !p.is_empty());
    let termination_message = termination_path
        .and_then(|path| status.mounts.iter().find(|m| m.container_path == *path))
        .map(|mount| mount.host_path.clone());
    ContainerView {
        id: ContainerId::new(&status.id),
        name: status
            .labels
            .get(labels::CONTAINER_NAME)
            .cloned()
            .or_else(|| status.metadata.as_ref().map(|m| m.name.clone()))
            .unwrap_or_default(),
        sandbox: SandboxId::new(sandbox),
        attempt,
        state: state(status),
        created_at: status.created_at,
        image: image_name(status),
        image_ref: status.image_ref.clone(),
        hash: annotation(labels::HASH).cloned(),
        termination_message,
        message_falls_back_to_logs: annotation(labels::TERMINATION_POLICY)
            .is_some_and(|p| p == "FallbackToLogsOnError"),
        log_path: status.log_path.clone(),
        user: user(status),
    }
}

fn image_name(status: &cri::ContainerStatus) -> String {
    let Some(spec) = &status.image else { return String::new() };
    if spec.user_specified_image.is_empty() { spec.image.clone() } else { spec.user_specified_image.clone() }
}

fn state(status: &cri::ContainerStatus) -> ContainerState {
    match status.state() {
        cri::ContainerState::ContainerCreated => ContainerState::Created,
        cri::ContainerState::ContainerRunning => ContainerState::Running { started_at: status.started_at },
        cri::ContainerState::ContainerExited => ContainerState::Exited {
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
            message: status.message.clone(),
        },
        cri::ContainerState::ContainerUnknown => ContainerState::Unknown,
    }
}

fn user(status: &cri::ContainerStatus) -> Option<ContainerUser> {
    let linux = status.user.as_ref()?.linux.as_ref()?;
    Some(ContainerUser { uid: linux.uid, gid: linux.gid, supplemental_groups: linux.supplemental_groups.clone() })
}
