//! Reads a kubeconfig file into what the client needs: one server, how to trust it, and who we are.
//!
//! It follows `current-context`; files named in it are relative to the directory of the kubeconfig, as client-go has it.
//! It does not merge several files, and it knows no auth-provider plugins (removed from client-go in 1.26).
//! Every error names the file, the field in it, and what to do.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file itself cannot be read.
    #[error("kubeconfig {path}: {source}")]
    Read {
        /// The kubeconfig.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not YAML of the expected shape.
    #[error("kubeconfig {path}: not a kubeconfig: {reason}")]
    Parse {
        /// The kubeconfig.
        path: PathBuf,
        /// What the parser expected, with line and column.
        reason: String,
    },
    /// A field is missing or cannot be used.
    #[error("kubeconfig {path}: {field}: {reason}")]
    Field {
        /// The kubeconfig.
        path: PathBuf,
        /// The field as a path inside the file.
        field: String,
        /// What was expected, what was found, and what to do.
        reason: String,
    },
}

/// PEM text that is in the kubeconfig or in a file of its own, which may be replaced while we run.
#[derive(Clone, PartialEq, Eq)]
pub enum PemSource {
    /// Inline `*-data`.
    Inline(Vec<u8>),
    /// A file.
    File(PathBuf),
}

impl PemSource {
    /// The PEM text as it is now.
    pub fn read(&self) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Inline(pem) => Ok(pem.clone()),
            Self::File(path) => std::fs::read(path)
                .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }
}

/// How the client says who it is. It has no `Debug`, because it holds secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum Identity {
    /// The kubeconfig names no credentials.
    Anonymous,
    /// A TLS client certificate.
    Certificate {
        /// Certificate chain.
        cert: PemSource,
        /// Private key; often the same file.
        key: PemSource,
    },
    /// A fixed bearer token.
    Token(String),
    /// A bearer token in a file that is rotated by others.
    TokenFile(PathBuf),
    /// HTTP basic authentication.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A program that prints an ExecCredential.
    Exec(ExecPlugin),
}

/// `users[].user.exec`: the credential plugin contract of client-go.
///
/// Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecPlugin {
    /// `client.authentication.k8s.io/v1` or `v1beta1`.
    pub api_version: String,
    /// Program: absolute, relative to the kubeconfig if it has a slash, else looked up in PATH.
    pub command: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// Additional environment.
    pub env: Vec<(String, String)>,
    /// Whether the cluster is described to the program.
    pub provide_cluster_info: bool,
    /// Shown when the program does not exist.
    pub install_hint: String,
}

/// The cluster and user of the current context.
#[derive(Clone)]
pub struct Kubeconfig {
    /// The file, for messages.
    pub path: PathBuf,
    /// `clusters[].cluster.server`.
    pub server: http::Uri,
    /// Trusted authorities; `None` means those of the system.
    pub ca: Option<PemSource>,
    /// `insecure-skip-tls-verify`.
    pub insecure: bool,
    /// `tls-server-name`: the name to check the serving certificate against.
    pub server_name: Option<String>,
    /// Credentials.
    pub identity: Identity,
    /// Namespace of the context, `default` if unset.
    pub namespace: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawConfig {
    #[serde(rename = "current-context")]
    current_context: String,
    clusters: Vec<RawNamed>,
    users: Vec<RawNamed>,
    contexts: Vec<RawNamed>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct RawNamed {
    name: String,
    cluster: Option<RawCluster>,
    user: Option<RawUser>,
    context: Option<RawContext>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct RawContext {
    cluster: String,
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "kebab-case")]
struct RawCluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "kebab-case")]
struct RawUser {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<RawExec>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default, rename_all = "camelCase")]
struct RawExec {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<RawEnv>>,
    interactive_mode: Option<String>,
    provide_cluster_info: bool,
    install_hint: Option<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(default)]
struct RawEnv {
    name: String,
    value: String,
}

/// Reads and resolves the kubeconfig at `path`.
pub fn load(path: &Path) -> Result<Kubeconfig, KubeconfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Resolves the text of a kubeconfig; `path` is for messages and for relative file names.
pub fn parse(path: &Path, text: &str) -> Result<Kubeconfig, KubeconfigError> {
    let raw: RawConfig = serde_saphyr::from_str(text)
        .map_err(|error| KubeconfigError::Parse { path: path.to_owned(), reason: error.to_string() })?;
    Resolver { path }.resolve(raw)
}

struct Resolver<'a> {
    path: &'a Path,
}

impl Resolver<'_> {
    fn error(&self, field: impl Into<String>, reason: impl Into<String>) -> KubeconfigError {
        KubeconfigError::Field { path: self.path.to_owned(), field: field.into(), reason: reason.into() }
    }

    fn absolute(&self, file: &Path) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(file)
    }

    fn find(&self, list: &[RawNamed], field: &str, name: &str) -> Result<RawNamed, KubeconfigError> {
        list.iter().find(|item| item.name == name).cloned().ok_or_else(|| {
            let known: Vec<&str> = list.iter().map(|item| item.name.as_str()).collect();
            self.error(field, format!("no entry is named {name:?}; the file has {known:?}"))
        })
    }

    fn resolve(&self, raw: RawConfig) -> Result<Kubeconfig, KubeconfigError> {
        if raw.current_context.is_empty() {
            return Err(self.error("current-context", "is empty; set it to the name of one of the contexts"));
        }
        let context = self
            .find(&raw.contexts, "contexts", &raw.current_context)?
            .context
            .ok_or_else(|| self.error(format!("contexts[{}].context", raw.current_context), "is missing"))?;
        let cluster_field = format!("clusters[{}].cluster", context.cluster);
        let cluster = self
            .find(&raw.clusters, "clusters", &context.cluster)?
            .cluster
            .ok_or_else(|| self.error(&cluster_field, "is missing"))?;
        let user_field = format!("users[{}].user", context.user);
        let user = match context.user.is_empty() {
            true => RawUser::default(),
            false => self.find(&raw.users, "users", &context.user)?.user.unwrap_or_default(),
        };
        if cluster.proxy_url.as_deref().is_some_and(|url| !url.is_empty()) {
            return Err(self.error(
                format!("{cluster_field}.proxy-url"),
                "proxies are not supported; give the address of the API server or of a TCP load balancer",
            ));
        }
        Ok(Kubeconfig {
            path: self.path.to_owned(),
            server: self.server(&cluster_field, &cluster.server)?,
            ca: self.pem(
                &cluster_field,
                "certificate-authority",
                cluster.certificate_authority,
                cluster.certificate_authority_data,
            )?,
            insecure: cluster.insecure_skip_tls_verify,
            server_name: cluster.tls_server_name.filter(|name| !name.is_empty()),
            identity: self.identity(&user_field, user)?,
            namespace: context.namespace.filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".to_owned()),
        })
    }

    fn server(&self, field: &str, server: &str) -> Result<http::Uri, KubeconfigError> {
        let field = format!("{field}.server");
        if server.is_empty() {
            return Err(self.error(field, "is empty; expected a URL such as https://10.0.0.1:6443"));
        }
        // client-go accepts a bare host:port and then speaks plain HTTP to it.
        let full = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
        let uri: http::Uri =
            full.parse().map_err(|error| self.error(&field, format!("{server:?} is not a URL: {error}")))?;
        match (uri.scheme_str(), uri.host()) {
            (Some("https" | "http"), Some(host)) if !host.is_empty() => Ok(uri),
            _ => Err(self.error(field, format!("{server:?}: expected http:// or https:// and a host"))),
        }
    }

    fn pem(
        &self,
        field: &str,
        name: &str,
        file: Option<PathBuf>,
        data: Option<String>,
    ) -> Result<Option<PemSource>, KubeconfigError> {
        // Inline data wins over a file, as in client-go.
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let compact: String = data.split_whitespace().collect();
            let pem = base64::engine::general_purpose::STANDARD
                .decode(compact)
                .map_err(|error| self.error(format!("{field}.{name}-data"), format!("is not base64: {error}")))?;
            return Ok(Some(PemSource::Inline(pem)));
        }
        Ok(file.filter(|file| !file.as_os_str().is_empty()).map(|file| PemSource::File(self.absolute(&file))))
    }

    fn identity(&self, field: &str, user: RawUser) -> Result<Identity, KubeconfigError> {
        let cert = self.pem(field, "client-certificate", user.client_certificate, user.client_certificate_data)?;
        let key = self.pem(field, "client-key", user.client_key, user.client_key_data)?;
        match (cert, key) {
            (Some(cert), Some(key)) => return Ok(Identity::Certificate { cert, key }),
            // A single file that holds both is what kubelet's own certificate store writes.
            (Some(cert @ PemSource::File(_)), None) => {
                return Ok(Identity::Certificate { key: cert.clone(), cert });
            }
            (Some(_), None) => {
                return Err(self.error(format!("{field}.client-key"), "is missing, but a client-certificate is given"));
            }
            (None, Some(_)) => {
                return Err(self.error(format!("{field}.client-certificate"), "is missing, but a client-key is given"));
            }
            (None, None) => {}
        }
        if let Some(file) = user.token_file.filter(|file| !file.as_os_str().is_empty()) {
            return Ok(Identity::TokenFile(self.absolute(&file)));
        }
        if let Some(token) = user.token.filter(|token| !token.is_empty()) {
            return Ok(Identity::Token(token));
        }
        if let Some(username) = user.username.filter(|name| !name.is_empty()) {
            return Ok(Identity::Basic { username, password: user.password.unwrap_or_default() });
        }
        match user.exec {
            Some(exec) => self.exec(&format!("{field}.exec"), exec).map(Identity::Exec),
            None => Ok(Identity::Anonymous),
        }
    }

    fn exec(&self, field: &str, exec: RawExec) -> Result<ExecPlugin, KubeconfigError> {
        if exec.command.is_empty() {
            return Err(self.error(format!("{field}.command"), "is empty; expected the name of a program"));
        }
        if !matches!(
            exec.api_version.as_str(),
            "client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1"
        ) {
            return Err(self.error(
                format!("{field}.apiVersion"),
                format!(
                    "{:?}: expected client.authentication.k8s.io/v1 or client.authentication.k8s.io/v1beta1",
                    exec.api_version
                ),
            ));
        }
        if exec.interactive_mode.as_deref() == Some("Always") {
            return Err(self.error(
                format!("{field}.interactiveMode"),
                "Always needs a terminal, which a daemon does not have; set it to Never or IfAvailable",
            ));
        }
        let command = match exec.command.contains('/') {
            true => self.absolute(Path::new(&exec.command)),
            false => PathBuf::from(&exec.command),
        };
        Ok(ExecPlugin {
            api_version: exec.api_version,
            command,
            args: exec.args.unwrap_or_default(),
            env: exec.env.unwrap_or_default().into_iter().map(|pair| (pair.name, pair.value)).collect(),
            provide_cluster_info: exec.provide_cluster_info,
            install_hint: exec.install_hint.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests;
