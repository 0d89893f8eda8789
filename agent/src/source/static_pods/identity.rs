//! From the content of a file to a static pod with kubelet's marks. Pure.
//!
//! Name with the node's name appended; UID and `config.hash` from the content, the node and the path; `config.source` and
//! `config.seen`; a toleration for every NoExecute taint. The hash is of the parsed document before defaults, so that
//! neither comments nor a newer nodelet change it. It differs from kubelet's, which hashes Go's memory layout: static
//! pods are the one thing that is restarted when a node changes from one to the other.
//! References to API objects are refused, because a static pod has no identity that could read them.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, Toleration, Volume, VolumeProjection};
use sha2::{Digest as _, Sha256};

use crate::ids::NodeName;
use crate::pod::spec::SOURCE_ANNOTATION;
use crate::source::decode::{self, Object};

/// Annotation with the hash that the mirror repeats.
pub const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";
const SEEN_ANNOTATION: &str = "kubernetes.io/config.seen";

/// Reads one file. `now` is an RFC 3339 time.
pub fn static_pod(path: &Path, content: &[u8], node: &NodeName, now: &str) -> Result<Pod, String> {
    let file = path.display().to_string();
    let decoded = decode::decode_bytes(&file, content).map_err(|errors| errors.to_string())?;
    for warning in &decoded.warnings {
        tracing::warn!("static pod: {warning}");
    }
    let mut objects = decoded.objects.into_iter();
    let mut pod = match (objects.next().map(|located| located.object), objects.next()) {
        (Some(Object::Pod(pod)), None) => *pod,
        (Some(Object::Pod(_)), Some(_)) => return Err(format!("{file}: expected one Pod, found several objects")),
        (Some(other), _) => return Err(format!("{file}: expected a Pod, found a {}", other.kind())),
        (None, _) => return Err(format!("{file}: expected a Pod, found no object")),
    };
    if let Some(what) = pod.spec.as_ref().and_then(api_reference) {
        return Err(format!(
            "{file}: static pods may not reference {what}: put the value into the file, or use a hostPath volume"
        ));
    }
    mark(&mut pod, &hash(content, node, &file), node, now);
    Ok(pod)
}

fn hash(content: &[u8], node: &NodeName, file: &str) -> String {
    let mut hasher = Sha256::new();
    // JSON objects have sorted keys here. What cannot be parsed as a tree has been refused before.
    match serde_saphyr::from_slice::<serde_json::Value>(content) {
        Ok(tree) => hasher.update(tree.to_string().as_bytes()),
        Err(_) => hasher.update(content),
    }
    hasher.update(format!("host:{node}file:{file}"));
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn mark(pod: &mut Pod, hash: &str, node: &NodeName, now: &str) {
    let meta = &mut pod.metadata;
    let uid = meta.uid.get_or_insert_with(|| hash.to_owned()).clone();
    meta.name = meta.name.as_ref().map(|name| format!("{name}-{}", node.as_str().to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    let annotations = meta.annotations.get_or_insert_default();
    for (key, value) in [(HASH_ANNOTATION, uid.as_str()), (SOURCE_ANNOTATION, "file"), (SEEN_ANNOTATION, now)] {
        annotations.insert(key.to_owned(), value.to_owned());
    }
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_string());
    let all = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&all) {
        tolerations.push(all);
    }
    pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
}

/// The first reference to an API object, in kubelet's words.
fn api_reference(spec: &PodSpec) -> Option<&'static str> {
    if spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty()) {
        return Some("serviceaccounts");
    }
    if spec.image_pull_secrets.iter().flatten().next().is_some() {
        return Some("secrets");
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some("resourceclaims");
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    containers
        .into_iter()
        .find_map(container_reference)
        .or_else(|| spec.volumes.iter().flatten().find_map(volume_reference))
}

fn container_reference(container: &Container) -> Option<&'static str> {
    for source in container.env_from.iter().flatten() {
        match (&source.secret_ref, &source.config_map_ref) {
            (Some(_), _) => return Some("secrets"),
            (None, Some(_)) => return Some("configmaps"),
            (None, None) => {}
        }
    }
    let values = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
    values.into_iter().find_map(|value| match (&value.secret_key_ref, &value.config_map_key_ref) {
        (Some(_), _) => Some("secrets"),
        (None, Some(_)) => Some("configmaps"),
        (None, None) => None,
    })
}

fn volume_reference(volume: &Volume) -> Option<&'static str> {
    let direct = [
        (volume.config_map.is_some(), "configmaps (via configmap volumes)"),
        (volume.secret.is_some(), "secrets (via secret volumes)"),
        (volume.csi.is_some(), "csidrivers (via CSI volumes)"),
        (volume.glusterfs.is_some(), "endpoints (via glusterFS volumes)"),
        (volume.persistent_volume_claim.is_some(), "persistentvolumeclaims"),
        (volume.ephemeral.is_some(), "persistentvolumeclaims (via ephemeral volumes)"),
        (volume.azure_file.is_some(), "secrets (via azureFile volumes)"),
    ];
    let direct = direct.into_iter().find_map(|(used, what)| used.then_some(what));
    let projected = || volume.projected.as_ref()?.sources.iter().flatten().find_map(projection_reference);
    direct.or_else(projected)
}

fn projection_reference(source: &VolumeProjection) -> Option<&'static str> {
    let kinds = [
        (source.config_map.is_some(), "configmaps (via projected volumes)"),
        (source.secret.is_some(), "secrets (via projected volumes)"),
        (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
        (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
        (source.pod_certificate.is_some(), "podcertificates"),
    ];
    kinds.into_iter().find_map(|(used, what)| used.then_some(what))
}
