//! Everything that a plan or a status is computed from: one snapshot of a pod. Plain data.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;

use super::action::OpKey;
use super::lifecycle::Lifecycle;
use super::memory::Memory;
use super::spec::{self, Role};
use crate::cri::{Nanos, PodRuntime};

/// What the prober says of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeView {
    /// The startup probe has succeeded, or there is none.
    pub started: bool,
    /// The readiness probe succeeds, or there is none.
    pub ready: bool,
    /// A liveness or startup probe has given up on it.
    pub failure: Option<ProbeFailure>,
}

/// A verdict of a liveness or startup probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    /// Text of the Killing event.
    pub message: String,
    /// The probe's own grace period in seconds, where it has one.
    pub grace_seconds: Option<i64>,
}

/// A snapshot of a pod.
#[derive(Clone, Copy, Debug)]
pub struct PodView<'a> {
    /// What is desired.
    pub pod: &'a Pod,
    /// Whether the source still names it.
    pub wanted: bool,
    /// Where it is in its life.
    pub lifecycle: &'a Lifecycle,
    /// What the runtime knows.
    pub runtime: &'a PodRuntime,
    /// What the worker remembers.
    pub memory: &'a Memory,
    /// Operations that have not answered yet.
    pub inflight: &'a BTreeSet<OpKey>,
    /// Probe results of running containers, by container name.
    pub probes: &'a BTreeMap<String, ProbeView>,
    /// When the agent first acknowledged the pod: `status.startTime`.
    pub started_at: Nanos,
}

impl PodView<'_> {
    /// Whether an operation is in flight.
    pub fn is_inflight(&self, key: &OpKey) -> bool {
        self.inflight.contains(key)
    }

    /// Whether a container of this name is being created or started.
    pub fn is_starting(&self, name: &str) -> bool {
        self.inflight.contains(&OpKey::Start(name.to_owned()))
    }

    /// Whether a container that ended with `exit_code` is to run again.
    pub fn restarts(&self, name: &str, role: Role, exit_code: i32) -> bool {
        let is_resized = self.memory.containers.get(name).is_some_and(|memory| memory.restarts_anyway);
        is_resized || spec::restarts(self.pod, name, role, exit_code)
    }

    /// Whether something is in flight that may leave a running container behind.
    pub fn may_be_starting(&self) -> bool {
        self.inflight.iter().any(|key| matches!(key, OpKey::Sandbox | OpKey::Start(_)))
    }
}
