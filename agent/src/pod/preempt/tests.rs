use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::quantity::Quantity;

fn node(cpu: &str, memory: &str, pods: &str) -> Node {
    let amounts = [("cpu", cpu), ("memory", memory), ("pods", pods)];
    let parsed = amounts.map(|(name, text)| (name.to_owned(), Quantity::parse(text).unwrap()));
    Node { name: "n1".into(), allocatable: parsed.into(), ..Node::default() }
}

fn pod(priority: Option<i32>, requests: Value, limits: Value) -> Pod {
    let container = json!({"name": "c", "resources": {"requests": requests, "limits": limits}});
    let spec = json!({"priority": priority, "containers": [container]});
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

fn best_effort() -> Pod {
    pod(None, json!({}), json!({}))
}

fn burstable(cpu: &str, memory: &str) -> Pod {
    pod(Some(0), json!({"cpu": cpu, "memory": memory}), json!({}))
}

fn guaranteed(cpu: &str, memory: &str) -> Pod {
    let amounts = json!({"cpu": cpu, "memory": memory});
    pod(Some(0), amounts.clone(), amounts)
}

fn critical(cpu: &str, memory: &str) -> Pod {
    pod(Some(2_000_000_000), json!({"cpu": cpu, "memory": memory}), json!({}))
}

fn is_static(mut pod: Pod) -> Pod {
    let source = ("kubernetes.io/config.source".to_owned(), "file".to_owned());
    pod.metadata.annotations = Some([source].into());
    pod.spec.as_mut().unwrap().priority = None;
    pod
}

fn stay(pods: &[Pod]) -> Vec<(Holding, &Pod)> {
    pods.iter().map(|pod| (Holding::Stays, pod)).collect()
}

/// Who has to go for a pod on a node that the others fill.
fn who_goes(pod: &Pod, node: &Node, others: &[Pod]) -> Vec<usize> {
    match decide(pod, false, node, &stay(others)) {
        Decision::Wait { victims, .. } => victims,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_lowest_class_that_is_enough_goes() {
    let others = [guaranteed("1", "1Gi"), burstable("1", "1Gi"), best_effort()];
    let full = node("2", "2Gi", "9");
    assert_eq!(who_goes(&critical("500m", "1"), &full, &others), [1]);
    assert_eq!(who_goes(&critical("1500m", "1"), &full, &others), [1, 0]);
    let crowded = node("9", "9Gi", "3");
    assert_eq!(who_goes(&critical("1", "1"), &crowded, &others), [2]);
    let both = node("2", "9Gi", "3");
    assert_eq!(who_goes(&critical("1", "1"), &both, &others), [1], "it gives back CPU and its place");
}

#[test]
fn as_few_as_possible_go_and_of_equal_ones_the_smaller() {
    let others = [burstable("100m", "1Gi"), burstable("600m", "2Gi"), burstable("700m", "1Gi"), burstable("2", "4Gi")];
    let full = node("3400m", "8Gi", "9");
    assert_eq!(who_goes(&critical("500m", "0"), &full, &others), [2], "enough, and less memory than the other two");
    assert_eq!(who_goes(&critical("1", "0"), &full, &others), [3]);
    assert_eq!(who_goes(&critical("2500m", "0"), &full, &others), [3, 2]);
    assert_eq!(who_goes(&critical("500m", "3Gi"), &full, &others), [3]);
}

#[test]
fn critical_pods_stay_unless_the_other_is_of_higher_priority() {
    let others = [critical("1", "1"), critical("2", "2")];
    let full = node("3", "1Gi", "9");
    let Decision::Refuse(refusal) = decide(&critical("500m", "1"), false, &full, &stay(&others)) else { panic!() };
    assert_eq!(refusal.reason, "UnexpectedAdmissionError");
    assert_eq!(refusal.event_reason(), "UnexpectedAdmissionError");
    assert_eq!(
        refusal.message,
        "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to \
         preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]"
    );
    let of_the_node = pod(Some(2_000_001_000), json!({"cpu": "500m"}), json!({}));
    assert_eq!(who_goes(&of_the_node, &full, &others), [0]);
    let plain = [burstable("3", "1")];
    assert_eq!(who_goes(&is_static(burstable("1", "1")), &full, &plain), [0]);
    let static_one = [is_static(burstable("3", "1"))];
    let refused = decide(&critical("1", "1"), false, &full, &stay(&static_one));
    assert!(matches!(refused, Decision::Refuse(_)), "static pods are critical without a priority: {refused:?}");
}

#[test]
fn a_pod_that_is_not_critical_is_refused_with_what_is_missing() {
    let others = [burstable("1", "1Gi")];
    let high = pod(Some(1_000_000_000), json!({"cpu": "2"}), json!({}));
    let Decision::Refuse(refusal) = decide(&high, false, &node("2", "1Gi", "9"), &stay(&others)) else { panic!() };
    assert_eq!(refusal.reason, "OutOfcpu");
}

#[test]
fn nobody_goes_for_a_pod_that_the_node_would_refuse_all_the_same() {
    let others = [burstable("2", "1Gi")];
    let mut elsewhere = critical("1", "1");
    elsewhere.spec.as_mut().unwrap().node_selector = Some([("zone".to_owned(), "b".to_owned())].into());
    let Decision::Refuse(refusal) = decide(&elsewhere, false, &node("2", "1Gi", "9"), &stay(&others)) else { panic!() };
    assert_eq!(refusal.reason, "NodeAffinity", "kubelet tells only what is not about resources");
    let mut apparmor = critical("1", "1");
    apparmor.spec.as_mut().unwrap().security_context =
        serde_json::from_value(json!({"appArmorProfile": {"type": "RuntimeDefault"}})).unwrap();
    let refused = decide(&apparmor, false, &node("2", "1Gi", "9"), &stay(&others));
    assert!(matches!(refused, Decision::Refuse(refusal) if refusal.reason == "AppArmor"));
}

#[test]
fn who_leaves_anyway_is_waited_for_and_nobody_else_goes() {
    let (leaving, staying) = (burstable("1", "1Gi"), burstable("1", "1Gi"));
    let full = node("2", "2Gi", "9");
    let holders = [(Holding::Stays, &staying), (Holding::Leaves, &leaving)];
    let wait = |victims: &[usize], resource| Decision::Wait { victims: victims.to_vec(), resource };
    assert_eq!(decide(&critical("1", "1Gi"), false, &full, &holders), wait(&[], ""));
    assert_eq!(decide(&critical("2", "1Gi"), false, &full, &holders), wait(&[0], "cpu"));
    let arriving = critical("1", "1Gi");
    let holders = [(Holding::Arrives, &arriving), (Holding::Stays, &staying)];
    assert_eq!(decide(&critical("1", "1Gi"), false, &full, &holders), wait(&[1], "cpu"));
    let refused = decide(&burstable("1", "1Gi"), false, &full, &holders[..1]);
    assert_eq!(refused, Decision::Admit);
    let refused = decide(&burstable("2", "1Gi"), false, &full, &holders[..1]);
    assert!(matches!(refused, Decision::Refuse(_)), "the room of a pod that arrives is not given away: {refused:?}");
}

/// Rank of a class: lower ones go first.
fn rank(pod: &Pod) -> u8 {
    match qos_class(pod) {
        QosClass::BestEffort => 0,
        QosClass::Burstable => 1,
        QosClass::Guaranteed => 2,
    }
}

prop_compose! {
    fn pods()(kind in 0u8..3, priority in proptest::sample::select(vec![None, Some(0), Some(7), Some(2_000_000_000), Some(2_000_001_000)]),
              file in prop::bool::weighted(0.1), cpu in 1u32..8, memory in 1u32..8) -> Pod {
        let amounts = json!({"cpu": format!("{cpu}00m"), "memory": format!("{memory}Mi")});
        let made = match kind {
            0 => pod(priority, json!({}), json!({})),
            1 => pod(priority, amounts, json!({})),
            _ => pod(priority, amounts.clone(), amounts),
        };
        if file { is_static(made) } else { made }
    }
}

proptest! {
    #[test]
    fn of_generated_nodes_only_those_go_that_must(
        others in prop::collection::vec(pods(), 0..9), standing in prop::collection::vec(0u8..6, 9), arriving in pods(),
        spare_cpu in 0u32..4, spare_memory in 0u32..4, spare_pods in 0usize..2,
    ) {
        let held = |name: &str| others.iter().map(|pod| request(pod, name)).sum::<i64>();
        let full = node(
            &format!("{}m", held(CPU) + i64::from(spare_cpu) * 100),
            &(held(MEMORY) + (i64::from(spare_memory) << 20)).to_string(),
            &(others.len() + spare_pods).to_string(),
        );
        let standing = |place: usize| match standing[place] { 0 => Holding::Leaves, 1 => Holding::Arrives, _ => Holding::Stays };
        let holders: Vec<_> = others.iter().enumerate().map(|(place, pod)| (standing(place), pod)).collect();
        let fits = |gone: &dyn Fn(usize) -> bool| {
            let left: Vec<&Pod> = (0..others.len()).filter(|place| !gone(*place)).map(|place| &others[place]).collect();
            admit(&arriving, false, &full, &left).is_ok()
        };
        let leaves = |place: usize| standing(place) == Holding::Leaves;
        let may_go = |place: usize| standing(place) == Holding::Stays && weighs_more(&arriving, &others[place]);
        match decide(&arriving, false, &full, &holders) {
            Decision::Admit => prop_assert!(fits(&|_| false)),
            Decision::Refuse(_) => {
                prop_assert!(!fits(&|_| false));
                prop_assert!(!is_critical(&arriving) || !fits(&|place| leaves(place) || may_go(place)), "it could have been taken");
            }
            Decision::Wait { victims, .. } => {
                prop_assert!(is_critical(&arriving) && !fits(&|_| false));
                prop_assert!(victims.iter().all(|place| may_go(*place)), "{victims:?}");
                prop_assert!(fits(&|place| leaves(place) || victims.contains(&place)), "there is room when they are gone");
                let mut once = victims.clone();
                once.sort_unstable();
                once.dedup();
                prop_assert_eq!(once.len(), victims.len());
                // Of the highest class that has to give, none goes in vain: all pods of lower classes together, and the others of
                // this class that go, would not be enough.
                let highest = victims.iter().map(|place| rank(&others[*place])).max().unwrap_or(0);
                for spared in victims.iter().filter(|place| rank(&others[**place]) == highest) {
                    let gone = |place: usize| {
                        let of_class = rank(&others[place]) == highest && victims.contains(&place);
                        leaves(place) || (place != *spared && (of_class || (rank(&others[place]) < highest && may_go(place))))
                    };
                    prop_assert!(!fits(&gone), "{spared} goes in vain: {victims:?}");
                }
            }
        }
    }
}
