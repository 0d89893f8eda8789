//! What a worker tells others: its status, events, the objects that it needs, and the record for the next agent.

use std::sync::Arc;
use std::time::Instant;

use super::{STORE_AGAIN, Worker};
use crate::cri::Nanos;
use crate::event::EventType;
use crate::metrics::METRICS;
use crate::pod::journal::Record;
use crate::pod::lifecycle::{self, Cause, Lifecycle};
use crate::pod::memory::{Eviction, Ousting, finished_at};
use crate::pod::status::{self, containers::go_seconds};
use crate::pod::{env, spec};
use k8s_openapi::api::core::v1::PodStatus;

impl Worker {
    /// Publishes the status when it differs from the last one; answers whether it did.
    pub(super) fn publish(&mut self, now: Nanos) -> bool {
        if !self.memory.observed || self.lifecycle == Lifecycle::Removed {
            return false;
        }
        let probes = self.probe_views();
        self.observe_resize(&probes, now);
        let view = self.view(&probes);
        let pod_values = self.pod_values();
        let host_ips = self.shared.host_ips.load();
        let runtime_name = self.shared.runtime_name.load();
        // Classes are usually named after their handler; where one is not, its mounts are shown as not recursive.
        let handler = spec::spec(&self.pod).runtime_class_name.as_deref().unwrap_or_default();
        let context = status::Context {
            last: &self.last,
            host_ips: &host_ips,
            runtime_name: &runtime_name,
            qos_class: self.shared.facilities.qos_class(&self.pod),
            pod_values: &pod_values,
            resize: &self.resize,
            recursive_read_only: self.shared.facilities.runtime_features(handler).recursive_read_only,
            now,
        };
        let status = status::status(&view, &context);
        self.tell_backoff(&status);
        if status == *self.last && self.announced {
            return false;
        }
        self.figures.published(&self.pod, &self.last, &status, Instant::now(), now);
        // A restarted agent's first status is shown on the node even when it says nothing new.
        self.last = Arc::new(status);
        self.store();
        self.shared.sink.publish(&self.pod, &self.last);
        if !std::mem::replace(&mut self.announced, true) {
            // The manager goes away only when the agent stops.
            let _ = self.shared.announced.send(self.uid.clone());
        }
        true
    }

    /// The events of an image back-off, once for each failed pull.
    fn tell_pull_backoff(&mut self, name: &str) {
        let wanted = spec::image(&self.pod, name);
        let volumes = spec::image_volumes(&self.pod, name);
        let volume = |(volume, reference): &(&str, &str)| {
            Some((self.memory.volume_images.get(*volume)?.failure()?.retry_at, (*reference).to_owned()))
        };
        let own = self.memory.containers.get(name).and_then(|memory| memory.image.failure());
        let own = own.map(|failed| (failed.retry_at, wanted.to_owned()));
        let Some((due, image)) = own.or_else(|| volumes.iter().find_map(volume)) else { return };
        if self.pull_backoff_told.insert(name.to_owned(), due) == Some(due) {
            return;
        }
        let tell = |kind, reason, text| self.shared.event(&self.pod, Some(name), kind, reason, text);
        tell(EventType::Normal, "BackOff", format!("Back-off pulling image \"{image}\""));
        tell(EventType::Warning, "Failed", "Error: ImagePullBackOff".to_owned());
    }

    /// One BackOff event for each crash or failed pull that leads to waiting.
    fn tell_backoff(&mut self, status: &PodStatus) {
        let statuses =
            status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        for container in statuses.chain(status.ephemeral_container_statuses.iter().flatten()) {
            let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
            match waiting.and_then(|w| w.reason.as_deref()) {
                Some("CrashLoopBackOff") => {}
                Some("ImagePullBackOff") => {
                    self.tell_pull_backoff(&container.name);
                    continue;
                }
                Some(_) | None => continue,
            }
            let Some(ended) = self.runtime.latest(&container.name).map(finished_at) else { continue };
            if self.backoff_told.insert(container.name.clone(), ended) == Some(ended) {
                continue;
            }
            let key = spec::key(&self.pod);
            let text = format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                container.name, key.name, key.namespace, self.uid
            );
            let delay = self.memory.containers.get(&container.name).map_or(0, |m| m.crash_delay / lifecycle::SECOND);
            tracing::info!(pod = %key, container = %container.name, delay = %go_seconds(delay), "crash back-off");
            self.shared.event(&self.pod, Some(&container.name), EventType::Warning, "BackOff", text);
        }
    }

    pub(super) fn tell_deadline(&self) {
        if let Some(Cause::Failed { reason, message }) = self.lifecycle.termination().map(|t| &t.cause)
            && reason == lifecycle::DEADLINE_EXCEEDED
        {
            self.shared.event(&self.pod, None, EventType::Normal, lifecycle::DEADLINE_EXCEEDED, message.clone());
        }
    }

    pub(super) fn tell_sandbox_change(&self) {
        let text = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.shared.event(&self.pod, None, EventType::Normal, "SandboxChanged", text);
    }

    /// Takes an eviction in and tells of it, unless the pod is being stopped already.
    pub(super) fn hear_eviction(&mut self, eviction: Eviction) {
        if !self.lifecycle.may_start() || self.memory.eviction.is_some() {
            return;
        }
        match eviction.why {
            Ousting::Limit(signal) => METRICS.garbage.evictions.increment([signal]),
            Ousting::Preemption(resource) => METRICS.garbage.preemptions.increment([resource]),
        }
        self.shared.event(&self.pod, None, EventType::Warning, eviction.why.reason(), eviction.message.clone());
        self.memory.eviction = Some(eviction);
    }

    pub(super) fn register_objects(&self) {
        let namespace = spec::key(&self.pod).namespace;
        let mut refs = self.shared.facilities.volume_refs(&self.pod);
        for (name, _) in spec::roles(&self.pod) {
            if let Some(found) = spec::find(&self.pod, name) {
                refs.extend(env::object_refs(&namespace, &found.container));
            }
        }
        for secret in spec::spec(&self.pod).image_pull_secrets.iter().flatten() {
            refs.push(crate::objects::ObjectRef::Secret(crate::ids::ObjectKey::new(&namespace, &secret.name)));
        }
        refs.sort();
        refs.dedup();
        self.shared.objects.register(&self.uid, refs);
    }

    pub(super) fn store(&mut self) {
        let mut record = Record::new(
            self.source,
            self.pod.as_ref().clone(),
            self.last.as_ref().clone(),
            self.lifecycle.clone(),
            self.started_at,
        );
        record.sandboxes = match self.memory.observed {
            true => self.runtime.sandboxes.iter().map(|s| s.id.to_string()).collect(),
            false => self.remembered.sandboxes.iter().map(ToString::to_string).collect(),
        };
        let written = self.shared.journal.store(&self.uid, &record);
        self.store_at = (!written).then(|| self.now() + STORE_AGAIN);
    }
}
