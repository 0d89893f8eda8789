//! The pod phase. Pure.
//!
//! Source: the API documentation of `PodPhase`, and `getPhase` of kubelet for the corners: a waiting container that has
//! run before counts as stopped, restartable stops keep a pod Running, sidecars count only while they hold the start.

use k8s_openapi::api::core::v1::ContainerStatus;

use super::containers::Statuses;
use crate::pod::lifecycle::Lifecycle;
use crate::pod::spec::{self, Role};
use crate::pod::view::PodView;

/// What a container's status amounts to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Unknown,
    /// Has never run.
    Waiting,
    Running,
    /// Has ended with this code; shows as terminated, or as waiting for a restart.
    Stopped(i32),
}

/// Computes the phase.
pub fn phase(view: &PodView<'_>, statuses: &Statuses) -> &'static str {
    let pod = view.pod;
    let is_terminal = matches!(view.lifecycle, Lifecycle::Terminated(_) | Lifecycle::Removed);
    let initialized = statuses.app.iter().any(|s| !matches!(standing(Some(s)), Standing::Waiting | Standing::Unknown));
    let mut pending = 0;
    let (mut unknown, mut running, mut waiting) = (0, 0, 0);
    let mut exits = Vec::new();
    for (name, role) in spec::roles(pod) {
        match role {
            Role::Init => match standing(spec::status_of(&statuses.init, name)) {
                Standing::Stopped(0) => {}
                Standing::Stopped(code) if !view.restarts(name, role, code) => return "Failed",
                // A failed one that is to run again holds the pod only through what follows it.
                Standing::Stopped(_) | Standing::Unknown | Standing::Waiting | Standing::Running => pending += 1,
            },
            Role::Sidecar => {
                let status = spec::status_of(&statuses.init, name);
                let started = status.is_some_and(|s| s.started == Some(true));
                match standing(status) {
                    Standing::Running => {
                        running += 1;
                        pending += usize::from(!started && !initialized);
                    }
                    Standing::Stopped(_) => {}
                    Standing::Waiting if initialized => {}
                    Standing::Waiting => waiting += 1,
                    Standing::Unknown => unknown += 1,
                }
            }
            Role::App => match standing(spec::status_of(&statuses.app, name)) {
                Standing::Unknown => unknown += 1,
                Standing::Waiting => waiting += 1,
                Standing::Running => running += 1,
                Standing::Stopped(code) => exits.push((name, code)),
            },
            Role::Ephemeral => {}
        }
    }
    if is_terminal && running == 0 && !exits.is_empty() && waiting == 0 && unknown == 0 {
        return ended(&exits);
    }
    if is_terminal && running == 0 {
        // Stopped before all of its containers ran.
        return "Failed";
    }
    if pending > 0 || waiting > 0 {
        return "Pending";
    }
    if unknown > 0 {
        return "Pending";
    }
    if running > 0 {
        return "Running";
    }
    if exits.is_empty() {
        return "Pending";
    }
    if exits.iter().any(|(name, code)| view.restarts(name, Role::App, *code)) {
        return "Running";
    }
    ended(&exits)
}

fn ended(exits: &[(&str, i32)]) -> &'static str {
    if exits.iter().all(|(_, code)| *code == 0) { "Succeeded" } else { "Failed" }
}

fn standing(status: Option<&ContainerStatus>) -> Standing {
    let Some(status) = status else { return Standing::Unknown };
    let Some(state) = &status.state else { return Standing::Unknown };
    let last = || status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    match (&state.running, &state.terminated, last()) {
        (Some(_), _, _) => Standing::Running,
        (None, Some(terminated), _) => Standing::Stopped(terminated.exit_code),
        (None, None, Some(before)) => Standing::Stopped(before.exit_code),
        (None, None, None) => Standing::Waiting,
    }
}
