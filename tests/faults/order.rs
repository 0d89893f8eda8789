//! What is done after what: hooks and signals at the end of a pod with sidecars, a postStart hook that fails, and a pod that
//! starts over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::ensure;
use harness::eventually::eventually;
use harness::fake_cri::{OnTerm, Rpc, Script};
use k8s_openapi::api::core::v1::ContainerStatus;
use serde_json::{Value, json};

use crate::rig::{LONG, Rig};

fn container(name: &str, script: &Script) -> Value {
    json!({ "name": name, "image": "localhost/app:1", "command": script.command() })
}

fn with(mut container: Value, key: &str, value: Value) -> Value {
    container[key] = value;
    container
}

fn exec(word: &str) -> Value {
    json!({ "exec": { "command": [word] } })
}

/// Keeps the words that hooks are run with.
fn keep_hooks(rig: &Rig, exit_codes: &'static [(&str, i32)]) -> Arc<Mutex<Vec<String>>> {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let log = kept.clone();
    rig.fake.answer_exec(move |_, command| {
        log.lock().unwrap_or_else(PoisonError::into_inner).push(command.join(" "));
        let code = exit_codes.iter().find(|(word, _)| command == [*word]).map_or(0, |(_, code)| *code);
        Script::exit(code)
    });
    kept
}

fn all_statuses(rig: &Rig, pod: &str) -> BTreeMap<String, ContainerStatus> {
    let status = rig.status(pod).unwrap_or_default();
    let lists = [status.init_container_statuses, status.container_statuses];
    lists.into_iter().flatten().flatten().map(|status| (status.name.clone(), status)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_of_a_stop_begin_together_and_sidecars_get_their_term_last_and_in_reverse() {
    let mut rig = Rig::start().await.unwrap();
    let hooks = keep_hooks(&rig, &[]);
    let sidecar = |name: &str| {
        let hooks = json!({ "preStop": exec(&format!("bye-{name}")) });
        with(with(container(name, &Script::forever()), "restartPolicy", json!("Always")), "lifecycle", hooks)
    };
    // The regular container takes its time, and its hook as well.
    let slow = Script::forever().on_term(OnTerm::Exit { code: 0, after_ms: 700 });
    let app = with(container("app", &slow), "lifecycle", json!({ "preStop": exec("bye-app") }));
    let spec = json!({ "initContainers": [sidecar("first"), sidecar("second")], "containers": [app],
        "terminationGracePeriodSeconds": 30 });
    rig.add_pod("web", &spec).unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let names: BTreeMap<String, String> =
        rig.fake.containers().into_iter().map(|c| (c.id, c.metadata.unwrap_or_default().name)).collect();
    rig.fake.forget_calls();
    rig.remove("web").unwrap();
    rig.until_gone("web").await.unwrap();
    let calls = rig.fake.calls();
    let of = |rpc: Rpc| -> Vec<String> {
        let calls = calls.iter().filter(|call| call.rpc == rpc);
        calls.filter_map(|call| call.about.iter().find_map(|id| names.get(id)).cloned()).collect()
    };
    assert_eq!(of(Rpc::StopContainer), ["app", "second", "first"]);
    let mut hooked = hooks.lock().unwrap().clone();
    hooked.sort();
    assert_eq!(hooked, ["bye-app", "bye-first", "bye-second"], "each once");
    let at = |rpc: Rpc, name: &str| {
        let call =
            calls.iter().find(|c| c.rpc == rpc && c.about.iter().any(|id| names.get(id).is_some_and(|n| n == name)));
        call.map(|call| call.at).unwrap()
    };
    let last_hook = ["app", "first", "second"].map(|name| at(Rpc::ExecSync, name)).into_iter().max().unwrap();
    let waited = at(Rpc::StopContainer, "second").duration_since(last_hook);
    assert!(waited.as_millis() >= 600, "hooks of sidecars began only {waited:?} before their turn");
    let mut told = rig.told("Killing");
    told.sort();
    assert_eq!(told, ["Stopping container app", "Stopping container first", "Stopping container second"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_post_start_hook_fails_is_stopped_with_its_pre_stop_hook_and_backs_off() {
    let mut rig = Rig::start().await.unwrap();
    let hooks = keep_hooks(&rig, &[("hello", 3)]);
    let lifecycle = json!({ "postStart": exec("hello"), "preStop": exec("bye") });
    let spec = json!({ "containers": [with(container("app", &Script::forever()), "lifecycle", lifecycle)],
        "terminationGracePeriodSeconds": 30 });
    rig.add_pod("web", &spec).unwrap();
    eventually(LONG, "the back-off", async || rig.was_told("BackOff", "Back-off restarting failed container app"))
        .await
        .unwrap();
    assert_eq!(*hooks.lock().unwrap(), ["hello", "bye", "hello", "bye"], "the first restart is at once");
    assert_eq!(rig.told("FailedPostStartHook"), ["PostStartHook failed", "PostStartHook failed"]);
    assert_eq!(rig.told("Killing"), ["FailedPostStartHook", "FailedPostStartHook"]);
    let waiting = rig.statuses("web").into_iter().flat_map(|status| status.container_statuses.unwrap_or_default());
    let reasons: Vec<(String, String)> = waiting
        .filter_map(|status| status.state?.waiting)
        .map(|waiting| (waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default()))
        .collect();
    let hook = reasons.iter().find(|(reason, _)| reason == "PostStartHookError").expect("the hook's error is shown");
    let text = "Exec lifecycle hook ([hello]) for Container \"app\" in Pod \"web_default(uid-web)\" failed - error: \
        command 'hello' exited with 3: , message: \"\"";
    assert_eq!(hook.1, text);
    assert_eq!(reasons.last().map(|(reason, _)| reason.as_str()), Some("CrashLoopBackOff"));
    rig.remove("web").unwrap();
    rig.until_gone("web").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_over_in_its_sandbox_when_a_restart_rule_says_so() {
    let mut rig = Rig::start().await.unwrap();
    let rule = json!([{ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": [42] } }]);
    let app =
        with(with(container("app", &Script::forever()), "restartPolicy", json!("Never")), "restartPolicyRules", rule);
    let spec = json!({ "restartPolicy": "Never", "initContainers": [container("init", &Script::exit(0))],
        "containers": [app, container("other", &Script::forever())] });
    rig.add_pod("web", &spec).unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let (sandboxes, before) = (rig.sandboxes("web"), rig.containers("web"));
    let cause = all_statuses(&rig, "web")["app"].container_id.clone().unwrap().replace("containerd://", "");
    assert!(rig.fake.exit(&cause, 42));
    let again = async || {
        let statuses = all_statuses(&rig, "web");
        for name in ["init", "app", "other"] {
            let status = statuses.get(name).cloned().unwrap_or_default();
            ensure!(status.restart_count == 1, "{name} has restarted {} times", status.restart_count);
            let end = status.last_state.and_then(|state| state.terminated);
            ensure!(
                end.as_ref().is_some_and(|end| end.reason.as_deref() == Some("RestartingAllContainers")),
                "{end:?}"
            );
        }
        rig.are_ready(&["web"])
    };
    eventually(LONG, "all containers to run again", again).await.unwrap();
    assert_eq!(rig.sandboxes("web"), sandboxes, "the sandbox stays");
    assert!(rig.containers("web").iter().all(|id| !before.contains(id)), "all containers are new");
    let seen: Vec<String> = rig
        .statuses("web")
        .into_iter()
        .flat_map(|status| status.conditions.unwrap_or_default())
        .filter(|condition| condition.type_ == "AllContainersRestarting")
        .map(|condition| condition.status)
        .collect();
    assert!(seen.iter().any(|status| status == "True") && seen.last().is_some_and(|s| s == "False"), "{seen:?}");
    let phases: Vec<String> = rig.statuses("web").into_iter().filter_map(|status| status.phase).collect();
    let ran = phases.iter().position(|phase| phase == "Running").unwrap();
    assert!(phases[ran..].iter().all(|phase| phase == "Running"), "{phases:?}");
    assert_eq!(rig.told("Killing"), ["killing"], "only the one that still ran");
}
