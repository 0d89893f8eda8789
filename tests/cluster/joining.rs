//! The ways to join: with a bootstrap token, and with one half of the work only.

use anyhow::{Context, ensure};
use harness::agent::Agent;
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::http::get;
use harness::node::{Join, Node};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, Service};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::rig::{NAME, NODE, PATIENCE, Rig, address, deploy};

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_joins_a_node() {
    bootstrap().await.unwrap();
}

async fn bootstrap() -> anyhow::Result<()> {
    // The control plane makes no kubeconfig for this node.
    let plane = ControlPlane::start(&[]).await?;
    let node = Node::on_lan(&plane, 11, Version::V2, Cni::Bridge, crate::rig::POD_CIDR).await?;
    let client = plane.client().await?;
    let mut rig = Rig { node, client, plane };
    rig.node.run_joined_as(&rig.plane, "fresh", Join { bootstrap: true, ..Join::default() })?;
    rig.node_is_ready("fresh").await?;
    let requests: Api<CertificateSigningRequest> = Api::all(rig.client.clone());
    let asked = requests.list(&ListParams::default()).await?.items;
    let users: Vec<&str> = asked.iter().filter_map(|request| request.spec.username.as_deref()).collect();
    ensure!(users.len() == 1 && users[0].starts_with("system:bootstrap:"), "{users:?}");
    rig.client_pod().await?;

    // The next start has its own certificate and asks for nothing.
    rig.node.agent()?.kill9();
    rig.node.restart_agent()?;
    rig.delete::<Pod>("client").await?;
    rig.nothing_is_left().await?;
    ensure!(requests.list(&ListParams::default()).await?.items.len() == 1);
    ensure!(rig.node.path("pki/kubelet-client-current.pem").is_symlink());
    rig.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_half_works_in_a_process_of_its_own() {
    halves().await.unwrap();
}

async fn halves() -> anyhow::Result<()> {
    let mut rig = Rig::without_agent(Version::V1_6, Cni::Bridge).await?;
    rig.node.run_joined_as(&rig.plane, NAME, Join { only_pods: true, ..Join::default() })?;
    rig.node_is_ready(NAME).await?;
    deploy(&mut rig, "web", 2, "10.96.0.80", 30080).await?;
    let tables = rig.node.netns().sh("nft list tables")?;
    ensure!(!tables.contains(" nodelet"), "the pod half wrote rules: {tables}");
    ensure!(get(rig.node.netns(), address("127.0.0.1:10248"), "/healthz")? == "ok");

    let mut services = rig.node.run_services(&rig.plane, NAME)?;
    answers(&rig, "the Service to answer").await.with_context(|| services.log_tail())?;
    services.ensure_running()?;
    explained(rig.node.agent()?, &services)?;
    load_balancers_are_told(&rig).await?;

    // Each goes on without the other.
    rig.node.agent()?.kill9();
    answers(&rig, "the Service without the pod half").await?;
    rig.node.restart_agent()?;
    services.stop().await?;
    answers(&rig, "the rules without the service half").await?;
    rig.delete::<Deployment>("web").await?;
    rig.delete::<Service>("web").await?;
    rig.nothing_is_left().await?;
    drop(services);
    rig.finish()
}

/// With the rights of a service proxy the objects can be read; who programs no Services has nothing to explain.
fn explained(pods: &Agent, services: &Agent) -> anyhow::Result<()> {
    let text = services.ask(&["explain", "service", "web", "--from", "192.0.2.1"])?;
    let node = format!("node {NAME} (this one)  ready  IN: ready");
    for part in
        ["(NodePort), on node", "pod web-", &node, "from outside (192.0.2.1): goes to one of 2", "Traffic passes."]
    {
        ensure!(text.contains(part), "no {part:?} in\n{text}");
    }
    ensure!(!text.contains("What is wrong") && !text.contains("could not be read"), "{text}");
    let refused = pods.run(&["explain", "service", "web"])?;
    let error = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(2) && error.contains("this agent programs no Services"), "{error}");
    Ok(())
}

async fn answers(rig: &Rig, what: &str) -> anyhow::Result<()> {
    eventually(PATIENCE, what, async || {
        let version = get(rig.node.netns(), address("10.96.0.80:80"), "/version")?;
        ensure!(version == "v1\n", "{version}");
        ensure!(get(rig.plane.lan().netns(), address(&format!("{NODE}:30080")), "/version")? == "v1\n");
        anyhow::Ok(())
    })
    .await
}

/// 10256 is well, and not well for a node that the autoscaler is about to delete.
async fn load_balancers_are_told(rig: &Rig) -> anyhow::Result<()> {
    let ask = || get(rig.node.netns(), address("127.0.0.1:10256"), "/healthz");
    let body: serde_json::Value = serde_json::from_str(&ask()?)?;
    ensure!(body["nodeEligible"] == true && body["healthy"] == true, "{body}");
    ensure!(!body["lastUpdated"].as_str().unwrap_or_default().starts_with("0001"), "rules were committed: {body}");
    let nodes: Api<ApiNode> = Api::all(rig.client.clone());
    let taint = json!({ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" });
    for (taints, well) in [(json!([taint]), false), (json!([]), true)] {
        let patch = json!({ "spec": { "taints": taints } });
        nodes.patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await?;
        eventually(PATIENCE, "10256 to follow the taint", async || {
            ensure!(ask().is_ok() == well, "well is {}", !well);
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}
