//! A pod's directory and its volumes: the one owner of `ROOT/pods/UID`.
//!
//! ```text
//!  pods/UID/volumes/kubernetes.io~PLUGIN/NAME      the volume; a tmpfs for what is secret
//!  pods/UID/plugins/kubernetes.io~empty-dir/NAME/ready    setup was finished once
//!  pods/UID/volume-subpaths/VOLUME/CONTAINER/INDEX        bind mounts of subPaths
//!  pods/UID/containers/NAME/ID                     termination message
//!  pods/UID/volumeDevices/kubernetes.io~local-volume/PV  link to a block device
//!  pods/UID/plugins/nodelet~claim/NAME                   what the claim of a volume came to; the agent's own
//!  pods/UID/etc-hosts
//!  pods/UID/userns                                  ids of a pod with its own user namespace
//! ```
//! The layout, modes and markers are kubelet's, so that either agent takes over what the other left.
//!
//! [`Volumes::ensure`] fetches what a pod's volumes need, decides the files (`plan`, `content`: pure) and puts them in
//! place on a blocking thread. It is idempotent and is also how a change of a ConfigMap, Secret, label or token reaches
//! running containers: atomic volumes are rewritten if their files differ, all others are left alone. One pod has one
//! such call at a time; a call that hangs (a dead file server behind a hostPath) holds up only its own pod.
//!
//! Containers may change what is in their volumes at any time, so nothing here trusts a path that was checked before:
//! see `safe_path` and `remove`. Claims are followed to hostPath and local PersistentVolumes (`claim`: pure); what a
//! claim came to is written beside the volumes and holds for the pod's life. CSI and network types are refused with a
//! clear text.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::OwnedMutexGuard;

use crate::event::Recorder;
use crate::ids::PodUid;
use crate::objects::{ObjectRef, Objects};
use crate::quantity::Quantity;

mod atomic_write;
mod claim;
mod content;
mod gather;
mod host_path;
mod huge_pages;
mod local;
mod measure;
mod mount;
mod ownership;
mod pem;
mod plan;
mod projection;
mod remove;
mod safe_path;
mod setup;
pub mod stats;
mod trust;
mod userns;
mod variables;

pub use safe_path::PathError;
pub use userns::IdRange;
pub use variables::read_variables;

use claim::Claimed;
pub use measure::DiskUse;
use safe_path::{Dir, is_component};
use setup::{PodFiles, Reporter, SubPathPlace};

/// When to look again at volumes whose objects could not be read, and which kept what they had.
const STALE_RETRY: Duration = Duration::from_secs(10);

/// Configuration of volumes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--root-dir`: `/var/lib/kubelet` by default. It is created if it is missing.
    pub root_dir: PathBuf,
    /// How long the volumes of one pod may take before the pod's event says so. kubelet waits 2 min 3 s.
    pub deadline: Duration,
}

/// What volumes depend on besides the pod.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// What the node can give to pods: the default of limits in the downward API, and the bound of memory volumes.
    pub node_allocatable: BTreeMap<String, Quantity>,
    /// The node's labels, which a PersistentVolume's node affinity is compared with.
    pub node_labels: BTreeMap<String, String>,
}

/// A volume that is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedVolume {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether containers must mount it read-only, whatever their spec says: the agent writes to it.
    pub read_only: bool,
    /// Whether it is a block device, for `volumeDevices`.
    pub is_device: bool,
}

/// The volumes of a pod that are in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodVolumes {
    /// By name. A volume that no container mounts is not here.
    pub volumes: BTreeMap<String, PlacedVolume>,
    /// When [`Volumes::ensure`] must be called again, because a token is to be renewed.
    pub refresh_at: Option<SystemTime>,
}

impl PodVolumes {
    /// Where a volume is on the host.
    pub fn host_path(&self, volume: &str) -> Option<&Path> {
        self.volumes.get(volume).map(|placed| placed.path.as_path())
    }
}

/// A subPath of a volume that one container mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPathAsk {
    /// The pod. [`Volumes::ensure`] was called for it.
    pub uid: PodUid,
    /// Name of the volume.
    pub volume: String,
    /// Name of the container.
    pub container: String,
    /// Index of the mount in the container's list.
    pub index: usize,
    /// Path below the volume, already expanded.
    pub subpath: String,
}

/// A volume operation that failed. The texts are made for events of the pod (`FailedMount`).
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Volumes that could not be set up; the others are in place.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    SetUp(Vec<SetUpFailure>),
    /// An earlier operation on this pod's directory has not come back.
    #[error(
        "volumes of the pod are not ready after {seconds} s: a file system does not answer (check mounts that its hostPath volumes are on)"
    )]
    Stuck {
        /// How long was waited.
        seconds: u64,
    },
    /// A name that would leave the pod's directory.
    #[error("{what} {name:?} cannot be a file name")]
    Name {
        /// Such as `pod UID`.
        what: &'static str,
        /// As found.
        name: String,
    },
    /// A subPath could not be made safe to mount.
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}: {reason}")]
    SubPath {
        /// Name of the volume.
        volume: String,
        /// Name of the container.
        container: String,
        /// What went wrong.
        reason: String,
    },
    /// The pod's directory could not be removed entirely.
    #[error("orphaned pod {uid:?} found, but its directory cannot be removed: {}", left.join("; "))]
    Remove {
        /// The pod.
        uid: PodUid,
        /// What is left, and why.
        left: Vec<String>,
    },
    /// A pod's user namespace.
    #[error("user namespace: {0}")]
    UserNamespace(String),
    /// A file of the pod's directory.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The blocking task was lost because the runtime shuts down.
    #[error("volume work was cancelled: the agent is shutting down")]
    Cancelled,
}

/// One volume that could not be set up, in kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetUpFailure {
    /// A step of setting up a volume that is known.
    #[error("{step} failed for volume {volume:?} : {reason}")]
    Step {
        /// Such as `MountVolume.SetUp`.
        step: &'static str,
        /// Name of the volume; of a claim's that of its PersistentVolume.
        volume: String,
        /// What went wrong.
        reason: String,
    },
    /// What the volume is could not be told: something about its claim.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to process volumes=[{volume}]: {reason}"
    )]
    Unprocessed {
        /// Name of the volume in the pod.
        volume: String,
        /// What went wrong.
        reason: String,
    },
}

impl SetUpFailure {
    fn set_up(volume: &str, reason: String) -> Self {
        Self::Step { step: "MountVolume.SetUp", volume: volume.to_owned(), reason }
    }
}

/// Volumes of all pods of this node. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    /// `ROOT/pods` without symlinks, as mountinfo names it.
    pods_dir: PathBuf,
    objects: Arc<dyn Objects>,
    recorder: Recorder,
    pods: Mutex<HashMap<PodUid, PodState>>,
    ranges: Mutex<userns::Ranges>,
}

#[derive(Clone, Default)]
struct PodState {
    /// Held by the one operation on the pod's directory.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Where the volumes were put last.
    paths: BTreeMap<String, PathBuf>,
    /// What the claims of its volumes came to, by volume.
    claims: BTreeMap<String, Claimed>,
}

/// ConfigMaps, Secrets and trust bundles that a pod's volumes refer to.
pub fn object_refs(pod: &Pod) -> Vec<ObjectRef> {
    plan::object_refs(pod)
}

impl Volumes {
    /// Creates the root directories if they are missing, and reads what earlier agents wrote about claims.
    pub fn new(settings: Settings, objects: Arc<dyn Objects>, recorder: Recorder) -> Result<Self, VolumeError> {
        let fail = |what, path: &Path, e: std::io::Error| safe_path::error(what, path, e);
        let root = &settings.root_dir;
        std::fs::create_dir_all(root).map_err(|e| fail("create directory", root, e))?;
        let pods_dir = Dir::open(root)?.ensure("pods", 0o750)?.path().to_owned();
        let pods_dir = pods_dir.canonicalize().map_err(|e| fail("resolve", &pods_dir, e))?;
        let inner = Inner { settings, pods_dir, objects, recorder, pods: Mutex::default(), ranges: Mutex::default() };
        let volumes = Self { inner: Arc::new(inner) };
        let pods = Dir::open(&volumes.inner.pods_dir)?;
        for uid in volumes.existing_pods()? {
            volumes.recover_user_namespace(&pods, &uid);
            let claims = local::recorded_claims(&pods, uid.as_str());
            if !claims.is_empty() {
                volumes.state(&uid, |state| state.claims = claims);
            }
        }
        Ok(volumes)
    }

    /// Puts the pod's volumes in place, or brings them up to date. Idempotent.
    pub async fn ensure(&self, pod: &Arc<Pod>, facts: &PodFacts) -> Result<PodVolumes, VolumeError> {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        check_name("pod UID", uid.as_str())?;
        let (jobs, refresh_at) = self.jobs(pod, facts).await;
        let files = PodFiles {
            group: plan::fs_group(pod),
            on_mismatch_only: plan::changes_group_on_mismatch_only(pod),
            now: SystemTime::now(),
            reporter: Reporter::new(pod, self.inner.recorder.clone()),
        };
        let (placed, failures) = self
            .on_pod(&uid, move |pods, uid| {
                let pod = pods.ensure(uid, 0o750)?;
                for part in ["volumes", "plugins", "containers"] {
                    pod.ensure(part, 0o750)?;
                }
                Ok(setup::set_up_all(&pod, &jobs, &files))
            })
            .await?;
        self.state(&uid, |state| {
            state.paths = placed.iter().map(|(name, made)| (name.clone(), made.volume.path.clone())).collect();
            // Others may have a volume that this pod could not set up.
            state.claims.retain(|volume, _| placed.contains_key(volume));
        });
        if !failures.is_empty() {
            return Err(VolumeError::SetUp(failures));
        }
        let retry_at = placed.values().any(|made| made.is_stale).then(|| SystemTime::now() + STALE_RETRY);
        let refresh_at = [refresh_at, retry_at].into_iter().flatten().min();
        Ok(PodVolumes { volumes: placed.into_iter().map(|(name, made)| (name, made.volume)).collect(), refresh_at })
    }

    /// Makes a subPath safe to mount: the container can no longer change where the answered path leads. Idempotent.
    pub async fn prepare_subpath(&self, ask: SubPathAsk) -> Result<PathBuf, VolumeError> {
        for (what, name) in [("volume name", &ask.volume), ("container name", &ask.container)] {
            check_name(what, name)?;
        }
        let failed = |reason: String| VolumeError::SubPath {
            volume: ask.volume.clone(),
            container: ask.container.clone(),
            reason,
        };
        let volume_path = self.state(&ask.uid, |state| state.paths.get(&ask.volume).cloned());
        let volume_path = volume_path.ok_or_else(|| failed("the volume is not mounted".to_owned()))?;
        let moved = ask.clone();
        let result = self.on_pod(&ask.uid, move |pods, uid| {
            let place = SubPathPlace { volume: &moved.volume, container: &moved.container, index: moved.index };
            setup::bind_subpath(&pods.child(uid)?, &volume_path, &moved.subpath, &place)
        });
        match result.await {
            Err(VolumeError::Path(error)) => Err(failed(error.to_string())),
            other => other,
        }
    }

    /// Writes the hosts file that the pod's containers share.
    pub async fn write_etc_hosts(&self, uid: &PodUid, content: String) -> Result<PathBuf, VolumeError> {
        self.on_pod(uid, move |pods, uid| setup::write_etc_hosts(&pods.ensure(uid, 0o750)?, &content)).await
    }

    /// Makes the file that a container's termination message is mounted from; `id` is unique for the attempt.
    pub async fn termination_log(&self, uid: &PodUid, container: &str, id: &str) -> Result<PathBuf, VolumeError> {
        check_name("container name", container)?;
        check_name("termination log", id)?;
        let (container, id) = (container.to_owned(), id.to_owned());
        self.on_pod(uid, move |pods, uid| setup::termination_log(&pods.ensure(uid, 0o750)?, &container, &id)).await
    }

    /// The ids of a pod with its own user namespace. The range is on disk before it is answered.
    pub async fn user_namespace(&self, uid: &PodUid) -> Result<IdRange, VolumeError> {
        let (this, pod) = (self.clone(), uid.clone());
        let range = self.on_pod(uid, move |pods, name| {
            let directory = pods.ensure(name, 0o750)?;
            if let Some(text) = setup::read_user_namespace(&directory)? {
                let range = userns::decode(&text);
                return Ok(range.and_then(|range| this.ranges().record(&pod, range).map(|()| range)));
            }
            let range = this.ranges().take(&pod);
            if let Ok(range) = range {
                setup::write_user_namespace(&directory, &userns::encode(range))?;
            }
            Ok(range)
        });
        range.await?.map_err(VolumeError::UserNamespace)
    }

    /// Takes over what an earlier agent, or kubelet, gave to a pod.
    fn recover_user_namespace(&self, pods: &Dir, uid: &PodUid) {
        let read = pods.child(uid.as_str()).and_then(|pod| setup::read_user_namespace(&pod));
        let mut ranges = self.ranges();
        let problem = match read {
            Ok(None) => return,
            Ok(Some(text)) => userns::decode(&text).and_then(|range| ranges.record(uid, range)).err(),
            Err(error) => Some(error.to_string()),
        };
        if let Some(problem) = problem {
            tracing::error!(pod = uid.as_str(), problem, "the user namespace of a pod cannot be read");
            ranges.is_unknown(uid);
        }
    }

    fn ranges(&self) -> std::sync::MutexGuard<'_, userns::Ranges> {
        self.inner.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unmounts the pod's volumes and deletes its directory. Idempotent; what cannot go is reported and kept.
    pub async fn remove(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let left = self.on_pod(uid, remove::remove_pod).await?;
        if !left.is_empty() {
            return Err(VolumeError::Remove { uid: uid.clone(), left });
        }
        self.pods().remove(uid);
        self.ranges().release(uid);
        Ok(())
    }

    /// Pods that have a directory: after a restart, those that no longer exist are removed.
    pub fn existing_pods(&self) -> Result<Vec<PodUid>, VolumeError> {
        let names = Dir::open(&self.inner.pods_dir)?.names()?;
        let mut pods: Vec<PodUid> = names.iter().filter_map(|name| Some(PodUid::new(name.to_str().ok()?))).collect();
        pods.sort();
        Ok(pods)
    }

    /// The pod's directory.
    pub fn pod_dir(&self, uid: &PodUid) -> PathBuf {
        self.inner.pods_dir.join(uid.as_str())
    }

    /// Runs blocking work on a pod's directory, one at a time for each pod, and gives up waiting after the deadline.
    /// Work that hangs keeps its thread and the pod's turn; no second thread is spent on the same pod.
    async fn on_pod<T: Send + 'static>(
        &self,
        uid: &PodUid,
        work: impl FnOnce(&Dir, &str) -> Result<T, PathError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        check_name("pod UID", uid.as_str())?;
        let turn = self.state(uid, |state| Arc::clone(&state.turn));
        let (pods_dir, name) = (self.inner.pods_dir.clone(), uid.as_str().to_owned());
        let deadline = self.inner.settings.deadline;
        let all = async move {
            let guard: OwnedMutexGuard<()> = turn.lock_owned().await;
            let thread = tokio::task::spawn_blocking(move || {
                let _held_until_the_work_ends = guard;
                work(&Dir::open(&pods_dir)?, &name)
            });
            thread.await.map_err(|_| VolumeError::Cancelled)?.map_err(VolumeError::Path)
        };
        let stuck = VolumeError::Stuck { seconds: deadline.as_secs() };
        tokio::time::timeout(deadline, all).await.unwrap_or(Err(stuck))
    }

    fn state<T>(&self, uid: &PodUid, with: impl FnOnce(&mut PodState) -> T) -> T {
        with(self.pods().entry(uid.clone()).or_default())
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<PodUid, PodState>> {
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), VolumeError> {
    if is_component(name) { Ok(()) } else { Err(VolumeError::Name { what, name: name.to_owned() }) }
}

#[cfg(test)]
mod tests;
