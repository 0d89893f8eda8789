//! Properties of the plan over a simulated node, and the cases that people will ask about by name.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Lifecycle as Hooks, LifecycleHandler, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{PodPlan, plan};
use crate::cri::{ContainerState, ContainerView, Nanos, PodRuntime, SandboxView, labels};
use crate::ids::{ContainerId, SandboxId};
use crate::pod::action::{Action, Failure, ImageUse, KillReason, Op, OpKey, Output};
use crate::pod::allocation::ResourceInfo;
use crate::pod::lifecycle::{Cause, Lifecycle, SECOND};
use crate::pod::memory::{Eviction, Memory, Ousting, finished_at};
use crate::pod::spec::{self, Role};
use crate::pod::view::{PodView, ProbeFailure, ProbeView};

mod doubts;
mod histories;
mod images;
mod order;
mod resize;

/// A pod, a runtime that does what it is told, and a clock.
struct Sim {
    pod: Pod,
    wanted: bool,
    lifecycle: Lifecycle,
    /// What the runtime really has.
    world: PodRuntime,
    /// What the worker believes.
    runtime: PodRuntime,
    memory: Memory,
    inflight: BTreeMap<OpKey, Op>,
    probes: BTreeMap<String, ProbeView>,
    now: Nanos,
    serial: u32,
    wake_at: Option<Nanos>,
    log: Vec<Op>,
}

fn make_container(name: &str) -> Container {
    Container { name: name.into(), image: Some("img".into()), ..Container::default() }
}

fn make_pod(inits: &[(&str, bool)], apps: &[&str], policy: &str) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some("u".into());
    let init = |(name, sidecar): &(&str, bool)| Container {
        restart_policy: sidecar.then(|| "Always".to_owned()),
        ..make_container(name)
    };
    pod.spec = Some(PodSpec {
        init_containers: Some(inits.iter().map(init).collect()),
        containers: apps.iter().map(|name| make_container(name)).collect(),
        restart_policy: Some(policy.into()),
        ..PodSpec::default()
    });
    pod
}

impl Sim {
    fn new(pod: Pod) -> Self {
        Self {
            pod,
            wanted: true,
            lifecycle: Lifecycle::Syncing,
            world: PodRuntime::default(),
            runtime: PodRuntime::default(),
            memory: Memory::default(),
            inflight: BTreeMap::new(),
            probes: BTreeMap::new(),
            now: 1_000 * SECOND,
            serial: 0,
            wake_at: None,
            log: Vec::new(),
        }
    }

    /// Plans once and starts what the plan asks for; checks what must hold of every plan.
    fn turn(&mut self) -> usize {
        let keys: BTreeSet<OpKey> = self.inflight.keys().cloned().collect();
        let running = self.runtime.containers.iter().filter(|c| c.is_running());
        for container in running {
            let view = ProbeView { started: true, ready: true, failure: None };
            self.probes.entry(container.name.clone()).or_insert(view);
        }
        let before = self.lifecycle.clone();
        let PodPlan { lifecycle, actions, wake_at } = {
            let view = PodView {
                pod: &self.pod,
                wanted: self.wanted,
                lifecycle: &self.lifecycle,
                runtime: &self.runtime,
                memory: &self.memory,
                inflight: &keys,
                probes: &self.probes,
                started_at: 1_000 * SECOND,
            };
            plan(&view, self.now)
        };
        assert!(before.may_start() || !lifecycle.may_start(), "{before:?} -> {lifecycle:?}: a stop was taken back");
        self.lifecycle = lifecycle;
        self.wake_at = wake_at;
        let mut begun = 0;
        for action in actions {
            match action {
                Action::Cancel(key) => {
                    assert!(matches!(key, OpKey::Image(..)), "only pulls can be cancelled, not {key:?}");
                    self.inflight.remove(&key);
                }
                Action::Start(op) => {
                    let starts =
                        matches!(op, Op::CreateSandbox { .. } | Op::StartContainer { .. } | Op::EnsureImage { .. });
                    assert!(!starts || self.lifecycle.may_start(), "{op:?} after the stop began");
                    self.check_order(&op);
                    if let Op::StartContainer { container, .. } = &op
                        && let Some(ended) = self.runtime.latest(container).filter(|c| c.is_exited()).map(finished_at)
                    {
                        self.memory.note_restart(container, ended, self.now);
                    }
                    if let Op::KillContainer { container, reason, .. } = &op
                        && matches!(reason, KillReason::Resized | KillReason::DefinitionChanged)
                    {
                        self.memory.note_change(container);
                    }
                    self.log.push(op.clone());
                    assert!(self.inflight.insert(op.key(), op).is_none(), "one key is in flight twice");
                    begun += 1;
                }
            }
        }
        begun
    }

    fn check_order(&self, op: &Op) {
        let Op::StartContainer { container, .. } = op else { return };
        let role = spec::roles(&self.pod).find(|(n, _)| n == container).map(|(_, role)| role);
        if role != Some(Role::App)
            || spec::roles(&self.pod).any(|(n, r)| r == Role::App && self.runtime.current(n).is_some())
        {
            return;
        }
        for (name, _) in spec::roles(&self.pod).filter(|(_, role)| *role == Role::Init) {
            let state = self.runtime.current(name).map(|c| &c.state);
            assert!(matches!(state, Some(ContainerState::Exited { exit_code: 0, .. })), "{container} before {name}");
        }
    }

    /// Lets an operation end.
    fn finish(&mut self, key: &OpKey, succeed: bool) {
        let Some(op) = self.inflight.remove(key) else { return };
        let result = if succeed {
            Ok(self.carry_out(op))
        } else {
            Err(Failure { reason: "Simulated", message: "no".into(), container: None })
        };
        self.memory.record(key.clone(), result, &mut self.runtime, self.now);
    }

    fn carry_out(&mut self, op: Op) -> Output {
        self.serial += 1;
        let output = match op {
            Op::Inspect => Output::Inspected(self.world.clone()),
            Op::CreateSandbox { attempt } => Output::Sandbox(SandboxView {
                id: SandboxId::new(format!("s{}", self.serial)),
                attempt,
                ready: true,
                created_at: self.now,
                ips: vec!["10.0.0.1".into()],
                host_network: false,
            }),
            Op::StartContainer { container, attempt, sandbox } => Output::Container(Box::new(ContainerView {
                id: ContainerId::new(format!("c{}", self.serial)),
                hash: Some(labels::container_hash(&container, spec::image(&self.pod, &container))),
                name: container,
                sandbox,
                attempt,
                state: ContainerState::Running { started_at: self.now },
                created_at: self.now,
                image: "img".into(),
                image_ref: "img".into(),
                termination_message: None,
                message_falls_back_to_logs: false,
                log_path: String::new(),
                user: None,
                stop_signal: None,
                resources: None,
            })),
            Op::KillContainer { id, .. } => {
                self.exit(&id, 137);
                let view = self.world.containers.iter().find(|c| c.id == id).cloned();
                view.map_or(Output::ContainerRemoved(id), |view| Output::Container(Box::new(view)))
            }
            Op::StopSandbox(id) => {
                for container in self.ids_in(&id) {
                    self.exit(&container, 137);
                }
                Output::SandboxStopped(id)
            }
            Op::RemoveSandbox(id) => Output::SandboxRemoved(id),
            Op::RemoveContainer(id) | Op::ForgetContainer(id) => Output::ContainerRemoved(id),
            Op::Resize => {
                // What the operation records: running containers are updated, the others begin with it.
                self.memory.actuated = Some(ResourceInfo::of(&self.pod).into());
                Output::Resized(Vec::new())
            }
            Op::PreStop { .. }
            | Op::PrepareVolumes
            | Op::EnsureImage { .. }
            | Op::Release
            | Op::FinishDeletion
            | Op::RemoveLogs => Output::Done,
        };
        // The world changes in the same way as the worker's view of it.
        let mut memory = Memory::default();
        let mut world = std::mem::take(&mut self.world);
        if !matches!(output, Output::Inspected(_)) {
            memory.record(OpKey::Inspect, Ok(output.clone()), &mut world, self.now);
        }
        self.world = world;
        output
    }

    fn ids_in(&self, sandbox: &SandboxId) -> Vec<ContainerId> {
        self.world.containers.iter().filter(|c| c.sandbox == *sandbox && c.is_running()).map(|c| c.id.clone()).collect()
    }

    /// A container ends in the runtime; nobody is told.
    fn exit(&mut self, id: &ContainerId, code: i32) {
        let now = self.now;
        for container in self.world.containers.iter_mut().filter(|c| c.id == *id && c.may_run()) {
            container.state = ContainerState::Exited {
                started_at: 0,
                finished_at: now,
                exit_code: code,
                reason: String::new(),
                message: String::new(),
            };
        }
    }

    /// An event arrives: the worker looks.
    fn look(&mut self) {
        self.runtime = self.world.clone();
    }

    fn exit_by_name(&mut self, name: &str, code: i32) {
        if let Some(id) = self.world.latest(name).map(|c| c.id.clone()) {
            self.exit(&id, code);
            self.look();
        }
    }

    fn delete(&mut self, grace: i64) {
        self.pod.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
    }

    /// Runs until nothing is to do, letting time pass where the plan waits. Panics when that does not end.
    fn settle(&mut self, until: Nanos) {
        for _ in 0..400 {
            let begun = self.turn();
            if let Some(key) = self.inflight.keys().next().cloned() {
                self.now += SECOND / 1000;
                self.finish(&key, true);
            } else if begun == 0 {
                match self.wake_at {
                    Some(at) if at > self.now && at <= until => self.now = at,
                    _ => return,
                }
            }
        }
        panic!("no fixed point after 400 turns; lately {:?}", &self.log[self.log.len().saturating_sub(12)..]);
    }

    fn running(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.world.containers.iter().filter(|c| c.is_running()).map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        names
    }
}

#[test]
fn a_new_pod_gets_its_sandbox_and_containers_and_then_nothing_more() {
    let mut sim = Sim::new(make_pod(&[], &["a", "b"], "Always"));
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b"]);
    assert_eq!(sim.turn(), 0, "a settled pod asks for nothing");
}

#[test]
fn init_containers_run_one_after_the_other_before_regular_ones() {
    let mut sim = Sim::new(make_pod(&[("i1", false), ("i2", false)], &["a"], "Always"));
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i1"]);
    sim.exit_by_name("i1", 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i2"]);
    sim.exit_by_name("i2", 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a"]);
}

#[test]
fn a_sidecar_holds_the_next_container_until_it_has_started_and_stops_last() {
    let mut sim = Sim::new(make_pod(&[("proxy", true), ("i", false)], &["a"], "Always"));
    sim.probes.insert("proxy".into(), ProbeView { started: false, ready: false, failure: None });
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["proxy"]);
    sim.probes.insert("proxy".into(), ProbeView { started: true, ready: true, failure: None });
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i", "proxy"]);
    sim.exit_by_name("i", 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "proxy"]);
    sim.delete(30);
    sim.turn();
    let kills = sim.inflight.values().filter_map(|op| match op {
        Op::KillContainer { container, .. } => Some(container.as_str()),
        _ => None,
    });
    assert_eq!(kills.collect::<Vec<_>>(), ["a"], "the sidecar outlives the containers that it serves");
    sim.settle(sim.now);
    assert!(sim.running().is_empty());
}

#[test]
fn a_crashing_container_restarts_at_once_and_then_after_ten_and_twenty_seconds() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    for wait in [0, 10, 20, 40] {
        sim.exit_by_name("a", 1);
        let ended = sim.now;
        sim.settle(ended);
        if wait > 0 {
            assert!(sim.running().is_empty(), "still waiting {wait} s");
            assert_eq!(sim.wake_at, Some(ended + wait * SECOND));
            sim.settle(ended + wait * SECOND);
        }
        assert_eq!(sim.running(), ["a"]);
        assert!(sim.now - ended < (wait + 1) * SECOND);
    }
    assert_eq!(sim.world.latest("a").map(|c| c.attempt), Some(4));
    assert!(sim.world.containers.len() <= 2, "one dead container is kept, not {}", sim.world.containers.len());
}

#[test]
fn an_evicted_pod_is_stopped_within_its_grace_and_keeps_the_reason() {
    let mut sim = Sim::new(make_pod(&[], &["a", "b"], "Always"));
    sim.settle(sim.now);
    let message = "Usage of EmptyDir volume \"x\" exceeds the limit \"1Mi\". ".to_owned();
    sim.memory.eviction =
        Some(Eviction { why: Ousting::Limit("emptydirfs.limit"), message: message.clone(), grace_seconds: 1 });
    sim.log.clear();
    sim.settle(sim.now);
    let graces: Vec<i64> = sim
        .log
        .iter()
        .filter_map(|op| match op {
            Op::KillContainer { grace_seconds, .. } => Some(*grace_seconds),
            _ => None,
        })
        .collect();
    assert_eq!(graces, [1, 1]);
    let Lifecycle::Terminated(termination) = &sim.lifecycle else { panic!("{:?}", sim.lifecycle) };
    assert_eq!(termination.cause, Cause::Failed { reason: "Evicted".into(), message });
    assert_eq!(sim.runtime.containers.len(), 2, "their records stay until somebody deletes the pod");
}

#[test]
fn delete_during_pull_cancels_the_pull() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.turn();
    sim.finish(&OpKey::Inspect, true);
    sim.turn();
    assert!(sim.inflight.contains_key(&OpKey::Image(ImageUse::Container("a".into()), "img".into())));
    sim.delete(30);
    sim.turn();
    assert!(!sim.inflight.contains_key(&OpKey::Image(ImageUse::Container("a".into()), "img".into())));
    sim.settle(sim.now);
    assert!(sim.world.is_empty(), "what was being created is removed: {:?}", sim.world);
}

#[test]
fn a_second_delete_with_less_grace_kills_sooner() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    sim.delete(30);
    sim.turn();
    sim.now += 5 * SECOND;
    sim.delete(1);
    sim.turn();
    let graces = sim.inflight.keys().filter_map(|key| match key {
        OpKey::Kill(_, grace) => Some(*grace),
        _ => None,
    });
    assert_eq!(graces.min(), Some(1));
}

#[test]
fn a_container_that_never_restarts_ends_the_pod_and_keeps_its_record() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Never"));
    sim.settle(sim.now);
    sim.exit_by_name("a", 3);
    sim.settle(sim.now);
    assert!(matches!(sim.lifecycle, Lifecycle::Terminated(_)), "{:?}", sim.lifecycle);
    assert_eq!(sim.world.containers.len(), 1, "logs and exit code stay until the pod is deleted");
    sim.delete(0);
    sim.settle(sim.now);
    sim.wanted = false;
    sim.settle(sim.now);
    assert_eq!(sim.lifecycle, Lifecycle::Removed);
    assert!(sim.world.is_empty());
}

#[test]
fn a_dead_sandbox_is_replaced_and_its_containers_run_again() {
    let mut sim = Sim::new(make_pod(&[("i", false)], &["a"], "Always"));
    sim.settle(sim.now);
    sim.exit_by_name("i", 0);
    sim.settle(sim.now);
    let first = sim.world.sandbox().map(|s| s.id.clone());
    for sandbox in &mut sim.world.sandboxes {
        sandbox.ready = false;
    }
    sim.look();
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["i"], "initialization starts over in the new sandbox");
    sim.exit_by_name("i", 0);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a"]);
    assert_ne!(sim.world.sandbox().map(|s| s.id.clone()), first);
    assert_eq!(sim.world.sandbox().map(|s| s.attempt), Some(1));
}

#[test]
fn a_failing_liveness_probe_restarts_the_container_within_the_probes_own_grace() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.settle(sim.now);
    let failure =
        ProbeFailure { message: "Container a failed liveness probe, will be restarted".into(), grace_seconds: Some(3) };
    sim.probes.insert("a".into(), ProbeView { started: true, ready: false, failure: Some(failure) });
    sim.turn();
    assert!(sim.inflight.keys().any(|key| matches!(key, OpKey::Kill(_, 3))));
    sim.probes.clear();
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a"]);
    assert_eq!(sim.world.latest("a").map(|c| c.attempt), Some(1));
}

#[test]
fn a_new_image_in_the_spec_restarts_only_that_container() {
    let mut sim = Sim::new(make_pod(&[], &["a", "b"], "Always"));
    sim.settle(sim.now);
    let b = sim.world.latest("b").map(|c| c.id.clone());
    if let Some(spec) = &mut sim.pod.spec {
        spec.containers[0].image = Some("img:2".into());
    }
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b"]);
    assert_eq!(sim.world.latest("a").map(|c| c.attempt), Some(1));
    assert_eq!(sim.world.latest("b").map(|c| c.id.clone()), b);
}

#[test]
fn a_post_start_hook_holds_back_the_containers_after_it() {
    let mut pod = make_pod(&[], &["a", "b"], "Always");
    if let Some(spec) = &mut pod.spec {
        let hook = Some(LifecycleHandler::default());
        spec.containers[0].lifecycle = Some(Hooks { post_start: hook, ..Hooks::default() });
    }
    let mut sim = Sim::new(pod);
    while !sim.inflight.contains_key(&OpKey::Start("a".into())) {
        sim.turn();
        if let Some(key) = sim.inflight.keys().find(|k| !matches!(k, OpKey::Start(_))).cloned() {
            sim.finish(&key, true);
        }
    }
    sim.turn();
    assert!(!sim.inflight.contains_key(&OpKey::Start("b".into())));
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a", "b"]);
}

#[test]
fn an_active_deadline_fails_the_pod_when_it_runs_out() {
    let mut pod = make_pod(&[], &["a"], "Always");
    if let Some(spec) = &mut pod.spec {
        spec.active_deadline_seconds = Some(5);
    }
    let mut sim = Sim::new(pod);
    sim.settle(sim.now);
    assert_eq!(sim.running(), ["a"]);
    let deadline = 1_000 * SECOND + 5 * SECOND;
    sim.settle(deadline);
    assert!(sim.running().is_empty());
    let cause = sim.lifecycle.termination().map(|t| format!("{:?}", t.cause)).unwrap_or_default();
    assert!(cause.contains("DeadlineExceeded"), "{cause}");
}
