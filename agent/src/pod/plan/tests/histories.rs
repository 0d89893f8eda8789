//! Whatever happens to a pod from outside, its plan settles, and a deleted pod leaves nothing.

use proptest::prelude::*;

use super::*;

/// Something that happens to a pod from outside.
#[derive(Clone, Debug)]
pub(super) enum Blow {
    Turn,
    Finish(usize, bool),
    Exit(usize, i32),
    Look,
    SandboxDies,
    /// The runtime says for one look that sandboxes are not ready or have no address.
    Lie(bool),
    Wait(i64),
    Delete(i64),
    Unwanted,
    AgentRestarts,
}

fn blows() -> impl Strategy<Value = Vec<Blow>> {
    let blow = prop_oneof![
        6 => Just(Blow::Turn),
        8 => (0..8usize, prop::bool::weighted(0.8)).prop_map(|(n, ok)| Blow::Finish(n, ok)),
        2 => (0..4usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(n, code)| Blow::Exit(n, code)),
        2 => Just(Blow::Look),
        1 => Just(Blow::SandboxDies),
        1 => prop::bool::ANY.prop_map(Blow::Lie),
        2 => (0..400i64).prop_map(Blow::Wait),
        1 => (0..40i64).prop_map(Blow::Delete),
        1 => Just(Blow::Unwanted),
        1 => Just(Blow::AgentRestarts),
    ];
    prop::collection::vec(blow, 0..60)
}

fn pods() -> impl Strategy<Value = Pod> {
    let inits = prop::collection::vec(prop::bool::ANY, 0..3);
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    (inits, 1..3usize, policy).prop_map(|(inits, apps, policy)| {
        let names = ["i0", "i1", "i2"];
        let inits: Vec<_> = inits.into_iter().enumerate().map(|(n, sidecar)| (names[n], sidecar)).collect();
        make_pod(&inits, &["a0", "a1"][..apps], policy)
    })
}

impl Sim {
    pub(super) fn suffer(&mut self, blow: Blow) {
        match blow {
            Blow::Turn => drop(self.turn()),
            Blow::Finish(n, ok) => {
                let keys: Vec<OpKey> = self.inflight.keys().cloned().collect();
                if !keys.is_empty() {
                    self.finish(&keys[n % keys.len()].clone(), ok);
                }
            }
            Blow::Exit(n, code) => {
                let running: Vec<ContainerId> =
                    self.world.containers.iter().filter(|c| c.is_running()).map(|c| c.id.clone()).collect();
                if !running.is_empty() {
                    self.exit(&running[n % running.len()].clone(), code);
                }
            }
            Blow::Look => self.look(),
            Blow::SandboxDies => {
                for sandbox in &mut self.world.sandboxes {
                    sandbox.ready = false;
                }
                let ids: Vec<ContainerId> = self.world.containers.iter().map(|c| c.id.clone()).collect();
                for id in ids {
                    self.exit(&id, 137);
                }
            }
            Blow::Lie(not_ready) => {
                let truth = self.world.clone();
                self.each_sandbox(|sandbox| if not_ready { sandbox.ready = false } else { sandbox.ips.clear() });
                self.world = truth;
                let killed = |sim: &Self| sim.log.iter().filter(|op| matches!(op, Op::KillContainer { .. })).count();
                let before = killed(self);
                let ends = self.memory.doubts.values().any(|doubt| doubt.is_confirmed());
                self.turn();
                let may_kill =
                    ends || !self.lifecycle.may_start() || !self.probes.values().all(|p| p.failure.is_none());
                assert!(may_kill || killed(self) == before, "one word of the runtime stopped a container");
            }
            Blow::Wait(seconds) => self.now += seconds * SECOND,
            Blow::Delete(grace) => self.delete(grace),
            Blow::Unwanted => self.wanted = false,
            Blow::AgentRestarts => {
                // Operations in flight are lost; only the journal's lifecycle and the runtime's world remain.
                self.inflight.clear();
                self.memory = Memory::default();
                self.runtime = PodRuntime::default();
                self.probes.clear();
            }
        }
        for name in ["i0", "i1", "i2", "a0", "a1"] {
            let running = self.world.containers.iter().filter(|c| c.name == name && c.is_running()).count();
            assert!(running <= 1, "{running} containers called {name} run at once");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn after_any_blows_a_plan_settles_and_a_deleted_pod_leaves_nothing(pod in pods(), blows in blows()) {
        let mut sim = Sim::new(pod);
        for blow in blows {
            sim.suffer(blow);
        }
        sim.look();
        sim.settle(sim.now + 700 * SECOND);
        prop_assert_eq!(sim.turn(), 0, "a settled pod asks for nothing");
        sim.delete(1);
        sim.settle(sim.now + 700 * SECOND);
        sim.wanted = false;
        sim.settle(sim.now + 700 * SECOND);
        prop_assert_eq!(&sim.lifecycle, &Lifecycle::Removed);
        prop_assert!(sim.world.is_empty());
    }
}

/// The new sandbox had the container started a second time while the first one ran in the old.
#[test]
fn a_start_under_way_in_a_lost_sandbox_ends_before_there_is_another_sandbox() {
    let mut sim = Sim::new(make_pod(&[], &["a0"], "Always"));
    let start = OpKey::Start("a0".into());
    while !sim.inflight.contains_key(&start) {
        sim.turn();
        for key in sim.inflight.keys().filter(|key| **key != start).cloned().collect::<Vec<_>>() {
            sim.finish(&key, true);
        }
    }
    sim.suffer(Blow::SandboxDies);
    sim.look();
    for _ in 0..3 {
        sim.turn();
        for key in sim.inflight.keys().filter(|key| **key != start).cloned().collect::<Vec<_>>() {
            sim.finish(&key, true);
        }
    }
    assert_eq!(sim.world.sandboxes.len(), 1, "no other sandbox while the start is under way");
    sim.finish(&start, true);
    sim.settle(sim.now + 700 * SECOND);
    assert_eq!(sim.running(), ["a0"]);
    assert_eq!(sim.world.sandbox().map(|sandbox| sandbox.attempt), Some(1));
}
