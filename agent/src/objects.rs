//! What a pod may need besides its own spec: ConfigMaps, Secrets, tokens, trust bundles, certificates, claims and the Services of
//! its namespace.
//!
//! The pod domain sees only [`Objects`]. Joined to a control plane it is answered by watches of single objects
//! (`api::objects`); alone it is answered from the manifest directory (`source::manifest_dir`).

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};

use crate::ids::{ObjectKey, PodUid};

/// An object that a pod's environment or volumes refer to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectRef {
    /// A ConfigMap.
    ConfigMap(ObjectKey),
    /// A Secret.
    Secret(ObjectKey),
    /// ClusterTrustBundles.
    TrustBundles(TrustBundleRef),
}

/// Which ClusterTrustBundles a projected source is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrustBundleRef {
    /// The one of this name.
    Name(String),
    /// All of a signer; the source's label selector chooses among them.
    Signer(String),
}

impl TrustBundleRef {
    /// Whether a bundle is one of them.
    pub fn covers(&self, bundle: &TrustBundle) -> bool {
        match self {
            Self::Name(name) => bundle.name == *name,
            Self::Signer(signer) => bundle.signer.as_ref() == Some(signer),
        }
    }
}

/// What pods use of a ClusterTrustBundle (`certificates.k8s.io`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Name of the object.
    pub name: String,
    /// Labels of the object.
    pub labels: BTreeMap<String, String>,
    /// `spec.signerName`; not every bundle belongs to a signer.
    pub signer: Option<String>,
    /// `spec.trustBundle`: PEM blocks, and whatever their author wrote between them.
    pub pem: String,
}

/// Why an object could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The server says that there is no such object.
    #[error("{kind} {key} not found")]
    NotFound {
        /// The kind as users write it, such as `configmap`.
        kind: &'static str,
        /// The object that was asked for.
        key: ObjectKey,
    },
    /// The source cannot answer: refused, away, or not possible when running alone.
    #[error("{kind} {key}: {reason}")]
    Unavailable {
        /// The kind as users write it, such as `serviceaccount token`.
        kind: &'static str,
        /// The object that was asked for.
        key: ObjectKey,
        /// What the source said.
        reason: String,
    },
    /// The answer is no, and asking again does not change it.
    #[error("{kind} {key}: {reason}")]
    Refused {
        /// The kind as users write it, such as `podcertificaterequest`.
        kind: &'static str,
        /// What it was asked for.
        key: ObjectKey,
        /// Who refused, and why.
        reason: String,
    },
}

/// A request for a service account token that is bound to a pod.
///
/// Source: TokenRequest of `authentication.k8s.io/v1`, KEP-1205.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenAsk {
    /// Namespace of the pod and name of its service account.
    pub service_account: ObjectKey,
    /// Name of the pod that the token is bound to.
    pub pod_name: String,
    /// UID of the pod that the token is bound to.
    pub pod_uid: PodUid,
    /// Audience; empty means the API server's own.
    pub audience: String,
    /// Wanted life in seconds.
    pub expiration_seconds: i64,
}

/// A service account token. It has no `Debug`, so that it cannot reach a log.
#[derive(Clone)]
pub struct Token {
    /// The bearer token.
    pub token: String,
    /// When it stops being valid, in seconds since the epoch.
    pub expires_at: i64,
    /// When it was issued as this node saw it, in seconds since the epoch.
    pub issued_at: i64,
}

/// Kinds of keys of pod certificates that this agent makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// `ECDSAP256`.
    EcdsaP256,
    /// `ECDSAP384`.
    EcdsaP384,
    /// `ED25519`.
    Ed25519,
}

impl KeyType {
    /// The kind by its name in `podCertificate.keyType`. `None` for unknown ones, and for `RSA3072`, `RSA4096` and
    /// `ECDSAP521`: ring, our only crypto, cannot make such keys.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ECDSAP256" => Some(Self::EcdsaP256),
            "ECDSAP384" => Some(Self::EcdsaP384),
            "ED25519" => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// A `podCertificate` source of a pod's volume (KEP-4317).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAsk {
    /// The pod.
    pub pod: ObjectKey,
    /// UID of the pod.
    pub pod_uid: PodUid,
    /// Its service account.
    pub service_account: String,
    /// Name of the volume.
    pub volume: String,
    /// Index of the source in the volume.
    pub source: usize,
    /// `signerName`.
    pub signer: String,
    /// `keyType`.
    pub key_type: KeyType,
    /// `maxExpirationSeconds`; the API server has a default.
    pub max_expiration_seconds: Option<i32>,
    /// `userAnnotations`.
    pub annotations: BTreeMap<String, String>,
}

/// A key and what was issued to it. It has no `Debug`, so that it cannot reach a log.
#[derive(Clone)]
pub struct PodCertificate {
    /// The key in PKCS#8 (DER).
    pub key: Arc<[u8]>,
    /// The chain, leaf first: PEM as its signer wrote it.
    pub chain: Arc<str>,
    /// When to ask again, in seconds since the epoch.
    pub look_again_at: Option<i64>,
}

/// A Service as the environment variables of a pod describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEnv {
    /// Name of the Service.
    pub name: String,
    /// The ClusterIP that `*_SERVICE_HOST` names.
    pub cluster_ip: String,
    /// Ports in the order of the spec.
    pub ports: Vec<ServiceEnvPort>,
}

/// One port of a [`ServiceEnv`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEnvPort {
    /// Port name; empty when the Service has only one and gave it none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port of the ClusterIP.
    pub port: u16,
}

/// Source of the objects that pods refer to.
pub trait Objects: Send + Sync + 'static {
    /// Says which objects a pod uses; the source keeps them current and reports each change by the pod's UID
    /// on the channel that it was made with. Replaces an earlier call for the same pod.
    fn register(&self, pod: &PodUid, refs: Vec<ObjectRef>);

    /// Ends the interest of a pod.
    fn unregister(&self, pod: &PodUid);

    /// The current ConfigMap.
    fn config_map<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<ConfigMap>, ObjectError>>;

    /// The current Secret.
    fn secret<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<Secret>, ObjectError>>;

    /// A token for a pod; sources cache by the whole request and renew at 80 % of its life.
    fn token<'a>(&'a self, ask: &'a TokenAsk) -> BoxFuture<'a, Result<Token, ObjectError>>;

    /// The ClusterTrustBundles that a reference covers, in order of their names: none, if there is none.
    fn trust_bundles<'a>(
        &'a self,
        wanted: &'a TrustBundleRef,
    ) -> BoxFuture<'a, Result<Vec<Arc<TrustBundle>>, ObjectError>>;

    /// The certificate of a source; asks its signer if it is time to.
    fn pod_certificate<'a>(&'a self, ask: &'a CertificateAsk) -> BoxFuture<'a, Result<PodCertificate, ObjectError>>;

    /// Services that the environment of a pod in `namespace` may name: those of the namespace, and `default/kubernetes`
    /// (named `kubernetes`). Waits until Services have been listed once.
    fn services<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<ServiceEnv>, ObjectError>>;

    /// The runtime's handler of a RuntimeClass (`handler` of the object; KEP-585).
    fn runtime_handler<'a>(&'a self, class: &'a str) -> BoxFuture<'a, Result<String, ObjectError>>;

    /// A claim as it is now. Asked for when a volume is set up, never watched: the Node authorizer lets a node get the
    /// claims of its pods, and a bound claim stays bound.
    fn claim<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<PersistentVolumeClaim, ObjectError>>;

    /// The PersistentVolume that a claim of a pod here is bound to.
    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PersistentVolume, ObjectError>>;
}
