//! Every call of the runtime slow, failing, hanging, answered in part, or done with its answer lost.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use harness::eventually::{always, eventually};
use harness::fake_cri::{Fault, Gate, Lack, Rpc, Script, Stage};
use serde_json::json;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::rig::{CALL_LIMIT, IMAGE, LONG, Rig};

/// The calls that the agent makes by itself. Those that it makes for callers of its API (streams, statistics) answer these
/// callers, and decide nothing; RuntimeConfig and UpdateRuntimeConfig come once, before any pod.
pub(crate) const CALLS: [Rpc; 22] = [
    Rpc::Version,
    Rpc::Status,
    Rpc::GetContainerEvents,
    Rpc::ListPodSandbox,
    Rpc::ListContainers,
    Rpc::PodSandboxStatus,
    Rpc::ContainerStatus,
    Rpc::RunPodSandbox,
    Rpc::CreateContainer,
    Rpc::StartContainer,
    Rpc::StopContainer,
    Rpc::RemoveContainer,
    Rpc::StopPodSandbox,
    Rpc::RemovePodSandbox,
    Rpc::ExecSync,
    Rpc::UpdateContainerResources,
    Rpc::ContainerStats,
    Rpc::ReopenContainerLog,
    Rpc::ImageStatus,
    Rpc::PullImage,
    Rpc::ListImages,
    Rpc::RemoveImage,
];

/// An image that no pod has.
const UNUSED: &str = "localhost/unused:1";
const STEADY: [&str; 2] = ["web-1", "web-2"];

fn memory(amount: &str) -> serde_json::Value {
    json!({ "requests": { "memory": amount }, "limits": { "memory": amount } })
}

/// Rigs at once: more of them take each other the time in which calls have to be answered.
static PLACES: Semaphore = Semaphore::const_new(10);

/// A node with what a call needs to be made: two pods that are left alone, one that is to go, and now and then one that
/// crashes, one that is resized, or an image that nobody needs.
async fn populated(rpc: Rpc) -> anyhow::Result<Rig> {
    let mut rig = Rig::start().await?;
    rig.crash_delay = Duration::from_secs(1);
    if rpc == Rpc::ReopenContainerLog {
        rig.log_size = 1;
    }
    rig.restart_agent()?;
    for name in ["web-1", "web-2", "old", "crasher"] {
        rig.add(name)?;
    }
    if is_of_resizes(rpc) {
        let container = json!({ "name": "app", "image": IMAGE, "resources": memory("64Mi") });
        rig.add_pod("resized", &json!({ "containers": [container], "terminationGracePeriodSeconds": 1 }))?;
        rig.until_ready(&["resized"]).await?;
    }
    rig.until_ready(&["web-1", "web-2", "old", "crasher"]).await?;
    // The first crash costs no delay; the second leaves a container that nobody needs.
    let first = crash(&rig, "crasher")?;
    eventually(LONG, "the container to run again", async || {
        let now = rig.containers("crasher");
        ensure!(now.len() == 1 && now[0] != first, "{now:?}");
        Ok(())
    })
    .await?;
    rig.until_ready(&["crasher"]).await?;
    if is_of_images(rpc) {
        rig.fake.add_image(UNUSED);
        // Seen once, so that it is known to be unused.
        rig.gc(true, None).await?;
    }
    Ok(rig)
}

fn is_of_resizes(rpc: Rpc) -> bool {
    matches!(rpc, Rpc::UpdateContainerResources | Rpc::ContainerStats)
}

fn is_of_images(rpc: Rpc) -> bool {
    matches!(rpc, Rpc::ListImages | Rpc::RemoveImage)
}

/// Ends a pod's container, and answers which it was.
fn crash(rig: &Rig, name: &str) -> anyhow::Result<String> {
    let container = rig.containers(name).pop().context("nothing runs")?;
    ensure!(rig.fake.exit(&container, 1), "{container} does not run");
    Ok(container)
}

/// Something to do for the call.
fn stir(rig: &mut Rig, rpc: Rpc) -> anyhow::Result<()> {
    let mut container = json!({ "name": "app", "image": IMAGE });
    if rpc == Rpc::PullImage {
        container["imagePullPolicy"] = json!("Always");
    }
    if rpc == Rpc::ReopenContainerLog {
        // A log that is to be rotated as soon as it is there.
        container["command"] = json!(Script::forever().say("a line").command());
    }
    rig.add_pod("new", &json!({ "containers": [container], "terminationGracePeriodSeconds": 1 }))?;
    if is_of_resizes(rpc) {
        rig.resize("resized", &memory("32Mi"))?;
    }
    if is_of_images(rpc) {
        rig.begin_gc(1)?;
    }
    crash(rig, "crasher")?;
    rig.remove("old")?;
    rig.interrupt();
    Ok(())
}

/// Pods run, one is to go and others to come, and all look at the runtime, while one of its calls is ill.
async fn suffers(rpc: Rpc, fault: Fault, gate: &Gate) -> anyhow::Result<()> {
    let _place = PLACES.acquire().await?;
    let mut rig = populated(rpc).await?;
    let before = STEADY.map(|name| (name, rig.steady(name)));
    let undisturbed = |rig: &Rig| before.iter().try_for_each(|(name, before)| rig.is_undisturbed(name, before));
    undisturbed(&rig).context("before the fault")?;
    let calls = rig.fake.count(rpc);
    rig.fake.inject(rpc, fault);
    stir(&mut rig, rpc)?;
    eventually(LONG, "the call", async || {
        let count = rig.fake.count(rpc);
        ensure!(count > calls, "{count} calls");
        Ok(())
    })
    .await?;
    // Longer than a call may take: what gives up gives up in this time.
    always(2 * CALL_LIMIT, "pods go on", async || undisturbed(&rig)).await?;
    rig.fake.heal(rpc);
    gate.release();
    rig.interrupt();
    rig.until_gone("old").await?;
    rig.until_ready(&["new", "crasher", "web-1", "web-2"]).await?;
    eventually(LONG, "all to be well", async || well(&rig, rpc)).await?;
    undisturbed(&rig)?;
    rig.empty().await
}

fn well(rig: &Rig, rpc: Rpc) -> anyhow::Result<()> {
    let health = rig.health()?;
    ensure!(health.runtime_ready.is_ok() && health.network_ready.is_ok(), "{health:?}");
    if is_of_resizes(rpc) {
        let resized = rig.status("resized").context("no status")?;
        let conditions = resized.conditions.iter().flatten();
        let waits = conditions.into_iter().any(|condition| condition.type_.starts_with("PodResize"));
        ensure!(!waits, "{:?}", resized.conditions);
    }
    Ok(())
}

async fn all_suffer(fault: impl Fn() -> (Fault, Gate)) -> anyhow::Result<()> {
    let runs = CALLS.map(|rpc| {
        let (fault, gate) = fault();
        async move { suffers(rpc, fault, &gate).await.with_context(|| format!("{rpc:?}")) }
    });
    let failed: Vec<String> =
        join_all(runs).await.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_that_fails_disturbs_no_pod_and_all_converges() {
    let fault = || (Fault::fail(Code::Unavailable, "the runtime is ill"), Gate::new());
    all_suffer(fault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_that_hangs_disturbs_no_pod_and_all_converges() {
    let fault = || {
        let gate = Gate::new();
        (Fault::hang(&gate), gate)
    };
    all_suffer(fault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_that_is_slow_disturbs_no_pod_and_all_converges() {
    let fault = || (Fault::delay(Duration::from_millis(700)), Gate::new());
    all_suffer(fault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_whose_answer_is_lost_disturbs_no_pod_and_all_converges() {
    let fault = || (Fault::fail(Code::Unavailable, "connection reset").at(Stage::After), Gate::new());
    all_suffer(fault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_whose_answer_comes_too_late_disturbs_no_pod_and_all_converges() {
    let fault = || {
        let gate = Gate::new();
        (Fault::hang(&gate).at(Stage::After), gate)
    };
    all_suffer(fault).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_call_that_fails_with_any_code_disturbs_no_pod_and_all_converges() {
    for code in [Code::DeadlineExceeded, Code::Internal, Code::Unknown] {
        let fault = || (Fault::fail(code, "the runtime is ill"), Gate::new());
        all_suffer(fault).await.with_context(|| format!("{code:?}")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_answer_that_is_empty_disturbs_no_pod_and_all_converges() {
    all_suffer(|| (Fault::lack(Lack::All), Gate::new())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_list_that_lacks_items_disturbs_no_pod_and_all_converges() {
    all_suffer(|| (Fault::lack(Lack::Items), Gate::new())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_answer_without_its_fields_disturbs_no_pod_and_all_converges() {
    all_suffer(|| (Fault::lack(Lack::Fields), Gate::new())).await.unwrap();
}
