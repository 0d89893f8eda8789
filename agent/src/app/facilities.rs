//! What the pod domain needs, over the domains that have it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, Pod};
use nodelet_proto::cri;
use tokio::sync::watch;
use tonic::Code;

use crate::cgroup::{Cgroups, PodCgroup, QosClass, Values, qos_class};
use crate::cri::{CriError, Runtime};
use crate::ids::{ContainerId, PodUid};
use crate::node::RuntimeHealth;
use crate::objects::ObjectRef;
use crate::pod::admit;
use crate::pod::facilities::{DiskUsage, Facilities, IdRange, PodVolumes, RuntimeFeatures, SubPath};
use crate::pod::spec;
use crate::probe::{ExecError, ExecFn, ExecOutcome};
use crate::quantity::Quantity;
use crate::volume::{self, PodFacts, SubPathAsk, VolumeError, Volumes};

/// Volumes and cgroups of the node.
pub struct NodeFacilities {
    /// Volumes and pod directories.
    pub volumes: Volumes,
    /// The cgroup tree.
    pub cgroups: Cgroups,
    /// What pods may use of the node.
    pub allocatable: BTreeMap<String, Quantity>,
    /// What the runtime says of itself.
    pub health: watch::Receiver<RuntimeHealth>,
    /// The node, for its labels.
    pub node: Arc<ArcSwap<admit::Node>>,
}

fn text<T>(result: Result<T, VolumeError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

impl Facilities for NodeFacilities {
    fn ensure_volumes<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<PodVolumes, String>> {
        Box::pin(async move {
            let node_labels = self.node.load().labels.clone();
            let facts = PodFacts { node_allocatable: self.allocatable.clone(), node_labels };
            let placed = text(self.volumes.ensure(pod, &facts).await)?;
            let nanos = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
            let refresh_at = placed.refresh_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(nanos);
            let read_only = placed.volumes.iter().filter(|(_, v)| v.read_only).map(|(name, _)| name.clone()).collect();
            let devices = placed.volumes.iter().filter(|(_, v)| v.is_device).map(|(name, _)| name.clone()).collect();
            let paths = placed.volumes.into_iter().map(|(name, volume)| (name, volume.path)).collect();
            Ok(PodVolumes { paths, read_only, devices, refresh_at })
        })
    }

    fn prepare_subpath(&self, subpath: SubPath) -> BoxFuture<'_, Result<PathBuf, String>> {
        let SubPath { uid, volume, container, index, path } = subpath;
        let ask = SubPathAsk { uid, volume, container, index, subpath: path };
        Box::pin(async move { text(self.volumes.prepare_subpath(ask).await) })
    }

    fn read_volume_file(&self, root: PathBuf, path: String) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || volume::read_variables(&root, &path));
            read.await.unwrap_or_else(|error| Err(error.to_string()))
        })
    }

    fn write_etc_hosts<'a>(&'a self, uid: &'a PodUid, content: String) -> BoxFuture<'a, Result<PathBuf, String>> {
        Box::pin(async move { text(self.volumes.write_etc_hosts(uid, content).await) })
    }

    fn termination_log<'a>(
        &'a self,
        uid: &'a PodUid,
        container: &'a str,
        attempt: u32,
    ) -> BoxFuture<'a, Result<PathBuf, String>> {
        Box::pin(async move { text(self.volumes.termination_log(uid, container, &attempt.to_string()).await) })
    }

    fn remove_volumes<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { text(self.volumes.remove(uid).await) })
    }

    fn disk_usage<'a>(&'a self, uid: &'a PodUid, paths: Vec<String>) -> BoxFuture<'a, Result<DiskUsage, String>> {
        Box::pin(async move {
            let found = text(self.volumes.disk_use(uid, paths).await)?;
            Ok(DiskUsage { volumes: found.directories, rest: found.hosts.saturating_add(found.messages) })
        })
    }

    fn user_namespace<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, Result<IdRange, String>> {
        Box::pin(async move {
            let range = text(self.volumes.user_namespace(uid).await)?;
            Ok(IdRange { first: range.first, length: range.length })
        })
    }

    fn runtime_features(&self, handler: &str) -> RuntimeFeatures {
        let health = self.health.borrow();
        let found = health.handlers.iter().find(|known| known.name == handler);
        RuntimeFeatures {
            user_namespaces: found.is_some_and(|known| known.user_namespaces),
            recursive_read_only: found.is_some_and(|known| known.recursive_read_only_mounts),
            strict_groups: health.supplemental_groups_policy == Some(true),
        }
    }

    fn volume_refs(&self, pod: &Pod) -> Vec<ObjectRef> {
        volume::object_refs(pod)
    }

    fn ensure_cgroup<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<String, String>> {
        Box::pin(async move {
            self.cgroups.ensure_pod(pod).await.map_err(|error| error.to_string())?;
            Ok(self.cgroups.parent_for(pod))
        })
    }

    fn remove_cgroup<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<(), String>> {
        let classes = match &pod.spec {
            Some(_) => vec![qos_class(pod)],
            None => vec![QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort],
        };
        Box::pin(async move {
            for class in classes {
                self.cgroups.remove_pod(&spec::uid(pod), class).await.map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    }

    fn existing_pods(&self) -> BoxFuture<'_, Result<BTreeSet<PodUid>, String>> {
        Box::pin(async move {
            let directories = text(self.volumes.existing_pods())?;
            let cgroups = self.cgroups.existing_pods().await.map_err(|error| error.to_string())?;
            Ok(directories.into_iter().chain(cgroups.into_keys()).collect())
        })
    }

    fn container_resources(&self, pod: &Pod, container: &Container) -> cri::LinuxContainerResources {
        self.cgroups.container_resources(pod, container)
    }

    fn sandbox_resources(
        &self,
        pod: &Pod,
    ) -> (Option<cri::LinuxContainerResources>, Option<cri::LinuxContainerResources>) {
        let (resources, overhead) = self.cgroups.sandbox_resources(pod);
        (Some(resources), Some(overhead))
    }

    fn pod_values(&self, pod: &Pod) -> Values {
        self.cgroups.pod_values(pod)
    }

    fn pod_cgroup<'a>(&'a self, pod: &'a Arc<Pod>) -> BoxFuture<'a, Result<PodCgroup, String>> {
        Box::pin(async move { self.cgroups.read_pod(pod).await.map_err(|error| error.to_string()) })
    }

    fn write_pod_cgroup<'a>(&'a self, pod: &'a Arc<Pod>, values: Values) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move { self.cgroups.write_pod(pod, values).await.map_err(|error| error.to_string()) })
    }

    fn qos_class(&self, pod: &Pod) -> &'static str {
        qos_class(pod).as_str()
    }

    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.allocatable.clone()
    }
}

/// A runtime that takes longer to tell its version is not well.
const RUNTIME_LIMIT: Duration = Duration::from_secs(2);

/// Exec probes through the runtime.
pub fn exec(runtime: Runtime) -> ExecFn {
    Arc::new(move |id: ContainerId, command: Vec<String>, limit: Duration| {
        let runtime = runtime.clone();
        Box::pin(async move {
            match runtime.exec(&id, command, limit).await {
                Ok(result) => {
                    let output = [result.stdout, result.stderr].concat();
                    Ok(ExecOutcome { exit_code: result.exit_code, output })
                }
                Err(CriError::Failed { code: Code::DeadlineExceeded, .. }) => Err(ExecError::TimedOut),
                // A command that is killed and leaves children with its streams hangs in the runtime and is as bad as one
                // that does not end. A runtime that answers nobody says nothing about the container.
                Err(CriError::Timeout { .. }) => match tokio::time::timeout(RUNTIME_LIMIT, runtime.version()).await {
                    Ok(Ok(_)) => Err(ExecError::TimedOut),
                    Ok(Err(error)) => Err(ExecError::Failed(error.text())),
                    Err(_) => Err(ExecError::Failed("the runtime does not answer".to_owned())),
                },
                Err(error) => Err(ExecError::Failed(error.text())),
            }
        })
    })
}
