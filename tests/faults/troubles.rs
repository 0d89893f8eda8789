//! Who is held up by whose trouble, what is said about it, and a runtime that is restarted under load.

use std::time::Duration;

use anyhow::ensure;
use harness::eventually::eventually;
use harness::fake_cri::{Fault, Gate, Memory, Rpc, Script};
use tonic::Code;

use crate::rig::{LONG, Rig, SLOTS};

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_hangs_holds_up_no_other_pod() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let gate = Gate::new();
    rig.fake.inject(Rpc::ListPodSandbox, Fault::hang(&gate));
    rig.interrupt();
    gate.reached_by(1).await;
    rig.add("new").unwrap();
    rig.until_ready(&["new"]).await.unwrap();
    rig.remove("new").unwrap();
    eventually(LONG, "the container to be stopped", async || {
        ensure!(rig.containers("new").is_empty());
        anyhow::Ok(())
    })
    .await
    .unwrap();
    gate.release();
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_that_hang_hold_up_no_other_pod() {
    let mut rig = Rig::start().await.unwrap();
    let gate = Gate::new();
    let names: Vec<String> = (0..2 * SLOTS).map(|number| format!("stuck-{number}")).collect();
    for name in &names {
        rig.fake.inject(Rpc::RunPodSandbox, Fault::hang(&gate).about(name));
        rig.add(name).unwrap();
    }
    gate.reached_by(SLOTS).await;
    rig.add("new").unwrap();
    rig.until_ready(&["new"]).await.unwrap();
    gate.release();
    rig.fake.heal(Rpc::RunPodSandbox);
    rig.interrupt();
    rig.until_ready(&names.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_pod_from_starting_or_ending_is_told_in_the_runtimes_words() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    rig.fake.inject(Rpc::StopPodSandbox, Fault::fail(Code::Unknown, "plugin bridge failed (delete)"));
    rig.fake.inject(Rpc::CreateContainer, Fault::fail(Code::Unknown, "no space left on device"));
    rig.fake.inject(Rpc::ContainerStatus, Fault::fail(Code::Internal, "shim is not there").about("app").times(2));
    rig.interrupt();
    let told = async |reason: &str, text: &str| {
        eventually(LONG, "the event", async || rig.was_told(reason, text)).await.unwrap();
    };
    told("FailedSync", "error determining status: shim is not there").await;
    rig.remove("web").unwrap();
    rig.add("new").unwrap();
    let told = async |reason: &str, text: &str| {
        eventually(LONG, "the event", async || rig.was_told(reason, text)).await.unwrap();
    };
    told("FailedKillPod", "error killing pod: plugin bridge failed (delete)").await;
    told("Failed", "Error: no space left on device").await;
    let shown = async || {
        let status = rig.status("new").unwrap_or_default();
        let waiting = status.container_statuses.into_iter().flatten().find_map(|c| c.state?.waiting);
        let waiting = waiting.map(|w| (w.reason.unwrap_or_default(), w.message.unwrap_or_default()));
        ensure!(waiting == Some(("CreateContainerError".into(), "no space left on device".into())), "{waiting:?}");
        Ok(())
    };
    eventually(LONG, "the status", shown).await.unwrap();
    rig.fake.heal(Rpc::StopPodSandbox);
    rig.fake.heal(Rpc::CreateContainer);
    rig.interrupt();
    rig.until_gone("web").await.unwrap();
    rig.until_ready(&["new"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_restarted_under_load_costs_no_running_pod_anything() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let before = rig.steady("web");
    for round in 0..8 {
        for number in 0..4 {
            rig.add(&format!("guest-{round}-{number}")).unwrap();
        }
        if round > 0 {
            (0..3).for_each(|number| rig.remove(&format!("guest-{}-{number}", round - 1)).unwrap());
        }
        // The moment is the point here; nothing is waited for.
        tokio::time::sleep(Duration::from_millis(37 * (round % 4))).await;
        rig.fake.restart(Memory::Kept).unwrap();
    }
    let stay: Vec<String> = (0..7).map(|round| format!("guest-{round}-3")).collect();
    rig.until_ready(&stay.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    for round in 0..7 {
        for number in 0..3 {
            rig.until_gone(&format!("guest-{round}-{number}")).await.unwrap();
        }
    }
    rig.until_ready(&["web"]).await.unwrap();
    rig.is_undisturbed("web", &before).unwrap();
    for name in &stay {
        assert_eq!(rig.containers(name).len(), 1, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_replaced_while_the_runtime_is_away_changes_nothing() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.add("other").unwrap();
    rig.until_ready(&["web", "other"]).await.unwrap();
    let before = rig.steady("web");
    rig.fake.stop();
    rig.restart_agent().unwrap();
    rig.remove("other").unwrap();
    rig.add("new").unwrap();
    rig.fake.restart(Memory::Kept).unwrap();
    rig.until_ready(&["web", "new"]).await.unwrap();
    rig.until_gone("other").await.unwrap();
    rig.is_undisturbed("web", &before).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_hook_that_fails_has_printed_is_in_no_event() {
    let mut rig = Rig::start().await.unwrap();
    rig.fake.answer_exec(|_, command| match command {
        [word] if word == "true" => Script::exit(0),
        _ => Script::exit(3).say("the password is hunter2"),
    });
    let hook = serde_json::json!({ "exec": { "command": ["hook"] } });
    rig.add_with("starts", serde_json::json!({ "postStart": hook })).unwrap();
    rig.add_with("stops", serde_json::json!({ "preStop": hook })).unwrap();
    rig.until_ready(&["stops"]).await.unwrap();
    rig.remove("stops").unwrap();
    rig.until_gone("stops").await.unwrap();
    for (reason, text) in [("FailedPostStartHook", "PostStartHook failed"), ("FailedPreStopHook", "PreStopHook failed")]
    {
        eventually(LONG, "the event", async || rig.was_told(reason, text)).await.unwrap();
    }
    rig.was_not_told("hunter2").unwrap();
}
