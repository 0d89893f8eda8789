//! What the pod half of the rig is given instead of a node: no volumes, no cgroups, no objects, and settings for little.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use nodelet::cgroup::{PodCgroup, Values};
use nodelet::ids::{ObjectKey, PodUid};
use nodelet::objects::{
    CertificateAsk, ObjectError, ObjectRef, Objects, PodCertificate, ServiceEnv, Token, TokenAsk, TrustBundle,
    TrustBundleRef,
};
use nodelet::pod::facilities::{DiskUsage, Facilities, IdRange, PodVolumes, RuntimeFeatures, SubPath};
use nodelet::pod::images;
use nodelet::pod::shared::Settings;
use nodelet::pod::{admit, dns, resize, security};
use nodelet::quantity::Quantity;
use nodelet_proto::cri;
/// A node without volumes and cgroups.
pub(super) struct Places(pub(super) PathBuf);

fn ready<'a, T: Send + 'a>(value: T) -> BoxFuture<'a, Result<T, String>> {
    Box::pin(std::future::ready(Ok(value)))
}

impl Facilities for Places {
    fn ensure_volumes<'a>(&'a self, _: &'a Arc<Pod>) -> BoxFuture<'a, Result<PodVolumes, String>> {
        ready(PodVolumes::default())
    }

    fn prepare_subpath(&self, _: SubPath) -> BoxFuture<'_, Result<PathBuf, String>> {
        ready(self.0.clone())
    }

    fn read_volume_file(&self, _: PathBuf, _: String) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(std::future::ready(Err("there are no volumes".to_owned())))
    }

    fn write_etc_hosts<'a>(&'a self, uid: &'a PodUid, _: String) -> BoxFuture<'a, Result<PathBuf, String>> {
        ready(self.0.join(format!("{uid}-hosts")))
    }

    fn termination_log<'a>(
        &'a self,
        uid: &'a PodUid,
        container: &'a str,
        attempt: u32,
    ) -> BoxFuture<'a, Result<PathBuf, String>> {
        ready(self.0.join(format!("{uid}-{container}-{attempt}")))
    }

    fn remove_volumes<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, Result<(), String>> {
        ready(())
    }

    fn disk_usage<'a>(&'a self, _: &'a PodUid, _: Vec<String>) -> BoxFuture<'a, Result<DiskUsage, String>> {
        ready(DiskUsage::default())
    }

    fn volume_refs(&self, _: &Pod) -> Vec<ObjectRef> {
        Vec::new()
    }

    fn ensure_cgroup<'a>(&'a self, _: &'a Arc<Pod>) -> BoxFuture<'a, Result<String, String>> {
        ready("/kubepods".to_owned())
    }

    fn remove_cgroup<'a>(&'a self, _: &'a Arc<Pod>) -> BoxFuture<'a, Result<(), String>> {
        ready(())
    }

    fn existing_pods(&self) -> BoxFuture<'_, Result<BTreeSet<PodUid>, String>> {
        ready(BTreeSet::new())
    }

    fn container_resources(&self, _: &Pod, _: &Container) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources::default()
    }

    fn sandbox_resources(
        &self,
        _: &Pod,
    ) -> (Option<cri::LinuxContainerResources>, Option<cri::LinuxContainerResources>) {
        (None, None)
    }

    fn user_namespace<'a>(&'a self, _: &'a PodUid) -> BoxFuture<'a, Result<IdRange, String>> {
        Box::pin(std::future::ready(Err("there are no user namespaces".to_owned())))
    }

    fn runtime_features(&self, _: &str) -> RuntimeFeatures {
        RuntimeFeatures::default()
    }

    fn pod_values(&self, _: &Pod) -> Values {
        Values::default()
    }

    fn pod_cgroup<'a>(&'a self, _: &'a Arc<Pod>) -> BoxFuture<'a, Result<PodCgroup, String>> {
        let [cpu_quota, memory_limit] = [i64::MAX; 2];
        ready(PodCgroup { cpu_shares: 2, cpu_quota, cpu_period: 100_000, memory_limit, memory_usage: 0 })
    }

    fn write_pod_cgroup<'a>(&'a self, _: &'a Arc<Pod>, _: Values) -> BoxFuture<'a, Result<(), String>> {
        ready(())
    }

    fn qos_class(&self, _: &Pod) -> &'static str {
        "BestEffort"
    }

    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::new()
    }
}

pub(super) struct NoObjects;

fn refused<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, ObjectError>> {
    Box::pin(std::future::pending())
}

impl Objects for NoObjects {
    fn register(&self, _: &PodUid, _: Vec<ObjectRef>) {}

    fn unregister(&self, _: &PodUid) {}

    fn config_map<'a>(&'a self, _: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<ConfigMap>, ObjectError>> {
        refused()
    }

    fn secret<'a>(&'a self, _: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<Secret>, ObjectError>> {
        refused()
    }

    fn claim<'a>(&'a self, _: &'a ObjectKey) -> BoxFuture<'a, Result<PersistentVolumeClaim, ObjectError>> {
        refused()
    }

    fn persistent_volume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<PersistentVolume, ObjectError>> {
        refused()
    }

    fn token<'a>(&'a self, _: &'a TokenAsk) -> BoxFuture<'a, Result<Token, ObjectError>> {
        refused()
    }

    fn trust_bundles<'a>(&'a self, _: &'a TrustBundleRef) -> BoxFuture<'a, Result<Vec<Arc<TrustBundle>>, ObjectError>> {
        refused()
    }

    fn pod_certificate<'a>(&'a self, _: &'a CertificateAsk) -> BoxFuture<'a, Result<PodCertificate, ObjectError>> {
        refused()
    }

    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<ServiceEnv>, ObjectError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn runtime_handler<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<String, ObjectError>> {
        refused()
    }
}

pub(super) fn settings(dir: PathBuf, crash_delay: Duration) -> Settings {
    let logs = dir.join("logs");
    // The look for leftovers wants the directory to be there.
    std::fs::create_dir_all(&logs).expect("a directory in a directory of our own");
    Settings {
        node_name: "node".to_owned(),
        log_dir: logs,
        dns: dns::Settings { cluster_dns: Vec::new(), cluster_domain: String::new() },
        resolv_conf: PathBuf::new(),
        security: security::Settings { seccomp_default: false, seccomp_root: String::new(), masked_paths: Vec::new() },
        max_crash_delay: i64::try_from(crash_delay.as_nanos()).unwrap_or(i64::MAX),
        port_mappings: false,
        container_links: None,
        kept_logs: dir.join("kept"),
        dead_containers: 1,
        resize: resize::Rules { limited_swap: false },
    }
}

pub(super) fn pulls(dir: PathBuf) -> images::Settings {
    images::Settings {
        parallel: 4,
        rate: (0, 1),
        policy: images::records::Policy::default(),
        home: dir.clone(),
        providers: (dir.clone(), Vec::new()),
        root_dir: dir,
    }
}

pub(super) fn admit_all() -> admit::Node {
    let amount = |text: &str| Quantity::parse(text).expect("a quantity");
    let allocatable = [("cpu", "64"), ("memory", "64Gi"), ("pods", "1000")];
    admit::Node {
        name: "node".to_owned(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        allocatable: allocatable.into_iter().map(|(name, text)| (name.to_owned(), amount(text))).collect(),
        allowed_unsafe_sysctls: Vec::new(),
        has_apparmor: false,
        strict_groups: None,
    }
}
