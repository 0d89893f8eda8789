//! A worker's part of resizes: what there is to resize, and telling how it went.

use std::collections::BTreeMap;

use super::Worker;
use crate::cgroup::Values;
use crate::cri::Nanos;
use crate::event::EventType;
use crate::pod::resize::steps::{Running, standing};
use crate::pod::view::ProbeView;
use crate::pod::{resize, spec};

impl Worker {
    /// What the pod's cgroup was last told.
    pub(super) fn pod_values(&self) -> Values {
        let actuated = self.memory.actuated.as_ref().map(|actuated| actuated.apply(&self.pod));
        self.shared.facilities.pod_values(actuated.as_ref().unwrap_or(&self.pod))
    }

    /// Running containers whose resources can change.
    pub(super) fn running(&self) -> Vec<Running> {
        let names = spec::roles(&self.pod).filter(|(_, role)| *role != spec::Role::Ephemeral);
        let current = names.filter_map(|(name, _)| self.runtime.current(name).filter(|c| c.is_running()));
        current.map(|c| Running { name: c.name.clone(), id: c.id.clone() }).collect()
    }

    /// Notes whether a resize is under way, and tells when one has come to its end.
    pub(super) fn observe_resize(&mut self, probes: &BTreeMap<String, ProbeView>, now: Nanos) {
        let differs = self.lifecycle.may_start() && standing(&self.view(probes)).in_progress;
        let Some(generation) = self.resize.observe(differs, self.pod.metadata.generation, now) else { return };
        self.shared.tell_freed();
        if self.lifecycle.may_start() {
            let text = resize::message("completed", &self.pod, generation, "");
            self.shared.event(&self.pod, None, EventType::Normal, "ResizeCompleted", text);
        }
    }

    pub(super) fn tell_resize_error(&mut self, error: &str, now: Nanos) {
        if let Some(generation) = self.resize.fail(error, self.pod.metadata.generation, now) {
            let text = resize::message("error", &self.pod, generation, error);
            self.shared.event(&self.pod, None, EventType::Warning, "ResizeError", text);
        }
    }
}
