//! Creating and starting a container.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::{Container, VolumeDevice, VolumeMount};
use nodelet_proto::cri;

use super::stop::{self, Stop};
use super::{Context, Output, hooks, message, sandbox};
use crate::cri::{ContainerState, ContainerView, CriError};
use crate::event::EventType;
use crate::ids::{ContainerId, ObjectKey, SandboxId};
use crate::metrics::METRICS;
use crate::objects::{ObjectError, ObjectRef};
use crate::pod::action::{Failure, KillReason};
use crate::pod::allocation::ResourceInfo;
use crate::pod::container_config::{Inputs, container_config};
use crate::pod::env::{self, EnvError, Sources};
use crate::pod::facilities::SubPath;
use crate::pod::images::{Image, PullSecrets};
use crate::pod::spec::{self, Role, SpecContainer};
use crate::pod::{expand, figures, hosts, mounts};

const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";
const HOSTS_PATH: &str = "/etc/hosts";

fn config_error(message: impl ToString) -> Failure {
    Failure { reason: "CreateContainerConfigError", message: message.to_string(), container: None }
}

/// Creates and starts a container and runs its postStart hook.
pub(super) async fn start(context: &Context, name: &str, attempt: u32, sandbox: &SandboxId) -> Result<Output, Failure> {
    let Some(found) = spec::find(&context.pod, name) else {
        return Err(config_error(format!("container {name} is no longer in the spec")));
    };
    let kind = figures::word(found.role);
    METRICS.pods.containers_started.increment([kind]);
    let result = create_and_start(context, &found, attempt, sandbox).await;
    if let Err(failed) = &result {
        METRICS.pods.container_errors.increment([failed.reason, kind]);
        if failed.reason != "PostStartHookError" {
            let text = format!("Error: {}", failed.message);
            context.shared.event(&context.pod, Some(name), EventType::Warning, "Failed", text);
        }
    }
    result
}

async fn create_and_start(
    context: &Context,
    found: &SpecContainer,
    attempt: u32,
    sandbox: &SandboxId,
) -> Result<Output, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let name = found.container.name.as_str();
    let id = create(context, found, attempt, sandbox).await?;
    shared.event(pod, Some(name), EventType::Normal, "Created", "Container created".into());
    // Before the start: should the agent end in between, a created container is made anew, a started one is not restarted.
    if found.role != Role::Ephemeral
        && let Some(actuated) = shared.actuated.get(&context.uid)
    {
        let mut actuated = ResourceInfo::clone(&actuated);
        actuated.take_container(name, &ResourceInfo::of(pod));
        context.record(&actuated);
    }
    if let Err(error) = shared.runtime.start_container(&id).await {
        let view = shared.runtime.container_status(&id, sandbox.as_str()).await.ok();
        return Err(Failure { reason: "RunContainerError", message: error.text(), container: view.map(Box::new) });
    }
    shared.event(pod, Some(name), EventType::Normal, "Started", "Container started".into());
    let view = status(context, &id, sandbox).await?;
    link_log(context, &view).await;
    let hook = found.container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref());
    if let Some(hook) = hook.filter(|_| matches!(found.role, Role::App | Role::Sidecar)) {
        post_start(context, found, hook, &view, sandbox).await?;
    }
    Ok(Output::Container(Box::new(view)))
}

async fn status(context: &Context, id: &ContainerId, sandbox: &SandboxId) -> Result<ContainerView, Failure> {
    match context.shared.runtime.container_status(id, sandbox.as_str()).await {
        // It was started, so this is an older state; a container that is only created would be removed as a leftover.
        Ok(view) if view.state == ContainerState::Created => {
            let message = "the runtime has started the container and says that it has not".into();
            Err(Failure { reason: "RunContainerError", message, container: None })
        }
        Ok(view) => Ok(message::with_message(view).await),
        Err(error) => Err(Failure { reason: "RunContainerError", message: error.text(), container: None }),
    }
}

async fn post_start(
    context: &Context,
    found: &SpecContainer,
    hook: &k8s_openapi::api::core::v1::LifecycleHandler,
    view: &ContainerView,
    sandbox: &SandboxId,
) -> Result<(), Failure> {
    let Err(error) = hooks::run(context, &found.container, hook, &view.id).await else { return Ok(()) };
    let name = found.container.name.as_str();
    tracing::info!(pod = %spec::key(&context.pod), container = name, %error, "postStart hook failed");
    // What the hook has printed may be secret, and more people read events than pods.
    let event = "PostStartHook failed".to_owned();
    context.shared.event(&context.pod, Some(name), EventType::Warning, "FailedPostStartHook", event);
    // The container is stopped, its preStop hook included, and its end recorded; the restart policy decides about another try.
    let grace_seconds = spec::grace_seconds(&context.pod);
    let stop = Stop { id: &view.id, name, grace_seconds, reason: &KillReason::PostStartHook };
    if let Err(failed) = stop::kill(context, &stop, false).await {
        tracing::warn!(container = %view.id, error = %failed.message, "cannot stop a container whose postStart hook failed");
    }
    let container = status(context, &view.id, sandbox).await.ok().map(Box::new);
    Err(Failure { reason: "PostStartHookError", message: error, container })
}

async fn create(
    context: &Context,
    found: &SpecContainer,
    attempt: u32,
    sandbox: &SandboxId,
) -> Result<ContainerId, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let Some(image) = context.image.clone() else {
        return Err(config_error("the image is not known yet"));
    };
    let env = environment(context, &found.container).await?;
    let mounts = all_mounts(context, &found.container, attempt, &env).await?;
    let inputs = Inputs {
        attempt,
        image_ref: image.reference,
        image_user: image.user,
        env,
        mounts,
        devices: devices(context, &found.container)?,
        resources: shared.facilities.container_resources(pod, &found.container),
        target: context.target.clone(),
        users: sandbox::users(context).await.map_err(config_error)?,
        security: &shared.settings.security,
    };
    let config = container_config(pod, found, inputs).map_err(config_error)?;
    let parent = shared.facilities.ensure_cgroup(pod).await.map_err(config_error)?;
    let sandbox_config = sandbox::config(context, context.sandbox.as_ref().map_or(0, |s| s.attempt), parent).await?;
    let log = Path::new(&sandbox_config.log_directory).join(&found.container.name);
    tokio::fs::create_dir_all(&log)
        .await
        .map_err(|error| config_error(format!("create log directory {}: {error}", log.display())))?;
    match shared.runtime.create_container(sandbox, config, sandbox_config).await {
        Ok(id) => Ok(id),
        Err(error) => adopt(context, &found.container.name, attempt, sandbox, &error).await,
    }
}

/// See the sandbox's `adopt`: a create whose answer was lost has made the container under a reserved name.
async fn adopt(
    context: &Context,
    name: &str,
    attempt: u32,
    sandbox: &SandboxId,
    error: &CriError,
) -> Result<ContainerId, Failure> {
    let failed = Failure { reason: "CreateContainerError", message: error.text(), container: None };
    let Ok(runtime) = context.shared.runtime.inspect_pod(&context.uid, &context.known).await else {
        return Err(failed);
    };
    let made = runtime.containers.into_iter().find(|c| c.name == name && c.attempt == attempt && c.sandbox == *sandbox);
    made.map(|c| c.id).ok_or(failed)
}

/// Fetches what the environment refers to and computes it.
async fn environment(context: &Context, container: &Container) -> Result<Vec<(String, String)>, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let namespace = spec::key(pod).namespace;
    let mut sources = Sources {
        pod_ips: context.pod_ips.clone(),
        host_ips: shared.host_ips.load().as_ref().clone(),
        node_name: shared.settings.node_name.clone(),
        allocatable: shared.facilities.allocatable(),
        ..Sources::default()
    };
    if spec::host_network(pod) {
        sources.pod_ips = sources.host_ips.clone();
    }
    for reference in env::object_refs(&namespace, container) {
        match reference {
            ObjectRef::ConfigMap(key) => {
                if let Some(map) = found(shared.objects.config_map(&key).await)? {
                    sources.config_maps.insert(key.name.to_string(), map);
                }
            }
            ObjectRef::Secret(key) => {
                if let Some(secret) = found(shared.objects.secret(&key).await)? {
                    sources.secrets.insert(key.name.to_string(), secret);
                }
            }
            // Only volumes have these.
            ObjectRef::TrustBundles(_) => {}
        }
    }
    for (volume, path) in env::file_refs(container) {
        if let Some(root) = context.volumes.paths.get(&volume) {
            let content = shared.facilities.read_volume_file(root.clone(), path.clone()).await;
            sources.files.insert((volume, path), content);
        }
    }
    let services = shared.objects.services(&namespace);
    sources.services = match spec::is_static(pod) {
        // The API server that the list of Services would come from may be this very pod.
        true => services.now_or_never().transpose().map_err(config_error)?.unwrap_or_default(),
        false => services.await.map_err(config_error)?,
    };
    env::resolve(pod, container, &sources).map_err(|error: EnvError| config_error(error))
}

/// A missing object may be optional; every other trouble is a failure.
fn found<T>(answer: Result<Arc<T>, ObjectError>) -> Result<Option<Arc<T>>, Failure> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(ObjectError::NotFound { .. }) => Ok(None),
        Err(error @ (ObjectError::Unavailable { .. } | ObjectError::Refused { .. })) => Err(config_error(error)),
    }
}

/// The pull secrets of the pod.
pub(super) async fn pull_secrets(context: &Context) -> PullSecrets {
    let namespace = spec::key(&context.pod).namespace;
    let mut secrets = PullSecrets::default();
    // The API server lets entries without a name through (kubernetes#99454).
    let references = spec::spec(&context.pod).image_pull_secrets.iter().flatten().filter(|r| !r.name.is_empty());
    for reference in references {
        let key = ObjectKey::new(&namespace, &reference.name);
        match context.shared.objects.secret(&key).await {
            Ok(secret) => secrets.found.push(secret),
            Err(error) => {
                tracing::info!(pod = %spec::key(&context.pod), %error, "image pull secret not used");
                secrets.missing.push(reference.name.clone());
            }
        }
    }
    secrets
}

/// Volume mounts, the hosts file and the termination log.
async fn all_mounts(
    context: &Context,
    container: &Container,
    attempt: u32,
    env: &[(String, String)],
) -> Result<Vec<cri::Mount>, Failure> {
    let lookup: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut made = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if let Some(image) = context.volume_images.get(&mount.name) {
            made.push(image_mount(context, mount, image, &lookup).await?);
            continue;
        }
        let Some(volume) = context.volumes.paths.get(&mount.name) else {
            return Err(config_error(format!(
                "volume \"{}\" of mount {} is not mounted",
                mount.name, mount.mount_path
            )));
        };
        let subpath = subpath(mount, &lookup)?;
        let host_path = match subpath {
            Some(path) => {
                let subpath = SubPath {
                    uid: context.uid.clone(),
                    volume: mount.name.clone(),
                    container: container.name.clone(),
                    index,
                    path,
                };
                context.shared.facilities.prepare_subpath(subpath).await.map_err(config_error)?
            }
            None => volume.clone(),
        };
        let read_only = mount.read_only == Some(true) || context.volumes.read_only.contains(&mount.name);
        let mut wire = bind(&host_path, &mount.mount_path, read_only);
        wire.set_propagation(mounts::propagation(mount.mount_propagation.as_deref()).map_err(config_error)?);
        wire.recursive_read_only = recursive_read_only(context, mount).await?;
        made.push(wire);
    }
    let mounted = |path: &str| container.volume_mounts.iter().flatten().any(|m| m.mount_path == path);
    if !mounted(HOSTS_PATH) {
        made.extend(hosts_mount(context).await?);
    }
    let path = container.termination_message_path.as_deref().unwrap_or(DEFAULT_TERMINATION_PATH);
    if !path.is_empty() && !mounted(path) {
        let file = context.shared.facilities.termination_log(&context.uid, &container.name, attempt).await;
        made.push(bind(&file.map_err(config_error)?, path, false));
    }
    Ok(made)
}

async fn recursive_read_only(context: &Context, mount: &VolumeMount) -> Result<bool, Failure> {
    if mount.recursive_read_only.is_none() {
        return Ok(false);
    }
    let handler = sandbox::handler(context).await.map_err(config_error)?;
    let features = context.shared.facilities.runtime_features(&handler);
    mounts::recursive_read_only(mount, features.recursive_read_only)
        .map_err(|error| config_error(format!("failed to resolve recursive read-only mode: {error}")))
}

/// Block devices of `volumeDevices`.
fn devices(context: &Context, container: &Container) -> Result<Vec<cri::Device>, Failure> {
    let device = |wanted: &VolumeDevice| {
        if !wanted.device_path.starts_with('/') {
            return Err(config_error(format!("error DevicePath `{}` must be an absolute path", wanted.device_path)));
        }
        let missing = || {
            config_error(format!(
                "cannot find volume \"{}\" to pass into container \"{}\"",
                wanted.name, container.name
            ))
        };
        let is_device = context.volumes.devices.contains(&wanted.name);
        let path = context.volumes.paths.get(&wanted.name).filter(|_| is_device).ok_or_else(missing)?;
        let read_only = context.volumes.read_only.contains(&wanted.name);
        Ok(cri::Device {
            host_path: path.to_string_lossy().into_owned(),
            container_path: wanted.device_path.clone(),
            permissions: if read_only { "r" } else { "mrw" }.to_owned(),
        })
    };
    container.volume_devices.iter().flatten().map(device).collect()
}

/// The subPath of a mount, expanded.
fn subpath(mount: &VolumeMount, variables: &BTreeMap<&str, &str>) -> Result<Option<String>, Failure> {
    match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
        (_, Some(expression)) if !expression.is_empty() => {
            expand_strictly(expression, variables).map(Some).map_err(config_error)
        }
        (Some(path), _) if !path.is_empty() => Ok(Some(path.to_owned())),
        _ => Ok(None),
    }
}

/// The mount of an image volume: the runtime mounts the image itself, read-only (KEP-4639).
async fn image_mount(
    context: &Context,
    mount: &VolumeMount,
    image: &Image,
    variables: &BTreeMap<&str, &str>,
) -> Result<cri::Mount, Failure> {
    let image_sub_path = subpath(mount, variables)?.unwrap_or_default();
    if image_sub_path.starts_with('/') || image_sub_path.split('/').any(|part| part == "..") {
        let text = format!("subPath \"{image_sub_path}\" of image volume \"{}\" leaves the image", mount.name);
        return Err(config_error(text));
    }
    let version = context.shared.runtime.version().await.map_err(|error| config_error(error.text()))?;
    if let Some(needed) = lacks(&version.runtime_name, &version.runtime_version, !image_sub_path.is_empty()) {
        let message = format!(
            "image volume \"{}\" needs {needed}; this node has {} {}",
            mount.name, version.runtime_name, version.runtime_version
        );
        return Err(Failure { reason: "CreateContainerError", message, container: None });
    }
    let named = spec::spec(&context.pod).volumes.iter().flatten().find(|volume| volume.name == mount.name);
    let reference = named.and_then(|volume| volume.image.as_ref()?.reference.clone()).unwrap_or_default();
    let image = cri::ImageSpec {
        image: image.reference.clone(),
        user_specified_image: reference,
        annotations: context.pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        ..Default::default()
    };
    let mut wire = cri::Mount { image: Some(image), image_sub_path, ..bind(Path::new(""), &mount.mount_path, true) };
    wire.set_propagation(mounts::propagation(mount.mount_propagation.as_deref()).map_err(config_error)?);
    Ok(wire)
}

/// What an image mount needs and a runtime has not: it would ignore the field, and mount nothing or the whole image. Only
/// of containerd's older versions it is known (containerd#10579 and #11578).
fn lacks(name: &str, version: &str, with_sub_path: bool) -> Option<&'static str> {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+', '~']).map(str::parse::<u32>);
    let ("containerd", Some(Ok(major)), Some(Ok(minor))) = (name, numbers.next(), numbers.next()) else { return None };
    match (major, minor) {
        known if known < (2, 1) => Some("containerd 2.1 or later"),
        known if known < (2, 2) && with_sub_path => Some("containerd 2.2 or later for its subPath"),
        _ => None,
    }
}

fn bind(host_path: &Path, container_path: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host_path.to_string_lossy().into_owned(),
        container_path: container_path.to_owned(),
        readonly,
        ..Default::default()
    }
}

/// `subPathExpr` may use only variables that exist.
fn expand_strictly(expression: &str, variables: &BTreeMap<&str, &str>) -> Result<String, String> {
    let unknown = std::cell::RefCell::new(Vec::new());
    let text = expand::expand(expression, |name| {
        let value = variables.get(name).copied();
        if value.is_none() {
            unknown.borrow_mut().push(name.to_owned());
        }
        value
    });
    let unknown = unknown.into_inner();
    if unknown.is_empty() {
        Ok(text)
    } else {
        Err(format!("subPathExpr \"{expression}\" refers to unknown variables: {}", unknown.join(", ")))
    }
}

async fn hosts_mount(context: &Context) -> Result<Option<cri::Mount>, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let aliases = spec::spec(pod).host_aliases.as_deref().unwrap_or_default();
    let text = if spec::host_network(pod) {
        let node_hosts = tokio::fs::read_to_string(HOSTS_PATH).await.map_err(config_error)?;
        hosts::host_network_hosts(&node_hosts, aliases)
    } else {
        let name = hosts::hostname(pod, &shared.settings.dns.cluster_domain).map_err(config_error)?;
        hosts::pod_hosts(&context.pod_ips, &name, aliases)
    };
    let path = shared.facilities.write_etc_hosts(&context.uid, text).await.map_err(config_error)?;
    Ok(Some(bind(&path, HOSTS_PATH, false)))
}

/// Name of the link below `/var/log/containers` through which log shippers find a container's log.
fn link_name(pod: &k8s_openapi::api::core::v1::Pod, container: &str, id: &ContainerId) -> String {
    let key = spec::key(pod);
    format!("{}_{}_{container}-{id}.log", key.name, key.namespace)
}

async fn link_log(context: &Context, view: &ContainerView) {
    let Some(dir) = &context.shared.settings.container_links else { return };
    let link = dir.join(link_name(&context.pod, &view.name, &view.id));
    if let Err(error) = tokio::fs::symlink(&view.log_path, &link).await
        && error.kind() != std::io::ErrorKind::AlreadyExists
    {
        tracing::warn!(link = %link.display(), %error, "cannot link a container log");
    }
}

/// Removes the link of a container's log.
pub(super) async fn unlink_log(context: &Context, name: &str, id: &ContainerId) {
    let Some(dir) = &context.shared.settings.container_links else { return };
    let _ = tokio::fs::remove_file(dir.join(link_name(&context.pod, name, id))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_volume_needs_a_runtime_that_mounts_it() {
        for (name, version, whole, sub_path) in [
            ("containerd", "1.6.20~ds1", false, false),
            ("containerd", "v1.7.27", false, false),
            ("containerd", "v2.0.5", false, false),
            ("containerd", "v2.1.0-rc.1", true, false),
            ("containerd", "v2.2.0", true, true),
            ("containerd", "v2.4.2", true, true),
            ("containerd", "unknown", true, true),
            ("cri-o", "1.31.0", true, true),
        ] {
            let found = [false, true].map(|with_sub_path| lacks(name, version, with_sub_path).is_none());
            assert_eq!(found, [whole, sub_path], "{name} {version}");
        }
    }
}
