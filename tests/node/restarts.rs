//! containerd killed and started again, over and over, while pods run, come and go; and away for long.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::{always, eventually};
use harness::http::Traffic;
use harness::leak_check::is_forgotten_by_containerd;
use harness::node::Node;
use harness::random::Random;
use k8s_openapi::api::core::v1::Pod;

use crate::ending::{nothing_on_the_host, stop_all};
use crate::look::{LONG, all_ready, cluster_ip, condition, container_ids, pod, statuses, web};

const RESTARTS: u32 = 12;
const WEB: [&str; 4] = ["web-1", "web-2", "web-3", "web-4"];
const PROBED: [&str; 3] = ["probed-1", "probed-2", "probed-3"];
/// `maxWaitForContainerRuntime` of kubelet, and the pause between two questions of the agent.
const PATIENCE: Duration = Duration::from_secs(30 + 4);

/// A pod whose probes are commands: the runtime is asked for each of them.
fn probed(name: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: app
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 1000 & wait $!; done']
      readinessProbe: {{ exec: {{ command: ["true"] }}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1 }}
      livenessProbe: {{ exec: {{ command: ["true"] }}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 1 }}
"#
    )
}

/// What may not change of a pod: containers, restarts, and since when it is Ready.
type Steady = (Vec<String>, Vec<i32>, Option<(String, String)>);

fn steady(pod: &Pod) -> Steady {
    let restarts = statuses(pod).iter().map(|status| status.restart_count).collect();
    (container_ids(pod), restarts, condition(pod, "Ready"))
}

fn look(node: &Node) -> anyhow::Result<BTreeMap<&'static str, Steady>> {
    WEB.iter().chain(&PROBED).map(|name| Ok((*name, steady(&pod(node, name)?)))).collect()
}

fn same(node: &Node, before: &BTreeMap<&'static str, Steady>) -> anyhow::Result<()> {
    let now = look(node)?;
    for (name, before) in before {
        ensure!(now.get(name) == Some(before), "{name}: {before:?} became {:?}", now.get(name));
    }
    Ok(())
}

async fn restarts(node: &mut Node, random: &mut Random) -> anyhow::Result<()> {
    for name in WEB {
        node.write_manifest(&format!("{name}.yaml"), &web(name, "v1"))?;
    }
    for name in PROBED {
        node.write_manifest(&format!("{name}.yaml"), &probed(name))?;
    }
    node.write_manifest("services.yaml", include_str!("../data/node/services.yaml"))?;
    fs::create_dir_all(node.path("out"))?;
    node.run_alone()?;
    all_ready(node, &WEB).await?;
    all_ready(node, &PROBED).await?;
    let before = look(node)?;
    let service: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let traffic = Traffic::start(node.netns().clone(), service, "/hostname", Duration::from_millis(5));
    let (mut here, mut gone) = (Vec::new(), Vec::new());
    let netns = node.netns().clone();
    for round in 0..RESTARTS {
        guests(node, round, &mut here, &mut gone)?;
        // The moment is the point here, nothing is waited for.
        tokio::time::sleep(Duration::from_millis(random.below(1200))).await;
        node.containerd.kill9();
        tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
        node.containerd.restart(&netns).await?;
        node.agent()?.ensure_running()?;
        same(node, &before)?;
    }
    let names: Vec<&str> = here.iter().map(String::as_str).collect();
    all_ready(node, &names).await?;
    eventually(LONG, "guests that left to be gone", async || {
        for container in node.containers().await? {
            let name = container.labels.get("io.kubernetes.pod.name").cloned().unwrap_or_default();
            ensure!(!gone.contains(&name), "container of {name}");
        }
        ensure!(gone.iter().all(|name| pod(node, name).is_err()), "a pod of {gone:?} is there");
        anyhow::Ok(())
    })
    .await?;
    is_away(node, &before).await?;
    let record = traffic.stop()?;
    ensure!(record.failed.is_empty() && record.answered > 100, "{record:#?}");
    same(node, &before)?;
    nothing_stays(node).await
}

/// Two pods come in each round, and one of the round before goes.
fn guests(node: &Node, round: u32, here: &mut Vec<String>, gone: &mut Vec<String>) -> anyhow::Result<()> {
    if let Some(name) = here.first().cloned() {
        fs::remove_file(node.manifests().join(format!("{name}.yaml")))?;
        gone.push(here.remove(0));
    }
    let slow = format!("slow-{round}");
    let text = include_str!("../data/node/slow.yaml").replace("NAME", &slow);
    node.write_manifest(&format!("{slow}.yaml"), &text.replace("DIRECTORY", &node.path("out").display().to_string()))?;
    let quick = format!("quick-{round}");
    node.write_manifest(&format!("{quick}.yaml"), &probed(&quick))?;
    here.extend([slow, quick]);
    Ok(())
}

/// The runtime is away for longer than a restart takes: pods are as they were, and people are told.
async fn is_away(node: &mut Node, before: &BTreeMap<&'static str, Steady>) -> anyhow::Result<()> {
    let complaint = |node: &Node| -> anyhow::Result<String> {
        let done = node.agent.as_ref().context("no agent")?.run(&["get", "pods"])?;
        ensure!(done.status.success(), "{done:?}");
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    };
    ensure!(complaint(node)?.is_empty(), "{}", complaint(node)?);
    node.containerd.kill9();
    let began = Instant::now();
    always(PATIENCE, "pods go on", async || same(node, before)).await?;
    eventually(LONG, "the agent to say that the runtime is down", async || {
        let told = complaint(node)?;
        ensure!(
            told.starts_with("warning: container runtime is down: ") && told.contains("containerd.sock"),
            "{told:?}"
        );
        anyhow::Ok(())
    })
    .await?;
    println!("said after {:?}: {}", began.elapsed(), complaint(node)?.trim_end());
    let log = fs::read_to_string(node.agent()?.log())?;
    ensure!(log.contains("runtime events interrupted"), "{}", node.agent()?.log_tail());
    let netns = node.netns().clone();
    node.containerd.restart(&netns).await?;
    eventually(LONG, "the agent to say that the runtime is back", async || {
        ensure!(complaint(node)?.is_empty(), "{}", complaint(node)?);
        anyhow::Ok(())
    })
    .await
}

async fn nothing_stays(node: &mut Node) -> anyhow::Result<()> {
    // A containerd that dies between making a network namespace and writing its sandbox down never knows of it again.
    stop_all(node, |what| is_forgotten_by_containerd(what) || what.contains("/netns/cni-")).await
}

async fn restarts_under_load(version: Version, cni: Cni) -> anyhow::Result<()> {
    let mut random = Random::from_env();
    let seed = random.seed();
    let mut node = Node::alone(version, cni).await?;
    let outcome = restarts(&mut node, &mut random).await;
    outcome.with_context(|| format!("NODELET_TEST_SEED={seed}\n{}", node.logs()))?;
    nothing_on_the_host(node)
}

#[tokio::test]
async fn kills_of_containerd_under_load_touch_no_healthy_pod_on_1_6_with_bridge() {
    restarts_under_load(Version::V1_6, Cni::Bridge).await.unwrap();
}

#[tokio::test]
async fn kills_of_containerd_under_load_touch_no_healthy_pod_on_2_with_nodelet_cni() {
    restarts_under_load(Version::V2, Cni::ByAgent).await.unwrap();
}
