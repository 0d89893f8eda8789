//! Planning a pod that is to run. Pure.
//!
//! Volumes, sandbox and images are independent of each other and asked for at once; a container starts when all three
//! are there. Order between containers: init containers and sidecars one after the other, regular containers together,
//! except that a postStart hook holds back the containers after it, as under kubelet.

use super::running::{check_running, kill, resize};
use super::{Planner, reset};
use crate::cri::{ContainerState, ContainerView, Nanos, SandboxView};
use crate::pod::action::{ImageUse, KillReason, Op, OpKey};
use crate::pod::lifecycle::{Cause, DEADLINE_EXCEEDED, Lifecycle, SECOND, begin};
use crate::pod::memory::{Doubt, IMAGE_ERROR_SHOWN, START_ERROR_SHOWN, Step, finished_at};
use crate::pod::resize::steps;
use crate::pod::spec::{self, Role, rules};
use crate::pod::view::PodView;

/// Plans a pod that is to run; answers where its life goes.
pub fn plan(planner: &mut Planner<'_>) -> Lifecycle {
    let view = planner.view;
    if let Some(eviction) = &view.memory.eviction {
        let cause = Cause::Failed { reason: eviction.why.reason().into(), message: eviction.message.clone() };
        return begin(cause, eviction.grace_seconds, planner.now);
    }
    if let Some(cause) = over(view, planner.now) {
        return begin(cause, spec::grace_seconds(view.pod), planner.now);
    }
    wake_for_deadline(planner);
    prepare(planner);
    if rules::is_starting_over(view.pod, view.runtime) {
        reset::plan(planner);
        return Lifecycle::Syncing;
    }
    let sandbox = sandbox(planner);
    let standing = steps::standing(view);
    for name in due_containers(view) {
        // A container that was resized meanwhile waits for its pod's cgroup; should that fail, it does not wait for ever.
        let has_failed = view.memory.cleanup.contains_key(&OpKey::Resize);
        if !standing.held.contains(&name) || has_failed {
            start_container(planner, &name, sandbox);
        }
    }
    if sandbox.is_some() {
        resize(planner, &standing);
        check_running(planner);
    }
    super::collect_dead(planner);
    Lifecycle::Syncing
}

/// Whether the pod has come to its end, and how.
fn over(view: &PodView<'_>, now: Nanos) -> Option<Cause> {
    if let Some(deadline) = deadline(view)
        && deadline <= now
    {
        return Some(Cause::Failed {
            reason: DEADLINE_EXCEEDED.into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
        });
    }
    if view.may_be_starting() || rules::is_starting_over(view.pod, view.runtime) {
        return None;
    }
    (has_completed(view) || init_has_failed(view)).then_some(Cause::Completed)
}

/// When `activeDeadlineSeconds` runs out.
fn deadline(view: &PodView<'_>) -> Option<Nanos> {
    let seconds = spec::spec(view.pod).active_deadline_seconds?;
    (view.started_at > 0).then(|| view.started_at.saturating_add(seconds.saturating_mul(SECOND)))
}

fn wake_for_deadline(planner: &mut Planner<'_>) {
    if let Some(deadline) = deadline(planner.view) {
        planner.wake(deadline);
    }
}

/// Every regular container has ended and none is to run again.
fn has_completed(view: &PodView<'_>) -> bool {
    let mut apps = spec::roles(view.pod).filter(|(_, role)| *role == Role::App).peekable();
    apps.peek().is_some() && apps.all(|(name, role)| view.runtime.latest(name).is_some_and(|c| is_final(view, c, role)))
}

/// An init container has failed for good before the pod was initialized.
fn init_has_failed(view: &PodView<'_>) -> bool {
    if is_initialized(view) {
        return false;
    }
    spec::roles(view.pod).filter(|(_, role)| *role == Role::Init).any(|(name, role)| {
        view.runtime.latest(name).is_some_and(|c| {
            is_final(view, c, role) && matches!(c.state, ContainerState::Exited { exit_code, .. } if exit_code != 0)
        })
    })
}

/// Whether a container has ended and is not to run again.
fn is_final(view: &PodView<'_>, container: &ContainerView, role: Role) -> bool {
    match container.state {
        ContainerState::Exited { exit_code, .. } => !view.restarts(&container.name, role, exit_code),
        ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown => false,
    }
}

/// Whether initialization is over: a regular container exists in the newest sandbox.
fn is_initialized(view: &PodView<'_>) -> bool {
    spec::roles(view.pod).any(|(name, role)| role == Role::App && view.runtime.current(name).is_some())
}

fn prepare(planner: &mut Planner<'_>) {
    let volumes = &planner.view.memory.volumes;
    if volumes.is_due(planner.now) {
        planner.start(Op::PrepareVolumes);
    } else if let Some(failed) = volumes.failure() {
        planner.wake(failed.retry_at);
    }
}

/// The sandbox to start containers in; asks for what leads to one when there is none.
fn sandbox<'a>(planner: &mut Planner<'a>) -> Option<&'a SandboxView> {
    let view = planner.view;
    match view.runtime.sandbox() {
        Some(newest) if is_usable(view, newest) => {
            remove_old_sandboxes(planner, newest);
            return Some(newest);
        }
        Some(_) if view.is_inflight(&OpKey::Sandbox) => return None,
        Some(_) | None if !replace(planner) => return None,
        Some(_) | None => {}
    }
    let memory = &view.memory.sandbox;
    match memory.failure() {
        Some(failed) if failed.retry_at > planner.now => planner.wake(failed.retry_at),
        _ => {
            let attempt = view.runtime.sandboxes.iter().map(|s| s.attempt + 1).max().unwrap_or(0);
            planner.start(Op::CreateSandbox { attempt });
        }
    }
    None
}

/// Ready, in the network namespace that the spec asks for, with an address.
pub fn is_usable(view: &PodView<'_>, sandbox: &SandboxView) -> bool {
    sandbox.is_sound() && sandbox.host_network == spec::host_network(view.pod)
}

/// Clears away what an unusable sandbox left; true when a new one may be created.
fn replace(planner: &mut Planner<'_>) -> bool {
    let view = planner.view;
    if !may_believe(planner) {
        return false;
    }
    let mut clear = true;
    for container in view.runtime.containers.iter().filter(|c| c.is_running()) {
        clear = false;
        kill(planner, container, spec::grace_seconds(view.pod), KillReason::SandboxGone);
    }
    if !clear {
        return false;
    }
    for sandbox in &view.runtime.sandboxes {
        if !view.memory.stopped.contains(&sandbox.id) {
            clear = false;
            planner.start(Op::StopSandbox(sandbox.id.clone()));
        }
    }
    // What is being started in the old sandbox may run after all, and would then run twice.
    clear && !view.may_be_starting() && due_containers(view).next().is_some()
}

/// Whether what is said of the sandboxes of running containers may be acted on; asks for another look when it is time.
fn may_believe(planner: &mut Planner<'_>) -> bool {
    let view = planner.view;
    let mut believed = true;
    for container in view.runtime.containers.iter().filter(|c| c.is_running()) {
        believed &= is_believed(planner, container.sandbox.as_str());
    }
    believed
}

/// Whether bad news about a sandbox or a container may be acted on. Without a doubt on record there is none: it was our
/// own operation that changed it.
fn is_believed(planner: &mut Planner<'_>, id: &str) -> bool {
    let Some(doubt) = planner.view.memory.doubts.get(id).filter(|doubt| !doubt.is_confirmed()) else { return true };
    let look_at = doubt.since + Doubt::PAUSE;
    if look_at <= planner.now {
        planner.start(Op::Inspect)
    } else {
        planner.wake(look_at)
    }
    false
}

fn remove_old_sandboxes(planner: &mut Planner<'_>, newest: &SandboxView) {
    let view = planner.view;
    for sandbox in view.runtime.sandboxes.iter().filter(|s| s.id != newest.id) {
        if view.runtime.containers.iter().any(|c| c.sandbox == sandbox.id) {
            continue;
        }
        let next = if view.memory.stopped.contains(&sandbox.id) {
            Op::RemoveSandbox(sandbox.id.clone())
        } else {
            Op::StopSandbox(sandbox.id.clone())
        };
        planner.start(next);
    }
}

/// Names of the containers that ought to be started now, as far as the order between containers goes.
fn due_containers<'a>(view: &'a PodView<'a>) -> impl Iterator<Item = String> + 'a {
    let initialized = is_initialized(view);
    let mut held = false;
    let mut due = Vec::new();
    for (name, role) in spec::roles(view.pod) {
        let current = view.runtime.current(name);
        let startable = is_startable(view, name, role, current);
        match role {
            Role::Init if initialized => {}
            Role::Init => {
                let done = matches!(current.map(|c| &c.state), Some(ContainerState::Exited { exit_code: 0, .. }));
                if held || done {
                    continue;
                }
                held = true;
                if startable {
                    due.push(name.to_owned());
                }
            }
            Role::Sidecar => {
                if held && !initialized {
                    continue;
                }
                if startable {
                    due.push(name.to_owned());
                }
                let started = view.probes.get(name).is_some_and(|p| p.started);
                let runs = started && current.is_some_and(ContainerView::is_running);
                held |= !initialized && !runs;
            }
            Role::App => {
                if held {
                    continue;
                }
                if startable {
                    due.push(name.to_owned());
                }
                // A postStart hook runs before the next container is started.
                let waits = spec::lifecycle(view.pod, name).is_some_and(|l| l.post_start.is_some());
                held |= waits && (current.is_none() || view.is_starting(name));
            }
            Role::Ephemeral => {
                // Also before initialization is over: people look why it is not.
                if current.is_none() && view.runtime.latest(name).is_none() {
                    due.push(name.to_owned());
                }
            }
        }
    }
    due.into_iter()
}

/// Whether a container is absent, or has ended and is to run again.
fn is_startable(view: &PodView<'_>, name: &str, role: Role, current: Option<&ContainerView>) -> bool {
    match current {
        Some(container) => match container.state {
            ContainerState::Running { .. } => false,
            // A leftover of a start that was interrupted is removed first, what nobody knows about is stopped first.
            ContainerState::Created | ContainerState::Unknown => true,
            ContainerState::Exited { exit_code, .. } => view.restarts(name, role, exit_code),
        },
        // Lost with its sandbox: it runs again if its end would have made it run again. Initialization starts over.
        None => match view.runtime.latest(name).map(|c| &c.state) {
            Some(ContainerState::Exited { exit_code, .. }) if role == Role::App => {
                view.restarts(name, role, *exit_code)
            }
            _ => true,
        },
    }
}

/// Asks for the next step toward a running container.
fn start_container(planner: &mut Planner<'_>, name: &str, sandbox: Option<&SandboxView>) {
    let view = planner.view;
    if view.is_starting(name) {
        return;
    }
    let current = view.runtime.current(name);
    match current.map(|c| (c, &c.state)) {
        Some((leftover, ContainerState::Created)) => return planner.start(Op::RemoveContainer(leftover.id.clone())),
        Some((lost, ContainerState::Unknown)) => {
            if is_believed(planner, lost.id.as_str()) {
                kill(planner, lost, spec::grace_seconds(view.pod), KillReason::StateUnknown);
            }
            return;
        }
        Some((_, ContainerState::Running { .. } | ContainerState::Exited { .. })) | None => {}
    }
    let memory = view.memory.containers.get(name);
    if let Some(failed) = memory.and_then(|m| m.start.as_ref())
        && failed.retry_at > planner.now
    {
        return planner.wake(failed.retry_at);
    }
    if let Some(exited) = current.filter(|c| c.is_exited()) {
        let retry_at = view.memory.crash_retry_at(name, finished_at(exited));
        if retry_at > planner.now {
            // The status shows why a start failed first and the back-off later.
            let shown_until = memory.and_then(|m| m.start.as_ref()).map(|failed| failed.since() + START_ERROR_SHOWN);
            if let Some(at) = shown_until.filter(|at| *at > planner.now) {
                planner.wake(at);
            }
            return planner.wake(retry_at);
        }
    }
    if !images_are_there(planner, name) {
        return;
    }
    let Some(sandbox) = sandbox else { return };
    if view.memory.volumes.is_done() {
        let attempt = view.runtime.latest(name).map_or(0, |c| c.attempt + 1).max(view.memory.next_attempt(name));
        planner.start(Op::StartContainer { container: name.to_owned(), attempt, sandbox: sandbox.id.clone() });
    }
}

/// Whether a container's image and those of the image volumes that it mounts are on the node; asks for what is not.
fn images_are_there(planner: &mut Planner<'_>, name: &str) -> bool {
    let view = planner.view;
    let wanted = spec::image(view.pod, name);
    let for_use = ImageUse::Container(name.to_owned());
    // An edit of the image ends the pull of the one before, which may never come.
    let outdated = view.inflight.iter().find(|k| matches!(k, OpKey::Image(u, i) if *u == for_use && i != wanted));
    if let Some(key) = outdated {
        planner.cancel(key.clone());
    }
    let memory = view.memory.containers.get(name).filter(|memory| memory.image_name == wanted);
    let mut is_there = image_is_there(planner, memory.map(|memory| &memory.image), for_use, wanted);
    for (volume, reference) in spec::image_volumes(view.pod, name) {
        let step = view.memory.volume_images.get(volume);
        is_there &= image_is_there(planner, step, ImageUse::Volume(volume.to_owned()), reference);
    }
    is_there
}

fn image_is_there(planner: &mut Planner<'_>, step: Option<&Step>, for_use: ImageUse, image: &str) -> bool {
    match step {
        Some(Step::Done) => return true,
        Some(Step::Failed(failed)) if failed.retry_at > planner.now => {
            planner.wake(failed.retry_at);
            // The status shows the error first and the back-off later.
            let shown_until = failed.since() + IMAGE_ERROR_SHOWN;
            if shown_until > planner.now {
                planner.wake(shown_until);
            }
        }
        Some(Step::Failed(_) | Step::Todo) | None => {
            planner.start(Op::EnsureImage { for_use, image: image.to_owned() })
        }
    }
    false
}
