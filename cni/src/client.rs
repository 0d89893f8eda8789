//! Runs a chain of CNI plugins as sections 1 and 3 of the specification say, for any plugins.
//!
//! ```text
//!  conflist dir ─► Config::load ─► NetworkList ─┬─ add:    p1 ─result─► p2 ─result─► p3 ─► cache
//!                                               ├─ del:    p3 ◄─cached─ p2 ◄─cached─ p1, then the cache file goes
//!                                               ├─ check:  p1, p2, p3, each with the cached result
//!                                               ├─ status: p1, p2, p3, first error wins
//!                                               └─ gc:     del of cached attachments that are not valid, then GC to each
//! ```
//!
//! It keeps the result cache in libcni's file format and place, so that containerd's attachments are visible here and ours
//! to containerd. Within one [`Client`], operations on one container run one after the other, on different containers at
//! once, and GC runs alone (section 3, "Lifecycle & Ordering"). A call that exceeds its time is killed with its children.
//!
//! It does not decide when to call what, and it makes no namespaces.

mod cache;
mod config;
mod exec;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

pub use cache::CachedAttachment;
pub(crate) use config::config_files;
pub use config::{Config, ConfigError, NetworkList, Plugin};

use crate::protocol::{AddResult, AttachmentId, CniError, Code, Version};
use exec::Call;

/// Where plugins and the cache are, and how long a call may take. One per process, shared.
#[derive(Debug)]
pub struct Client {
    /// Directories that plugins are searched in, in order; becomes CNI_PATH.
    pub bin_dirs: Vec<PathBuf>,
    /// libcni's directory; results are in `results` below it.
    pub cache_dir: PathBuf,
    /// For one plugin, not the chain.
    pub timeout: Duration,
    /// ADD, DEL, CHECK hold it shared, GC exclusively.
    gate: tokio::sync::RwLock<()>,
    containers: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// One attachment that is to be made, removed or checked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AttachmentArgs {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS; empty for a DEL after the namespace is gone.
    pub netns: String,
    /// CNI_ARGS, as pairs.
    pub args: Vec<(String, String)>,
    /// Values by capability (`portMappings`, `bandwidth`, `ips`, `mac`, ...); each plugin gets those that it declares.
    pub capabilities: Map<String, Value>,
}

/// Why a chain failed.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A plugin answered with an error.
    #[error("{verb} of plugin {plugin} in network {network}: {error}")]
    Plugin {
        /// The verb.
        verb: &'static str,
        /// Its type.
        plugin: String,
        /// The network's name.
        network: String,
        /// What it said.
        error: CniError,
    },
    /// A plugin could not be run, did not end in time, or said nothing that can be read.
    #[error("{verb} of plugin {plugin} in network {network}: {reason}")]
    Exec {
        /// The verb.
        verb: &'static str,
        /// Its type.
        plugin: String,
        /// The network's name.
        network: String,
        /// What happened and what to look at.
        reason: String,
    },
    /// The result cache cannot be used.
    #[error("result cache {path}: {reason}")]
    Cache {
        /// The file.
        path: String,
        /// What happened.
        reason: String,
    },
    /// The configuration's version or the attachment's names do not allow the verb.
    #[error("{0}")]
    Unsupported(String),
    /// Several parts of a GC failed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<ChainError>),
}

impl ChainError {
    /// The plugin's error code, where a plugin answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Plugin { error, .. } => Some(error.code),
            _ => None,
        }
    }
}

impl Client {
    /// A client for these directories. kubelet's and containerd's defaults are `/opt/cni/bin` and `/var/lib/cni`.
    pub fn new(bin_dirs: Vec<PathBuf>, cache_dir: PathBuf, timeout: Duration) -> Self {
        Self { bin_dirs, cache_dir, timeout, gate: tokio::sync::RwLock::default(), containers: Mutex::default() }
    }

    fn container(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut containers = self.containers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(lock) = containers.get(id).and_then(Weak::upgrade) {
            return lock;
        }
        containers.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        containers.insert(id.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

impl NetworkList {
    /// ADD through the chain; the last plugin's result, which is also cached. When a plugin fails, the chain is deleted
    /// again (best effort) and the plugin's error is returned.
    pub async fn add(&self, client: &Client, attachment: &AttachmentArgs) -> Result<AddResult, ChainError> {
        let _gate = client.gate.read().await;
        let container = client.container(&attachment.container_id);
        let _container = container.lock().await;
        let file = cache::path(client, &self.name, attachment)?;
        let mut previous = None;
        for plugin in &self.plugins {
            match self.call(client, "ADD", plugin, Some(attachment), previous.as_ref()).await {
                Ok(result) => previous = Some(result),
                Err(error) => {
                    // The first error is the one to report; a DEL that fails as well is repeated by GC.
                    let _ = self.del_locked(client, attachment).await;
                    return Err(error);
                }
            }
        }
        let result =
            previous.ok_or_else(|| ChainError::Unsupported(format!("network {} has no plugins", self.name)))?;
        if let Err(error) = cache::save(&file, self, attachment, &result) {
            let _ = self.del_locked(client, attachment).await;
            return Err(error);
        }
        decode_result(&self.name, result)
    }

    /// DEL through the chain in reverse order, each plugin with the cached result. Succeeds when nothing is there.
    pub async fn del(&self, client: &Client, attachment: &AttachmentArgs) -> Result<(), ChainError> {
        let _gate = client.gate.read().await;
        let container = client.container(&attachment.container_id);
        let _container = container.lock().await;
        self.del_locked(client, attachment).await
    }

    async fn del_locked(&self, client: &Client, attachment: &AttachmentArgs) -> Result<(), ChainError> {
        let file = cache::path(client, &self.name, attachment)?;
        // An unreadable cache must not keep a pod from being deleted: plugins have to cope without prevResult.
        let cached = if self.version >= Version::V0_4_0 { cache::load(&file).unwrap_or_default() } else { None };
        let (result, attachment) = match cached {
            Some(cached) => (cached.result_as(self.version), attachment.with_cached(&cached)),
            None => (None, attachment.clone()),
        };
        for plugin in self.plugins.iter().rev() {
            self.call(client, "DEL", plugin, Some(&attachment), result.as_ref()).await?;
        }
        cache::remove(&file)
    }

    /// CHECK through the chain with the cached result. `Ok` without a call when `disableCheck` is set.
    ///
    /// # Errors
    /// [`ChainError::Unsupported`] before 0.4.0 and for an attachment that is not in the cache.
    pub async fn check(&self, client: &Client, attachment: &AttachmentArgs) -> Result<(), ChainError> {
        if self.disable_check {
            return Ok(());
        }
        if self.version < Version::V0_4_0 {
            let msg = format!("network {} has cniVersion {}, CHECK needs 0.4.0", self.name, self.version);
            return Err(ChainError::Unsupported(msg));
        }
        let _gate = client.gate.read().await;
        let container = client.container(&attachment.container_id);
        let _container = container.lock().await;
        let file = cache::path(client, &self.name, attachment)?;
        let Some(cached) = cache::load(&file)? else {
            let id = &attachment.container_id;
            return Err(ChainError::Unsupported(format!("no cached result of an ADD of {id} to {}", self.name)));
        };
        let (result, attachment) = (cached.result_as(self.version), attachment.with_cached(&cached));
        for plugin in &self.plugins {
            self.call(client, "CHECK", plugin, Some(&attachment), result.as_ref()).await?;
        }
        Ok(())
    }

    /// STATUS of each plugin; `Ok` before 1.1.0, which has no STATUS.
    pub async fn status(&self, client: &Client) -> Result<(), ChainError> {
        if self.version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &self.plugins {
            self.call(client, "STATUS", plugin, None, None).await?;
        }
        Ok(())
    }

    /// Removes attachments of this network that are not in `valid`: DEL for those in the cache, then GC of each plugin.
    /// Goes on after errors. Does nothing when `disableGC` is set.
    ///
    /// `listed_at` is when the caller began to collect `valid`: an attachment cached later than that is not judged, since
    /// another process (the runtime) may have made it in between.
    pub async fn gc(&self, client: &Client, valid: &[AttachmentId], listed_at: SystemTime) -> Result<(), ChainError> {
        if self.disable_gc {
            return Ok(());
        }
        let _alone = client.gate.write().await;
        let mut errors = Vec::new();
        let mut valid = valid.to_vec();
        for cached in cache::list(client)? {
            let id = cached.id();
            if cached.network_name != self.name || valid.contains(&id) {
                continue;
            }
            if cached.written_at.is_none_or(|written| written >= listed_at) {
                valid.push(id);
            } else if let Err(e) = self.del_locked(client, &cached.args()).await {
                errors.push(e);
            }
        }
        if self.version >= Version::V1_1_0 {
            for plugin in &self.plugins {
                if let Err(e) = self.gc_call(client, plugin, &valid).await {
                    errors.push(e);
                }
            }
        }
        match errors.len() {
            0 => Ok(()),
            _ => Err(ChainError::Several(errors)),
        }
    }

    /// The attachments of this network that the cache knows, whoever made them.
    pub fn cached_attachments(&self, client: &Client) -> Result<Vec<CachedAttachment>, ChainError> {
        let mut attachments = cache::list(client)?;
        attachments.retain(|cached| cached.network_name == self.name);
        Ok(attachments)
    }

    /// Asks every plugin for its versions and lowers the list's to the highest of `cniVersion` and `cniVersions` that all
    /// of them speak (the specification's "MAY consider the set of supported plugin versions").
    ///
    /// # Errors
    /// A plugin that cannot be run, or no common version: the text says who speaks what.
    pub async fn negotiate(&mut self, client: &Client) -> Result<Version, ChainError> {
        let mut common = self.versions.clone();
        let mut spoken = Vec::new();
        for plugin in &self.plugins {
            let versions = self.versions_of(client, plugin).await?;
            common.retain(|version| versions.contains(version));
            let texts: Vec<_> = versions.iter().map(ToString::to_string).collect();
            spoken.push(format!("{} speaks {}", plugin.kind, texts.join(", ")));
        }
        let Some(version) = common.into_iter().max() else {
            let wanted: Vec<_> = self.versions.iter().map(ToString::to_string).collect();
            let msg = format!(
                "network {} may use cniVersion {}, and no plugin chain for it exists: {}",
                self.name,
                wanted.join(", "),
                spoken.join("; ")
            );
            return Err(ChainError::Unsupported(msg));
        };
        self.version = version;
        Ok(version)
    }

    async fn versions_of(&self, client: &Client, plugin: &Plugin) -> Result<Vec<Version>, ChainError> {
        let stdin = serde_json::json!({ "cniVersion": self.version });
        let answer = self.run(client, "VERSION", plugin, None, &stdin).await?;
        let versions = answer["supportedVersions"].as_array().cloned().unwrap_or_default();
        // A version that we cannot read is one that we cannot use.
        Ok(versions.iter().filter_map(|version| version.as_str()?.parse().ok()).collect())
    }

    async fn gc_call(&self, client: &Client, plugin: &Plugin, valid: &[AttachmentId]) -> Result<(), ChainError> {
        let mut conf = self.plugin_conf(plugin, None, None);
        // libcni sends both spellings (containernetworking/cni#1101).
        conf["cni.dev/valid-attachments"] = serde_json::json!(valid);
        conf["cni.dev/attachments"] = serde_json::json!(valid);
        self.run(client, "GC", plugin, None, &conf).await.map(drop)
    }

    async fn call(
        &self,
        client: &Client,
        verb: &'static str,
        plugin: &Plugin,
        attachment: Option<&AttachmentArgs>,
        previous: Option<&Value>,
    ) -> Result<Value, ChainError> {
        let conf = self.plugin_conf(plugin, attachment, previous);
        self.run(client, verb, plugin, attachment, &conf).await
    }

    async fn run(
        &self,
        client: &Client,
        verb: &'static str,
        plugin: &Plugin,
        attachment: Option<&AttachmentArgs>,
        stdin: &Value,
    ) -> Result<Value, ChainError> {
        let call = Call { verb, plugin: &plugin.kind, network: &self.name, attachment, stdin };
        exec::run(client, &call).await
    }

    /// The plugin's configuration with what the specification has the runtime add ("Deriving request configuration").
    fn plugin_conf(&self, plugin: &Plugin, attachment: Option<&AttachmentArgs>, previous: Option<&Value>) -> Value {
        let mut conf = plugin.conf.clone();
        conf.remove("capabilities");
        conf.insert("name".to_owned(), self.name.clone().into());
        conf.insert("cniVersion".to_owned(), self.version.to_string().into());
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        if let Some(attachment) = attachment {
            let given = attachment.capabilities.iter().filter(|(name, _)| plugin.declares(name));
            let given: Map<String, Value> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
            if !given.is_empty() {
                conf.insert("runtimeConfig".to_owned(), Value::Object(given));
            }
        }
        Value::Object(conf)
    }
}

impl AttachmentArgs {
    /// CNI_ARGS and capabilities as they were at ADD, where the cache has them: DEL and CHECK must see the same.
    fn with_cached(&self, cached: &CachedAttachment) -> Self {
        let mut args = cached.args();
        args.netns.clone_from(&self.netns);
        if args.args.is_empty() {
            args.args.clone_from(&self.args);
        }
        if args.capabilities.is_empty() {
            args.capabilities.clone_from(&self.capabilities);
        }
        args
    }
}

fn decode_result(network: &str, result: Value) -> Result<AddResult, ChainError> {
    serde_json::from_value(result)
        .map_err(|e| ChainError::Unsupported(format!("result of network {network} cannot be read: {e}")))
}
