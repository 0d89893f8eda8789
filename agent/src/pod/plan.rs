//! The plan of a pod: from one snapshot to the actions that bring it nearer to what is desired. Pure.
//!
//! A plan is level-triggered: it looks only at the snapshot, so that running it again with nothing changed asks for
//! nothing (the operations it asked for are in flight or done). [`start`] plans a pod that is to run, [`stop`] one that
//! is not; the lifecycle decides, and once it is terminating [`start`] is never asked again.

use super::action::{Action, Op, OpKey};
use super::dead::{self, Shell};
use super::lifecycle::{Lifecycle, follow_desired};
use super::view::PodView;
use crate::cri::{Nanos, SandboxView};

mod reset;
mod running;
pub mod start;
pub mod stop;
#[cfg(test)]
mod tests;

/// What to do now, and when to look again if nothing happens before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlan {
    /// The lifecycle after this plan.
    pub lifecycle: Lifecycle,
    /// Actions, in order.
    pub actions: Vec<Action>,
    /// The earliest time at which a retry or deadline is due.
    pub wake_at: Option<Nanos>,
}

/// Plans a pod.
pub fn plan(view: &PodView<'_>, now: Nanos) -> PodPlan {
    let lifecycle = follow_desired(view.lifecycle.clone(), view.pod, view.wanted, now);
    let mut planner = Planner::new(view, now);
    if !view.memory.observed {
        // Nothing is decided about a pod that the runtime has not been asked about.
        planner.start(Op::Inspect);
        return planner.finish(lifecycle);
    }
    let lifecycle = match lifecycle {
        Lifecycle::Syncing => start::plan(&mut planner),
        other @ (Lifecycle::Terminating(_) | Lifecycle::Terminated(_) | Lifecycle::Removed) => other,
    };
    let lifecycle = match lifecycle {
        Lifecycle::Terminating(termination) => stop::plan(&mut planner, termination),
        other @ (Lifecycle::Syncing | Lifecycle::Terminated(_) | Lifecycle::Removed) => other,
    };
    let lifecycle = match lifecycle {
        Lifecycle::Terminated(termination) => stop::clean(&mut planner, termination),
        other @ (Lifecycle::Syncing | Lifecycle::Terminating(_) | Lifecycle::Removed) => other,
    };
    planner.finish(lifecycle)
}

/// Collects the actions of one plan.
pub struct Planner<'a> {
    view: &'a PodView<'a>,
    now: Nanos,
    actions: Vec<Action>,
    wake_at: Option<Nanos>,
}

impl<'a> Planner<'a> {
    fn new(view: &'a PodView<'a>, now: Nanos) -> Self {
        Self { view, now, actions: Vec::new(), wake_at: None }
    }

    /// Asks for an operation, unless it is in flight or its last failure asks to wait.
    fn start(&mut self, op: Op) {
        let key = op.key();
        if self.view.is_inflight(&key) || self.actions.iter().any(|a| matches!(a, Action::Start(o) if o.key() == key)) {
            return;
        }
        if let Some(failed) = self.view.memory.cleanup.get(&key)
            && failed.retry_at > self.now
        {
            self.wake(failed.retry_at);
            return;
        }
        self.actions.push(Action::Start(op));
    }

    fn cancel(&mut self, key: OpKey) {
        self.actions.push(Action::Cancel(key));
    }

    /// Asks to be planned again at a time.
    fn wake(&mut self, at: Nanos) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    fn finish(self, lifecycle: Lifecycle) -> PodPlan {
        PodPlan { lifecycle, actions: self.actions, wake_at: self.wake_at }
    }
}

/// Removes what is of no use of a pod that stays: dead containers beyond those that are kept, and sandboxes without containers that are
/// stopped and were replaced.
fn collect_dead(planner: &mut Planner<'_>) {
    let view = planner.view;
    for container in dead::surplus(&view.runtime.containers, view.memory.dead_containers.unwrap_or(dead::KEPT)) {
        planner.start(Op::RemoveContainer(container.id.clone()));
    }
    let shell = |sandbox: &SandboxView| Shell {
        is_ready: sandbox.ready,
        is_empty: view.runtime.containers.iter().all(|container| container.sandbox != sandbox.id),
        made: (sandbox.created_at, sandbox.attempt),
    };
    for sandbox in dead::idle(&view.runtime.sandboxes, shell) {
        if !sandbox.ready && view.memory.stopped.contains(&sandbox.id) {
            planner.start(Op::RemoveSandbox(sandbox.id.clone()));
        }
    }
}
