//! Credentials that change while the client runs: token files and credential plugins.
//!
//! A token file is read again after a minute, as client-go does, and at once when the server answers 401. A plugin's
//! answer is kept until it expires; without an expiry it is kept until the server answers 401.
//! Running the named program is the one place where this project executes a program of an operator's choice: the
//! kubeconfig contract has no other way.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::HeaderValue;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Mutex;

use super::kubeconfig::{ExecPlugin, Identity, Kubeconfig};
use super::tls::{CertSlot, TlsError, certified_key};

/// How long a token file is trusted without reading it again.
const TOKEN_FILE_PERIOD: Duration = Duration::from_secs(60);
/// A plugin that needs longer is stuck.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);
/// A plugin's answer is renewed this long before it expires, so that no request carries a token that expires under way.
const EXPIRY_LEEWAY: Duration = Duration::from_secs(10);
/// More than any ExecCredential; a program that prints more is not one.
const EXEC_OUTPUT_LIMIT: u64 = 1 << 20;

/// Why there are no credentials for a request.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A certificate, key or token file cannot be read.
    #[error("{0}")]
    Read(std::io::Error),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A token or password contains bytes that no HTTP header can carry.
    #[error("the {0} contains characters that are not allowed in an HTTP header")]
    Header(&'static str),
    /// The credential plugin failed.
    #[error("credential plugin {command}: {reason}")]
    Exec {
        /// The program.
        command: String,
        /// What went wrong, with what the program said.
        reason: String,
    },
}

struct Cached {
    header: Option<HeaderValue>,
    good_until: Option<Instant>,
}

/// Source of the `Authorization` header, and filler of the certificate slot.
pub struct Credentials {
    identity: Identity,
    cluster_info: serde_json::Value,
    slot: Arc<CertSlot>,
    cached: Mutex<Option<Cached>>,
}

impl Credentials {
    /// Credentials of a kubeconfig. A certificate is read at once.
    pub fn new(config: &Kubeconfig, slot: Arc<CertSlot>) -> Result<Self, CredentialError> {
        let credentials = Self {
            identity: config.identity.clone(),
            cluster_info: cluster_info(config),
            slot,
            cached: Mutex::new(None),
        };
        credentials.reload_certificate()?;
        Ok(credentials)
    }

    /// Reads the certificate files again; other identities have nothing to do here.
    pub fn reload_certificate(&self) -> Result<(), CredentialError> {
        if let Identity::Certificate { cert, key } = &self.identity {
            let cert = cert.read().map_err(CredentialError::Read)?;
            let key = key.read().map_err(CredentialError::Read)?;
            self.slot.set(certified_key(&cert, &key)?);
        }
        Ok(())
    }

    /// Forgets what was cached: the server refused it.
    pub async fn invalidate(&self) {
        *self.cached.lock().await = None;
    }

    /// The value of the `Authorization` header, if this identity uses one.
    pub async fn header(&self) -> Result<Option<HeaderValue>, CredentialError> {
        match &self.identity {
            Identity::Anonymous | Identity::Certificate { .. } => Ok(None),
            Identity::Token(token) => bearer(token).map(Some),
            Identity::Basic { username, password } => {
                let text = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
                sensitive(&format!("Basic {text}"), "user name or password").map(Some)
            }
            Identity::TokenFile(path) => self.cached(read_token(path)).await,
            Identity::Exec(plugin) => self.cached(self.run(plugin)).await,
        }
    }

    async fn cached(
        &self,
        fresh: impl Future<Output = Result<Cached, CredentialError>>,
    ) -> Result<Option<HeaderValue>, CredentialError> {
        // The lock is held while a plugin runs: every other request would need its answer too.
        let mut cached = self.cached.lock().await;
        if let Some(value) = &*cached
            && value.good_until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(value.header.clone());
        }
        let value = fresh.await?;
        let header = value.header.clone();
        *cached = Some(value);
        Ok(header)
    }

    async fn run(&self, plugin: &ExecPlugin) -> Result<Cached, CredentialError> {
        let fail = |reason: String| CredentialError::Exec { command: plugin.command.display().to_string(), reason };
        let output = tokio::time::timeout(EXEC_TIMEOUT, execute(plugin, &self.cluster_info))
            .await
            .map_err(|_| fail(format!("did not finish within {EXEC_TIMEOUT:?}")))?
            .map_err(fail)?;
        let answer = parse_exec(plugin, &output).map_err(fail)?;
        if let (Some(cert), Some(key)) = (&answer.client_certificate_data, &answer.client_key_data) {
            self.slot.set(certified_key(cert.as_bytes(), key.as_bytes())?);
        }
        Ok(Cached {
            header: answer.token.as_deref().map(bearer).transpose()?,
            good_until: answer.expiration_timestamp.as_deref().map(until).transpose().map_err(fail)?,
        })
    }
}

async fn read_token(path: &Path) -> Result<Cached, CredentialError> {
    let text = tokio::fs::read_to_string(path).await.map_err(|error| {
        CredentialError::Read(std::io::Error::new(error.kind(), format!("tokenFile {}: {error}", path.display())))
    })?;
    let token = text.trim();
    if token.is_empty() {
        let error = std::io::Error::other(format!("tokenFile {}: is empty", path.display()));
        return Err(CredentialError::Read(error));
    }
    Ok(Cached { header: Some(bearer(token)?), good_until: Some(Instant::now() + TOKEN_FILE_PERIOD) })
}

fn bearer(token: &str) -> Result<HeaderValue, CredentialError> {
    sensitive(&format!("Bearer {token}"), "token")
}

fn sensitive(text: &str, what: &'static str) -> Result<HeaderValue, CredentialError> {
    let mut value = HeaderValue::from_str(text).map_err(|_| CredentialError::Header(what))?;
    value.set_sensitive(true);
    Ok(value)
}

fn until(timestamp: &str) -> Result<Instant, String> {
    let expiry: jiff::Timestamp = timestamp
        .parse()
        .map_err(|error| format!("status.expirationTimestamp {timestamp:?} is not an RFC 3339 time: {error}"))?;
    let left = expiry.duration_since(jiff::Timestamp::now());
    let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
    Ok(Instant::now() + left.saturating_sub(EXPIRY_LEEWAY))
}

fn cluster_info(config: &Kubeconfig) -> serde_json::Value {
    let mut cluster = serde_json::json!({
        "server": config.server.to_string(),
        "insecure-skip-tls-verify": config.insecure,
    });
    if let Some(name) = &config.server_name {
        cluster["tls-server-name"] = name.as_str().into();
    }
    if let Some(Ok(pem)) = config.ca.as_ref().map(|ca| ca.read()) {
        cluster["certificate-authority-data"] = base64::engine::general_purpose::STANDARD.encode(pem).into();
    }
    cluster
}

async fn execute(plugin: &ExecPlugin, cluster: &serde_json::Value) -> Result<Vec<u8>, String> {
    let mut spec = serde_json::json!({ "interactive": false });
    if plugin.provide_cluster_info {
        spec["cluster"] = cluster.clone();
    }
    let info = serde_json::json!({ "apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec });
    let mut child = tokio::process::Command::new(&plugin.command)
        .args(&plugin.args)
        .envs(plugin.env.iter().map(|(name, value)| (name, value)))
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match plugin.install_hint.is_empty() {
            true => error.to_string(),
            false => format!("{error}\n{}", plugin.install_hint),
        })?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let stderr = child.stderr.take().ok_or("no standard error")?;
    let (mut stdout, mut stderr) = (stdout.take(EXEC_OUTPUT_LIMIT), stderr.take(EXEC_OUTPUT_LIMIT));
    let (read_out, read_err) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
    read_out.and(read_err).map_err(|error| error.to_string())?;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    match status.success() {
        true => Ok(out),
        false => Err(format!("{status}: {}", String::from_utf8_lossy(&err).trim())),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: String,
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    expiration_timestamp: Option<String>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

fn parse_exec(plugin: &ExecPlugin, output: &[u8]) -> Result<ExecStatus, String> {
    let answer: ExecCredential =
        serde_json::from_slice(output).map_err(|error| format!("its output is not an ExecCredential: {error}"))?;
    if answer.api_version != plugin.api_version {
        return Err(format!(
            "it answered with apiVersion {:?}, the kubeconfig says {:?}",
            answer.api_version, plugin.api_version
        ));
    }
    let status = answer.status.ok_or("its output has no status")?;
    match (&status.token, &status.client_certificate_data, &status.client_key_data) {
        (None, None, None) => Err("its status has neither a token nor a client certificate".to_owned()),
        (_, Some(_), None) | (_, None, Some(_)) => {
            Err("its status has only one of clientCertificateData and clientKeyData".to_owned())
        }
        _ => Ok(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(script: &std::path::Path) -> Kubeconfig {
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://x'}}}}]\n\
             users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, args: ['{}']}}}}}}]\n",
            script.display()
        );
        super::super::kubeconfig::parse(Path::new("/x"), &text).expect("valid")
    }

    /// Not executed itself, but read by /bin/sh: executing a file that was just written fails with ETXTBSY when another
    /// test forks at the wrong moment.
    fn script(dir: &Path, body: &str) -> std::path::PathBuf {
        let path = dir.join("plugin");
        std::fs::write(&path, body).expect("write");
        path
    }

    fn credentials(script: &Path) -> Credentials {
        Credentials::new(&plugin(script), Arc::default()).expect("credentials")
    }

    #[tokio::test]
    async fn a_plugin_runs_once_until_the_server_refuses_its_answer() {
        let dir = tempfile::tempdir().expect("dir");
        let count = dir.path().join("count");
        let body = format!(
            "echo x >> {}; N=$(wc -l < {0})\n\
             echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"t'$N'\"}}}}'",
            count.display()
        );
        let credentials = credentials(&script(dir.path(), &body));
        for expected in ["Bearer t1", "Bearer t1"] {
            assert_eq!(credentials.header().await.expect("header").expect("some"), expected);
        }
        credentials.invalidate().await;
        assert_eq!(credentials.header().await.expect("header").expect("some"), "Bearer t2");
    }

    #[tokio::test]
    async fn an_expired_answer_is_renewed() {
        let dir = tempfile::tempdir().expect("dir");
        let count = dir.path().join("count");
        let body = format!(
            "echo x >> {}\n\
             echo '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{{\"token\":\"t\",\"expirationTimestamp\":\"2020-01-01T00:00:00Z\"}}}}'",
            count.display()
        );
        let credentials = credentials(&script(dir.path(), &body));
        credentials.header().await.expect("header");
        credentials.header().await.expect("header");
        assert_eq!(std::fs::read_to_string(count).expect("count").lines().count(), 2);
    }

    #[tokio::test]
    async fn what_a_failing_plugin_said_is_reported() {
        let dir = tempfile::tempdir().expect("dir");
        let credentials = credentials(&script(dir.path(), "echo 'no session' >&2; exit 3"));
        let error = credentials.header().await.expect_err("fails").to_string();
        assert!(error.contains("exit status: 3: no session"), "{error}");
    }

    #[tokio::test]
    async fn a_token_file_is_read_again_after_the_server_refused_the_token() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("token");
        std::fs::write(&path, "one\n").expect("write");
        let mut config = plugin(Path::new("/bin/true"));
        config.identity = Identity::TokenFile(path.clone());
        let credentials = Credentials::new(&config, Arc::default()).expect("credentials");
        assert_eq!(credentials.header().await.expect("header").expect("some"), "Bearer one");
        std::fs::write(&path, "two\n").expect("write");
        assert_eq!(credentials.header().await.expect("header").expect("some"), "Bearer one");
        credentials.invalidate().await;
        assert_eq!(credentials.header().await.expect("header").expect("some"), "Bearer two");
    }
}
