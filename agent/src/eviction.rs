//! Pods that use more of the node's disk than their own limits allow are evicted.
//!
//! ```text
//!  app::board (pods with a limit) ─► every 10 s: measure (volume · logs · CRI) ─► limits (plan) ─► manager ─► worker
//! ```
//! Limits are `sizeLimit` of emptyDir volumes on disk, and `ephemeral-storage` of containers and of all of them together: writable
//! layers, logs, emptyDirs and ConfigMaps on disk, the hosts file, and (unlike kubelet) files of termination messages. As long as no pod of the node has such a limit, nothing
//! is measured and nobody wakes up. Walking big directories takes as long as it takes, on one thread of its own, and the pause
//! after it is at least nine times as long: measuring takes no more than a tenth of a core.
//!
//! An evicted pod has a second, becomes `Failed` with the reason `Evicted`, and stays so until somebody deletes it. Static pods
//! and those of a critical priority are spared. As under kubelet there is no `DisruptionTarget` condition: it was the pod's
//! own doing. Source: `localStorageEviction` of `pkg/kubelet/eviction` of Kubernetes v1.37.
//!
//! It does not evict because the node is short of something.

pub mod limits;
pub mod measure;
