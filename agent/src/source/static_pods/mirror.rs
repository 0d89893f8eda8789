//! Mirror pods: the API server's picture of static pods, so that people and controllers see them.
//!
//! ```text
//!  static pods ──┐
//!  mirrors seen ─┼─► plan (pure) ─► Create / Delete at the API server
//!  stopping ─────┘
//!  publish(static uid, status) ─► kept, and written to the mirror that stands for it now
//! ```
//! A mirror that was deleted or is of another hash is made anew; the static pod does not notice. The mirror of a static pod
//! that was removed goes when its containers have ended, so that its termination can be watched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::StaticPods;
use super::identity::HASH_ANNOTATION;
use crate::api::status_writer::{PodRef, StatusWriter};
use crate::api::watch::{Backoff, error_text};
use crate::ids::{ObjectKey, PodUid};
use crate::source::api::{MIRROR_ANNOTATION, MirrorNote};

/// After the grace period of a removed static pod, its mirror goes even if nobody said that its containers ended.
const STOPPING_SLACK: Duration = Duration::from_secs(60);

/// A mirror as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// UID of the mirror object.
    pub uid: PodUid,
    /// The hash that it repeats: the UID of its static pod.
    pub hash: String,
    /// Somebody asked for its deletion.
    pub deleting: bool,
}

/// What has to be done at the API server.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make a mirror for this static pod.
    Create(Arc<Pod>),
    /// Delete this mirror.
    Delete(ObjectKey, PodUid),
}

/// Compares static pods with mirrors. `stopping` are names whose static pod was removed and still runs.
pub fn plan(pods: &StaticPods, mirrors: &BTreeMap<ObjectKey, Mirror>, stopping: &BTreeSet<ObjectKey>) -> Vec<Action> {
    let mut actions = Vec::new();
    for (key, mirror) in mirrors {
        let keep = match pods.get(key) {
            Some(pod) => !mirror.deleting && hash(pod) == mirror.hash,
            None => stopping.contains(key) && !mirror.deleting,
        };
        if !keep {
            actions.push(Action::Delete(key.clone(), mirror.uid.clone()));
        }
    }
    // A mirror that has to go first is made anew when its deletion has been seen.
    let missing = pods.iter().filter(|(key, _)| !mirrors.contains_key(*key));
    actions.extend(missing.map(|(_, pod)| Action::Create(pod.clone())));
    actions
}

fn hash(pod: &Pod) -> &str {
    annotation(pod, HASH_ANNOTATION).unwrap_or_default()
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The mirror object for a static pod.
fn mirror_of(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let meta = &mut mirror.metadata;
    meta.uid = None;
    meta.resource_version = None;
    meta.creation_timestamp = None;
    meta.annotations.get_or_insert_default().insert(MIRROR_ANNOTATION.to_owned(), hash(pod).to_owned());
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    mirror.status = None;
    mirror
}

#[derive(Default)]
struct State {
    mirrors: BTreeMap<ObjectKey, Mirror>,
    synced: bool,
    /// Static pods by UID: name, and the newest status.
    statuses: BTreeMap<PodUid, (Option<ObjectKey>, Option<PodStatus>)>,
    /// Removed static pods that still run, and when they are given up on.
    stopping: BTreeMap<ObjectKey, (PodUid, Instant)>,
}

struct Shared {
    state: Mutex<State>,
    writer: StatusWriter,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pod manager's side of mirrors.
#[derive(Clone)]
pub struct MirrorHandle {
    shared: Arc<Shared>,
}

/// What the mirror task works on.
pub struct MirrorInputs {
    /// For creating and deleting mirrors.
    pub client: kube::Client,
    /// For their statuses.
    pub writer: StatusWriter,
    /// Static pods, from [`super::run`].
    pub pods: watch::Receiver<StaticPods>,
    /// Mirrors, from `source::api`.
    pub notes: mpsc::UnboundedReceiver<MirrorNote>,
    /// The own Node, which owns mirrors.
    pub node: watch::Receiver<Option<Arc<Node>>>,
}

/// Starts the mirror task. It ends when one of its inputs does.
pub fn spawn(inputs: MirrorInputs) -> MirrorHandle {
    let shared = Arc::new(Shared { state: Mutex::default(), writer: inputs.writer.clone(), changed: Notify::new() });
    tokio::spawn(run(shared.clone(), inputs));
    MirrorHandle { shared }
}

impl MirrorHandle {
    /// The mirror that stands for a static pod now.
    pub fn mirror_of(&self, static_uid: &PodUid) -> Option<PodRef> {
        let state = self.shared.lock();
        let key = state.statuses.get(static_uid)?.0.clone()?;
        // An edited file is another pod with the mirror of the same name: what the old one still says is not about it.
        let is_its_own = |mirror: &&Mirror| !mirror.deleting && mirror.hash == static_uid.as_str();
        let mirror = state.mirrors.get(&key).filter(is_its_own)?;
        Some(PodRef { key, uid: mirror.uid.clone() })
    }

    /// The newest status of a static pod; written to its mirror now, and again whenever the mirror is made anew.
    pub fn publish(&self, static_uid: &PodUid, status: PodStatus) {
        let mirror = self.mirror_of(static_uid);
        self.shared.lock().statuses.entry(static_uid.clone()).or_default().1 = Some(status.clone());
        if let Some(mirror) = mirror {
            self.shared.writer.publish(mirror, status);
        }
    }

    /// Nothing of this static pod runs any more. Other pods are nothing to the mirror task.
    pub fn finished(&self, static_uid: &PodUid) {
        let mut state = self.shared.lock();
        let was_static = state.statuses.remove(static_uid).is_some();
        state.stopping.retain(|_, (uid, _)| uid != static_uid);
        drop(state);
        if was_static {
            self.shared.changed.notify_one();
        }
    }
}

async fn run(shared: Arc<Shared>, mut inputs: MirrorInputs) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut previous = StaticPods::new();
    loop {
        let pods = inputs.pods.borrow_and_update().clone();
        note_pods(&shared, &previous, &pods);
        previous = pods;
        let node = inputs.node.borrow_and_update().clone();
        let retry = match node {
            Some(node) => execute(&shared, &inputs.client, &previous, &node).await,
            None => false,
        };
        let pause = if retry { backoff.next() } else { next_give_up(&shared) };
        if !retry {
            backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        }
        // Each arm only wakes; everything is looked at again.
        let open = tokio::select! {
            changed = inputs.pods.changed() => changed.is_ok(),
            changed = inputs.node.changed() => changed.is_ok(),
            note = inputs.notes.recv() => note.map(|note| take_note(&shared, &previous, note)).is_some(),
            () = shared.changed.notified() => true,
            () = tokio::time::sleep(pause) => true,
        };
        if !open {
            return;
        }
        while let Ok(note) = inputs.notes.try_recv() {
            take_note(&shared, &previous, note);
        }
    }
}

fn next_give_up(shared: &Shared) -> Duration {
    let first = shared.lock().stopping.values().map(|(_, until)| *until).min();
    first.map_or(Duration::from_secs(3600), |until| until.saturating_duration_since(Instant::now()))
}

/// Notes which static pods came and which began to stop.
fn note_pods(shared: &Shared, old: &StaticPods, new: &StaticPods) {
    let mut state = shared.lock();
    let uid = |pod: &Pod| pod.metadata.uid.as_deref().map(PodUid::new);
    for (key, pod) in new {
        state.stopping.remove(key);
        if let Some(uid) = uid(pod) {
            state.statuses.entry(uid).or_default().0 = Some(key.clone());
        }
    }
    for (key, pod) in old.iter().filter(|(key, _)| !new.contains_key(*key)) {
        if let Some(uid) = uid(pod) {
            let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
            let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
            state.stopping.insert(key.clone(), (uid, Instant::now() + grace + STOPPING_SLACK));
        }
    }
    let now = Instant::now();
    state.stopping.retain(|_, (_, until)| *until > now);
}

fn take_note(shared: &Shared, pods: &StaticPods, note: MirrorNote) {
    let mut state = shared.lock();
    match note {
        MirrorNote::Upsert(pod) => {
            let meta = &pod.metadata;
            let (Some(namespace), Some(name), Some(uid)) = (&meta.namespace, &meta.name, &meta.uid) else { return };
            let key = ObjectKey::new(namespace, name);
            let mirror = Mirror {
                uid: PodUid::new(uid),
                hash: annotation(&pod, MIRROR_ANNOTATION).unwrap_or_default().to_owned(),
                deleting: meta.deletion_timestamp.is_some(),
            };
            let new = state.mirrors.get(&key).is_none_or(|known| known.uid != mirror.uid);
            state.mirrors.insert(key.clone(), mirror.clone());
            let status = pods
                .get(&key)
                .filter(|pod| hash(pod) == mirror.hash)
                .and_then(|pod| pod.metadata.uid.as_deref())
                .and_then(|uid| state.statuses.get(&PodUid::new(uid))?.1.clone());
            if let (true, Some(status)) = (new, status) {
                shared.writer.publish(PodRef { key, uid: mirror.uid }, status);
            }
        }
        MirrorNote::Removed(key, uid) => {
            if state.mirrors.get(&key).is_some_and(|mirror| mirror.uid == uid) {
                state.mirrors.remove(&key);
            }
            shared.writer.forget(&uid);
        }
        MirrorNote::Synced(uids) => {
            state.mirrors.retain(|_, mirror| uids.contains(&mirror.uid));
            state.synced = true;
        }
    }
}

/// Does what the plan says; true if something has to be repeated.
async fn execute(shared: &Shared, client: &kube::Client, pods: &StaticPods, node: &Node) -> bool {
    let actions = {
        let state = shared.lock();
        if !state.synced {
            return false;
        }
        plan(pods, &state.mirrors, &state.stopping.keys().cloned().collect())
    };
    let mut retry = false;
    for action in actions {
        let (key, result) = match action {
            Action::Create(pod) => {
                let mirror = mirror_of(&pod, node);
                let namespace = mirror.metadata.namespace.as_deref().unwrap_or("default");
                let key = ObjectKey::new(namespace, mirror.metadata.name.as_deref().unwrap_or_default());
                let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
                (key, api.create(&PostParams::default(), &mirror).await.map(|_| ()))
            }
            Action::Delete(key, uid) => {
                let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
                let preconditions = Preconditions { uid: Some(uid.to_string()), resource_version: None };
                let params = DeleteParams {
                    grace_period_seconds: Some(0),
                    preconditions: Some(preconditions),
                    ..DeleteParams::default()
                };
                let result = api.delete(&key.name, &params).await.map(|_| ());
                (key, result)
            }
        };
        match result {
            Ok(()) => {}
            // It is gone, or another one has taken its place: the watch will tell.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                tracing::warn!(pod = %key, error = error_text(&error), "cannot update the mirror of a static pod, will retry");
                retry = true;
            }
        }
    }
    retry
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last status of the pod of an edited file was written over that of its successor, for good.
    #[tokio::test]
    async fn the_old_pod_of_an_edited_file_does_not_speak_for_the_new_one() {
        let text = "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n\
                    clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}]\n";
        let config = crate::api::kubeconfig::parse(std::path::Path::new("/x"), text).expect("kubeconfig");
        let client = crate::api::client::ApiClient::new(&config, "0").expect("client");
        let writer = StatusWriter::new(client.kube());
        let shared = Arc::new(Shared { state: Mutex::default(), writer: writer.clone(), changed: Notify::new() });
        let handle = MirrorHandle { shared: shared.clone() };
        let key = ObjectKey::new("default", "web-n1");
        let (old, new) = (PodUid::new("old-hash"), PodUid::new("new-hash"));
        {
            let mut state = shared.lock();
            for uid in [&old, &new] {
                state.statuses.entry(uid.clone()).or_default().0 = Some(key.clone());
            }
            let mirror = Mirror { uid: PodUid::new("m"), hash: "new-hash".into(), deleting: false };
            state.mirrors.insert(key, mirror);
        }
        handle.publish(&old, PodStatus::default());
        assert_eq!(writer.backlog(), 0);
        handle.publish(&new, PodStatus::default());
        assert_eq!(writer.backlog(), 1);
    }
}
