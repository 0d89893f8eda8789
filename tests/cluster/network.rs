//! The pods' network where the agent is responsible for it: its own configuration, routes between nodes, leaked addresses.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::http::get;
use harness::netns::Netns;
use harness::node::Node;
use harness::programs;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;

use crate::rig::{NAME, PATIENCE, Rig, address};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_network_configuration_get_one_with_routes_to_each_other() {
    two_nodes().await.unwrap();
}

async fn two_nodes() -> anyhow::Result<()> {
    let plane = ControlPlane::start(&[NAME, "n2"]).await?;
    let node = Node::on_lan(&plane, 11, Version::V2, Cni::ByAgent, crate::rig::POD_CIDR).await?;
    let mut other = Node::on_lan(&plane, 12, Version::V1_6, Cni::ByAgent, "10.244.1.0/24").await?;
    let client = plane.client().await?;
    let mut rig = Rig { node, client, plane };
    rig.node.run_joined(&rig.plane, NAME)?;
    rig.node_is_ready(NAME).await?;
    other.run_joined(&rig.plane, "n2")?;
    let pod = json!({ "metadata": { "name": "web" }, "spec": { "nodeName": "n2", "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "c", "image": "localhost/echo:v1" }] } });
    rig.create::<Pod>(pod).await?;
    let web = rig.pod_is_ready("web").await.with_context(|| other.agent().map(|a| a.log_tail()).unwrap_or_default())?;
    let web = web.status.and_then(|status| status.pod_ip).context("address")?;
    ensure!(web.starts_with("10.244.1."), "{web}");
    rig.client_pod().await?;
    let to = address(&format!("{web}:8080"));
    let answer =
        eventually(PATIENCE, "a pod of the other node to answer", async || rig.ask_from_pod(to, "/").await).await?;
    let from = answer.split_whitespace().next_back().unwrap_or_default();
    ensure!(from.starts_with("10.244.0."), "pods see each other's own addresses: {answer}");
    get(rig.node.netns(), to, "/").context("from the node")?;

    addresses_follow_the_machine(&rig).await.context("addresses")?;
    leaked_addresses_are_released(&mut rig).await.context("leak")?;

    // A node that is gone needs no route.
    other.agent()?.kill9();
    let nodes: Api<ApiNode> = Api::all(rig.client.clone());
    nodes.delete("n2", &DeleteParams::default()).await?;
    eventually(PATIENCE, "its route to go", async || {
        let routes = rig.node.netns().ip("route")?;
        ensure!(!routes.contains("10.244.1.0/24"), "{routes}");
        anyhow::Ok(())
    })
    .await?;
    drop(other);
    rig.finish()
}

/// Another address of the interface with the default route becomes the node's, and its pods'.
async fn addresses_follow_the_machine(rig: &Rig) -> anyhow::Result<()> {
    let nodes: Api<ApiNode> = Api::all(rig.client.clone());
    let is = async |wanted: &str| {
        eventually(PATIENCE, wanted, async || {
            let status = nodes.get(NAME).await?.status.unwrap_or_default();
            let shown = status.addresses.iter().flatten().any(|a| a.type_ == "InternalIP" && a.address == wanted);
            ensure!(shown, "{:?}", status.addresses);
            let pod = rig.api::<Pod>().get("client").await?;
            let host = pod.status.and_then(|status| status.host_ip).unwrap_or_default();
            ensure!(host == wanted, "the pod's hostIP is {host}");
            anyhow::Ok(())
        })
        .await
    };
    is("10.89.0.11").await?;
    // Otherwise the second address of a network goes with the first.
    rig.node.netns().sh("echo 1 > /proc/sys/net/ipv4/conf/all/promote_secondaries")?;
    for (step, address) in [("del 10.89.0.11/24", "10.89.0.111"), ("del 10.89.0.111/24", "10.89.0.11")] {
        let add = format!("addr add {address}/24 dev eth0");
        rig.node.netns().ip(&add)?;
        rig.node.netns().ip(&format!("addr {step} dev eth0"))?;
        // The default route went with the address.
        rig.node.netns().sh("ip route show default | grep -q . || ip route add default via 10.89.0.1")?;
        is(address).await?;
    }
    Ok(())
}

/// An attachment whose namespace and sandbox are gone, as a crash of the machine's runtime leaves one.
async fn leaked_addresses_are_released(rig: &mut Rig) -> anyhow::Result<()> {
    let leases = rig.leases();
    let gone = Netns::new()?;
    let mut add = Command::new(programs::built("cni/cnitool")?);
    add.args(["add", "nodelet"])
        .arg(gone.path())
        .env("NETCONFPATH", rig.node.containerd.cni_conf_dir())
        .env("CNI_PATH", rig.node.path("ctrd/cni/bin"));
    rig.node.netns().output(&mut add)?;
    drop(gone);
    ensure!(rig.leases().len() == leases.len() + 1, "{:?}", rig.leases());
    rig.node.agent()?.kill9();
    rig.node.restart_agent()?;
    eventually(Duration::from_secs(40), "the leaked address to be released", async || {
        ensure!(rig.leases() == leases, "{:?} and not {leases:?}", rig.leases());
        anyhow::Ok(())
    })
    .await
}
