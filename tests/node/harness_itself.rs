//! The harness, before an agent relies on it: a bare CRI client runs a pod on each runtime, and nothing is left of it.

use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::leak_check::{HostNetwork, remains};
use harness::node::Node;
use nodelet_proto::cri;
use std::time::Duration;

fn pod(node: &Node) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: "web".into(), uid: "u1".into(), ..Default::default() }),
        log_directory: node.path("logs").display().to_string(),
        labels: [("io.kubernetes.pod.name".to_owned(), "web".to_owned())].into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/kubepods/podu1", node.cgroups.root()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container() -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "web".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: "localhost/echo:v2".into(), ..Default::default() }),
        labels: [("io.kubernetes.pod.name".to_owned(), "web".to_owned())].into(),
        log_path: "web.log".into(),
        ..Default::default()
    }
}

async fn a_pod_runs_and_answers(version: Version, cni: Cni) -> anyhow::Result<()> {
    let node = Node::alone(version, cni).await?;
    let mut client = node.containerd.client().await?;
    let config = Some(pod(&node));
    let request = cri::RunPodSandboxRequest { config: config.clone(), ..Default::default() };
    let sandbox = client.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container()),
        sandbox_config: config,
    };
    let container_id = client.runtime.create_container(request).await?.into_inner().container_id;
    client.runtime.start_container(cri::StartContainerRequest { container_id }).await?;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status = client.runtime.pod_sandbox_status(request).await?.into_inner().status.unwrap_or_default();
    let ip: std::net::IpAddr = status.network.unwrap_or_default().ip.parse()?;
    let version = eventually(Duration::from_secs(10), "the pod to answer", async || {
        harness::http::get(node.netns(), (ip, 8080).into(), "/version")
    });
    assert_eq!(version.await?, "v2\n");
    assert!(node.cgroups.children().iter().any(|path| path.starts_with("kubepods/podu1")));
    let name = node.name().to_owned();
    drop(node);
    assert_eq!(remains(&name), Vec::<String>::new());
    Ok(())
}

#[tokio::test]
async fn a_bare_client_runs_a_pod_on_containerd_1_6_with_bridge_and_nothing_is_left() {
    a_pod_runs_and_answers(Version::V1_6, Cni::Bridge).await.unwrap();
}

#[tokio::test]
async fn a_bare_client_runs_a_pod_on_containerd_1_6_with_nodelet_cni_and_nothing_is_left() {
    a_pod_runs_and_answers(Version::V1_6, Cni::Nodelet).await.unwrap();
}

#[tokio::test]
async fn a_bare_client_runs_a_pod_on_containerd_2_with_bridge_and_nothing_is_left() {
    a_pod_runs_and_answers(Version::V2, Cni::Bridge).await.unwrap();
}

#[tokio::test]
async fn a_bare_client_runs_a_pod_on_containerd_2_with_nodelet_cni_and_nothing_is_left() {
    a_pod_runs_and_answers(Version::V2, Cni::Nodelet).await.unwrap();
}

#[tokio::test]
async fn making_a_node_leaves_the_network_of_the_host_alone() {
    let before = HostNetwork::now().unwrap();
    let node = Node::alone(Version::V1_6, Cni::Bridge).await.unwrap();
    assert_eq!(HostNetwork::now().unwrap(), before);
    drop(node);
    assert_eq!(HostNetwork::now().unwrap(), before);
}
