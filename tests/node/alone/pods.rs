//! Pods from manifests.

use anyhow::{Context, ensure};
use harness::eventually::eventually;
use harness::node::Node;
use k8s_openapi::api::core::v1::Pod;

use crate::look::{LONG, SHORT, ask_pod, container_ids, pod, pod_ip, ready, statuses};

pub(super) async fn init_containers_ran_in_order_and_volumes_and_variables_have_their_values(
    node: &mut Node,
) -> anyhow::Result<()> {
    let everything = pod(node, "everything")?;
    ended_in_order(&everything)?;
    let file = |path: &str| ask_pod(node, "everything", &format!("/file?path={path}"));
    ensure!(file("/work/order")? == "first hello\nsecond s3cret\n", "{}", file("/work/order")?);
    ensure!(file("/settings/app.conf")? == "colour = green\n");
    ensure!(file("/keys/token")? == "s3cret");
    let mounts = file("/proc/self/mounts")?;
    let memory = mounts.lines().find(|line| line.contains(" /memory ")).context("no mount at /memory")?;
    ensure!(memory.starts_with("tmpfs") && memory.contains("size=1024k"), "{memory}");
    let ip = pod_ip(&everything)?;
    ensure!(file("/etc/hosts")?.lines().any(|line| line.starts_with(&ip.to_string()) && line.ends_with("everything")));
    let environment = ask_pod(node, "everything", "/env")?;
    for expected in ["TOKEN=s3cret", "SHOUT=s3cret!", "FROM_greeting=hello", &format!("POD_IP={ip}")] {
        ensure!(environment.lines().any(|line| line == expected), "no {expected} in\n{environment}");
    }
    Ok(())
}

fn ended_in_order(pod: &Pod) -> anyhow::Result<()> {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.clone()).unwrap_or_default();
    let ended = statuses.iter().map(|status| status.state.as_ref()?.terminated.clone()).collect::<Option<Vec<_>>>();
    let ended = ended.with_context(|| format!("{statuses:?}"))?;
    ensure!(ended.len() == 2 && ended.iter().all(|end| end.exit_code == 0), "{ended:?}");
    let time = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| time.as_ref().map(|t| t.0);
    ensure!(time(&ended[0].finished_at) <= time(&ended[1].started_at), "{ended:?}");
    Ok(())
}

pub(super) async fn an_edited_config_map_reaches_its_volume_without_a_restart(node: &mut Node) -> anyhow::Result<()> {
    let before = container_ids(&pod(node, "everything")?);
    let objects = include_str!("../../data/node/objects.yaml");
    node.write_manifest("objects.yaml", &objects.replace("green", "blue"))?;
    eventually(SHORT, "the new value in the volume", async || {
        let text = ask_pod(node, "everything", "/file?path=/settings/app.conf")?;
        ensure!(text == "colour = blue\n", "{text}");
        Ok(())
    })
    .await?;
    let after = pod(node, "everything")?;
    ensure!(container_ids(&after) == before, "restarted");
    ready(&after)
}

pub(super) async fn a_failing_liveness_probe_restarts_its_container(node: &mut Node) -> anyhow::Result<()> {
    let first = container_ids(&pod(node, "sick")?);
    ask_pod(node, "sick", "/unhealthy")?;
    eventually(LONG, "the container to be restarted", async || {
        let now = pod(node, "sick")?;
        let status = statuses(&now).pop().context("no status")?;
        ensure!(status.restart_count == 1 && container_ids(&now) != first, "{status:?}");
        let ended = status.last_state.and_then(|state| state.terminated).context("no last state")?;
        ensure!(ended.exit_code == 0, "{ended:?}");
        ready(&now)
    })
    .await
}
