//! What operations answer, folded into what the worker knows.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::PodStatus;

use super::Worker;
use crate::cri::SandboxView;
use crate::event::EventType;
use crate::pod::action::{Failure, OpKey, Output};
use crate::pod::execute::Extra;
use crate::pod::facilities::PodVolumes;
use crate::pod::{lifecycle, spec};

impl Worker {
    pub(super) fn take(
        &mut self,
        outcome: Result<(OpKey, u64, Result<Output, Failure>, Extra), tokio::task::JoinError>,
    ) {
        let (key, generation, result, extra) = match outcome {
            Ok(outcome) => outcome,
            Err(error) if error.is_cancelled() => return,
            Err(error) => {
                // A panic inside an operation is a bug; the pod goes on with a fresh look at what is there.
                tracing::error!(pod = %spec::key(&self.pod), %error, "an operation panicked");
                let dead: Vec<OpKey> =
                    self.inflight.iter().filter(|(_, task)| task.is_finished()).map(|(key, _)| key.clone()).collect();
                for key in dead {
                    self.inflight.remove(&key);
                    self.keys.remove(&key);
                }
                self.look_again = true;
                return;
            }
        };
        self.inflight.remove(&key);
        self.keys.remove(&key);
        tracing::debug!(pod = %spec::key(&self.pod), operation = ?key, ok = result.is_ok(), "done");
        match extra {
            Extra::Nothing => {}
            Extra::Volumes(volumes) => self.volumes = Arc::new(volumes),
            Extra::Image(name, image, pull) => {
                if let Some(took) = pull {
                    self.figures.pulled(took, Instant::now());
                }
                self.images.insert(name, image);
            }
            Extra::Slot(slot) => self.slot = Some(slot),
        }
        let now = self.now();
        if let Err(failed) = &result {
            self.tell_failure(&key, failed);
        }
        if key == OpKey::Inspect {
            if generation != self.generation && result.is_ok() && self.memory.observed {
                // Something finished meanwhile; what was seen may be older than what is known.
                self.look_again = true;
                return;
            }
        } else {
            self.generation += 1;
        }
        // A failed refresh of volumes that are in place leaves them as they are.
        if key == OpKey::Volumes && self.memory.volumes.is_done() && result.is_err() {
            self.volumes = Arc::new(PodVolumes {
                refresh_at: Some(now + 10 * lifecycle::SECOND),
                ..self.volumes.as_ref().clone()
            });
            return;
        }
        if let (OpKey::Resize, Err(failed)) = (&key, &result) {
            self.tell_resize_error(&failed.message, now);
        }
        if matches!(key, OpKey::Resize | OpKey::Start(_)) {
            self.memory.actuated = self.shared.actuated.get(&self.uid);
        }
        self.memory.record(key, result, &mut self.runtime, now);
        if self.memory.observed
            && let Some(adopted) = self.adopted.take()
        {
            self.adopt(&adopted);
        }
    }

    /// Says what went wrong, and makes sure that what there is now is looked at: an error says that the answer is bad, not
    /// that nothing was done.
    fn tell_failure(&mut self, key: &OpKey, failed: &Failure) {
        let (reason, error) = (failed.reason, &failed.message);
        tracing::info!(pod = %spec::key(&self.pod), operation = ?key, reason, %error, "operation failed");
        let event = match key {
            OpKey::Inspect => Some(("FailedSync", format!("error determining status: {error}"))),
            OpKey::Kill(..) | OpKey::StopSandbox(_) | OpKey::Release => {
                Some(("FailedKillPod", format!("error killing pod: {error}")))
            }
            OpKey::Volumes
            | OpKey::PreStop(_)
            | OpKey::Sandbox
            | OpKey::Image(..)
            | OpKey::Start(_)
            // Told with the condition, once.
            | OpKey::Resize
            | OpKey::RemoveSandbox(_)
            | OpKey::RemoveContainer(_)
            | OpKey::FinishDeletion
            | OpKey::RemoveLogs => None,
        };
        if let Some((reason, text)) = event {
            self.shared.event(&self.pod, None, EventType::Warning, reason, text);
        }
        self.look_again |= self.memory.observed
            && match key {
                OpKey::Inspect | OpKey::Sandbox | OpKey::Start(_) | OpKey::Kill(..) | OpKey::StopSandbox(_) => true,
                OpKey::Resize | OpKey::RemoveSandbox(_) | OpKey::RemoveContainer(_) => true,
                OpKey::Volumes | OpKey::PreStop(_) | OpKey::Image(..) => false,
                OpKey::Release | OpKey::FinishDeletion | OpKey::RemoveLogs => false,
            };
    }

    /// Takes over what an earlier agent (this one or a kubelet) left running.
    fn adopt(&mut self, known: &PodStatus) {
        let kept = known.pod_ips.iter().flatten().map(|ip| ip.ip.clone());
        let kept: Vec<String> = kept.filter(|_| !spec::host_network(&self.pod)).collect();
        let running = self.runtime.containers.iter().find(|c| c.is_running()).map(|c| c.sandbox.clone());
        // The runtime of a pod that runs has not changed its address; it has forgotten it.
        let forgetful = |s: &&mut SandboxView| s.ready && s.ips.is_empty() && Some(&s.id) == running.as_ref();
        if let Some(sandbox) = self.runtime.sandboxes.iter_mut().find(forgetful) {
            sandbox.ips = kept;
        }
        let runtime = self.runtime.clone();
        self.memory.seed_crash_backoff(&runtime);
        let statuses = known.container_statuses.iter().flatten().chain(known.init_container_statuses.iter().flatten());
        for status in statuses {
            let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
            let Some(container) = runtime.containers.iter().find(|c| Some(c.id.as_str()) == id && c.is_running())
            else {
                continue;
            };
            self.shared.probes.seed(&self.pod, container, status.started == Some(true), status.ready);
        }
    }
}
