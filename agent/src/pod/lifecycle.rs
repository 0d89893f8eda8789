//! Where a pod is in its life on this node. Pure.
//!
//! ```text
//!            deleted, unwanted, completed, failed        nothing runs, volumes and cgroup gone
//!  Syncing ───────────────────────────────────► Terminating ─────────────────────────► Terminated
//!                                                  │ ▲ shorter grace                        │ deleted or unwanted,
//!                                                  └─┘                                      ▼ runtime and logs empty
//!                                                                                        Removed
//! ```
//!
//! There is no way back: a UID that is terminating never starts anything again.

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::spec;
use crate::cri::Nanos;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// Reason of a pod that has been active for longer than `activeDeadlineSeconds`.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

/// Why a pod is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The API server has set `deletionTimestamp`.
    Deleted,
    /// Its source no longer names it (or, for what only the runtime knows, never did).
    Unwanted,
    /// All of its containers have ended and none is to run again.
    Completed,
    /// The node gives up on it: it becomes `Failed` with this reason and message.
    Failed {
        /// `status.reason`.
        reason: String,
        /// `status.message`.
        message: String,
    },
}

/// A stop under way or done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// When it began.
    pub since: Nanos,
    /// Seconds that containers have between TERM and KILL, counted from `since`.
    pub grace_seconds: i64,
    /// Why.
    pub cause: Cause,
}

impl Termination {
    /// Seconds of grace that are left. At least one: a container that has just been found gets its TERM.
    pub fn remaining_seconds(&self, now: Nanos) -> i64 {
        let gone = (now - self.since).max(0) / SECOND;
        (self.grace_seconds - gone).max(self.grace_seconds.min(1))
    }
}

/// Where a pod is in its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// It is to run.
    #[default]
    Syncing,
    /// It is being stopped.
    Terminating(Termination),
    /// Nothing of it runs, its volumes and cgroup are gone; its containers' records and logs stay until it is deleted.
    Terminated(Termination),
    /// Nothing of it is left.
    Removed,
}

impl Lifecycle {
    /// The stop under way or done.
    pub fn termination(&self) -> Option<&Termination> {
        match self {
            Self::Terminating(termination) | Self::Terminated(termination) => Some(termination),
            Self::Syncing | Self::Removed => None,
        }
    }

    /// Whether anything may still be started.
    pub fn may_start(&self) -> bool {
        matches!(self, Self::Syncing)
    }
}

/// Takes what the sources say into account: begins a stop, or shortens one.
pub fn follow_desired(current: Lifecycle, pod: &Pod, wanted: bool, now: Nanos) -> Lifecycle {
    let deleted = spec::is_deleted(pod);
    match current {
        Lifecycle::Syncing if deleted => begin(Cause::Deleted, spec::grace_seconds(pod), now),
        Lifecycle::Syncing if !wanted => begin(Cause::Unwanted, spec::grace_seconds(pod), now),
        Lifecycle::Terminating(mut termination) => {
            // A second delete may ask for less time; it never gives more.
            let grace = spec::grace_seconds(pod);
            if deleted && grace < termination.grace_seconds {
                let elapsed = (now - termination.since).max(0) / SECOND;
                termination.grace_seconds = termination.grace_seconds.min(elapsed + grace);
            }
            Lifecycle::Terminating(termination)
        }
        other @ (Lifecycle::Syncing | Lifecycle::Terminated(_) | Lifecycle::Removed) => other,
    }
}

/// The start of a stop.
pub fn begin(cause: Cause, grace_seconds: i64, now: Nanos) -> Lifecycle {
    Lifecycle::Terminating(Termination { since: now, grace_seconds, cause })
}
