//! Statuses around restarts: of a whole pod, after a failed start, and of what the runtime does not know.

use super::*;
use crate::pod::memory::Doubt;

fn rule(action: &str) -> serde_json::Value {
    serde_json::json!([{ "action": action, "exitCodes": { "operator": "In", "values": [42] } }])
}

/// A pod in which an end of `app` with 42 makes everything start over.
fn with_reset_rule() -> Scene {
    let mut pod = make_pod(&["init"], &["app", "other"], "Never");
    let app = &mut pod.spec.as_mut().unwrap().containers[0];
    app.restart_policy = Some("Never".into());
    app.restart_policy_rules = serde_json::from_value(rule("RestartAllContainers")).unwrap();
    Scene::new(pod)
}

#[test]
fn a_pod_that_starts_over_says_so_until_its_containers_are_gone() {
    let mut scene = with_reset_rule().exited("init", 0, 0).running("app", true, true).running("other", true, true);
    scene.last = scene.status();
    assert_eq!(verdict(&scene.last, "AllContainersRestarting"), "False");
    let mut scene = Scene { last: scene.last, ..with_reset_rule() }
        .exited("init", 0, 0)
        .exited("app", 0, 42)
        .running("other", true, true);
    scene.last = scene.status();
    assert_eq!(
        verdict(&scene.last, "AllContainersRestarting"),
        "True RestartAllContainersStarted: container exited with restart policy rule"
    );
    assert_eq!(condition(&scene.last, "AllContainersRestarting").observed_generation, None);
    // The others are gone, then the cause as well.
    scene.runtime.containers.retain(|c| c.name == "app");
    scene.last = scene.status();
    let shown = |status: &PodStatus, name: &str| {
        let container = container(status, name);
        (state(status, name), say(container.last_state.as_ref()), container.restart_count)
    };
    let gone = ("waiting RestartingAllContainers".to_owned(), "ended 137 RestartingAllContainers".to_owned(), 1);
    assert_eq!(shown(&scene.last, "other"), gone);
    assert_eq!(shown(&scene.last, "init"), gone);
    assert_eq!(scene.last.phase.as_deref(), Some("Running"));
    assert_eq!(verdict(&scene.last, "Initialized"), "True");
    scene.runtime.containers.clear();
    scene.last = scene.status();
    assert_eq!(shown(&scene.last, "app"), gone);
    assert_eq!(verdict(&scene.last, "AllContainersRestarting"), "False");
    assert_eq!(verdict(&scene.last, "Initialized"), "True", "what was initialized stays so");
    assert_eq!(scene.last.phase.as_deref(), Some("Running"), "not Pending again");
    // And they run again.
    scene.runtime.containers.push(make_view("init", 1, ended(0)));
    scene.last = scene.status();
    assert_eq!(shown(&scene.last, "init"), ("ended 0 Completed".to_owned(), gone.1.clone(), 1));
    assert_eq!(shown(&scene.last, "app"), ("waiting PodInitializing".to_owned(), gone.1, 1));
    assert_eq!(scene.status(), scene.last, "time alone changes nothing");
}

#[test]
fn without_such_a_rule_there_is_no_such_condition() {
    let status = Scene::app("Always").status();
    assert!(status.conditions.iter().flatten().all(|c| c.type_ != "AllContainersRestarting"));
}

#[test]
fn a_failed_post_start_hook_is_the_reason_first_and_then_the_back_off() {
    let failed = Failed { reason: "PostStartHookError", message: "exit 3".into(), retry_at: NOW - SECOND, delay: 0 };
    let mut scene = Scene::app("Always").exited("app", 1, 137).crash_delay("app", 20);
    scene.memory.containers.get_mut("app").unwrap().start = Some(failed);
    assert_eq!(state(&scene.status(), "app"), "waiting PostStartHookError");
    assert_eq!(say(container(&scene.status(), "app").last_state.as_ref()), "ended 137 Error");
    scene.now = NOW + 2 * SECOND;
    assert_eq!(state(&scene.status(), "app"), "waiting CrashLoopBackOff");
    let never = Scene { memory: scene.memory, ..Scene::app("Never") }.exited("app", 1, 137).status();
    assert_eq!(state(&never, "app"), "ended 137 Error", "one that does not restart waits for nothing");
}

#[test]
fn the_end_before_stays_when_the_runtime_has_forgotten_it_and_the_count_never_falls() {
    let mut scene = Scene::app("Always").exited("app", 3, 7);
    scene.last = scene.status();
    let mut scene = Scene { last: scene.last, ..Scene::app("Always") }.running("app", true, true);
    scene.runtime.containers[0].id = ContainerId::new("app-new");
    let status = scene.status();
    assert_eq!(say(container(&status, "app").last_state.as_ref()), "ended 7 Error");
    assert_eq!(container(&status, "app").restart_count, 3);
    scene.last = status;
    assert_eq!(scene.status(), scene.last);
}

#[test]
fn a_container_that_the_runtime_is_not_sure_about_is_what_it_was_until_a_second_look() {
    let mut scene = Scene::app("Always").running("app", true, true);
    scene.last = scene.status();
    scene.runtime.containers[0].state = ContainerState::Unknown;
    scene.memory.doubts.insert("app-0".into(), Doubt { since: NOW, looks: 1 });
    assert_eq!(scene.status().container_statuses, scene.last.container_statuses);
    assert_eq!(verdict(&scene.status(), "Ready"), "True");
    scene.memory.doubts.insert("app-0".into(), Doubt { since: NOW, looks: 2 });
    scene.last = scene.status();
    assert_eq!(state(&scene.last, "app"), "ended 137 ContainerStatusUnknown");
    assert_eq!(
        (container(&scene.last, "app").restart_count, verdict(&scene.last, "Ready").as_str()),
        (1, "False ContainersNotReady: containers with unready status: [app]")
    );
    assert_eq!(scene.status(), scene.last);
}

#[test]
fn whatever_has_no_end_when_the_pod_has_ended_gets_one() {
    let stopped = |scene: Scene| scene.lifecycle(terminated(Cause::Deleted)).status();
    let unseen = "ended 137 ContainerStatusUnknown";
    // It never came to an image.
    assert_eq!(state(&stopped(Scene::app("Always")), "app"), unseen);
    // The app was not reached: it was never begun.
    let early = stopped(Scene::new(make_pod(&["one", "two", "three"], &["app"], "Always")).exited("one", 0, 0));
    assert_eq!(
        ["one", "two", "three", "app"].map(|name| state(&early, name)),
        ["ended 0 Completed", "waiting PodInitializing", "waiting PodInitializing", "waiting PodInitializing"]
    );
    let late = stopped(Scene::new(make_pod(&["one"], &["app"], "Always")).exited("one", 0, 0));
    assert_eq!(state(&late, "app"), unseen, "initialized, so nobody knows whether it ran");
    let mut rejected = Scene::app("Always").lifecycle(terminated(evicted()));
    rejected.runtime = PodRuntime::default();
    assert_eq!(state(&rejected.status(), "app"), "waiting ContainerCreating", "the node has never begun it");
}

#[test]
fn termination_messages_of_a_pod_share_twelve_kibibytes() {
    let mut scene = Scene::new(make_pod(&[], &["a", "b", "c", "d"], "Never"));
    for name in ["a", "b", "c", "d"] {
        scene = scene.exited(name, 0, 1);
        let ContainerState::Exited { message, .. } = &mut scene.runtime.containers[0].state else { panic!() };
        *message = "\u{e4}".repeat(2048);
    }
    let status = scene.status();
    for name in ["a", "b", "c", "d"] {
        let end = container(&status, name).state.as_ref().and_then(|s| s.terminated.clone()).unwrap();
        assert_eq!(end.message.map(|m| m.len()), Some(3072), "{name}");
    }
}

#[test]
fn phases_in_the_corners() {
    let with_init = |policy: &str| Scene::new(make_pod(&["init"], &["app"], policy));
    let with_sidecar = || Scene::new(make_pod(&["side*"], &["app"], "Always"));
    let mut replaced = with_init("Always").exited("init", 0, 0).exited("app", 0, 1);
    replaced.last = replaced.status();
    // A new sandbox, in which the init container has failed once.
    replaced.runtime.sandboxes[0].id = SandboxId::new("s2");
    let mut again = make_view("init", 1, ended(1));
    again.sandbox = SandboxId::new("s2");
    replaced.runtime.containers.insert(0, again);
    let mut own_never = Scene::app("Always").exited("app", 0, 1);
    own_never.pod.spec.as_mut().unwrap().containers[0].restart_policy = Some("Never".into());
    let mut own_always = Scene::app("Never").exited("app", 0, 0);
    own_always.pod.spec.as_mut().unwrap().containers[0].restart_policy = Some("Always".into());
    let mut by_rule = Scene::app("Never").exited("app", 0, 42);
    let app = &mut by_rule.pod.spec.as_mut().unwrap().containers[0];
    app.restart_policy = Some("Never".into());
    app.restart_policy_rules = serde_json::from_value(rule("Restart")).unwrap();
    let table = [
        ("an init container failed again in a new sandbox", replaced, "Running"),
        ("a sidecar is gone without a trace", with_sidecar().running("app", true, true), "Pending"),
        ("a sidecar restarts", with_sidecar().running("app", true, true).exited("side", 0, 1), "Running"),
        ("a sidecar starts again", with_sidecar().running("app", true, true).running("side", false, false), "Running"),
        ("the container's policy is Never", own_never, "Failed"),
        ("the container's policy is Always", own_always, "Running"),
        ("a rule restarts it", by_rule, "Running"),
    ];
    for (situation, scene, phase) in table {
        assert_eq!(scene.status().phase.as_deref(), Some(phase), "{situation}");
    }
}
