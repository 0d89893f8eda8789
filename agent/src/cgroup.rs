//! The cgroup tree of pods: who gets how much CPU, memory and PIDs when the node is short of them.
//!
//! ```text
//!  kubepods                 limits: what the node may give to pods (allocatable)
//!  ├── pod<UID>             Guaranteed pods
//!  ├── burstable            cpu.shares: sum of the requests of its pods
//!  │   └── pod<UID>
//!  └── besteffort           cpu.shares: 2
//!      └── pod<UID>         ── containers below it are the runtime's ──
//! ```
//!
//! What is written is decided by pure functions ([`plan`], [`memory_qos`], [`swap`], [`huge_pages`], [`resources`], [`name`]); `v1`, `v2` and `systemd` write it.
//! A pod's cgroup exists before its sandbox is created and is removed after the sandbox is gone: what still runs in it
//! is killed then. Mounts are never changed, and nothing above `cgroupRoot` is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::{Container, Pod};
use nodelet_proto::cri;

use crate::ids::PodUid;

mod classes;
mod enforce;
pub mod figures;
mod files;
pub mod hierarchy;
pub mod huge_pages;
pub mod memory_qos;
pub mod name;
pub mod plan;
pub mod resources;
mod survey;
pub mod swap;
mod systemd;
mod v1;
mod v2;

pub use enforce::{Daemons, Reserved};
pub use files::FileError;
pub use hierarchy::{DetectError, Hierarchies};
pub use memory_qos::{MemoryQos, Throttling};
pub use name::{CgroupName, Driver, InvalidCgroupName};
pub use plan::{CfsQuota, CgroupVersion, ContainerFacts, PodCgroup, Values};
pub use resources::{QosClass, ResourceList, qos_class};
pub use survey::{Place, Surveyed};
pub use swap::SwapBehavior;

use name::Tree;
use plan::Request;

/// Configuration of the cgroup tree.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `cgroupDriver`.
    pub driver: Driver,
    /// `cgroupRoot`; `/` by default. It must exist.
    pub cgroup_root: String,
    /// `cgroupsPerQOS`. When off, pods are placed directly in `cgroupRoot` and nothing is created.
    pub qos_cgroups: bool,
    /// `cpuCFSQuota` and `cpuCFSQuotaPeriod`.
    pub cfs_quota: CfsQuota,
    /// `podPidsLimit`; `None` for no limit of its own.
    pub pids_limit: Option<i64>,
    /// The limits of `kubepods`: [`crate::node::capacity::pod_limits`].
    pub allocatable: ResourceList,
    /// Memory of the node in bytes.
    pub memory_capacity: i64,
    /// `memorySwap.swapBehavior` with what the node has.
    pub swap: SwapBehavior,
    /// Protection and throttling of memory.
    pub memory_qos: MemoryQos,
    /// `singleProcessOOMKill`.
    pub single_process_oom_kill: bool,
}

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The machine has no usable hierarchy.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// `cgroupRoot` or another configured name is not a path of cgroups.
    #[error(transparent)]
    Root(#[from] InvalidCgroupName),
    /// `cgroupRoot` does not exist in this hierarchy.
    #[error("cgroupRoot {root:?} does not exist: expected the directory {directory}; create it or change cgroupRoot")]
    NoRoot {
        /// As configured.
        root: String,
        /// What was looked for.
        directory: String,
    },
    /// A cgroup of daemons that does not exist, or not everywhere.
    #[error("cgroup {name:?} has some missing paths: {missing}; create it in all hierarchies before the agent starts")]
    Missing {
        /// As configured.
        name: String,
        /// What is not there.
        missing: String,
    },
    /// Daemons that are to be held to nothing.
    #[error("{0:?} cgroup is not configured properly: nothing is reserved for it; expected at least one resource")]
    NothingReserved(String),
    /// A UID that would leave the tree.
    #[error("pod UID {0:?} cannot name a cgroup: expected no '/' or '_'")]
    Uid(PodUid),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// systemd refused or could not be reached.
    #[error("systemd: cannot {what} unit {unit}: {reason}")]
    Systemd {
        /// Such as `start`.
        what: &'static str,
        /// Name of the unit.
        unit: String,
        /// What the bus said.
        reason: String,
    },
    /// The blocking task was lost because the runtime shuts down.
    #[error("cgroup work was cancelled: the agent is shutting down")]
    Cancelled,
}

/// The cgroup tree of this node's pods. Cheap to clone.
#[derive(Clone)]
pub struct Cgroups {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    hierarchies: Backend,
    root: CgroupName,
    tree: Tree,
    huge_page_sizes: Vec<i64>,
    systemd: systemd::Systemd,
    classes: Mutex<classes::Classes>,
}

enum Backend {
    V1(v1::V1),
    V2(v2::V2),
}

impl Cgroups {
    /// Looks at the machine; writes nothing.
    pub fn new(settings: Settings) -> Result<Self, CgroupError> {
        let hierarchies = match Hierarchies::detect()? {
            Hierarchies::V1(mounts) => Backend::V1(v1::V1::new(mounts)),
            Hierarchies::V2 { mount, controllers } => Backend::V2(v2::V2::new(mount, controllers)),
        };
        let root = CgroupName::parse(&settings.cgroup_root)?;
        let tree = Tree::new(&root);
        let huge_page_sizes = hierarchy::huge_page_sizes();
        let (classes, systemd) = (Mutex::default(), systemd::Systemd::default());
        let inner = Inner { settings, hierarchies, root, tree, huge_page_sizes, systemd, classes };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// v1 or v2.
    pub fn version(&self) -> CgroupVersion {
        match self.inner.hierarchies {
            Backend::V1(_) => CgroupVersion::V1,
            Backend::V2(_) => CgroupVersion::V2,
        }
    }

    /// What the values of containers depend on, besides their pods.
    pub fn container_facts(&self) -> ContainerFacts {
        let settings = &self.inner.settings;
        ContainerFacts {
            memory_capacity: settings.memory_capacity,
            version: self.version(),
            cfs_quota: settings.cfs_quota,
            swap: settings.swap,
            memory_qos: settings.memory_qos,
            huge_page_sizes: self.inner.huge_page_sizes.clone(),
            single_process_oom_kill: settings.single_process_oom_kill,
        }
    }

    /// What the runtime is told to hold a container to.
    pub fn container_resources(&self, pod: &Pod, container: &Container) -> cri::LinuxContainerResources {
        plan::container_resources(pod, container, &self.container_facts())
    }

    /// `resources` and `overhead` of the sandbox.
    pub fn sandbox_resources(&self, pod: &Pod) -> (cri::LinuxContainerResources, cri::LinuxContainerResources) {
        plan::sandbox_resources(pod, &self.container_facts())
    }

    /// `cgroup_parent` of a pod for the CRI, in the driver's notation.
    pub fn parent_for(&self, pod: &Pod) -> String {
        let inner = &self.inner;
        if !inner.settings.qos_cgroups {
            return inner.root.path(inner.settings.driver);
        }
        inner.tree.pod(&uid_of(pod), qos_class(pod)).path(inner.settings.driver)
    }

    /// Creates `kubepods` and the QoS classes, or brings the values of the classes up to date. [`Cgroups::enforce_pods`]
    /// limits what is in them.
    pub async fn ensure_roots(&self) -> Result<(), CgroupError> {
        self.blocking(|inner| inner.ensure_roots()).await
    }

    /// Creates a pod's cgroup and counts the pod in its class. Idempotent; values of an existing cgroup are kept,
    /// because a resize may have changed them.
    pub async fn ensure_pod(&self, pod: &Pod) -> Result<(), CgroupError> {
        if !self.inner.settings.qos_cgroups {
            return Ok(());
        }
        let (uid, class) = (uid_of(pod), qos_class(pod));
        let values = self.pod_values(pod);
        let request = Request::of(pod);
        self.blocking(move |inner| inner.ensure_pod(&uid, class, &values, request)).await
    }

    /// What a pod's cgroup is to have.
    pub fn pod_values(&self, pod: &Pod) -> Values {
        let settings = &self.inner.settings;
        let mut values = plan::pod_values(pod, settings.cfs_quota, settings.pids_limit);
        values.huge_pages = huge_pages::of_all_sizes(values.huge_pages, &self.inner.huge_page_sizes);
        if self.version() == CgroupVersion::V2 {
            values.unified.extend(memory_qos::of_pod(pod, settings.memory_qos));
        }
        values
    }

    /// What a pod's cgroup has.
    pub async fn read_pod(&self, pod: &Pod) -> Result<PodCgroup, CgroupError> {
        let (uid, class) = (uid_of(pod), qos_class(pod));
        self.blocking(move |inner| inner.read(&inner.pod_name(&uid, class)?)).await
    }

    /// Writes values to a pod's cgroup, and counts its CPU request in its class: the steps of a resize.
    pub async fn write_pod(&self, pod: &Pod, values: Values) -> Result<(), CgroupError> {
        if !self.inner.settings.qos_cgroups {
            return Ok(());
        }
        let (uid, class, request) = (uid_of(pod), qos_class(pod), Request::of(pod));
        self.blocking(move |inner| {
            inner.apply(&inner.pod_name(&uid, class)?, &values)?;
            inner.count(&uid, request)
        })
        .await
    }

    /// Kills what is left in a pod's cgroup and removes it. Idempotent.
    pub async fn remove_pod(&self, uid: &PodUid, class: QosClass) -> Result<(), CgroupError> {
        if !self.inner.settings.qos_cgroups {
            return Ok(());
        }
        let uid = uid.clone();
        self.blocking(move |inner| inner.remove_pod(&uid, class)).await
    }

    /// Pods that have a cgroup in any hierarchy: after a restart, those that no longer exist are removed.
    pub async fn existing_pods(&self) -> Result<BTreeMap<PodUid, QosClass>, CgroupError> {
        if !self.inner.settings.qos_cgroups {
            return Ok(BTreeMap::new());
        }
        self.blocking(|inner| inner.existing_pods()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, CgroupError> + Send + 'static,
    ) -> Result<T, CgroupError> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(|_| CgroupError::Cancelled)?
    }
}

impl Inner {
    fn directories(&self, name: &CgroupName) -> Vec<std::path::PathBuf> {
        let path = name.path(self.settings.driver);
        match &self.hierarchies {
            Backend::V1(v1) => v1.directories(&path),
            Backend::V2(v2) => vec![v2.directory(&path)],
        }
    }

    fn exists(&self, name: &CgroupName) -> bool {
        self.directories(name).iter().all(|directory| directory.is_dir())
    }

    fn create(&self, name: &CgroupName) -> Result<(), CgroupError> {
        if self.settings.driver == Driver::Systemd && !name.is_root() {
            self.systemd.start_slice(name)?;
        }
        // Also with systemd: it creates the directory only in hierarchies of controllers that it manages itself.
        let path = name.path(self.settings.driver);
        match &self.hierarchies {
            Backend::V1(v1) => v1.create(&path)?,
            Backend::V2(v2) => v2.create(&path)?,
        }
        Ok(())
    }

    fn apply(&self, name: &CgroupName, values: &Values) -> Result<(), CgroupError> {
        let path = name.path(self.settings.driver);
        if self.settings.driver == Driver::Systemd && !name.is_root() {
            self.systemd.set_properties(name, values, self.version())?;
        }
        match &self.hierarchies {
            Backend::V1(v1) => v1.apply(&path, values)?,
            Backend::V2(v2) => v2.apply(&path, values)?,
        }
        Ok(())
    }

    fn read(&self, name: &CgroupName) -> Result<PodCgroup, CgroupError> {
        let path = name.path(self.settings.driver);
        Ok(match &self.hierarchies {
            Backend::V1(v1) => v1.read(&path)?,
            Backend::V2(v2) => v2.read(&path)?,
        })
    }

    fn version(&self) -> CgroupVersion {
        match self.hierarchies {
            Backend::V1(_) => CgroupVersion::V1,
            Backend::V2(_) => CgroupVersion::V2,
        }
    }

    fn ensure_roots(&self) -> Result<(), CgroupError> {
        if let Some(missing) = self.directories(&self.root).iter().find(|directory| !directory.is_dir()) {
            let root = self.settings.cgroup_root.clone();
            return Err(CgroupError::NoRoot { root, directory: missing.display().to_string() });
        }
        if !self.settings.qos_cgroups {
            return Ok(());
        }
        self.create(self.tree.kubepods())?;
        for class in [QosClass::Burstable, QosClass::BestEffort] {
            self.create(&self.tree.qos(class))?;
        }
        self.apply(
            &self.tree.qos(QosClass::BestEffort),
            &plan::qos_values(QosClass::BestEffort, 0, &self.huge_page_sizes),
        )?;
        self.write_classes()
    }

    fn ensure_pod(&self, uid: &PodUid, class: QosClass, values: &Values, request: Request) -> Result<(), CgroupError> {
        let name = self.pod_name(uid, class)?;
        if !self.exists(&name) {
            self.create(&name)?;
            self.apply(&name, values)?;
        }
        self.count(uid, request)
    }

    fn remove_pod(&self, uid: &PodUid, class: QosClass) -> Result<(), CgroupError> {
        let name = self.pod_name(uid, class)?;
        let mut directories = Vec::new();
        for directory in self.directories(&name) {
            directories.extend(files::tree(&directory)?);
        }
        files::kill_all(&directories)?;
        if self.settings.driver == Driver::Systemd && !directories.is_empty() {
            self.systemd.stop_slice(&name)?;
        }
        files::remove_all(&directories)?;
        self.discount(uid)
    }

    fn existing_pods(&self) -> Result<BTreeMap<PodUid, QosClass>, CgroupError> {
        let mut found = BTreeMap::new();
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let directories: BTreeSet<_> = self.directories(&self.tree.qos(class)).into_iter().collect();
            for directory in directories {
                let entries = match std::fs::read_dir(&directory) {
                    Ok(entries) => entries,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(FileError::new("list", &directory, error).into()),
                };
                for entry in entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                    let name = entry.file_name();
                    let uid = name.to_str().and_then(|name| name::pod_of_directory(name, self.settings.driver));
                    found.extend(uid.map(|uid| (uid, class)));
                }
            }
        }
        Ok(found)
    }

    fn pod_name(&self, uid: &PodUid, class: QosClass) -> Result<CgroupName, CgroupError> {
        if !name::is_valid_uid(uid) {
            return Err(CgroupError::Uid(uid.clone()));
        }
        Ok(self.tree.pod(uid, class))
    }
}

fn uid_of(pod: &Pod) -> PodUid {
    PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests;
