//! Getting images onto the node, for containers and for image volumes.
//!
//! ```text
//!  name ─► reference (grammar, :latest) ─► on the node? ─► records: may this pod use it? ─► Pulled "already present"
//!                                             │ no, or policy Always      │ no
//!                                             └───────────────────────────┴─► credentials ─► slot ─► rate ─► runtime
//!  credentials, in order: the pod's pull secrets, the node's docker configuration, credential providers (`keyring`)
//! ```
//!
//! Policies: `Never` and `IfNotPresent` ask the runtime first; `Always` asks the registry at each start, and the runtime then
//! finds that the layers are there. An image that was pulled with one pod's Secret is not everybody's: `records`. Pulls run
//! in parallel up to a limit, in the order in which they were asked for; dropping the future cancels a pull. A pull beyond
//! `registryPullQPS` waits for its turn; kubelet fails it and backs off, which takes longer and spares the registry nothing.
//!
//! What it does not do: wait after a failure (`memory` does), remove images, or talk to registries.
//! Texts of events and reasons are kubelet's. Source: `pkg/kubelet/images` of k8s.io/kubernetes v1.37.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, Secret};
use nodelet_proto::cri;
use tokio::sync::{OnceCell, Semaphore};

use super::action::Failure;
use super::security::ImageUser;
use super::spec;
use crate::cri::{CriError, Runtime};
use crate::event::EventType;

pub mod keyring;
pub mod node_config;
pub mod provider;
pub mod rate;
pub mod records;
pub mod reference;

use keyring::{Keyring, Tracked};
use provider::Provider;
use provider::exec::Providers;
use rate::Bucket;
use records::disk::Records;
use records::{Access, Match, Policy, PullCredentials};
use reference::Reference;

/// An image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The runtime's reference; containers are created from it.
    pub reference: String,
    /// The user that the image names.
    pub user: ImageUser,
}

/// A pull that was needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its time, with waiting for a slot.
    pub total: Duration,
    /// Size of the image in bytes.
    pub size: u64,
}

/// Settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many pulls run at a time (`serializeImagePulls`, `maxParallelImagePulls`).
    pub parallel: usize,
    /// Pulls per second and burst (`registryPullQPS`, `registryBurst`); a rate of 0 is no limit.
    pub rate: (u32, u32),
    /// Which images on the node ask for credentials.
    pub policy: Policy,
    /// kubelet's directory: the node's docker configuration and the records are below it.
    pub root_dir: PathBuf,
    /// The agent's home directory, for `.docker/config.json`.
    pub home: PathBuf,
    /// Directory of credential providers, and the providers.
    pub providers: (PathBuf, Vec<Provider>),
}

/// The pull secrets of a pod: those that exist, and the names of those that do not.
#[derive(Clone, Default)]
pub struct PullSecrets {
    /// Secrets, in the order of the spec.
    pub found: Vec<Arc<Secret>>,
    /// Names that could not be had.
    pub missing: Vec<String>,
}

/// What is wanted, and how to tell about it.
pub struct Request<'a> {
    /// The pod that it is for.
    pub pod: &'a Pod,
    /// The image as the spec names it.
    pub image: &'a str,
    /// `imagePullPolicy` or `pullPolicy`.
    pub policy: &'a str,
    /// Fetches the pull secrets; called when they are needed, and then once.
    pub secrets: &'a (dyn Fn() -> BoxFuture<'a, PullSecrets> + Sync),
    /// Takes events about the image.
    pub tell: &'a (dyn Fn(EventType, &'static str, String) + Sync),
}

/// A request with what was found out about it.
struct Errand<'r, 'a> {
    request: &'r Request<'a>,
    /// The name that the runtime is given.
    name: String,
    repository: String,
    secrets: OnceCell<PullSecrets>,
}

impl Errand<'_, '_> {
    async fn secrets(&self) -> &PullSecrets {
        self.secrets.get_or_init(|| (self.request.secrets)()).await
    }

    /// Credentials of the pod's own Secrets.
    async fn own_credentials(&self) -> Result<Vec<Tracked>, Failure> {
        let keyring = Keyring::of_secrets(&self.secrets().await.found);
        Ok(keyring.map_err(|text| failure("ErrImagePull", text))?.lookup(&self.repository))
    }

    fn tell(&self, kind: EventType, reason: &'static str, text: String) {
        (self.request.tell)(kind, reason, text);
    }
}

/// Puller of images.
#[derive(Debug)]
pub struct Images {
    runtime: Runtime,
    slots: Semaphore,
    rate: Mutex<Bucket>,
    began: Instant,
    policy: Policy,
    records: Records,
    providers: Providers,
    root_dir: PathBuf,
    home: PathBuf,
}

impl Images {
    /// A puller. Fails when the directory of records cannot be made.
    pub fn new(runtime: Runtime, settings: Settings) -> std::io::Result<Self> {
        let (directory, providers) = settings.providers;
        Ok(Self {
            runtime,
            slots: Semaphore::new(settings.parallel.clamp(1, Semaphore::MAX_PERMITS)),
            rate: Mutex::new(Bucket::new(settings.rate.0, settings.rate.1)),
            began: Instant::now(),
            policy: settings.policy,
            records: Records::open(&settings.root_dir)?,
            providers: Providers::new(directory, providers),
            root_dir: settings.root_dir,
            home: settings.home,
        })
    }

    /// Settles what an earlier agent left: pulls that it did not see the end of, records of images that are gone.
    pub async fn recover(&self) {
        let listed = SystemTime::now();
        let images = match self.runtime.list_images().await {
            Ok(images) => images,
            Err(error) => {
                // Intents stay; they ask for credentials as records without any do.
                tracing::warn!(%error, "cannot list images; records of image pulls stay as they are");
                return;
            }
        };
        for intent in self.records.intents() {
            let full = full_name(&intent);
            let names = |image: &cri::Image| {
                let mut names = image.repo_tags.iter().chain(&image.repo_digests);
                names.any(|name| *name == intent || Some(name) == full.as_ref())
            };
            if let Some(image) = images.iter().find(|image| names(image)) {
                self.records.adopt(&intent, &image.id);
            }
        }
        let ids: Vec<String> = images.into_iter().map(|image| image.id).collect();
        self.forget_others(&ids, listed);
    }

    /// Removes the records of images that are not among `ids`, which were asked for at `listed`.
    pub fn forget_others(&self, ids: &[String], listed: SystemTime) {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        self.records.prune(&ids, listed);
    }

    /// Makes sure that an image is there and that the pod may use it; says how it was pulled, if it was.
    pub async fn ensure(&self, request: &Request<'_>) -> Result<(Image, Option<Pulled>), Failure> {
        let image = request.image;
        let parsed = reference::with_default_tag(image).and_then(|name| Ok((Reference::parse(image)?, name)));
        let (repository, name) = match parsed {
            Ok((reference, name)) => (reference.repository(), name),
            Err(error) => {
                let text = format!(
                    "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {error}"
                );
                (request.tell)(EventType::Warning, "InspectFailed", text.clone());
                return Err(failure("InvalidImageName", text));
            }
        };
        let errand = Errand { request, name, repository, secrets: OnceCell::new() };
        if request.policy != "Always"
            && let Some(found) = self.inspect(&errand).await?
            && self.may_use(&errand, &found.id).await?
        {
            let text = format!("Container image \"{image}\" already present on machine and can be accessed by the pod");
            errand.tell(EventType::Normal, "Pulled", text);
            return Ok((describe(&found), None));
        }
        if request.policy == "Never" {
            // The same words whether it is not there or not this pod's, so that nobody learns which images there are.
            let text = format!("Container image \"{image}\" is not present with pull policy of Never");
            errand.tell(EventType::Warning, "ErrImageNeverPull", text.clone());
            return Err(failure("ErrImageNeverPull", text));
        }
        self.pull(&errand).await
    }

    async fn inspect(&self, errand: &Errand<'_, '_>) -> Result<Option<cri::Image>, Failure> {
        self.runtime.image_status(&errand.name).await.map_err(|error| {
            let text = format!("Failed to inspect image \"{}\": {}", errand.name, grpc_text(&error));
            errand.tell(EventType::Warning, "InspectFailed", text.clone());
            failure("ImageInspectError", text)
        })
    }

    async fn may_use(&self, errand: &Errand<'_, '_>, id: &str) -> Result<bool, Failure> {
        let image = errand.request.image;
        let recorded = match records::access(&self.policy, image, &self.records.known(image, id)) {
            Access::Granted => return Ok(true),
            Access::Pull => return Ok(false),
            Access::With(recorded) => recorded,
        };
        let own = errand.own_credentials().await?;
        let own: Vec<_> = own.iter().filter_map(Tracked::secret).collect();
        Ok(match records::compare(&recorded, &own) {
            Match::None => false,
            Match::Found => true,
            Match::FoundAnew(secret) => {
                self.records.add(image, id, PullCredentials::of(Some(secret)));
                true
            }
        })
    }

    async fn pull(&self, errand: &Errand<'_, '_>) -> Result<(Image, Option<Pulled>), Failure> {
        let image = errand.request.image;
        let mut intent = Intent::begin(&self.records, image)?;
        errand.tell(EventType::Normal, "Pulling", format!("Pulling image \"{image}\""));
        let asked = Instant::now();
        let credentials = self.credentials(errand).await?;
        let _slot = self.slots.acquire().await.map_err(|_| failure("ErrImagePull", "the agent is stopping".into()))?;
        let wait = self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(self.began.elapsed());
        tokio::time::sleep(wait).await;
        let began = Instant::now();
        let (id, used) = match self.try_all(errand, credentials).await {
            Ok(pulled) => pulled,
            Err(text) => {
                let (reason, message) = judge(image, &text);
                errand.tell(EventType::Warning, "Failed", format!("Failed to pull image \"{image}\": {text}"));
                tell_missing(errand).await;
                return Err(failure(reason, message));
            }
        };
        let (pulled, total) = (began.elapsed(), asked.elapsed());
        intent.end(&id, PullCredentials::of(used.as_ref().and_then(Tracked::secret)));
        let status = self.runtime.image_status(&id).await;
        let found = status.map_err(|error| {
            failure("ImageInspectError", format!("Failed to inspect image \"{id}\": {}", grpc_text(&error)))
        })?;
        let size = found.as_ref().map_or(0, |found| found.size);
        let text = format!(
            "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {size} bytes.",
            go_millis(pulled),
            go_millis(total)
        );
        errand.tell(EventType::Normal, "Pulled", text);
        let image = found.map_or(Image { reference: id, user: ImageUser::default() }, |found| describe(&found));
        Ok((image, Some(Pulled { total, size })))
    }

    /// All credentials for the image, in the order in which they are tried.
    async fn credentials(&self, errand: &Errand<'_, '_>) -> Result<Vec<Tracked>, Failure> {
        let mut all = errand.own_credentials().await?;
        let mut node = Keyring::default();
        node.add(&None, node_config::read(&self.root_dir, &self.home));
        all.extend(node.lookup(&errand.repository));
        let mut provided = Keyring::default();
        for config in self.providers.lookup(&errand.repository).await {
            provided.add(&None, config);
        }
        all.extend(provided.lookup(&errand.repository));
        Ok(all)
    }

    /// Tries one credential after the other; without any, as anybody.
    async fn try_all(
        &self,
        errand: &Errand<'_, '_>,
        credentials: Vec<Tracked>,
    ) -> Result<(String, Option<Tracked>), String> {
        let tries: Vec<Option<Tracked>> =
            if credentials.is_empty() { vec![None] } else { credentials.into_iter().map(Some).collect() };
        let mut errors: Vec<String> = Vec::new();
        for tracked in tries {
            let auth = tracked.as_ref().map(|tracked| tracked.credential.to_wire());
            match self.runtime.pull_image(&errand.name, auth, Some(sandbox_config(errand.request.pod))).await {
                Ok(id) => return Ok((id, tracked)),
                Err(error) => {
                    let text = grpc_text(&error);
                    if !errors.contains(&text) {
                        errors.push(text);
                    }
                }
            }
        }
        Err(if errors.len() == 1 { errors.swap_remove(0) } else { format!("[{}]", errors.join(", ")) })
    }
}

/// A pull under way; dropped, it has failed or was cancelled.
struct Intent<'a> {
    records: &'a Records,
    image: &'a str,
    is_open: bool,
}

impl<'a> Intent<'a> {
    fn begin(records: &'a Records, image: &'a str) -> Result<Self, Failure> {
        records.begin(image).map_err(|error| {
            let text = format!("Failed to record image pull intent for container image \"{image}\": {error}");
            failure("ErrImagePull", text)
        })?;
        Ok(Self { records, image, is_open: true })
    }

    fn end(&mut self, id: &str, with: PullCredentials) {
        self.is_open = false;
        self.records.end(self.image, Some((id, with)));
    }
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.records.end(self.image, None);
        }
    }
}

/// A pull secret that does not exist is worth an event only when the image could not be pulled without it.
async fn tell_missing(errand: &Errand<'_, '_>) {
    let missing = &errand.secrets().await.missing;
    if !missing.is_empty() {
        let text = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        errand.tell(EventType::Warning, "FailedToRetrieveImagePullSecret", text);
    }
}

/// Reason and message of a failed pull. containerd and CRI-O put two words in front of errors that deserve a reason of
/// their own.
fn judge(image: &str, text: &str) -> (&'static str, String) {
    if let Some(rest) = text.strip_prefix("RegistryUnavailable") {
        let message = format!("image pull failed for {image} because the registry is unavailable{rest}");
        return ("RegistryUnavailable", message);
    }
    if let Some(rest) = text.strip_prefix("SignatureValidationFailed") {
        let message = format!("image pull failed for {image} because the signature validation failed{rest}");
        return ("SignatureValidationFailed", message);
    }
    ("ErrImagePull", text.to_owned())
}

/// Who pulls, for runtimes that choose snapshotters or mirrors by it.
fn sandbox_config(pod: &Pod) -> cri::PodSandboxConfig {
    let key = spec::key(pod);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: key.name.to_string(),
            namespace: key.namespace.to_string(),
            uid: spec::uid(pod).to_string(),
            attempt: 0,
        }),
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        ..Default::default()
    }
}

/// An error as gRPC for Go prints it, without the code that says nothing.
fn grpc_text(error: &CriError) -> String {
    match error {
        CriError::Failed { code: tonic::Code::Unknown, message, .. } => message.clone(),
        CriError::Failed { code: tonic::Code::Cancelled, message, .. } => {
            format!("rpc error: code = Canceled desc = {message}")
        }
        CriError::Failed { code, message, .. } => format!("rpc error: code = {code:?} desc = {message}"),
        CriError::Timeout { .. } | CriError::Malformed { .. } | CriError::Contradiction { .. } => error.to_string(),
    }
}

/// A duration in milliseconds as Go prints it: `412ms`, `1.412s`, `2m0.5s`.
fn go_millis(duration: Duration) -> String {
    crate::config::duration::format(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

/// The name by which the runtime lists an image.
fn full_name(image: &str) -> Option<String> {
    let reference = Reference::parse(image).ok()?;
    let repository = reference.repository();
    Some(match (reference.digest, reference.tag) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.as_deref().unwrap_or("latest")),
    })
}

fn failure(reason: &'static str, message: String) -> Failure {
    Failure { reason, message, container: None }
}

fn describe(image: &cri::Image) -> Image {
    Image {
        reference: image.id.clone(),
        user: ImageUser { uid: image.uid.as_ref().map(|u| u.value), username: image.username.clone() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_runtime_become_reasons_with_kubelets_texts() {
        for (text, reason, message) in [
            ("no such host", "ErrImagePull", "no such host"),
            (
                "RegistryUnavailable: pull QPS",
                "RegistryUnavailable",
                "image pull failed for a:1 because the registry is unavailable: pull QPS",
            ),
            (
                "SignatureValidationFailed",
                "SignatureValidationFailed",
                "image pull failed for a:1 because the signature validation failed",
            ),
        ] {
            assert_eq!(judge("a:1", text), (reason, message.to_owned()));
        }
    }

    #[test]
    fn errors_of_the_runtime_are_printed_as_grpc_for_go_does() {
        let text = |code| grpc_text(&CriError::Failed { call: "PullImage", code, message: "m".into() });
        assert_eq!(text(tonic::Code::Unknown), "m");
        assert_eq!(text(tonic::Code::NotFound), "rpc error: code = NotFound desc = m");
        assert_eq!(text(tonic::Code::Cancelled), "rpc error: code = Canceled desc = m");
    }

    #[test]
    fn durations_of_pulls_are_in_milliseconds() {
        let text = |micros| go_millis(Duration::from_micros(micros));
        assert_eq!([text(412_345), text(1_412_345), text(0)], ["412ms", "1.412s", "0s"]);
    }

    #[test]
    fn an_intent_is_found_by_the_name_under_which_the_runtime_lists_the_image() {
        assert_eq!(full_name("busybox").as_deref(), Some("docker.io/library/busybox:latest"));
        assert_eq!(full_name("reg.io/a:1").as_deref(), Some("reg.io/a:1"));
    }
}
