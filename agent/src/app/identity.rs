//! Who the node is at the API server: its kubeconfig, got with a bootstrap token where there is none, and renewed.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::api::bootstrap::{self, Bootstrap};
use crate::api::client::ApiClient;
use crate::config::{Config, Only};
use crate::ids::NodeName;

/// Name of the user agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// See the module's documentation.
pub struct Identity {
    settings: Bootstrap,
    can_bootstrap: bool,
    rotates: bool,
}

impl Identity {
    /// From the configuration; nothing is read or asked yet.
    pub fn new(config: &Config, kubeconfig: &Path, bootstrap: Option<&Path>) -> Self {
        let is_kubelet = config.only != Only::Services;
        Self {
            settings: Bootstrap {
                kubeconfig: kubeconfig.to_owned(),
                bootstrap: bootstrap.map(PathBuf::from).unwrap_or_default(),
                cert_dir: config.cert_dir.clone(),
                node: NodeName::new(&config.node_name),
                version: VERSION.to_owned(),
            },
            can_bootstrap: is_kubelet && bootstrap.is_some(),
            rotates: is_kubelet && config.kubelet.rotate_certificates,
        }
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.settings.kubeconfig
    }

    /// Waits until there is a kubeconfig that can be used; false when the agent was stopped before.
    pub async fn ensure(&self, shutdown: &CancellationToken) -> anyhow::Result<bool> {
        if !self.can_bootstrap {
            return Ok(true);
        }
        tokio::select! {
            // Dropped midway it leaves a key and a request, which the next start goes on with.
            ensured = bootstrap::ensure_identity(&self.settings) => ensured.map(|()| true).map_err(Into::into),
            () = shutdown.cancelled() => Ok(false),
        }
    }

    /// Renews the certificate that this client uses, for ever, where the configuration asks for it.
    pub fn keep(&self, client: &ApiClient) {
        if self.rotates {
            tokio::spawn(bootstrap::rotate(client.clone(), self.settings.clone()));
        }
    }
}
