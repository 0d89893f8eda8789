//! Container statuses. Pure.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, VolumeMountStatus,
};

use super::conditions::{RESTARTING, was_true};
use super::{Context, resources, terminal, time};
use crate::cri::{ContainerState, ContainerView, Nanos};
use crate::pod::action::Failed;
use crate::pod::lifecycle::SECOND;
use crate::pod::memory::{Doubt, IMAGE_ERROR_SHOWN, START_ERROR_SHOWN, finished_at, is_pull_failure};
use crate::pod::mounts;
use crate::pod::spec::{self, Role, rules};
use crate::pod::view::PodView;

/// Reason of what is removed because the whole pod starts over.
pub const RESTARTING_ALL: &str = "RestartingAllContainers";

/// Reason of an end that nobody has seen.
pub const UNKNOWN: &str = "ContainerStatusUnknown";

/// Container statuses by the list of the API that they belong to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statuses {
    /// `initContainerStatuses`, sidecars included.
    pub init: Vec<ContainerStatus>,
    /// `containerStatuses`.
    pub app: Vec<ContainerStatus>,
    /// `ephemeralContainerStatuses`.
    pub ephemeral: Vec<ContainerStatus>,
}

/// Computes the status of every container of the spec.
pub fn statuses(view: &PodView<'_>, context: &Context<'_>) -> Statuses {
    let mut statuses = Statuses::default();
    for (name, role) in spec::roles(view.pod) {
        let status = one(view, context, name, role);
        match role {
            Role::Init | Role::Sidecar => statuses.init.push(status),
            Role::App => statuses.app.push(status),
            Role::Ephemeral => statuses.ephemeral.push(status),
        }
    }
    terminal::end_all(view, &mut statuses);
    terminal::cut_messages(&mut statuses);
    statuses
}

fn one(view: &PodView<'_>, context: &Context<'_>, name: &str, role: Role) -> ContainerStatus {
    let found = spec::find(view.pod, name);
    let container = found.map(|f| f.container).unwrap_or_default();
    let last = last_status(context, name, role);
    let mut status = ContainerStatus {
        name: name.to_owned(),
        image: container.image.clone().unwrap_or_default(),
        volume_mounts: volume_mounts(&container, context.recursive_read_only),
        started: Some(false),
        ..ContainerStatus::default()
    };
    match view.runtime.latest(name) {
        Some(latest) => from_runtime(view, context, role, latest, last, &mut status),
        None => from_memory(view, context, role, last, &mut status),
    }
    if let Some(latest) = view.runtime.latest(name) {
        status.allocated_resources = container.resources.as_ref().and_then(|r| r.requests.clone());
        status.resources = Some(resources::of_container(view, &container, latest));
    }
    status
}

fn last_status<'a>(context: &Context<'a>, name: &str, role: Role) -> Option<&'a ContainerStatus> {
    let list = match role {
        Role::Init | Role::Sidecar => &context.last.init_container_statuses,
        Role::App => &context.last.container_statuses,
        Role::Ephemeral => &context.last.ephemeral_container_statuses,
    };
    spec::status_of(list.as_deref().unwrap_or_default(), name)
}

fn from_runtime(
    view: &PodView<'_>,
    context: &Context<'_>,
    role: Role,
    latest: &ContainerView,
    last: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    let id = |c: &ContainerView| format!("{}://{}", context.runtime_name, c.id);
    status.container_id = Some(id(latest));
    status.image_id = latest.image_ref.clone();
    if !latest.image.is_empty() {
        status.image = latest.image.clone();
    }
    let count = i32::try_from(latest.attempt).unwrap_or(i32::MAX);
    status.restart_count = last.map_or(count, |last| last.restart_count.max(count));
    status.user = user(latest);
    // The API server takes the field only where it knows the one in the spec.
    let asked = spec::lifecycle(view.pod, &latest.name).is_some_and(|l| l.stop_signal.is_some());
    status.stop_signal = latest.stop_signal.clone().filter(|_| asked);
    let previous = view.runtime.previous(&latest.name).and_then(|c| terminated(c, id(c)));
    status.last_state = previous.or_else(|| last_end(last?, status.container_id.as_deref()));
    match &latest.state {
        ContainerState::Running { started_at } => {
            let probes = view.probes.get(&latest.name);
            let started = probes.is_some_and(|p| p.started);
            status.state = Some(running(*started_at));
            status.started = Some(started);
            status.ready = match role {
                Role::App | Role::Sidecar => started && probes.is_some_and(|p| p.ready),
                Role::Init | Role::Ephemeral => false,
            };
        }
        ContainerState::Exited { exit_code, .. } => {
            status.ready = role == Role::Init && *exit_code == 0;
            match waiting_reason(view, context, role, latest, *exit_code) {
                Some((reason, message)) => {
                    status.last_state = terminated(latest, id(latest));
                    status.state = Some(waiting(reason, message));
                }
                None => status.state = terminated(latest, id(latest)),
            }
        }
        ContainerState::Unknown if unknown(view, latest, last, status) => {}
        ContainerState::Created | ContainerState::Unknown => {
            let (reason, message) = start_failure(view, context, &latest.name).unwrap_or(default_waiting(view));
            status.state = Some(waiting(reason, message));
        }
    }
}

/// How the container before this one ended, as it was told; the runtime may have forgotten it.
fn last_end(last: &ContainerStatus, id: Option<&str>) -> Option<ApiState> {
    let end = |state: &Option<ApiState>| state.as_ref().and_then(|s| s.terminated.clone());
    let newest = end(&last.state).filter(|_| last.container_id.as_deref() != id);
    let end = newest.or_else(|| end(&last.last_state).filter(|end| end.container_id.as_deref() != id))?;
    Some(ApiState { terminated: Some(end), ..ApiState::default() })
}

/// A container of which the runtime cannot say whether it runs: it is what it was, until a second look says the same. False
/// when nothing was said of it before.
fn unknown(
    view: &PodView<'_>,
    latest: &ContainerView,
    last: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) -> bool {
    let Some(last) = last.filter(|last| last.container_id == status.container_id) else { return false };
    let Some(state) = last.state.as_ref().filter(|state| state.waiting.is_none()) else { return false };
    *status = last.clone();
    let is_believed = view.memory.doubts.get(latest.id.as_str()).is_some_and(Doubt::is_confirmed);
    if state.running.is_some() && is_believed {
        status.state = Some(terminal::unlocated());
        status.restart_count = last.restart_count + 1;
        (status.ready, status.started) = (false, Some(false));
    }
    true
}

/// The status of a container that the runtime does not know.
fn from_memory(
    view: &PodView<'_>,
    context: &Context<'_>,
    role: Role,
    last: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    let (reason, message) = start_failure(view, context, &status.name).unwrap_or(default_waiting(view));
    status.state = Some(waiting(reason, message));
    let is_starting_over = role != Role::Ephemeral && is_starting_over(view, context);
    if role == Role::Init && app_was_created(view) && !is_starting_over {
        // Its record is gone, but regular containers exist only after it has succeeded.
        status.state = Some(ApiState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 0,
                reason: Some("Completed".into()),
                message: Some(
                    "Unable to get init container status from container runtime and pod has been initialized, treat \
                     it as exited normally"
                        .into(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ApiState::default()
        });
        status.ready = true;
    }
    let Some(last) = last else { return };
    status.restart_count = last.restart_count;
    status.last_state = last.last_state.clone().filter(|s| s.terminated.is_some());
    let Some(state) = &last.state else { return };
    let was_removed = state.waiting.as_ref().is_some_and(|w| w.reason.as_deref() == Some(RESTARTING_ALL));
    if is_starting_over && was_removed {
        status.state = last.state.clone();
    } else if is_starting_over && state.waiting.is_none() {
        let text = "The container is removed because RestartAllContainers in place";
        status.state = Some(waiting(RESTARTING_ALL, text.to_owned()));
        status.last_state = Some(ended_unseen(RESTARTING_ALL, text));
        status.restart_count = last.restart_count + 1;
        status.ready = false;
    } else if state.terminated.is_some() {
        // Ended and collected: what was said last stays true.
        *status = last.clone();
    } else if state.running.is_some() && view.memory.observed && status.last_state.is_none() {
        // It ran when it was last seen, and nobody can say anything about it any more.
        let text = "The container could not be located when the pod was deleted.  The container used to be Running";
        status.last_state = Some(ended_unseen(UNKNOWN, text));
        status.restart_count += i32::from(view.lifecycle.may_start());
    }
}

/// The end of a container that nobody has seen.
pub(super) fn ended_unseen(reason: &str, message: &str) -> ApiState {
    let end = ContainerStateTerminated {
        exit_code: 137,
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    };
    ApiState { terminated: Some(end), ..ApiState::default() }
}

/// Whether all of the pod's containers are being removed, or have just been, to start over.
fn is_starting_over(view: &PodView<'_>, context: &Context<'_>) -> bool {
    view.lifecycle.may_start() && (rules::is_starting_over(view.pod, view.runtime) || was_true(context, RESTARTING))
}

fn app_was_created(view: &PodView<'_>) -> bool {
    spec::roles(view.pod).any(|(name, role)| role == Role::App && view.runtime.latest(name).is_some())
}

/// Why a container that has ended is shown as waiting, if it is.
fn waiting_reason(
    view: &PodView<'_>,
    context: &Context<'_>,
    role: Role,
    container: &ContainerView,
    exit_code: i32,
) -> Option<(&'static str, String)> {
    if !view.lifecycle.may_start() || !view.restarts(&container.name, role, exit_code) {
        return None;
    }
    let memory = view.memory.containers.get(&container.name)?;
    let retry_at = view.memory.crash_retry_at(&container.name, finished_at(container));
    let waits = retry_at > context.now && !view.is_starting(&container.name);
    // Why a start failed is shown first, then that the next one is waited for.
    let is_told = |failed: &Failed| failed.delay == 0 && failed.since() + START_ERROR_SHOWN <= context.now;
    if !(waits && memory.start.as_ref().is_some_and(is_told))
        && let Some(failure) = start_failure(view, context, &container.name)
    {
        return Some(failure);
    }
    if view.is_starting(&container.name) {
        return None;
    }
    (retry_at > 0).then(|| ("CrashLoopBackOff", crash_message(view, &container.name, memory.crash_delay)))
}

/// Text of a crash back-off, in status and event.
pub fn crash_message(view: &PodView<'_>, name: &str, delay: i64) -> String {
    let meta = &view.pod.metadata;
    format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_seconds(delay / SECOND),
        name,
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    )
}

/// Whole seconds as Go prints a duration: `10s`, `2m40s`, `5m0s`.
pub fn go_seconds(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

/// The failure that keeps a container from starting.
fn start_failure(view: &PodView<'_>, context: &Context<'_>, name: &str) -> Option<(&'static str, String)> {
    let memory = view.memory.containers.get(name);
    let image = spec::image(view.pod, name);
    let own = memory.filter(|memory| memory.image_name == image).and_then(|memory| memory.image.failure());
    if let Some(failed) = own {
        return Some(image_failure(failed, image, context.now));
    }
    let volumes = spec::image_volumes(view.pod, name);
    let failed = volumes
        .iter()
        .find_map(|(volume, reference)| Some((view.memory.volume_images.get(*volume)?.failure()?, *reference)));
    if let Some((failed, reference)) = failed {
        return Some(image_failure(failed, reference, context.now));
    }
    memory?.start.as_ref().map(|failed| (failed.reason, failed.message.clone()))
}

/// A failed pull shows its error first, then that the next one is waited for.
fn image_failure(failed: &Failed, image: &str, now: Nanos) -> (&'static str, String) {
    if is_pull_failure(failed.reason) && now >= failed.since() + IMAGE_ERROR_SHOWN {
        let text = format!("Back-off pulling image \"{image}\": {}: {}", failed.reason, failed.message);
        return ("ImagePullBackOff", text);
    }
    (failed.reason, failed.message.clone())
}

fn default_waiting(view: &PodView<'_>) -> (&'static str, String) {
    let has_init = spec::spec(view.pod).init_containers.as_ref().is_some_and(|c| !c.is_empty());
    (if has_init { "PodInitializing" } else { "ContainerCreating" }, String::new())
}

fn running(started_at: i64) -> ApiState {
    ApiState { running: Some(ContainerStateRunning { started_at: Some(time(started_at)) }), ..ApiState::default() }
}

fn waiting(reason: &str, message: String) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then_some(message),
        }),
        ..ApiState::default()
    }
}

fn terminated(container: &ContainerView, id: String) -> Option<ApiState> {
    let ContainerState::Exited { started_at, finished_at, exit_code, reason, message } = &container.state else {
        return None;
    };
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    Some(ApiState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(id),
            exit_code: *exit_code,
            reason: some(reason),
            message: some(message),
            started_at: Some(time(*started_at)),
            finished_at: Some(time(*finished_at)),
            signal: None,
        }),
        ..ApiState::default()
    })
}

fn user(container: &ContainerView) -> Option<ContainerUser> {
    let user = container.user.as_ref()?;
    Some(ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid,
            gid: user.gid,
            supplemental_groups: (!user.supplemental_groups.is_empty()).then(|| user.supplemental_groups.clone()),
        }),
    })
}

fn volume_mounts(container: &Container, recursive_read_only: bool) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: mount.read_only.filter(|ro| *ro),
            recursive_read_only: mounts::recursive_read_only_status(mount, recursive_read_only),
            ..VolumeMountStatus::default()
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}
