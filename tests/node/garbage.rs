//! Images that nobody needs, on real runtimes: what `nodelet gc` shows, and what it removes.

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Node;

use crate::look::{LONG, SHORT, all_ready, container_ids, pod, web};

/// A node with a pod of `echo:v1`, where nothing but echo:v2, echo:v3 and busybox is of no use.
async fn node(version: Version, extra: &str) -> anyhow::Result<Node> {
    let mut node = Node::alone(version, Cni::ByAgent).await?;
    extra.clone_into(&mut node.extra_configuration);
    node.write_manifest("web.yaml", &web("web", "v1"))?;
    node.run_alone()?;
    all_ready(&node, &["web"]).await?;
    Ok(node)
}

/// Which of the test images are there.
async fn images(node: &Node) -> anyhow::Result<Vec<&'static str>> {
    let mut client = node.containerd.client().await?;
    let mut there = Vec::new();
    for name in ["pause:1", "busybox:1", "echo:v1", "echo:v2", "echo:v3"] {
        if client.has_image(&format!("localhost/{name}")).await? {
            there.push(name);
        }
    }
    Ok(there)
}

/// The names of images in a report.
fn named(report: &serde_json::Value) -> Vec<String> {
    let items = report["items"].as_array().cloned().unwrap_or_default();
    let images = items.iter().filter(|item| item["kind"] == "image");
    let mut names: Vec<String> = images.filter_map(|item| item["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    names
}

async fn unused_images_go_and_no_other(version: Version) -> anyhow::Result<()> {
    let mut node = node(version, "imageMinimumGCAge: 1ms\nimageGCHighThresholdPercent: 100\n").await?;
    let all = ["pause:1", "busybox:1", "echo:v1", "echo:v2", "echo:v3"];
    let unused = ["localhost/busybox:1", "localhost/echo:v2", "localhost/echo:v3"];
    let before = container_ids(&pod(&node, "web")?);
    // The first look sees them for the first time; from the next one on they are old enough.
    let shown = eventually(SHORT, "unused images to be shown", async || {
        let said = node.agent.as_ref().context("no agent")?.ask(&["gc", "--dry-run", "--free", "1Ti", "-o", "json"])?;
        let report: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(!named(&report).is_empty(), "{report:#}");
        anyhow::Ok(report)
    })
    .await?;
    ensure!(named(&shown) == unused, "{shown:#}");
    ensure!(images(&node).await? == all, "a dry run removes nothing");
    let table = node.agent()?.ask(&["gc", "--dry-run", "--free", "1Ti"])?;
    ensure!(table.contains("localhost/echo:v2") && table.contains("not used since the agent started"), "{table}");
    let table = node.agent()?.ask(&["gc", "--free", "1Ti"])?;
    ensure!(table.matches("   removed   ").count() == 3, "{table}");
    ensure!(images(&node).await? == ["pause:1", "echo:v1"], "{table}");
    // What is left is enough for the pod to go on and for another to start.
    node.write_manifest("again.yaml", &web("again", "v1"))?;
    all_ready(&node, &["web", "again"]).await?;
    ensure!(container_ids(&pod(&node, "web")?) == before, "the pod that ran was not touched");
    Ok(())
}

#[tokio::test]
async fn unused_images_go_and_no_other_on_containerd_1_6() {
    unused_images_go_and_no_other(Version::V1_6).await.unwrap();
}

#[tokio::test]
async fn unused_images_go_and_no_other_on_containerd_2() {
    unused_images_go_and_no_other(Version::V2).await.unwrap();
}

#[tokio::test]
async fn a_disk_over_its_threshold_costs_unused_images_without_anybody_asking() {
    let thresholds = "imageGCHighThresholdPercent: 1\nimageGCLowThresholdPercent: 0\nimageMinimumGCAge: 1ms\n";
    let mut node = node(Version::V2, thresholds).await.unwrap();
    // Images of the first round are new; a restarted agent's round is the first one, too. So it is asked for the second.
    eventually(LONG, "unused images to be gone", async || {
        // It fails: no image is as large as a whole disk, and the node is told so.
        let _ = node.agent.as_ref().context("no agent")?.ask(&["gc"]);
        let left = images(&node).await?;
        ensure!(left == ["pause:1", "echo:v1"], "{left:?}");
        anyhow::Ok(())
    })
    .await
    .with_context(|| node.logs())
    .unwrap();
    let log = std::fs::read_to_string(node.agent().unwrap().log()).unwrap();
    assert!(log.contains("Insufficient free disk space on the node's image filesystem"), "{log}");
}
