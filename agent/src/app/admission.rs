//! Keeps what pods are admitted against like the Node object: its labels and taints.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::watch;

use crate::pod::admit;

/// How long the first pods wait for the Node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the Node, so that the first pods from the API server meet its labels, and follows it from then on. At the first start it
/// is registered within a moment; while the API server is away, no new pods come either.
pub async fn learn(mut node: watch::Receiver<Option<Arc<Node>>>, admission: Arc<ArcSwap<admit::Node>>) {
    let is_there = tokio::time::timeout(PATIENCE, node.wait_for(Option::is_some)).await.is_ok();
    if is_there {
        take(&mut node, &admission);
    } else {
        tracing::warn!("the Node object is not there yet; pods are admitted by the configured labels");
    }
    tokio::spawn(async move {
        while node.changed().await.is_ok() {
            take(&mut node, &admission);
        }
    });
}

/// While there is no Node, what was known before stays.
fn take(node: &mut watch::Receiver<Option<Arc<Node>>>, admission: &ArcSwap<admit::Node>) {
    let seen = node.borrow_and_update().clone();
    if let Some(seen) = seen {
        admission.rcu(|known| updated(known, &seen));
    }
}

fn updated(known: &admit::Node, node: &Node) -> admit::Node {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    // Extended resources are what others put into the status; amounts of ours stay as configured.
    let mut allocatable = known.allocatable.clone();
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
