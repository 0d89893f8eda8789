//! What nobody needs any more: images, dead containers, idle sandboxes, and what pods left on disk.
//!
//! ```text
//!  every 5 min ─┬─► images on the node, images in use ─► records ─► images (plan) ─┬─► RemoveImage, pull records
//!  nodelet gc ──┤                                                                   └─► events of the node
//!               └─► lists of the runtime, directories ─► pods (plan) ─► report ─► pod::manager: full check
//! ```
//! Containers, sandboxes and directories are removed by the workers of their pods and by the manager, as soon as they are of
//! no use; [`pods`] is the same decisions ([`crate::pod::dead`], [`crate::pod::leftovers`]) over the node as a whole, for whoever
//! asks what is left at a moment. Nothing here looks at the runtime more often than every five minutes, and not at all where image garbage collection
//! is switched off. Plans are pure, get the time as an argument, and are what `nodelet gc --dry-run` shows: what is shown is
//! what is done.
//!
//! Absence is not evidence: as long as a source has not delivered, or a list of the runtime fails, nothing is of no use.
//!
//! It does not remove what no kubelet made (a container of `crictl` or of another program), and no pinned image. Thresholds,
//! ages, order, events and their texts are kubelet's. Source: `pkg/kubelet/images/image_gc_manager.go` of Kubernetes v1.37.

pub mod collector;
pub mod images;
pub mod pods;
pub mod report;

pub use collector::{Ask, Collector};
