//! Services in front of the pods of the node.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use harness::eventually::eventually;
use harness::node::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::look::{SHORT, all_answer, all_ready, ask_pod, cluster_ip, hostname, hostname_from_pod, pod, pod_ip};

const WEB: [&str; 2] = ["web-1", "web-2"];

/// The address that a node of the harness has on its own network.
const NODE_PORT: &str = "10.88.0.2:30080";

pub(super) async fn both_pods_answer_from_the_node_and_from_a_pod_and_at_the_node_port(
    node: &mut Node,
) -> anyhow::Result<()> {
    let web: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let fixed: SocketAddr = "10.96.0.10:8000".parse()?;
    ensure!(cluster_ip(node, "fixed")? == fixed.ip());
    for address in [web, fixed, NODE_PORT.parse()?] {
        all_answer(&WEB, async || hostname(node, address).await).await.with_context(|| format!("node to {address}"))?;
        all_answer(&WEB, async || hostname_from_pod(node, address).await)
            .await
            .with_context(|| format!("pod to {address}"))?;
    }
    Ok(())
}

/// Addresses of ready endpoints of a Service.
fn endpoints(node: &Node, service: &str) -> anyhow::Result<Vec<String>> {
    let slices: Vec<EndpointSlice> = node.agent.as_ref().context("no agent")?.list("endpoints")?;
    let label = |slice: &EndpointSlice| slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").cloned();
    let of_service = slices.into_iter().filter(|slice| label(slice).as_deref() == Some(service));
    let endpoints = of_service.flat_map(|slice| slice.endpoints.unwrap_or_default());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().and_then(|is| is.ready) != Some(false));
    Ok(ready.flat_map(|endpoint| endpoint.addresses).collect())
}

pub(super) async fn a_pod_that_is_not_ready_gets_no_requests(node: &mut Node) -> anyhow::Result<()> {
    let web: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let other = pod_ip(&pod(node, "web-2")?)?.to_string();
    ask_pod(node, "web-1", "/unhealthy")?;
    eventually(SHORT, "web-1 to leave the endpoints", async || {
        let now = endpoints(node, "web")?;
        ensure!(now == [other.clone()], "{now:?}");
        Ok(())
    })
    .await?;
    eventually(SHORT, "only web-2 to answer", async || {
        for _ in 0..20 {
            let name = hostname(node, web).await?;
            ensure!(name.trim() == "web-2", "{name} answered");
        }
        Ok(())
    })
    .await?;
    ask_pod(node, "web-1", "/healthy")?;
    all_ready(node, &WEB).await?;
    all_answer(&WEB, async || hostname(node, web).await).await
}

pub(super) async fn an_edited_service_is_served_at_once(node: &mut Node) -> anyhow::Result<()> {
    let ip = cluster_ip(node, "web")?;
    let services = include_str!("../../data/node/services.yaml");
    node.write_manifest("services.yaml", &services.replace("port: 80,", "port: 81,"))?;
    eventually(SHORT, "the new port to answer", async || hostname(node, (ip, 81).into()).await).await?;
    ensure!(hostname(node, (ip, 80).into()).await.is_err(), "the old port answers, too");
    ensure!(cluster_ip(node, "web")? == ip, "the ClusterIP has changed");
    node.write_manifest("services.yaml", services)?;
    eventually(SHORT, "the first port to answer again", async || hostname(node, (ip, 80).into()).await).await.map(drop)
}

pub(super) async fn cluster_ips_are_kept_over_restarts(node: &mut Node) -> anyhow::Result<()> {
    let ip = cluster_ip(node, "web")?;
    for graceful in [true, false] {
        if graceful {
            node.agent()?.stop().await?;
        } else {
            node.agent()?.kill9();
        }
        ensure!(hostname(node, (ip, 80).into()).await.is_ok(), "the Service is away while the agent is");
        // It is read before the others, and must not get their address.
        let another = "apiVersion: v1\nkind: Service\nmetadata: { name: aaa }\nspec: { ports: [{ port: 80 }] }\n";
        node.write_manifest("aaa.yaml", another)?;
        node.restart_agent()?;
        let another = eventually(SHORT, "the new Service to have an address", async || cluster_ip(node, "aaa")).await?;
        ensure!(cluster_ip(node, "web")? == ip && another != ip, "{ip} became {:?}", cluster_ip(node, "web"));
        std::fs::remove_file(node.manifests().join("aaa.yaml"))?;
        eventually(SHORT, "the other Service to be gone", async || match cluster_ip(node, "aaa") {
            Ok(ip) => bail!("still at {ip}"),
            Err(_) => Ok(()),
        })
        .await?;
    }
    all_ready(node, &WEB).await?;
    all_answer(&WEB, async || hostname(node, (ip, 80).into()).await).await
}
