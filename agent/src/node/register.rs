//! Registers the node: creates its Node object, or puts our part of an existing one right.
//!
//! Taints, provider ID and `--node-labels` count only at creation, as with kubelet: later they belong to people and
//! controllers. Default labels and the attach-detach annotation are reconciled on every start.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};

use super::NodeSettings;
use super::facts::architecture;
use crate::api::watch::{Backoff, error_text};

const ATTACH_DETACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const CLOUD_TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";
const PROVIDED_NODE_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// Labels that are kept equal to what this start says; all others only count at creation.
const DEFAULT_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(7);

/// The Node object as it is created.
pub fn initial(settings: &NodeSettings, status: NodeStatus) -> Node {
    let mut labels = BTreeMap::new();
    for prefix in ["kubernetes.io", "beta.kubernetes.io"] {
        labels.insert(format!("{prefix}/os"), "linux".to_owned());
        labels.insert(format!("{prefix}/arch"), architecture().to_owned());
    }
    labels.insert("kubernetes.io/hostname".to_owned(), settings.hostname.clone());
    labels.extend(settings.labels.iter().cloned());
    let mut annotations = BTreeMap::from([(ATTACH_DETACH.to_owned(), "true".to_owned())]);
    let mut taints: Vec<Taint> = settings
        .taints
        .iter()
        .map(|taint| Taint {
            key: taint.key.clone(),
            value: Some(taint.value.clone()).filter(|value| !value.is_empty()),
            effect: taint.effect.clone(),
            time_added: None,
        })
        .collect();
    if settings.external_cloud {
        if taints.iter().all(|taint| taint.key != CLOUD_TAINT) {
            taints.push(Taint {
                key: CLOUD_TAINT.to_owned(),
                value: Some("true".to_owned()),
                effect: "NoSchedule".to_owned(),
                time_added: None,
            });
        }
        let ips: Vec<String> =
            settings.node_ips.iter().filter(|ip| !ip.is_unspecified()).map(ToString::to_string).collect();
        if !ips.is_empty() {
            annotations.insert(PROVIDED_NODE_IP.to_owned(), ips.join(","));
        }
    }
    Node {
        metadata: ObjectMeta {
            name: Some(settings.name.to_string()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints).filter(|taints| !taints.is_empty()),
            provider_id: Some(settings.provider_id.clone()).filter(|id| !id.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    }
}

/// What has to change in an existing Node; `None` if nothing has to.
pub fn reconcile(existing: &Node, initial: &Node) -> Option<Value> {
    let labels = differences(existing.metadata.labels.as_ref(), initial.metadata.labels.as_ref(), &DEFAULT_LABELS);
    let annotations = differences(
        existing.metadata.annotations.as_ref(),
        initial.metadata.annotations.as_ref(),
        &[ATTACH_DETACH, PROVIDED_NODE_IP],
    );
    match labels.is_empty() && annotations.is_empty() {
        true => None,
        false => Some(json!({ "metadata": { "labels": labels, "annotations": annotations } })),
    }
}

fn differences(
    existing: Option<&BTreeMap<String, String>>,
    wanted: Option<&BTreeMap<String, String>>,
    keys: &[&str],
) -> Map<String, Value> {
    let value = |map: Option<&BTreeMap<String, String>>, key: &str| map.and_then(|map| map.get(key)).cloned();
    let wanted = keys.iter().filter_map(|key| value(wanted, key).map(|value| (*key, value)));
    wanted
        .filter(|(key, wanted)| value(existing, key).as_ref() != Some(wanted))
        .map(|(key, wanted)| (key.to_owned(), Value::String(wanted)))
        .collect()
}

/// Registers until it succeeds, and answers the Node as the server has it. `status` is computed afresh for each attempt.
/// Without `registerNode` this waits until somebody else has created the Node.
pub async fn register(client: kube::Client, settings: &NodeSettings, status: impl Fn() -> NodeStatus) -> Node {
    let api: Api<Node> = Api::all(client);
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        match attempt(&api, settings, status()).await {
            Ok(node) => {
                tracing::info!(node = %settings.name, "node registered");
                return node;
            }
            Err(error) => {
                let hint = match settings.register {
                    true => "",
                    false => " (registerNode is false: create the Node object)",
                };
                tracing::warn!(node = %settings.name, error = error_text(&error), "cannot register node{hint}");
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn attempt(api: &Api<Node>, settings: &NodeSettings, status: NodeStatus) -> Result<Node, kube::Error> {
    let wanted = initial(settings, status);
    if settings.register {
        match api.create(&PostParams::default(), &wanted).await {
            Ok(node) => return Ok(node),
            // Forbidden also hides an existing Node: a quota or a webhook may refuse creation only.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 409) => {}
            Err(error) => return Err(error),
        }
    }
    let existing = api.get(settings.name.as_str()).await?;
    match reconcile(&existing, &wanted).filter(|_| settings.register) {
        None => Ok(existing),
        Some(patch) => api.patch(settings.name.as_str(), &PatchParams::default(), &Patch::Strategic(patch)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).expect("node")
    }

    #[test]
    fn only_default_labels_and_own_annotations_are_put_right() {
        let initial = node(json!({ "metadata": {
            "labels": { "kubernetes.io/hostname": "n", "kubernetes.io/os": "linux", "team": "a" },
            "annotations": { ATTACH_DETACH: "true" } } }));
        let existing = node(json!({ "metadata": {
            "labels": { "kubernetes.io/hostname": "old", "kubernetes.io/os": "linux", "team": "b", "x": "y" } } }));
        assert_eq!(
            reconcile(&existing, &initial),
            Some(
                json!({ "metadata": { "labels": { "kubernetes.io/hostname": "n" }, "annotations": { ATTACH_DETACH: "true" } } })
            )
        );
        assert_eq!(reconcile(&initial, &initial), None);
    }
}
