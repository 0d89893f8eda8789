//! Static pods of a joined node: they run before the control plane answers, and it sees them as mirrors.

use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::http::get;
use harness::node::Join;
use k8s_openapi::api::core::v1::Pod;

use crate::rig::{NAME, PATIENCE, Rig, address, ready_since};

const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
                   containers: [{name: echo, image: 'localhost/echo:v1'}]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_runs_without_the_api_server_and_has_a_mirror_with_it() {
    static_pod_with_mirror().await.unwrap();
}

async fn static_pod_with_mirror() -> anyhow::Result<()> {
    let mut rig = Rig::without_agent(Version::V2, Cni::Nodelet).await?;
    rig.node.write_static_pod("web.yaml", WEB)?;
    // It may be the API server itself that is to be started.
    rig.plane.pause(true)?;
    rig.node.run_joined_as(&rig.plane, NAME, Join { static_pods: true, ..Join::default() })?;
    let runs = eventually(Duration::from_secs(20), "the static pod to run", async || {
        let containers = rig.node.containers().await?;
        ensure!(containers.iter().any(|c| c.state == 1), "{containers:?}");
        Ok(())
    })
    .await;
    rig.plane.pause(false)?;
    if let Err(error) = runs {
        return Err(error.context(rig.node.agent()?.log_tail()));
    }
    rig.node_is_ready(NAME).await?;
    let first = mirror_says(&rig, "v1").await?;
    ensure!(first.metadata.annotations.iter().flatten().any(|(name, _)| name == "kubernetes.io/config.mirror"));

    // A mirror is a picture: deleting it does nothing to the pod, and it comes back.
    rig.delete::<Pod>("web-n1").await?;
    eventually(PATIENCE, "another mirror", async || {
        let again = rig.api::<Pod>().get("web-n1").await?;
        ensure!(again.metadata.uid != first.metadata.uid && ready_since(&again).is_some(), "{:?}", again.status);
        anyhow::Ok(())
    })
    .await?;
    let attempts: Vec<u32> =
        rig.node.containers().await?.into_iter().filter_map(|c| c.metadata).map(|m| m.attempt).collect();
    ensure!(attempts == [0], "{attempts:?}");

    // A restart of the agent changes nothing; an edited file is another pod.
    rig.node.agent()?.kill9();
    rig.node.restart_agent()?;
    mirror_says(&rig, "v1").await?;
    rig.node.write_static_pod("web.yaml", &WEB.replace("echo:v1", "echo:v2"))?;
    mirror_says(&rig, "v2").await?;

    std::fs::remove_file(rig.node.path("static/web.yaml"))?;
    eventually(PATIENCE, "the mirror to be gone", async || {
        let mirror = rig.api::<Pod>().get_opt("web-n1").await?;
        ensure!(mirror.is_none(), "{mirror:?}");
        anyhow::Ok(())
    })
    .await?;
    rig.nothing_is_left().await?;
    rig.finish()
}

/// Waits until the mirror is Ready and the address that it shows answers with this version.
async fn mirror_says(rig: &Rig, version: &str) -> anyhow::Result<Pod> {
    eventually(PATIENCE, &format!("a Ready mirror of {version}"), async || {
        let mirror = rig.api::<Pod>().get("web-n1").await?;
        let ip = mirror.status.as_ref().and_then(|status| status.pod_ip.clone()).context("no address")?;
        ensure!(ready_since(&mirror).is_some(), "{:?}", mirror.status);
        let said = get(rig.node.netns(), address(&format!("{ip}:8080")), "/version")?;
        ensure!(said.trim() == version, "{said}");
        anyhow::Ok(mirror)
    })
    .await
}
