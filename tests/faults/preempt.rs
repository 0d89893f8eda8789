//! A critical pod that does not fit: who has to go for it, in which order things happen, and what a restart in between changes.

use std::time::Duration;

use anyhow::{Context, ensure};
use harness::eventually::{always, eventually};
use harness::fake_cri::{Fault, Gate, OnTerm, Rpc, Script};
use serde_json::{Value, json};

use crate::rig::{IMAGE, LONG, Rig};

/// The rig's node has 64 CPUs.
fn spec(cpu: u32, priority: i32, script: &Script) -> Value {
    let container = json!({ "name": "app", "image": IMAGE, "command": script.command(),
        "resources": { "requests": { "cpu": cpu.to_string() } } });
    json!({ "containers": [container], "priority": priority, "terminationGracePeriodSeconds": 4 })
}

const CRITICAL: i32 = 2_000_000_000;

/// A node whose CPUs are taken: two pods of 30, one of which takes its time to end, and a critical one of 4.
async fn full_node(small_ends: &Script) -> anyhow::Result<Rig> {
    let mut rig = Rig::start().await?;
    rig.add_pod("kept", &spec(32, 7, &Script::forever()))?;
    rig.add_pod("small", &spec(28, 0, small_ends))?;
    rig.add_pod("vital", &spec(4, CRITICAL, &Script::forever()))?;
    rig.until_ready(&["kept", "small", "vital"]).await?;
    Ok(rig)
}

fn has_failed(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let status = rig.status(name).context("no status")?;
    let is = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
    ensure!(is == (Some("Failed"), Some("Preempting"), Some("Preempted in order to admit critical pod")), "{is:?}");
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "DisruptionTarget");
    let told = condition.map(|c| (c.status.as_str(), c.reason.as_deref(), c.message.as_deref()));
    let message = "Pod was preempted by Kubelet to accommodate a critical pod.";
    ensure!(told == Some(("True", Some("TerminationByKubelet"), Some(message))), "{condition:?}");
    Ok(())
}

async fn small_is_told(rig: &Rig) -> anyhow::Result<()> {
    eventually(LONG, "small to be told", async || {
        ensure!(!rig.pod_events("small", "Preempting").is_empty(), "nothing is told");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_pod_starts_when_the_pod_that_makes_room_is_gone_and_no_sooner() {
    let slowly = Script::forever().on_term(OnTerm::Exit { code: 0, after_ms: 1500 });
    let mut rig = full_node(&slowly).await.unwrap();
    let before = ["kept", "vital"].map(|name| (name, rig.steady(name)));
    rig.add_pod("critical", &spec(20, CRITICAL, &Script::forever())).unwrap();
    // The room that comes free is nobody else's.
    rig.add_pod("late", &spec(1, 0, &Script::forever())).unwrap();
    eventually(LONG, "the critical pod to run", async || {
        let may_run = rig.containers("small").is_empty();
        let runs = !rig.sandboxes("critical").is_empty();
        ensure!(may_run || !runs, "it runs beside what should have made room");
        ensure!(!rig.containers("critical").is_empty(), "it does not run");
        Ok(())
    })
    .await
    .unwrap();
    eventually(LONG, "the status", async || has_failed(&rig, "small")).await.unwrap();
    let told = rig.pod_events("small", "Preempting");
    assert_eq!(told, ["Preempted in order to admit critical pod"]);
    let running = |status: &&k8s_openapi::api::core::v1::PodStatus| status.phase.as_deref() == Some("Running");
    let statuses = rig.statuses("small");
    let early = statuses.iter().filter(running).flat_map(|status| status.conditions.iter().flatten());
    assert!(early.into_iter().all(|c| c.type_ != "DisruptionTarget"), "told with the phase, as by kubelet");
    let late = rig.status("late").unwrap();
    assert_eq!((late.phase.as_deref(), late.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    before.iter().try_for_each(|(name, before)| rig.is_undisturbed(name, before)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_goes_for_a_critical_pod_that_would_not_fit_all_the_same() {
    let mut rig = full_node(&Script::forever()).await.unwrap();
    let before = ["kept", "small", "vital"].map(|name| (name, rig.steady(name)));
    rig.add_pod("critical", &spec(61, CRITICAL, &Script::forever())).unwrap();
    eventually(LONG, "the refusal", async || {
        let status = rig.status("critical").context("no status")?;
        ensure!(status.reason.as_deref() == Some("UnexpectedAdmissionError"), "{status:?}");
        ensure!(
            status.message.as_deref().is_some_and(|m| m.contains("reclaim resources: [(res: cpu, q: 1000), ]")),
            "{status:?}"
        );
        Ok(())
    })
    .await
    .unwrap();
    before.iter().try_for_each(|(name, before)| rig.is_undisturbed(name, before)).unwrap();
    assert!(rig.told("Preempting").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_replaced_while_room_is_made_lets_nobody_else_go() {
    let mut rig = full_node(&Script::forever()).await.unwrap();
    let before = rig.steady("kept");
    let gate = Gate::new();
    rig.fake.inject(Rpc::StopContainer, Fault::hang(&gate));
    rig.add_pod("critical", &spec(20, CRITICAL, &Script::forever())).unwrap();
    small_is_told(&rig).await.unwrap();
    rig.restart_agent().unwrap();
    always(Duration::from_secs(2), "nobody else goes and nobody comes", async || {
        ensure!(rig.sandboxes("critical").is_empty(), "it did not wait");
        rig.is_undisturbed("kept", &before)
    })
    .await
    .unwrap();
    rig.fake.heal(Rpc::StopContainer);
    gate.release();
    eventually(LONG, "the critical pod to run", async || {
        ensure!(!rig.containers("critical").is_empty(), "it does not run");
        has_failed(&rig, "small")
    })
    .await
    .unwrap();
    rig.is_undisturbed("kept", &before).unwrap();
    assert_eq!(rig.pod_events("small", "Preempting").len(), 1, "told once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_cannot_be_stopped_holds_up_a_critical_one_for_its_grace_and_a_half() {
    let mut rig = full_node(&Script::forever()).await.unwrap();
    let gate = Gate::new();
    rig.fake.inject(Rpc::StopContainer, Fault::hang(&gate));
    let began = std::time::Instant::now();
    rig.add_pod("critical", &spec(20, CRITICAL, &Script::forever())).unwrap();
    eventually(LONG, "the critical pod to run", async || {
        ensure!(!rig.containers("critical").is_empty(), "it does not run");
        Ok(())
    })
    .await
    .unwrap();
    assert!(began.elapsed() >= Duration::from_secs(10), "kubelet's least time: {:?}", began.elapsed());
    rig.fake.heal(Rpc::StopContainer);
    gate.release();
    eventually(LONG, "the other one to be gone", async || has_failed(&rig, "small")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_pod_that_is_not_wanted_any_more_never_comes() {
    let slowly = Script::forever().on_term(OnTerm::Exit { code: 0, after_ms: 1500 });
    let mut rig = full_node(&slowly).await.unwrap();
    rig.add_pod("critical", &spec(20, CRITICAL, &Script::forever())).unwrap();
    small_is_told(&rig).await.unwrap();
    rig.remove("critical").unwrap();
    eventually(LONG, "small to be gone", async || has_failed(&rig, "small")).await.unwrap();
    always(Duration::from_secs(1), "it does not come", async || rig.is_gone("critical")).await.unwrap();
    // The room is there for others.
    rig.add_pod("late", &spec(20, 0, &Script::forever())).unwrap();
    rig.until_ready(&["late"]).await.unwrap();
}
