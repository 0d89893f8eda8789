//! Rollouts under load from everywhere, of servers that do not sleep before they stop: nobody notices them, nor an agent that
//! is killed meanwhile; without any rules there is a gap, which the agent keeps short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use harness::containerd::{Cni, Version};
use harness::http::{Record, Traffic};
use harness::netns::Netns;
use serde_json::json;

use crate::rig::{NODE, Rig, address, deploy, no_failures};

const CLUSTER_IP: &str = "10.96.0.80";
const NODE_PORT: u16 = 30080;
const REPLICAS: i32 = 4;
/// Without rules. The goal is 100 ms, which `NODELET_GAP_MS=100` holds a release build in `NODELET_BIN` to; a debug build
/// takes five times as long on a machine that rolls out pods.
const GAP_MS: &str = "NODELET_GAP_MS";
const DEBUG_GAP: Duration = Duration::from_millis(500);

/// What happens again and again during a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    /// `kill -9` of the agent, which is started again.
    Kill,
    /// `nft flush ruleset`.
    Flush,
}

impl Meanwhile {
    /// Until it happens again, having happened so often. An agent that is killed before it has looked around gets nothing
    /// done, so on a slow machine kills become rarer.
    fn pause(self, times: usize) -> Duration {
        match self {
            Self::Nothing | Self::Flush => Duration::from_millis(900),
            Self::Kill => Duration::from_millis(1500) * u32::try_from(1 + times / 4).unwrap_or(u32::MAX),
        }
    }
}

/// Requests by ClusterIP from the node and from a pod, and by NodePort from a pod and from outside.
struct Load(Vec<(&'static str, Traffic)>);

impl Load {
    fn start(rig: &Rig, pod: &Arc<Netns>) -> Self {
        let (cluster_ip, node_port) = (format!("{CLUSTER_IP}:80"), format!("{NODE}:{NODE_PORT}"));
        let streams = [
            ("node", rig.node.netns(), &cluster_ip),
            ("pod", pod, &cluster_ip),
            ("pod by NodePort", pod, &node_port),
            ("outside", rig.plane.lan().shared_netns(), &node_port),
        ];
        Self(
            streams
                .map(|(name, from, to)| {
                    (name, Traffic::start(from.clone(), address(to), "/version", Duration::from_millis(10)))
                })
                .into(),
        )
    }

    fn stop(self) -> anyhow::Result<Vec<(&'static str, Record)>> {
        self.0.into_iter().map(|(name, traffic)| Ok((name, traffic.stop()?))).collect()
    }
}

async fn roll_out(rig: &mut Rig, image: &str, meanwhile: Meanwhile) -> anyhow::Result<Vec<Instant>> {
    let containers = json!([{ "name": "echo", "image": image }]);
    rig.patch_deployment("web", json!({ "spec": { "template": { "spec": { "containers": containers } } } })).await?;
    let mut happened = Vec::new();
    loop {
        if let Ok(done) = tokio::time::timeout(meanwhile.pause(happened.len()), rig.rolled_out("web", REPLICAS)).await {
            done?;
            return Ok(happened);
        }
        ensure!(happened.len() < 100, "the rollout does not end");
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Kill => {
                rig.node.agent()?.ensure_running()?;
                rig.node.agent()?.kill9();
                rig.node.restart_agent()?;
            }
            Meanwhile::Flush => drop(rig.node.netns().sh("nft flush ruleset")?),
        }
        happened.push(Instant::now());
    }
}

async fn roll_out_thrice(rig: &mut Rig, meanwhile: Meanwhile) -> anyhow::Result<Vec<Instant>> {
    let mut happened = Vec::new();
    for image in ["v2", "v1", "v2"] {
        happened.extend(roll_out(rig, &format!("localhost/echo:{image}"), meanwhile).await?);
    }
    // So that the next three begin with a change, too.
    roll_out(rig, "localhost/echo:v1", Meanwhile::Nothing).await?;
    Ok(happened)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_under_load_fails_no_request_whatever_becomes_of_the_agent() {
    rollouts().await.unwrap();
}

async fn rollouts() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Nodelet).await?;
    rig.client_pod().await?;
    deploy(&mut rig, "web", REPLICAS, CLUSTER_IP, NODE_PORT).await?;
    let pod = Arc::new(Netns::of_process(rig.node.pid_of("client").await?)?);
    for meanwhile in [Meanwhile::Nothing, Meanwhile::Kill, Meanwhile::Flush] {
        let load = Load::start(&rig, &pod);
        let happened = roll_out_thrice(&mut rig, meanwhile).await;
        let records = load.stop()?;
        let happened = happened.with_context(|| format!("{meanwhile:?}"))?;
        ensure!(happened.len() >= 3, "{meanwhile:?}: only {} times", happened.len());
        for (from, record) in records {
            check(meanwhile, &happened, record).with_context(|| format!("{meanwhile:?}, from {from}"))?;
        }
    }
    rig.finish()
}

/// No request fails, but for those that were made right after a flush.
fn check(meanwhile: Meanwhile, flushes: &[Instant], mut record: Record) -> anyhow::Result<()> {
    if meanwhile == Meanwhile::Flush {
        let gap =
            std::env::var(GAP_MS).ok().map(|ms| ms.parse().with_context(|| format!("{GAP_MS}={ms} is no number")));
        let gap = gap.transpose()?.map_or(DEBUG_GAP, Duration::from_millis);
        // The command itself takes a moment, and the flush is somewhere in it.
        let is_in_gap = |asked: Instant| flushes.iter().any(|at| asked + gap >= *at && asked <= *at + gap);
        record.failed.retain(|failure| !is_in_gap(failure.asked));
        if record.answered == 0 {
            bail!("nothing was answered");
        }
    }
    no_failures(&record, 100)
}
