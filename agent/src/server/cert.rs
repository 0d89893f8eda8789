//! The TLS side of the kubelet API: our certificate, and whom a client certificate makes the caller.
//!
//! Certificate and key come from `tlsCertFile` and `tlsPrivateKeyFile`; without them a self-signed pair is made once and kept
//! as kubelet keeps it, `kubelet.crt` and `kubelet.key` in the certificate directory. Clients that show a certificate must show one
//! of `clientCAFile`; those that show none are asked for a token later.
//!
//! With `serverTLSBootstrap` the pair is what the cluster signed (`api::bootstrap::serving`); until it did, no handshake
//! succeeds.
//!
//! Files may be replaced while the agent runs: a handshake takes what is on disk, looked at no oftener than every ten seconds.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::review::User;
use crate::api::bootstrap::store::write_private;
use crate::api::tls::{self, TlsError};
use crate::config::kubelet::{TlsOptions, TlsVersion};
use crate::metrics::METRICS;

/// How often files are looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Where the material is.
#[derive(Clone, Debug)]
pub struct Files {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Authorities of client certificates, PEM.
    pub client_ca: Option<PathBuf>,
    /// Whether certificate and key may come later.
    pub is_requested: bool,
    /// Versions and cipher suites.
    pub options: TlsOptions,
}

/// Why the API cannot be served with these files.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: {source}")]
    Material {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TlsError,
    },
    /// rustls refuses the authorities.
    #[error("{path}: {reason}; expected PEM certificates of authorities")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A self-signed certificate cannot be made.
    #[error("cannot make a self-signed certificate for {node}: {source}")]
    SelfSigned {
        /// The node.
        node: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// Makes `kubelet.crt` and `kubelet.key` in `dir` unless both are there; answers their paths.
pub fn ensure_self_signed(dir: &Path, node: &str, addresses: &[IpAddr]) -> Result<(PathBuf, PathBuf), CertError> {
    let (cert, key) = (dir.join("kubelet.crt"), dir.join("kubelet.key"));
    if cert.exists() && key.exists() {
        return Ok((cert, key));
    }
    let names = std::iter::once(node.to_owned()).chain(addresses.iter().map(ToString::to_string));
    let made = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>())
        .map_err(|source| CertError::SelfSigned { node: node.to_owned(), source })?;
    std::fs::create_dir_all(dir).map_err(|source| CertError::File { path: dir.to_owned(), source })?;
    let write = |path: &Path, text: String| {
        write_private(path, text.as_bytes())
            .map_err(|error| CertError::File { path: path.to_owned(), source: std::io::Error::other(error) })
    };
    // The key first: a certificate without its key would be taken for a finished pair.
    write(&key, made.signing_key.serialize_pem())?;
    write(&cert, made.cert.pem())?;
    Ok((cert, key))
}

/// The configuration of handshakes, made again when a file changed.
pub struct Acceptor {
    files: Files,
    current: Mutex<Current>,
}

struct Current {
    /// `None` until there is a certificate.
    config: Option<Arc<ServerConfig>>,
    stamps: Vec<Option<SystemTime>>,
    looked: Instant,
}

impl Acceptor {
    /// Reads the files; fails when they are of no use.
    pub fn new(files: Files) -> Result<Self, CertError> {
        let stamps = files.stamps();
        let config = match files.load() {
            Err(CertError::File { path, source })
                if files.is_requested && path == files.cert && source.kind() == std::io::ErrorKind::NotFound =>
            {
                None
            }
            loaded => Some(loaded?),
        };
        Ok(Self { files, current: Mutex::new(Current { config, stamps, looked: Instant::now() }) })
    }

    /// What the next handshake uses; `None` until there is a certificate. New files that cannot be used are reported and the
    /// last good ones stay.
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK_AGAIN || current.config.is_none() {
            current.looked = Instant::now();
            let stamps = self.files.stamps();
            if stamps != current.stamps {
                match self.files.load() {
                    Ok(config) => current.config = Some(config),
                    Err(error) => tracing::error!(%error, "kubelet API keeps the certificates that it has"),
                }
                current.stamps = stamps;
            }
        }
        current.config.clone()
    }
}

impl Files {
    fn stamps(&self) -> Vec<Option<SystemTime>> {
        let paths = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let stamp = |path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
        paths.into_iter().flatten().map(stamp).collect()
    }

    fn load(&self) -> Result<Arc<ServerConfig>, CertError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| CertError::File { path: path.to_owned(), source });
        let key = tls::certified_key(&read(&self.cert)?, &read(&self.key)?)
            .map_err(|source| CertError::Material { path: self.cert.clone(), source })?;
        METRICS.server_certificate.expires.set(tls::expiry(&key));
        let builder = ServerConfig::builder_with_provider(provider(&self.options));
        let builder = builder
            .with_protocol_versions(versions(&self.options))
            .map_err(|error| CertError::Material { path: self.cert.clone(), source: error.into() })?;
        let builder = match &self.client_ca {
            Some(path) => {
                let roots = roots(path, &read(path)?)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
                let verifier = verifier
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| CertError::Authorities { path: path.clone(), reason: error.to_string() })?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

static ONLY_13: [&rustls::SupportedProtocolVersion; 1] = [&rustls::version::TLS13];

/// Source of the names: `k8s.io/component-base/cli/flag`.
fn versions(options: &TlsOptions) -> &'static [&'static rustls::SupportedProtocolVersion] {
    match options.min_version {
        TlsVersion::V12 => rustls::ALL_VERSIONS,
        TlsVersion::V13 => &ONLY_13,
    }
}

/// The crypto provider with the suites and groups that may be used. As with Go, suites of TLS 1.3 are not chosen.
fn provider(options: &TlsOptions) -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = tls::provider().as_ref().clone();
    if let Some(wanted) = &options.cipher_suites {
        provider
            .cipher_suites
            .retain(|suite| suite.tls13().is_some() || wanted.iter().any(|name| suite.suite().as_str() == Some(name)));
    }
    if let Some(wanted) = &options.groups {
        provider.kx_groups.retain(|group| wanted.contains(&u16::from(group.name())));
    }
    Arc::new(provider)
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, CertError> {
    let material = |source| CertError::Material { path: path.to_owned(), source };
    let mut store = RootCertStore::empty();
    for cert in tls::certificates("client CA", pem).map_err(material)? {
        store.add(cert).map_err(|error| CertError::Authorities { path: path.to_owned(), reason: error.to_string() })?;
    }
    Ok(store)
}

/// The user that a client certificate names: its common name, with the organizations as groups. `None` without a name.
/// Source: "X509 client certificates" in the documentation of Kubernetes.
pub fn user_of(cert: &CertificateDer<'_>) -> Option<User> {
    let (_, cert) = x509_parser::parse_x509_certificate(cert).ok()?;
    let subject = cert.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| Some(group.as_str().ok()?.to_owned())).collect();
    Some(User::new(name, groups)).filter(|user| !user.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(cert: PathBuf, key: PathBuf, client_ca: Option<PathBuf>) -> Files {
        Files { cert, key, client_ca, is_requested: false, options: TlsOptions::default() }
    }

    #[test]
    fn a_self_signed_pair_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure_self_signed(dir.path(), "node-1", &[IpAddr::from([10, 0, 0, 1])]).unwrap();
        let text = std::fs::read(&first.0).unwrap();
        assert_eq!(ensure_self_signed(dir.path(), "node-1", &[]).unwrap(), first);
        assert_eq!(std::fs::read(&first.0).unwrap(), text);
        Acceptor::new(files(first.0, first.1, None)).unwrap();
    }

    #[test]
    fn the_name_is_the_common_name_and_groups_are_organizations() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        params.distinguished_name.push(rcgen::DnType::CommonName, "kube-apiserver-kubelet-client");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        let wanted = User::new("kube-apiserver-kubelet-client".into(), vec!["system:masters".into()]);
        assert_eq!(user_of(cert.der()), Some(wanted));
    }

    #[test]
    fn a_client_ca_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = ensure_self_signed(dir.path(), "n", &[]).unwrap();
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, "nothing").unwrap();
        let error = Acceptor::new(files(cert, key, Some(ca.clone()))).err().unwrap();
        assert!(error.to_string().starts_with(&ca.display().to_string()), "{error}");
    }

    #[test]
    fn a_requested_certificate_may_come_later_and_is_taken_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pair = dir.path().join("kubelet-server-current.pem");
        let files = Files { is_requested: true, ..files(pair.clone(), pair.clone(), None) };
        assert!(
            Acceptor::new(Files { is_requested: false, ..files.clone() }).is_err(),
            "a file that is named must be there"
        );
        let acceptor = Acceptor::new(files).unwrap();
        assert!(acceptor.config().is_none());
        let made = rcgen::generate_simple_self_signed(vec!["n1".to_owned()]).unwrap();
        std::fs::write(&pair, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
        assert!(acceptor.config().is_some());
    }

    #[test]
    fn files_that_change_are_used_and_nonsense_leaves_the_last_good_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = ensure_self_signed(dir.path(), "n", &[]).unwrap();
        let ca = dir.path().join("ca.crt");
        std::fs::copy(&cert, &ca).unwrap();
        let acceptor = Acceptor::new(files(cert.clone(), key.clone(), Some(ca.clone()))).unwrap();
        let look = || {
            let mut current = acceptor.current.lock().unwrap();
            current.looked = current.looked.checked_sub(LOOK_AGAIN).unwrap();
            // A clock of files that is coarser than this test must not hide a change.
            current.stamps.iter_mut().for_each(|stamp| *stamp = None);
            drop(current);
            acceptor.config().unwrap()
        };
        let first = look();
        let made = rcgen::generate_simple_self_signed(vec!["n".to_owned()]).unwrap();
        std::fs::write(&cert, made.cert.pem()).unwrap();
        assert!(Arc::ptr_eq(&first, &look()), "a certificate without its key is not used");
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let second = look();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::write(&ca, "nothing").unwrap();
        assert!(Arc::ptr_eq(&second, &look()), "authorities that cannot be read let nobody in or out");
    }

    #[test]
    fn versions_and_suites_are_those_of_the_configuration() {
        let suites = |options: &TlsOptions| provider(options).cipher_suites.len();
        let all = TlsOptions::default();
        let few = TlsOptions {
            min_version: TlsVersion::V13,
            cipher_suites: Some(vec!["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]),
            groups: Some(vec![24, 29]),
        };
        let groups = |options: &TlsOptions| provider(options).kx_groups.len();
        assert_eq!((groups(&all), groups(&few)), (3, 2));
        assert_eq!((suites(&all), suites(&few)), (9, 4));
        assert_eq!((versions(&all).len(), versions(&few).len()), (2, 1));
    }
}
