//! Wire messages to plain data. Pure.

use std::collections::HashMap;

use nodelet_proto::cri;

use super::{ContainerLimits, ContainerState, ContainerUser, ContainerView, PodIdentity, SandboxView, labels};
use crate::ids::{ContainerId, PodUid, SandboxId};

/// Most bytes of a message of the runtime that are kept; it goes into statuses, events and logs.
pub const MESSAGE: usize = 4096;
/// Most bytes of a word of the runtime that are kept: a reason, a version, an image reference, a path.
pub const WORD: usize = 1024;

/// A text of the runtime as it may be shown: of bounded length, without control characters (terminals obey them).
pub fn text(text: &str, limit: usize) -> String {
    let end = if text.len() <= limit {
        text.len()
    } else {
        (0..=limit).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
    };
    let shown = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c };
    text[..end].chars().map(shown).collect()
}

/// A path or reference, which is of no use in parts: too long is as good as none.
fn whole(text: &str, limit: usize) -> String {
    if text.len() <= limit { text.to_owned() } else { String::new() }
}

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
        // The API server refuses a whole status for one address that is none.
        .filter(|ip| ip.parse::<std::net::IpAddr>().is_ok())
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
        image_ref: whole(&status.image_ref, WORD),
        hash: annotation(labels::HASH).cloned(),
        termination_message,
        message_falls_back_to_logs: annotation(labels::TERMINATION_POLICY)
            .is_some_and(|p| p == "FallbackToLogsOnError"),
        log_path: whole(&status.log_path, MESSAGE),
        user: user(status),
        stop_signal: signal_name(status.stop_signal()),
        resources: status.resources.as_ref().and_then(|r| r.linux.as_ref()).map(|linux| ContainerLimits {
            cpu_shares: linux.cpu_shares,
            cpu_quota: linux.cpu_quota,
            cpu_period: linux.cpu_period,
            memory: linux.memory_limit_in_bytes,
        }),
    }
}

/// A signal by the name that the API has for it; the wire has no signs in names.
fn signal_name(signal: cri::Signal) -> Option<String> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_").filter(|_| signal != cri::Signal::RuntimeDefault)?;
    Some(name.replace("PLUS", "+").replace("MINUS", "-"))
}

/// The signal of a name of the API; what is none is the runtime's default.
pub fn signal(name: &str) -> cri::Signal {
    let wire = format!("SIGNAL_{}", name.replace('+', "PLUS").replace('-', "MINUS"));
    cri::Signal::from_str_name(&wire).unwrap_or(cri::Signal::RuntimeDefault)
}

fn image_name(status: &cri::ContainerStatus) -> String {
    let Some(spec) = &status.image else { return String::new() };
    whole(if spec.user_specified_image.is_empty() { &spec.image } else { &spec.user_specified_image }, WORD)
}

fn state(status: &cri::ContainerStatus) -> ContainerState {
    match status.state() {
        cri::ContainerState::ContainerCreated => ContainerState::Created,
        cri::ContainerState::ContainerRunning => ContainerState::Running { started_at: status.started_at },
        cri::ContainerState::ContainerExited => ContainerState::Exited {
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: text(&status.reason, WORD),
            message: text(&status.message, MESSAGE),
        },
        cri::ContainerState::ContainerUnknown => ContainerState::Unknown,
    }
}

fn user(status: &cri::ContainerStatus) -> Option<ContainerUser> {
    let linux = status.user.as_ref()?.linux.as_ref()?;
    Some(ContainerUser { uid: linux.uid, gid: linux.gid, supplemental_groups: linux.supplemental_groups.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_runtime_are_bounded_and_cannot_steer_a_terminal() {
        assert_eq!(text("a\u{1b}[2Jb\n", WORD), "a\u{fffd}[2Jb\n");
        let long = "\u{20ac}".repeat(10_000);
        assert!(text(&long, MESSAGE).len() <= MESSAGE);
        let status = cri::ContainerStatus {
            state: cri::ContainerState::ContainerExited.into(),
            reason: long.clone(),
            message: long.clone(),
            image_ref: long.clone(),
            log_path: long.clone(),
            image: Some(cri::ImageSpec { image: long, ..Default::default() }),
            ..Default::default()
        };
        let view = container(&status, "s");
        let ContainerState::Exited { reason, message, .. } = &view.state else { panic!("{view:?}") };
        assert!(reason.len() <= WORD && message.len() <= MESSAGE);
        assert_eq!((view.image_ref.as_str(), view.log_path.as_str(), view.image.as_str()), ("", "", ""));
    }

    #[test]
    fn signals_have_the_apis_names() {
        for name in ["SIGTERM", "SIGUSR1", "SIGRTMIN", "SIGRTMIN+15", "SIGRTMAX-14", "SIGRTMAX"] {
            assert_eq!(signal_name(signal(name)).as_deref(), Some(name));
        }
        assert_eq!(signal("SIGNONE"), cri::Signal::RuntimeDefault);
        assert_eq!(signal_name(cri::Signal::RuntimeDefault), None);
    }

    #[test]
    fn an_address_that_is_none_is_dropped() {
        let network = cri::PodSandboxNetworkStatus { ip: "10.0.0.300".into(), ..Default::default() };
        let status = cri::PodSandboxStatus { network: Some(network), ..Default::default() };
        assert!(sandbox(&status).ips.is_empty());
    }
}
