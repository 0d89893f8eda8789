//! Looking at one pod: two lists, then the status of everything that they name or that was there before.
//!
//! A list is no proof that something is gone: a runtime that has just started, or is ill, leaves out what runs on
//! (containerd#7843 is of this kind). So what was known before and is not listed any more is asked for by its id, and only
//! a `NotFound` takes it away. Where list and status contradict each other in a way that time does not explain, the look
//! fails and is repeated.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nodelet_proto::cri;

use super::super::{ContainerState, ContainerView, PodRuntime, SandboxView, labels};
use super::{CriError, Runtime};
use crate::ids::{ContainerId, PodUid, SandboxId};

/// What an earlier look or operation has shown of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Sandboxes.
    pub sandboxes: BTreeSet<SandboxId>,
    /// Containers and the sandbox of each, empty where only the container's id was written down.
    pub containers: BTreeMap<ContainerId, SandboxId>,
}

impl From<&PodRuntime> for Known {
    fn from(runtime: &PodRuntime) -> Self {
        Self {
            sandboxes: runtime.sandboxes.iter().map(|s| s.id.clone()).collect(),
            containers: runtime.containers.iter().map(|c| (c.id.clone(), c.sandbox.clone())).collect(),
        }
    }
}

impl Runtime {
    /// Everything the runtime knows of one pod. Nothing of `known` is missing from the answer unless the runtime has said
    /// twice, by list and by status, that it is gone.
    pub async fn inspect_pod(&self, uid: &PodUid, known: &Known) -> Result<PodRuntime, CriError> {
        let selector = HashMap::from([(labels::POD_UID.to_owned(), uid.as_str().to_owned())]);
        let (sandboxes, containers) =
            tokio::try_join!(self.list_sandboxes(selector.clone()), self.list_containers(selector))?;
        let mut pod = PodRuntime::default();
        let mut unlisted = known.clone();
        for listed in &sandboxes {
            let id = SandboxId::new(&listed.id);
            let was_known = unlisted.sandboxes.remove(&id);
            if let Some(view) = found(self.sandbox_status(&id).await, id.as_str(), was_known)? {
                agree_on_sandbox(listed, &view)?;
                pod.sandboxes.push(view);
            }
        }
        for listed in &containers {
            let id = ContainerId::new(&listed.id);
            let was_known = unlisted.containers.remove(&id).is_some();
            let status = self.container_status(&id, &listed.pod_sandbox_id).await;
            if let Some(view) = found(status, id.as_str(), was_known)? {
                agree_on_container(listed, &view)?;
                pod.containers.push(view);
            }
        }
        // A container that is there has its sandbox, listed or not.
        let named = containers.iter().map(|listed| SandboxId::new(&listed.pod_sandbox_id));
        unlisted.sandboxes.extend(named.filter(|id| sandboxes.iter().all(|listed| listed.id != id.as_str())));
        for id in unlisted.sandboxes {
            pod.sandboxes.extend(found(self.sandbox_status(&id).await, id.as_str(), false)?);
        }
        for (id, sandbox) in unlisted.containers {
            pod.containers.extend(found(self.container_status(&id, sandbox.as_str()).await, id.as_str(), false)?);
        }
        adopt_strays(&mut pod);
        pod.sort();
        Ok(pod)
    }
}

/// What a status says, or `None` when there is no such thing. What is listed and was known is not gone by one word.
fn found<T>(status: Result<T, CriError>, id: &str, is_doubtful: bool) -> Result<Option<T>, CriError> {
    match status {
        Ok(view) => Ok(Some(view)),
        Err(error) if error.is_not_found() && is_doubtful => {
            Err(CriError::Contradiction { id: id.to_owned(), text: "it is listed and not found" })
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The list was made before the status: what had ended in the one does not run in the other.
fn agree_on_container(listed: &cri::Container, view: &ContainerView) -> Result<(), CriError> {
    let had_ended = listed.state() == cri::ContainerState::ContainerExited;
    let had_begun = listed.state() == cri::ContainerState::ContainerRunning;
    match view.state {
        ContainerState::Created if had_begun => Err(CriError::Contradiction {
            id: listed.id.clone(),
            text: "it is listed as running and its status is older",
        }),
        ContainerState::Created | ContainerState::Running { .. } if had_ended => Err(CriError::Contradiction {
            id: listed.id.clone(),
            text: "it is listed as ended and its status is older",
        }),
        ContainerState::Created
        | ContainerState::Running { .. }
        | ContainerState::Exited { .. }
        | ContainerState::Unknown => Ok(()),
    }
}

fn agree_on_sandbox(listed: &cri::PodSandbox, view: &SandboxView) -> Result<(), CriError> {
    if view.ready && listed.state() == cri::PodSandboxState::SandboxNotready {
        let text = "it is listed as not ready and its status is older";
        return Err(CriError::Contradiction { id: listed.id.clone(), text });
    }
    Ok(())
}

/// A status does not name the sandbox. Containers of which nobody remembers it belong to the newest one, where there is one.
fn adopt_strays(pod: &mut PodRuntime) {
    let newest = pod.sandboxes.iter().max_by_key(|s| (s.created_at, s.attempt)).map(|s| s.id.clone());
    let strays = pod.containers.iter_mut().filter(|c| c.sandbox.as_str().is_empty());
    for (stray, sandbox) in strays.zip(std::iter::repeat(newest)) {
        if let Some(sandbox) = sandbox {
            stray.sandbox = sandbox;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::convert;

    fn listed(state: cri::ContainerState) -> cri::Container {
        cri::Container { id: "c".into(), state: state.into(), ..Default::default() }
    }

    fn view(state: cri::ContainerState) -> ContainerView {
        convert::container(&cri::ContainerStatus { id: "c".into(), state: state.into(), ..Default::default() }, "s")
    }

    #[test]
    fn a_status_that_is_older_than_the_list_is_no_answer() {
        use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
        assert!(agree_on_container(&listed(ContainerExited), &view(ContainerRunning)).is_err());
        assert!(agree_on_container(&listed(ContainerRunning), &view(ContainerExited)).is_ok(), "it ended in between");
        assert!(agree_on_container(&listed(ContainerRunning), &view(ContainerCreated)).is_err(), "it has begun");
        let not_ready = cri::PodSandbox { state: cri::PodSandboxState::SandboxNotready.into(), ..Default::default() };
        let ready = convert::sandbox(&cri::PodSandboxStatus::default());
        assert!(ready.ready && agree_on_sandbox(&not_ready, &ready).is_err());
    }

    #[test]
    fn only_two_words_of_the_runtime_take_a_known_container_away() {
        let gone = || -> Result<ContainerView, CriError> {
            Err(CriError::Failed { call: "ContainerStatus", code: tonic::Code::NotFound, message: String::new() })
        };
        assert!(found(gone(), "c", true).is_err(), "it is listed");
        assert_eq!(found(gone(), "c", false).unwrap(), None, "neither listed nor found");
    }
}
