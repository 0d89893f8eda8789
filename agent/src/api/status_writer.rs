//! Writes pod statuses to the API server: the newest of each pod, at once, in parallel across pods.
//!
//! ```text
//!  publish(pod, status) ─► entry { pending } ─► one task per pod with work, 16 requests in flight
//!                                               diff against what the server has ─► PATCH …/status ─► base
//!  delete(pod) ──────────► after its last status: DELETE with the pod's UID and no grace period
//! ```
//! A status that says only that nothing runs yet waits a moment for the one that says more ([`patience`]).
//!
//! There is no GET before a write (kubelet has one): the base of the diff is the answer to our last PATCH, or what the
//! pod watch showed, whichever is newer. A status that differs in nothing is not sent. Errors are retried with back-off
//! for as long as the pod exists; 404, and a refusal that names the UID, mean that it does not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value};
use tokio::sync::{Notify, Semaphore};

use super::status_patch;
use super::watch::{Backoff, error_text};
use crate::ids::{ObjectKey, PodUid};
use crate::metrics::METRICS;

pub mod patience;

/// Requests in flight: enough to keep a round trip of 20 ms busy for 800 writes a second, few for the server.
const IN_FLIGHT: usize = 16;
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A pod as the API server addresses it. For a static pod this is its mirror.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID; a write for another pod of the same name is refused.
    pub uid: PodUid,
}

/// What the server has, as far as we know.
struct Base {
    /// [`status_patch::owned`] as JSON text: a tenth of the size of the parsed form.
    status: Box<[u8]>,
    /// `metadata.resourceVersion`, comparable as a number (KEP-5504).
    version: u64,
}

#[derive(Default)]
struct Entry {
    base: Option<Base>,
    /// Newest status that is not yet acknowledged.
    pending: Option<Box<PodStatus>>,
    /// Until when `pending` waits for a more telling one.
    due: Option<Instant>,
    /// Ends that wait.
    wake: Arc<Notify>,
    /// The status that the server acknowledged with `base`; asked for again when someone else changes it.
    acknowledged: Option<Box<PodStatus>>,
    /// Since when something that the server has not seen waits, for a figure.
    changed: Option<Instant>,
    delete: bool,
    working: bool,
    /// Nobody is interested any more: the entry goes when its work is done.
    forgotten: bool,
}

impl Entry {
    /// Asks for the acknowledged status again, unless a newer one waits. False when there is nothing to write.
    fn write_again(&mut self) -> bool {
        if self.pending.is_none() {
            self.pending = self.acknowledged.take();
        }
        self.pending.is_some()
    }
}

struct Shared {
    client: kube::Client,
    entries: Mutex<HashMap<PodUid, Entry>>,
    permits: Semaphore,
}

/// Handle of the writer; clones share one state.
#[derive(Clone)]
pub struct StatusWriter {
    shared: Arc<Shared>,
}

/// What a request ended with, apart from success.
enum Failure {
    /// The pod does not exist (any more).
    Gone,
    /// Anything else, worth a repetition.
    Retry(String),
}

impl StatusWriter {
    /// A writer on a client. Its tasks are spawned on the current runtime.
    pub fn new(client: kube::Client) -> Self {
        Self { shared: Arc::new(Shared { client, entries: Mutex::default(), permits: Semaphore::new(IN_FLIGHT) }) }
    }

    /// Sends the status unless it is what the server has; replaces one that is still waiting.
    pub fn publish(&self, pod: PodRef, status: PodStatus) {
        let mut entries = self.shared.lock();
        let entry = entries.entry(pod.uid.clone()).or_default();
        entry.forgotten = false;
        entry.due = patience::due(&status, entry.pending.is_some(), entry.due, Instant::now());
        entry.pending = Some(Box::new(status));
        if entry.due.is_none() {
            entry.wake.notify_one();
        }
        entry.changed.get_or_insert_with(Instant::now);
        self.start(pod, entry);
    }

    /// Deletes the pod object for good, after its last status was written. Nothing happens when it is already gone.
    pub fn delete(&self, pod: PodRef) {
        let mut entries = self.shared.lock();
        let entry = entries.entry(pod.uid.clone()).or_default();
        entry.delete = true;
        entry.due = None;
        entry.wake.notify_one();
        self.start(pod, entry);
    }

    /// Takes note of a pod as the watch shows it. If somebody changed what we wrote, it is written again.
    pub fn observed(&self, pod: &Pod) {
        let Some((pod_ref, version)) = identify(pod) else { return };
        let mut entries = self.shared.lock();
        // The last events of a deleted pod come after it was forgotten, and would leave an entry that nobody removes.
        if pod.metadata.deletion_timestamp.is_some() && !entries.contains_key(&pod_ref.uid) {
            return;
        }
        let entry = entries.entry(pod_ref.uid.clone()).or_default();
        if entry.forgotten {
            return;
        }
        if entry.base.as_ref().is_some_and(|base| version <= base.version) {
            return;
        }
        let status = encode(pod);
        let differs = entry.base.as_ref().is_some_and(|base| base.status != status);
        entry.base = Some(Base { status, version });
        // While a request is under way, what the watch shows may be that request's own effect: `acknowledge` looks again.
        if differs && !entry.working && entry.write_again() {
            self.start(pod_ref, entry);
        }
    }

    /// Forgets a pod. What was published or asked for before is still written.
    pub fn forget(&self, uid: &PodUid) {
        let mut entries = self.shared.lock();
        if let Some(entry) = entries.get_mut(uid) {
            entry.forgotten = true;
            if !entry.working {
                entries.remove(uid);
            }
        }
    }

    /// Number of pods with writes that are not yet acknowledged, for drains and metrics.
    pub fn backlog(&self) -> usize {
        self.shared.lock().values().filter(|entry| entry.working).count()
    }

    fn start(&self, pod: PodRef, entry: &mut Entry) {
        if !entry.working {
            entry.working = true;
            tokio::spawn(work(self.shared.clone(), pod));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, pod: &PodRef) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.key.namespace)
    }
}

/// What is to be done for a pod.
enum Next {
    Send(Job),
    /// Nothing until then, unless there is more to tell.
    Wait(Instant, Arc<Notify>),
    Rest,
}

/// A request.
enum Job {
    Patch(Box<PodStatus>, Value),
    Delete,
}

/// Decides the next request; ends the pod's work when there is none.
fn next(shared: &Shared, pod: &PodRef) -> Next {
    let mut entries = shared.lock();
    let Some(entry) = entries.get_mut(&pod.uid) else { return Next::Rest };
    if let Some(due) = entry.due.filter(|due| entry.pending.is_some() && *due > Instant::now()) {
        return Next::Wait(due, entry.wake.clone());
    }
    entry.due = None;
    if let Some(status) = entry.pending.take() {
        let base = entry.base.as_ref().and_then(|base| decode(&base.status));
        match status_patch::build(pod.uid.as_str(), base.as_ref(), &status) {
            Some(patch) => return Next::Send(Job::Patch(status, patch)),
            None => {
                entry.acknowledged = Some(status);
                entry.changed = None;
            }
        }
    }
    if entry.delete {
        return Next::Send(Job::Delete);
    }
    entry.working = false;
    if entry.forgotten {
        entries.remove(&pod.uid);
    }
    Next::Rest
}

async fn work(shared: Arc<Shared>, pod: PodRef) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let job = match next(&shared, &pod) {
            Next::Send(job) => job,
            Next::Wait(due, wake) => {
                // Time is up or there is more to tell; either way the entry is looked at again.
                let _ = tokio::time::timeout_at(due.into(), wake.notified()).await;
                continue;
            }
            Next::Rest => return,
        };
        let result = {
            // The semaphore is never closed.
            let _permit = shared.permits.acquire().await;
            match &job {
                Job::Patch(_, patch) => patch_status(&shared, &pod, patch).await.map(Some),
                Job::Delete => delete(&shared, &pod).await.map(|()| None),
            }
        };
        match (result, job) {
            (Ok(Some(answer)), Job::Patch(status, _)) => {
                backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
                acknowledge(&shared, &pod, status, &answer);
            }
            (Ok(_), Job::Patch(..) | Job::Delete) | (Err(Failure::Gone), _) => {
                shared.lock().remove(&pod.uid);
                return;
            }
            (Err(Failure::Retry(error)), job) => {
                tracing::warn!(pod = %pod.key, uid = %pod.uid, error, "cannot write pod status, will retry");
                put_back(&shared, &pod, job);
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

fn acknowledge(shared: &Shared, pod: &PodRef, status: Box<PodStatus>, answer: &Pod) {
    let mut entries = shared.lock();
    let Some(entry) = entries.get_mut(&pod.uid) else { return };
    entry.acknowledged = Some(status);
    if entry.pending.is_none()
        && let Some(changed) = entry.changed.take()
    {
        METRICS.pods.status_sync.observe(changed.elapsed());
    }
    let Some((_, version)) = identify(answer) else { return };
    match &entry.base {
        // Somebody wrote after us, and the watch was faster than the answer.
        Some(base) if base.version > version => {
            if base.status != encode(answer) {
                entry.write_again();
            }
        }
        Some(_) | None => entry.base = Some(Base { status: encode(answer), version }),
    }
}

fn put_back(shared: &Shared, pod: &PodRef, job: Job) {
    if let (Job::Patch(status, _), Some(entry)) = (job, shared.lock().get_mut(&pod.uid)) {
        // A newer status that was published meanwhile wins.
        entry.pending.get_or_insert(status);
    }
}

async fn patch_status(shared: &Shared, pod: &PodRef, patch: &Value) -> Result<Pod, Failure> {
    let name = &pod.key.name;
    shared.api(pod).patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await.map_err(failure)
}

async fn delete(shared: &Shared, pod: &PodRef) -> Result<(), Failure> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(pod.uid.as_str().to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    shared.api(pod).delete(&pod.key.name, &params).await.map(|_| ()).map_err(failure)
}

fn failure(error: kube::Error) -> Failure {
    match &error {
        kube::Error::Api(status) if status.code == 404 => Failure::Gone,
        // A conflict also comes from five concurrent writers; only one about the UID is final. The same is said with
        // 422 (metadata.uid is immutable) where the patch is applied before preconditions are checked.
        kube::Error::Api(status)
            if matches!(status.code, 409 | 422)
                && (status.message.contains("UID") || status.message.contains("uid")) =>
        {
            Failure::Gone
        }
        _ => Failure::Retry(error_text(&error)),
    }
}

fn identify(pod: &Pod) -> Option<(PodRef, u64)> {
    let meta = &pod.metadata;
    let key = ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?);
    let version = meta.resource_version.as_deref()?.parse().ok()?;
    Some((PodRef { key, uid: PodUid::new(meta.uid.as_deref()?) }, version))
}

fn encode(pod: &Pod) -> Box<[u8]> {
    let owned = pod.status.as_ref().map(status_patch::owned).unwrap_or_default();
    serde_json::to_vec(&owned).unwrap_or_default().into()
}

fn decode(status: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(status).ok()
}

#[cfg(test)]
mod tests;
