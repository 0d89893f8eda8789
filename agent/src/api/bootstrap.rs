//! The node's client certificate: the first one with a bootstrap token, each next one before the last expires.
//!
//! ```text
//!  kubeconfig usable? ──yes──► done                       rotate: sleep to 70–90 % of its life
//!     │ no                                                  │
//!     ▼                                                     ▼
//!  bootstrap kubeconfig ─► CertificateSigningRequest ─► approved? ─► store (pem + link) ─► kubeconfig / reload
//! ```
//! Signer `kubernetes.io/kube-apiserver-client-kubelet`, subject `O=system:nodes, CN=system:node:NAME`. The files are
//! kubelet's: `kubelet-client-DATE.pem` with the link `kubelet-client-current.pem` in the certificate directory.
//! The key of a request that waits for approval is kept, so that a restart goes on with the same request.
//! Source: "TLS bootstrapping" of the Kubernetes documentation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher;
use tokio::sync::watch;

use super::client::{ApiClient, ClientError};
use super::kubeconfig::{self, Identity, Kubeconfig};
use super::watch::{Backoff, error_text, jitter, spawn_watch};
use crate::ids::NodeName;
use crate::metrics::METRICS;
use crate::watch::{WatchEvent, WatchSink};

pub mod serving;
pub mod store;

use serving::Names;
use store::Store;

/// What a certificate is for.
#[derive(Clone, Debug)]
enum Purpose {
    /// To be known by the API server.
    Client,
    /// To be known by the callers of our own API, by these names.
    Serving(Names),
}

impl Purpose {
    fn signer(&self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving(_) => "kubernetes.io/kubelet-serving",
        }
    }

    fn usage(&self) -> &'static str {
        match self {
            Self::Client => "client auth",
            Self::Serving(_) => "server auth",
        }
    }

    fn alternative_names(&self) -> Result<Vec<rcgen::SanType>, rcgen::Error> {
        let Self::Serving(names) = self else { return Ok(Vec::new()) };
        let dns = names.dns.iter().map(|name| Ok(rcgen::SanType::DnsName(name.as_str().try_into()?)));
        dns.chain(names.ips.iter().map(|ip| Ok(rcgen::SanType::IpAddress(*ip)))).collect()
    }
}

/// How long one request waits for its approval before another is made, as with kubelet.
const APPROVAL_PATIENCE: Duration = Duration::from_secs(15 * 60);
const BACKOFF_FIRST: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(32);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The bootstrap kubeconfig or the written one cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Keys or requests cannot be made.
    #[error("cannot make a certificate request: {0}")]
    Request(#[from] rcgen::Error),
    /// The API server refused or was away.
    #[error("certificate request: {0}")]
    Api(String),
    /// Somebody or something decided against it.
    #[error("certificate request {name}: {reason}")]
    Refused {
        /// Name of the CertificateSigningRequest.
        name: String,
        /// What its status says, and what to do.
        reason: String,
    },
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// `--kubeconfig`, written when it is missing or of no use any more.
    pub kubeconfig: PathBuf,
    /// `--bootstrap-kubeconfig`.
    pub bootstrap: PathBuf,
    /// `--cert-dir`.
    pub cert_dir: PathBuf,
    /// Name of the node.
    pub node: NodeName,
    /// For the user agent.
    pub version: String,
}

/// Makes sure that the kubeconfig can be used, with as many attempts as it takes. An error is one that waiting does not
/// heal: a bootstrap kubeconfig that cannot be read, a directory that cannot be written.
pub async fn ensure_identity(settings: &Bootstrap) -> Result<(), BootstrapError> {
    if usable(&settings.kubeconfig) {
        return Ok(());
    }
    let config = kubeconfig::load(&settings.bootstrap).map_err(ClientError::from)?;
    let client = ApiClient::new(&config, &settings.version)?;
    let store = Store::new(&settings.cert_dir);
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let error = match bootstrap_once(&client, &config, settings, &store).await {
            Ok(()) => return Ok(()),
            Err(error @ (BootstrapError::File { .. } | BootstrapError::Request(_))) => return Err(error),
            Err(error) => error,
        };
        tracing::warn!(node = %settings.node, %error, "no client certificate yet, will retry");
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn bootstrap_once(
    client: &ApiClient,
    config: &Kubeconfig,
    settings: &Bootstrap,
    store: &Store,
) -> Result<(), BootstrapError> {
    let key = store.pending_key()?;
    let cert = request(client, &settings.node, &key, RequestName::OfKey, &Purpose::Client).await?;
    let pem = store.update(&cert, &key.serialize_pem())?;
    store.drop_pending_key();
    store::write_private(&settings.kubeconfig, store::kubeconfig_text(config, &pem).as_bytes())?;
    tracing::info!(node = %settings.node, kubeconfig = %settings.kubeconfig.display(), "client certificate issued");
    Ok(())
}

/// Renews the certificate for ever; returns at once when the kubeconfig does not use the certificate directory.
pub async fn rotate(client: ApiClient, settings: Bootstrap) {
    let store = Store::new(&settings.cert_dir);
    match kubeconfig::load(&settings.kubeconfig).map(|config| config.identity) {
        Ok(Identity::Certificate { cert: kubeconfig::PemSource::File(path), .. }) if path == store.current() => {}
        Ok(_) | Err(_) => {
            tracing::info!("the kubeconfig does not use {}; certificates are not rotated", store.current().display());
            return;
        }
    }
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let now = jiff::Timestamp::now().as_second();
        let wait = match store.validity() {
            Ok((from, until)) => renew_at(from, until, jitter()) - now,
            Err(error) => {
                tracing::warn!(%error, "the client certificate cannot be read; a new one is requested");
                0
            }
        };
        if wait > 0 {
            // Short sleeps follow a clock that is set, and a machine that was suspended.
            let wait = Duration::from_secs(u64::try_from(wait.min(3600)).unwrap_or(1));
            tokio::time::sleep(wait).await;
            if wait.as_secs() == 3600 {
                continue;
            }
        }
        match renew(&client, &settings).await {
            Ok(()) => backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX),
            Err(error) => {
                METRICS.client_certificate.renew_errors.increment();
                tracing::warn!(%error, "cannot renew the client certificate, will retry");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Renews the certificate now.
pub async fn renew(client: &ApiClient, settings: &Bootstrap) -> Result<(), BootstrapError> {
    let key = rcgen::KeyPair::generate()?;
    let cert = request(client, &settings.node, &key, RequestName::Generated, &Purpose::Client).await?;
    Store::new(&settings.cert_dir).update(&cert, &key.serialize_pem())?;
    client.reload_identity().map_err(|error| BootstrapError::Api(error.to_string()))?;
    tracing::info!(node = %settings.node, "client certificate renewed");
    Ok(())
}

/// When to renew: at 70 to 90 % of the life, spread by `chance` in `0.0..1.0`. Seconds since the epoch.
fn renew_at(from: i64, until: i64, chance: f64) -> i64 {
    let life = (until - from).max(0) as f64;
    from + (life * (0.7 + 0.2 * chance)) as i64
}

/// A kubeconfig is usable when it can be read and its certificate, if it has one, has not expired.
fn usable(path: &Path) -> bool {
    let Ok(config) = kubeconfig::load(path) else { return false };
    let Identity::Certificate { cert, .. } = &config.identity else { return true };
    let valid = cert.read().ok().and_then(|pem| store::validity_of(&pem).ok());
    valid.is_some_and(|(_, until)| jiff::Timestamp::now().as_second() < until)
}

/// How a request is named.
enum RequestName {
    /// By the key: asking again with the same key finds the same request.
    OfKey,
    /// By the server.
    Generated,
}

async fn request(
    client: &ApiClient,
    node: &NodeName,
    key: &rcgen::KeyPair,
    name: RequestName,
    purpose: &Purpose,
) -> Result<Vec<u8>, BootstrapError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.kube());
    let wanted = signing_request(node, key, &name, purpose)?;
    let name = match api.create(&PostParams::default(), &wanted).await {
        Ok(made) => made.metadata.name.unwrap_or_default(),
        Err(kube::Error::Api(status)) if status.code == 409 => wanted.metadata.name.unwrap_or_default(),
        Err(error) => return Err(BootstrapError::Api(error_text(&error))),
    };
    tracing::info!(name, "waiting for the approval of a certificate request");
    let (tx, mut rx) = watch::channel(Decision::Waiting);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let _watch = spawn_watch(api, config, DecisionSink { tx });
    let decided = rx.wait_for(|decision| !matches!(decision, Decision::Waiting));
    let refused = |reason: String| BootstrapError::Refused { name: name.clone(), reason };
    match tokio::time::timeout(APPROVAL_PATIENCE, decided).await {
        Ok(Ok(decision)) => match &*decision {
            Decision::Issued(cert) => Ok(cert.clone()),
            Decision::Refused(reason) => Err(refused(reason.clone())),
            Decision::Waiting => Err(refused("not decided".to_owned())),
        },
        Ok(Err(_)) | Err(_) => Err(refused(format!(
            "not approved within {} minutes; approve it with `kubectl certificate approve {name}`",
            APPROVAL_PATIENCE.as_secs() / 60
        ))),
    }
}

fn signing_request(
    node: &NodeName,
    key: &rcgen::KeyPair,
    name: &RequestName,
    purpose: &Purpose,
) -> Result<CertificateSigningRequest, rcgen::Error> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names = purpose.alternative_names()?;
    let pem = params.serialize_request(key)?.pem()?;
    let metadata = match name {
        RequestName::OfKey => {
            ObjectMeta { name: Some(format!("node-csr-{}", store::key_digest(key))), ..ObjectMeta::default() }
        }
        RequestName::Generated => ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
    };
    Ok(CertificateSigningRequest {
        metadata,
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: purpose.signer().to_owned(),
            // An ECDSA key encrypts nothing, so "key encipherment" is not asked for.
            usages: Some(vec!["digital signature".to_owned(), purpose.usage().to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// What has become of a request.
#[derive(Debug, PartialEq)]
enum Decision {
    Waiting,
    Issued(Vec<u8>),
    Refused(String),
}

fn decide(status: &CertificateSigningRequestStatus) -> Decision {
    for condition in status.conditions.iter().flatten() {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") && condition.status != "False" {
            return Decision::Refused(format!(
                "{}: {}: {}; delete it and look at the approver",
                condition.type_,
                condition.reason.as_deref().unwrap_or_default(),
                condition.message.as_deref().unwrap_or_default()
            ));
        }
    }
    match &status.certificate {
        Some(cert) if !cert.0.is_empty() => Decision::Issued(cert.0.clone()),
        Some(_) | None => Decision::Waiting,
    }
}

struct DecisionSink {
    tx: watch::Sender<Decision>,
}

impl WatchSink<CertificateSigningRequest> for DecisionSink {
    fn handle(&mut self, event: WatchEvent<CertificateSigningRequest>) {
        match event {
            WatchEvent::Restart | WatchEvent::InitDone => {}
            WatchEvent::InitApply(request) | WatchEvent::Apply(request) => {
                self.tx.send_replace(request.status.as_ref().map_or(Decision::Waiting, decide));
            }
            WatchEvent::Delete(_) => {
                self.tx.send_replace(Decision::Refused("it was deleted".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_renewed_between_seven_and_nine_tenths_of_their_life() {
        assert_eq!(renew_at(1000, 2000, 0.0), 1700);
        assert_eq!(renew_at(1000, 2000, 0.999), 1899);
        assert_eq!(renew_at(2000, 1000, 0.5), 2000, "nonsense is renewed at once");
    }

    #[test]
    fn a_denied_request_says_why() {
        let status = |value: serde_json::Value| serde_json::from_value(value).expect("status");
        let denied = serde_json::json!({ "conditions": [{ "type": "Denied", "status": "True", "reason": "No", "message": "because" }] });
        assert!(matches!(decide(&status(denied)), Decision::Refused(text) if text.starts_with("Denied: No: because")));
        let approved = serde_json::json!({ "conditions": [{ "type": "Approved", "status": "True" }] });
        assert_eq!(decide(&status(approved)), Decision::Waiting, "approved is not issued");
        let issued = serde_json::json!({ "certificate": "Q0VSVA==" });
        assert_eq!(decide(&status(issued)), Decision::Issued(b"CERT".to_vec()));
    }

    #[test]
    fn a_serving_certificate_is_asked_for_with_the_nodes_names() {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut names = Names::default();
        names.dns.insert("n1".to_owned());
        names.ips.insert([10, 0, 0, 1].into());
        let node = NodeName::new("n1");
        let made = signing_request(&node, &key, &RequestName::Generated, &Purpose::Serving(names)).expect("request");
        assert_eq!(made.spec.signer_name, "kubernetes.io/kubelet-serving");
        assert_eq!(made.spec.usages, Some(vec!["digital signature".to_owned(), "server auth".to_owned()]));
        let (_, pem) = x509_parser::pem::parse_x509_pem(&made.spec.request.0).expect("pem");
        let text = String::from_utf8_lossy(&pem.contents);
        assert!(text.contains("system:node:n1") && text.contains("system:nodes"));
        assert!(pem.contents.windows(6).any(|window| window == [0x87, 4, 10, 0, 0, 1]), "no IP address");
        assert!(pem.contents.windows(4).any(|window| window == [0x82, 2, b'n', b'1']), "no DNS name");
    }

    #[test]
    fn a_request_is_named_by_its_key_so_that_a_restart_finds_it() {
        let key = rcgen::KeyPair::generate().expect("key");
        let node = NodeName::new("n1");
        let name =
            |key| signing_request(&node, key, &RequestName::OfKey, &Purpose::Client).expect("request").metadata.name;
        assert_eq!(name(&key), name(&key));
        assert_ne!(name(&key), name(&rcgen::KeyPair::generate().expect("key")));
    }
}
