//! What a plan can ask for, and what comes back. Plain data.

use crate::cri::{ContainerView, Nanos, PodRuntime, SandboxView};
use crate::ids::{ContainerId, SandboxId};

/// What an image is needed for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageUse {
    /// To create the container of this name from.
    Container(String),
    /// To mount as the volume of this name.
    Volume(String),
}

/// Identity of an operation in flight; a plan never starts a second one with the same key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKey {
    /// Looking at the runtime.
    Inspect,
    /// Making the pod's directory and volumes.
    Volumes,
    /// Creating the sandbox.
    Sandbox,
    /// Getting an image for something; another image for it is another operation.
    Image(ImageUse, String),
    /// Creating and starting a container.
    Start(String),
    /// Running the preStop hook of a container whose turn to stop has not come.
    PreStop(ContainerId),
    /// Stopping a container within a number of seconds; a shorter grace is another operation.
    Kill(ContainerId, i64),
    /// Putting a resize into effect.
    Resize,
    /// Stopping a sandbox.
    StopSandbox(SandboxId),
    /// Removing a sandbox.
    RemoveSandbox(SandboxId),
    /// Removing a container.
    RemoveContainer(ContainerId),
    /// Removing volumes and the cgroup.
    Release,
    /// Deleting the pod at the API server.
    FinishDeletion,
    /// Removing the log directory.
    RemoveLogs,
}

/// Why a container is stopped; decides the event's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// The pod is being stopped.
    PodTerminating,
    /// A probe gave up on it. The text is kubelet's message.
    Probe(String),
    /// Its image in the spec has changed.
    DefinitionChanged,
    /// Its sandbox is gone.
    SandboxGone,
    /// The runtime does not know whether it runs.
    StateUnknown,
    /// Its resize policy asks for a restart.
    Resized,
    /// A container of the pod has ended so that all of them start over.
    RestartAll,
    /// Its postStart hook has failed.
    PostStartHook,
}

impl KillReason {
    /// Text of the Killing event, in kubelet's words.
    pub fn text(&self, name: &str, is_init: bool) -> String {
        let kind = if is_init { "Init container" } else { "Container" };
        match self {
            Self::PodTerminating | Self::SandboxGone => format!("Stopping container {name}"),
            Self::Probe(text) => text.clone(),
            Self::DefinitionChanged if is_init => format!("{kind} {name} definition changed"),
            Self::DefinitionChanged => format!("{kind} {name} definition changed, will be restarted"),
            Self::StateUnknown => format!("{kind} is in \"unknown\" state, try killing it before restart"),
            Self::Resized => format!("Container {name} resize requires restart"),
            Self::RestartAll => "killing".to_owned(),
            Self::PostStartHook => "FailedPostStartHook".to_owned(),
        }
    }
}

/// An operation to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Look at the runtime.
    Inspect,
    /// Make the pod's directory and volumes.
    PrepareVolumes,
    /// Create the pod cgroup and run a sandbox with this attempt number.
    CreateSandbox {
        /// Attempt number, in the sandbox's name.
        attempt: u32,
    },
    /// Make sure that an image is on the node.
    EnsureImage {
        /// What it is for.
        for_use: ImageUse,
        /// The image as the spec names it.
        image: String,
    },
    /// Create and start a container, and run its postStart hook.
    StartContainer {
        /// Container name.
        container: String,
        /// How many of this name came before.
        attempt: u32,
        /// The sandbox to start it in.
        sandbox: SandboxId,
    },
    /// Tell that a container is to stop and run its preStop hook, before its turn to stop has come.
    PreStop {
        /// The container.
        id: ContainerId,
        /// Its name.
        container: String,
        /// Seconds that the hook may take.
        grace_seconds: i64,
    },
    /// Run the preStop hook, then stop a container.
    KillContainer {
        /// The container.
        id: ContainerId,
        /// Its name.
        container: String,
        /// Seconds between TERM and KILL, hook included.
        grace_seconds: i64,
        /// [`Op::PreStop`] has done its part.
        is_announced: bool,
        /// Why.
        reason: KillReason,
    },
    /// Bring the pod's cgroup and running containers to what was allocated.
    Resize,
    /// Stop a sandbox.
    StopSandbox(SandboxId),
    /// Remove a sandbox with its containers.
    RemoveSandbox(SandboxId),
    /// Remove a dead container with its log.
    RemoveContainer(ContainerId),
    /// Remove a dead container and keep its log: the pod starts over.
    ForgetContainer(ContainerId),
    /// Remove volumes and the cgroup.
    Release,
    /// Write the last status and delete the pod at the API server.
    FinishDeletion,
    /// Remove the log directory.
    RemoveLogs,
}

impl Op {
    /// The operation's identity.
    pub fn key(&self) -> OpKey {
        match self {
            Self::Inspect => OpKey::Inspect,
            Self::PrepareVolumes => OpKey::Volumes,
            Self::CreateSandbox { .. } => OpKey::Sandbox,
            Self::EnsureImage { for_use, image } => OpKey::Image(for_use.clone(), image.clone()),
            Self::StartContainer { container, .. } => OpKey::Start(container.clone()),
            Self::PreStop { id, .. } => OpKey::PreStop(id.clone()),
            Self::KillContainer { id, grace_seconds, .. } => OpKey::Kill(id.clone(), *grace_seconds),
            Self::Resize => OpKey::Resize,
            Self::StopSandbox(id) => OpKey::StopSandbox(id.clone()),
            Self::RemoveSandbox(id) => OpKey::RemoveSandbox(id.clone()),
            Self::RemoveContainer(id) | Self::ForgetContainer(id) => OpKey::RemoveContainer(id.clone()),
            Self::Release => OpKey::Release,
            Self::FinishDeletion => OpKey::FinishDeletion,
            Self::RemoveLogs => OpKey::RemoveLogs,
        }
    }
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start an operation.
    Start(Op),
    /// Drop an operation in flight. Only image pulls can be dropped; everything else is left to finish.
    Cancel(OpKey),
}

/// What an operation that succeeded has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The runtime's whole view of the pod.
    Inspected(PodRuntime),
    /// A sandbox runs.
    Sandbox(SandboxView),
    /// A container was started or stopped.
    Container(Box<ContainerView>),
    /// A resize is in effect; the containers as they are since.
    Resized(Vec<ContainerView>),
    /// A sandbox is stopped.
    SandboxStopped(SandboxId),
    /// A sandbox and its containers are gone.
    SandboxRemoved(SandboxId),
    /// A container is gone.
    ContainerRemoved(ContainerId),
    /// Nothing beyond success.
    Done,
}

/// An operation that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The waiting reason or event reason that kubelet uses for it.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
    /// What the runtime looks like after the failure, where the operation got to see it.
    pub container: Option<Box<ContainerView>>,
}

/// A failure as memory keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
    /// When it may be tried again.
    pub retry_at: Nanos,
    /// The back-off that led to `retry_at`.
    pub delay: Nanos,
}

impl Failed {
    /// When it failed.
    pub fn since(&self) -> Nanos {
        self.retry_at - self.delay
    }
}
