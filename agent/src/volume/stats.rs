//! What each volume of a pod holds and what is left for it: the figures of `/stats/summary` and `kubelet_volume_stats_*`.
//!
//! As kubelet: what the agent makes itself is walked, because it shares its file system with others; a mount of its own is
//! asked, and of a block device the size is known. hostPath and image volumes have no figures. Nothing here has a deadline: a file
//! server that does not answer holds its thread.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::claim::Backing;
use super::measure::{hosts_file, usage};
use super::plan::{LOCAL_PLUGIN, Source, Wanted, wanted};
use super::safe_path::{Dir, PathError, error};
use super::{VolumeError, Volumes, check_name};
use crate::ids::PodUid;

/// How a volume is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By its files: it takes as long as there are many.
    Walk,
    /// By its file system.
    Ask,
}

impl Way {
    /// How a volume of a pod's spec is measured; `None` for kinds without figures.
    pub fn of(volume: &Volume) -> Option<Self> {
        let is_own = volume.empty_dir.is_some()
            || volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        let is_mount = volume.persistent_volume_claim.is_some()
            || volume.ephemeral.is_some()
            || volume.csi.is_some()
            || volume.nfs.is_some()
            || volume.iscsi.is_some();
        if is_own { Some(Self::Walk) } else { is_mount.then_some(Self::Ask) }
    }
}

/// A volume, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeFigures {
    /// Size of its file system.
    pub capacity: u64,
    /// Left for containers.
    pub available: u64,
    /// In use: of the volume where it is walked, of the file system where that is asked.
    pub used: u64,
    /// Inodes of its file system; 0 where there is no such limit.
    pub inodes: u64,
    /// Free ones.
    pub inodes_free: u64,
    /// In use.
    pub inodes_used: u64,
}

/// What was measured of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFigures {
    /// By name, in the order of the question. What is not in place is not here.
    pub volumes: Vec<(String, VolumeFigures)>,
    /// Bytes of the hosts file, where there is one.
    pub hosts: Option<u64>,
}

/// Volumes by the name of their plugin, such as `kubernetes.io/secret`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// What pods want that are not at their end; a claim counts once it was looked up.
    pub desired: BTreeMap<String, u64>,
    /// What is in place.
    pub actual: BTreeMap<String, u64>,
}

const HOST_PATH: &str = "kubernetes.io~host-path";

/// Plugin and operation of putting a volume in place, in kubelet's words; `None` for one that cannot be.
pub(super) fn operation(wanted: &Wanted) -> Option<(String, &'static str)> {
    let plugin = match &wanted.source {
        Source::HostPath { .. } => HOST_PATH,
        source => source.plugin()?,
    };
    let is_device = matches!(wanted.source, Source::LocalDevice { .. });
    Some((plugin.replace('~', "/"), if is_device { "map_volume" } else { "volume_mount" }))
}

impl Volumes {
    /// Counts the volumes of these pods, which are all of the node.
    pub fn counts(&self, pods: &[Pod]) -> Counts {
        let mut counts = Counts::default();
        let states = self.pods();
        let is_over = |pod: &&Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        };
        for pod in pods.iter().filter(|pod| !is_over(pod)) {
            let state = states.get(&PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()));
            for one in wanted(pod) {
                let plugin = match &one.source {
                    Source::Claim(_) => match state.and_then(|state| state.claims.get(&one.name)).map(|c| &c.backing) {
                        Some(Backing::HostPath { .. }) => Some(HOST_PATH),
                        Some(Backing::Local { .. } | Backing::LocalDevice { .. }) => Some(LOCAL_PLUGIN),
                        None => None,
                    },
                    Source::HostPath { .. } => Some(HOST_PATH),
                    source => source.plugin(),
                };
                if let Some(plugin) = plugin {
                    *counts.desired.entry(plugin.replace('~', "/")).or_default() += 1;
                }
            }
        }
        for (uid, state) in states.iter() {
            let below = self.pod_dir(uid);
            for path in state.paths.values() {
                // volumes/PLUGIN/NAME or volumeDevices/PLUGIN/NAME; elsewhere it is a hostPath.
                let inside = path.strip_prefix(&below).ok().and_then(|inside| inside.iter().nth(1)?.to_str());
                *counts.actual.entry(inside.unwrap_or(HOST_PATH).replace('~', "/")).or_default() += 1;
            }
        }
        counts
    }

    /// Measures volumes of a pod. Does not wait for other work on the pod.
    pub async fn figures(&self, uid: &PodUid, asked: Vec<(String, Way)>) -> Result<PodFigures, VolumeError> {
        check_name("pod UID", uid.as_str())?;
        let paths = self.pods().get(uid).map(|state| state.paths.clone()).unwrap_or_default();
        let placed: Vec<(String, Way, PathBuf)> = asked
            .into_iter()
            .filter_map(|(name, way)| Some((paths.get(&name)?.clone(), name, way)))
            .map(|(path, name, way)| (name, way, path))
            .collect();
        let (pods_dir, name) = (self.inner.pods_dir.clone(), uid.as_str().to_owned());
        let work = move || {
            let Some(pod) = Dir::open(&pods_dir)?.child_if_there(&name)? else { return Ok(PodFigures::default()) };
            let mut found = PodFigures::default();
            for (name, way, path) in placed {
                match figures(&pod, &path, way) {
                    Ok(Some(figures)) => found.volumes.push((name, figures)),
                    Ok(None) => {}
                    Err(error) => tracing::debug!(%error, volume = name, "a volume was not measured"),
                }
            }
            found.hosts = hosts_file(&pod);
            Ok(found)
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| VolumeError::Cancelled)?.map_err(VolumeError::Path)
    }
}

fn figures(pod: &Dir, path: &Path, way: Way) -> Result<Option<VolumeFigures>, PathError> {
    // Outside of the pod's directory it is a hostPath.
    let Some(relative) = path.strip_prefix(pod.path()).ok().and_then(Path::to_str) else { return Ok(None) };
    if relative.starts_with("volumeDevices/") {
        return device(path).map(Some);
    }
    match way {
        Way::Ask => {
            let volume = pod.handle(relative)?;
            file_system(volume.as_fd(), path).map(Some)
        }
        Way::Walk => {
            let Some(volume) = pod.child_if_there(relative)? else { return Ok(None) };
            let (whole, own) = (file_system(volume.as_fd(), path)?, usage(&volume)?);
            Ok(Some(VolumeFigures { used: own.bytes, inodes_used: own.inodes, ..whole }))
        }
    }
}

fn file_system(volume: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<VolumeFigures, PathError> {
    let found = rustix::fs::fstatvfs(volume).map_err(|e| error("measure", path, e))?;
    let size = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(VolumeFigures {
        capacity: size(found.f_blocks),
        available: size(found.f_bavail),
        used: size(found.f_blocks.saturating_sub(found.f_bfree)),
        inodes: found.f_files,
        inodes_free: found.f_ffree,
        inodes_used: found.f_files.saturating_sub(found.f_ffree),
    })
}

/// The size of a block device, which no container can put elsewhere: the link to it is the agent's.
fn device(link: &Path) -> Result<VolumeFigures, PathError> {
    let fail = |e: std::io::Error| error("measure", link, e);
    let found = link.metadata().map_err(fail)?;
    if !found.file_type().is_block_device() {
        return Err(fail(std::io::Error::new(std::io::ErrorKind::InvalidInput, "expected a link to a block device")));
    }
    let (major, minor) = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size")).map_err(fail)?;
    // Sectors of 512 bytes, whatever the device has.
    let capacity = text.trim().parse::<u64>().unwrap_or(0).saturating_mul(512);
    Ok(VolumeFigures { capacity, ..VolumeFigures::default() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_agent_makes_is_walked_mounts_are_asked_and_the_host_has_no_figures() {
        let way = |source: serde_json::Value| {
            let mut volume = json!({ "name": "v" });
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            Way::of(&serde_json::from_value(volume).unwrap())
        };
        for source in ["emptyDir", "configMap", "secret", "projected", "downwardAPI"] {
            assert_eq!(way(json!({ source: {} })), Some(Way::Walk), "{source}");
        }
        assert_eq!(way(json!({ "persistentVolumeClaim": { "claimName": "c" } })), Some(Way::Ask));
        assert_eq!(way(json!({ "ephemeral": {} })), Some(Way::Ask));
        assert_eq!(way(json!({ "hostPath": { "path": "/" } })), None);
        assert_eq!(way(json!({ "image": { "reference": "i" } })), None);
    }
}
