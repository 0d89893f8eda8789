//! What a worker remembers of its pod between plans, besides what the runtime knows. Pure.
//!
//! Everything here is either rebuilt after a restart of the agent (crash back-off from restart counts, volumes by
//! ensuring them again) or a failure that may as well be found again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::action::{Failed, Failure, ImageUse, OpKey, Output};
use super::allocation::ResourceInfo;
use super::lifecycle::SECOND;
use crate::cri::{ContainerState, ContainerView, Nanos, PodRuntime};
use crate::ids::{ContainerId, SandboxId};

mod crash;

/// Something that has to be done once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Not done yet.
    #[default]
    Todo,
    /// Done.
    Done,
    /// Tried and failed.
    Failed(Failed),
}

impl Step {
    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Whether it is to be tried now.
    pub fn is_due(&self, now: Nanos) -> bool {
        match self {
            Self::Todo => true,
            Self::Done => false,
            Self::Failed(failed) => failed.retry_at <= now,
        }
    }

    /// The failure, when that is where it stands.
    pub fn failure(&self) -> Option<&Failed> {
        match self {
            Self::Failed(failed) => Some(failed),
            Self::Todo | Self::Done => None,
        }
    }
}

/// Limits of an exponential back-off.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// First delay.
    pub initial: Nanos,
    /// Largest delay.
    pub max: Nanos,
}

/// Back-off of operations on the pod as a whole: kubelet's `backOffPeriod` is 10 s flat; starting at 500 ms gets past
/// short troubles sooner and ends at the same rate.
pub const POD_BACKOFF: Limits = Limits { initial: SECOND / 2, max: 10 * SECOND };
/// Back-off of images and of containers that crash: kubelet's 10 s to 300 s.
pub const CONTAINER_BACKOFF: Limits = Limits { initial: 10 * SECOND, max: 300 * SECOND };

/// How long a status shows why a container failed to start before it shows that the next one is waited for: about as long as
/// it takes kubelet to look at a pod whose container has ended.
pub const START_ERROR_SHOWN: Nanos = 2 * SECOND;

/// How long a status shows why a pull failed before it shows that the next one is waited for. kubelet shows it until the
/// pod's next sync, about 10 s.
pub const IMAGE_ERROR_SHOWN: Nanos = 5 * SECOND;

/// What is remembered of one container name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerMemory {
    /// Whether its image is on the node.
    pub image: Step,
    /// The image that `image` is about; the spec may name another one by now.
    pub image_name: String,
    /// The last start that failed.
    pub start: Option<Failed>,
    /// Delay before the next restart after a crash, and when that delay was set. 0 means none so far.
    pub crash_delay: Nanos,
    /// When `crash_delay` was last raised.
    pub crash_updated: Nanos,
    /// Number of the next container of this name: one more than of any that was seen, also of those that are gone.
    pub next_attempt: u32,
    /// It is being stopped because its image or, by its resize policy, its resources have changed; it runs again whatever its
    /// restart policy says.
    pub restarts_anyway: bool,
}

/// Bad news about something that runs: believed when a second look, some time after the first, brings them again.
/// A runtime that has just started says for a moment that sandboxes are not ready or have no address (containerd#7843).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The first look that brought it.
    pub since: Nanos,
    /// How many looks have brought it.
    pub looks: u32,
}

impl Doubt {
    /// Least time between the first look and one that confirms it.
    pub const PAUSE: Nanos = SECOND;

    /// Whether it is to be believed.
    pub fn is_confirmed(&self) -> bool {
        self.looks > 1
    }
}

/// Why the node does not let a pod go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ousting {
    /// It is beyond a limit of its own; label of `kubelet_evictions`.
    Limit(&'static str),
    /// A critical pod needs its place; the resource that it is about, label of `kubelet_preemptions`.
    Preemption(&'static str),
}

/// Reason of status and event of a pod that had to go for a critical one.
pub const PREEMPTING: &str = "Preempting";

impl Ousting {
    /// Reason of status and event.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Limit(_) => "Evicted",
            Self::Preemption(_) => PREEMPTING,
        }
    }
}

/// The node does not let a pod go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// What it is about.
    pub why: Ousting,
    /// Message of status and event.
    pub message: String,
    /// Seconds between TERM and KILL.
    pub grace_seconds: i64,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Whether the runtime has been looked at since the agent started; nothing is decided before.
    pub observed: bool,
    /// Directory and volumes.
    pub volumes: Step,
    /// Images of image volumes, by volume name; resolved once for each life of the pod on the node.
    pub volume_images: BTreeMap<String, Step>,
    /// The sandbox creation that failed last.
    pub sandbox: Step,
    /// Sandboxes that were stopped, networks torn down included.
    pub stopped: BTreeSet<SandboxId>,
    /// Containers whose preStop hook has run before their turn to stop came.
    pub announced: BTreeSet<ContainerId>,
    /// What the runtime says of a pod that runs and that would stop it if it were true, by sandbox or container id.
    pub doubts: BTreeMap<String, Doubt>,
    /// What the runtime and the pod's cgroup were last told.
    pub actuated: Option<Arc<ResourceInfo>>,
    /// By container name.
    pub containers: BTreeMap<String, ContainerMemory>,
    /// Failures of stops and removals, by operation.
    pub cleanup: BTreeMap<OpKey, Failed>,
    /// It is to be evicted.
    pub eviction: Option<Eviction>,
    /// Volumes and cgroup are gone.
    pub released: Step,
    /// The API server was asked to forget the pod.
    pub deletion: Step,
    /// The log directory is gone.
    pub logs: Step,
    /// Largest delay of the crash back-off; `crashLoopBackOff.maxContainerRestartPeriod`.
    pub max_crash_delay: Option<Nanos>,
    /// Dead containers of a name that are kept, where it is not the default.
    pub dead_containers: Option<usize>,
}

impl Memory {
    /// What is remembered of a container.
    pub fn container(&mut self, name: &str) -> &mut ContainerMemory {
        if !self.containers.contains_key(name) {
            self.containers.insert(name.to_owned(), ContainerMemory::default());
        }
        self.containers.get_mut(name).expect("inserted above when it was missing")
    }

    /// What failed may be tried at once: the runtime was away and is back. How long the next pause is stays as it was, and
    /// so does the back-off of containers that crashed.
    pub fn retry_now(&mut self) {
        let steps = [&mut self.sandbox, &mut self.released].into_iter();
        let (mut images, mut starts) = (Vec::new(), Vec::new());
        for container in self.containers.values_mut() {
            images.push(&mut container.image);
            starts.extend(container.start.as_mut());
        }
        let of_steps = steps.chain(images).chain(self.volume_images.values_mut()).filter_map(|step| match step {
            Step::Failed(failed) => Some(failed),
            Step::Todo | Step::Done => None,
        });
        of_steps.chain(starts).chain(self.cleanup.values_mut()).for_each(|failed| failed.retry_at = 0);
    }

    /// Folds the outcome of an operation into memory and into the view of the runtime.
    pub fn record(&mut self, key: OpKey, outcome: Result<Output, Failure>, runtime: &mut PodRuntime, now: Nanos) {
        match outcome {
            Ok(mut output) => {
                self.succeed(&key);
                if let Output::Inspected(view) = &mut output {
                    keep_addresses(runtime, view);
                    self.note_doubts(view, now);
                    self.forget_failed_starts(view);
                }
                apply(runtime, &mut self.stopped, output);
                self.observed = true;
                self.count_attempts(runtime);
            }
            Err(failure) => {
                if let Some(container) = failure.container.clone() {
                    apply(runtime, &mut self.stopped, Output::Container(container));
                    self.count_attempts(runtime);
                }
                self.fail(key, failure, now);
            }
        }
    }

    /// Compares a look with what was doubtful before.
    fn note_doubts(&mut self, view: &PodRuntime, now: Nanos) {
        let before = std::mem::take(&mut self.doubts);
        let sound = |id: &SandboxId| view.sandboxes.iter().any(|s| s.id == *id && s.is_sound());
        let of_sandboxes =
            view.containers.iter().filter(|c| c.is_running()).map(|c| &c.sandbox).filter(|id| !sound(id));
        let unknown = view.containers.iter().filter(|c| c.state == ContainerState::Unknown).map(|c| c.id.as_str());
        for id in of_sandboxes.map(SandboxId::as_str).chain(unknown) {
            let doubt = match before.get(id) {
                Some(doubt) if now - doubt.since >= Doubt::PAUSE => Doubt { looks: doubt.looks + 1, ..*doubt },
                Some(doubt) => *doubt,
                None => Doubt { since: now, looks: 1 },
            };
            self.doubts.insert(id.to_owned(), doubt);
        }
    }

    /// A start that failed in the answer and not in deed: what runs has been started.
    fn forget_failed_starts(&mut self, view: &PodRuntime) {
        for container in view.containers.iter().filter(|c| c.is_running()) {
            if let Some(memory) = self.containers.get_mut(&container.name) {
                memory.start = None;
            }
        }
    }

    fn succeed(&mut self, key: &OpKey) {
        match key {
            OpKey::Kill(id, _) => self.cleanup.retain(|other, _| !matches!(other, OpKey::Kill(o, _) if o == id)),
            other => drop(self.cleanup.remove(other)),
        }
        match key {
            OpKey::Volumes => self.volumes = Step::Done,
            OpKey::Sandbox => self.sandbox = Step::Done,
            OpKey::Image(ImageUse::Container(name), image) => {
                let container = self.container(name);
                container.image = Step::Done;
                image.clone_into(&mut container.image_name);
            }
            OpKey::Image(ImageUse::Volume(name), _) => drop(self.volume_images.insert(name.clone(), Step::Done)),
            OpKey::Start(name) => {
                let container = self.container(name);
                container.start = None;
                // Each start decides again whether the image is there: `Always` asks the registry every time.
                container.image = Step::Todo;
                container.restarts_anyway = false;
            }
            OpKey::PreStop(id) => drop(self.announced.insert(id.clone())),
            OpKey::Release => self.released = Step::Done,
            OpKey::FinishDeletion => self.deletion = Step::Done,
            OpKey::RemoveLogs => self.logs = Step::Done,
            OpKey::Inspect
            | OpKey::Kill(..)
            | OpKey::Resize
            | OpKey::StopSandbox(_)
            | OpKey::RemoveSandbox(_)
            | OpKey::RemoveContainer(_) => {}
        }
    }

    fn fail(&mut self, key: OpKey, failure: Failure, now: Nanos) {
        match key {
            OpKey::Volumes => self.volumes = Step::Failed(again(self.volumes.failure(), failure, POD_BACKOFF, now)),
            OpKey::Sandbox => self.sandbox = Step::Failed(again(self.sandbox.failure(), failure, POD_BACKOFF, now)),
            OpKey::Image(ImageUse::Container(name), image) => {
                let container = self.container(&name);
                let before = container.image.failure().filter(|_| container.image_name == image);
                let limits = image_limits(failure.reason);
                container.image = Step::Failed(again(before, failure, limits, now));
                container.image_name = image;
            }
            OpKey::Image(ImageUse::Volume(name), _) => {
                let before = self.volume_images.get(&name).and_then(Step::failure);
                let limits = image_limits(failure.reason);
                let failed = Step::Failed(again(before, failure, limits, now));
                self.volume_images.insert(name, failed);
            }
            OpKey::Start(name) => {
                let has_ended = failure.container.as_ref().is_some_and(|view| view.is_exited());
                let container = self.container(&name);
                let mut failed = again(container.start.as_ref(), failure, POD_BACKOFF, now);
                if has_ended {
                    // It has been a container that ended, so the crash back-off says when there is another one.
                    (failed.retry_at, failed.delay) = (now, 0);
                }
                container.start = Some(failed);
                container.image = Step::Todo;
                // Whatever was wrong, an image that has gone meanwhile is fetched again.
                self.volume_images.retain(|_, step| !step.is_done());
            }
            OpKey::Release => self.released = Step::Failed(again(self.released.failure(), failure, POD_BACKOFF, now)),
            OpKey::FinishDeletion => {
                self.deletion = Step::Failed(again(self.deletion.failure(), failure, POD_BACKOFF, now));
            }
            OpKey::RemoveLogs => self.logs = Step::Failed(again(self.logs.failure(), failure, POD_BACKOFF, now)),
            OpKey::Inspect
            | OpKey::PreStop(_)
            | OpKey::Kill(..)
            | OpKey::Resize
            | OpKey::StopSandbox(_)
            | OpKey::RemoveSandbox(_)
            | OpKey::RemoveContainer(_) => {
                let failed = again(self.cleanup.get(&key), failure, POD_BACKOFF, now);
                self.cleanup.insert(key, failed);
            }
        }
    }

    /// Whether an operation of the stopping kind may be tried now.
    pub fn cleanup_due(&self, key: &OpKey, now: Nanos) -> bool {
        self.cleanup.get(key).is_none_or(|failed| failed.retry_at <= now)
    }
}

/// Whether a failure to get an image came from the registry: such are waited for, and shown as `ImagePullBackOff`.
pub fn is_pull_failure(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed")
}

/// What is wrong with the spec or the runtime is looked at again as often as kubelet syncs a pod that fails.
fn image_limits(reason: &str) -> Limits {
    if is_pull_failure(reason) { CONTAINER_BACKOFF } else { POD_BACKOFF }
}

fn again(before: Option<&Failed>, failure: Failure, limits: Limits, now: Nanos) -> Failed {
    let before = before.filter(|failed| failed.delay > 0);
    let delay = before.map_or(limits.initial, |failed| (failed.delay * 2).min(limits.max));
    Failed { reason: failure.reason, message: failure.message, retry_at: now + delay, delay }
}

/// A sandbox keeps its address as long as it is ready. A runtime that does not tell it any more has forgotten it.
fn keep_addresses(before: &PodRuntime, view: &mut PodRuntime) {
    for sandbox in view.sandboxes.iter_mut().filter(|s| s.ready && s.ips.is_empty() && !s.host_network) {
        if let Some(known) = before.sandboxes.iter().find(|s| s.id == sandbox.id) {
            sandbox.ips.clone_from(&known.ips);
        }
    }
}

/// Brings the view of the runtime up to date.
fn apply(runtime: &mut PodRuntime, stopped: &mut BTreeSet<SandboxId>, output: Output) {
    match output {
        Output::Inspected(view) => *runtime = view,
        Output::Sandbox(sandbox) => {
            runtime.sandboxes.retain(|s| s.id != sandbox.id);
            runtime.sandboxes.push(sandbox);
        }
        Output::Container(container) => {
            runtime.containers.retain(|c| c.id != container.id);
            runtime.containers.push(*container);
        }
        Output::Resized(containers) => {
            runtime.containers.retain(|c| containers.iter().all(|new| new.id != c.id));
            runtime.containers.extend(containers);
        }
        Output::SandboxStopped(id) => {
            for sandbox in runtime.sandboxes.iter_mut().filter(|s| s.id == id) {
                sandbox.ready = false;
            }
            stopped.insert(id);
        }
        Output::SandboxRemoved(id) => {
            runtime.sandboxes.retain(|s| s.id != id);
            runtime.containers.retain(|c| c.sandbox != id);
        }
        Output::ContainerRemoved(id) => runtime.containers.retain(|c| c.id != id),
        Output::Done => {}
    }
    runtime.sort();
}

/// When a container's process ended; 0 when it has not.
pub fn finished_at(container: &ContainerView) -> Nanos {
    match container.state {
        ContainerState::Exited { finished_at, .. } => finished_at,
        ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_while_the_runtime_was_away_is_tried_when_it_is_back_and_crashes_wait_on() {
        let mut memory = Memory { observed: true, ..Memory::default() };
        let mut runtime = PodRuntime::default();
        let failure = || Failure { reason: "FailedSync", message: "unavailable".into(), container: None };
        let keys = [
            OpKey::Sandbox,
            OpKey::Image(ImageUse::Container("web".into()), "img".into()),
            OpKey::Start("web".into()),
            OpKey::StopSandbox("s".into()),
            OpKey::Release,
        ];
        for key in keys {
            memory.record(key, Err(failure()), &mut runtime, 100 * SECOND);
        }
        memory.note_restart("web", 99 * SECOND, 100 * SECOND);
        let crash = memory.crash_retry_at("web", 100 * SECOND);
        memory.retry_now();
        let web = &memory.containers["web"];
        assert!(memory.sandbox.is_due(100 * SECOND) && memory.released.is_due(100 * SECOND));
        assert!(web.image.is_due(100 * SECOND));
        assert!(web.start.iter().chain(memory.cleanup.values()).all(|failed| failed.retry_at == 0 && failed.delay > 0));
        assert!(web.start.is_some() && memory.cleanup.len() == 1);
        assert_eq!(memory.crash_retry_at("web", 100 * SECOND), crash);
        assert!(crash > 100 * SECOND);
    }
}
