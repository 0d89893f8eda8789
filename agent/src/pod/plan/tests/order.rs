//! The order in which a pod with sidecars stops, and how a pod starts over.

use k8s_openapi::api::core::v1::EphemeralContainer;

use super::*;

impl Sim {
    /// Containers of the operations in flight that `which` picks, in order of their names.
    fn busy(&self, which: fn(&Op) -> Option<&str>) -> Vec<&str> {
        let mut names: Vec<&str> = self.inflight.values().filter_map(which).collect();
        names.sort_unstable();
        names
    }

    fn hooks(&self) -> Vec<&str> {
        self.busy(|op| if let Op::PreStop { container, .. } = op { Some(container) } else { None })
    }

    fn kills(&self) -> Vec<&str> {
        self.busy(|op| if let Op::KillContainer { container, .. } = op { Some(container) } else { None })
    }

    fn finish_all(&mut self, which: fn(&OpKey) -> bool) {
        let keys: Vec<OpKey> = self.inflight.keys().filter(|key| which(key)).cloned().collect();
        keys.iter().for_each(|key| self.finish(key, true));
    }

    /// Seconds of grace and whether the hook has run, of the kill in flight of a container.
    fn kill_of(&self, name: &str) -> Option<(i64, bool)> {
        self.inflight.values().find_map(|op| match op {
            Op::KillContainer { container, grace_seconds, is_announced, .. } if container == name => {
                Some((*grace_seconds, *is_announced))
            }
            _ => None,
        })
    }
}

/// A pod whose sidecars `s1` and `s2` and regular containers `a` and `b` run.
fn with_sidecars() -> Sim {
    let mut sim = Sim::new(make_pod(&[("s1", true), ("s2", true)], &["a", "b"], "Always"));
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b", "s1", "s2"]);
    sim
}

#[test]
fn hooks_of_sidecars_begin_at_once_and_their_term_waits_for_those_they_serve() {
    let mut sim = with_sidecars();
    sim.delete(30);
    sim.turn();
    assert_eq!(sim.hooks(), ["s1", "s2"]);
    assert_eq!(sim.kills(), ["a", "b"]);
    sim.now += 4 * SECOND;
    sim.finish_all(|key| matches!(key, OpKey::PreStop(_)));
    sim.turn();
    assert_eq!((sim.hooks(), sim.kills()), (vec![], vec!["a", "b"]), "hooks run once");
    let a = sim.world.latest("a").map(|c| c.id.clone()).unwrap();
    sim.finish_all(|key| matches!(key, OpKey::Kill(..)));
    assert!(sim.world.containers.iter().any(|c| c.id == a && c.is_exited()));
    sim.turn();
    assert_eq!(sim.kills(), ["s2"], "the last one first");
    assert_eq!(sim.kill_of("s2"), Some((26, true)), "what is left of the grace period, and no hook again");
    sim.now += 6 * SECOND;
    sim.finish_all(|key| matches!(key, OpKey::Kill(..)));
    sim.turn();
    assert_eq!(sim.kill_of("s1"), Some((20, true)));
}

#[test]
fn a_sidecar_whose_hook_still_runs_when_its_turn_comes_waits_for_it() {
    let mut sim = with_sidecars();
    sim.delete(30);
    sim.turn();
    sim.finish_all(|key| matches!(key, OpKey::Kill(..)));
    sim.turn();
    assert_eq!((sim.hooks(), sim.kills()), (vec!["s1", "s2"], vec![]));
    sim.finish_all(|key| matches!(key, OpKey::PreStop(_)));
    sim.turn();
    assert_eq!(sim.kills(), ["s2"]);
}

#[test]
fn when_the_grace_period_is_over_nobody_waits_for_a_turn_or_a_hook() {
    let mut sim = with_sidecars();
    sim.delete(30);
    sim.turn();
    assert_eq!(sim.wake_at, Some(sim.now + 30 * SECOND));
    sim.now += 30 * SECOND;
    sim.turn();
    assert_eq!(sim.kills(), ["a", "b", "s1", "s2"]);
    assert_eq!(sim.kill_of("s1"), Some((1, true)));
}

#[test]
fn an_init_container_and_a_sidecar_before_it_stop_at_once() {
    let mut sim = Sim::new(make_pod(&[("s", true), ("i", false)], &["a"], "Always"));
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i", "s"]);
    sim.delete(30);
    sim.turn();
    assert_eq!(sim.kills(), ["i", "s"]);
}

/// A pod in which an end of `a` with 42 makes everything start over.
fn with_reset_rule() -> Sim {
    let mut pod = make_pod(&[("i", false), ("s", true)], &["a", "b"], "Never");
    let rule = serde_json::json!([{ "action": "RestartAllContainers",
        "exitCodes": { "operator": "In", "values": [42] } }]);
    if let Some(spec) = &mut pod.spec {
        spec.containers[0].restart_policy = Some("Never".into());
        spec.containers[0].restart_policy_rules = serde_json::from_value(rule).unwrap();
    }
    let mut sim = Sim::new(pod);
    sim.settle(sim.now);
    sim.exit_by_name("i", 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b", "s"]);
    sim
}

#[test]
fn a_pod_starts_over_in_its_sandbox_when_a_rule_says_so_and_the_cause_goes_last() {
    let mut sim = with_reset_rule();
    let sandbox = sim.world.sandbox().map(|s| s.id.clone());
    let before = sim.log.len();
    sim.exit_by_name("a", 42);
    let name = |sim: &Sim, id: &ContainerId| sim.world.containers.iter().find(|c| c.id == *id).map(|c| c.name.clone());
    let mut steps = Vec::new();
    for _ in 0..6 {
        assert!(sim.turn() <= 1, "one after the other");
        let Some((key, op)) = sim.inflight.iter().next().map(|(key, op)| (key.clone(), op.clone())) else { break };
        match &op {
            Op::KillContainer { container, grace_seconds: 0, reason: KillReason::RestartAll, .. } => {
                steps.push(format!("kill {container}"));
            }
            Op::ForgetContainer(id) => steps.push(format!("forget {}", name(&sim, id).unwrap())),
            other => panic!("{other:?}"),
        }
        sim.finish(&key, true);
    }
    assert_eq!(steps, ["kill b", "forget b", "forget i", "kill s", "forget s", "forget a"]);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i"], "initialization runs again");
    sim.exit_by_name("i", 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b", "s"]);
    assert_eq!(sim.world.sandbox().map(|s| s.id.clone()), sandbox);
    let attempts: Vec<u32> = ["a", "b", "i", "s"].map(|n| sim.world.latest(n).map_or(99, |c| c.attempt)).to_vec();
    assert_eq!(attempts, [1, 1, 1, 1], "their logs do not mix with those before");
    let volumes = sim.log[before..].iter().filter(|op| matches!(op, Op::PrepareVolumes)).count();
    assert_eq!(volumes, 0, "volumes stay as they are");
}

#[test]
fn a_new_agent_goes_on_where_a_pod_was_starting_over() {
    let mut sim = with_reset_rule();
    sim.exit_by_name("a", 42);
    sim.turn();
    sim.finish_all(|_| true);
    sim.suffer(histories::Blow::AgentRestarts);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i"]);
    assert_eq!(sim.world.containers.len(), 1);
}

#[test]
fn a_pod_that_starts_over_and_is_deleted_stops() {
    let mut sim = with_reset_rule();
    sim.exit_by_name("a", 42);
    sim.turn();
    sim.delete(5);
    sim.settle(sim.now + 60 * SECOND);
    assert!(sim.running().is_empty());
    assert!(sim.lifecycle.termination().is_some());
}

#[test]
fn a_failed_post_start_hook_restarts_at_once_and_then_by_the_crash_back_off() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    let start = OpKey::Start("a".into());
    let mut ended = Vec::new();
    for _ in 0..3 {
        for _ in 0..20 {
            if sim.inflight.contains_key(&start) {
                break;
            }
            if sim.turn() == 0 && sim.inflight.is_empty() {
                sim.now = sim.wake_at.unwrap().max(sim.now);
            }
            sim.finish_all(|key| !matches!(key, OpKey::Start(_)));
        }
        let op = sim.inflight.remove(&start).unwrap();
        ended.push(sim.now);
        sim.carry_out(op);
        let id = sim.world.latest("a").map(|c| c.id.clone()).unwrap();
        sim.exit(&id, 137);
        let container = sim.world.latest("a").cloned().map(Box::new);
        let failure = Failure { reason: "PostStartHookError", message: "no".into(), container };
        sim.memory.record(start.clone(), Err(failure), &mut sim.runtime, sim.now);
    }
    let pauses: Vec<i64> = ended.windows(2).map(|pair| (pair[1] - pair[0]) / SECOND).collect();
    assert_eq!(pauses, [0, 10]);
}

#[test]
fn a_new_image_restarts_a_container_whatever_its_policy_says() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Never"));
    sim.settle(sim.now);
    if let Some(spec) = &mut sim.pod.spec {
        spec.containers[0].image = Some("img:2".into());
    }
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a"]);
    assert!(sim.lifecycle.may_start());
}

#[test]
fn a_back_off_of_one_second_is_forgotten_after_ten_minutes_and_not_after_two_seconds() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.memory.max_crash_delay = Some(SECOND);
    sim.settle(sim.now);
    sim.exit_by_name("a", 1);
    sim.settle(sim.now);
    for (ran, waits) in [(5, true), (599, true), (601, false)] {
        sim.now += ran * SECOND;
        sim.exit_by_name("a", 1);
        sim.settle(sim.now);
        assert_eq!(sim.running().is_empty(), waits, "after a run of {ran} s");
        sim.settle(sim.now + SECOND);
        assert_eq!(sim.running(), ["a"]);
    }
}

#[test]
fn an_ephemeral_container_starts_while_initialization_hangs_and_never_again() {
    let mut pod = make_pod(&[("i", false)], &["a"], "Always");
    if let Some(spec) = &mut pod.spec {
        let debug = EphemeralContainer { name: "debug".into(), image: Some("img".into()), ..<_>::default() };
        spec.ephemeral_containers = Some(vec![debug]);
    }
    let mut sim = Sim::new(pod);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["debug", "i"]);
    sim.exit_by_name("debug", 1);
    sim.settle(sim.now + 700 * SECOND);
    assert_eq!(sim.running(), ["i"]);
}
