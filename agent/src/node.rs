//! The node itself: what it is, how it is, and telling the API server.
//!
//! ```text
//!  facts (read the machine) ─┐
//!  RuntimeHealth (CRI)      ─┼─► status::build (pure) ─► patch::plan (pure) ─► heartbeat: PATCH nodes/status
//!  NodeExtras (pressure, …) ─┘                                               register: POST once
//!                                                                            lease: renew every quarter of its life
//! ```
//! A condition that changes is sent at once, anything else within the update period, and something at least every
//! report period. The own Node object is watched: when somebody (the node lifecycle controller during an outage, say)
//! changes our part of it, it is put right by that event, not by the next tick.
//! The lease has a task and a deadline of its own, so that nothing else can make the node look dead.

use std::collections::BTreeMap;
use std::sync::Arc;

use nodelet_proto::cri;

use crate::quantity::Quantity;

pub mod address;
pub mod capacity;
pub mod facts;
pub mod heartbeat;
pub mod lease;
pub mod oom;
pub mod patch;
pub mod register;
pub mod routes;
pub mod settings;
pub mod status;

pub use settings::NodeSettings;

/// What the container runtime says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeHealth {
    /// `Err` has the text for the Ready condition.
    pub runtime_ready: Result<(), String>,
    /// `Err` has the text for the Ready condition.
    pub network_ready: Result<(), String>,
    /// `containerd`.
    pub name: String,
    /// `v2.1.4`, as the runtime writes it; empty while unknown.
    pub version: String,
    /// Runtime handlers; the one with an empty name is the default.
    pub handlers: Vec<Handler>,
    /// Whether `supplementalGroupsPolicy` is honoured; `None` if the runtime does not say (KEP-3619).
    pub supplemental_groups_policy: Option<bool>,
}

/// One configured runtime handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// Name in a RuntimeClass.
    pub name: String,
    /// KEP-3857.
    pub recursive_read_only_mounts: bool,
    /// KEP-127.
    pub user_namespaces: bool,
}

impl RuntimeHealth {
    /// Before the runtime has answered once.
    pub fn unknown() -> Self {
        Self::down("container runtime status check may not have completed yet")
    }

    /// The runtime does not answer; `reason` is the text of the Ready condition.
    pub fn down(reason: impl Into<String>) -> Self {
        Self {
            runtime_ready: Err(reason.into()),
            network_ready: Ok(()),
            name: String::new(),
            version: String::new(),
            handlers: Vec::new(),
            supplemental_groups_policy: None,
        }
    }

    /// From the answers to CRI `Version` and `Status`, with kubelet's texts.
    pub fn from_cri(version: &cri::VersionResponse, status: &cri::StatusResponse) -> Self {
        let handlers = status
            .runtime_handlers
            .iter()
            .map(|handler| {
                let features = handler.features.unwrap_or_default();
                Handler {
                    name: handler.name.clone(),
                    recursive_read_only_mounts: features.recursive_read_only_mounts,
                    user_namespaces: features.user_namespaces,
                }
            })
            .collect();
        Self {
            runtime_ready: condition(status, "RuntimeReady", "container runtime not ready"),
            network_ready: condition(status, "NetworkReady", "container runtime network not ready"),
            name: version.runtime_name.clone(),
            version: version.runtime_version.clone(),
            handlers,
            supplemental_groups_policy: status.features.as_ref().map(|features| features.supplemental_groups_policy),
        }
    }
}

fn condition(status: &cri::StatusResponse, kind: &str, prefix: &str) -> Result<(), String> {
    let found = status.status.iter().flat_map(|status| &status.conditions).find(|condition| condition.r#type == kind);
    match found {
        None => Err(format!("{prefix}: the runtime does not report {kind}")),
        Some(condition) if condition.status => Ok(()),
        Some(c) => Err(format!("{prefix}: {kind}=false reason:{} message:{}", c.reason, c.message)),
    }
}

/// Everything else that shows in the node status and comes from other modules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeExtras {
    /// Eviction says that memory is short.
    pub memory_pressure: bool,
    /// Eviction says that disk is short.
    pub disk_pressure: bool,
    /// Eviction says that process ids are short.
    pub pid_pressure: bool,
    /// Why volumes cannot be used, for the Ready condition.
    pub storage_ready: Option<String>,
    /// `attach-detach` volumes in use; `None` until they have been reconstructed after a start.
    pub volumes_in_use: Option<Vec<String>>,
    /// Images on the node; `None` until the runtime has listed them.
    pub images: Option<Arc<[NodeImage]>>,
    /// Capacity and allocatable amounts of device plugin resources.
    pub devices: BTreeMap<String, (Quantity, Quantity)>,
}

/// An image for `status.images`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeImage {
    /// Digests, then tags.
    pub names: Vec<String>,
    /// Bytes.
    pub size: i64,
}
