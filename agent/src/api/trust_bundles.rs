//! ClusterTrustBundles for the pods of this node: one watch of all of them, from the first pod that projects one to the
//! last. A node without such a pod asks for nothing.
//!
//! ```text
//!  first user ─► which version is served? ─► watch ─► bundles by name ─► pods whose references cover what changed
//!                     └─ none: told to pods, asked again with back-off
//! ```
//! One watch, because a pod may name hundreds of them (the conformance suite has 150) and selectors need the others.
//! `v1` is served since Kubernetes 1.37; before, `v1beta1` where a feature gate and the API server's `--runtime-config`
//! say so. While the API server is away the last known bundles are served.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::serde::Deserialize;
use kube::Api;
use kube::core::{ApiResource, GroupVersionKind, NotUsed, Object};
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::objects::{FIRST_ANSWER, lock};
use super::watch::{Backoff, WatchHandle, error_text, spawn_watch};
use crate::ids::{ObjectKey, PodUid};
use crate::objects::{ObjectError, TrustBundle, TrustBundleRef};
use crate::watch::{WatchEvent, WatchSink};

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "clustertrustbundles";
/// What pods need of a bundle is the same in all versions.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize)]
#[serde(crate = "k8s_openapi::serde", rename_all = "camelCase")]
struct BundleSpec {
    signer_name: Option<String>,
    #[serde(default)]
    trust_bundle: String,
}

/// The object in any of its versions: the types of one release know only some of them.
type Bundle = Object<BundleSpec, NotUsed>;

/// How far the watch has come.
#[derive(Clone, Debug)]
enum Progress {
    /// No list is complete; what the server or the connection said last.
    Starting { error: Option<Arc<str>> },
    /// The API server has no such resource.
    NotServed,
    /// A list has been complete once.
    Synced,
}

/// What one watch knows. It ends with the watch, so that a late event of an old one changes nothing in a new one.
struct Known {
    bundles: Mutex<BTreeMap<String, Arc<TrustBundle>>>,
    progress: watch::Sender<Progress>,
    /// A read gave up waiting, so that the first list has to wake the pods.
    missed: AtomicBool,
}

struct Run {
    known: Arc<Known>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    users: HashMap<PodUid, BTreeSet<TrustBundleRef>>,
    run: Option<Run>,
}

struct Shared {
    client: kube::Client,
    state: Mutex<State>,
    changed: mpsc::UnboundedSender<PodUid>,
}

/// The bundles that pods of this node use.
pub(super) struct TrustBundles {
    shared: Arc<Shared>,
}

impl TrustBundles {
    pub(super) fn new(client: kube::Client, changed: mpsc::UnboundedSender<PodUid>) -> Self {
        Self { shared: Arc::new(Shared { client, state: Mutex::default(), changed }) }
    }

    /// Makes `pod` a user of exactly these bundles. The first user starts the watch, with the last it ends.
    pub(super) fn set_user(&self, pod: &PodUid, wanted: BTreeSet<TrustBundleRef>) {
        let mut state = lock(&self.shared.state);
        match wanted.is_empty() {
            true => drop(state.users.remove(pod)),
            false => drop(state.users.insert(pod.clone(), wanted)),
        }
        if state.users.is_empty() {
            state.run = None;
        } else if state.run.is_none() {
            let known = Arc::new(Known::new());
            let task = tokio::spawn(follow(self.shared.clone(), known.clone()));
            state.run = Some(Run { known, _task: AbortOnDropHandle::new(task) });
        }
    }

    /// The bundles that a reference covers, by name. Waits for the first list.
    pub(super) async fn read(&self, wanted: &TrustBundleRef) -> Result<Vec<Arc<TrustBundle>>, ObjectError> {
        let (TrustBundleRef::Name(name) | TrustBundleRef::Signer(name)) = wanted;
        let unavailable =
            |reason| ObjectError::Unavailable { kind: PLURAL, key: ObjectKey::new("", name.as_str()), reason };
        let known = lock(&self.shared.state).run.as_ref().map(|run| run.known.clone());
        let known = known.ok_or_else(|| unavailable("the pod does not use them any more".to_owned()))?;
        let mut progress = known.progress.subscribe();
        let answered = progress.wait_for(|progress| !matches!(progress, Progress::Starting { .. }));
        // Without an answer, what is known of the reason is told.
        let _ = tokio::time::timeout(FIRST_ANSWER, answered).await;
        // Before the look at how far it came: the list that completes in between wakes.
        known.missed.store(true, Ordering::SeqCst);
        let progress = known.progress.borrow().clone();
        match progress {
            Progress::Synced => {
                let bundles = lock(&known.bundles);
                Ok(bundles.values().filter(|bundle| wanted.covers(bundle)).cloned().collect())
            }
            Progress::NotServed => Err(unavailable(not_served())),
            Progress::Starting { error: Some(error) } => Err(unavailable(error.to_string())),
            Progress::Starting { error: None } => {
                Err(unavailable(format!("the API server did not answer within {FIRST_ANSWER:?}")))
            }
        }
    }
}

fn not_served() -> String {
    format!(
        "the API server serves no {PLURAL}.{GROUP}: it has to be of Kubernetes 1.37 or newer, or (since 1.33) have the \
         feature gate ClusterTrustBundle=true and --runtime-config={GROUP}/v1beta1/{PLURAL}=true"
    )
}

impl Known {
    fn new() -> Self {
        let progress = watch::Sender::new(Progress::Starting { error: None });
        Self { bundles: Mutex::default(), progress, missed: AtomicBool::new(false) }
    }

    fn is_synced(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Synced)
    }

    /// Says why there is no list yet. What was listed once stays.
    fn tell(&self, problem: Progress) {
        self.progress.send_if_modified(|progress| {
            let is_news = !matches!(progress, Progress::Synced);
            if is_news {
                *progress = problem;
            }
            is_news
        });
    }
}

/// Runs until it is aborted.
async fn follow(shared: Arc<Shared>, known: Arc<Known>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
    loop {
        match served(&shared.client).await {
            Ok(resource) => {
                backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
                let sink = BundleSink { shared: shared.clone(), known: known.clone(), listed: BTreeSet::new() };
                let bundles = Api::<Bundle>::all_with(shared.client.clone(), &resource);
                let handle = spawn_watch(bundles, watcher::Config::default(), sink);
                until_another_version(&handle, &shared.client, &resource, &known).await;
            }
            Err(problem) => {
                known.tell(problem);
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// A watch fails for ever when its version is no longer served: after an upgrade of the control plane.
async fn until_another_version(handle: &WatchHandle, client: &kube::Client, watched: &ApiResource, known: &Known) {
    let mut state = handle.state();
    while state.changed().await.is_ok() {
        let error = state.borrow_and_update().error().map(Arc::from);
        let Some(error) = error else { continue };
        known.tell(Progress::Starting { error: Some(error) });
        if served(client).await.is_ok_and(|served| served.version != watched.version) {
            return;
        }
    }
}

/// The newest version that the API server has.
async fn served(client: &kube::Client) -> Result<ApiResource, Progress> {
    for version in VERSIONS {
        match client.list_api_group_resources(&format!("{GROUP}/{version}")).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == PLURAL) => {
                let kind = GroupVersionKind::gvk(GROUP, version, "ClusterTrustBundle");
                return Ok(ApiResource::from_gvk_with_plural(&kind, PLURAL));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Progress::Starting { error: Some(error_text(&error).into()) }),
        }
    }
    Err(Progress::NotServed)
}

fn convert(bundle: Bundle) -> TrustBundle {
    TrustBundle {
        name: bundle.metadata.name.unwrap_or_default(),
        labels: bundle.metadata.labels.unwrap_or_default(),
        signer: bundle.spec.signer_name.filter(|signer| !signer.is_empty()),
        pem: bundle.spec.trust_bundle,
    }
}

/// Takes in what the watch says.
struct BundleSink {
    shared: Arc<Shared>,
    known: Arc<Known>,
    /// Names of a list that still runs.
    listed: BTreeSet<String>,
}

impl BundleSink {
    fn put(&self, bundle: TrustBundle) {
        let bundle = Arc::new(bundle);
        let old = lock(&self.known.bundles).insert(bundle.name.clone(), bundle.clone());
        if old.as_ref() != Some(&bundle) {
            self.wake(|wanted| wanted.covers(&bundle) || old.as_ref().is_some_and(|old| wanted.covers(old)));
        }
    }

    fn remove(&self, name: &str) {
        let old = lock(&self.known.bundles).remove(name);
        if let Some(old) = old {
            self.wake(|wanted| wanted.covers(&old));
        }
    }

    /// Wakes the pods that use what changed. Before the first list nobody has read anything.
    fn wake(&self, concerns: impl Fn(&TrustBundleRef) -> bool) {
        if !self.known.is_synced() {
            return;
        }
        for (uid, refs) in &lock(&self.shared.state).users {
            if refs.iter().any(&concerns) {
                // A closed channel means that the agent is shutting down.
                let _ = self.shared.changed.send(uid.clone());
            }
        }
    }

    fn listed(&mut self) {
        let listed = std::mem::take(&mut self.listed);
        let gone: Vec<String> =
            lock(&self.known.bundles).keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
        if !self.known.is_synced() {
            self.known.progress.send_replace(Progress::Synced);
            if self.known.missed.load(Ordering::SeqCst) {
                self.wake(|_| true);
            }
        }
    }
}

impl WatchSink<Bundle> for BundleSink {
    fn handle(&mut self, event: WatchEvent<Bundle>) {
        match event {
            WatchEvent::Restart => self.listed.clear(),
            WatchEvent::InitApply(bundle) => {
                let bundle = convert(bundle);
                self.listed.insert(bundle.name.clone());
                self.put(bundle);
            }
            WatchEvent::InitDone => self.listed(),
            WatchEvent::Apply(bundle) => self.put(convert(bundle)),
            WatchEvent::Delete(bundle) => self.remove(&convert(bundle).name),
        }
    }
}

#[cfg(test)]
mod tests;
