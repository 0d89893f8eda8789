//! Keeps what pods are admitted against like the Node object: its labels and taints.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;

use crate::cgroup::ResourceList;
use crate::pod::admit;

/// How long the first pods wait for the Node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the Node, so that the first pods from the API server meet its labels, and follows it from then on. At the first start it
/// is registered within a moment; while the API server is away, no new pods come either.
pub async fn learn(mut node: watch::Receiver<Option<Arc<Node>>>, admission: Arc<ArcSwap<admit::Node>>) {
    let own = admission.load().allocatable.clone();
    let is_there = tokio::time::timeout(PATIENCE, node.wait_for(Option::is_some)).await.is_ok();
    if is_there {
        take(&mut node, &admission, &own);
    } else {
        tracing::warn!("the Node object is not there yet; pods are admitted by the configured labels");
    }
    tokio::spawn(async move {
        while node.changed().await.is_ok() {
            take(&mut node, &admission, &own);
        }
    });
}

/// While there is no Node, what was known before stays.
fn take(node: &mut watch::Receiver<Option<Arc<Node>>>, admission: &ArcSwap<admit::Node>, own: &ResourceList) {
    let seen = node.borrow_and_update().clone();
    if let Some(seen) = seen {
        admission.rcu(|known| updated(known, own, &seen));
    }
}

/// `own` are the amounts that the agent itself found.
fn updated(known: &admit::Node, own: &ResourceList, node: &Node) -> admit::Node {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    // Extended resources are what others put into the status, and as they say now; amounts of ours stay as configured.
    let mut allocatable = own.clone();
    let listed = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    for (name, amount) in crate::cgroup::resources::resource_list(listed) {
        allocatable.entry(name).or_insert(amount);
    }
    let features = node.status.as_ref().and_then(|status| status.features.as_ref());
    let strict_groups =
        features.map(|features| features.supplemental_groups_policy == Some(true)).or(known.strict_groups);
    let labels = node.metadata.labels.clone().unwrap_or_default();
    admit::Node { labels, taints, allocatable, strict_groups, ..known.clone() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::quantity::Quantity;

    fn node(allocatable: Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"allocatable": allocatable}})).unwrap()
    }

    #[test]
    fn extended_resources_are_as_the_node_shows_them_now_and_own_amounts_as_configured() {
        let amount = |text: &str| Quantity::parse(text).unwrap();
        let own = ResourceList::from([("cpu".to_owned(), amount("2"))]);
        let known = admit::Node { allocatable: own.clone(), ..admit::Node::default() };
        let gpus = |known: &admit::Node, gpus: &str| {
            updated(known, &own, &node(json!({"cpu": "64", "example.com/gpu": gpus})))
        };
        let two = gpus(&known, "2");
        assert_eq!((two.allocatable["cpu"], two.allocatable["example.com/gpu"]), (amount("2"), amount("2")));
        let three = gpus(&two, "3");
        assert_eq!(three.allocatable["example.com/gpu"], amount("3"));
        assert_eq!(updated(&three, &own, &node(json!({}))).allocatable, own, "the device is gone");
    }
}
