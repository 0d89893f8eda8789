//! Which statuses wait for the next one. Pure.
//!
//! A pod that starts has three statuses within 200 ms: acknowledged, sandbox ready, running. The first two say little, and
//! written at once they cost the API server, etcd, and everybody who watches pods as much as the third, just when the
//! node is at its busiest. They wait for a moment: a start that is quick is told with one write, a slow one (an image is
//! pulled, a volume is missing) shows a little later. Whatever else a status says is written at once.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

/// Longer than most starts, and no longer than people wait before they look a second time.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// Until when a status may wait; `None` to write it now. Statuses that follow each other wait no longer than the first.
pub fn due(status: &PodStatus, other_waits: bool, due_before: Option<Instant>, now: Instant) -> Option<Instant> {
    match (is_beginning(status), other_waits) {
        (false, _) => None,
        (true, false) => Some(now + PATIENCE),
        // What is not waiting for anything was asked for now.
        (true, true) => due_before,
    }
}

/// Nothing of the pod has run, and nothing stands in its way.
fn is_beginning(status: &PodStatus) -> bool {
    let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let mut containers = lists.into_iter().flatten().flatten().peekable();
    status.phase.as_deref() == Some("Pending")
        && status.reason.is_none()
        && containers.peek().is_some()
        && containers.all(waits_its_turn)
}

fn waits_its_turn(container: &ContainerStatus) -> bool {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    matches!(reason, Some("ContainerCreating" | "PodInitializing"))
        && container.last_state.as_ref().is_none_or(no_state)
}

fn no_state(state: &k8s_openapi::api::core::v1::ContainerState) -> bool {
    *state == Default::default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(phase: &str, containers: serde_json::Value) -> PodStatus {
        serde_json::from_value(json!({ "phase": phase, "containerStatuses": containers })).expect("status")
    }

    fn container(state: serde_json::Value) -> serde_json::Value {
        json!({ "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state })
    }

    #[test]
    fn only_a_status_of_a_pod_that_has_not_begun_waits() {
        let now = Instant::now();
        let creating = container(json!({ "waiting": { "reason": "ContainerCreating" } }));
        let running = container(json!({ "running": {} }));
        let failed = container(json!({ "waiting": { "reason": "ErrImagePull" } }));
        let waits = |status: &PodStatus| due(status, false, None, now).is_some();
        assert!(waits(&status("Pending", json!([creating]))));
        for told_at_once in [
            status("Pending", json!([])),
            status("Pending", json!([creating, failed])),
            status("Pending", json!([running, creating])),
            status("Running", json!([running])),
            status("Failed", json!([creating])),
        ] {
            assert!(!waits(&told_at_once), "{told_at_once:?}");
        }
    }

    #[test]
    fn a_second_status_that_says_little_waits_no_longer_than_the_first() {
        let now = Instant::now();
        let creating = status("Pending", json!([container(json!({ "waiting": { "reason": "PodInitializing" } }))]));
        let first = due(&creating, false, None, now);
        assert_eq!(first, Some(now + PATIENCE));
        let later = now + Duration::from_millis(100);
        assert_eq!(due(&creating, true, first, later), first);
        assert_eq!(due(&creating, true, None, later), None, "the one before is written now, and this one with it");
        assert_eq!(due(&status("Running", json!([])), true, first, later), None);
    }
}
