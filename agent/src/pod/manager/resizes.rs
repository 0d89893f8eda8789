//! The manager's part of resizes: what pods are allocated. One task decides for all, so that no two get the same CPU.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::Manager;
use crate::cgroup::{QosClass, qos_class};
use crate::event::EventType;
use crate::ids::PodUid;
use crate::pod::allocation::ResourceInfo;
use crate::pod::resize::{self, News, Pending, Verdict, Wait, Waiting};
use crate::pod::spec;
use crate::pod::worker::Message;
use crate::source::SourceName;

impl Manager {
    /// A pod with the resources that it was allocated. One that nobody wrote down has what its spec says.
    pub(super) fn as_allocated(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        match self.shared.allocated.get(&spec::uid(pod)) {
            Some(info) => info.apply(pod),
            None => pod.clone(),
        }
    }

    /// Writes down what a pod is allocated; false when that cannot be written.
    pub(super) fn allocate(&self, pod: &Pod) -> bool {
        let written = self.shared.allocated.set(&spec::uid(pod), ResourceInfo::of(pod));
        if let Err(error) = &written {
            tracing::error!(pod = %spec::key(pod), %error, "cannot write down what a pod was allocated");
        }
        written.is_ok()
    }

    /// Takes in what is desired of a pod that has a worker, and decides when that is a resize.
    pub(super) fn take_update(&mut self, uid: &PodUid, desired: Arc<Pod>) {
        let given = self.as_allocated(&desired);
        let Some(handle) = self.workers.get_mut(uid) else { return };
        let is_other = !ResourceInfo::of(&handle.desired).means(&ResourceInfo::of(&desired));
        let is_settled = Arc::ptr_eq(&given, &desired);
        handle.desired = desired.clone();
        handle.pod = given.clone();
        // The worker ends only by itself; a closed channel means that its end is about to be taken.
        if handle.tx.send(Message::Desired(handle.source, given)).is_err() {
            handle.successor = Some((handle.source, desired));
            return;
        }
        if is_settled {
            self.resizing.remove(uid);
            if handle.pending.take().is_some() {
                let _ = handle.tx.send(Message::Resize(News::Settled));
            }
        } else if is_other {
            self.resizing.insert(uid.clone());
            self.decide_resizes();
        }
    }

    /// Decides about all resizes that wait, once every source has delivered: before, a pod that holds resources may not be
    /// known yet.
    pub(super) fn decide_resizes(&mut self) {
        if self.resizing.is_empty() || !self.awaited.is_empty() {
            return;
        }
        let waiting = self.resizing.iter().filter_map(|uid| {
            let handle = self.workers.get(uid)?;
            Some(Waiting {
                uid: uid.clone(),
                grows: resize::grows(&handle.desired, &handle.pod),
                priority: spec::spec(&handle.desired).priority.unwrap_or_default(),
                is_guaranteed: qos_class(&handle.desired) == QosClass::Guaranteed,
                since: handle.pending.as_ref().map(|pending| pending.since),
            })
        });
        for uid in resize::order(waiting.collect()) {
            self.decide_resize(&uid);
        }
    }

    fn decide_resize(&mut self, uid: &PodUid) {
        let Some(handle) = self.workers.get(uid).filter(|h| h.wanted && !spec::is_deleted(&h.desired)) else {
            self.resizing.remove(uid);
            return;
        };
        let (desired, is_static) = (handle.desired.clone(), handle.source != SourceName::Api);
        let verdict = {
            let holders = self.holders(uid);
            let others: Vec<&Pod> = holders.iter().map(|holder| holder.pod.as_ref()).collect();
            let (node, rules) = (self.shared.node.load(), self.shared.settings.resize);
            resize::decide(&desired, &ResourceInfo::of(&handle.pod), is_static, &node, rules, &others)
        };
        match verdict {
            Verdict::Settled => drop(self.resizing.remove(uid)),
            // What cannot be written down may not be given, or a restart would give it to another pod.
            Verdict::Accept(_) if !self.allocate(&desired) => {}
            Verdict::Accept(_) => self.accept(uid, desired),
            Verdict::Wait(wait, message) => self.defer(uid, &desired, wait, message),
        }
    }

    fn accept(&mut self, uid: &PodUid, desired: Arc<Pod>) {
        self.resizing.remove(uid);
        let generation = desired.metadata.generation;
        let text = resize::message("started", &desired, generation, "");
        self.shared.event(&desired, None, EventType::Normal, "ResizeStarted", text);
        let Some(handle) = self.workers.get_mut(uid) else { return };
        handle.pending = None;
        handle.pod = desired.clone();
        let _ = handle.tx.send(Message::Desired(handle.source, desired));
        let _ = handle.tx.send(Message::Resize(News::Accepted));
    }

    fn defer(&mut self, uid: &PodUid, desired: &Arc<Pod>, wait: Wait, message: String) {
        if wait == Wait::Infeasible {
            self.resizing.remove(uid);
        }
        let generation = desired.metadata.generation;
        let now = (self.shared.clock)();
        let Some(handle) = self.workers.get_mut(uid) else { return };
        let before = handle.pending.as_ref();
        let is_new = before.is_none_or(|before| before.wait != wait || before.generation != generation);
        let since = before.filter(|before| before.wait == wait).map_or(now, |before| before.since);
        let pending = Pending { wait, message, generation, since };
        if before == Some(&pending) {
            return;
        }
        let _ = handle.tx.send(Message::Resize(News::Waits(pending.clone())));
        if is_new {
            let word = wait.reason();
            let text = resize::message(word, desired, generation, &pending.message);
            self.shared.event(desired, None, EventType::Warning, wait.event(), text);
        }
        if let Some(handle) = self.workers.get_mut(uid) {
            handle.pending = Some(pending);
        }
    }
}
