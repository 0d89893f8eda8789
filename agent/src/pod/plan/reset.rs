//! Planning a pod all of whose containers start over, because a restart rule asks for it (KEP-5532). Pure.
//!
//! Everything that the runtime has of the pod's containers is stopped and removed, one after the other: first the regular
//! containers, then init containers and sidecars, and last those whose end is the cause. So the runtime itself says until the
//! end that this is under way, also to another agent. Then the pod begins again, in the same sandbox, with the same volumes.
//! Source: `computePodActions` and `getContainersToReset` of kubelet.

use super::Planner;
use crate::cri::{ContainerState, ContainerView};
use crate::pod::action::{KillReason, Op};
use crate::pod::spec::{self, Role, rules};

/// Asks for the next step; nothing is started meanwhile.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let view = planner.view;
    let all = of_roles(planner, &[Role::App]).chain(of_roles(planner, &[Role::Init, Role::Sidecar]));
    let (causes, others): (Vec<_>, Vec<_>) = all.partition(|container| is_cause(planner, container));
    let Some(container) = others.first().or_else(|| causes.first().filter(|_| !view.may_be_starting())) else { return };
    match container.state {
        ContainerState::Running { .. } | ContainerState::Unknown => planner.start(Op::KillContainer {
            id: container.id.clone(),
            container: container.name.clone(),
            grace_seconds: 0,
            is_announced: false,
            reason: KillReason::RestartAll,
        }),
        ContainerState::Created | ContainerState::Exited { .. } => {
            planner.start(Op::ForgetContainer(container.id.clone()));
        }
    }
}

/// Containers of the spec with these roles in its order, whatever is left of each.
fn of_roles<'a>(planner: &Planner<'a>, roles: &'a [Role]) -> impl Iterator<Item = &'a ContainerView> + use<'a> {
    let view = planner.view;
    spec::roles(view.pod)
        .filter(|(_, role)| roles.contains(role))
        .flat_map(|(name, _)| view.runtime.containers.iter().filter(move |c| c.name == name))
}

fn is_cause(planner: &Planner<'_>, container: &ContainerView) -> bool {
    matches!(container.state, ContainerState::Exited { exit_code, .. }
        if rules::restarts_all(planner.view.pod, &container.name, exit_code))
}
