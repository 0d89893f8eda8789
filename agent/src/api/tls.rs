//! The TLS side of the client: whom it trusts, and a client certificate that can be replaced while it runs.
//!
//! rustls on ring. A certificate of X.509 version 1 is refused by rustls (`UnsupportedCertVersion`); clusters that sign
//! such certificates exist, so the error is passed on in full.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::metrics::METRICS;

/// Where distributions keep the bundle of public authorities: Debian, Fedora, openSUSE, Alpine.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why TLS cannot be set up from the given material.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM text does not hold what it should.
    #[error("{what}: {reason}")]
    Material {
        /// `certificate authority`, `client certificate` or `client key`.
        what: &'static str,
        /// What was expected and found.
        reason: String,
    },
    /// rustls refuses the combination.
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// The client certificate in use; handshakes from now on take the newest.
#[derive(Debug, Default)]
pub struct CertSlot {
    current: ArcSwapOption<CertifiedKey>,
}

impl CertSlot {
    /// Replaces the certificate. Connections that exist keep the old one until they are dropped.
    pub fn set(&self, cert: Arc<CertifiedKey>) {
        METRICS.client_certificate.expires.set(expiry(&cert));
        self.current.store(Some(cert));
    }
}

impl ResolvesClientCert for CertSlot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }

    fn has_certs(&self) -> bool {
        self.current.load().is_some()
    }
}

/// When a certificate ends, in seconds since the epoch; 0 when it cannot be read.
pub fn expiry(key: &CertifiedKey) -> i64 {
    let parsed = key.cert.first().and_then(|cert| x509_parser::parse_x509_certificate(cert).ok());
    parsed.map_or(0, |(_, cert)| cert.validity().not_after.timestamp())
}

/// The one crypto provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a certificate chain with its private key.
pub fn certified_key(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("client certificate", cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem)
        .map_err(|error| TlsError::Material { what: "client key", reason: error.to_string() })?;
    let key = CertifiedKey::from_der(chain, key, &provider())?;
    Ok(Arc::new(key))
}

/// The certificates of a PEM text, at least one; `what` names them in errors.
pub fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Material { what, reason: error.to_string() })?;
    match chain.is_empty() {
        true => Err(TlsError::Material { what, reason: "no CERTIFICATE block in the PEM text".to_owned() }),
        false => Ok(chain),
    }
}

/// Whom the client trusts to be the API server.
pub enum Trust<'a> {
    /// The authorities in this PEM text.
    Authorities(&'a [u8]),
    /// The authorities of the system.
    System,
    /// Anybody: `insecure-skip-tls-verify`.
    Anybody,
}

/// A rustls configuration with our certificate slot. ALPN is left to the connector.
pub fn client_config(trust: Trust<'_>, slot: Arc<CertSlot>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Authorities(pem) => builder.with_root_certificates(roots(certificates("certificate authority", pem)?)?),
        Trust::System => builder.with_root_certificates(roots(system_authorities()?)?),
        Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAnybody(provider()))),
    };
    let mut config = builder.with_client_cert_resolver(slot);
    // Tickets hold about 1 KiB each and save nothing for one long-lived connection; they would also resume a session
    // that was authenticated with the certificate before rotation.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn roots(certs: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in certs {
        store
            .add(cert)
            .map_err(|error| TlsError::Material { what: "certificate authority", reason: error.to_string() })?;
    }
    Ok(store)
}

fn system_authorities() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    for path in SYSTEM_BUNDLES {
        if let Ok(pem) = std::fs::read(path) {
            return certificates("certificate authority", &pem);
        }
    }
    Err(TlsError::Material {
        what: "certificate authority",
        reason: format!(
            "the kubeconfig names none and the system has none of {SYSTEM_BUNDLES:?}; \
             set certificate-authority-data of the cluster"
        ),
    })
}

/// Accepts any server; signatures are still checked, so that the peer holds the key of what it shows.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
