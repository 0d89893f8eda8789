//! What a node of a real control plane is for: Deployments and Services, made by the real controllers and placed by the
//! real scheduler, through rollout, scaling, an outage and deletion.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::http::{Traffic, get};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::outage;
use crate::rig::{NODE, PATIENCE, Rig, address, config_map, deploy, no_failures};

const CLUSTER_IP: &str = "10.96.0.80";
const NODE_PORT: u16 = 30080;

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_lives_its_life_on_containerd_1_6_with_bridge() {
    lives_its_life(Version::V1_6, Cni::Bridge).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_lives_its_life_on_containerd_2_with_nodelet_cni() {
    lives_its_life(Version::V2, Cni::Nodelet).await.unwrap();
}

async fn lives_its_life(version: Version, cni: Cni) -> anyhow::Result<()> {
    let mut rig = Rig::joined(version, cni).await?;
    rig.client_pod().await?;
    deploy(&mut rig, "web", 3, CLUSTER_IP, NODE_PORT).await?;
    // The three and the client: that none is left means something only when they are counted.
    ensure!(rig.leases().len() == 4, "{:?}", rig.leases());
    pods_have_what_they_ask_for(&rig).await.context("content")?;
    service_answers_from_everywhere(&rig).await.context("Service")?;
    rollout_under_traffic_fails_no_request(&mut rig).await.context("rollout")?;
    scaling_converges(&mut rig).await.context("scaling")?;
    a_stopping_pod_gets_no_new_connections(&mut rig).await.context("termination")?;
    outage_of_the_api_server_changes_nothing(&mut rig).await.context("outage")?;
    deletion_leaves_nothing(&rig).await.context("deletion")?;
    rig.finish()
}

async fn pods_have_what_they_ask_for(rig: &Rig) -> anyhow::Result<()> {
    let pods = rig.pods("web").await?;
    let pod = pods.first().context("a pod")?;
    let status = pod.status.clone().unwrap_or_default();
    let ip = status.pod_ip.context("podIP")?;
    ensure!(status.host_ip.as_deref() == Some(NODE), "{:?}", status.host_ip);
    ensure!(status.qos_class.as_deref() == Some("BestEffort") && status.phase.as_deref() == Some("Running"));
    let ask = |path: &str| get(rig.node.netns(), address(&format!("{ip}:8080")), path);
    ensure!(ask("/file?path=/config/GREETING")? == "hello");
    let env = ask("/env")?;
    ensure!(env.contains("GREETING=hello") && env.contains("KUBERNETES_SERVICE_HOST=10.96.0.1"), "{env}");
    let account = "/file?path=/var/run/secrets/kubernetes.io/serviceaccount";
    ensure!(ask(&format!("{account}/token"))?.split('.').count() == 3, "a token");
    ensure!(ask(&format!("{account}/ca.crt"))?.contains("BEGIN CERTIFICATE"));
    ensure!(ask(&format!("{account}/namespace"))? == "default");
    ensure!(ask("/hostname")?.trim() == pod.metadata.name.clone().unwrap_or_default());
    // An edit reaches the volume of a running pod.
    let edited = config_map("web", "hello again");
    rig.api::<ConfigMap>().patch("web-config", &PatchParams::default(), &Patch::Merge(edited)).await?;
    eventually(PATIENCE, "the edited ConfigMap in the volume", async || {
        let text = ask("/file?path=/config/GREETING")?;
        ensure!(text == "hello again", "{text}");
        Ok(())
    })
    .await
}

async fn service_answers_from_everywhere(rig: &Rig) -> anyhow::Result<()> {
    let cluster_ip = address(&format!("{CLUSTER_IP}:80"));
    let node_port = address(&format!("{NODE}:{NODE_PORT}"));
    eventually(PATIENCE, "all pods to answer for the Service", async || {
        let mut seen = BTreeSet::new();
        for _ in 0..30 {
            seen.insert(get(rig.node.netns(), cluster_ip, "/hostname")?);
        }
        ensure!(seen.len() == 3, "{seen:?}");
        anyhow::Ok(())
    })
    .await?;
    ensure!(get(rig.node.netns(), node_port, "/version")? == "v1\n");
    ensure!(get(rig.plane.lan().netns(), node_port, "/version")? == "v1\n", "from outside");
    ensure!(rig.ask_from_pod(cluster_ip, "/version").await? == "v1\n", "from a pod");
    ensure!(rig.ask_from_pod(node_port, "/version").await? == "v1\n", "from a pod, by NodePort");
    Ok(())
}

async fn rollout_under_traffic_fails_no_request(rig: &mut Rig) -> anyhow::Result<()> {
    let every = Duration::from_millis(5);
    let inside = Traffic::start(rig.node.netns().clone(), address(&format!("{CLUSTER_IP}:80")), "/version", every);
    let image = json!([{ "name": "echo", "image": "localhost/echo:v2" }]);
    rig.patch_deployment("web", json!({ "spec": { "template": { "spec": { "containers": image } } } })).await?;
    let done = rig.rolled_out("web", 3).await;
    let record = inside.stop()?;
    done?;
    no_failures(&record, 100)?;
    for _ in 0..20 {
        ensure!(get(rig.node.netns(), address(&format!("{CLUSTER_IP}:80")), "/version")? == "v2\n");
    }
    Ok(())
}

async fn scaling_converges(rig: &mut Rig) -> anyhow::Result<()> {
    let traffic = Traffic::start(
        rig.node.netns().clone(),
        address(&format!("{CLUSTER_IP}:80")),
        "/version",
        Duration::from_millis(5),
    );
    for replicas in [5, 2] {
        rig.patch_deployment("web", json!({ "spec": { "replicas": replicas } })).await?;
        rig.rolled_out("web", replicas).await?;
    }
    no_failures(&traffic.stop()?, 100)
}

/// An EndpointSlice that nobody corrects calls the pod ready for ever; the node knows better, before SIGTERM.
async fn a_stopping_pod_gets_no_new_connections(rig: &mut Rig) -> anyhow::Result<()> {
    let pods = rig.pods("web").await?;
    let endpoints = pods.iter().map(|pod| {
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
        json!({ "addresses": [ip], "nodeName": crate::rig::NAME, "conditions": { "ready": true } })
    });
    let labels = json!({ "kubernetes.io/service-name": "manual" });
    rig.create::<EndpointSlice>(json!({
        "metadata": { "name": "manual-1", "labels": labels },
        "addressType": "IPv4",
        "ports": [{ "port": 8080 }],
        "endpoints": endpoints.collect::<Vec<_>>(),
    }))
    .await?;
    let spec = json!({ "clusterIP": "10.96.0.81", "ports": [{ "port": 80 }] });
    rig.create::<Service>(json!({ "metadata": { "name": "manual" }, "spec": spec })).await?;
    let to = address("10.96.0.81:80");
    let names: BTreeSet<String> = pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
    eventually(PATIENCE, "both pods to answer", async || {
        let seen = ask(rig, to, 20)?;
        ensure!(seen == names, "{seen:?}");
        anyhow::Ok(())
    })
    .await?;
    let victim = names.first().context("a pod")?;
    rig.delete::<Pod>(victim).await?;
    eventually(Duration::from_secs(10), "the pod to hear of its end", async || {
        let pod = pods.iter().find(|pod| pod.metadata.name.as_ref() == Some(victim)).context("pod")?;
        let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("address")?;
        // It is not well from SIGTERM on, and answers for half a second more.
        let well = get(rig.node.netns(), address(&format!("{ip}:8080")), "/healthz");
        ensure!(well.is_err(), "it is well");
        Ok(())
    })
    .await?;
    let after = ask(rig, to, 20)?;
    ensure!(!after.contains(victim) && after.len() == 1, "asked after SIGTERM: {after:?}");
    rig.delete::<Service>("manual").await?;
    rig.delete::<EndpointSlice>("manual-1").await?;
    rig.rolled_out("web", 2).await
}

/// The names that answer to so many requests, none of which may fail.
fn ask(rig: &Rig, to: std::net::SocketAddr, times: u32) -> anyhow::Result<BTreeSet<String>> {
    (0..times).map(|_| Ok(get(rig.node.netns(), to, "/hostname")?.trim().to_owned())).collect()
}

async fn outage_of_the_api_server_changes_nothing(rig: &mut Rig) -> anyhow::Result<()> {
    outage::changes_nothing(rig, &format!("{CLUSTER_IP}:80")).await?;
    // The agent takes part again: something new runs.
    rig.patch_deployment("web", json!({ "spec": { "replicas": 3 } })).await?;
    rig.rolled_out("web", 3).await
}

async fn deletion_leaves_nothing(rig: &Rig) -> anyhow::Result<()> {
    rig.delete::<Deployment>("web").await?;
    rig.delete::<Service>("web").await?;
    rig.delete::<ConfigMap>("web-config").await?;
    rig.delete::<Pod>("client").await?;
    rig.nothing_is_left().await?;
    eventually(PATIENCE, "the rules of the Service to be gone", async || {
        let rules = rig.rules()?;
        ensure!(!rules.contains(CLUSTER_IP) && !rules.contains(&NODE_PORT.to_string()), "{rules}");
        Ok(())
    })
    .await
}
