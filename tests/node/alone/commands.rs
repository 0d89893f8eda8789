//! What people ask the running agent for.

use anyhow::{Context, ensure};
use harness::node::Node;

use crate::look::{cluster_ip, pod, pod_ip};

/// Fails unless a line of a table has exactly these words at its beginning.
fn has_row(table: &str, words: &[&str]) -> anyhow::Result<()> {
    let row = |line: &str| line.split_whitespace().take(words.len()).eq(words.iter().copied());
    ensure!(table.lines().any(row), "no row {words:?} in\n{table}");
    Ok(())
}

pub(super) async fn get_shows_pods_services_and_endpoints(node: &mut Node) -> anyhow::Result<()> {
    let (ip, service) = (pod_ip(&pod(node, "web-1")?)?.to_string(), cluster_ip(node, "web")?.to_string());
    let agent = node.agent()?;
    let pods = agent.ask(&["get", "pods"])?;
    has_row(&pods, &["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"])?;
    has_row(&pods, &["default", "web-1", "1/1", "Running", "0"])?;
    has_row(&pods, &["default", "everything", "2/2", "Running", "0"])?;
    has_row(&pods, &["default", "sick", "1/1", "Running", "1"])?;
    let wide = agent.ask(&["get", "pods", "web-1", "-o", "wide"])?;
    ensure!(wide.lines().count() == 2 && wide.contains(&ip), "{wide}");
    has_row(&agent.ask(&["get", "services"])?, &["default", "web", "ClusterIP", &service, "80/TCP"])?;
    has_row(&agent.ask(&["get", "services"])?, &["default", "fixed", "NodePort", "10.96.0.10", "8000:30080/TCP"])?;
    let endpoints = agent.ask(&["get", "endpoints"])?;
    let row = endpoints.lines().find(|line| line.contains("web-")).context("no slice of Service web")?;
    ensure!(row.contains(&ip) && row.contains("8080"), "{row}");
    let yaml = agent.ask(&["get", "pods", "web-1", "-o", "yaml"])?;
    ensure!(yaml.contains("podIP: ") && yaml.contains(&ip), "{yaml}");
    ensure!(agent.ask(&["get", "pods", "nobody"]).is_err(), "a pod that is not there");
    Ok(())
}

pub(super) async fn logs_and_describe_tell_of_a_pod(node: &mut Node) -> anyhow::Result<()> {
    let agent = node.agent()?;
    ensure!(agent.ask(&["logs", "everything", "-c", "beside"])? == "beside writes\n");
    ensure!(agent.ask(&["logs", "web-1"])?.starts_with("echo v1 on tcp"));
    ensure!(agent.ask(&["logs", "everything", "-c", "nobody"]).is_err(), "a container that is not there");
    ensure!(agent.ask(&["logs", "sick", "--previous"])?.contains("terminating"), "the log before the restart");
    let described = agent.ask(&["describe", "pod", "everything"])?;
    for expected in ["first", "second", "app", "beside", "Ready", "Burstable", "Conditions:", "Events:"] {
        ensure!(described.contains(expected), "no {expected} in\n{described}");
    }
    Ok(())
}
