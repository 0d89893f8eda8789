//! ConfigMaps, Secrets and Services for pods of a node that runs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, Service};
use tokio::sync::{mpsc, watch};

use crate::ids::{ObjectKey, PodUid};
use crate::objects::{
    CertificateAsk, ObjectError, ObjectRef, Objects, PodCertificate, ServiceEnv, ServiceEnvPort, Token, TokenAsk,
    TrustBundle, TrustBundleRef,
};

#[derive(Default)]
struct Inner {
    config_maps: BTreeMap<ObjectKey, Arc<ConfigMap>>,
    secrets: BTreeMap<ObjectKey, Arc<Secret>>,
    services: Vec<(Arc<str>, ServiceEnv)>,
    interest: BTreeMap<PodUid, BTreeSet<ObjectRef>>,
}

/// Answers [`Objects`] from the manifest directory.
///
/// Questions wait until the directory has been read once (Services: until their addresses are allocated once), so
/// that a pod of a restarted agent never sees a half-read directory.
pub struct AloneObjects {
    inner: Mutex<Inner>,
    read: watch::Sender<bool>,
    allocated: watch::Sender<bool>,
    changed: mpsc::UnboundedSender<PodUid>,
}

// Not derived: there are Secrets inside.
impl std::fmt::Debug for AloneObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AloneObjects")
    }
}

impl AloneObjects {
    /// Reports on `changed` the UID of each pod one of whose objects changed.
    pub fn new(changed: mpsc::UnboundedSender<PodUid>) -> Self {
        Self { inner: Mutex::default(), read: watch::Sender::new(false), allocated: watch::Sender::new(false), changed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics under this lock, and its maps are valid after any statement.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces all ConfigMaps and Secrets, and wakes the pods that use a changed one.
    pub(super) fn replace(
        &self,
        config_maps: BTreeMap<ObjectKey, Arc<ConfigMap>>,
        secrets: BTreeMap<ObjectKey, Arc<Secret>>,
    ) {
        let mut inner = self.lock();
        let woken = inner.interest.iter().filter(|(_, refs)| {
            refs.iter().any(|r| match r {
                ObjectRef::ConfigMap(key) => inner.config_maps.get(key) != config_maps.get(key),
                ObjectRef::Secret(key) => inner.secrets.get(key) != secrets.get(key),
                ObjectRef::TrustBundles(_) => false,
            })
        });
        let woken = woken.map(|(uid, _)| uid.clone()).collect::<Vec<_>>();
        inner.config_maps = config_maps;
        inner.secrets = secrets;
        drop(inner);
        self.read.send_replace(true);
        for uid in woken {
            // Without a listener there is nobody to wake.
            let _ = self.changed.send(uid);
        }
    }

    /// Replaces all Services, with the addresses that [`crate::alone`] allocated.
    pub fn set_services<'a>(&self, services: impl Iterator<Item = &'a Service>) {
        let list = services.filter_map(service_env).collect();
        self.lock().services = list;
        self.allocated.send_replace(true);
    }

    async fn wait(flag: &watch::Sender<bool>) {
        // The sender is borrowed from self, so it cannot close.
        let _ = flag.subscribe().wait_for(|ready| *ready).await;
    }
}

/// `None` for Services without a ClusterIP: they have no environment variables.
fn service_env(service: &Service) -> Option<(Arc<str>, ServiceEnv)> {
    let spec = service.spec.as_ref()?;
    let cluster_ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None")?;
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        Some(ServiceEnvPort {
            name: p.name.clone().unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: u16::try_from(p.port).ok()?,
        })
    });
    let name = service.metadata.name.clone()?;
    let namespace = service.metadata.namespace.as_deref().unwrap_or("default");
    Some((Arc::from(namespace), ServiceEnv { name, cluster_ip, ports: ports.collect() }))
}

impl Objects for AloneObjects {
    fn register(&self, pod: &PodUid, refs: Vec<ObjectRef>) {
        self.lock().interest.insert(pod.clone(), refs.into_iter().collect());
    }

    fn unregister(&self, pod: &PodUid) {
        self.lock().interest.remove(pod);
    }

    fn config_map<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<ConfigMap>, ObjectError>> {
        Box::pin(async move {
            Self::wait(&self.read).await;
            let found = self.lock().config_maps.get(key).cloned();
            found.ok_or_else(|| ObjectError::NotFound { kind: "configmap", key: key.clone() })
        })
    }

    fn secret<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<Secret>, ObjectError>> {
        Box::pin(async move {
            Self::wait(&self.read).await;
            let found = self.lock().secrets.get(key).cloned();
            found.ok_or_else(|| ObjectError::NotFound { kind: "secret", key: key.clone() })
        })
    }

    fn token<'a>(&'a self, ask: &'a TokenAsk) -> BoxFuture<'a, Result<Token, ObjectError>> {
        Box::pin(async move {
            Err(ObjectError::Unavailable {
                kind: "serviceaccount token",
                key: ask.service_account.clone(),
                reason: "this node runs alone, without a control plane that could issue tokens; remove the \
                         serviceAccountToken source from the volume, or join the node to a cluster"
                    .to_owned(),
            })
        })
    }

    fn trust_bundles<'a>(
        &'a self,
        wanted: &'a TrustBundleRef,
    ) -> BoxFuture<'a, Result<Vec<Arc<TrustBundle>>, ObjectError>> {
        let (TrustBundleRef::Name(name) | TrustBundleRef::Signer(name)) = wanted;
        let reason = "this node runs alone, without a control plane that has ClusterTrustBundles; use a ConfigMap, or \
                      join the node to a cluster"
            .to_owned();
        let error = ObjectError::Unavailable { kind: "clustertrustbundles", key: ObjectKey::new("", name), reason };
        Box::pin(async move { Err(error) })
    }

    fn pod_certificate<'a>(&'a self, ask: &'a CertificateAsk) -> BoxFuture<'a, Result<PodCertificate, ObjectError>> {
        let reason =
            "this node runs alone, without a control plane that has signers; use a Secret, or join the node to a \
                      cluster"
                .to_owned();
        let error = ObjectError::Refused { kind: "podcertificaterequest", key: ask.pod.clone(), reason };
        Box::pin(async move { Err(error) })
    }

    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<ServiceEnv>, ObjectError>> {
        Box::pin(async move {
            Self::wait(&self.allocated).await;
            let inner = self.lock();
            Ok(inner.services.iter().filter(|(ns, _)| &**ns == namespace).map(|(_, s)| s.clone()).collect())
        })
    }

    fn claim<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<PersistentVolumeClaim, ObjectError>> {
        let reason = "this node runs alone, without a control plane that binds claims; use a hostPath volume, or join \
                      the node to a cluster"
            .to_owned();
        let error = ObjectError::Unavailable { kind: "persistentvolumeclaims", key: key.clone(), reason };
        Box::pin(async move { Err(error) })
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PersistentVolume, ObjectError>> {
        let key = ObjectKey::new("", name);
        Box::pin(async move { Err(ObjectError::NotFound { kind: "persistentvolumes", key }) })
    }

    fn runtime_handler<'a>(&'a self, class: &'a str) -> BoxFuture<'a, Result<String, ObjectError>> {
        let key = ObjectKey::new("", class);
        Box::pin(async move { Err(ObjectError::NotFound { kind: "runtimeclass", key }) })
    }
}
