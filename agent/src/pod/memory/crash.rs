//! The crash back-off, and how many containers of a name there have been. Pure.

use super::{CONTAINER_BACKOFF, Memory};
use crate::cri::{Nanos, PodRuntime};
use crate::pod::lifecycle::SECOND;
use k8s_openapi::api::core::v1::PodStatus;

/// A container that has run this long since its last restart starts its back-off anew, however short that is at most.
pub(super) const CRASH_EXPIRY: Nanos = 600 * SECOND;

impl Memory {
    /// Notes the containers that the runtime has, so that none after them has their number.
    pub(super) fn count_attempts(&mut self, runtime: &PodRuntime) {
        for container in &runtime.containers {
            self.note_attempt(&container.name, container.attempt.saturating_add(1));
        }
    }

    /// Notes the containers that a status tells of, which the runtime may have forgotten.
    pub fn count_attempts_of(&mut self, status: &PodStatus) {
        let lists = [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
        for told in lists.into_iter().flatten().flatten() {
            let count = u32::try_from(told.restart_count).unwrap_or(0);
            // A restart is counted before there is a container for it when the one before it was lost.
            let next = if told.container_id.as_deref().unwrap_or_default().is_empty() { count } else { count + 1 };
            self.note_attempt(&told.name, next);
        }
    }

    fn note_attempt(&mut self, name: &str, next: u32) {
        if next > self.next_attempt(name) {
            self.container(name).next_attempt = next;
        }
    }

    /// Number of the next container of a name.
    pub fn next_attempt(&self, name: &str) -> u32 {
        self.containers.get(name).map_or(0, |memory| memory.next_attempt)
    }

    /// When a container that ended at `finished_at` may run again, by the crash back-off; raises the delay for the next
    /// time when it is due now.
    ///
    /// The first restart is immediate, then 10 s, 20 s, ... up to 300 s; after a run of [`CRASH_EXPIRY`] it starts over.
    /// Source: `doBackOff` of kubelet and client-go's `flowcontrol.Backoff`.
    pub fn crash_retry_at(&self, name: &str, finished_at: Nanos) -> Nanos {
        let Some(memory) = self.containers.get(name) else { return 0 };
        if memory.crash_delay == 0 || finished_at - memory.crash_updated > CRASH_EXPIRY {
            return 0;
        }
        finished_at + memory.crash_delay
    }

    /// Notes that a container that ended at `finished_at` is being restarted.
    pub fn note_restart(&mut self, name: &str, finished_at: Nanos, now: Nanos) {
        let max = self.max_crash_delay.unwrap_or(CONTAINER_BACKOFF.max);
        let memory = self.container(name);
        let stale = memory.crash_delay == 0 || finished_at - memory.crash_updated > CRASH_EXPIRY;
        memory.crash_delay = if stale { CONTAINER_BACKOFF.initial.min(max) } else { (memory.crash_delay * 2).min(max) };
        memory.crash_updated = now;
    }

    /// Notes that a container is stopped because its image or its resources have changed: kubelet's back-off knows it by
    /// these, so it begins anew.
    pub fn note_change(&mut self, name: &str) {
        let memory = self.container(name);
        memory.restarts_anyway = true;
        (memory.crash_delay, memory.crash_updated) = (0, 0);
    }

    /// Rebuilds the crash back-off of adopted containers, so that a restart of the agent neither forgives nor punishes.
    pub fn seed_crash_backoff(&mut self, runtime: &PodRuntime) {
        let max = self.max_crash_delay.unwrap_or(CONTAINER_BACKOFF.max);
        let restarted: Vec<(String, u32, Nanos)> = runtime
            .containers
            .iter()
            .filter(|c| c.attempt > 0 && runtime.latest(&c.name).is_some_and(|latest| latest.id == c.id))
            .map(|c| (c.name.clone(), c.attempt, c.created_at))
            .collect();
        for (name, attempt, created_at) in restarted {
            let doublings = attempt.saturating_sub(1).min(16);
            let memory = self.container(&name);
            memory.crash_delay = (CONTAINER_BACKOFF.initial << doublings).min(max);
            memory.crash_updated = created_at;
        }
    }
}
