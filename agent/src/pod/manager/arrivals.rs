//! The manager's part of admission: what becomes of a pod that is new to the node.
//!
//! A critical pod that does not fit waits here while others make room ([`preempt`]). What it needs counts as taken meanwhile, so
//! that nobody else gets it. Every pod that holds less makes the manager decide again. Should others not be gone within their grace
//! and a half, the pod is started all the same, as under kubelet. Nothing of it is written down: another agent decides anew.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;

use super::Manager;
use crate::event::EventType;
use crate::ids::PodUid;
use crate::metrics::METRICS;
use crate::pod::admit::Rejection;
use crate::pod::memory::{Eviction, Ousting};
use crate::pod::preempt::{self, Decision, Holding};
use crate::pod::worker::{Message, Start};
use crate::pod::{allocation, spec};
use crate::source::SourceName;

/// Message of status and event of a pod that has to go.
const MESSAGE: &str = "Preempted in order to admit critical pod";
/// Least time that pods have to go in; kubelet's.
const LEAST: Duration = Duration::from_secs(10);

/// Most time: a grace may be any number, and a time that no clock has would end the agent.
const MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long to wait for pods with these graces: the longest and a half, as kubelet does.
fn wait_for(graces: impl Iterator<Item = i64>) -> Duration {
    let longest = graces.map(|seconds| u64::try_from(seconds).unwrap_or(0)).max().unwrap_or(0);
    Duration::from_secs(longest.saturating_mul(3) / 2).clamp(LEAST, MOST)
}

/// A critical pod for which room is being made.
#[derive(Debug)]
pub(super) struct Arriving {
    pub(super) source: SourceName,
    pod: Arc<Pod>,
    /// When it is not waited any longer.
    until: Instant,
}

/// Ends when the first pod has waited long enough.
pub(super) async fn patience(arriving: &BTreeMap<PodUid, Arriving>) {
    match arriving.values().map(|arriving| arriving.until).min() {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// A pod that holds resources of the node.
pub(super) struct Holder<'a> {
    uid: &'a PodUid,
    holding: Holding,
    /// As it weighs on the node.
    pub(super) pod: Cow<'a, Pod>,
}

/// A pod that will hold nothing soon.
struct Going {
    uid: PodUid,
    /// It has still to be told.
    is_victim: bool,
    grace_seconds: i64,
}

impl Manager {
    /// Pods that hold resources of the node, but for one; always in the same order.
    pub(super) fn holders(&self, but: &PodUid) -> Vec<Holder<'_>> {
        let workers = self.workers.iter().filter(|(uid, h)| *uid != but && !h.released.load(Ordering::Relaxed));
        let workers = workers.map(|(uid, handle)| {
            let is_going = handle.ousted || !handle.wanted || spec::is_deleted(&handle.desired);
            let holding = if is_going { Holding::Leaves } else { Holding::Stays };
            Holder { uid, holding, pod: allocation::held(&handle.pod, self.shared.actuated.get(uid).as_deref()) }
        });
        let arriving = self.arriving.iter().filter(|(uid, _)| *uid != but).map(|(uid, arriving)| {
            let pod = Cow::Borrowed(arriving.pod.as_ref());
            Holder { uid, holding: Holding::Arrives, pod }
        });
        let mut holders: Vec<Holder<'_>> = workers.chain(arriving).collect();
        holders.sort_by_key(|holder| holder.uid);
        holders
    }

    /// Takes in a pod that no earlier agent wrote down. One that never ran is admitted first, beside those that hold resources.
    pub(super) fn take_new(&mut self, source: SourceName, pod: Arc<Pod>) {
        let uid = spec::uid(&pod);
        let before = self.arriving.remove(&uid);
        let allocated = self.as_allocated(&pod);
        let has_run = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        if has_run || spec::is_deleted(&pod) {
            return self.begin(source, pod, allocated, None);
        }
        let (decision, going) = {
            let holders = self.holders(&uid);
            let known: Vec<(Holding, &Pod)> = holders.iter().map(|h| (h.holding, h.pod.as_ref())).collect();
            let decision = preempt::decide(&allocated, source != SourceName::Api, &self.shared.node.load(), &known);
            let victims: &[usize] = match &decision {
                Decision::Wait { victims, .. } => victims,
                Decision::Admit | Decision::Refuse(_) => &[],
            };
            let going = holders.iter().enumerate().filter_map(|(place, holder)| {
                let is_victim = victims.contains(&place);
                let grace_seconds = spec::grace_seconds(&holder.pod);
                let going = Going { uid: holder.uid.clone(), is_victim, grace_seconds };
                (is_victim || holder.holding == Holding::Leaves).then_some(going)
            });
            let going: Vec<Going> = going.collect();
            (decision, going)
        };
        match decision {
            Decision::Admit => self.begin(source, pod, allocated, None),
            Decision::Refuse(rejection) => self.begin(source, pod, allocated, Some(rejection)),
            Decision::Wait { resource, .. } => self.make_room(source, pod, before, resource, &going),
        }
    }

    /// Has pods go, and the critical one wait for them.
    fn make_room(
        &mut self,
        source: SourceName,
        pod: Arc<Pod>,
        before: Option<Arriving>,
        resource: &'static str,
        going: &[Going],
    ) {
        for Going { uid, grace_seconds, .. } in going.iter().filter(|going| going.is_victim) {
            tracing::info!(pod = %spec::key(&pod), victim = %uid, resource, "a critical pod needs the place of another one");
            let why = Ousting::Preemption(resource);
            let eviction = Eviction { why, message: MESSAGE.to_owned(), grace_seconds: *grace_seconds };
            self.evict(uid, eviction);
        }
        let wait = wait_for(going.iter().map(|going| going.grace_seconds));
        // Looks at which nobody else has to go do not prolong the wait.
        let has_news = going.iter().any(|going| going.is_victim);
        let until = before.filter(|_| !has_news).map_or_else(|| Instant::now() + wait, |before| before.until);
        self.arriving.insert(spec::uid(&pod), Arriving { source, pod, until });
    }

    /// Decides about all pods that wait for room.
    pub(super) fn decide_arrivals(&mut self) {
        let waiting: Vec<PodUid> = self.arriving.keys().cloned().collect();
        for uid in waiting {
            let Some(Arriving { source, pod, until }) = self.arriving.get(&uid) else { continue };
            let (source, pod) = (*source, pod.clone());
            if *until <= Instant::now() {
                tracing::warn!(pod = %spec::key(&pod), "others are not gone in time; a critical pod starts all the same");
                self.arriving.remove(&uid);
                let allocated = self.as_allocated(&pod);
                self.begin(source, pod, allocated, None);
            } else {
                self.take_new(source, pod);
            }
        }
    }

    pub(super) fn evict(&mut self, uid: &PodUid, eviction: Eviction) {
        if let Some(handle) = self.workers.get_mut(uid) {
            handle.ousted = true;
            let _ = handle.tx.send(Message::Evict(eviction));
        }
    }

    /// Starts the worker of a pod that is admitted, or refused.
    fn begin(&mut self, source: SourceName, pod: Arc<Pod>, allocated: Arc<Pod>, rejection: Option<Rejection>) {
        if let Some(rejection) = &rejection {
            let reason = rejection.event_reason();
            METRICS.pods.rejected.increment([reason]);
            self.shared.event(&pod, None, EventType::Warning, reason, rejection.message.clone());
        }
        let released_at_once = rejection.is_some();
        let released = Arc::new(AtomicBool::new(released_at_once));
        let has_run = pod.status.as_ref().is_some_and(|status| status.start_time.is_some());
        let is_fresh = self.knows_runtime && !has_run;
        let uid = spec::uid(&pod);
        if rejection.is_none() {
            self.allocate(&allocated);
        }
        self.spawn(Start { source, pod: allocated, record: None, wanted: true, is_fresh, rejection, released });
        if !released_at_once {
            self.take_update(&uid, pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_longest_grace_and_a_half_and_never_more_than_a_clock_has() {
        for (graces, seconds) in [(&[][..], 10), (&[0, 5], 10), (&[30, 20], 45), (&[-1], 10)] {
            assert_eq!(wait_for(graces.iter().copied()), Duration::from_secs(seconds), "{graces:?}");
        }
        let longest = wait_for([i64::MAX].into_iter());
        assert!(Instant::now().checked_add(longest).is_some());
    }
}
