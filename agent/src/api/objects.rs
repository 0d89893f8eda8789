//! ConfigMaps, Secrets, tokens and Services for the pods of this node, from the API server.
//!
//! Each ConfigMap or Secret that a pod uses is watched by name (the Node authorizer allows exactly that), once for all
//! pods that use it, and the watch ends with the last of them. An immutable object is not watched any more once it is
//! known. The first read waits for the first answer; "not found" is an answer. While the API server is away the last
//! known value is served. Pods hear of changes by UID on a channel.
//!
//! Held objects keep only name, version and data: annotations often carry the whole object once more
//! (`kubectl.kubernetes.io/last-applied-configuration`).

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::watcher;
use kube::{Api, Resource};
use tokio::sync::{mpsc, watch};

use super::pod_certificates::PodCertificates;
use super::service_envs::ServiceEnvs;
use super::tokens::Tokens;
use super::trust_bundles::TrustBundles;
use super::watch::{WatchHandle, error_text, spawn_watch};
use crate::event::Recorder;
use crate::ids::{ObjectKey, PodUid};
use crate::objects::{
    CertificateAsk, ObjectError, ObjectRef, Objects, PodCertificate, ServiceEnv, Token, TokenAsk, TrustBundle,
    TrustBundleRef,
};
use crate::watch::{WatchEvent, WatchSink};

/// How long the first read waits. The pod worker retries; this bounds how long it cannot be deleted meanwhile.
pub(super) const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// A kind of object that pods read.
pub trait PodObject:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
    /// The kind as users write it in messages.
    const KIND: &'static str;
    /// `immutable: true`, KEP-1412.
    fn is_immutable(&self) -> bool;
}

impl PodObject for ConfigMap {
    const KIND: &'static str = "configmap";

    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

impl PodObject for Secret {
    const KIND: &'static str = "secret";

    fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }
}

/// What is known of one object.
enum Known<K> {
    /// The API server has not answered yet.
    Unanswered,
    /// There is no such object.
    Absent,
    /// Its newest version.
    Present(Arc<K>),
}

impl<K> Clone for Known<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Unanswered => Self::Unanswered,
            Self::Absent => Self::Absent,
            Self::Present(object) => Self::Present(object.clone()),
        }
    }
}

struct Watched<K> {
    users: BTreeSet<PodUid>,
    known: watch::Sender<Known<K>>,
    /// A read gave up waiting, so the first answer has to wake the pods.
    missed: bool,
    /// Gone once an immutable object is known.
    watch: Option<WatchHandle>,
}

type Table<K> = Arc<Mutex<HashMap<ObjectKey, Watched<K>>>>;

/// Watches of one kind.
struct Store<K> {
    client: kube::Client,
    table: Table<K>,
    changed: mpsc::UnboundedSender<PodUid>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: PodObject> Store<K> {
    fn new(client: kube::Client, changed: mpsc::UnboundedSender<PodUid>) -> Self {
        Self { client, table: Arc::default(), changed }
    }

    /// Makes `pod` a user of exactly these objects.
    fn set_users(&self, pod: &PodUid, wanted: &BTreeSet<&ObjectKey>) {
        let mut table = lock(&self.table);
        table.retain(|key, watched| {
            if !wanted.contains(key) {
                watched.users.remove(pod);
            }
            !watched.users.is_empty()
        });
        for key in wanted {
            let watched = table.entry((*key).clone()).or_insert_with(|| self.start(key));
            watched.users.insert(pod.clone());
        }
    }

    fn start(&self, key: &ObjectKey) -> Watched<K> {
        let sink = ObjectSink {
            key: key.clone(),
            table: self.table.clone(),
            changed: self.changed.clone(),
            listed: Known::Absent,
        };
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
        let watch = spawn_watch(Api::<K>::namespaced(self.client.clone(), &key.namespace), config, sink);
        Watched {
            users: BTreeSet::new(),
            known: watch::Sender::new(Known::Unanswered),
            missed: false,
            watch: Some(watch),
        }
    }

    async fn read(&self, key: &ObjectKey) -> Result<Arc<K>, ObjectError> {
        let receiver = lock(&self.table).get(key).map(|watched| watched.known.subscribe());
        let Some(mut receiver) = receiver else { return self.get(key).await };
        let answered = receiver.wait_for(|known| !matches!(known, Known::Unanswered));
        let known = match tokio::time::timeout(FIRST_ANSWER, answered).await {
            Ok(Ok(known)) => known.clone(),
            // No answer in time, or the last user left meanwhile.
            Ok(Err(_)) | Err(_) => Known::Unanswered,
        };
        match known {
            Known::Present(object) => Ok(object),
            Known::Absent => Err(ObjectError::NotFound { kind: K::KIND, key: key.clone() }),
            Known::Unanswered => Err(self.missed(key)),
        }
    }

    fn missed(&self, key: &ObjectKey) -> ObjectError {
        let mut table = lock(&self.table);
        let said = table.get_mut(key).and_then(|watched| {
            watched.missed = true;
            watched.watch.as_ref().and_then(|watch| watch.state().borrow().error().map(str::to_owned))
        });
        let reason = said.unwrap_or_else(|| format!("the API server did not answer within {FIRST_ANSWER:?}"));
        ObjectError::Unavailable { kind: K::KIND, key: key.clone(), reason }
    }

    /// For objects that nobody registered.
    async fn get(&self, key: &ObjectKey) -> Result<Arc<K>, ObjectError> {
        let api = Api::<K>::namespaced(self.client.clone(), &key.namespace);
        Ok(Arc::new(slim(get(&api, K::KIND, key).await?)))
    }
}

fn slim<K: Resource>(mut object: K) -> K {
    let meta = object.meta_mut();
    *meta = ObjectMeta {
        name: meta.name.take(),
        namespace: meta.namespace.take(),
        uid: meta.uid.take(),
        resource_version: meta.resource_version.take(),
        ..ObjectMeta::default()
    };
    object
}

/// Takes in what the watch of one object says.
struct ObjectSink<K> {
    key: ObjectKey,
    table: Table<K>,
    changed: mpsc::UnboundedSender<PodUid>,
    listed: Known<K>,
}

impl<K: PodObject> ObjectSink<K> {
    fn learn(&self, new: Known<K>) {
        let mut table = lock(&self.table);
        let Some(watched) = table.get_mut(&self.key) else { return };
        let old = watched.known.borrow().clone();
        let wakes = match (&old, &new) {
            (Known::Unanswered, _) => std::mem::take(&mut watched.missed),
            (Known::Absent, Known::Absent) => false,
            (Known::Present(old), Known::Present(new)) => old.meta().resource_version != new.meta().resource_version,
            (Known::Absent | Known::Present(_), _) => true,
        };
        if let Known::Present(object) = &new
            && object.is_immutable()
        {
            // Ends this very task at its next await; nothing is left to do after this event.
            watched.watch = None;
        }
        watched.known.send_replace(new);
        if wakes {
            for uid in &watched.users {
                // A closed channel means that the agent is shutting down.
                let _ = self.changed.send(uid.clone());
            }
        }
    }
}

impl<K: PodObject> WatchSink<K> for ObjectSink<K> {
    fn handle(&mut self, event: WatchEvent<K>) {
        match event {
            WatchEvent::Restart => self.listed = Known::Absent,
            WatchEvent::InitApply(object) => self.listed = Known::Present(Arc::new(slim(object))),
            WatchEvent::InitDone => {
                let listed = std::mem::replace(&mut self.listed, Known::Absent);
                self.learn(listed);
            }
            WatchEvent::Apply(object) => self.learn(Known::Present(Arc::new(slim(object)))),
            WatchEvent::Delete(_) => self.learn(Known::Absent),
        }
    }
}

/// [`Objects`] of a node that is joined to a control plane.
pub struct JoinedObjects {
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
    trust_bundles: TrustBundles,
    tokens: Tokens,
    certificates: PodCertificates,
    services: Arc<ServiceEnvs>,
    client: kube::Client,
}

impl JoinedObjects {
    /// Objects from this client. Changes are reported on `changed`; `services` is fed by the Service watch, `node` is
    /// our own, and what becomes of certificates is told to `recorder`. Must be used inside a tokio runtime.
    pub fn new(
        client: kube::Client,
        changed: mpsc::UnboundedSender<PodUid>,
        services: Arc<ServiceEnvs>,
        node: watch::Receiver<Option<Arc<Node>>>,
        recorder: Recorder,
    ) -> Self {
        Self {
            config_maps: Store::new(client.clone(), changed.clone()),
            secrets: Store::new(client.clone(), changed.clone()),
            trust_bundles: TrustBundles::new(client.clone(), changed.clone()),
            certificates: PodCertificates::new(client.clone(), changed, recorder, node),
            tokens: Tokens::new(client.clone()),
            services,
            client,
        }
    }
}

impl Objects for JoinedObjects {
    fn register(&self, pod: &PodUid, refs: Vec<ObjectRef>) {
        let (mut config_maps, mut secrets, mut bundles) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for reference in &refs {
            match reference {
                ObjectRef::ConfigMap(key) => config_maps.insert(key),
                ObjectRef::Secret(key) => secrets.insert(key),
                ObjectRef::TrustBundles(wanted) => bundles.insert(wanted.clone()),
            };
        }
        self.config_maps.set_users(pod, &config_maps);
        self.secrets.set_users(pod, &secrets);
        self.trust_bundles.set_user(pod, bundles);
    }

    fn unregister(&self, pod: &PodUid) {
        self.config_maps.set_users(pod, &BTreeSet::new());
        self.secrets.set_users(pod, &BTreeSet::new());
        self.trust_bundles.set_user(pod, BTreeSet::new());
        self.tokens.forget(pod);
        self.certificates.forget(pod);
    }

    fn config_map<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<ConfigMap>, ObjectError>> {
        Box::pin(self.config_maps.read(key))
    }

    fn secret<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<Secret>, ObjectError>> {
        Box::pin(self.secrets.read(key))
    }

    fn token<'a>(&'a self, ask: &'a TokenAsk) -> BoxFuture<'a, Result<Token, ObjectError>> {
        Box::pin(self.tokens.token(ask))
    }

    fn trust_bundles<'a>(
        &'a self,
        wanted: &'a TrustBundleRef,
    ) -> BoxFuture<'a, Result<Vec<Arc<TrustBundle>>, ObjectError>> {
        Box::pin(self.trust_bundles.read(wanted))
    }

    fn pod_certificate<'a>(&'a self, ask: &'a CertificateAsk) -> BoxFuture<'a, Result<PodCertificate, ObjectError>> {
        Box::pin(self.certificates.certificate(ask))
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<ServiceEnv>, ObjectError>> {
        Box::pin(async move { Ok(self.services.of_namespace(namespace).await) })
    }

    /// Asked for at each use: few pods name a class, and a class is looked up once for a sandbox.
    fn runtime_handler<'a>(&'a self, class: &'a str) -> BoxFuture<'a, Result<String, ObjectError>> {
        let api = Api::<RuntimeClass>::all(self.client.clone());
        Box::pin(async move { Ok(get(&api, "runtimeclass", &ObjectKey::new("", class)).await?.handler) })
    }

    fn claim<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<PersistentVolumeClaim, ObjectError>> {
        let api = Api::namespaced(self.client.clone(), &key.namespace);
        Box::pin(async move { get(&api, "persistentvolumeclaims", key).await })
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PersistentVolume, ObjectError>> {
        let api = Api::all(self.client.clone());
        Box::pin(async move { get(&api, "persistentvolumes", &ObjectKey::new("", name)).await })
    }
}

/// For objects that are asked for at each use.
async fn get<K>(api: &Api<K>, kind: &'static str, key: &ObjectKey) -> Result<K, ObjectError>
where
    K: Clone + DeserializeOwned + Debug,
{
    match api.get_opt(&key.name).await {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(ObjectError::NotFound { kind, key: key.clone() }),
        Err(error) => Err(ObjectError::Unavailable { kind, key: key.clone(), reason: error_text(&error) }),
    }
}

#[cfg(test)]
mod tests;
