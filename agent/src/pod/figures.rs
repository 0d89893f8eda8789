//! What of a pod's life is measured: its start, its work, the ends of its containers.
//!
//! [`Figures`] belongs to the worker and is told what happens; it decides what that means in kubelet's figures and records
//! them. Decisions take `now` and are pure; recording is an atomic addition in [`METRICS`].

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use super::lifecycle::Lifecycle;
use super::spec::{self, Role};
use crate::cri::Nanos;
use crate::metrics::METRICS;
use crate::metrics::pods::{Phase, Standing, Sync, Worker};

/// What a worker measures of its pod.
#[derive(Debug)]
pub struct Figures {
    seen: Instant,
    /// Whether the pod came to this agent new. The start of one that ran before was somebody else's.
    is_fresh: bool,
    /// Whether the start of its containers was counted.
    is_started: bool,
    /// Since when operations run, and why.
    busy: Option<(Instant, Sync)>,
    /// Why the next ones will.
    next: Sync,
    /// The time from the first pull's begin to the last one's end, by which a start is not judged.
    pulls: Option<(Instant, Instant)>,
    /// Where the pod counts.
    place: Worker,
}

impl Figures {
    /// A pod that was just seen.
    pub fn new(is_fresh: bool, now: Instant) -> Self {
        let next = if is_fresh { Sync::Create } else { Sync::Sync };
        Self { seen: now, is_fresh, is_started: false, busy: None, next, pulls: None, place: Worker::default() }
    }

    /// The pod is at this point of its life.
    pub fn is_at(&mut self, lifecycle: &Lifecycle, wanted: bool, pod: &Pod) {
        let phase = match lifecycle {
            Lifecycle::Syncing => Phase::Sync,
            Lifecycle::Terminating(_) => Phase::Terminating,
            Lifecycle::Terminated(_) | Lifecycle::Removed => Phase::Terminated,
        };
        self.place.is_at(phase, standing(wanted, pod));
    }

    /// The source said something new.
    pub fn updated(&mut self) {
        if self.next != Sync::Create {
            self.next = Sync::Update;
        }
    }

    /// The pod is to stop.
    pub fn stopping(&mut self) {
        self.next = Sync::Terminated;
        if let Some((_, sync)) = &mut self.busy {
            *sync = Sync::Terminated;
        }
    }

    /// An operation begins.
    pub fn begin(&mut self, now: Instant) {
        if self.busy.is_none() {
            self.busy = Some((now, self.next));
            self.next = if self.next == Sync::Terminated { Sync::Terminated } else { Sync::Sync };
        }
    }

    /// An image was pulled, in so much time until now.
    pub fn pulled(&mut self, took: Duration, now: Instant) {
        let began = now.checked_sub(took).unwrap_or(now);
        let first = self.pulls.map_or(began, |(first, _)| first.min(began));
        self.pulls = Some((first, now));
    }

    /// No operation runs any more.
    pub fn rest(&mut self, now: Instant) {
        if let Some((began, sync)) = self.busy.take() {
            METRICS.pods.worker[sync as usize].observe(now.saturating_duration_since(began));
        }
    }

    /// The status changed from one to the other. `wall` is now, since the epoch.
    pub fn published(&mut self, pod: &Pod, before: &PodStatus, after: &PodStatus, now: Instant, wall: Nanos) {
        for end in ends(pod, before, after) {
            METRICS.pods.terminated.increment([word(end.role), &end.exit_code.to_string(), &end.reason]);
        }
        let is_running = |status: &PodStatus| status.phase.as_deref() == Some("Running");
        if self.is_fresh && !is_running(before) && is_running(after) {
            METRICS.pods.start.observe(now.saturating_duration_since(self.seen));
        }
        // Static pods have no creation that the node could be late with.
        if self.is_fresh && !self.is_started && !spec::is_static(pod) && all_started(after) {
            self.is_started = true;
            let Some(total) = since_creation(pod, wall) else { return };
            METRICS.pods.start_total.observe(total);
            let pulls = self.pulls.map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(first));
            METRICS.pods.start_sli.observe(total.saturating_sub(pulls).saturating_sub(init_time(after)));
        }
    }
}

/// `container_type` of a role.
pub fn word(role: Role) -> &'static str {
    match role {
        Role::Init | Role::Sidecar => "init_container",
        Role::App => "container",
        Role::Ephemeral => "ephemeral_container",
    }
}

#[derive(Debug, PartialEq, Eq)]
struct End {
    role: Role,
    exit_code: i32,
    reason: String,
}

/// Containers whose end `after` shows and `before` did not.
fn ends(pod: &Pod, before: &PodStatus, after: &PodStatus) -> Vec<End> {
    let known: Vec<&ContainerStatus> = all(before).collect();
    let found = all(after).filter_map(|status| {
        let old = known.iter().find(|old| old.name == status.name);
        let terminated = |status: &ContainerStatus| {
            let now = status.state.as_ref().and_then(|state| state.terminated.clone());
            now.or_else(|| status.last_state.as_ref().and_then(|state| state.terminated.clone()))
        };
        let end = terminated(status)?;
        let is_known = old.and_then(|old| terminated(old)).is_some_and(|old| old.container_id == end.container_id);
        let role = spec::roles(pod).find(|(name, _)| *name == status.name).map(|(_, role)| role)?;
        (!is_known).then(|| End { role, exit_code: end.exit_code, reason: end.reason.unwrap_or_default() })
    });
    found.collect()
}

fn all(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let init = status.init_container_statuses.iter().flatten();
    let app = status.container_statuses.iter().flatten();
    init.chain(app).chain(status.ephemeral_container_statuses.iter().flatten())
}

/// Whether every container has been started.
fn all_started(status: &PodStatus) -> bool {
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    let has_started = |status: &ContainerStatus| {
        let state = status.state.as_ref();
        state.is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    !containers.is_empty() && containers.iter().all(has_started)
}

/// From the start of the first init container to the end of the last.
fn init_time(status: &PodStatus) -> Duration {
    let ended = status.init_container_statuses.iter().flatten().filter_map(|status| {
        let end = status.state.as_ref()?.terminated.as_ref()?;
        Some((end.started_at.as_ref()?.0, end.finished_at.as_ref()?.0))
    });
    let span = ended.reduce(|(first, last), (from, to)| (first.min(from), last.max(to)));
    span.map_or(Duration::ZERO, |(from, to)| to.duration_since(from).try_into().unwrap_or_default())
}

fn since_creation(pod: &Pod, wall: Nanos) -> Option<Duration> {
    let created = pod.metadata.creation_timestamp.as_ref()?.0.as_nanosecond();
    u64::try_from(i128::from(wall) - created).ok().map(Duration::from_nanos)
}

/// Who wants a pod. What has no spec was found in the runtime.
fn standing(wanted: bool, pod: &Pod) -> Standing {
    match (pod.spec.is_some(), wanted, spec::is_static(pod)) {
        (false, ..) => Standing::RuntimeOnly,
        (true, true, false) => Standing::Desired,
        (true, true, true) => Standing::DesiredStatic,
        (true, false, false) => Standing::Orphan,
        (true, false, true) => Standing::OrphanStatic,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn make_pod() -> Pod {
        let spec = json!({ "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }] });
        serde_json::from_value(
            json!({ "metadata": { "name": "p", "creationTimestamp": "2026-01-01T00:00:00Z" }, "spec": spec }),
        )
        .unwrap()
    }

    fn make_status(state: Value, last: Value) -> PodStatus {
        let container = json!({ "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last });
        serde_json::from_value(json!({ "containerStatuses": [container] })).unwrap()
    }

    #[test]
    fn an_end_is_counted_once_however_it_is_shown() {
        let running = make_status(json!({ "running": {} }), json!({}));
        let end = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled", "containerID": "c://1" } });
        let (ended, waits) = (make_status(end.clone(), json!({})), make_status(json!({ "waiting": {} }), end));
        let wanted = vec![End { role: Role::App, exit_code: 137, reason: "OOMKilled".into() }];
        assert_eq!(ends(&make_pod(), &running, &ended), wanted);
        assert_eq!(ends(&make_pod(), &running, &waits), wanted, "restarted before it was shown");
        assert_eq!(ends(&make_pod(), &ended, &waits), [], "the same end, as the last state");
    }

    #[test]
    fn a_start_is_judged_without_pulls_and_init_containers() {
        let now = Instant::now();
        let mut figures = Figures::new(true, now);
        figures.pulled(Duration::from_secs(4), now + Duration::from_secs(5));
        figures.pulled(Duration::from_secs(1), now + Duration::from_secs(7));
        let (first, last) = figures.pulls.unwrap();
        assert_eq!(last - first, Duration::from_secs(6), "pulls that overlap and their gap count once");
        let init = json!([{ "name": "i", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": { "terminated":
            { "exitCode": 0, "startedAt": "2026-01-01T00:00:02Z", "finishedAt": "2026-01-01T00:00:05Z" } } }]);
        let status: PodStatus = serde_json::from_value(json!({ "initContainerStatuses": init })).unwrap();
        assert_eq!(init_time(&status), Duration::from_secs(3));
        assert!(!all_started(&status), "without containers nothing has started");
        assert!(all_started(&make_status(json!({ "running": {} }), json!({}))));
        assert!(!all_started(&make_status(json!({ "waiting": {} }), json!({}))));
    }

    #[test]
    fn work_lasts_from_the_first_operation_to_rest_and_has_one_reason() {
        let now = Instant::now();
        let mut figures = Figures::new(true, now);
        figures.updated();
        figures.begin(now);
        figures.begin(now + Duration::from_secs(1));
        assert_eq!(figures.busy, Some((now, Sync::Create)), "a pod that comes is a create, whatever is said meanwhile");
        figures.rest(now + Duration::from_secs(2));
        figures.updated();
        figures.begin(now);
        assert_eq!(figures.busy, Some((now, Sync::Update)));
        figures.stopping();
        assert_eq!(figures.busy, Some((now, Sync::Terminated)));
    }
}
