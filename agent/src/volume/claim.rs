//! Volumes of claims: from a PersistentVolumeClaim and the PersistentVolume behind it to something on this node. Pure.
//!
//! The order of the checks and their texts are kubelet's. What was decided once is written beside the pod's volumes
//! ([`Claimed`]) and holds for the pod's life: a bound claim stays bound, so a restarted agent needs no API server to
//! know what a pod has, and knows which volumes of `ReadWriteOncePod` are taken.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use serde::{Deserialize, Serialize};

use super::SetUpFailure;
use super::safe_path::is_component;
use crate::selector;

/// Keeps a claim that is deleted until no pod uses it.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// The claim of a pod's volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClaimRef {
    /// Name of the volume in the pod.
    pub(super) volume: String,
    /// Name of the claim.
    pub(super) claim: String,
    /// `persistentVolumeClaim.readOnly`.
    pub(super) read_only: bool,
    /// Made from a template for this pod: it must be the pod's own.
    pub(super) is_ephemeral: bool,
    /// A container has it in `volumeMounts`.
    pub(super) is_mounted: bool,
    /// A container has it in `volumeDevices`.
    pub(super) is_device: bool,
}

/// What a claim comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Claimed {
    /// Name of the PersistentVolume.
    pub(super) pv: String,
    pub(super) backing: Backing,
    pub(super) read_only: bool,
    /// `ReadWriteOncePod` is its only access mode: one pod at a time.
    pub(super) is_exclusive: bool,
}

/// What is behind a PersistentVolume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Backing {
    /// A path of the host, used as it is; `kind` is the API's `type`.
    HostPath { path: String, kind: String },
    /// A directory of the host, bound into the pod's directory.
    Local { path: String, options: Vec<BindOption> },
    /// A block device of the host, linked in the pod's directory.
    LocalDevice { path: String },
}

/// `mountOptions` that a bind mount can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum BindOption {
    Ro,
    NoSuid,
    NoDev,
    NoExec,
    NoAtime,
    NoDirAtime,
    RelAtime,
}

impl BindOption {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "ro" => Self::Ro,
            "nosuid" => Self::NoSuid,
            "nodev" => Self::NoDev,
            "noexec" => Self::NoExec,
            "noatime" => Self::NoAtime,
            "nodiratime" => Self::NoDirAtime,
            "relatime" => Self::RelAtime,
            _ => return None,
        })
    }
}

/// Checks a claim and answers the name of its PersistentVolume.
pub(super) fn bound<'a>(pod: &Pod, wanted: &ClaimRef, pvc: &'a PersistentVolumeClaim) -> Result<&'a str, String> {
    let meta = &pvc.metadata;
    let is_protected = meta.finalizers.iter().flatten().any(|finalizer| finalizer == PROTECTION);
    if meta.deletion_timestamp.is_some() && !is_protected {
        return Err(processing(pod, wanted, "PVC is being deleted"));
    }
    if pvc.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err(processing(pod, wanted, "PVC is not bound"));
    }
    let name = pvc.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if name.is_empty() {
        return Err(processing(pod, wanted, "PVC has empty pvc.Spec.VolumeName"));
    }
    if wanted.is_ephemeral && !is_owned(pod, pvc) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (namespace, of_pod) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        return Err(format!(
            "PVC {namespace}/{} was not created for pod {namespace}/{of_pod} (pod is not owner)",
            wanted.claim
        ));
    }
    Ok(name)
}

/// kubelet's text around what is wrong with a claim or its volume.
pub(super) fn processing(pod: &Pod, wanted: &ClaimRef, problem: &str) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    format!("error processing PVC {namespace}/{}: {problem}", wanted.claim)
}

fn is_owned(pod: &Pod, pvc: &PersistentVolumeClaim) -> bool {
    let mut owners = pvc.metadata.owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true));
    pvc.metadata.namespace == pod.metadata.namespace
        && controller.is_some_and(|owner| !owner.uid.is_empty() && Some(&owner.uid) == pod.metadata.uid.as_ref())
}

/// Decides what a bound claim comes to on a node with these labels.
pub(super) fn resolve(
    pod: &Pod,
    wanted: &ClaimRef,
    pvc: &PersistentVolumeClaim,
    pv: &PersistentVolume,
    labels: &BTreeMap<String, String>,
) -> Result<Claimed, SetUpFailure> {
    let unprocessed = |reason| SetUpFailure::Unprocessed { volume: wanted.volume.clone(), reason };
    let name = pv.metadata.name.clone().unwrap_or_default();
    let empty = PersistentVolumeSpec::default();
    let spec = pv.spec.as_ref().unwrap_or(&empty);
    belongs(&name, spec, pvc).map_err(|problem| unprocessed(processing(pod, wanted, &problem)))?;
    let is_block = mode(wanted, spec).map_err(unprocessed)?;
    let failed = |step, reason| SetUpFailure::Step { step, volume: name.clone(), reason };
    let affinity = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    // kubelet gives the check labels only: a term over `metadata.name` matches nothing.
    if affinity.is_some_and(|required| !selector::matches(&required.node_selector_terms, "", labels)) {
        let step = if is_block { "MapVolume.NodeAffinity check" } else { "MountVolume.NodeAffinity check" };
        return Err(failed(step, "no matching NodeSelectorTerms".to_owned()));
    }
    let backing = backing(&name, spec, is_block).map_err(|(step, reason)| failed(step, reason))?;
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    Ok(Claimed {
        is_exclusive: modes.len() == 1 && modes[0] == "ReadWriteOncePod",
        pv: name,
        backing,
        read_only: wanted.read_only,
    })
}

/// Whether a volume is bound to this very claim, not to an earlier one of its name.
fn belongs(name: &str, spec: &PersistentVolumeSpec, pvc: &PersistentVolumeClaim) -> Result<(), String> {
    let expected = pvc.metadata.uid.as_deref().unwrap_or_default();
    match spec.claim_ref.as_ref() {
        None => Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        )),
        Some(claim) if claim.uid.as_deref().unwrap_or_default() != expected => Err(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {} does not point to claim.UID {expected}",
            claim.uid.as_deref().unwrap_or_default()
        )),
        Some(_) => Ok(()),
    }
}

/// Whether the volume is a block device, as the containers use it.
fn mode(wanted: &ClaimRef, spec: &PersistentVolumeSpec) -> Result<bool, String> {
    let mode = spec.volume_mode.as_deref().unwrap_or("Filesystem");
    let misused =
        |list: &str| Err(format!("volume {} has volumeMode {mode}, but is specified in {list}", wanted.volume));
    match mode {
        "Filesystem" if wanted.is_device => misused("volumeDevices"),
        "Block" if wanted.is_mounted => misused("volumeMounts"),
        "Filesystem" => Ok(false),
        "Block" => Ok(true),
        other => {
            Err(format!("volume {} has unknown volumeMode {other:?}; allowed are Filesystem, Block", wanted.volume))
        }
    }
}

fn backing(name: &str, spec: &PersistentVolumeSpec, is_block: bool) -> Result<Backing, (&'static str, String)> {
    const SET_UP: &str = "MountVolume.SetUp";
    if !is_component(name) {
        return Err((SET_UP, format!("PersistentVolume name {name:?} cannot be a file name")));
    }
    let options = spec.mount_options.as_deref().unwrap_or_default();
    if let Some(host) = &spec.host_path {
        if is_block {
            return Err(("MapVolume.SetUpDevice", "hostPath volumes cannot have volumeMode Block".to_owned()));
        }
        if !options.is_empty() {
            let reason = "Mount options are not supported for this volume type".to_owned();
            return Err(("MountVolume.MountOptionSupport check", reason));
        }
        return Ok(Backing::HostPath { path: host.path.clone(), kind: host.type_.clone().unwrap_or_default() });
    }
    let Some(local) = &spec.local else {
        return Err((SET_UP, format!("no volume plugin matched: {}", unsupported(spec))));
    };
    if local.path.is_empty() {
        return Err((SET_UP, format!("LocalVolume volume {name:?} path is empty")));
    }
    if local.path.split('/').any(|part| part == "..") {
        return Err((SET_UP, format!("invalid path: {} must not contain '..'", local.path)));
    }
    // As kubelet: a relative path is one from the root.
    let path = if local.path.starts_with('/') { local.path.clone() } else { format!("/{}", local.path) };
    if is_block {
        return Ok(Backing::LocalDevice { path });
    }
    let options: Result<Vec<_>, _> = options.iter().map(|o| BindOption::parse(o).ok_or(o)).collect();
    match options {
        Ok(options) => Ok(Backing::Local { path, options }),
        Err(unknown) => Err((
            SET_UP,
            format!(
                "mountOptions of a local volume may be ro, nosuid, nodev, noexec, noatime, nodiratime and relatime; found {unknown:?}"
            ),
        )),
    }
}

fn unsupported(spec: &PersistentVolumeSpec) -> String {
    let what = if spec.csi.is_some() {
        "csi"
    } else if spec.nfs.is_some() {
        "nfs"
    } else if spec.iscsi.is_some() {
        "iscsi"
    } else if spec.fc.is_some() {
        "fc"
    } else {
        return "the PersistentVolume has no source that this node agent knows".to_owned();
    };
    format!("{what} volumes are not supported by this node agent yet")
}

#[cfg(test)]
mod tests;
