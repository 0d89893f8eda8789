//! A node with nothing but a `staticPodPath`: what a machine is before its control plane is there.

use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Node;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                   containers: [{name: c, image: 'localhost/echo:v1'}]\n";

#[tokio::test]
async fn static_pods_run_without_manifests_and_without_a_control_plane() {
    static_pods().await.unwrap();
}

async fn static_pods() -> anyhow::Result<()> {
    let mut node = Node::alone(Version::V1_6, Cni::Nodelet).await?;
    node.write_static_pod("web.yaml", POD)?;
    node.run_static()?;
    let name = format!("web-{}", hostname()?);
    let one_runs = async |node: &mut Node| {
        eventually(Duration::from_secs(20), "the static pod to be Ready", async || {
            let listed = node.agent()?.ask(&["get", "pods"])?;
            let line = listed.lines().find(|line| line.contains(&name)).with_context(|| listed.clone())?;
            ensure!(line.contains("1/1"), "{line}");
            anyhow::Ok(())
        })
        .await
    };
    one_runs(&mut node).await?;
    let before: Vec<String> = node.containers().await?.into_iter().map(|c| c.id).collect();
    node.agent()?.kill9();
    node.restart_agent()?;
    one_runs(&mut node).await?;
    let after: Vec<String> = node.containers().await?.into_iter().map(|c| c.id).collect();
    ensure!(before == after && after.len() == 1, "{before:?} became {after:?}");
    ensure!(!node.netns().sh("nft list tables")?.contains(" nodelet"), "there are no Services to write rules for");
    std::fs::remove_file(node.path("static/web.yaml"))?;
    eventually(Duration::from_secs(20), "the pod to be gone", async || {
        let left = node.sandboxes().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

/// The node's name is part of the pod's.
fn hostname() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase())
}
