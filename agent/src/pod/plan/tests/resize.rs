//! Resizes in the plan of a pod.

use k8s_openapi::api::core::v1::{ContainerResizePolicy, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::*;

fn give(pod: &mut Pod, container: usize, milli: u32, restarts: bool) {
    let container = &mut pod.spec.as_mut().unwrap().containers[container];
    let cpu = BTreeMap::from([("cpu".to_owned(), ApiQuantity(format!("{milli}m")))]);
    container.resources = Some(ResourceRequirements { requests: Some(cpu), ..Default::default() });
    container.resize_policy = restarts.then(|| {
        vec![ContainerResizePolicy { resource_name: "cpu".into(), restart_policy: "RestartContainer".into() }]
    });
}

fn settled(policy: &str, restarts: bool) -> Sim {
    let mut pod = make_pod(&[], &["a", "b"], policy);
    give(&mut pod, 0, 100, restarts);
    let mut sim = Sim::new(pod);
    sim.memory.actuated = Some(ResourceInfo::of(&sim.pod).into());
    sim.settle(sim.now);
    assert!(!sim.log.contains(&Op::Resize), "a pod that has what it was allocated is not resized");
    sim.log.clear();
    sim
}

#[test]
fn a_resize_is_one_operation_and_restarts_nothing() {
    let mut sim = settled("Always", false);
    give(&mut sim.pod, 0, 200, false);
    sim.settle(sim.now);
    assert_eq!(sim.log, [Op::Resize]);
}

#[test]
fn a_container_that_has_to_restart_does_before_its_pod_is_resized_even_where_its_end_would_complete_it() {
    let mut sim = settled("OnFailure", true);
    let b = sim.world.latest("b").map(|c| c.id.clone());
    give(&mut sim.pod, 0, 200, true);
    sim.turn();
    let Some(key) = sim.inflight.keys().next().cloned() else { panic!("no kill") };
    let OpKey::Kill(id, _) = &key else { panic!("{key:?} instead of a kill") };
    // The process ends well, which would be its end under OnFailure.
    sim.exit(&id.clone(), 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b"]);
    assert_eq!(sim.world.latest("a").map(|c| c.attempt), Some(1));
    assert_eq!(sim.world.latest("b").map(|c| c.id.clone()), b);
    let order: Vec<OpKey> = sim.log.iter().map(Op::key).collect();
    let at = |wanted: &OpKey| order.iter().position(|key| key == wanted).unwrap();
    assert!(at(&key) < at(&OpKey::Resize) && at(&OpKey::Resize) < at(&OpKey::Start("a".into())), "{order:?}");
}

#[test]
fn a_failed_resize_is_tried_again_and_holds_no_start_back() {
    let mut sim = settled("Always", false);
    give(&mut sim.pod, 0, 200, false);
    sim.turn();
    sim.finish(&OpKey::Resize, false);
    sim.exit_by_name("a", 1);
    sim.turn();
    assert!(
        sim.inflight.contains_key(&OpKey::Image(ImageUse::Container("a".into()), "img".into())),
        "{:?}",
        sim.inflight
    );
    sim.settle(sim.now + 10 * SECOND);
    assert_eq!(sim.running(), ["a", "b"]);
    assert!(sim.log.iter().filter(|op| **op == Op::Resize).count() >= 2);
}

#[test]
fn a_pod_that_stops_is_not_resized() {
    let mut sim = settled("Always", true);
    give(&mut sim.pod, 0, 200, true);
    sim.delete(30);
    sim.settle(sim.now);
    assert!(!sim.log.contains(&Op::Resize) && sim.running().is_empty());
}
