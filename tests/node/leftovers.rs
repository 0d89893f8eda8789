//! What an agent finds at its start that no record of its own tells of.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::leak_check::remains_of_pods;
use harness::node::Node;

use crate::ending::nothing_of_pods;
use crate::look::{LONG, SHORT, all_ready, container_ids, pod};

/// A node with one Burstable pod, its agent stopped.
async fn stopped() -> anyhow::Result<Node> {
    let mut node = Node::alone(Version::V2, Cni::ByAgent).await?;
    node.write_manifest("objects.yaml", include_str!("../data/node/objects.yaml"))?;
    node.write_manifest("everything.yaml", include_str!("../data/node/everything.yaml"))?;
    node.run_alone()?;
    all_ready(&node, &["everything"]).await?;
    node.agent()?.stop().await?;
    Ok(node)
}

async fn nothing_is_left(node: &Node) -> anyhow::Result<()> {
    nothing_of_pods(node, |_| false).await.with_context(|| node.logs())
}

#[tokio::test]
async fn a_pod_whose_record_and_manifest_are_lost_is_stopped_and_leaves_nothing() {
    let mut node = stopped().await.unwrap();
    fs::remove_dir_all(node.path("state/pods")).unwrap();
    fs::remove_file(node.manifests().join("everything.yaml")).unwrap();
    node.restart_agent().unwrap();
    nothing_is_left(&node).await.unwrap();
}

#[tokio::test]
async fn a_stop_of_an_unknown_pod_is_finished_after_a_kill() {
    let mut node = stopped().await.unwrap();
    fs::remove_dir_all(node.path("state/pods")).unwrap();
    fs::remove_file(node.manifests().join("everything.yaml")).unwrap();
    node.restart_agent().unwrap();
    // Its record is written when the stop begins.
    eventually(LONG, "the stop to begin", async || {
        let records = fs::read_dir(node.path("state/pods"))?.count();
        ensure!(records > 0, "no record");
        anyhow::Ok(())
    })
    .await
    .unwrap();
    node.agent().unwrap().kill9();
    node.restart_agent().unwrap();
    nothing_is_left(&node).await.unwrap();
}

/// Directories, a mount, logs and a cgroup with a process in it, as a pod leaves them whose runtime was wiped.
fn plant(node: &Node, uid: &str) -> anyhow::Result<Child> {
    let volume = node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/cache"));
    fs::create_dir_all(&volume)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&volume).status()?;
    ensure!(mounted.success(), "mount");
    fs::write(volume.join("file"), "x")?;
    fs::create_dir_all(node.path(&format!("pod-logs/default_old_{uid}/app")))?;
    let process = Command::new("sleep").arg("1000").spawn()?;
    for parent in node.cgroups.find("kubepods/burstable") {
        let (pod, container) = (parent.join(format!("pod{uid}")), parent.join(format!("pod{uid}/container")));
        for cgroup in [&pod, &container] {
            fs::create_dir(cgroup)?;
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| parent.starts_with("/sys/fs/cgroup/cpuset")) {
                fs::write(cgroup.join(file), fs::read_to_string(parent.join(file))?.trim())?;
            }
        }
        fs::write(container.join("cgroup.procs"), process.id().to_string())?;
    }
    Ok(process)
}

#[tokio::test]
async fn what_nobody_knows_of_is_removed_and_the_pods_that_run_stay() {
    let mut node = stopped().await.unwrap();
    let uid = "11111111-2222-3333-4444-555555555555";
    let process = plant(&node, uid).unwrap();
    node.restart_agent().unwrap();
    // Reaped here, as the runtime's shim does.
    let reaper = std::thread::spawn({
        let mut process = process;
        move || process.wait()
    });
    eventually(LONG, "what was planted to be gone", async || {
        let left = remains_of_pods(&node).await?;
        let left: Vec<_> = left.iter().filter(|what| what.contains(uid)).collect();
        ensure!(left.is_empty(), "{left:#?}");
        anyhow::Ok(())
    })
    .await
    .with_context(|| node.logs())
    .unwrap();
    assert!(!reaper.join().unwrap().unwrap().success(), "killed");
    all_ready(&node, &["everything"]).await.unwrap();
    fs::remove_file(node.manifests().join("everything.yaml")).unwrap();
    nothing_is_left(&node).await.unwrap();
}

/// The weight of Burstable pods as the kernel has it.
fn weight(node: &Node) -> anyhow::Result<String> {
    let files = ["cpu.shares", "cpu.weight"];
    let directories = node.cgroups.find("kubepods/burstable");
    let paths: Vec<PathBuf> = directories.iter().flat_map(|directory| files.map(|file| directory.join(file))).collect();
    let file = paths.iter().find(|path| path.exists()).context("no weight")?;
    Ok(fs::read_to_string(file)?)
}

#[tokio::test]
async fn a_restart_keeps_the_weight_of_burstable_pods() {
    let mut node = Node::alone(Version::V1_6, Cni::Bridge).await.unwrap();
    node.write_manifest("objects.yaml", include_str!("../data/node/objects.yaml")).unwrap();
    let text = include_str!("../data/node/everything.yaml").replace("cpu: 10m", "cpu: 500m");
    node.write_manifest("everything.yaml", &text).unwrap();
    node.run_alone().unwrap();
    all_ready(&node, &["everything"]).await.unwrap();
    let (before, containers) = (weight(&node).unwrap(), container_ids(&pod(&node, "everything").unwrap()));
    node.agent().unwrap().kill9();
    node.restart_agent().unwrap();
    all_ready(&node, &["everything"]).await.unwrap();
    eventually(SHORT, "the weight to be as before", async || {
        let now = weight(&node)?;
        ensure!(now == before, "{before} became {now}");
        anyhow::Ok(())
    })
    .await
    .unwrap();
    assert_ne!(before.trim(), "2", "the pod counts");
    assert_eq!(container_ids(&pod(&node, "everything").unwrap()), containers);
}
