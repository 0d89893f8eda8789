//! What holds of all container statuses of a pod together: their ends once the pod has ended, and the room of their messages.
//! Pure. Source: `TerminatePod` and `normalizeStatus` of kubelet's status manager.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};

use super::containers::{Statuses, UNKNOWN, ended_unseen};
use crate::pod::lifecycle::{Cause, Lifecycle};
use crate::pod::spec::{self, Role};
use crate::pod::view::PodView;

/// Most bytes of all termination messages of a pod; each container has its share.
const MESSAGES: usize = 12 * 1024;

/// The end of a container that nobody has seen.
pub(super) fn unlocated() -> ContainerState {
    ended_unseen(UNKNOWN, "The container could not be located when the pod was terminated")
}

/// Gives an end to every container of a pod that has ended: nobody knows whether one without a record has succeeded.
/// Init containers that were never reached stay as they are, and so does a pod that the node has never begun.
pub(super) fn end_all(view: &PodView<'_>, statuses: &mut Statuses) {
    let (Lifecycle::Terminated(termination), Some(_)) = (view.lifecycle, view.pod.spec.as_ref()) else { return };
    if matches!(termination.cause, Cause::Failed { .. }) && view.runtime.is_empty() {
        return;
    }
    if is_initialized(view, statuses) {
        statuses.app.iter_mut().for_each(end);
    }
    let reached = statuses.init.iter().rposition(has_begun).map_or(1, |last| last + 1);
    statuses.init.iter_mut().take(reached).for_each(end);
}

fn end(status: &mut ContainerStatus) {
    if status.state.as_ref().is_none_or(|state| state.terminated.is_none()) {
        status.state = Some(unlocated());
        (status.ready, status.started) = (false, Some(false));
    }
}

fn has_begun(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_none()) || has_ended_before(status)
}

fn has_ended_before(status: &ContainerStatus) -> bool {
    status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
}

fn is_initialized(view: &PodView<'_>, statuses: &Statuses) -> bool {
    let last = spec::spec(view.pod).init_containers.iter().flatten().next_back().map(spec::init_role);
    let Some(role) = last else { return true };
    let succeeded = |state: &Option<ContainerState>| {
        state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|end| end.exit_code == 0)
    };
    statuses.app.iter().any(has_begun)
        || statuses.init.last().is_some_and(|status| match role {
            Role::Sidecar => status.started == Some(true),
            _ => succeeded(&status.state) || succeeded(&status.last_state),
        })
}

/// Cuts termination messages to their share.
pub(super) fn cut_messages(statuses: &mut Statuses) {
    let count = statuses.app.len() + statuses.init.len() + statuses.ephemeral.len();
    let room = MESSAGES / count.max(1);
    let all = statuses.app.iter_mut().chain(&mut statuses.init).chain(&mut statuses.ephemeral);
    for state in all.flat_map(|status| [&mut status.state, &mut status.last_state]).flatten() {
        if let Some(message) = state.terminated.as_mut().and_then(|end| end.message.as_mut())
            && message.len() > room
        {
            message.truncate(message.floor_char_boundary(room));
        }
    }
}
