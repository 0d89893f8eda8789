//! Planning a pod that is not to run any more. Pure.
//!
//! ```text
//!  pulls cancelled ─► preStop hooks of all ─► containers killed, each at its turn ─► sandboxes stopped
//!       ─► volumes, cgroup removed ─► Terminated ─► (deleted or unwanted) API object, sandboxes, logs removed ─► Removed
//! ```
//!
//! A create or start in flight is waited for: what it makes is then stopped like everything else.

use super::Planner;
use crate::cri::{ContainerView, Nanos};
use crate::ids::ContainerId;
use crate::pod::action::{KillReason, Op, OpKey};
use crate::pod::lifecycle::{Lifecycle, SECOND, Termination};
use crate::pod::spec::{self, Role};
use crate::pod::view::PodView;

/// Plans a stop under way.
pub fn plan(planner: &mut Planner<'_>, termination: Termination) -> Lifecycle {
    let view = planner.view;
    for key in view.inflight.iter().filter(|key| matches!(key, OpKey::Image(..))) {
        planner.cancel(key.clone());
    }
    stop_containers(planner, &termination);
    if view.runtime.containers.iter().any(ContainerView::may_run) || view.may_be_starting() {
        return Lifecycle::Terminating(termination);
    }
    let mut sandboxes_stopped = true;
    for sandbox in &view.runtime.sandboxes {
        if !view.memory.stopped.contains(&sandbox.id) {
            sandboxes_stopped = false;
            planner.start(Op::StopSandbox(sandbox.id.clone()));
        }
    }
    // Volume work in flight writes into the directory that a release removes.
    if !sandboxes_stopped || view.is_inflight(&OpKey::Volumes) || view.is_inflight(&OpKey::Resize) {
        return Lifecycle::Terminating(termination);
    }
    if view.memory.released.is_done() {
        return Lifecycle::Terminated(termination);
    }
    if view.memory.released.is_due(planner.now) {
        planner.start(Op::Release);
    } else if let Some(failed) = view.memory.released.failure() {
        planner.wake(failed.retry_at);
    }
    Lifecycle::Terminating(termination)
}

/// Stops what runs or may. Hooks of all containers begin at once; a sidecar gets its TERM when its turn has come, or when
/// the grace period is over.
fn stop_containers(planner: &mut Planner<'_>, termination: &Termination) {
    let view = planner.view;
    let remaining = termination.remaining_seconds(planner.now);
    let ends: Nanos = termination.since.saturating_add(termination.grace_seconds.saturating_mul(SECOND));
    for container in view.runtime.containers.iter().filter(|c| c.may_run()) {
        let its_turn = ends <= planner.now || is_its_turn(view, &container.name);
        let (is_announced, hook) =
            (view.memory.announced.contains(&container.id), OpKey::PreStop(container.id.clone()));
        if its_turn && (ends <= planner.now || !view.is_inflight(&hook)) {
            // A hook that takes longer than the grace period is not waited for.
            let is_announced = is_announced || view.is_inflight(&hook);
            kill(planner, container, remaining, is_announced, termination);
            continue;
        }
        planner.wake(ends);
        if !is_announced && !is_being_killed(view, &container.id) {
            planner.start(Op::PreStop {
                id: container.id.clone(),
                container: container.name.clone(),
                grace_seconds: remaining,
            });
        }
    }
}

/// Whether a container need not wait for others: a sidecar waits for the regular containers, which it serves, and for the
/// sidecars after it (KEP-753); nothing else waits.
fn is_its_turn(view: &PodView<'_>, name: &str) -> bool {
    let runs =
        |name: &str| view.is_starting(name) || view.runtime.containers.iter().any(|c| c.name == name && c.may_run());
    let mut is_after = false;
    for (other, role) in spec::roles(view.pod) {
        match role {
            Role::Sidecar if other == name => is_after = true,
            Role::Sidecar | Role::App if is_after && runs(other) => return false,
            Role::Init | Role::Sidecar | Role::App | Role::Ephemeral => {}
        }
    }
    true
}

fn kill(
    planner: &mut Planner<'_>,
    container: &ContainerView,
    grace_seconds: i64,
    is_announced: bool,
    termination: &Termination,
) {
    // One kill per container is enough, unless a second delete shortened the grace below what that kill was given.
    let given = kills_of(planner.view, &container.id).min();
    if given.is_some_and(|given| given <= termination.grace_seconds) {
        return;
    }
    // The grace in the key of a failed kill was another one, so its back-off is looked up by container.
    let failed =
        planner.view.memory.cleanup.iter().find(|(key, _)| matches!(key, OpKey::Kill(id, _) if *id == container.id));
    if let Some((_, failed)) = failed
        && failed.retry_at > planner.now
    {
        return planner.wake(failed.retry_at);
    }
    planner.start(Op::KillContainer {
        id: container.id.clone(),
        container: container.name.clone(),
        grace_seconds,
        is_announced,
        reason: KillReason::PodTerminating,
    });
}

fn is_being_killed(view: &PodView<'_>, id: &ContainerId) -> bool {
    kills_of(view, id).next().is_some()
}

fn kills_of<'a>(view: &'a PodView<'a>, id: &'a ContainerId) -> impl Iterator<Item = i64> + 'a {
    view.inflight.iter().filter_map(move |key| match key {
        OpKey::Kill(killed, grace) if killed == id => Some(*grace),
        _ => None,
    })
}

/// Plans the removal of what a terminated pod left, once nobody wants to look at it any more.
pub fn clean(planner: &mut Planner<'_>, termination: Termination) -> Lifecycle {
    let view = planner.view;
    let deleted = spec::is_deleted(view.pod);
    if !deleted && view.wanted {
        super::collect_dead(planner);
        return Lifecycle::Terminated(termination);
    }
    if deleted && view.wanted {
        if view.memory.deletion.is_due(planner.now) {
            planner.start(Op::FinishDeletion);
        } else if let Some(failed) = view.memory.deletion.failure() {
            planner.wake(failed.retry_at);
        }
    }
    for sandbox in &view.runtime.sandboxes {
        planner.start(Op::RemoveSandbox(sandbox.id.clone()));
    }
    if view.runtime.sandboxes.is_empty() {
        for container in &view.runtime.containers {
            planner.start(Op::RemoveContainer(container.id.clone()));
        }
    }
    if !view.runtime.is_empty() {
        return Lifecycle::Terminated(termination);
    }
    if view.memory.logs.is_due(planner.now) {
        planner.start(Op::RemoveLogs);
    } else if let Some(failed) = view.memory.logs.failure() {
        planner.wake(failed.retry_at);
    }
    if view.memory.logs.is_done() && !view.wanted {
        return Lifecycle::Removed;
    }
    Lifecycle::Terminated(termination)
}
