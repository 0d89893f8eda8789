//! Where desired pods come from: the API server, `staticPodPath`, or the manifest directory of a node running alone.
//!
//! Each source sends [`SourceUpdate`]s on one channel to the pod manager. Updates are level-triggered: a source may
//! repeat itself, and a relist is a set of `Upsert`s closed by `Synced`.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::ids::PodUid;

pub mod api;
pub mod decode;
pub mod manifest_dir;
pub mod static_pods;

/// Which source a pod came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SourceName {
    /// The API server's pods of this node. Mirror pods never leave this source.
    Api,
    /// Files below `staticPodPath`; mirrored at the API server when joined.
    Static,
    /// The manifest directory of `nodelet run --manifests`.
    Manifests,
}

/// A change of the desired pods.
#[derive(Clone, Debug)]
pub enum SourceUpdate {
    /// The pod is wanted as described. `metadata.uid` is always set.
    Upsert(SourceName, Arc<Pod>),
    /// The pod is no longer wanted: stop it with its own grace period, then forget it.
    Remove(SourceName, PodUid),
    /// The source has delivered everything it knows. Pods of this source that are not named are gone.
    /// Until every source has said this once, nothing that is only known to the runtime may be killed.
    Synced(SourceName, BTreeSet<PodUid>),
}
