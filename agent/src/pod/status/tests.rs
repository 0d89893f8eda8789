//! Tables of phase, conditions and container statuses, one row for each situation that people see in `kubectl get pod`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStatus, Pod, PodCondition, PodIP,
    PodReadinessGate, PodSpec, PodStatus,
};

use super::{Context, status, time};
use crate::cgroup::CfsQuota;
use crate::cgroup::plan::pod_values;
use crate::cri::{ContainerState, ContainerView, Nanos, PodRuntime, SandboxView};
use crate::ids::{ContainerId, SandboxId};
use crate::pod::action::{Failed, OpKey};
use crate::pod::lifecycle::{Cause, Lifecycle, SECOND, Termination};
use crate::pod::memory::{ContainerMemory, Memory, Step};
use crate::pod::resize::State;
use crate::pod::view::{PodView, ProbeView};

mod resources;
mod restarts;

const NOW: Nanos = 1_000 * SECOND;

/// Everything that a status is computed from.
struct Scene {
    pod: Pod,
    lifecycle: Lifecycle,
    runtime: PodRuntime,
    memory: Memory,
    inflight: BTreeSet<OpKey>,
    probes: BTreeMap<String, ProbeView>,
    last: PodStatus,
    resize: State,
    now: Nanos,
}

fn make_container(name: &str) -> Container {
    Container { name: name.into(), image: Some("img:1".into()), ..Container::default() }
}

/// A pod of regular containers; names in `inits` that end in `*` are sidecars.
fn make_pod(inits: &[&str], apps: &[&str], policy: &str) -> Pod {
    let init = |name: &&str| Container {
        restart_policy: name.ends_with('*').then(|| "Always".to_owned()),
        ..make_container(name.trim_end_matches('*'))
    };
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some("u".into());
    pod.spec = Some(PodSpec {
        init_containers: Some(inits.iter().map(init).collect()),
        containers: apps.iter().map(|name| make_container(name)).collect(),
        restart_policy: Some(policy.into()),
        ..PodSpec::default()
    });
    pod
}

fn make_view(name: &str, attempt: u32, state: ContainerState) -> ContainerView {
    ContainerView {
        id: ContainerId::new(format!("{name}-{attempt}")),
        name: name.into(),
        sandbox: SandboxId::new("s"),
        attempt,
        state,
        created_at: i64::from(attempt),
        image: "img:1".into(),
        image_ref: "sha256:abc".into(),
        hash: None,
        termination_message: None,
        message_falls_back_to_logs: false,
        log_path: String::new(),
        user: None,
        stop_signal: None,
        resources: None,
    }
}

fn ended(exit_code: i32) -> ContainerState {
    let reason = if exit_code == 0 { "Completed" } else { "Error" }.to_owned();
    ContainerState::Exited {
        started_at: NOW - 20 * SECOND,
        finished_at: NOW - 10 * SECOND,
        exit_code,
        reason,
        message: String::new(),
    }
}

fn terminating(cause: Cause) -> Lifecycle {
    Lifecycle::Terminating(Termination { since: NOW, grace_seconds: 30, cause })
}

fn terminated(cause: Cause) -> Lifecycle {
    Lifecycle::Terminated(Termination { since: NOW, grace_seconds: 30, cause })
}

fn evicted() -> Cause {
    Cause::Failed { reason: "Evicted".into(), message: "low on memory".into() }
}

impl Scene {
    fn new(pod: Pod) -> Self {
        let sandbox = SandboxView {
            id: SandboxId::new("s"),
            attempt: 0,
            ready: true,
            created_at: 1,
            ips: vec!["10.0.0.5".into()],
            host_network: false,
        };
        Self {
            pod,
            lifecycle: Lifecycle::Syncing,
            runtime: PodRuntime { sandboxes: vec![sandbox], containers: Vec::new() },
            memory: Memory { observed: true, ..Memory::default() },
            inflight: BTreeSet::new(),
            probes: BTreeMap::new(),
            last: PodStatus::default(),
            resize: State::default(),
            now: NOW,
        }
    }

    /// A pod with one regular container, `app`.
    fn app(policy: &str) -> Self {
        Self::new(make_pod(&[], &["app"], policy))
    }

    fn running(mut self, name: &str, started: bool, ready: bool) -> Self {
        let state = ContainerState::Running { started_at: NOW - 5 * SECOND };
        self.runtime.containers.insert(0, make_view(name, 0, state));
        self.probes.insert(name.into(), ProbeView { started, ready, failure: None });
        self
    }

    fn exited(mut self, name: &str, attempt: u32, code: i32) -> Self {
        self.runtime.containers.insert(0, make_view(name, attempt, ended(code)));
        self
    }

    fn crash_delay(mut self, name: &str, seconds: i64) -> Self {
        let memory =
            ContainerMemory { crash_delay: seconds * SECOND, crash_updated: NOW - 20 * SECOND, ..<_>::default() };
        self.memory.containers.insert(name.into(), memory);
        self
    }

    fn lifecycle(mut self, lifecycle: Lifecycle) -> Self {
        self.lifecycle = lifecycle;
        self
    }

    /// What was published before says that the container ran.
    fn last_running(mut self, name: &str) -> Self {
        let state = ApiState { running: Some(ContainerStateRunning::default()), ..ApiState::default() };
        self.last.container_statuses = Some(vec![ContainerStatus {
            name: name.into(),
            container_id: Some("containerd://old".into()),
            restart_count: 2,
            state: Some(state),
            ..ContainerStatus::default()
        }]);
        self
    }

    fn status(&self) -> PodStatus {
        let view = PodView {
            pod: &self.pod,
            wanted: true,
            lifecycle: &self.lifecycle,
            runtime: &self.runtime,
            memory: &self.memory,
            inflight: &self.inflight,
            probes: &self.probes,
            started_at: NOW - 60 * SECOND,
        };
        let host_ips = ["192.0.2.10".to_owned()];
        let pod_values = pod_values(&self.pod, CfsQuota::Enforced { period: 100_000 }, None);
        let context = Context {
            last: &self.last,
            host_ips: &host_ips,
            runtime_name: "containerd",
            qos_class: "BestEffort",
            pod_values: &pod_values,
            resize: &self.resize,
            recursive_read_only: false,
            now: self.now,
        };
        status(&view, &context)
    }
}

fn container<'a>(status: &'a PodStatus, name: &str) -> &'a ContainerStatus {
    let all = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    all.into_iter().find(|c| c.name == name).unwrap()
}

/// `running`, `waiting REASON` or `ended CODE REASON`.
fn say(state: Option<&ApiState>) -> String {
    let Some(state) = state else { return "none".into() };
    match (&state.running, &state.waiting, &state.terminated) {
        (Some(_), None, None) => "running".into(),
        (None, Some(waiting), None) => format!("waiting {}", waiting.reason.clone().unwrap_or_default()),
        (None, None, Some(end)) => format!("ended {} {}", end.exit_code, end.reason.clone().unwrap_or_default()),
        other => panic!("not one state: {other:?}"),
    }
}

fn state(status: &PodStatus, name: &str) -> String {
    say(container(status, name).state.as_ref())
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap()
}

/// `True`, or `False REASON: MESSAGE`.
fn verdict(status: &PodStatus, type_: &str) -> String {
    let condition = condition(status, type_);
    let mut text = condition.status.clone();
    if let Some(reason) = &condition.reason {
        text += &format!(" {reason}");
    }
    if let Some(message) = &condition.message {
        text += &format!(": {message}");
    }
    text
}

#[test]
fn phases_follow_the_containers() {
    let with_init = |policy: &str| Scene::new(make_pod(&["init"], &["app"], policy));
    let with_sidecar = || Scene::new(make_pod(&["side*"], &["app"], "Never"));
    let two = |policy: &str| Scene::new(make_pod(&[], &["a", "b"], policy));
    let table = [
        ("nothing was started", Scene::app("Always"), "Pending"),
        ("running", Scene::app("Always").running("app", true, true), "Running"),
        ("running, not ready", Scene::app("Always").running("app", false, false), "Running"),
        ("one of two runs", two("Always").running("a", true, true), "Pending"),
        ("one of two has ended", two("Never").running("a", true, true).exited("b", 0, 1), "Running"),
        ("crashed, to run again", Scene::app("Always").exited("app", 0, 1), "Running"),
        ("completed, to run again", Scene::app("Always").exited("app", 0, 0), "Running"),
        ("OnFailure, succeeded", Scene::app("OnFailure").exited("app", 0, 0), "Succeeded"),
        ("OnFailure, failed", Scene::app("OnFailure").exited("app", 0, 1), "Running"),
        ("Never, succeeded", Scene::app("Never").exited("app", 0, 0), "Succeeded"),
        ("Never, failed", Scene::app("Never").exited("app", 0, 3), "Failed"),
        ("one of two failed", two("Never").exited("a", 0, 0).exited("b", 0, 1), "Failed"),
        ("init runs", with_init("Always").running("init", true, true), "Pending"),
        ("init failed, to run again", with_init("Always").exited("init", 0, 1), "Pending"),
        ("init failed for good", with_init("Never").exited("init", 0, 1), "Failed"),
        ("init done, app runs", with_init("Never").exited("init", 0, 0).running("app", true, true), "Running"),
        ("sidecar not started", with_sidecar().running("side", false, false), "Pending"),
        ("sidecar and app run", with_sidecar().running("side", true, true).running("app", true, true), "Running"),
        ("app done, sidecar runs", with_sidecar().running("side", true, true).exited("app", 0, 0), "Running"),
        ("sidecar killed last", with_sidecar().exited("side", 0, 137).exited("app", 0, 0), "Succeeded"),
        (
            "being stopped",
            Scene::app("Always").running("app", true, true).lifecycle(terminating(Cause::Deleted)),
            "Running",
        ),
        ("stopped, failed", Scene::app("Always").exited("app", 0, 143).lifecycle(terminated(Cause::Deleted)), "Failed"),
        (
            "stopped, succeeded",
            Scene::app("Always").exited("app", 0, 0).lifecycle(terminated(Cause::Deleted)),
            "Succeeded",
        ),
        ("stopped before it started", Scene::app("Always").lifecycle(terminated(Cause::Deleted)), "Failed"),
    ];
    for (situation, scene, phase) in table {
        assert_eq!(scene.status().phase.as_deref(), Some(phase), "{situation}");
    }
}

#[test]
fn a_container_that_never_started_waits_for_its_creation_or_for_init() {
    let status = Scene::app("Always").status();
    let app = container(&status, "app");
    assert_eq!(state(&status, "app"), "waiting ContainerCreating");
    assert_eq!((app.ready, app.started, app.restart_count), (false, Some(false), 0));
    assert_eq!(app.image, "img:1");
    assert_eq!(app.container_id, None);
    let with_init = Scene::new(make_pod(&["init"], &["app"], "Always")).status();
    assert_eq!(state(&with_init, "app"), "waiting PodInitializing");
}

#[test]
fn a_running_container_is_ready_when_its_probes_say_so() {
    for (started, ready, expected) in
        [(true, true, true), (true, false, false), (false, true, false), (false, false, false)]
    {
        let status = Scene::app("Always").running("app", started, ready).status();
        let app = container(&status, "app");
        assert_eq!((app.started, app.ready), (Some(started), expected), "started {started} ready {ready}");
        assert_eq!(state(&status, "app"), "running");
        assert_eq!(app.container_id.as_deref(), Some("containerd://app-0"));
        assert_eq!(app.image_id, "sha256:abc");
        let wanted = if expected { "True" } else { "False ContainersNotReady: containers with unready status: [app]" };
        assert_eq!(verdict(&status, "Ready"), wanted);
        assert_eq!(verdict(&status, "ContainersReady"), wanted);
    }
}

#[test]
fn a_crash_back_off_shows_the_last_end_and_the_delay() {
    let status = Scene::app("Always").exited("app", 2, 1).exited("app", 3, 7).crash_delay("app", 160).status();
    let app = container(&status, "app");
    assert_eq!(state(&status, "app"), "waiting CrashLoopBackOff");
    assert_eq!(say(app.last_state.as_ref()), "ended 7 Error");
    assert_eq!(app.restart_count, 3);
    let message = app.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.message.clone());
    assert_eq!(message.as_deref(), Some("back-off 2m40s restarting failed container=app pod=p_ns(u)"));
}

#[test]
fn the_first_end_is_shown_as_it_is_because_the_restart_is_immediate() {
    let status = Scene::app("Always").exited("app", 0, 1).status();
    assert_eq!(state(&status, "app"), "ended 1 Error");
    let mut starting = Scene::app("Always").exited("app", 3, 1).crash_delay("app", 10);
    starting.inflight.insert(OpKey::Start("app".into()));
    assert_eq!(state(&starting.status(), "app"), "ended 1 Error", "the back-off is over while it is being started");
}

#[test]
fn what_keeps_a_container_from_starting_is_its_waiting_reason() {
    let failed =
        |reason: &'static str| Failed { reason, message: "no such host".into(), retry_at: NOW + SECOND, delay: SECOND };
    let of_image = |failed| ContainerMemory {
        image: Step::Failed(failed),
        image_name: "img:1".into(),
        ..ContainerMemory::default()
    };
    let image = |reason| of_image(failed(reason));
    // Six seconds ago, with a delay of ten.
    let waiting = |reason| of_image(Failed { retry_at: NOW + 4 * SECOND, delay: 10 * SECOND, ..failed(reason) });
    let start = |reason| ContainerMemory { start: Some(failed(reason)), ..ContainerMemory::default() };
    let table = [
        (image("ErrImagePull"), "ErrImagePull", "no such host"),
        (waiting("ErrImagePull"), "ImagePullBackOff", "Back-off pulling image \"img:1\": ErrImagePull: no such host"),
        (
            waiting("RegistryUnavailable"),
            "ImagePullBackOff",
            "Back-off pulling image \"img:1\": RegistryUnavailable: no such host",
        ),
        (waiting("InvalidImageName"), "InvalidImageName", "no such host"),
        (image("ErrImageNeverPull"), "ErrImageNeverPull", "no such host"),
        (start("CreateContainerConfigError"), "CreateContainerConfigError", "no such host"),
        (start("RunContainerError"), "RunContainerError", "no such host"),
    ];
    for (memory, reason, message) in table {
        let mut scene = Scene::app("Always");
        scene.memory.containers.insert("app".into(), memory);
        let status = scene.status();
        let waiting = container(&status, "app").state.as_ref().and_then(|s| s.waiting.clone()).unwrap();
        assert_eq!((waiting.reason.as_deref(), waiting.message.as_deref()), (Some(reason), Some(message)));
        assert_eq!(status.phase.as_deref(), Some("Pending"), "{reason}");
    }
}

#[test]
fn a_completed_pod_is_initialized_and_not_ready() {
    let status = Scene::app("Never").exited("app", 0, 0).lifecycle(terminated(Cause::Completed)).status();
    assert_eq!(state(&status, "app"), "ended 0 Completed");
    assert_eq!(verdict(&status, "Initialized"), "True PodCompleted");
    assert_eq!(verdict(&status, "Ready"), "False PodCompleted");
    assert_eq!(verdict(&status, "ContainersReady"), "False PodCompleted");
}

#[test]
fn a_failed_init_container_holds_initialization() {
    let pod = || Scene::new(make_pod(&["one", "two"], &["app"], "Never"));
    let failed = pod().exited("one", 0, 1).status();
    assert_eq!(
        verdict(&failed, "Initialized"),
        "False ContainersNotInitialized: containers with incomplete status: [one two]"
    );
    assert_eq!(verdict(&failed, "Ready"), "False PodFailed");
    assert_eq!(state(&failed, "app"), "waiting PodInitializing");
    let second = pod().exited("one", 0, 0).running("two", true, true).status();
    assert!(container(&second, "one").ready, "an init container that succeeded is ready");
    assert!(!container(&second, "two").ready);
    assert_eq!(
        verdict(&second, "Initialized"),
        "False ContainersNotInitialized: containers with incomplete status: [two]"
    );
}

#[test]
fn a_forgotten_init_container_counts_as_succeeded_once_the_app_exists() {
    let status = Scene::new(make_pod(&["init"], &["app"], "Always")).running("app", true, true).status();
    assert_eq!(state(&status, "init"), "ended 0 Completed");
    assert!(container(&status, "init").ready);
    assert_eq!(verdict(&status, "Initialized"), "True");
}

#[test]
fn a_sidecar_holds_initialization_until_started_and_readiness_until_ready() {
    let scene = || Scene::new(make_pod(&["side*"], &["app"], "Always"));
    let starting = scene().running("side", false, false).status();
    assert_eq!(
        verdict(&starting, "Initialized"),
        "False ContainersNotInitialized: containers with incomplete status: [side]"
    );
    let unready = scene().running("side", true, false).running("app", true, true).status();
    assert_eq!(verdict(&unready, "Initialized"), "True");
    assert_eq!(verdict(&unready, "Ready"), "False ContainersNotReady: containers with unready status: [side]");
    let ready = scene().running("side", true, true).running("app", true, true).status();
    assert_eq!(verdict(&ready, "Ready"), "True");
}

#[test]
fn a_pod_keeps_its_addresses_while_its_sandbox_goes_away() {
    let mut scene = Scene::app("Always").running("app", true, true);
    assert_eq!(scene.status().pod_ip.as_deref(), Some("10.0.0.5"));
    scene.last = scene.status();
    scene.runtime.sandboxes[0].ready = false;
    assert_eq!(scene.status().pod_ips, None, "a new sandbox has no address before it is ready");
    scene.lifecycle = terminating(Cause::Deleted);
    assert_eq!(scene.status().pod_ips, Some(vec![PodIP { ip: "10.0.0.5".into() }]));
    assert_eq!(
        verdict(&scene.status(), "PodReadyToStartContainers"),
        "False PodSandboxNotReady: pod sandbox is not ready"
    );
}

#[test]
fn host_network_pods_have_the_addresses_of_the_node() {
    let mut scene = Scene::app("Always");
    scene.pod.spec.as_mut().unwrap().host_network = Some(true);
    scene.runtime.sandboxes[0].host_network = true;
    scene.runtime.sandboxes[0].ips.clear();
    let status = scene.status();
    assert_eq!(status.pod_ip.as_deref(), Some("192.0.2.10"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.10"));
    assert_eq!(verdict(&status, "PodReadyToStartContainers"), "True");
}

#[test]
fn addresses_have_the_nodes_primary_family_first_and_one_of_each() {
    let ips = ["10.0.0.5", "fd00::5", "10.0.0.6"].map(str::to_owned);
    assert_eq!(super::sort_by_family(&ips, Some(&"192.0.2.1".to_owned())), ["10.0.0.5", "fd00::5"]);
    assert_eq!(super::sort_by_family(&ips, Some(&"2001:db8::1".to_owned())), ["fd00::5", "10.0.0.5"]);
    assert_eq!(super::sort_by_family(&ips[1..2], None), ["fd00::5"]);
}

#[test]
fn a_lost_container_is_a_restart_while_the_pod_is_to_run() {
    let status = Scene::app("Always").last_running("app").status();
    let app = container(&status, "app");
    assert_eq!(state(&status, "app"), "waiting ContainerCreating");
    assert_eq!(say(app.last_state.as_ref()), "ended 137 ContainerStatusUnknown");
    assert_eq!(app.restart_count, 3);
}

#[test]
fn a_lost_container_of_a_pod_that_stops_has_ended_and_does_not_restart() {
    let status = Scene::app("Always").last_running("app").lifecycle(terminating(Cause::Deleted)).status();
    assert_eq!(say(container(&status, "app").last_state.as_ref()), "ended 137 ContainerStatusUnknown");
    assert_eq!(container(&status, "app").restart_count, 2);
    let stopped = Scene::app("Always").last_running("app").lifecycle(terminated(Cause::Deleted)).status();
    assert_eq!(state(&stopped, "app"), "ended 137 ContainerStatusUnknown");
}

#[test]
fn nothing_is_lost_before_the_runtime_was_looked_at() {
    let mut scene = Scene::app("Always").last_running("app");
    scene.memory.observed = false;
    let status = scene.status();
    assert_eq!(container(&status, "app").last_state, None);
    assert_eq!(container(&status, "app").restart_count, 2);
}

#[test]
fn what_was_said_of_a_collected_container_stays_true() {
    let mut scene = Scene::app("Never").exited("app", 4, 3);
    scene.last = scene.status();
    scene.runtime.containers.clear();
    assert_eq!(scene.status().container_statuses, scene.last.container_statuses);
    assert_eq!(scene.status().phase.as_deref(), Some("Failed"));
}

#[test]
fn a_transition_time_moves_only_with_the_status() {
    let mut scene = Scene::app("Always").running("app", true, false);
    let at = |status: &PodStatus, type_: &str| condition(status, type_).last_transition_time.clone();
    scene.last = scene.status();
    scene.now = NOW + 60 * SECOND;
    let same = scene.status();
    assert_eq!(same, scene.last, "time alone changes nothing");
    scene.probes.insert("app".into(), ProbeView { started: true, ready: true, failure: None });
    let ready = scene.status();
    assert_eq!(at(&ready, "Ready"), Some(time(NOW + 60 * SECOND)));
    assert_eq!(at(&ready, "Initialized"), Some(time(NOW)));
}

#[test]
fn a_terminal_phase_never_changes() {
    for phase in ["Succeeded", "Failed"] {
        let mut scene = Scene::app("Always").running("app", true, true);
        scene.last = PodStatus {
            phase: Some(phase.into()),
            reason: Some("Why".into()),
            message: Some("because".into()),
            ..PodStatus::default()
        };
        let status = scene.status();
        assert_eq!(status.phase.as_deref(), Some(phase));
        assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Why"), Some("because")));
    }
}

#[test]
fn a_pod_that_the_node_gives_up_on_fails_once_nothing_of_it_runs() {
    let running = Scene::app("Always").running("app", true, true).lifecycle(terminating(evicted())).status();
    assert_eq!((running.phase.as_deref(), running.reason.as_deref()), (Some("Running"), None));
    let stopped = Scene::app("Always").exited("app", 0, 0).lifecycle(terminated(evicted())).status();
    assert_eq!((stopped.phase.as_deref(), stopped.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert_eq!(stopped.message.as_deref(), Some("low on memory"));
}

#[test]
fn readiness_gates_hold_ready_but_not_containers_ready() {
    let gate = |value: Option<&str>| {
        let mut scene = Scene::app("Always").running("app", true, true);
        let gates = vec![PodReadinessGate { condition_type: "x/lb".into() }];
        scene.pod.spec.as_mut().unwrap().readiness_gates = Some(gates);
        let foreign = value.map(|v| PodCondition { type_: "x/lb".into(), status: v.into(), ..PodCondition::default() });
        scene.pod.status = Some(PodStatus { conditions: foreign.map(|c| vec![c]), ..PodStatus::default() });
        scene.status()
    };
    let table = [
        (None, "False ReadinessGatesNotReady: corresponding condition of pod readiness gate \"x/lb\" does not exist."),
        (
            Some("False"),
            "False ReadinessGatesNotReady: the status of pod readiness gate \"x/lb\" is not \"True\", but False",
        ),
        (Some("True"), "True"),
    ];
    for (value, expected) in table {
        let status = gate(value);
        assert_eq!(verdict(&status, "Ready"), expected);
        assert_eq!(verdict(&status, "ContainersReady"), "True");
    }
    let kept = gate(Some("False"));
    assert_eq!(condition(&kept, "x/lb").status, "False", "conditions of others stay");
}

#[test]
fn a_sandbox_is_needed_before_containers_may_start() {
    let mut scene = Scene::app("Always");
    assert_eq!(verdict(&scene.status(), "PodReadyToStartContainers"), "True");
    scene.runtime.sandboxes[0].ips.clear();
    let no_ip = "False PodSandboxNotReady: pod sandbox has no IP address";
    assert_eq!(verdict(&scene.status(), "PodReadyToStartContainers"), no_ip);
    scene.runtime.sandboxes.clear();
    let none = "False PodSandboxNotReady: no pod sandbox exists";
    assert_eq!(verdict(&scene.status(), "PodReadyToStartContainers"), none);
}

#[test]
fn the_start_time_and_the_qos_class_are_decided_once() {
    let mut scene = Scene::app("Always");
    assert_eq!(scene.status().start_time, Some(time(NOW - 60 * SECOND)));
    assert_eq!(scene.status().qos_class.as_deref(), Some("BestEffort"));
    scene.last.start_time = Some(time(7 * SECOND));
    scene.last.qos_class = Some("Burstable".into());
    assert_eq!(scene.status().start_time, Some(time(7 * SECOND)));
    assert_eq!(scene.status().qos_class.as_deref(), Some("Burstable"));
}
