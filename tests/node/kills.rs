//! kill -9 of the agent at random moments, while pods run, come and go, and requests pass through a Service.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::http::Traffic;
use harness::leak_check::is_forgotten_by_containerd;
use harness::node::Node;
use harness::random::Random;
use k8s_openapi::api::core::v1::Pod;

use crate::ending::{nothing_on_the_host, stop_all};
use crate::look::{LONG, all_ready, cluster_ip, container_ids, pod, statuses, web};

const KILLS: u32 = 50;
/// Pods that run all the time.
const STEADY: usize = 20;
/// An agent lives at most this long; it needs some 100 ms to know all of its pods.
const LONGEST_LIFE_MS: u64 = 600;

/// What may not change in a pod that goes on running.
#[derive(Debug, PartialEq)]
struct Steady {
    uid: Option<String>,
    ip: Option<String>,
    containers: Vec<String>,
    restarts: Vec<i32>,
    /// A condition that changes and changes back shows another time.
    conditions: BTreeMap<String, (String, String)>,
}

fn steady(pod: &Pod) -> Steady {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default().into_iter().map(|condition| {
        let since = condition.last_transition_time.map(|time| time.0.to_string()).unwrap_or_default();
        (condition.type_, (condition.status, since))
    });
    Steady {
        uid: pod.metadata.uid.clone(),
        ip: status.pod_ip,
        containers: container_ids(pod),
        restarts: statuses(pod).iter().map(|status| status.restart_count).collect(),
        conditions: conditions.collect(),
    }
}

/// Pods that come and go between the kills: each kill may hit a start, and a stop that takes a second.
#[derive(Default)]
struct Guests {
    here: Vec<String>,
    gone: Vec<String>,
}

impl Guests {
    fn change(&mut self, node: &Node, round: u32, random: &mut Random) -> anyhow::Result<()> {
        if random.below(2) == 0 && !self.here.is_empty() {
            let name = self.here.remove(usize::try_from(random.below(self.here.len() as u64))?);
            fs::remove_file(node.manifests().join(format!("{name}.yaml")))?;
            self.gone.push(name);
        } else {
            let name = format!("guest-{round}");
            let text = include_str!("../data/node/slow.yaml").replace("NAME", &name);
            let text = text.replace("DIRECTORY", &node.path("out").display().to_string());
            node.write_manifest(&format!("{name}.yaml"), &text)?;
            self.here.push(name);
        }
        Ok(())
    }
}

async fn kills(node: &mut Node, random: &mut Random) -> anyhow::Result<()> {
    let names: Vec<String> = (1..=STEADY).map(|number| format!("web-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        node.write_manifest(&format!("{name}.yaml"), &web(name, "v1"))?;
    }
    node.write_manifest("services.yaml", include_str!("../data/node/services.yaml"))?;
    fs::create_dir_all(node.path("out"))?;
    node.run_alone()?;
    all_ready(node, &names).await?;
    let look = |node: &Node| names.iter().map(|name| Ok(steady(&pod(node, name)?))).collect::<anyhow::Result<Vec<_>>>();
    let before = look(node)?;
    let service: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let every = Duration::from_millis(5);
    let traffic = [
        Traffic::start(node.netns().clone(), service, "/hostname", every),
        Traffic::over_one_connection(node.netns().clone(), service, "/hostname", every),
    ];
    let mut guests = Guests::default();
    for round in 0..KILLS {
        guests.change(node, round, random)?;
        // The moment is the point here, nothing is waited for.
        tokio::time::sleep(Duration::from_millis(random.below(LONGEST_LIFE_MS))).await;
        node.agent()?.ensure_running()?;
        node.agent()?.kill9();
        tokio::time::sleep(Duration::from_millis(random.below(50))).await;
        node.restart_agent()?;
    }
    all_ready(node, &names).await?;
    let here: Vec<&str> = guests.here.iter().map(String::as_str).collect();
    all_ready(node, &here).await?;
    eventually(LONG, "guests that left to be gone", async || none_of(node, &guests.gone).await).await?;
    for traffic in traffic {
        let record = traffic.stop()?;
        println!("{} requests, the slowest took {:?}", record.answered, record.slowest);
        ensure!(record.failed.is_empty() && record.answered > 100, "{record:#?}");
    }
    let after = look(node)?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(before == after, "a pod did not go on undisturbed: {before:#?} became {after:#?}");
    }
    nothing_stays(node, &guests).await
}

/// Fails while the runtime knows a container or a sandbox of one of these pods.
async fn none_of(node: &Node, names: &[String]) -> anyhow::Result<()> {
    for sandbox in node.sandboxes().await? {
        let name = sandbox.metadata.unwrap_or_default().name;
        ensure!(!names.contains(&name), "sandbox of {name}");
    }
    for container in node.containers().await? {
        let name = container.labels.get("io.kubernetes.pod.name").cloned().unwrap_or_default();
        ensure!(!names.contains(&name), "container of {name}");
    }
    Ok(())
}

/// Stops the rest, and looks at what all the interrupted starts and stops left.
async fn nothing_stays(node: &mut Node, guests: &Guests) -> anyhow::Result<()> {
    stop_all(node, is_forgotten_by_containerd).await?;
    for name in &guests.here {
        ensure!(node.path("out").join(name).exists(), "{name} did not get the time to end");
    }
    Ok(())
}

async fn fifty_kills(version: Version, cni: Cni) -> anyhow::Result<()> {
    let mut random = Random::from_env();
    let seed = random.seed();
    let mut node = Node::alone(version, cni).await?;
    let outcome = kills(&mut node, &mut random).await;
    outcome.with_context(|| format!("NODELET_TEST_SEED={seed}\n{}", node.logs()))?;
    nothing_on_the_host(node)
}

#[tokio::test]
async fn fifty_kills_of_the_agent_disturb_nothing_on_containerd_1_6_with_bridge() {
    fifty_kills(Version::V1_6, Cni::Bridge).await.unwrap();
}

#[tokio::test]
async fn fifty_kills_of_the_agent_disturb_nothing_on_containerd_2_with_nodelet_cni() {
    fifty_kills(Version::V2, Cni::ByAgent).await.unwrap();
}
