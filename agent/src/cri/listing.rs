//! What the runtime lists, in short: enough to tell what nobody needs any more. Plain data.

use super::{Nanos, PodIdentity};
use crate::ids::{ContainerId, SandboxId};

/// All sandboxes and containers, of whatever state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Sandboxes.
    pub sandboxes: Vec<ListedSandbox>,
    /// Containers.
    pub containers: Vec<ListedContainer>,
}

/// A sandbox of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSandbox {
    /// The runtime's id.
    pub id: SandboxId,
    /// Its pod; `None` for what no kubelet made.
    pub pod: Option<PodIdentity>,
    /// Whether the runtime calls it ready.
    pub ready: bool,
    /// When it was created.
    pub created_at: Nanos,
    /// How many sandboxes this pod had before.
    pub attempt: u32,
}

/// A container of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContainer {
    /// The runtime's id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Its pod; `None` for what no kubelet made.
    pub pod: Option<PodIdentity>,
    /// Name in the pod.
    pub name: String,
    /// Whether its process has ended.
    pub is_exited: bool,
    /// When it was created.
    pub created_at: Nanos,
    /// How many containers of this name came before.
    pub attempt: u32,
    /// Its image by every name that the runtime gives: as asked for, as resolved, by id.
    pub images: Vec<String>,
}

/// An image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedImage {
    /// The runtime's id, `sha256:...`.
    pub id: String,
    /// Tags, as full names.
    pub tags: Vec<String>,
    /// Repositories with digests.
    pub digests: Vec<String>,
    /// Bytes, layers that it shares with others included.
    pub size: u64,
    /// The runtime or somebody on the node says that it is never to be removed.
    pub is_pinned: bool,
}
