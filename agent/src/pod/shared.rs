//! What all workers share: clients, settings, limits and ways to tell others.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, mpsc};

use super::allocation::ResourceInfo;
use super::allocation::checkpoint::Checkpoint;
use super::facilities::{Facilities, Probes, StatusSink};
use super::images::Images;
use super::journal::Journal;
use super::{admit, dns, resize, security, spec};
use crate::cri::{Nanos, Runtime};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::PodUid;
use crate::objects::Objects;
use k8s_openapi::api::core::v1::Pod;

/// Settings of the pod domain, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node_name: String,
    /// `podLogsDir`.
    pub log_dir: PathBuf,
    /// `clusterDNS` and `clusterDomain`.
    pub dns: dns::Settings,
    /// `resolvConf`; empty means an empty resolver.
    pub resolv_conf: PathBuf,
    /// Security defaults.
    pub security: security::Settings,
    /// Largest crash back-off.
    pub max_crash_delay: Nanos,
    /// What resizes this node does not do.
    pub resize: resize::Rules,
    /// Whether hostPorts are mapped by the network plugin.
    pub port_mappings: bool,
    /// Directory of `/var/log/containers` links; `None` leaves them out.
    pub container_links: Option<PathBuf>,
    /// Where the last logs of pods that are gone are kept; see [`crate::logs::kept`].
    pub kept_logs: PathBuf,
    /// Dead containers of a name that are kept; see [`crate::pod::dead`].
    pub dead_containers: usize,
}

/// Tells the time. Tests have clocks of their own.
pub type Clock = fn() -> Nanos;

/// Everything that a worker needs, shared by all.
pub struct Shared {
    /// The container runtime.
    pub runtime: Runtime,
    /// Puller of images.
    pub images: Images,
    /// ConfigMaps, Secrets, tokens, Services.
    pub objects: Arc<dyn Objects>,
    /// Volumes and cgroups.
    pub facilities: Arc<dyn Facilities>,
    /// The prober.
    pub probes: Arc<dyn Probes>,
    /// Where statuses go.
    pub sink: Arc<dyn StatusSink>,
    /// Where events go.
    pub recorder: Recorder,
    /// Records that outlive the agent.
    pub journal: Journal,
    /// What pods were allocated; written by the manager only.
    pub allocated: Checkpoint,
    /// What was put into effect of that; each pod's part is written by its operations.
    pub actuated: Checkpoint,
    /// Told when a pod holds less of the node than before.
    pub freed: mpsc::UnboundedSender<()>,
    /// Settings.
    pub settings: Settings,
    /// What pods are admitted against; labels and taints follow the Node object where there is one.
    pub node: Arc<ArcSwap<admit::Node>>,
    /// The node's addresses, primary first.
    pub host_ips: ArcSwap<Vec<String>>,
    /// Name of the runtime, such as `containerd`.
    pub runtime_name: ArcSwap<String>,
    /// Told by each worker when it has published a status for the first time.
    pub announced: mpsc::UnboundedSender<PodUid>,
    /// The wall clock, [`now`].
    pub clock: Clock,
    /// Pods that are being started. First in, first out: the runtime's throughput peaks at about twice the cores, and
    /// early pods are not slowed by late ones.
    pub start_slots: Arc<Semaphore>,
}

impl Shared {
    /// What was put into effect of a pod; if nobody has written that down, it is what the pod was allocated.
    pub fn actuated_or_allocated(&self, uid: &PodUid, pod: &Pod) -> Option<Arc<ResourceInfo>> {
        if self.actuated.get(uid).is_none()
            && let Err(error) = self.actuated.set(uid, ResourceInfo::of(pod))
        {
            tracing::warn!(pod = %spec::key(pod), %error, "cannot write down what was put into effect; the pod cannot be resized until the agent restarts");
        }
        self.actuated.get(uid)
    }

    /// Tells the manager that a pod holds less than before.
    pub fn tell_freed(&self) {
        // The manager goes away only when the agent stops.
        let _ = self.freed.send(());
    }

    /// Emits an event about a pod, or about one of its containers.
    pub fn event(&self, pod: &Pod, container: Option<&str>, kind: EventType, reason: &'static str, message: String) {
        let subject = Subject::Pod { key: spec::key(pod), uid: spec::uid(pod), field_path: field_path(pod, container) };
        let message = match what_to_do(&message) {
            Some(hint) if kind == EventType::Warning => format!("{message}; {hint}"),
            _ => message,
        };
        self.recorder.emit(Event { subject, kind, reason, message });
    }
}

/// What people have to do about a trouble that ends by no retry. Texts of the runtime and of plugins say it in words only.
pub fn what_to_do(message: &str) -> Option<&'static str> {
    let says = |words: &str| message.to_ascii_lowercase().contains(words);
    (says("no space left on device") || says("disk quota exceeded"))
        .then_some("free some space (or inodes) on the file system of that path; it is tried again by itself")
}

/// `spec.containers{name}` as kubelet writes it.
fn field_path(pod: &Pod, container: Option<&str>) -> String {
    let Some(name) = container else { return String::new() };
    let list = match spec::roles(pod).find(|(n, _)| *n == name) {
        Some((_, spec::Role::Init | spec::Role::Sidecar)) => "initContainers",
        Some((_, spec::Role::Ephemeral)) => "ephemeralContainers",
        Some((_, spec::Role::App)) | None => "containers",
    };
    format!("spec.{list}{{{name}}}")
}

/// The wall clock. Status times are compared with the runtime's, which are wall-clock times too.
pub fn now() -> Nanos {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}
