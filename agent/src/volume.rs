//! A pod's directory and its volumes: the one owner of `ROOT/pods/UID`.
//!
//! ```text
//!  pods/UID/volumes/kubernetes.io~PLUGIN/NAME      the volume; a tmpfs for what is secret
//!  pods/UID/plugins/kubernetes.io~empty-dir/NAME/ready    setup was finished once
//!  pods/UID/volume-subpaths/VOLUME/CONTAINER/INDEX        bind mounts of subPaths
//!  pods/UID/containers/NAME/ID                     termination message
//!  pods/UID/etc-hosts
//! ```
//! The layout, modes and markers are kubelet's, so that either agent takes over what the other left.
//!
//! [`Volumes::ensure`] fetches what a pod's volumes need, decides the files (`plan`, `content`: pure) and puts them in
//! place on a blocking thread. It is idempotent and is also how a change of a ConfigMap, Secret, label or token reaches
//! running containers: atomic volumes are rewritten if their files differ, all others are left alone. One pod has one
//! such call at a time; a call that hangs (a dead file server behind a hostPath) holds up only its own pod.
//!
//! Containers may change what is in their volumes at any time, so nothing here trusts a path that was checked before:
//! see `safe_path` and `remove`. Volumes of claims, CSI and other network types are refused with a clear text.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::OwnedMutexGuard;

use crate::cgroup;
use crate::ids::{ObjectKey, PodUid};
use crate::objects::{ObjectError, ObjectRef, Objects, TokenAsk};
use crate::quantity::Quantity;

mod atomic_write;
mod content;
mod host_path;
mod mount;
mod ownership;
mod plan;
mod remove;
mod safe_path;
mod setup;

pub use safe_path::PathError;

use content::{Context, Fetched};
use plan::{Atomic, Piece, Source};
use safe_path::{Dir, is_component};
use setup::{Job, PodFiles, SubPathPlace};

/// Tokens are renewed at this age at the latest, whatever their life.
const MAX_TOKEN_AGE: Duration = Duration::from_secs(24 * 3600);

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
}

/// A volume that is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedVolume {
    /// Where it is on the host.
    pub path: PathBuf,
    /// Whether containers must mount it read-only, whatever their spec says: the agent writes to it.
    pub read_only: bool,
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
    /// A file of the pod's directory.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The blocking task was lost because the runtime shuts down.
    #[error("volume work was cancelled: the agent is shutting down")]
    Cancelled,
}

/// One volume that could not be set up, in kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {reason}")]
pub struct SetUpFailure {
    /// Name of the volume.
    pub volume: String,
    /// What went wrong.
    pub reason: String,
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
    pods: Mutex<HashMap<PodUid, PodState>>,
}

#[derive(Clone, Default)]
struct PodState {
    /// Held by the one operation on the pod's directory.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Where the volumes were put last.
    paths: BTreeMap<String, PathBuf>,
}

/// ConfigMaps and Secrets that a pod's volumes refer to.
pub fn object_refs(pod: &Pod) -> Vec<ObjectRef> {
    plan::object_refs(pod)
}

impl Volumes {
    /// Creates the root directories if they are missing.
    pub fn new(settings: Settings, objects: Arc<dyn Objects>) -> Result<Self, VolumeError> {
        let fail = |what, path: &Path, e: std::io::Error| safe_path::error(what, path, e);
        let root = &settings.root_dir;
        std::fs::create_dir_all(root).map_err(|e| fail("create directory", root, e))?;
        let pods_dir = Dir::open(root)?.ensure("pods", 0o750)?.path().to_owned();
        let pods_dir = pods_dir.canonicalize().map_err(|e| fail("resolve", &pods_dir, e))?;
        let inner = Inner { settings, pods_dir, objects, pods: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Puts the pod's volumes in place, or brings them up to date. Idempotent.
    pub async fn ensure(&self, pod: &Arc<Pod>, facts: &PodFacts) -> Result<PodVolumes, VolumeError> {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        let (jobs, refresh_at) = self.jobs(pod, facts).await;
        let files = PodFiles { group: plan::fs_group(pod), now: SystemTime::now() };
        let read_only: BTreeMap<String, bool> =
            jobs.iter().map(|job| (job.wanted.name.clone(), plan::is_read_only(&job.wanted.source))).collect();
        let (paths, problems) = self
            .on_pod(&uid, move |pods, uid| {
                let pod = pods.ensure(uid, 0o750)?;
                for part in ["volumes", "plugins", "containers"] {
                    pod.ensure(part, 0o750)?;
                }
                Ok(setup::set_up_all(&pod, &jobs, files))
            })
            .await?;
        self.state(&uid, |state| state.paths.clone_from(&paths));
        if !problems.is_empty() {
            let failures = problems.into_iter().map(|(volume, reason)| SetUpFailure { volume, reason });
            return Err(VolumeError::SetUp(failures.collect()));
        }
        let placed = |(name, path): (String, PathBuf)| {
            let read_only = read_only.get(&name).copied().unwrap_or(false);
            (name, PlacedVolume { path, read_only })
        };
        Ok(PodVolumes { volumes: paths.into_iter().map(placed).collect(), refresh_at })
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

    /// Unmounts the pod's volumes and deletes its directory. Idempotent; what cannot go is reported and kept.
    pub async fn remove(&self, uid: &PodUid) -> Result<(), VolumeError> {
        let left = self.on_pod(uid, remove::remove_pod).await?;
        if !left.is_empty() {
            return Err(VolumeError::Remove { uid: uid.clone(), left });
        }
        self.pods().remove(uid);
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

    /// Fetches what the volumes need and decides their files. Answers when a token has to be renewed.
    async fn jobs(&self, pod: &Pod, facts: &PodFacts) -> (Vec<Job>, Option<SystemTime>) {
        let context = Context {
            pod,
            allocatable: &facts.node_allocatable,
            group: plan::fs_group(pod),
            user: plan::common_user(pod),
        };
        let wanted = plan::wanted(pod);
        let pieces = wanted.iter().map(|wanted| async {
            match &wanted.source {
                Source::Atomic(atomic) => self.fetch(pod, atomic).await,
                Source::EmptyDir { .. } | Source::HostPath { .. } | Source::Refused(_) => Vec::new(),
            }
        });
        let fetched = join_all(pieces).await;
        let refresh_at = fetched.iter().flatten().filter_map(renewal).min();
        let bytes = |amount: Option<i64>| amount.and_then(|a| u64::try_from(a).ok());
        let pod_limit = bytes(cgroup::plan::pod_memory_limit(pod));
        let allocatable = bytes(facts.node_allocatable.get("memory").map(|memory| memory.value()));
        let jobs = wanted.into_iter().zip(fetched).map(|(wanted, fetched)| {
            let (payload, limit) = match &wanted.source {
                Source::Atomic(atomic) => (content::payload(atomic, &fetched, &context), None),
                Source::EmptyDir { limit, .. } => (Ok(content::Payload::new()), *limit),
                Source::HostPath { .. } | Source::Refused(_) => (Ok(content::Payload::new()), None),
            };
            Job { payload, size: plan::tmpfs_size(limit, pod_limit, allocatable), wanted }
        });
        (jobs.collect(), refresh_at)
    }

    async fn fetch(&self, pod: &Pod, atomic: &Atomic) -> Vec<Fetched> {
        join_all(atomic.pieces.iter().map(|piece| self.fetch_piece(pod, piece))).await
    }

    async fn fetch_piece(&self, pod: &Pod, piece: &Piece) -> Fetched {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let objects = &self.inner.objects;
        match piece {
            Piece::ConfigMap { name, optional, .. } => {
                match objects.config_map(&ObjectKey::new(namespace, name)).await {
                    Ok(map) => Fetched::ConfigMap(map),
                    Err(error) => absent(error, *optional),
                }
            }
            Piece::Secret { name, optional, .. } => match objects.secret(&ObjectKey::new(namespace, name)).await {
                Ok(secret) => Fetched::Secret(secret),
                Err(error) => absent(error, *optional),
            },
            Piece::Token { audience, expiration_seconds, .. } => {
                let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
                let ask = TokenAsk {
                    service_account: ObjectKey::new(namespace, account.filter(|a| !a.is_empty()).unwrap_or("default")),
                    pod_name: pod.metadata.name.clone().unwrap_or_default(),
                    pod_uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()),
                    audience: audience.clone(),
                    expiration_seconds: *expiration_seconds,
                };
                match objects.token(&ask).await {
                    Ok(token) => Fetched::Token(token),
                    Err(error) => absent(error, false),
                }
            }
            Piece::Downward { .. } | Piece::Refused(_) => Fetched::Nothing,
        }
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

fn absent(error: ObjectError, optional: bool) -> Fetched {
    match error {
        ObjectError::NotFound { .. } if optional => Fetched::Nothing,
        ObjectError::NotFound { kind, key } => Fetched::Failed(format!("{kind} {:?} not found", &*key.name)),
        other @ ObjectError::Unavailable { .. } => Fetched::Failed(other.to_string()),
    }
}

/// When a token is to be renewed: at 80 % of its life, and after a day at the latest.
fn renewal(fetched: &Fetched) -> Option<SystemTime> {
    let Fetched::Token(token) = fetched else { return None };
    let life = Duration::from_secs(u64::try_from(token.expires_at.saturating_sub(token.issued_at)).unwrap_or(0));
    let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(token.issued_at).unwrap_or(0));
    Some(issued + (life * 4 / 5).min(MAX_TOKEN_AGE))
}

fn check_name(what: &'static str, name: &str) -> Result<(), VolumeError> {
    if is_component(name) { Ok(()) } else { Err(VolumeError::Name { what, name: name.to_owned() }) }
}

#[cfg(test)]
mod tests;
