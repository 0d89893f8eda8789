//! Getting a container's image onto the node.
//!
//! Policies: `Never` and `IfNotPresent` ask the runtime first; `Always` asks the registry at each start, and the runtime
//! then finds that the layers are there. Pulls of different containers run in parallel up to a limit, in the order in
//! which they were asked for; dropping the future cancels a pull.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Secret};
use nodelet_proto::cri;
use tokio::sync::Semaphore;

use super::action::Failure;
use super::security::ImageUser;
use crate::cri::{CriError, Runtime};

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The runtime's reference; containers are created from it.
    pub reference: String,
    /// The user that the image names.
    pub user: ImageUser,
}

/// What happened, for the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there.
    Present,
    /// It was pulled: time of the pull, time with waiting for a slot, size in bytes.
    Pulled(Duration, Duration, u64),
}

/// Puller of images.
#[derive(Clone, Debug)]
pub struct Images {
    runtime: Runtime,
    slots: Arc<Semaphore>,
}

impl Images {
    /// A puller that runs `parallel` pulls at a time (`serializeImagePulls`, `maxParallelImagePulls`).
    pub fn new(runtime: Runtime, parallel: usize) -> Self {
        Self { runtime, slots: Arc::new(Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// Makes sure that the image of a container is there. `pulling` is called when a pull begins.
    pub async fn ensure(
        &self,
        container: &Container,
        secrets: &[Arc<Secret>],
        pulling: impl FnOnce(),
    ) -> Result<(Image, Fetched), Failure> {
        let name = container.image.as_deref().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(failure(
                "InvalidImageName",
                format!("Failed to apply default image tag \"{name}\": couldn't parse image name"),
            ));
        }
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        if policy != "Always" {
            let found = self.runtime.image_status(name).await.map_err(|error| inspect_failure(name, &error))?;
            match found {
                Some(image) => return Ok((describe(&image), Fetched::Present)),
                None if policy == "Never" => {
                    let text = format!("Container image \"{name}\" is not present with pull policy of Never");
                    return Err(failure("ErrImageNeverPull", text));
                }
                None => {}
            }
        }
        pulling();
        self.pull(name, secrets).await
    }

    async fn pull(&self, name: &str, secrets: &[Arc<Secret>]) -> Result<(Image, Fetched), Failure> {
        let asked = Instant::now();
        let _slot = self.slots.acquire().await.map_err(|_| failure("ErrImagePull", "the agent is stopping".into()))?;
        let began = Instant::now();
        let mut credentials: Vec<Option<cri::AuthConfig>> = credentials(name, secrets).into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut last_error = None;
        for auth in credentials {
            match self.runtime.pull_image(name, auth, None).await {
                Ok(reference) => {
                    let pulled = began.elapsed();
                    let image = self.runtime.image_status(&reference).await;
                    let image = image.map_err(|error| inspect_failure(name, &error))?;
                    let size = image.as_ref().map_or(0, |i| i.size);
                    let image = image.map_or(Image { reference, user: ImageUser::default() }, |i| describe(&i));
                    return Ok((image, Fetched::Pulled(pulled, asked.elapsed(), size)));
                }
                Err(error) => last_error = Some(error),
            }
        }
        let text = last_error.map(|e| e.text()).unwrap_or_default();
        // containerd and CRI-O put these words in front of errors that deserve a reason of their own.
        let reason = match text.split(':').next() {
            Some("RegistryUnavailable") => "RegistryUnavailable",
            Some("SignatureValidationFailed") => "SignatureValidationFailed",
            _ => "ErrImagePull",
        };
        Err(failure(reason, text))
    }
}

fn failure(reason: &'static str, message: String) -> Failure {
    Failure { reason, message, container: None }
}

fn inspect_failure(name: &str, error: &CriError) -> Failure {
    failure("ImageInspectError", format!("Failed to inspect image \"{name}\": {error}"))
}

fn describe(image: &cri::Image) -> Image {
    Image {
        reference: image.id.clone(),
        user: ImageUser { uid: image.uid.as_ref().map(|u| u.value), username: image.username.clone() },
    }
}

/// Credentials of pull secrets that match the image's registry, the longest match first.
/// Source: "Configuring access to a private registry" of the Kubernetes documentation.
pub fn credentials(image: &str, secrets: &[Arc<Secret>]) -> Vec<cri::AuthConfig> {
    let target = normalized(image);
    let mut matches: Vec<(usize, cri::AuthConfig)> = Vec::new();
    for secret in secrets {
        let data = secret.data.as_ref();
        let (key, nested) = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => (".dockerconfigjson", true),
            Some("kubernetes.io/dockercfg") => (".dockercfg", false),
            _ => continue,
        };
        let Some(bytes) = data.and_then(|d| d.get(key)) else { continue };
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&bytes.0) else { continue };
        let auths = if nested { json.get("auths").cloned().unwrap_or_default() } else { json };
        for (registry, entry) in auths.as_object().into_iter().flatten() {
            if let Some(length) = matches_registry(&target, registry) {
                matches.push((length, auth_config(registry, entry)));
            }
        }
    }
    matches.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    matches.into_iter().map(|(_, auth)| auth).collect()
}

/// `host/path` with Docker's defaults spelled out.
fn normalized(image: &str) -> String {
    let first = image.split('/').next().unwrap_or_default();
    let has_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    match (has_host, image.contains('/')) {
        (true, _) => image.to_owned(),
        (false, true) => format!("index.docker.io/{image}"),
        (false, false) => format!("index.docker.io/library/{image}"),
    }
}

/// Length of a registry entry that covers the image; `*` stands for any characters within one part of the host.
fn matches_registry(target: &str, registry: &str) -> Option<usize> {
    let entry = registry.trim_start_matches("https://").trim_start_matches("http://");
    let entry = entry.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let entry = if entry == "docker.io" { "index.docker.io" } else { entry };
    let (target_host, target_path) = target.split_once('/').unwrap_or((target, ""));
    let (host, path) = entry.split_once('/').unwrap_or((entry, ""));
    let target_host = if target_host == "docker.io" { "index.docker.io" } else { target_host };
    let (parts, target_parts): (Vec<_>, Vec<_>) = (host.split('.').collect(), target_host.split('.').collect());
    let hosts = parts.len() == target_parts.len() && parts.iter().zip(&target_parts).all(|(p, t)| glob(p, t));
    let repository = target_path.split(['@', ':']).next().unwrap_or_default();
    let paths = path.is_empty() || repository == path || repository.starts_with(&format!("{path}/"));
    (hosts && paths).then_some(entry.len())
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(tail, &rest[at..]))
        }),
    }
}

fn auth_config(registry: &str, entry: &serde_json::Value) -> cri::AuthConfig {
    let text = |key: &str| entry.get(key).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        use base64::Engine;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).unwrap_or_default();
        if let Some((user, pass)) = String::from_utf8_lossy(&decoded).split_once(':') {
            username = user.to_owned();
            password = pass.trim_end_matches('\0').to_owned();
        }
    }
    cri::AuthConfig {
        username,
        password,
        server_address: registry.to_owned(),
        identity_token: text("identitytoken"),
        ..Default::default()
    }
}
