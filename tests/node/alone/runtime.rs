//! What happens to the runtime behind the agent's back.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use harness::eventually::eventually;
use harness::node::Node;
use rustix::process::{Pid, Signal, kill_process};

use crate::look::{
    LONG, all_answer, all_ready, cluster_ip, condition, container_ids, hostname, pod, ready, statuses, web,
};

const WEB: [&str; 2] = ["web-1", "web-2"];

pub(super) async fn a_restart_of_containerd_disturbs_no_pod_and_is_noticed(node: &mut Node) -> anyhow::Result<()> {
    let service: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let look = |node: &Node| {
        let of = |name| pod(node, name).map(|pod| (container_ids(&pod), condition(&pod, "Ready")));
        WEB.iter().map(|name| of(name)).collect::<anyhow::Result<Vec<_>>>()
    };
    let before = look(node)?;
    node.containerd.kill9();
    // Asked for while nobody can start it.
    node.write_manifest("web-3.yaml", &web("web-3", "v1"))?;
    all_answer(&WEB, async || hostname(node, service).await).await?;
    let netns = node.netns().clone();
    node.containerd.restart(&netns).await?;
    all_ready(node, &["web-3"]).await?;
    ensure!(look(node)? == before, "{before:?} became {:?}", look(node)?);
    fs::remove_file(node.manifests().join("web-3.yaml"))?;
    eventually(LONG, "web-3 to be gone", async || {
        ensure!(pod(node, "web-3").is_err(), "still there");
        Ok(())
    })
    .await
}

/// It used to wait for the runtime with no ear for anything else, until systemd killed it.
pub(super) async fn an_agent_that_waits_for_the_runtime_ends_at_sigterm(node: &mut Node) -> anyhow::Result<()> {
    node.agent()?.stop().await?;
    node.containerd.kill9();
    let log = node.agent()?.log().to_owned();
    let before = fs::read_to_string(&log)?.len();
    node.restart_agent()?;
    eventually(LONG, "the agent to wait for the runtime", async || {
        let text = fs::read_to_string(&log)?;
        ensure!(text[before..].contains("waiting for the container runtime"), "{}", &text[before..]);
        Ok(())
    })
    .await?;
    node.agent()?.stop().await?;
    let netns = node.netns().clone();
    node.containerd.restart(&netns).await?;
    node.restart_agent()?;
    all_ready(node, &WEB).await
}

/// Ends the processes of one cgroup.
fn kill_all_in(node: &Node, cgroup: &str) -> anyhow::Result<()> {
    let directories = node.cgroups.find(cgroup);
    let directory = directories.first().with_context(|| format!("no cgroup {cgroup}"))?;
    for line in fs::read_to_string(directory.join("cgroup.procs"))?.lines() {
        let pid = Pid::from_raw(line.parse()?).with_context(|| format!("process {line}"))?;
        kill_process(pid, Signal::KILL)?;
    }
    Ok(())
}

/// The old sandbox stays as long as the log of the container that died in it can be asked for; its address does not.
pub(super) async fn a_sandbox_that_is_lost_is_replaced(node: &mut Node) -> anyhow::Result<()> {
    let service: SocketAddr = (cluster_ip(node, "web")?, 80).into();
    let before = pod(node, "web-1")?;
    let sandboxes = node.sandboxes().await?;
    let of_web = sandboxes.iter().find(|s| s.metadata.as_ref().is_some_and(|meta| meta.name == "web-1"));
    let pod_sandbox_id = of_web.context("web-1 has no sandbox")?.id.clone();
    kill_all_in(
        node,
        &format!("kubepods/besteffort/pod{}/{pod_sandbox_id}", before.metadata.uid.clone().unwrap_or_default()),
    )?;
    eventually(LONG, "the pod to run in another sandbox", async || {
        let now = pod(node, "web-1")?;
        ensure!(container_ids(&now) != container_ids(&before), "the old container");
        ensure!(now.metadata.uid == before.metadata.uid, "another pod");
        let restarts = statuses(&now).iter().map(|status| status.restart_count).sum::<i32>();
        ensure!(restarts == 1, "{restarts} restarts");
        ready(&now)
    })
    .await?;
    all_answer(&WEB, async || hostname(node, service).await).await
}
