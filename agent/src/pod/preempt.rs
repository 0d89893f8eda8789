//! Room for a critical pod: whether the node takes a pod, and which others have to go for it. Pure.
//!
//! A static pod or one of a system priority that lacks nothing but resources is not refused: pods of less weight go, of the lowest
//! class possible and as few as possible. The rules are kubelet's (`pkg/kubelet/preemption` of Kubernetes v1.37): first those
//! Guaranteed pods that would have to go if all others went, then Burstable ones beside them, then BestEffort ones; each time the
//! pod that comes closest to what is missing, the smaller of two that are equally close.
//!
//! Unlike kubelet it counts on pods that leave anyway, and evicts nobody for what these give back; and it goes on with other pods
//! while room is made (`manager::arrivals`).

use k8s_openapi::api::core::v1::Pod;

use super::admit::{Node, Rejection, Shortage, admit, admit_but_for_resources, shortages, units};
use crate::cgroup::plan::is_critical;
use crate::cgroup::resources::{CPU, MEMORY, Overhead, amount, pod_requests};
use crate::cgroup::{QosClass, qos_class};

/// Where a pod that holds resources of the node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// It runs, or is about to.
    Stays,
    /// It is being stopped: what it holds comes free soon.
    Leaves,
    /// A critical pod for which room is being made.
    Arrives,
}

/// What comes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The node takes it now.
    Admit,
    /// The node does not take it.
    Refuse(Rejection),
    /// The node takes it when others are gone.
    Wait {
        /// Places of the pods that have to go; none when those that leave anyway give enough back.
        victims: Vec<usize>,
        /// What is missing first: label of `kubelet_preemptions`.
        resource: &'static str,
    },
}

/// Decides about a pod beside all that hold resources. `is_static` pods ignore taints.
pub fn decide(pod: &Pod, is_static: bool, node: &Node, holders: &[(Holding, &Pod)]) -> Decision {
    let all: Vec<&Pod> = holders.iter().map(|(_, holder)| *holder).collect();
    let refusal = match admit(pod, is_static, node, &all) {
        Ok(()) => return Decision::Admit,
        Err(refusal) => refusal,
    };
    if !is_critical(pod) {
        return Decision::Refuse(refusal);
    }
    // What no eviction would change comes first.
    if let Err(refusal) = admit_but_for_resources(pod, is_static, node, &all) {
        return Decision::Refuse(refusal);
    }
    let staying: Vec<usize> = (0..holders.len()).filter(|place| holders[*place].0 != Holding::Leaves).collect();
    let staying_pods: Vec<&Pod> = staying.iter().map(|place| holders[*place].1).collect();
    let missing = shortages(pod, node, &staying_pods);
    let Some(first) = missing.first() else {
        return Decision::Wait { victims: Vec::new(), resource: "" };
    };
    let resource = label(&first.resource);
    let candidates: Vec<usize> = staying.into_iter().filter(|place| holders[*place].0 == Holding::Stays).collect();
    let pods: Vec<&Pod> = candidates.iter().map(|place| holders[*place].1).collect();
    match victims(pod, &pods, &missing) {
        Ok(found) => Decision::Wait { victims: found.into_iter().map(|place| candidates[place]).collect(), resource },
        Err(missing) => Decision::Refuse(Rejection {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods \
                 to preempt: no set of running pods found to reclaim resources: {}",
                text(&missing)
            ),
        }),
    }
}

fn label(resource: &str) -> &'static str {
    const KNOWN: [&str; 4] = [CPU, MEMORY, "ephemeral-storage", "pods"];
    KNOWN.into_iter().find(|known| *known == resource).unwrap_or("other")
}

/// Amounts that are missing, in the order in which they were found to be.
type Missing = Vec<(String, i64)>;

/// As kubelet prints them.
fn text(missing: &Missing) -> String {
    let all: String = missing.iter().map(|(name, amount)| format!("(res: {name}, q: {amount}), ")).collect();
    format!("[{all}]")
}

/// Places of the pods that have to go; what would still be missing where all of them are not enough.
fn victims(pod: &Pod, others: &[&Pod], shortages: &[Shortage]) -> Result<Vec<usize>, Missing> {
    let missing: Missing = shortages.iter().map(|s| (s.resource.clone(), s.missing())).collect();
    let class = |wanted: QosClass| -> Vec<usize> {
        let places = (0..others.len()).filter(|place| weighs_more(pod, others[*place]));
        places.filter(|place| qos_class(others[*place]) == wanted).collect()
    };
    let (best_effort, burstable) = (class(QosClass::BestEffort), class(QosClass::Burstable));
    let guaranteed = class(QosClass::Guaranteed);
    let without = |gone: &[&[usize]]| {
        let places = gone.iter().flat_map(|places| places.iter());
        places.fold(missing.clone(), |left, place| less(left, others[*place]))
    };
    let left = without(&[&best_effort, &burstable, &guaranteed]);
    if !left.is_empty() {
        return Err(left);
    }
    let guaranteed = closest(guaranteed, others, without(&[&best_effort, &burstable]));
    let burstable = closest(burstable, others, without(&[&best_effort, &guaranteed]));
    let best_effort = closest(best_effort, others, without(&[&burstable, &guaranteed]));
    Ok([best_effort, burstable, guaranteed].concat())
}

/// Whether a pod may push another one out.
fn weighs_more(pod: &Pod, other: &Pod) -> bool {
    let priority = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.priority);
    let is_higher = priority(pod).zip(priority(other)).is_some_and(|(ours, theirs)| ours > theirs);
    (is_critical(pod) && !is_critical(other)) || is_higher
}

/// What a pod gives back.
fn request(pod: &Pod, resource: &str) -> i64 {
    match resource {
        "pods" => 1,
        name => units(name, amount(&pod_requests(pod, Overhead::Included), name)),
    }
}

fn less(missing: Missing, gone: &Pod) -> Missing {
    let left = missing.into_iter().map(|(name, amount)| {
        let left = amount.saturating_sub(request(gone, &name));
        (name, left)
    });
    left.filter(|(_, left)| *left > 0).collect()
}

/// Pods that together give back what is missing; the caller has made sure that all of them would.
fn closest(mut places: Vec<usize>, others: &[&Pod], mut missing: Missing) -> Vec<usize> {
    let (all, mut chosen) = (missing.clone(), Vec::new());
    while !missing.is_empty() {
        let better = |a: &usize, b: &usize| {
            let (one, two) = (others[*a], others[*b]);
            distance(one, &missing).total_cmp(&distance(two, &missing)).then_with(|| size(one).cmp(&size(two)))
        };
        let Some(best) = places.iter().copied().min_by(better) else { break };
        places.retain(|place| *place != best);
        missing = less(missing, others[best]);
        chosen.push(best);
    }
    // One that came close to two amounts is not needed when others that were taken later give back all of both. kubelet keeps it.
    for place in chosen.clone() {
        let rest = chosen.iter().filter(|other| **other != place);
        if rest.clone().fold(all.clone(), |left, other| less(left, others[*other])).is_empty() {
            chosen = rest.copied().collect();
        }
    }
    chosen
}

/// How much would still be missing: the sum over resources of the squared share.
fn distance(pod: &Pod, missing: &Missing) -> f64 {
    let left = |name: &str, amount: i64| amount.saturating_sub(request(pod, name)).max(0) as f64 / amount as f64;
    missing.iter().map(|(name, amount)| left(name, *amount).powi(2)).sum()
}

fn size(pod: &Pod) -> (i64, i64) {
    (request(pod, MEMORY), request(pod, CPU))
}

#[cfg(test)]
mod tests;
