//! The disk is full: what runs runs on, what cannot start says why, and all of it is caught up with when there is room.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::process::Command;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Node;

use crate::ending::{nothing_on_the_host, stop_all};
use crate::look::{LONG, all_ready, condition, container_ids, pod, statuses, web};

/// Where the agent writes: pods' directories, its own records, logs of pods.
const PLACES: [&str; 3] = ["kubelet", "state", "pod-logs"];
const STEADY: [&str; 2] = ["web-1", "everything"];

/// Puts a small disk of its own at each of these.
fn small_disks(node: &Node) -> anyhow::Result<()> {
    for place in PLACES {
        fs::create_dir_all(node.path(place))?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]).arg(node.path(place));
        ensure!(mount.status()?.success(), "mount at {place}");
    }
    Ok(())
}

/// Writes until there is no room.
fn fill(node: &Node) -> anyhow::Result<()> {
    for place in PLACES {
        let mut file = File::create(node.path(place).join("filler"))?;
        // The last byte, not only the last large block.
        for size in [1 << 16, 1 << 12, 1] {
            let full = loop {
                if let Err(error) = file.write_all(&vec![1; size]) {
                    break error;
                }
            };
            ensure!(full.kind() == ErrorKind::StorageFull, "{place}: {full}");
        }
    }
    Ok(())
}

fn make_room(node: &Node) -> anyhow::Result<()> {
    PLACES.iter().try_for_each(|place| Ok(fs::remove_file(node.path(place).join("filler"))?))
}

type Steady = (Vec<String>, Vec<i32>, Option<(String, String)>);

fn look(node: &Node) -> anyhow::Result<Vec<Steady>> {
    let of = |name| {
        let pod = pod(node, name)?;
        let restarts = statuses(&pod).iter().map(|status| status.restart_count).collect();
        anyhow::Ok((container_ids(&pod), restarts, condition(&pod, "Ready")))
    };
    STEADY.iter().map(|name| of(name)).collect()
}

fn same(node: &Node, before: &[Steady]) -> anyhow::Result<()> {
    let now = look(node)?;
    ensure!(now == before, "{before:?} became {now:?}");
    Ok(())
}

async fn scenario(node: &mut Node) -> anyhow::Result<()> {
    small_disks(node)?;
    for (name, text) in [
        ("objects.yaml", include_str!("../data/node/objects.yaml")),
        ("everything.yaml", include_str!("../data/node/everything.yaml")),
        ("web-1.yaml", &web("web-1", "v1")),
        ("web-2.yaml", &web("web-2", "v1")),
    ] {
        node.write_manifest(name, text)?;
    }
    node.run_alone()?;
    all_ready(node, &["everything", "web-1", "web-2"]).await?;
    let before = look(node)?;
    fill(node)?;
    // One comes, one goes, and one crashes; `everything` again under another name needs all kinds of volumes.
    let other = include_str!("../data/node/everything.yaml").replacen("name: everything", "name: other", 1);
    node.write_manifest("other.yaml", &other)?;
    node.write_manifest("web-3.yaml", &web("web-3", "v1"))?;
    fs::remove_file(node.manifests().join("web-2.yaml"))?;
    eventually(LONG, "web-2 to be gone", async || {
        ensure!(pod(node, "web-2").is_err(), "still there");
        Ok(())
    })
    .await?;
    says_what_is_full(node, "other").await?;
    same(node, &before)?;
    // An agent that starts while there is no room.
    node.agent()?.ensure_running()?;
    node.agent()?.kill9();
    node.restart_agent()?;
    all_ready(node, &STEADY).await?;
    same(node, &before)?;
    says_what_is_full(node, "other").await?;
    make_room(node)?;
    all_ready(node, &["other", "web-3"]).await?;
    same(node, &before)?;
    no_complaint(node).await?;
    // What was written down meanwhile is whole.
    node.agent()?.kill9();
    node.restart_agent()?;
    all_ready(node, &["everything", "web-1", "other", "web-3"]).await?;
    same(node, &before)?;
    let log = fs::read_to_string(node.agent()?.log())?;
    ensure!(!log.contains("panicked") && !log.contains("set aside"), "{}", node.agent()?.log_tail());
    let places = PLACES.map(|place| format!("mount {}", node.path(place).display()));
    stop_all(node, |what| places.iter().any(|place| place == what)).await
}

/// The new pod tells which path, and what to do; so does `nodelet get`, of the agent's own records.
async fn says_what_is_full(node: &Node, name: &str) -> anyhow::Result<()> {
    let agent = node.agent.as_ref().context("no agent")?;
    eventually(LONG, "the pod to say what is full", async || {
        let told = agent.ask(&["describe", "pod", name])?;
        let place = node.path("kubelet").display().to_string();
        let line = told.lines().find(|line| line.contains("No space left on device") && line.contains(&place));
        let line = line.with_context(|| told.clone())?;
        ensure!(line.contains("free some space"), "{line}");
        Ok(())
    })
    .await?;
    eventually(LONG, "the agent to say that it cannot write its records", async || {
        let done = agent.run(&["get", "pods"])?;
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        let place = node.path("state").display().to_string();
        ensure!(done.status.success() && told.contains("warning: ") && told.contains(&place), "{told:?}");
        ensure!(told.contains("No space left on device") && told.contains("free some space"), "{told:?}");
        anyhow::Ok(())
    })
    .await
}

async fn no_complaint(node: &Node) -> anyhow::Result<()> {
    let agent = node.agent.as_ref().context("no agent")?;
    eventually(LONG, "the agent to have written its records", async || {
        let done = agent.run(&["get", "pods"])?;
        ensure!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
        anyhow::Ok(())
    })
    .await
}

#[tokio::test]
async fn a_full_disk_touches_no_pod_that_runs_and_is_named_with_its_path() {
    let mut node = Node::alone(Version::V2, Cni::ByAgent).await.unwrap();
    let outcome = scenario(&mut node).await;
    outcome.with_context(|| node.logs()).unwrap();
    nothing_on_the_host(node).unwrap();
}
