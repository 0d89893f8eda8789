//! The pod phase. Pure.
//!
//! Source: the API documentation of `PodPhase`, and `getPhase` of kubelet for the corners: a waiting container that has
//! run before counts as stopped, restartable stops keep a pod Running, sidecars count only while they hold the start.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus};

use super::containers::{RESTARTING_ALL, Statuses};
use crate::pod::lifecycle::Lifecycle;
use crate::pod::spec::{self, Role};
use crate::pod::view::PodView;

/// What a container's status amounts to.
#[derive(Clone, Copy, PartialEq)]
enum Standing<'a> {
    Unknown,
    /// Has never run.
    Waiting,
    Running,
    /// Has ended.
    Ended(&'a ContainerStateTerminated),
    /// Waits for a restart after it has ended so.
    Again(&'a ContainerStateTerminated),
}

#[derive(Default)]
struct Count {
    /// Init containers that hold the pod.
    pending: usize,
    /// Sidecars that hold it until it is initialized.
    pending_sidecars: usize,
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    /// Stopped for good.
    ended: usize,
    succeeded: usize,
}

/// Computes the phase.
pub fn phase(view: &PodView<'_>, statuses: &Statuses) -> &'static str {
    let is_terminal = matches!(view.lifecycle, Lifecycle::Terminated(_) | Lifecycle::Removed);
    let Some(count) = count(view, statuses) else { return "Failed" };
    let initialized = spec::roles(view.pod).any(|(n, role)| role == Role::App && view.runtime.current(n).is_some());
    let is_pending = count.pending > 0 || (count.pending_sidecars > 0 && !initialized) || count.waiting > 0;
    let has_stopped = count.running == 0 && count.stopped > 0 && count.unknown == 0 && !is_pending;
    if is_terminal && count.running == 0 {
        // Whatever has not run until now never will.
        return if has_stopped && count.stopped == count.succeeded { "Succeeded" } else { "Failed" };
    }
    match () {
        () if is_pending => "Pending",
        () if count.running > 0 && count.unknown == 0 => "Running",
        () if !has_stopped => "Pending",
        () if count.stopped != count.ended => "Running",
        () if count.stopped == count.succeeded => "Succeeded",
        () => "Failed",
    }
}

/// Counts containers; `None` when an init container has failed for good.
fn count(view: &PodView<'_>, statuses: &Statuses) -> Option<Count> {
    let mut count = Count::default();
    for (name, role) in spec::roles(view.pod) {
        let restarts = |end: &ContainerStateTerminated| {
            end.reason.as_deref() == Some(RESTARTING_ALL) || view.restarts(name, role, end.exit_code)
        };
        let list = if role == Role::App { &statuses.app } else { &statuses.init };
        match (role, standing(spec::status_of(list, name))) {
            (Role::Ephemeral, _) => {}
            // One that failed and runs again holds the pod only through what follows it.
            (Role::Init, Standing::Ended(end) | Standing::Again(end)) => {
                if end.exit_code != 0 && !restarts(end) {
                    return None;
                }
            }
            (Role::Init, Standing::Unknown | Standing::Waiting | Standing::Running) => count.pending += 1,
            (Role::Sidecar, Standing::Running) => {
                let is_started = spec::status_of(list, name).is_some_and(|s| s.started == Some(true));
                count.pending_sidecars += usize::from(!is_started);
                count.running += 1;
            }
            (Role::Sidecar, Standing::Ended(_) | Standing::Again(_)) => {}
            (Role::Sidecar, Standing::Waiting) => {
                count.pending_sidecars += 1;
                count.waiting += 1;
            }
            (Role::Sidecar, Standing::Unknown) => {
                count.pending_sidecars += 1;
                count.unknown += 1;
            }
            (Role::App, Standing::Unknown) => count.unknown += 1,
            (Role::App, Standing::Waiting) => count.waiting += 1,
            (Role::App, Standing::Running) => count.running += 1,
            (Role::App, stop @ (Standing::Ended(end) | Standing::Again(end))) => {
                count.stopped += 1;
                count.ended += usize::from(!restarts(end));
                count.succeeded += usize::from(matches!(stop, Standing::Ended(_)) && end.exit_code == 0);
            }
        }
    }
    Some(count)
}

fn standing(status: Option<&ContainerStatus>) -> Standing<'_> {
    let Some(status) = status else { return Standing::Unknown };
    let Some(state) = &status.state else { return Standing::Unknown };
    let last = || status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    match (&state.running, &state.terminated, last()) {
        (Some(_), _, _) => Standing::Running,
        (None, Some(end), _) => Standing::Ended(end),
        (None, None, Some(before)) => Standing::Again(before),
        (None, None, None) => Standing::Waiting,
    }
}
