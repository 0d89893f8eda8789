//! What the suites look at: pods as the agent tells of them, and answers of their containers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::eventually::eventually;
use harness::http;
use harness::node::Node;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, Service};

/// Longest wait for anything that takes starting or stopping containers; a shared machine with two cores is slow.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Longest wait for what the agent is to do at once.
pub(crate) const SHORT: Duration = Duration::from_secs(5);

/// The first pod manifest of the suites under a name and with an image of the echo server.
pub(crate) fn web(name: &str, image: &str) -> String {
    include_str!("../data/node/web.yaml").replace("NAME", name).replace("IMAGE", &format!("localhost/echo:{image}"))
}

/// A pod of the agent.
pub(crate) fn pod(node: &Node, name: &str) -> anyhow::Result<Pod> {
    node.agent.as_ref().context("no agent")?.pod(name)
}

/// A condition's status and when it last changed.
pub(crate) fn condition(pod: &Pod, kind: &str) -> Option<(String, String)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    let since = found.last_transition_time.as_ref().map(|time| time.0.to_string());
    Some((found.status.clone(), since.unwrap_or_default()))
}

/// Fails unless the pod is Ready.
pub(crate) fn ready(pod: &Pod) -> anyhow::Result<()> {
    let is = condition(pod, "Ready").is_some_and(|(status, _)| status == "True");
    ensure!(is, "not Ready: {:?}", pod.status);
    Ok(())
}

/// Waits until all of these pods are Ready.
pub(crate) async fn all_ready(node: &Node, names: &[&str]) -> anyhow::Result<()> {
    eventually(LONG, "pods to be Ready", async || {
        names.iter().try_for_each(|name| ready(&pod(node, name)?).with_context(|| format!("pod {name}")))
    })
    .await
}

/// Statuses of the regular containers.
pub(crate) fn statuses(pod: &Pod) -> Vec<ContainerStatus> {
    pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default()
}

/// Ids of the regular containers, which change when they are restarted.
pub(crate) fn container_ids(pod: &Pod) -> Vec<String> {
    statuses(pod).into_iter().filter_map(|status| status.container_id).collect()
}

/// The pod's address.
pub(crate) fn pod_ip(pod: &Pod) -> anyhow::Result<IpAddr> {
    let text = pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has no address")?;
    Ok(text.parse()?)
}

/// What the echo server of a pod answers.
pub(crate) fn ask_pod(node: &Node, name: &str, path: &str) -> anyhow::Result<String> {
    http::get(node.netns(), (pod_ip(&pod(node, name)?)?, 8080).into(), path)
}

/// The ClusterIP of a Service.
pub(crate) fn cluster_ip(node: &Node, name: &str) -> anyhow::Result<IpAddr> {
    let services: Vec<Service> = node.agent.as_ref().context("no agent")?.list("services")?;
    let found = services.into_iter().find(|service| service.metadata.name.as_deref() == Some(name));
    let ip = found.and_then(|service| service.spec?.cluster_ip).with_context(|| format!("Service {name}"))?;
    Ok(ip.parse()?)
}

/// Asks until each of these pods, and nobody else, has answered from behind an address.
pub(crate) async fn all_answer(
    names: &[&str],
    mut ask: impl AsyncFnMut() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let expected: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut seen = BTreeSet::new();
    eventually(LONG, "each of the pods to answer", async || {
        let name = ask().await?.trim().to_owned();
        // Who has just left may still answer once; who answers later is found by the caller's next look.
        if expected.contains(&name) {
            seen.insert(name);
        }
        ensure!(seen == expected, "answers of {seen:?}, expected {expected:?}");
        Ok(())
    })
    .await
}

/// Asks for the host name behind an address from inside the pod `client`. Not with wget: that of Debian's static busybox
/// crashes in a pod.
pub(crate) async fn hostname_from_pod(node: &Node, address: SocketAddr) -> anyhow::Result<String> {
    let script = r"printf 'GET /hostname HTTP/1.0\r\n\r\n' | timeout 3 nc $0 $1";
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let answer = node.exec("client", &["sh", "-c", script, &ip, &port]).await?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
    ensure!(head.contains(" 200 "), "{head}");
    Ok(body.to_owned())
}

/// Asks for the host name behind an address from the node.
pub(crate) async fn hostname(node: &Node, address: SocketAddr) -> anyhow::Result<String> {
    http::get(node.netns(), address, "/hostname")
}
