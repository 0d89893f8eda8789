//! Planning what runs: what may not go on as it is, and resizes. Pure.

use super::Planner;
use crate::cri::ContainerView;
use crate::pod::action::{KillReason, Op, OpKey};
use crate::pod::resize::steps::Standing;
use crate::pod::spec::{self, Role};

/// Stops running containers that may not go on: a probe gave up, or the image in the spec has changed.
pub(super) fn check_running(planner: &mut Planner<'_>) {
    let view = planner.view;
    for (name, role) in spec::roles(view.pod) {
        let Some(container) = view.runtime.current(name).filter(|c| c.is_running()) else { continue };
        if view.is_starting(name) {
            continue;
        }
        let grace = spec::grace_seconds(view.pod);
        let wanted = crate::cri::labels::container_hash(name, spec::image(view.pod, name));
        if matches!(role, Role::App | Role::Sidecar) && container.hash.as_ref().is_some_and(|hash| *hash != wanted) {
            kill(planner, container, grace, KillReason::DefinitionChanged);
        } else if let Some(failure) = view.probes.get(name).and_then(|p| p.failure.as_ref()) {
            let grace = failure.grace_seconds.unwrap_or(grace);
            kill(planner, container, grace, KillReason::Probe(failure.message.clone()));
        }
    }
}

/// Restarts the containers whose resize asks for it, then brings the rest to what was allocated.
pub(super) fn resize(planner: &mut Planner<'_>, standing: &Standing) {
    let view = planner.view;
    let grace = spec::grace_seconds(view.pod);
    for container in view.runtime.containers.iter().filter(|c| standing.restart.contains(&c.id)) {
        if !view.is_starting(&container.name) {
            kill(planner, container, grace, KillReason::Resized);
        }
    }
    if standing.is_due && standing.restart.is_empty() && !view.may_be_starting() {
        planner.start(Op::Resize);
    }
}

pub(super) fn kill(planner: &mut Planner<'_>, container: &ContainerView, grace_seconds: i64, reason: KillReason) {
    let being_killed = |key: &OpKey| matches!(key, OpKey::Kill(id, _) if *id == container.id);
    if !planner.view.inflight.iter().any(being_killed) {
        planner.start(Op::KillContainer {
            id: container.id.clone(),
            container: container.name.clone(),
            grace_seconds,
            is_announced: false,
            reason,
        });
    }
}
