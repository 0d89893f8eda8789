//! Which log file of a pod is meant: a container and one of its attempts. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::pod::spec;

/// A log that exists, as far as the status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Container.
    pub container: String,
    /// Its attempt, which is a part of the file's name.
    pub attempt: u32,
}

/// Why there is no log. The texts are kubelet's, because people search for them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pod has no such container.
    #[error("container {name} is not in the pod; it has {others}")]
    NoContainer {
        /// What was asked for.
        name: String,
        /// What there is.
        others: String,
    },
    /// It was not started yet.
    #[error("container \"{name}\" in pod \"{pod}\" is waiting to start: {reason}")]
    Waiting {
        /// Container.
        name: String,
        /// Pod.
        pod: String,
        /// `PodInitializing`, `ImagePullBackOff`, ...
        reason: String,
    },
    /// It did not end before.
    #[error("previous terminated container \"{name}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// Container.
        name: String,
        /// Pod.
        pod: String,
    },
}

/// Statuses of all containers of a pod.
pub fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.as_ref().into_iter().flat_map(all)
}

/// All containers of a status.
pub fn all(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let app = status.container_statuses.iter().flatten();
    let init = status.init_container_statuses.iter().flatten();
    app.chain(init).chain(status.ephemeral_container_statuses.iter().flatten())
}

/// The log of `container` (the first one when not given), of the attempt before the newest if `previous`.
pub fn choose(pod: &Pod, container: Option<&str>, previous: bool) -> Result<Chosen, Refusal> {
    let names: Vec<&str> = spec::roles(pod).map(|(name, _)| name).collect();
    let first = pod.spec.as_ref().and_then(|s| s.containers.first()).map(|c| c.name.as_str());
    let name = container.or(first).unwrap_or_default();
    if !names.contains(&name) {
        return Err(Refusal::NoContainer { name: name.to_owned(), others: names.join(", ") });
    }
    let of_pod = || pod.metadata.name.clone().unwrap_or_default();
    let no_previous = || Refusal::NoPrevious { name: name.to_owned(), pod: of_pod() };
    let chosen = |attempt| Chosen { container: name.to_owned(), attempt };
    let Some(status) = statuses(pod).find(|s| s.name == name) else {
        return if previous { Err(no_previous()) } else { Err(waiting(pod, name, None)) };
    };
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.clone().unwrap_or_default();
    let has_ended_before = status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
    // While a container waits for its next start, the last attempt is at once the newest log and the previous one.
    match (previous, state.running.is_some() || state.terminated.is_some(), has_ended_before) {
        (false, true, _) | (_, false, true) => Ok(chosen(attempt)),
        (true, true, true) => attempt.checked_sub(1).map(chosen).ok_or_else(no_previous),
        (true, _, false) => Err(no_previous()),
        (false, false, false) => Err(waiting(pod, name, state.waiting.and_then(|waiting| waiting.reason))),
    }
}

fn waiting(pod: &Pod, name: &str, reason: Option<String>) -> Refusal {
    Refusal::Waiting {
        name: name.to_owned(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        reason: reason.unwrap_or_else(|| "ContainerCreating".to_owned()),
    }
}

/// Whether that attempt of a container runs, so that its log may grow.
pub fn runs(pod: &Pod, container: &str, attempt: u32) -> bool {
    statuses(pod).any(|status| {
        let is_same = status.name == container && u32::try_from(status.restart_count) == Ok(attempt);
        is_same && status.state.as_ref().is_some_and(|state| state.running.is_some())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn make_pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"containerStatuses": [status]},
        }))
        .unwrap()
    }

    fn status(restarts: u32, state: Value, last: Value) -> Value {
        json!({"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last})
    }

    #[test]
    fn the_log_of_the_right_attempt_is_chosen() {
        let running = json!({"running": {}});
        let ended = json!({"terminated": {"exitCode": 1}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        for (text, status, previous, expected) in [
            ("runs for the first time", status(0, running.clone(), json!({})), false, Ok(0)),
            ("has no one before it", status(0, running.clone(), json!({})), true, Err("previous terminated container")),
            ("runs again", status(3, running.clone(), ended.clone()), false, Ok(3)),
            ("the one before", status(3, running, ended.clone()), true, Ok(2)),
            ("waits for its next start", status(3, waiting.clone(), ended.clone()), false, Ok(3)),
            ("the one before is the same", status(3, waiting.clone(), ended.clone()), true, Ok(3)),
            ("has ended", status(1, ended, json!({})), false, Ok(1)),
            ("never ran", status(0, waiting, json!({})), false, Err("is waiting to start: CrashLoopBackOff")),
        ] {
            let chosen = choose(&make_pod(status), None, previous);
            match (chosen, expected) {
                (Ok(found), Ok(wanted)) => {
                    assert_eq!((found.container.as_str(), found.attempt), ("a", wanted), "{text}")
                }
                (Err(found), Err(wanted)) => assert!(found.to_string().contains(wanted), "{text}: {found}"),
                (chosen, _) => panic!("{text}: {chosen:?}"),
            }
        }
        let error = choose(&make_pod(status(0, json!({}), json!({}))), Some("c"), false).unwrap_err().to_string();
        assert!(error.contains("it has a, b"), "{error}");
    }
}
