//! The control plane, before an agent relies on it.

use harness::control_plane::ControlPlane;
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::Api;
use kube::api::PostParams;

#[tokio::test]
async fn a_node_may_register_itself_and_no_other_node() {
    let plane = ControlPlane::start(&["n1"]).await.unwrap();
    let admin = plane.client().await.unwrap();
    Api::<ServiceAccount>::namespaced(admin, "default").get("default").await.unwrap();
    let nodes: Api<Node> = Api::all(plane.client_of(&plane.node_kubeconfig("n1")).await.unwrap());
    let named = |name: &str| {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node
    };
    nodes.create(&PostParams::default(), &named("n1")).await.unwrap();
    let refused = nodes.create(&PostParams::default(), &named("n2")).await.unwrap_err();
    assert!(refused.to_string().contains("not allowed"), "{refused}");
    // The controller manager gives the node its pod range.
    let range = harness::eventually::eventually(std::time::Duration::from_secs(20), "a pod range", async || {
        let node = nodes.get("n1").await?;
        node.spec.and_then(|spec| spec.pod_cidr).ok_or_else(|| anyhow::anyhow!("none yet"))
    });
    assert_eq!(range.await.unwrap(), "10.244.0.0/24");
}
