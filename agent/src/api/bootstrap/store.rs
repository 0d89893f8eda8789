//! Client certificates on disk, as kubelet keeps them: `kubelet-client-2026-01-31-10-00-00.pem` with certificate and
//! key, and the link `kubelet-client-current.pem`, which is replaced in one step.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};

use super::BootstrapError;
use crate::api::kubeconfig::{Kubeconfig, PemSource};

/// The certificate directory.
pub(super) struct Store {
    dir: PathBuf,
    /// What file names begin with.
    prefix: &'static str,
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> BootstrapError {
    let path = path.to_owned();
    |source| BootstrapError::File { path, source }
}

impl Store {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), prefix: "kubelet-client" }
    }

    /// The serving certificate's part of the directory.
    pub(super) fn serving(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), prefix: "kubelet-server" }
    }

    /// The link that the kubeconfig names, or that the API is served with.
    pub(super) fn current(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.prefix))
    }

    fn pending(&self) -> PathBuf {
        self.dir.join("kubelet-client.key.tmp")
    }

    /// The key of the request that is waiting for approval; made when there is none.
    pub(super) fn pending_key(&self) -> Result<rcgen::KeyPair, BootstrapError> {
        let path = self.pending();
        if let Some(key) = std::fs::read_to_string(&path).ok().and_then(|pem| rcgen::KeyPair::from_pem(&pem).ok()) {
            return Ok(key);
        }
        let key = rcgen::KeyPair::generate()?;
        std::fs::create_dir_all(&self.dir).map_err(file_error(&self.dir))?;
        write_private(&path, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    /// A key that has its certificate is not used for another request.
    pub(super) fn drop_pending_key(&self) {
        if let Err(error) = std::fs::remove_file(self.pending()) {
            tracing::debug!(%error, "cannot remove the key of a finished certificate request");
        }
    }

    /// Writes certificate and key and makes them current. Answers the path of the link.
    pub(super) fn update(&self, cert_pem: &[u8], key_pem: &str) -> Result<PathBuf, BootstrapError> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d-%H-%M-%S").to_string();
        std::fs::create_dir_all(&self.dir).map_err(file_error(&self.dir))?;
        let file = self.dir.join(format!("{}-{now}.pem", self.prefix));
        let mut content = cert_pem.to_vec();
        if !content.ends_with(b"\n") {
            content.push(b'\n');
        }
        content.extend_from_slice(key_pem.as_bytes());
        write_private(&file, &content)?;
        let link = self.current();
        let new = self.dir.join(format!("{}-updated.pem", self.prefix));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(file_error(&new)(error)),
            Ok(()) | Err(_) => {}
        }
        std::os::unix::fs::symlink(&file, &new).map_err(file_error(&new))?;
        std::fs::rename(&new, &link).map_err(file_error(&link))?;
        Ok(link)
    }

    /// Validity of the current certificate, in seconds since the epoch.
    pub(super) fn validity(&self) -> Result<(i64, i64), BootstrapError> {
        let path = self.current();
        let pem = std::fs::read(&path).map_err(file_error(&path))?;
        validity_of(&pem).map_err(|reason| file_error(&path)(std::io::Error::other(reason)))
    }
}

/// `notBefore` and `notAfter` of the first certificate in a PEM text, in seconds since the epoch.
pub(super) fn validity_of(pem: &[u8]) -> Result<(i64, i64), String> {
    let der = CertificateDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der).map_err(|error| error.to_string())?;
    let validity = cert.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// A name for a key that is valid in the API.
pub(super) fn key_digest(key: &rcgen::KeyPair) -> String {
    Sha256::digest(key.public_key_raw()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Replaces a file in one step; readable by its owner only.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), BootstrapError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(file_error(path))
}

/// The kubeconfig that uses the store, with the cluster of the bootstrap kubeconfig and kubelet's names.
pub(super) fn kubeconfig_text(bootstrap: &Kubeconfig, pem: &Path) -> String {
    let mut cluster = serde_json::json!({ "server": bootstrap.server.to_string().trim_end_matches('/') });
    match &bootstrap.ca {
        Some(PemSource::Inline(data)) => {
            cluster["certificate-authority-data"] = base64::engine::general_purpose::STANDARD.encode(data).into();
        }
        Some(PemSource::File(path)) => cluster["certificate-authority"] = path.display().to_string().into(),
        None => {}
    }
    if bootstrap.insecure {
        cluster["insecure-skip-tls-verify"] = true.into();
    }
    if let Some(name) = &bootstrap.server_name {
        cluster["tls-server-name"] = name.as_str().into();
    }
    let pem = pem.display().to_string();
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "default-cluster", "cluster": cluster }],
        "users": [{ "name": "default-auth", "user": { "client-certificate": pem, "client-key": pem } }],
        "contexts": [{ "name": "default-context", "context": {
            "cluster": "default-cluster", "user": "default-auth", "namespace": bootstrap.namespace } }],
        "current-context": "default-context",
    });
    // JSON is YAML.
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kubeconfig::{self, Identity};

    fn certificate() -> (String, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(vec!["x".to_owned()]).expect("params");
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        (params.self_signed(&key).expect("certificate").pem(), key)
    }

    #[test]
    fn the_link_always_leads_to_the_newest_pair() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::new(dir.path());
        let (cert, key) = certificate();
        for _ in 0..2 {
            let link = store.update(cert.as_bytes(), &key.serialize_pem()).expect("update");
            let pem = std::fs::read(&link).expect("read");
            crate::api::tls::certified_key(&pem, &pem).expect("a usable pair");
            assert!(std::fs::symlink_metadata(&link).expect("link").is_symlink());
            assert_eq!(std::fs::metadata(&link).expect("file").permissions().mode() & 0o777, 0o600);
        }
        let (from, until) = store.validity().expect("validity");
        assert_eq!(until - from, 365 * 24 * 3600);
    }

    #[test]
    fn a_restart_finds_the_key_of_the_waiting_request() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::new(&dir.path().join("pki"));
        let first = store.pending_key().expect("key").serialize_der();
        assert_eq!(store.pending_key().expect("key").serialize_der(), first);
        store.drop_pending_key();
        assert_ne!(store.pending_key().expect("key").serialize_der(), first);
    }

    #[test]
    fn the_written_kubeconfig_is_understood() {
        let text = "current-context: c\ncontexts: [{name: c, context: {cluster: k, user: u}}]\n\
                    clusters: [{name: k, cluster: {server: 'https://h:6443', certificate-authority-data: 'Q0E='}}]\n\
                    users: [{name: u, user: {token: t}}]\n";
        let bootstrap = kubeconfig::parse(Path::new("/b"), text).expect("bootstrap");
        let text = kubeconfig_text(&bootstrap, Path::new("/pki/current.pem"));
        let written = kubeconfig::parse(Path::new("/k"), &text).expect("written");
        assert!(written.server == bootstrap.server && written.ca == bootstrap.ca);
        let file = PemSource::File("/pki/current.pem".into());
        assert!(written.identity == Identity::Certificate { cert: file.clone(), key: file });
    }
}
