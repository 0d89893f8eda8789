//! Critical pods make room for themselves, on a real node: one of the API server's and a static one.

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Join;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::rig::{NAME, PATIENCE, Rig, ready_since};

/// A pod past the scheduler that asks for so many thousandths of a CPU.
fn pod(name: &str, milli: i64, is_guaranteed: bool, class: &str) -> Value {
    let amounts = json!({ "cpu": format!("{milli}m"), "memory": "16Mi" });
    let limits = if is_guaranteed { amounts.clone() } else { Value::Null };
    let line = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
    let container = json!({ "name": "c", "image": "localhost/busybox:1", "imagePullPolicy": "Never",
        "command": ["sh", "-c", line], "resources": { "requests": amounts, "limits": limits } });
    let spec = json!({ "nodeName": NAME, "containers": [container], "priorityClassName": class,
        "terminationGracePeriodSeconds": 20 });
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec })
}

/// Fails unless the pod has had to go.
async fn has_gone(rig: &Rig, name: &str) -> anyhow::Result<()> {
    let status = rig.api::<Pod>().get(name).await?.status.unwrap_or_default();
    let is = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
    ensure!(is == (Some("Failed"), Some("Preempting"), Some("Preempted in order to admit critical pod")), "{is:?}");
    let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == "DisruptionTarget");
    let told = condition.map(|c| (c.status.as_str(), c.reason.as_deref()));
    ensure!(told == Some(("True", Some("TerminationByKubelet"))), "{condition:?}");
    let events = rig.api::<Event>().list(&ListParams::default()).await?.items;
    let told = events.iter().any(|event| {
        event.involved_object.name.as_deref() == Some(name) && event.reason.as_deref() == Some("Preempting")
    });
    ensure!(told, "no event");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_critical_pod_and_a_static_one_push_out_as_few_as_possible_of_the_lowest_class() {
    scenario().await.unwrap();
}

async fn scenario() -> anyhow::Result<()> {
    let mut rig = Rig::without_agent(Version::V2, Cni::Nodelet).await?;
    rig.node.run_joined_as(&rig.plane, NAME, Join { static_pods: true, ..Join::default() })?;
    let node = rig.node_is_ready(NAME).await?;
    let allocatable = node.status.and_then(|status| status.allocatable).context("no allocatable")?;
    let cpu = &allocatable.get("cpu").context("no cpu")?.0;
    let milli = match cpu.strip_suffix('m') {
        Some(milli) => milli.parse()?,
        None => cpu.parse::<i64>()? * 1000,
    };
    for (name, milli, is_guaranteed) in
        [("guaranteed", 300, true), ("small", 200, false), ("large", milli - 600, false)]
    {
        rig.create::<Pod>(pod(name, milli, is_guaranteed, "")).await?;
        rig.pod_is_ready(name).await?;
    }
    let kept = ["guaranteed", "small"];
    let mut before = Vec::new();
    for name in kept {
        before.push(ready_since(&rig.api::<Pod>().get(name).await?));
    }

    // 100m are free; `small` would not be enough, and `large` alone is.
    rig.create::<Pod>(pod("critical", 500, false, "system-cluster-critical")).await?;
    rig.pod_is_ready("critical").await?;
    eventually(PATIENCE, "large to have gone", async || has_gone(&rig, "large").await).await?;
    for (name, before) in kept.iter().zip(&before) {
        ensure!(ready_since(&rig.api::<Pod>().get(name).await?) == *before, "{name} was disturbed");
    }

    // Now all that is not critical has to go, and the critical pod stays.
    let critical = ready_since(&rig.api::<Pod>().get("critical").await?);
    let manifest = serde_json::to_string(&pod("files", milli - 550, false, ""))?.replace("\"nodeName\":\"n1\",", "");
    rig.node.write_static_pod("files.yaml", &manifest)?;
    rig.pod_is_ready("files-n1").await?;
    eventually(PATIENCE, "the others to have gone", async || {
        has_gone(&rig, "small").await?;
        has_gone(&rig, "guaranteed").await
    })
    .await?;
    ensure!(ready_since(&rig.api::<Pod>().get("critical").await?) == critical, "the critical pod was disturbed");
    let metrics = rig.plane.kubectl(&["get", "--raw", "/api/v1/nodes/n1/proxy/metrics"])?.output()?;
    let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
    let figure = "kubelet_preemptions{preemption_signal=\"cpu\"} 3\n";
    let found: Vec<&str> = metrics.lines().filter(|line| line.contains("preemption")).collect();
    ensure!(metrics.contains(figure), "{found:?}");

    std::fs::remove_file(rig.node.path("static/files.yaml"))?;
    for name in ["guaranteed", "small", "large", "critical"] {
        rig.delete::<Pod>(name).await?;
    }
    rig.nothing_is_left().await?;
    rig.finish()
}
