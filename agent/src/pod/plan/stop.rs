//! Planning a pod that is not to run any more. Pure.
//!
//! ```text
//!  pulls cancelled ─► containers killed ─► sidecars killed, last first ─► sandboxes stopped ─► volumes, cgroup removed
//!       ─► Terminated ─► (deleted or unwanted) API object, sandboxes, logs removed ─► Removed
//! ```
//!
//! A create or start in flight is waited for: what it makes is then stopped like everything else.

use super::Planner;
use crate::cri::ContainerView;
use crate::ids::ContainerId;
use crate::pod::action::{KillReason, Op, OpKey};
use crate::pod::lifecycle::{Lifecycle, Termination};
use crate::pod::spec::{self, Role};
use crate::pod::view::PodView;

/// Plans a stop under way.
pub fn plan(planner: &mut Planner<'_>, termination: Termination) -> Lifecycle {
    let view = planner.view;
    for key in view.inflight.iter().filter(|key| matches!(key, OpKey::Image(..))) {
        planner.cancel(key.clone());
    }
    let remaining = termination.remaining_seconds(planner.now);
    for container in next_to_kill(view) {
        kill(planner, container, remaining, &termination);
    }
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

/// Containers that run, or may, whose turn it is: regular ones at once, then sidecars one by one from the last to the first
/// (KEP-753), and whatever the spec does not know.
fn next_to_kill<'a>(view: &'a PodView<'a>) -> Vec<&'a ContainerView> {
    let running = |c: &&ContainerView| c.may_run();
    let is_sidecar = |name: &str| spec::roles(view.pod).any(|(n, role)| n == name && role == Role::Sidecar);
    let others: Vec<_> = view.runtime.containers.iter().filter(running).filter(|c| !is_sidecar(&c.name)).collect();
    if !others.is_empty() || view.may_be_starting() {
        return others;
    }
    let sidecars: Vec<&str> =
        spec::roles(view.pod).filter(|(_, role)| *role == Role::Sidecar).map(|(name, _)| name).collect();
    sidecars
        .into_iter()
        .rev()
        .find_map(|name| view.runtime.containers.iter().filter(running).find(|c| c.name == name))
        .into_iter()
        .collect()
}

fn kill(planner: &mut Planner<'_>, container: &ContainerView, grace_seconds: i64, termination: &Termination) {
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
        reason: KillReason::PodTerminating,
    });
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
