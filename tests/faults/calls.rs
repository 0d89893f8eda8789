//! Every call of the runtime slow, failing, hanging, or done with its answer lost.

use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use harness::eventually::{always, eventually};
use harness::fake_cri::{Fault, Gate, Rpc, Stage};
use tonic::Code;

use crate::rig::{CALL_LIMIT, LONG, Rig};

/// The calls that the pod half makes.
const CALLS: [Rpc; 13] = [
    Rpc::ListPodSandbox,
    Rpc::ListContainers,
    Rpc::PodSandboxStatus,
    Rpc::ContainerStatus,
    Rpc::RunPodSandbox,
    Rpc::CreateContainer,
    Rpc::StartContainer,
    Rpc::StopContainer,
    Rpc::StopPodSandbox,
    Rpc::RemovePodSandbox,
    Rpc::ImageStatus,
    Rpc::ExecSync,
    Rpc::Version,
];

/// Two pods run, one is to go and one to come, and all look at the runtime, while one of its calls is ill.
async fn suffers(rpc: Rpc, fault: Fault, gate: &Gate) -> anyhow::Result<()> {
    let mut rig = Rig::start().await?;
    for name in ["web-1", "web-2", "old"] {
        rig.add(name)?;
    }
    rig.until_ready(&["web-1", "web-2", "old"]).await?;
    let before = ["web-1", "web-2"].map(|name| (name, rig.steady(name)));
    let undisturbed = |rig: &Rig| before.iter().try_for_each(|(name, before)| rig.is_undisturbed(name, before));
    let calls = rig.fake.count(rpc);
    rig.fake.inject(rpc, fault);
    rig.add("new")?;
    rig.remove("old")?;
    rig.interrupt();
    eventually(LONG, "the call", async || {
        let count = rig.fake.count(rpc);
        anyhow::ensure!(count > calls, "{count} calls");
        Ok(())
    })
    .await?;
    // Longer than a call may take: what gives up gives up in this time.
    always(2 * CALL_LIMIT, "pods go on", async || undisturbed(&rig)).await?;
    rig.fake.heal(rpc);
    gate.release();
    rig.interrupt();
    rig.until_gone("old").await?;
    rig.until_ready(&["new", "web-1", "web-2"]).await?;
    undisturbed(&rig)
}

async fn all_suffer(fault: impl Fn() -> (Fault, Gate)) -> anyhow::Result<()> {
    let runs = CALLS.map(|rpc| {
        let (fault, gate) = fault();
        async move { suffers(rpc, fault, &gate).await.with_context(|| format!("{rpc:?}")) }
    });
    join_all(runs).await.into_iter().collect()
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
