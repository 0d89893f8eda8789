//! Resizing pods in place, as `kubectl edit --subresource resize` asks for it.

use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use k8s_openapi::api::core::v1::{Event, Pod, PodCondition};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::rig::{PATIENCE, Rig};

const KILLS: i64 = 20;

fn sleeper(name: &str, resources: &Value, policy: &str) -> Value {
    let policies = json!([
        { "resourceName": "cpu", "restartPolicy": "NotRequired" },
        { "resourceName": "memory", "restartPolicy": policy },
    ]);
    json!({ "metadata": { "name": name }, "spec": { "terminationGracePeriodSeconds": 0, "containers": [
        { "name": "c", "image": "localhost/busybox:1", "command": ["sleep", "100000"], "resources": resources,
          "resizePolicy": policies }] } })
}

/// As many thousandths of CPU and MiB of memory, requests being half of the limits.
pub(crate) fn resources(milli: i64, mebi: i64) -> Value {
    json!({
        "requests": { "cpu": format!("{}m", milli / 2), "memory": format!("{}Mi", mebi / 2) },
        "limits": { "cpu": format!("{milli}m"), "memory": format!("{mebi}Mi") },
    })
}

pub(crate) async fn resize(rig: &Rig, name: &str, resources: &Value) -> anyhow::Result<()> {
    let patch = json!({ "spec": { "containers": [{ "name": "c", "resources": resources }] } });
    let pods = rig.api::<Pod>();
    pods.patch_subresource("resize", name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

fn resize_conditions(pod: &Pod) -> Vec<PodCondition> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_.starts_with("PodResize")).cloned().collect()
}

/// Restarts, the limits that the status shows, and the generation that it is of.
fn shown(pod: &Pod) -> (i32, Value, Option<i64>) {
    let status = pod.status.clone().unwrap_or_default();
    let container = status.container_statuses.unwrap_or_default().into_iter().next().unwrap_or_default();
    (container.restart_count, json!(container.resources), status.observed_generation)
}

async fn in_effect(rig: &mut Rig, name: &str, wanted: &Value, restarts: i32) -> anyhow::Result<Pod> {
    let pods = rig.api::<Pod>();
    let done = eventually(PATIENCE, "the resize to be in effect", async || {
        let pod = pods.get(name).await?;
        ensure!(resize_conditions(&pod).is_empty(), "{:?}", resize_conditions(&pod));
        let (count, resources, generation) = shown(&pod);
        ensure!(resources == *wanted && generation == pod.metadata.generation, "{}", json!(pod.status));
        ensure!(count == restarts, "{count} restarts");
        anyhow::Ok(pod)
    });
    match done.await {
        Ok(pod) => Ok(pod),
        Err(error) => {
            let story = rig.story().await;
            Err(error.context(format!("{story}\n{}", rig.node.agent()?.log_tail())))
        }
    }
}

/// A file of the container's own cgroup, in whichever hierarchy has it.
async fn from_inside(rig: &Rig, pod: &str, v1: &str, v2: &str) -> anyhow::Result<String> {
    let line = format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}");
    Ok(rig.node.exec(pod, &["sh", "-c", &line]).await?.trim().to_owned())
}

/// A file of the pod's cgroup.
fn of_pod(rig: &Rig, pod: &Pod, files: [&str; 2]) -> anyhow::Result<String> {
    let uid = pod.metadata.uid.as_deref().context("uid")?;
    let below = format!("kubepods/burstable/pod{uid}");
    let paths = rig.node.cgroups.find(&below);
    let path = paths.iter().flat_map(|dir| files.map(|file| dir.join(file))).find(|path| path.exists());
    Ok(std::fs::read_to_string(path.with_context(|| format!("no {files:?} below {below}"))?)?.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_is_in_effect_in_containers_and_pod_and_its_kinds_end_as_under_kubelet() {
    kinds().await.unwrap();
}

async fn kinds() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Nodelet).await?;
    rig.create::<Pod>(sleeper("live", &resources(200, 64), "NotRequired")).await?;
    rig.create::<Pod>(sleeper("again", &resources(200, 64), "RestartContainer")).await?;
    rig.pod_is_ready("live").await?;
    rig.pod_is_ready("again").await?;

    let larger = resources(400, 96);
    resize(&rig, "live", &larger).await?;
    let pod = in_effect(&mut rig, "live", &larger, 0).await?;
    let limit = (96_i64 << 20).to_string();
    ensure!(from_inside(&rig, "live", "memory/memory.limit_in_bytes", "memory.max").await? == limit);
    ensure!(of_pod(&rig, &pod, ["memory.limit_in_bytes", "memory.max"])? == limit);
    let quota = of_pod(&rig, &pod, ["cpu.cfs_quota_us", "cpu.max"])?;
    ensure!(quota.split(' ').next() == Some("40000"), "{quota}");
    let smaller = resources(100, 48);
    resize(&rig, "live", &smaller).await?;
    in_effect(&mut rig, "live", &smaller, 0).await?;

    resize(&rig, "again", &larger).await?;
    in_effect(&mut rig, "again", &larger, 1).await?;

    // More than the node has left waits, and what runs goes on as it is.
    let mut huge = larger.clone();
    huge["requests"]["cpu"] = json!("1990m");
    huge["limits"]["cpu"] = json!("1990m");
    resize(&rig, "live", &huge).await?;
    let waits = |pod: &Pod| resize_conditions(pod).into_iter().next().and_then(|c| Some((c.reason?, c.message?)));
    let pods = rig.api::<Pod>();
    eventually(PATIENCE, "the resize to be deferred", async || {
        let pod = pods.get("live").await?;
        let (reason, message) = waits(&pod).with_context(|| format!("{}", json!(pod.status)))?;
        ensure!(reason == "Deferred" && message.starts_with("Node didn't have enough resource: cpu"), "{message}");
        ensure!(shown(&pod).1 == smaller, "{}", json!(pod.status));
        anyhow::Ok(())
    })
    .await?;
    // Less than it uses is refused by us, and tried again.
    let mut tiny = smaller.clone();
    tiny["requests"]["memory"] = json!("10Ki");
    tiny["limits"]["memory"] = json!("10Ki");
    resize(&rig, "live", &tiny).await?;
    eventually(PATIENCE, "the resize to fail", async || {
        let pod = pods.get("live").await?;
        let (reason, message) = waits(&pod).with_context(|| format!("{}", json!(pod.status)))?;
        ensure!(reason == "Error" && message.contains("memory limit (10240) below current usage"), "{message}");
        anyhow::Ok(())
    })
    .await?;
    resize(&rig, "live", &larger).await?;
    in_effect(&mut rig, "live", &larger, 0).await?;
    events(&rig).await?;
    rig.finish()
}

async fn events(rig: &Rig) -> anyhow::Result<()> {
    eventually(PATIENCE, "the events of all kinds", async || {
        let events = rig.api::<Event>().list(&ListParams::default()).await?.items;
        for wanted in ["ResizeStarted", "ResizeCompleted", "ResizeDeferred", "ResizeError"] {
            let found = events.iter().find(|event| event.reason.as_deref() == Some(wanted));
            let message = found.and_then(|event| event.message.clone()).with_context(|| format!("no {wanted}"))?;
            ensure!(message.starts_with("Pod resize ") && message.contains("\"generation\":"), "{message}");
        }
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn resizes_go_on_over_kills_of_the_agent_and_restart_nothing() {
    kills().await.unwrap();
}

async fn kills() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Nodelet).await?;
    let mut last = resources(200, 64);
    rig.create::<Pod>(sleeper("live", &last, "NotRequired")).await?;
    let before = rig.pod_is_ready("live").await?;
    for round in 0..KILLS {
        last = resources(100 + 20 * (round % 7), 64 + 8 * (round % 5));
        resize(&rig, "live", &last).await?;
        // The moment is the point here, nothing is waited for.
        tokio::time::sleep(Duration::from_millis(u64::try_from(round * 7 % 60)?)).await;
        rig.node.agent()?.ensure_running()?;
        rig.node.agent()?.kill9();
        rig.node.restart_agent()?;
    }
    let after = in_effect(&mut rig, "live", &last, 0).await?;
    let id = |pod: &Pod| json!(pod.status)["containerStatuses"][0]["containerID"].clone();
    ensure!(id(&before) == id(&after), "the container was restarted");
    rig.finish()
}
