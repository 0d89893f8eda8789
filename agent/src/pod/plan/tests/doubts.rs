//! What the runtime says once is not acted on when it would stop what runs.

use super::*;

impl Sim {
    /// One look at the runtime through an operation, as the worker does.
    fn inspect(&mut self) {
        self.inflight.insert(OpKey::Inspect, Op::Inspect);
        self.finish(&OpKey::Inspect, true);
    }

    pub(super) fn each_sandbox(&mut self, change: impl Fn(&mut SandboxView)) {
        self.world.sandboxes.iter_mut().for_each(change);
        self.inspect();
    }
}

#[test]
fn a_running_pod_is_not_stopped_for_one_word_about_its_sandbox() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    let before = sim.world.clone();
    sim.each_sandbox(|sandbox| sandbox.ready = false);
    assert_eq!(sim.turn(), 0, "the first look is not believed: {:?}", sim.inflight);
    assert_eq!(sim.wake_at, Some(sim.now + SECOND));
    sim.each_sandbox(|sandbox| sandbox.ready = true);
    sim.now += SECOND;
    assert_eq!(sim.turn(), 0);
    assert_eq!(sim.world, before);
    assert!(sim.memory.doubts.is_empty());
}

#[test]
fn a_running_pod_whose_sandbox_is_twice_found_dead_gets_another() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    sim.each_sandbox(|sandbox| sandbox.ready = false);
    sim.settle(sim.now + 2 * SECOND);
    assert_eq!(sim.running(), ["a"]);
    assert_eq!(sim.world.sandbox().map(|s| (s.attempt, s.ready)), Some((1, true)));
}

#[test]
fn a_sandbox_whose_address_the_runtime_has_forgotten_keeps_it() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    sim.each_sandbox(|sandbox| sandbox.ips.clear());
    sim.settle(sim.now + 10 * SECOND);
    assert_eq!(sim.runtime.sandbox().map(|s| s.ips.clone()), Some(vec!["10.0.0.1".to_owned()]));
    assert_eq!(sim.world.sandboxes.len(), 1);
    assert!(!sim.log.iter().any(|op| matches!(op, Op::KillContainer { .. } | Op::StopSandbox(_))), "{:?}", sim.log);
}

#[test]
fn a_container_of_unknown_state_is_stopped_within_its_grace_after_a_second_look() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    let state = sim.world.containers[0].state.clone();
    sim.world.containers[0].state = ContainerState::Unknown;
    sim.inspect();
    assert_eq!(sim.turn(), 0);
    // The shim answers again.
    sim.world.containers[0].state = state;
    sim.settle(sim.now + 2 * SECOND);
    assert_eq!(sim.world.containers.len(), 1);
    sim.world.containers[0].state = ContainerState::Unknown;
    sim.inspect();
    sim.now += SECOND;
    sim.inspect();
    sim.turn();
    assert!(sim.inflight.keys().any(|key| matches!(key, OpKey::Kill(_, 30))), "{:?}", sim.inflight);
}
