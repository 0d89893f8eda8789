//! Manifests that change, go, or cannot be read.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use harness::eventually::{always, eventually};
use harness::http;
use harness::node::Node;

use crate::look::{LONG, SHORT, all_answer, all_ready, ask_pod, cluster_ip, container_ids, hostname, pod, web};

/// The line that is made wrong, counted from 1.
fn broken() -> anyhow::Result<(String, usize)> {
    let good = web("web-1", "v1");
    let line = good.lines().position(|line| line.contains("containerPort")).context("no line with containerPort")?;
    Ok((good.replace("containerPort: 8080", "containerPort: eighty"), line + 1))
}

pub(super) async fn a_broken_manifest_keeps_what_ran_and_is_named_with_its_line(node: &mut Node) -> anyhow::Result<()> {
    let before = container_ids(&pod(node, "web-1")?);
    let (text, line) = broken()?;
    node.write_manifest("web-1.yaml", &text)?;
    eventually(SHORT, "the error in the log", async || {
        let log = fs::read_to_string(node.agent()?.log())?;
        let place = format!("web-1.yaml:{line}:");
        let said = log.lines().find(|said| said.contains(&place)).with_context(|| format!("no {place}"))?;
        ensure!(said.contains("containerPort") && said.contains("eighty"), "{said}");
        anyhow::Ok(())
    })
    .await?;
    always(Duration::from_millis(500), "web-1 goes on", async || {
        ensure!(container_ids(&pod(node, "web-1")?) == before, "other containers");
        ask_pod(node, "web-1", "/hostname").map(drop)
    })
    .await
}

/// The agent has forgotten everything that it does not write down.
pub(super) async fn a_broken_manifest_keeps_what_ran_over_a_restart(node: &mut Node) -> anyhow::Result<()> {
    let before = container_ids(&pod(node, "web-1")?);
    node.agent()?.kill9();
    node.restart_agent()?;
    all_ready(node, &["web-1", "web-2"]).await?;
    always(Duration::from_millis(500), "web-1 goes on", async || {
        ensure!(container_ids(&pod(node, "web-1")?) == before, "other containers");
        Ok(())
    })
    .await?;
    let web_service = (cluster_ip(node, "web")?, 80).into();
    all_answer(&["web-1", "web-2"], async || hostname(node, web_service).await).await
}

pub(super) async fn an_edited_pod_is_replaced(node: &mut Node) -> anyhow::Result<()> {
    let service: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let before = pod(node, "web-1")?;
    node.write_manifest("web-1.yaml", &web("web-1", "v2"))?;
    eventually(LONG, "the new version to answer", async || {
        let text = ask_pod(node, "web-1", "/version")?;
        ensure!(text == "v2\n", "{text}");
        Ok(())
    })
    .await?;
    all_ready(node, &["web-1"]).await?;
    ensure!(pod(node, "web-1")?.metadata.uid != before.metadata.uid);
    all_answer(&["v1", "v2"], async || http::get(node.netns(), service, "/version")).await?;
    let old = before.metadata.uid.unwrap_or_default();
    eventually(LONG, "the old pod to be gone", async || {
        let containers = node.containers().await?;
        let left = containers.iter().find(|c| c.labels.get("io.kubernetes.pod.uid") == Some(&old));
        ensure!(left.is_none(), "{left:?}");
        anyhow::Ok(())
    })
    .await
}

pub(super) async fn a_removed_pod_is_gone_at_once(node: &mut Node) -> anyhow::Result<()> {
    let service: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    fs::remove_file(node.manifests().join("web-1.yaml"))?;
    eventually(SHORT, "the pod to be gone", async || match pod(node, "web-1") {
        Ok(pod) => bail!("{:?}", pod.status),
        Err(_) => Ok(()),
    })
    .await?;
    for _ in 0..20 {
        let name = hostname(node, service).await?;
        ensure!(name.trim() == "web-2", "{name} answered");
    }
    let containers = node.containers().await?;
    let left = containers.iter().find(|c| c.labels.get("io.kubernetes.pod.name").is_some_and(|name| name == "web-1"));
    ensure!(left.is_none(), "{left:?}");
    Ok(())
}
