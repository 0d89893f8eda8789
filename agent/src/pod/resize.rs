//! Resizing a pod in place (KEP-1287): decisions, conditions and texts. Pure.
//!
//! ```text
//!  desired ──decide──► allocated ──steps──► actuated ──► status.resources (what the runtime says)
//!     │  manager, one pod at a time          │  worker of the pod
//!     └► PodResizePending                    └► PodResizeInProgress
//!        Deferred: the node is full now         no reason: under way
//!        Infeasible: never on this node         Error: a step failed, and is tried again
//! ```
//! The manager decides for all pods in one task, so that two resizes cannot both take the last CPU; it tries deferred ones
//! again, in [`order`], whenever resources come free. The worker compares *allocated* with *actuated* in every plan
//! ([`steps`]), so that a resize goes on from where it was after a failure, a restart of the agent, or another resize.
//! Reasons, messages and events are those of kubelet v1.37.
//!
//! Not here: resizing volumes in memory (alpha in v1.37), and pods with exclusive CPUs or memory, which this agent does not
//! give out.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use serde::Serialize;

use super::admit::{self, admit};
use super::allocation::ResourceInfo;
use super::status::time;
use crate::cgroup::resources::{CPU, MEMORY, Overhead, amount, init_and_regular, pod_requests};
use crate::cgroup::swap::may_swap;
use crate::cri::Nanos;
use crate::ids::PodUid;

pub mod steps;

/// Type of the condition of a resize that waits.
pub const PENDING: &str = "PodResizePending";
/// Type of the condition of a resize that is being put into effect.
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// Why a resize waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The node has not got it now.
    Deferred,
    /// This node will never do it.
    Infeasible,
}

impl Wait {
    /// Reason of the condition, and a word of the event's message.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Deferred => "Deferred",
            Self::Infeasible => "Infeasible",
        }
    }

    /// Reason of the event.
    pub fn event(self) -> &'static str {
        match self {
            Self::Deferred => "ResizeDeferred",
            Self::Infeasible => "ResizeInfeasible",
        }
    }
}

/// A resize that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Why.
    pub wait: Wait,
    /// What is missing.
    pub message: String,
    /// The generation that asks for it.
    pub generation: Option<i64>,
    /// Since when it waits for this reason.
    pub since: Nanos,
}

/// A resize that is being put into effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What went wrong last.
    pub error: Option<String>,
    /// The generation that was accepted.
    pub generation: Option<i64>,
    /// Since when it is under way, or fails.
    pub since: Nanos,
}

/// Where a pod's resizes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The one that waits.
    pub pending: Option<Pending>,
    /// The one that was accepted and is not in effect yet.
    pub progress: Option<Progress>,
}

/// What the manager tells a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// What is desired is what is allocated.
    Settled,
    /// What is desired has to wait.
    Waits(Pending),
    /// What is desired was just allocated.
    Accepted,
}

impl State {
    /// Reads the state back from conditions, after a restart.
    pub fn from_conditions(conditions: &[PodCondition]) -> Self {
        let find = |type_: &str| conditions.iter().find(|c| c.type_ == type_ && c.status == "True");
        let since = |c: &PodCondition| {
            c.last_transition_time.as_ref().map_or(0, |t| t.0.as_second().saturating_mul(1_000_000_000))
        };
        let pending = find(PENDING).map(|c| Pending {
            wait: if c.reason.as_deref() == Some("Infeasible") { Wait::Infeasible } else { Wait::Deferred },
            message: c.message.clone().unwrap_or_default(),
            generation: c.observed_generation,
            since: since(c),
        });
        let progress = find(IN_PROGRESS).map(|c| Progress {
            error: (c.reason.as_deref() == Some("Error")).then(|| c.message.clone().unwrap_or_default()),
            generation: c.observed_generation,
            since: since(c),
        });
        Self { pending, progress }
    }

    /// The conditions as the API has them.
    pub fn conditions(&self) -> Vec<PodCondition> {
        let condition = |type_: &str, reason: Option<&str>, message: &str, generation, since| PodCondition {
            type_: type_.to_owned(),
            status: "True".to_owned(),
            reason: reason.map(ToOwned::to_owned),
            message: (!message.is_empty()).then(|| message.to_owned()),
            last_probe_time: Some(time(since)),
            last_transition_time: Some(time(since)),
            observed_generation: generation,
        };
        let pending =
            self.pending.as_ref().map(|p| condition(PENDING, Some(p.wait.reason()), &p.message, p.generation, p.since));
        let progress = self.progress.as_ref().map(|p| {
            let reason = p.error.as_ref().map(|_| "Error");
            condition(IN_PROGRESS, reason, p.error.as_deref().unwrap_or_default(), p.generation, p.since)
        });
        pending.into_iter().chain(progress).collect()
    }

    /// Takes in what the manager decided.
    pub fn hear(&mut self, news: News, generation: Option<i64>, now: Nanos) {
        match news {
            News::Settled => self.pending = None,
            News::Waits(pending) => self.pending = Some(pending),
            News::Accepted => {
                self.pending = None;
                self.progress = Some(Progress { error: None, generation, since: now });
            }
        }
    }

    /// Takes in whether *actuated* still differs from *allocated*. Answers the generation of a resize that has just come to
    /// its end.
    pub fn observe(&mut self, differs: bool, generation: Option<i64>, now: Nanos) -> Option<Option<i64>> {
        if !differs {
            return self.progress.take().map(|progress| progress.generation);
        }
        self.progress.get_or_insert(Progress { error: None, generation, since: now });
        None
    }

    /// Takes in that a step failed. Answers the generation when that is new.
    pub fn fail(&mut self, error: &str, generation: Option<i64>, now: Nanos) -> Option<Option<i64>> {
        let progress = self.progress.get_or_insert(Progress { error: None, generation, since: now });
        if progress.error.as_deref() == Some(error) {
            return None;
        }
        if progress.error.replace(error.to_owned()).is_none() {
            progress.since = now;
        }
        Some(progress.generation)
    }
}

/// What becomes of a resize.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Nothing is asked for beyond what is allocated.
    Settled,
    /// It is to be allocated.
    Accept(ResourceInfo),
    /// It waits.
    Wait(Wait, String),
}

/// What a node does not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Containers may swap (`LimitedSwap` on cgroup v2).
    pub limited_swap: bool,
}

/// Decides about what a pod desires beside `others`, as they weigh on the node.
pub fn decide(
    desired: &Pod,
    allocated: &ResourceInfo,
    is_static: bool,
    node: &admit::Node,
    rules: Rules,
    others: &[&Pod],
) -> Verdict {
    let wanted = ResourceInfo::of(desired);
    if wanted.means(allocated) {
        return Verdict::Settled;
    }
    if rules.limited_swap && init_and_regular(desired).any(|c| changes_swap(desired, c, allocated)) {
        return Verdict::Wait(Wait::Infeasible, "In-place resize of containers with swap is not supported.".into());
    }
    match admit(desired, is_static, node, others) {
        Ok(()) => Verdict::Accept(wanted),
        Err(rejection) => Verdict::Wait(Wait::Deferred, rejection.message),
    }
}

/// Whether the resize would change the swap of a container that goes on running.
fn changes_swap(pod: &Pod, container: &Container, allocated: &ResourceInfo) -> bool {
    let before =
        Container { resources: allocated.container_resources.get(&container.name).cloned(), ..container.clone() };
    let request = |c: &Container| amount(&crate::cgroup::resources::container_requests(c), MEMORY);
    request(container) != request(&before)
        && !restarts_for(container, MEMORY)
        && (may_swap(pod, container) || may_swap(pod, &before))
}

/// Whether a container's resize policy asks for a restart.
pub fn restarts_for(container: &Container, resource: &str) -> bool {
    let mut policies = container.resize_policy.iter().flatten();
    policies.find(|policy| policy.resource_name == resource).is_some_and(|p| p.restart_policy == "RestartContainer")
}

/// A pod that waits, as [`order`] compares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The pod.
    pub uid: PodUid,
    /// Whether it asks for more than it has.
    pub grows: bool,
    /// `spec.priority`.
    pub priority: i32,
    /// Whether its QoS class is Guaranteed.
    pub is_guaranteed: bool,
    /// Since when it waits; `None` for one that just came.
    pub since: Option<Nanos>,
}

/// Who is asked first: those that give something back, then by priority, QoS class, and how long they wait.
pub fn order(mut waiting: Vec<Waiting>) -> Vec<PodUid> {
    let key = |w: &Waiting| (w.grows, Reverse(w.priority), !w.is_guaranteed, w.since.unwrap_or(Nanos::MAX));
    waiting.sort_by_key(key);
    waiting.into_iter().map(|w| w.uid).collect()
}

/// Whether a pod asks for more CPU or memory than it was allocated.
pub fn grows(desired: &Pod, allocated: &Pod) -> bool {
    let requests = |pod: &Pod| pod_requests(pod, Overhead::Included);
    let (new, old) = (requests(desired), requests(allocated));
    [CPU, MEMORY].iter().any(|name| amount(&new, name) > amount(&old, name))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    init_containers: Vec<ContainerSummary>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<ContainerSummary>,
    generation: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: String,
}

#[derive(Serialize)]
struct ContainerSummary {
    name: String,
    resources: ResourceRequirements,
}

/// Message of an event about a resize: `Pod resize WORD:` and the resources as JSON.
pub fn message(word: &str, pod: &Pod, generation: Option<i64>, error: &str) -> String {
    let summary =
        |c: &Container| ContainerSummary { name: c.name.clone(), resources: c.resources.clone().unwrap_or_default() };
    let spec = pod.spec.as_ref();
    let text = serde_json::to_string(&Summary {
        init_containers: spec.iter().flat_map(|s| s.init_containers.iter().flatten()).map(summary).collect(),
        containers: spec.iter().flat_map(|s| &s.containers).map(summary).collect(),
        generation: generation.unwrap_or_default(),
        error: error.to_owned(),
    });
    match text {
        Ok(text) => format!("Pod resize {word}: {text}"),
        Err(_) => format!("Pod resize {word}"),
    }
}

#[cfg(test)]
mod tests;
