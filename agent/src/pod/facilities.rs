//! What the pod domain needs of the rest of the agent.
//!
//! Traits, so that workers are tested without mounts, cgroups and probes, and so that the domains meet only through plain
//! data. `app` implements them over `volume`, `cgroup`, `probe` and whatever takes statuses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use nodelet_proto::cri;

use super::view::ProbeView;
use crate::cgroup::{PodCgroup, Values};
use crate::cri::{ContainerView, Nanos};
use crate::ids::{ContainerId, PodUid};
use crate::objects::ObjectRef;
use crate::quantity::Quantity;

/// The volumes of a pod that are in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodVolumes {
    /// Where each volume is on the host, by volume name.
    pub paths: BTreeMap<String, PathBuf>,
    /// Volumes that containers may only read, whatever their spec says: the agent writes them, or their claim says so.
    pub read_only: BTreeSet<String>,
    /// Volumes that are block devices, for `volumeDevices`.
    pub devices: BTreeSet<String>,
    /// When something in them has to be renewed (a token).
    pub refresh_at: Option<Nanos>,
}

/// Ids of the node that the ids 0 and up of a pod with its own user namespace stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// What root of the pod is on the node.
    pub first: u32,
    /// How many.
    pub length: u32,
}

/// What the runtime can do with a handler of its, as it says itself; what it does not say it cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    /// User namespaces (KEP-127).
    pub user_namespaces: bool,
    /// Recursive read-only mounts (KEP-3857).
    pub recursive_read_only: bool,
    /// `supplementalGroupsPolicy: Strict` (KEP-3619).
    pub strict_groups: bool,
}

/// A subPath of a volume that one container mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPath {
    /// The pod.
    pub uid: PodUid,
    /// The volume.
    pub volume: String,
    /// The container.
    pub container: String,
    /// Index of the mount in the container's list.
    pub index: usize,
    /// Path below the volume, already expanded.
    pub path: String,
}

/// What a pod's directory takes on its disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Of the directories that were asked for, in that order; `None` for one that is not there.
    pub volumes: Vec<Option<u64>>,
    /// Of the hosts file.
    pub rest: u64,
}

/// Volumes, pod directories and cgroups. Errors are texts for events; they name what they are about.
pub trait Facilities: Send + Sync + 'static {
    /// Makes the pod's directory and volumes, or brings them up to date. Idempotent.
    fn ensure_volumes<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<PodVolumes, String>>;
    /// Makes a subPath safe to mount and answers its host path.
    fn prepare_subpath(&self, subpath: SubPath) -> BoxFuture<'_, Result<PathBuf, String>>;
    /// Reads a file below a volume, through no symlink.
    fn read_volume_file(&self, volume: PathBuf, path: String) -> BoxFuture<'_, Result<String, String>>;
    /// Writes the pod's hosts file.
    fn write_etc_hosts<'a>(&'a self, uid: &'a PodUid, text: String) -> BoxFuture<'a, Result<PathBuf, String>>;
    /// Makes the file that a container's termination message is mounted from.
    fn termination_log<'a>(
        &'a self,
        uid: &'a PodUid,
        container: &'a str,
        attempt: u32,
    ) -> BoxFuture<'a, Result<PathBuf, String>>;
    /// Removes volumes and the pod's directory. Idempotent.
    fn remove_volumes<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Result<(), String>>;
    /// What directories below the pod's take on disk, given by their paths. May take long.
    fn disk_usage<'a>(&'a self, uid: &'a PodUid, paths: Vec<String>) -> BoxFuture<'a, Result<DiskUsage, String>>;
    /// The ids of a pod with its own user namespace: the same at every call, and no other pod's.
    fn user_namespace<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Result<IdRange, String>>;
    /// What the runtime can do with a handler; the empty name is the default's.
    fn runtime_features(&self, handler: &str) -> RuntimeFeatures;
    /// ConfigMaps and Secrets that the pod's volumes refer to.
    fn volume_refs(&self, pod: &Pod) -> Vec<ObjectRef>;

    /// Creates the pod's cgroup and answers the parent that the runtime is told.
    fn ensure_cgroup<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<String, String>>;
    /// Removes the pod's cgroup and kills what is left in it. Idempotent. A pod without a spec, of which only the UID is
    /// known, may have it in any QoS class.
    fn remove_cgroup<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<(), String>>;
    /// Pods that have a directory or a cgroup on this node, wanted or not.
    fn existing_pods(&self) -> BoxFuture<'_, Result<BTreeSet<PodUid>, String>>;
    /// Resources of a container in kernel terms.
    fn container_resources(&self, pod: &Pod, container: &Container) -> cri::LinuxContainerResources;
    /// Sum of a pod's resources and its overhead, for the sandbox.
    fn sandbox_resources(
        &self,
        pod: &Pod,
    ) -> (Option<cri::LinuxContainerResources>, Option<cri::LinuxContainerResources>);
    /// What a pod's cgroup is to have.
    fn pod_values(&self, pod: &Pod) -> Values;
    /// What a pod's cgroup has, and the memory that is used in it.
    fn pod_cgroup<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<PodCgroup, String>>;
    /// Writes to a pod's cgroup, and counts its CPU request in its QoS class.
    fn write_pod_cgroup<'a>(&'a self, pod: &'a Arc<Pod>, values: Values) -> BoxFuture<'a, Result<(), String>>;
    /// QoS class of a pod.
    fn qos_class(&self, pod: &Pod) -> &'static str;
    /// What the node can give to pods.
    fn allocatable(&self) -> BTreeMap<String, Quantity>;
}

/// A running container whose probes are to run.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeTarget {
    /// Its name.
    pub name: String,
    /// Its id; a new id starts all probes afresh.
    pub id: ContainerId,
    /// When it was started.
    pub started_at: Nanos,
}

/// The prober.
pub trait Probes: Send + Sync + 'static {
    /// Runs the probes of exactly these containers; of a pod that is being stopped only readiness is asked. Idempotent.
    fn ensure(&self, pod: &Arc<Pod>, pod_ips: &[String], running: Vec<ProbeTarget>, is_stopping: bool);
    /// Ends all probes of a pod.
    fn remove(&self, uid: &PodUid);
    /// What the probes of a container say now.
    fn view(&self, pod: &Pod, container: &ContainerView) -> ProbeView;
    /// Tells what was known of an adopted container before the agent restarted, so that nothing flips.
    fn seed(&self, pod: &Arc<Pod>, container: &ContainerView, started: bool, ready: bool);
}

/// Takes statuses: the API server, the local endpoints, people's views.
pub trait StatusSink: Send + Sync + 'static {
    /// A new status. The newest wins.
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>);
    /// The pod is stopped: write its last status, then delete it at the API server.
    fn finish<'a>(&'a self, pod: &'a Arc<Pod>, status: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>>;
    /// Nothing of the pod is left.
    fn forget(&self, uid: &PodUid);
    /// Every pod that ran when the agent started has published a status once.
    fn synced(&self) {}
    /// The pod begins to stop: take its addresses out of the node's own rules before its containers hear of it.
    fn terminating(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>);
    /// Waits, but not for long, until what [`Self::terminating`] told of this pod is so.
    fn left<'a>(&'a self, _uid: &'a PodUid) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}
