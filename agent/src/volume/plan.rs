//! Which volumes a pod needs, and what has to be done for each. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Volume, VolumeMount};

use super::claim::{BindOption, ClaimRef, Claimed};
use super::projection::{Piece, pieces};
use super::{SetUpFailure, host_path, huge_pages};
use crate::objects::ObjectRef;
use crate::quantity::Quantity;

/// `defaultMode` of volumes of the API.
const DEFAULT_MODE: u32 = 0o644;

/// Directory of local PersistentVolumes below `volumes/` and `volumeDevices/`.
pub(super) const LOCAL_PLUGIN: &str = "kubernetes.io~local-volume";

/// A volume that a container of the pod mounts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) source: Source,
    /// Directories that are mount points of other volumes inside this one.
    pub(super) nested: BTreeSet<String>,
    /// Containers may only read it, whatever their spec says.
    pub(super) read_only: bool,
    /// What its claim came to.
    pub(super) claimed: Option<Claimed>,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    EmptyDir {
        medium: Medium,
        /// `sizeLimit` in bytes.
        limit: Option<u64>,
    },
    HostPath {
        path: String,
        kind: host_path::Kind,
    },
    /// Files that the agent writes and replaces together.
    Atomic(Atomic),
    /// A claim that is to be followed.
    Claim(ClaimRef),
    /// A directory of the host that is bound into the pod's directory, by the name of its PersistentVolume.
    Local {
        path: String,
        options: Vec<BindOption>,
    },
    /// A block device of the host.
    LocalDevice {
        path: String,
    },
    /// Why the volume cannot be set up.
    Failed(SetUpFailure),
}

/// Where an emptyDir is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    Memory,
    /// hugetlbfs with pages of this many bytes.
    HugePages(u64),
}

/// A volume of files from the API.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Atomic {
    /// Directory below `volumes/`.
    pub(super) plugin: &'static str,
    pub(super) medium: Medium,
    /// `defaultMode`.
    pub(super) mode: u32,
    pub(super) pieces: Vec<Piece>,
}

impl Source {
    /// Directory of the plugin below `volumes/`; `None` for volumes that are not in the pod's directory.
    pub(super) fn plugin(&self) -> Option<&'static str> {
        match self {
            Self::EmptyDir { .. } => Some("kubernetes.io~empty-dir"),
            Self::Atomic(atomic) => Some(atomic.plugin),
            Self::Local { .. } | Self::LocalDevice { .. } => Some(LOCAL_PLUGIN),
            Self::HostPath { .. } | Self::Claim(_) | Self::Failed(_) => None,
        }
    }
}

/// What was found on disk for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    /// The marker that kubelet writes when a setup was finished.
    pub(super) ready: bool,
    /// The directory exists.
    pub(super) exists: bool,
    /// The directory is the root of a mount.
    pub(super) mounted: bool,
}

/// What has to be done for a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: it is there and belongs to the containers now.
    Keep,
    /// Create the directory; mount a tmpfs on it if it is on memory and none is mounted.
    SetUp,
}

/// Compares a directory with what is wanted: what a container may have written in is never set up again.
pub(super) fn step(medium: Medium, observed: Observed) -> Step {
    let there = match medium {
        Medium::Disk => observed.exists,
        Medium::Memory | Medium::HugePages(_) => observed.exists && observed.mounted,
    };
    if observed.ready && there { Step::Keep } else { Step::SetUp }
}

/// Size of a tmpfs: the least of the volume's limit, the pod's memory limit and what the node gives to pods.
pub(super) fn tmpfs_size(limit: Option<u64>, pod_limit: Option<u64>, allocatable: Option<u64>) -> Option<u64> {
    [limit, pod_limit, allocatable].into_iter().flatten().filter(|size| *size > 0).min()
}

/// The volumes that containers of the pod mount; others are not set up, as kubelet does not. Image volumes are not among
/// them: the runtime mounts images itself.
pub(super) fn wanted(pod: &Pod) -> Vec<Wanted> {
    let mounts: Vec<&[VolumeMount]> = container_mounts(pod);
    let devices: BTreeSet<&str> = device_names(pod).into_iter().collect();
    let mounted: BTreeSet<&str> = mounts.iter().flat_map(|m| m.iter().map(|m| m.name.as_str())).collect();
    let claim = |volume: &Volume| {
        let name = volume.name.as_str();
        claim_ref(pod, volume, mounted.contains(name), devices.contains(name))
    };
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes
        .iter()
        .filter(|volume| mounted.contains(volume.name.as_str()) || devices.contains(volume.name.as_str()))
        // The runtime mounts images itself.
        .filter(|volume| volume.image.is_none())
        .map(|volume| {
            let source = claim(volume).map_or_else(|| source(pod, volume), Source::Claim);
            Wanted {
                name: volume.name.clone(),
                // The agent writes to these, and nobody else may.
                read_only: matches!(source, Source::Atomic(_)),
                source,
                nested: nested_mount_points(&volume.name, &mounts),
                claimed: None,
            }
        })
        .collect()
}

fn claim_ref(pod: &Pod, volume: &Volume, is_mounted: bool, is_device: bool) -> Option<ClaimRef> {
    let of = |claim, read_only, is_ephemeral| ClaimRef {
        volume: volume.name.clone(),
        claim,
        read_only,
        is_ephemeral,
        is_mounted,
        is_device,
    };
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(of(claim.claim_name.clone(), claim.read_only == Some(true), false));
    }
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    volume.ephemeral.as_ref().map(|_| of(format!("{pod}-{}", volume.name), false, true))
}

/// The objects of the API that the pod's volumes are made from.
pub(super) fn object_refs(pod: &Pod) -> Vec<ObjectRef> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut refs = BTreeSet::new();
    for volume in wanted(pod) {
        let Source::Atomic(atomic) = volume.source else { continue };
        refs.extend(atomic.pieces.iter().filter_map(|piece| piece.object_ref(namespace)));
    }
    refs.into_iter().collect()
}

/// `securityContext.fsGroup`.
pub(super) fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// `fsGroupChangePolicy: OnRootMismatch`: a volume whose top directory is right already is not walked.
pub(super) fn changes_group_on_mismatch_only(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// The user that all containers run as, if they are told to and it is one.
pub(super) fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let init = spec.init_containers.iter().flatten().map(|c| c.security_context.as_ref());
    let regular = spec.containers.iter().map(|c| c.security_context.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| c.security_context.as_ref());
    let mut users = init.chain(regular).chain(ephemeral).map(|c| c.and_then(|c| c.run_as_user).or(of_pod));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}

fn container_mounts(pod: &Pod) -> Vec<&[VolumeMount]> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().map(|c| c.volume_mounts.as_deref());
    let regular = spec.containers.iter().map(|c| c.volume_mounts.as_deref());
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| c.volume_mounts.as_deref());
    init.chain(regular).chain(ephemeral).flatten().collect()
}

fn device_names(pod: &Pod) -> Vec<&str> {
    let Some(spec) = pod.spec.as_ref() else { return Vec::new() };
    let init = spec.init_containers.iter().flatten().flat_map(|c| c.volume_devices.iter().flatten());
    let regular = spec.containers.iter().flat_map(|c| c.volume_devices.iter().flatten());
    init.chain(regular).map(|d| d.name.as_str()).collect()
}

/// Paths in `volume` where a container mounts something else: the runtime cannot create them in a read-only volume.
/// Of nested ones only the outermost.
fn nested_mount_points(volume: &str, containers: &[&[VolumeMount]]) -> BTreeSet<String> {
    let clean = |path: &str| path.split('/').filter(|c| !c.is_empty() && *c != ".").map(str::to_owned).collect();
    let mut found = BTreeSet::new();
    for mounts in containers {
        let paths: Vec<(&str, Vec<String>)> = mounts.iter().map(|m| (m.name.as_str(), clean(&m.mount_path))).collect();
        for (_, own) in paths.iter().filter(|(name, _)| *name == volume) {
            let below = |outer: &[String], inner: &[String]| inner.len() > outer.len() && inner.starts_with(outer);
            for (_, inner) in paths.iter().filter(|(_, path)| below(own, path)) {
                let is_outermost = !paths.iter().any(|(_, other)| below(own, other) && below(other, inner));
                let relative = &inner[own.len()..];
                if is_outermost && !relative.iter().any(|c| c == "..") {
                    found.insert(relative.join("/"));
                }
            }
        }
    }
    found
}

fn source(pod: &Pod, volume: &Volume) -> Source {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().map(|q| q.0.as_str());
        let source = empty_dir(pod, empty.medium.as_deref().unwrap_or_default(), limit);
        return source.unwrap_or_else(|reason| refused(volume, reason));
    }
    if let Some(host) = &volume.host_path {
        let text = host.type_.as_deref().unwrap_or_default();
        return match host_path::Kind::parse(text) {
            Some(kind) => Source::HostPath { path: host.path.clone(), kind },
            None => refused(volume, format!("{text} is an invalid volume type")),
        };
    }
    let atomic = |plugin, medium, mode: Option<i32>, pieces| {
        let mode = mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MODE);
        Source::Atomic(Atomic { plugin, medium, mode, pieces })
    };
    if let Some(map) = &volume.config_map {
        let piece = Piece::ConfigMap {
            name: map.name.clone(),
            items: map.items.clone().unwrap_or_default(),
            optional: map.optional == Some(true),
        };
        return atomic("kubernetes.io~configmap", Medium::Disk, map.default_mode, vec![piece]);
    }
    if let Some(secret) = &volume.secret {
        let piece = Piece::Secret {
            name: secret.secret_name.clone().unwrap_or_default(),
            items: secret.items.clone().unwrap_or_default(),
            optional: secret.optional == Some(true),
        };
        return atomic("kubernetes.io~secret", Medium::Memory, secret.default_mode, vec![piece]);
    }
    if let Some(downward) = &volume.downward_api {
        let piece = Piece::Downward { items: downward.items.clone().unwrap_or_default() };
        return atomic("kubernetes.io~downward-api", Medium::Memory, downward.default_mode, vec![piece]);
    }
    if let Some(projected) = &volume.projected {
        return atomic("kubernetes.io~projected", Medium::Memory, projected.default_mode, pieces(projected));
    }
    refused(volume, refusal(volume))
}

fn refused(volume: &Volume, reason: String) -> Source {
    Source::Failed(SetUpFailure::set_up(&volume.name, reason))
}

fn empty_dir(pod: &Pod, medium: &str, limit: Option<&str>) -> Result<Source, String> {
    let limit = limit.and_then(|l| Quantity::parse(l).ok()).and_then(|q| u64::try_from(q.value()).ok());
    match medium {
        "" => Ok(Source::EmptyDir { medium: Medium::Disk, limit }),
        "Memory" => Ok(Source::EmptyDir { medium: Medium::Memory, limit }),
        huge if huge.starts_with(huge_pages::MEDIUM) => {
            let page = huge_pages::page_size(huge, pod)?;
            Ok(Source::EmptyDir { medium: Medium::HugePages(page), limit })
        }
        other => Err(format!("unknown storage medium {other:?}")),
    }
}

/// Why a volume of another type cannot be mounted. kubelet says `no volume plugin matched` for types that it has no
/// plugin for; types that it has are named.
fn refusal(volume: &Volume) -> String {
    let what = if volume.csi.is_some() {
        "csi"
    } else if volume.nfs.is_some() {
        "nfs"
    } else if volume.iscsi.is_some() {
        "iscsi"
    } else if volume.fc.is_some() {
        "fc"
    } else if volume.git_repo.is_some() {
        return "gitRepo volumes are disabled (CVE-2024-10220): clone in an init container instead".to_owned();
    } else {
        return format!("no volume plugin matched name: {}", volume.name);
    };
    format!("no volume plugin matched: {what} volumes are not supported by this node agent yet")
}
