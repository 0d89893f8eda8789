//! The container runtime, spoken to over CRI v1.
//!
//! [`Runtime`] is the only thing that makes CRI calls. It answers with plain data ([`PodRuntime`]), so that wire types
//! stop here and decisions never see a prost message. [`events`] turns whatever the runtime offers (CRI's
//! `GetContainerEvents`, else containerd's own event service) into one stream of [`RuntimeEvent`]s.
//!
//! What it does not do: decide anything, retry anything, or remember anything. An error says which call failed and with
//! what gRPC code; who asked decides what follows. Absence is not evidence: a failed list is an error, never an empty list.

use std::collections::BTreeMap;

use crate::ids::{ContainerId, PodUid, SandboxId};

pub mod client;
pub mod convert;
pub mod events;
pub mod labels;
pub mod listing;

pub use client::{CriError, Known, Runtime};
pub use events::RuntimeEvent;

/// Nanoseconds since the epoch, as CRI counts time.
pub type Nanos = i64;

/// A pod sandbox as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxView {
    /// The runtime's id.
    pub id: SandboxId,
    /// How many sandboxes this pod had before this one.
    pub attempt: u32,
    /// Whether the runtime calls it ready; a sandbox that is not ready has no network and runs nothing.
    pub ready: bool,
    /// When it was created.
    pub created_at: Nanos,
    /// Pod addresses, primary first; empty for host network or before the network is set up.
    pub ips: Vec<String>,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
}

impl SandboxView {
    /// Ready, and with an address unless it is on the node's network.
    pub fn is_sound(&self) -> bool {
        self.ready && (self.host_network || !self.ips.is_empty())
    }
}

/// What state a container is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Created, never started.
    Created,
    /// Running.
    Running {
        /// When its process was started.
        started_at: Nanos,
    },
    /// Its process has ended.
    Exited {
        /// When its process was started; 0 when it never ran.
        started_at: Nanos,
        /// When it ended.
        finished_at: Nanos,
        /// Exit code; 128 + signal for a process that a signal ended.
        exit_code: i32,
        /// The runtime's word for it: `Completed`, `Error`, `OOMKilled`, ...
        reason: String,
        /// More words of the runtime.
        message: String,
    },
    /// The runtime does not know.
    Unknown,
}

/// A container as the runtime reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// The runtime's id.
    pub id: ContainerId,
    /// Name in the pod spec.
    pub name: String,
    /// The sandbox that it belongs to.
    pub sandbox: SandboxId,
    /// How many containers of this name the pod had before: `restartCount`.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
    /// When it was created.
    pub created_at: Nanos,
    /// The image as it was asked for.
    pub image: String,
    /// The image as the runtime resolved it; `imageID` of the pod status.
    pub image_ref: String,
    /// `io.kubernetes.container.hash`: the fingerprint of the spec that it was made from.
    pub hash: Option<String>,
    /// Where on the host its termination message is, when it has one.
    pub termination_message: Option<String>,
    /// `terminationMessagePolicy` it was made with is `FallbackToLogsOnError`.
    pub message_falls_back_to_logs: bool,
    /// Absolute path of its log file.
    pub log_path: String,
    /// User and groups of its first process, when the runtime reports them.
    pub user: Option<ContainerUser>,
    /// The signal that asks it to end, when the runtime reports it (containerd 2.1 and later).
    pub stop_signal: Option<String>,
    /// What the runtime holds it to, when it reports that (containerd 1.7 and later).
    pub resources: Option<ContainerLimits>,
}

/// What a container is held to, in kernel units; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerLimits {
    /// CFS shares.
    pub cpu_shares: i64,
    /// CFS quota in microseconds in a period.
    pub cpu_quota: i64,
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// Bytes.
    pub memory: i64,
}

/// User and groups of a container's first process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: i64,
    /// Group id.
    pub gid: i64,
    /// All supplemental groups.
    pub supplemental_groups: Vec<i64>,
}

impl ContainerView {
    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// Whether its process runs, as far as one knows: what is not known to have ended is stopped like what runs.
    pub fn may_run(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. } | ContainerState::Unknown)
    }

    /// Whether its process has ended.
    pub fn is_exited(&self) -> bool {
        matches!(self.state, ContainerState::Exited { .. })
    }
}

/// Everything that the runtime knows of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRuntime {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<SandboxView>,
    /// Containers, newest first.
    pub containers: Vec<ContainerView>,
}

impl PodRuntime {
    /// The newest sandbox.
    pub fn sandbox(&self) -> Option<&SandboxView> {
        self.sandboxes.first()
    }

    /// The newest container of a name, whichever sandbox it belongs to.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The container of a name before the newest one.
    pub fn previous(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    /// The newest container of a name in the newest sandbox.
    pub fn current(&self, name: &str) -> Option<&ContainerView> {
        let sandbox = self.sandbox()?;
        self.latest(name).filter(|c| c.sandbox == sandbox.id)
    }

    /// Whether the runtime knows nothing of the pod.
    pub fn is_empty(&self) -> bool {
        self.sandboxes.is_empty() && self.containers.is_empty()
    }
}

/// Who a pod is, read back from the labels of its sandbox or of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodIdentity {
    /// UID.
    pub uid: PodUid,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The pods that the runtime knows, with the ids of their sandboxes and containers.
pub type RuntimePods = BTreeMap<PodUid, RuntimePod>;

/// One entry of [`RuntimePods`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimePod {
    /// Who it is.
    pub identity: PodIdentity,
    /// Ids of its sandboxes and containers; an event names one of these.
    pub ids: Vec<String>,
}
