//! The configuration of a container, as the runtime is told. Pure.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use nodelet_proto::cri;

use super::expand::expand;
use super::facilities::IdRange;
use super::security::{self, ImageUser, SecurityError};
use super::spec::SpecContainer;
use crate::cri::convert::signal;
use crate::cri::labels;
use crate::ids::ContainerId;

/// What a container needs besides its spec.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// How many of this name came before.
    pub attempt: u32,
    /// Image by the reference that the runtime resolved.
    pub image_ref: String,
    /// The user that the image names.
    pub image_user: ImageUser,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// All mounts.
    pub mounts: Vec<cri::Mount>,
    /// Block devices.
    pub devices: Vec<cri::Device>,
    /// Resources.
    pub resources: cri::LinuxContainerResources,
    /// For ephemeral containers: the container whose process namespace is joined.
    pub target: Option<ContainerId>,
    /// The ids of a pod with its own user namespace.
    pub users: Option<IdRange>,
    /// Node settings.
    pub security: &'a security::Settings,
}

/// Path of a container's log below the pod's log directory.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// Builds the configuration.
pub fn container_config(
    pod: &Pod,
    found: &SpecContainer,
    inputs: Inputs<'_>,
) -> Result<cri::ContainerConfig, SecurityError> {
    let container = &found.container;
    let (target, users) = (inputs.target.as_ref(), inputs.users);
    let security = security::container(pod, container, &inputs.image_user, target, users, inputs.security)?;
    // Files keep the ids that they have on disk; the kernel translates them where they are mounted.
    let ids = security::id_mappings(users);
    let mapped = |mount| cri::Mount { uid_mappings: ids.clone(), gid_mappings: ids.clone(), ..mount };
    let lookup = |name: &str| inputs.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let expanded = |words: &Option<Vec<String>>| words.iter().flatten().map(|w| expand(w, lookup)).collect();
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: inputs.attempt }),
        image: Some(cri::ImageSpec {
            image: inputs.image_ref,
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: inputs.env.iter().map(|(k, v)| cri::KeyValue { key: k.clone(), value: v.clone().into() }).collect(),
        mounts: inputs.mounts.into_iter().map(mapped).collect(),
        devices: inputs.devices,
        labels: container_labels(pod, container),
        annotations: annotations(pod, container, inputs.attempt),
        log_path: log_path(&container.name, inputs.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        stop_signal: stop_signal(container).into(),
        linux: Some(cri::LinuxContainerConfig { resources: Some(inputs.resources), security_context: Some(security) }),
        ..Default::default()
    })
}

/// The signal that asks the container to end. The API server drops the field while its gate is off.
fn stop_signal(container: &Container) -> cri::Signal {
    let name = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    name.map_or(cri::Signal::RuntimeDefault, signal)
}

fn container_labels(pod: &Pod, container: &Container) -> HashMap<String, String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    HashMap::from([
        (labels::POD_NAME.into(), text(&pod.metadata.name)),
        (labels::POD_NAMESPACE.into(), text(&pod.metadata.namespace)),
        (labels::POD_UID.into(), text(&pod.metadata.uid)),
        (labels::CONTAINER_NAME.into(), container.name.clone()),
    ])
}

/// The annotations from which a container's identity is read back after a restart.
fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let image = container.image.as_deref().unwrap_or_default();
    let path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    let policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let mut annotations = HashMap::from([
        (labels::HASH.to_owned(), labels::container_hash(&container.name, image)),
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (labels::TERMINATION_PATH.to_owned(), path.to_owned()),
        (labels::TERMINATION_POLICY.to_owned(), policy.to_owned()),
    ]);
    if let Some(grace) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(labels::DELETION_GRACE.into(), grace.to_string());
    }
    if let Some(grace) = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds) {
        annotations.insert(labels::TERMINATION_GRACE.into(), grace.to_string());
    }
    // Serializing plain data to JSON cannot fail.
    if let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
        annotations.insert(labels::PRE_STOP.into(), serde_json::to_string(handler).unwrap_or_default());
    }
    if let Some(ports) = container.ports.as_ref().filter(|p| !p.is_empty()) {
        annotations.insert(labels::PORTS.into(), serde_json::to_string(ports).unwrap_or_default());
    }
    annotations
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerPort, ExecAction, Lifecycle, LifecycleHandler, PodSpec};

    use super::*;
    use crate::pod::spec::Role;

    fn make_pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.uid = Some("u".into());
        pod.spec = Some(PodSpec { termination_grace_period_seconds: Some(12), ..PodSpec::default() });
        pod
    }

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|w| (*w).to_owned()).collect())
    }

    fn make_config(pod: &Pod, container: Container) -> cri::ContainerConfig {
        let settings = security::Settings::default();
        let inputs = Inputs {
            attempt: 3,
            image_ref: "sha256:abc".into(),
            image_user: ImageUser::default(),
            env: vec![("A".into(), "1".into())],
            mounts: Vec::new(),
            devices: Vec::new(),
            resources: cri::LinuxContainerResources::default(),
            target: None,
            users: None,
            security: &settings,
        };
        container_config(pod, &SpecContainer { role: Role::App, container, target: None }, inputs).unwrap()
    }

    fn web() -> Container {
        Container { name: "web".into(), image: Some("nginx:1".into()), ..Container::default() }
    }

    #[test]
    fn command_and_args_are_expanded_and_the_rest_is_passed_on() {
        let config = make_config(
            &make_pod(),
            Container {
                command: words(&["run", "$(A)", "$$(A)"]),
                args: words(&["--x=$(A)", "$(NONE)"]),
                working_dir: Some("/w/$(A)".into()),
                stdin: Some(true),
                stdin_once: Some(true),
                tty: Some(true),
                ..web()
            },
        );
        assert_eq!(config.command, ["run", "1", "$(A)"]);
        assert_eq!(config.args, ["--x=1", "$(NONE)"]);
        assert_eq!(config.working_dir, "/w/$(A)", "not expanded, as under kubelet");
        assert_eq!((config.stdin, config.stdin_once, config.tty), (true, true, true));
        let plain = make_config(&make_pod(), web());
        assert!(plain.command.is_empty() && plain.args.is_empty(), "the image's own entry point");
        assert_eq!((plain.stdin, plain.stdin_once, plain.tty), (false, false, false));
    }

    #[test]
    fn the_stop_signal_is_the_specs_or_the_runtimes() {
        let lifecycle = Lifecycle { stop_signal: Some("SIGUSR1".into()), ..Lifecycle::default() };
        let config = make_config(&make_pod(), Container { lifecycle: Some(lifecycle), ..web() });
        assert_eq!(config.stop_signal(), cri::Signal::Sigusr1);
        assert_eq!(make_config(&make_pod(), web()).stop_signal(), cri::Signal::RuntimeDefault);
    }

    #[test]
    fn name_attempt_image_and_log_are_those_that_others_look_for() {
        let config = make_config(&make_pod(), web());
        let metadata = config.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), metadata.attempt), ("web", 3));
        assert_eq!(config.log_path, "web/3.log");
        let image = config.image.unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:abc", "nginx:1"));
    }

    #[test]
    fn labels_and_annotations_are_kubelets() {
        let text = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>()
        };
        let config = make_config(&make_pod(), web());
        assert_eq!(
            config.labels,
            text(&[
                ("io.kubernetes.pod.name", "p"),
                ("io.kubernetes.pod.namespace", "ns"),
                ("io.kubernetes.pod.uid", "u"),
                ("io.kubernetes.container.name", "web"),
            ])
        );
        assert_eq!(
            config.annotations,
            text(&[
                ("io.kubernetes.container.hash", "855627a5"),
                ("io.kubernetes.container.restartCount", "3"),
                ("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
                ("io.kubernetes.container.terminationMessagePolicy", "File"),
                ("io.kubernetes.pod.terminationGracePeriod", "12"),
            ])
        );
    }

    #[test]
    fn what_a_stop_needs_is_written_into_annotations() {
        let exec = ExecAction { command: words(&["bye"]) };
        let mut pod = make_pod();
        pod.metadata.deletion_grace_period_seconds = Some(5);
        let config = make_config(
            &pod,
            Container {
                lifecycle: Some(Lifecycle {
                    pre_stop: Some(LifecycleHandler { exec: Some(exec), ..LifecycleHandler::default() }),
                    ..Lifecycle::default()
                }),
                ports: Some(vec![ContainerPort { container_port: 80, ..ContainerPort::default() }]),
                termination_message_path: Some("/bye".into()),
                termination_message_policy: Some("FallbackToLogsOnError".into()),
                ..web()
            },
        );
        for (key, value) in [
            ("io.kubernetes.pod.deletionGracePeriod", "5"),
            ("io.kubernetes.container.preStopHandler", "{\"exec\":{\"command\":[\"bye\"]}}"),
            ("io.kubernetes.container.ports", "[{\"containerPort\":80}]"),
            ("io.kubernetes.container.terminationMessagePath", "/bye"),
            ("io.kubernetes.container.terminationMessagePolicy", "FallbackToLogsOnError"),
        ] {
            assert_eq!(config.annotations.get(key).map(String::as_str), Some(value), "{key}");
        }
    }

    #[test]
    fn a_security_context_that_is_not_known_makes_no_container() {
        let context =
            k8s_openapi::api::core::v1::SecurityContext { proc_mount: Some("Half".into()), ..Default::default() };
        let found = SpecContainer {
            role: Role::App,
            container: Container { security_context: Some(context), ..web() },
            target: None,
        };
        let settings = security::Settings::default();
        let inputs = Inputs {
            attempt: 0,
            image_ref: String::new(),
            image_user: ImageUser::default(),
            env: Vec::new(),
            mounts: Vec::new(),
            devices: Vec::new(),
            resources: cri::LinuxContainerResources::default(),
            target: None,
            users: None,
            security: &settings,
        };
        assert!(container_config(&make_pod(), &found, inputs).is_err());
    }
}
