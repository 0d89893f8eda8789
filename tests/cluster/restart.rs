//! `kill -9` of the joined agent at random moments: nobody but a reader of its log may notice.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::http::Traffic;
use harness::random::Random;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use nodelet_proto::cri;
use serde_json::json;

use crate::rig::{NAME, PATIENCE, Rig, address, deploy, no_failures, ready_since};
use crate::seen::{Seen, name};

const CLUSTER_IP: &str = "10.96.0.80";
const KILLS: u32 = 50;
const REPLICAS: i32 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_disturb_nobody_on_containerd_1_6_with_bridge() {
    fifty_kills(Version::V1_6, Cni::Bridge).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_disturb_nobody_on_containerd_2_with_nodelet_cni() {
    fifty_kills(Version::V2, Cni::Nodelet).await.unwrap();
}

async fn fifty_kills(version: Version, cni: Cni) -> anyhow::Result<()> {
    let mut rig = Rig::joined(version, cni).await?;
    let before = rig.node_is_ready(NAME).await?;
    deploy(&mut rig, "web", REPLICAS, CLUSTER_IP, 30080).await?;
    let pods: BTreeMap<String, State> = rig.pods("web").await?.iter().map(|pod| (name(pod), state(pod))).collect();
    ensure!(pods.len() == REPLICAS as usize && pods.values().all(|(ready, _)| ready.is_some()));
    let seen = Seen::of(&rig, "web", pods, state);
    let traffic =
        Traffic::start(rig.node.netns().clone(), address(&format!("{CLUSTER_IP}:80")), "/", Duration::from_millis(2));
    let mut random = Random::from_env();
    println!("NODELET_TEST_SEED={}", random.seed());
    for round in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
        if round % 10 == 3 {
            start_and_stop_something(&rig, round).await?;
            tokio::time::sleep(Duration::from_millis(random.below(600))).await;
        }
        rig.node.agent()?.ensure_running()?;
        rig.node.agent()?.kill9();
        rig.node.restart_agent()?;
    }
    let record = traffic.stop()?;
    no_failures(&record, 1000)?;
    what_was_begun_is_finished(&mut rig).await?;
    seen.changes()?;
    let after = rig.node_is_ready(NAME).await?;
    ensure!(transition(&after) == transition(&before), "the node was not Ready for a moment");
    rig.finish()
}

/// A pod that takes three seconds to stop is being stopped, and another one is being started, when the kill comes.
async fn start_and_stop_something(rig: &Rig, round: u32) -> anyhow::Result<()> {
    let slow = json!(["sh", "-c", "trap 'sleep 2; exit 0' TERM; while true; do sleep 0.1; done"]);
    let pod = |name: &str, command: &serde_json::Value| {
        json!({
            "metadata": { "name": name, "labels": { "app": "guest" } },
            "spec": { "terminationGracePeriodSeconds": 20, "containers": [
                { "name": "c", "image": "localhost/busybox:1", "command": command }] },
        })
    };
    if round > 3 {
        rig.delete::<Pod>(&format!("guest-{}", round - 10)).await?;
    }
    rig.create::<Pod>(pod(&format!("guest-{round}"), &slow)).await?;
    Ok(())
}

async fn what_was_begun_is_finished(rig: &mut Rig) -> anyhow::Result<()> {
    let last = "guest-43";
    // A start that a kill cuts in half may cost it an attempt; it has to come to its end all the same.
    rig.pod_is_ready(last).await?;
    let done = eventually(PATIENCE, "all deleted guests to be gone", async || {
        let names: Vec<String> = rig.pods("guest").await?.into_iter().filter_map(|pod| pod.metadata.name).collect();
        ensure!(names == [last], "{names:?}");
        let containers = rig.node.containers().await?;
        let running = containers.iter().filter(|c| c.state == cri::ContainerState::ContainerRunning as i32).count();
        ensure!(running == REPLICAS as usize + 1, "{running} containers run");
        let guests = containers.iter().filter(|c| c.metadata.as_ref().is_some_and(|m| m.name == "c")).count();
        ensure!(containers.len() - guests == REPLICAS as usize, "{} of the Deployment", containers.len() - guests);
        anyhow::Ok(())
    });
    match done.await {
        Ok(()) => Ok(()),
        Err(error) => Err(error.context(rig.node.agent()?.log_tail())),
    }
}

/// A state of a pod that may not change: since when it is Ready, and its containers with their restarts.
type State = (Option<String>, Vec<(i32, String)>);

/// Since when the node is Ready.
fn transition(node: &Node) -> Option<Time> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.into_iter().filter(|condition| condition.type_ == "Ready");
    ready.next()?.last_transition_time.clone()
}

fn state(pod: &Pod) -> State {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let containers = statuses.map(|c| (c.restart_count, c.container_id.clone().unwrap_or_default())).collect();
    (ready_since(pod), containers)
}
