//! Which credentials a pull is tried with, and in which order. Pure.
//!
//! Entries of all docker configurations are kept by registry and path; those that match an image are tried from the last in
//! byte order to the first, so that `reg.io/team` comes before `reg.io`, and a name before a pattern. Several credentials
//! of one entry are tried in the order of their secrets: that is how credentials are rotated.
//! Source: `BasicDockerKeyring` of k8s.io/kubernetes v1.37, `pkg/credentialprovider/keyring.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::core::v1::Secret;
use nodelet_proto::cri;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::records::PullSecret;

/// What Docker Hub's entry is called by `docker login`.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// One way to prove who pulls. It has no `Debug`, so that it cannot reach a log.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Email; registries ignore it, kubelet's hash does not.
    pub email: String,
    /// A token that is exchanged for an access token.
    pub identity_token: String,
    /// A bearer token for the registry.
    pub registry_token: String,
}

impl Credential {
    /// As the runtime is told. No server address: containerd compares it with the host that it asks, which for Docker Hub
    /// and mirrors is another than the one in the entry.
    pub fn to_wire(&self) -> cri::AuthConfig {
        cri::AuthConfig {
            username: self.username.clone(),
            password: self.password.clone(),
            identity_token: self.identity_token.clone(),
            registry_token: self.registry_token.clone(),
            ..Default::default()
        }
    }

    /// The hash by which pull records know it: SHA-256 of kubelet's JSON, in hex.
    pub fn hash(&self) -> String {
        let fields = [
            ("username", &self.username),
            ("password", &self.password),
            ("email", &self.email),
            ("identitytoken", &self.identity_token),
            ("registrytoken", &self.registry_token),
        ];
        let filled = fields.iter().filter(|(_, value)| !value.is_empty());
        let members: Vec<String> = filled.map(|(name, value)| format!("\"{name}\":{}", go_string(value))).collect();
        hex(&Sha256::digest(format!("{{{}}}", members.join(","))))
    }
}

/// Bytes in lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A JSON string as Go writes it: HTML's characters and the two line separators are escaped too.
fn go_string(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.chars().fold(String::with_capacity(json.len()), |mut out, c| {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
        out
    })
}

/// Whom credentials belong to. Those of the node's files and of credential providers are everybody's: `None`.
pub type Source = Option<SecretId>;

/// A Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretId {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A credential and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Tracked {
    /// The credential.
    pub credential: Credential,
    /// Its source.
    pub source: Source,
}

impl Tracked {
    /// As pull records have it; `None` for what every pod of the node may use.
    pub fn secret(&self) -> Option<PullSecret> {
        let source = self.source.as_ref()?;
        Some(PullSecret {
            uid: source.uid.clone(),
            namespace: source.namespace.clone(),
            name: source.name.clone(),
            credential_hash: self.credential.hash(),
        })
    }
}

/// Entries of a docker configuration: registries, and the credential of each.
pub type DockerConfig = BTreeMap<String, Credential>;

/// A docker configuration that cannot be read. Its text never quotes what was found: it may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not JSON of the expected shape.
    #[error(
        "not a docker configuration (line {line}, column {column}); expected JSON with auth, or username and password, by registry"
    )]
    Json {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// The `auth` of an entry is wrong.
    #[error("auth of registry {0:?} is not base64 of username:password")]
    Auth(String),
}

impl From<serde_json::Error> for ConfigError {
    fn from(error: serde_json::Error) -> Self {
        Self::Json { line: error.line(), column: error.column() }
    }
}

#[derive(Deserialize)]
struct RawEntry {
    username: Option<String>,
    password: Option<String>,
    email: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

type RawConfig = BTreeMap<String, RawEntry>;

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    auths: Option<RawConfig>,
}

/// Reads a `config.json`, or the `.dockerconfigjson` of a Secret.
pub fn parse_config_json(bytes: &[u8]) -> Result<DockerConfig, ConfigError> {
    let file: RawFile = serde_json::from_slice(bytes)?;
    entries(file.auths.unwrap_or_default())
}

/// Reads the older `.dockercfg`, which is what `auths` holds in the newer one.
pub fn parse_dockercfg(bytes: &[u8]) -> Result<DockerConfig, ConfigError> {
    entries(serde_json::from_slice::<Option<RawConfig>>(bytes)?.unwrap_or_default())
}

fn entries(raw: RawConfig) -> Result<DockerConfig, ConfigError> {
    raw.into_iter()
        .map(|(registry, entry)| {
            let mut credential = Credential {
                username: entry.username.unwrap_or_default(),
                password: entry.password.unwrap_or_default(),
                email: entry.email.unwrap_or_default(),
                identity_token: entry.identitytoken.unwrap_or_default(),
                registry_token: entry.registrytoken.unwrap_or_default(),
            };
            if let Some(auth) = entry.auth.filter(|auth| !auth.is_empty()) {
                let decoded = decode_auth(&auth).ok_or_else(|| ConfigError::Auth(registry.clone()))?;
                (credential.username, credential.password) = decoded;
            }
            Ok((registry, credential))
        })
        .collect()
}

/// base64 of `username:password`, padded or not.
fn decode_auth(field: &str) -> Option<(String, String)> {
    let trimmed = field.trim().trim_end_matches('=');
    let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(trimmed).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Credentials by registry and path.
#[derive(Clone, Default)]
pub struct Keyring {
    entries: BTreeMap<String, Vec<Tracked>>,
}

impl Keyring {
    /// Adds the entries of a configuration.
    pub fn add(&mut self, source: &Source, config: DockerConfig) {
        for (registry, credential) in config {
            let tracked = Tracked { credential, source: source.clone() };
            self.entries.entry(index_key(&registry)).or_default().push(tracked);
        }
    }

    /// The pull secrets of a pod. One that cannot be read fails all, as under kubelet: the pod's author has to know.
    pub fn of_secrets(secrets: &[Arc<Secret>]) -> Result<Self, String> {
        let mut keyring = Self::default();
        for secret in secrets {
            let data = |key: &str| secret.data.as_ref()?.get(key).map(|b| b.0.as_slice()).filter(|b| !b.is_empty());
            let parsed = match secret.type_.as_deref() {
                Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson").map(parse_config_json),
                Some("kubernetes.io/dockercfg") => data(".dockercfg").map(parse_dockercfg),
                Some(_) | None => None,
            };
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let meta = &secret.metadata;
            let id = SecretId { uid: text(&meta.uid), namespace: text(&meta.namespace), name: text(&meta.name) };
            match parsed {
                Some(Ok(config)) => keyring.add(&Some(id), config),
                Some(Err(error)) => return Err(format!("image pull secret {}/{}: {error}", id.namespace, id.name)),
                None => {}
            }
        }
        Ok(keyring)
    }

    /// The credentials for a repository, in the order in which they are tried.
    pub fn lookup(&self, repository: &str) -> Vec<Tracked> {
        let matching = self.entries.iter().rev().filter(|(key, _)| matches_url(key, repository));
        let found: Vec<Tracked> = matching.flat_map(|(_, tracked)| tracked.iter().cloned()).collect();
        if found.is_empty() && is_default_registry(repository) {
            return self.entries.get(DEFAULT_REGISTRY).cloned().unwrap_or_default();
        }
        found
    }
}

/// Host and path of an entry; `/v1/` and `/v2/` are how Docker's own entries name the host itself.
fn index_key(registry: &str) -> String {
    let bare = registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let bare = bare.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let versioned = ["/v1/", "/v2/"].iter().any(|version| path.starts_with(version));
    let path = if versioned { &path[3..] } else { path };
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

fn is_default_registry(repository: &str) -> bool {
    let first = repository.split('/').next().unwrap_or_default();
    match first {
        "" => false,
        "docker.io" | DEFAULT_REGISTRY => true,
        _ => !repository.contains('/') || !first.contains(['.', ':']),
    }
}

/// Whether a pattern covers a repository: the same port, as many parts of the host, each part matching, and a path that
/// the repository's begins with. `*` stands for any characters within one part of the host.
pub fn matches_url(pattern: &str, repository: &str) -> bool {
    let split = |url: &'_ str| -> (Vec<String>, String, String) {
        let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        let (name, port) = split_port(host);
        (name.split('.').map(str::to_owned).collect(), port.to_owned(), path.to_owned())
    };
    let (parts, port, path) = split(pattern);
    let (target_parts, target_port, target_path) = split(repository);
    port == target_port
        && parts.len() == target_parts.len()
        && target_path.starts_with(&path)
        && parts.iter().zip(&target_parts).all(|(part, target)| matches_glob(part, target))
}

/// A host and its port; a colon inside of brackets is an IPv6 address's.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        Some(_) | None => (host, ""),
    }
}

fn matches_glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches_glob(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests;
