//! The API server is away: what runs runs on, what crashes is restarted, the log says what is wrong, and all of it is
//! caught up with afterwards. `NODELET_OUTAGE` is its length in seconds; 600 covers what a short one cannot: a token that has
//! to be renewed, and a node that the control plane has given up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::{always, eventually};
use harness::http::get;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::json;

use crate::rig::{NAME, PATIENCE, Rig, address, ready_since};
use crate::seen::name;

/// Longer than it takes the agent's connection to be found dead.
const SHORT: u64 = 22;
/// After this the node lifecycle controller calls the node, and its pods, not ready.
const GIVEN_UP: Duration = Duration::from_secs(40);
/// The shortest life of a token that the API server grants; it is renewed after four fifths.
const TOKEN_LIFE: u64 = 600;
const TOKEN_DUE: Duration = Duration::from_secs(TOKEN_LIFE * 4 / 5 + 30);
/// The node has to be Ready again after this: a renewal of the lease that hangs gives up after ten seconds.
const AT_ONCE: Duration = Duration::from_secs(20);

fn length() -> anyhow::Result<Duration> {
    let seconds = match std::env::var("NODELET_OUTAGE") {
        Ok(text) => text.parse().with_context(|| format!("NODELET_OUTAGE={text}, expected a number of seconds"))?,
        Err(_) => SHORT,
    };
    ensure!(seconds >= SHORT, "NODELET_OUTAGE={seconds}: shorter than {SHORT} the agent may not notice");
    Ok(Duration::from_secs(seconds))
}

/// A pod that ends with 3 at SIGTERM.
fn mortal(name: &str, policy: &str) -> serde_json::Value {
    let script = "trap 'exit 3' TERM; while :; do sleep 1000 & wait $!; done";
    json!({
        "metadata": { "name": name, "labels": { "app": "mortal" } },
        "spec": {
            "restartPolicy": policy,
            "terminationGracePeriodSeconds": 1,
            "containers": [{ "name": "c", "image": "localhost/busybox:1", "command": ["sh", "-c", script],
                "volumeMounts": [{ "name": "token", "mountPath": "/token" }] }],
            "volumes": [{ "name": "token", "projected": { "sources": [
                { "serviceAccountToken": { "path": "token", "expirationSeconds": TOKEN_LIFE } }] } }],
        },
    })
}

/// The pods `web` and the Service at `service` go on; both have been there for a while.
pub(crate) async fn changes_nothing(rig: &mut Rig, service: &str) -> anyhow::Result<()> {
    let length = length()?;
    for (name, policy) in [("phoenix", "Always"), ("once", "Never"), ("calm", "Always")] {
        rig.create::<Pod>(mortal(name, policy)).await?;
        rig.pod_is_ready(name).await?;
    }
    let before = snapshot(rig).await?;
    let token = token(rig).await?;
    let log_before = std::fs::read_to_string(rig.node.agent()?.log())?.len();
    rig.plane.pause(true)?;
    let held = endures(rig, service, length).await;
    rig.plane.pause(false)?;
    let back = Instant::now();
    held?;
    eventually(AT_ONCE, "the node to be Ready again", async || ready_again(rig).await).await?;
    println!("Ready {:?} after an outage of {length:?}", back.elapsed());
    rig.node_is_ready(NAME).await?;
    caught_up(rig, &before, length).await?;
    if length >= TOKEN_DUE {
        eventually(PATIENCE, "the token to be renewed", async || {
            ensure!(self::token(rig).await? != token, "the old one");
            anyhow::Ok(())
        })
        .await?;
    }
    let log = std::fs::read_to_string(rig.node.agent()?.log())?;
    says_what_is_wrong(log.get(log_before..).unwrap_or_default(), length)?;
    for name in ["phoenix", "once", "calm"] {
        rig.delete::<Pod>(name).await?;
    }
    eventually(PATIENCE, "the pods to be gone", async || {
        let left = rig.pods("mortal").await?;
        ensure!(left.is_empty(), "{:?}", left.iter().map(name).collect::<Vec<_>>());
        anyhow::Ok(())
    })
    .await
}

async fn ready_again(rig: &Rig) -> anyhow::Result<()> {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(rig.client.clone());
    let status = nodes.get(NAME).await?.status.unwrap_or_default();
    let ready = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    let ready = ready.context("no condition")?;
    // A status of before the outage says Ready, too, until the controller has looked.
    let lease: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
        kube::Api::namespaced(rig.client.clone(), "kube-node-lease");
    let renewed = lease.get(NAME).await?.spec.and_then(|spec| spec.renew_time).context("no renewal")?;
    let age = k8s_openapi::jiff::Timestamp::now().duration_since(renewed.0);
    ensure!(ready.status == "True" && age.as_secs() < 15, "{ready:?}, lease renewed {age:?} ago");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_runtime_says_so_and_loses_no_pod() {
    let mut rig = Rig::joined(Version::V2, Cni::Nodelet).await.unwrap();
    runtime_is_away(&mut rig).await.unwrap();
    rig.finish().unwrap();
}

async fn runtime_is_away(rig: &mut Rig) -> anyhow::Result<()> {
    rig.create::<Pod>(mortal("calm", "Always")).await?;
    let before = state(&rig.pod_is_ready("calm").await?).1;
    let condition = async |rig: &Rig| {
        let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(rig.client.clone());
        let status = nodes.get(NAME).await?.status.unwrap_or_default();
        status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready").context("no condition")
    };
    rig.node.containerd.kill9();
    let began = Instant::now();
    always(Duration::from_secs(25), "a node that is Ready as long as a restart takes", async || {
        let ready = condition(rig).await?;
        ensure!(ready.status == "True", "{ready:?}");
        anyhow::Ok(())
    })
    .await?;
    eventually(PATIENCE, "the node to say that its runtime is down", async || {
        let ready = condition(rig).await?;
        let told = ready.message.clone().unwrap_or_default();
        ensure!(ready.status == "False" && ready.reason.as_deref() == Some("KubeletNotReady"), "{ready:?}");
        ensure!(told.contains("container runtime is down") && told.contains("containerd.sock"), "{told}");
        println!("said after {:?}: {told}", began.elapsed());
        anyhow::Ok(())
    })
    .await?;
    let netns = rig.node.netns().clone();
    rig.node.containerd.restart(&netns).await?;
    rig.node_is_ready(NAME).await?;
    let after = rig.pod_is_ready("calm").await?;
    ensure!(state(&after).1 == before, "{before:?} became {:?}", state(&after));
    rig.delete::<Pod>("calm").await?;
    rig.nothing_is_left().await
}

/// What happens while nobody answers.
async fn endures(rig: &mut Rig, service: &str, length: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    let answers = |rig: &Rig| {
        let text = get(rig.node.netns(), address(service), "/version")?;
        ensure!(text == "v2\n", "{text}");
        anyhow::Ok(())
    };
    for pod in ["phoenix", "once"] {
        // The command may end with its container.
        let _ = rig.node.exec(pod, &["kill", "1"]).await;
    }
    eventually(PATIENCE, "the crashed container to be restarted, and the other not", async || {
        answers(rig)?;
        let agent = rig.node.agent.as_ref().context("no agent")?;
        let (phoenix, once) = (agent.pod("phoenix")?, agent.pod("once")?);
        ensure!(restarts(&phoenix) == 1 && ready_since(&phoenix).is_some(), "{:?}", phoenix.status);
        let phase = once.status.as_ref().and_then(|status| status.phase.clone());
        ensure!(restarts(&once) == 0 && phase.as_deref() == Some("Failed"), "{:?}", once.status);
        anyhow::Ok(())
    })
    .await?;
    let agent_pods = |rig: &Rig| -> anyhow::Result<BTreeMap<String, State>> {
        let pods: Vec<Pod> = rig.node.agent.as_ref().context("no agent")?.list("pods")?;
        Ok(pods.iter().map(|pod| (name(pod), state(pod))).collect())
    };
    let before = agent_pods(rig)?;
    let first = length.saturating_sub(began.elapsed());
    always(first, "a node without a control plane", async || {
        answers(rig)?;
        let now = agent_pods(rig)?;
        ensure!(now == before, "{before:?} became {now:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    ensure!(rig.node.exec("calm", &["cat", "/token/token"]).await?.split('.').count() == 3, "the token is there");
    // A restart of the agent in the outage, too.
    rig.node.agent()?.kill9();
    rig.node.restart_agent()?;
    always(Duration::from_secs(5), "a Service without control plane after a restart", async || answers(rig)).await?;
    eventually(PATIENCE, "the restarted agent to know its pods as they were", async || {
        let now = agent_pods(rig)?;
        ensure!(now == before, "{before:?} became {now:?}");
        anyhow::Ok(())
    })
    .await
}

type State = (Option<String>, Vec<(i32, String)>);

fn state(pod: &Pod) -> State {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let containers = statuses.map(|c| (c.restart_count, c.container_id.clone().unwrap_or_default())).collect();
    (ready_since(pod), containers)
}

fn restarts(pod: &Pod) -> i32 {
    state(pod).1.iter().map(|(restarts, _)| restarts).sum()
}

/// Since when each pod is Ready, its restarts and its containers.
async fn snapshot(rig: &Rig) -> anyhow::Result<BTreeMap<String, (State, Option<String>)>> {
    let pods = rig.api::<Pod>().list(&ListParams::default()).await?.items;
    ensure!(pods.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()), "a pod is being deleted");
    Ok(pods.iter().map(|pod| (name(pod), (state(pod), pod.metadata.uid.clone()))).collect())
}

/// The API server hears what happened, and everything else is as it was.
async fn caught_up(
    rig: &mut Rig,
    before: &BTreeMap<String, (State, Option<String>)>,
    length: Duration,
) -> anyhow::Result<()> {
    eventually(PATIENCE, "the API server to hear of the outage", async || {
        let after = snapshot(rig).await?;
        ensure!(after.len() == before.len(), "{:?} became {:?}", before.keys(), after.keys());
        for (name, (((ready, containers), uid), now)) in
            before.iter().filter_map(|(name, state)| Some((name, (state.clone(), after.get(name)?))))
        {
            ensure!(now.1 == uid, "{name} is another pod");
            match name.as_str() {
                "phoenix" => ensure!(now.0.1.iter().all(|(restarts, _)| *restarts == 1), "{name}: {now:?}"),
                "once" => ensure!(now.0 == (None, containers), "{name}: {now:?}"),
                // A control plane that was away for longer calls all pods unready when it is back; that is undone.
                _ if length > GIVEN_UP => ensure!(now.0.0.is_some() && now.0.1 == containers, "{name}: {now:?}"),
                _ => ensure!(now.0 == (ready, containers), "{name}: {now:?}"),
            }
        }
        anyhow::Ok(())
    })
    .await?;
    let pods = rig.api::<Pod>();
    let once = pods.get("once").await?.status.unwrap_or_default();
    ensure!(once.phase.as_deref() == Some("Failed") && once.reason.is_none(), "{once:?}");
    let story = rig.story().await;
    ensure!(!story.contains("Evicted") && !story.contains("Preempting"), "{story}");
    Ok(())
}

/// The content of the token, as its pod sees it.
async fn token(rig: &Rig) -> anyhow::Result<String> {
    rig.node.exec("calm", &["cat", "/token/token"]).await
}

/// Warnings name what does not work and why, and each comes every few seconds at most.
fn says_what_is_wrong(log: &str, length: Duration) -> anyhow::Result<()> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")) {
        // The words between level and fields are the same each time.
        let text = line.split_once(" WARN ").or_else(|| line.split_once(" ERROR ")).map_or(line, |(_, text)| text);
        let words = text.split_whitespace().take_while(|word| !word.contains('='));
        *counts.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
    }
    println!("warnings in an outage of {length:?}: {counts:#?}");
    let lease = log.lines().find(|line| line.contains("cannot renew the node lease"));
    let lease = lease.with_context(|| format!("nothing about the lease: {counts:?}"))?;
    println!("{lease}");
    let (_, reason) = lease.split_once("error=").with_context(|| format!("no reason: {lease}"))?;
    ensure!(["no answer", "timed out", "connect"].iter().any(|word| reason.contains(word)), "{lease}");
    let most = 10 + usize::try_from(length.as_secs() / 5)?;
    let often: Vec<_> = counts.iter().filter(|(_, count)| **count > most).collect();
    ensure!(often.is_empty(), "more than {most} times: {often:?}");
    Ok(())
}
