//! Who may use an image that is on the node: records of pulls, and what follows from them. Pure; `disk` keeps them.
//!
//! An image that was pulled with one tenant's Secret would otherwise be everybody's on that node (kubernetes#18787). So each
//! pull leaves a record: by image, then by name as pods write it, which credentials got it. A pod that finds the image on
//! the node may use it when it has one of these credentials, or when they were everybody's; otherwise it has to pull, and
//! the registry decides. Between the beginning and the end of a pull an intent stands for the record, so that an agent that
//! is killed meanwhile does not take the image for one that somebody else had put there.
//!
//! Layout, names and format are kubelet's (KEP-2535), so that either takes over the other's records:
//! `ROOT/image_manager/pulling/sha256-HASH` and `.../pulled/sha256-HASH`, of `kubelet.config.k8s.io/v1beta1`.
//! Source: `pkg/kubelet/images/pullmanager` of k8s.io/kubernetes v1.37.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keyring::hex;
use super::reference::{ReferenceError, without_tag};

pub mod disk;

/// Version that records are written in.
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Beginning of every version that can be read.
const API_GROUP: &str = "kubelet.config.k8s.io/";
/// Most Secrets that are added to a record only because they have the right password: namespaces come and go.
const MOST_ADDED: usize = 100;

/// A pull that has begun and is not known to have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullIntent {
    kind: String,
    api_version: String,
    /// The image as the container's spec names it.
    pub image: String,
}

/// An image that was pulled, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PulledRecord {
    kind: String,
    api_version: String,
    /// When it was last changed, RFC 3339 in whole seconds.
    pub last_updated_time: String,
    /// The image as the runtime identifies it.
    pub image_ref: String,
    /// By name in the container's spec, without tag and digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, PullCredentials>,
}

/// What an image was pulled with. Nothing at all means that it is not known, and everybody has to prove a right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullCredentials {
    /// Secrets of pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<PullSecret>,
    /// Service accounts of pods; written by a kubelet whose credential providers take their tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<PullServiceAccount>,
    /// Every pod of the node has what it takes: no credentials at all, or those of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

impl PullCredentials {
    /// Pulled with a pod's Secret, or with what is everybody's.
    pub fn of(secret: Option<PullSecret>) -> Self {
        match secret {
            Some(secret) => Self { kubernetes_secrets: vec![secret], ..Self::default() },
            None => Self { node_pods_accessible: true, ..Self::default() },
        }
    }
}

/// A Secret, and the hash of the credential in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// SHA-256 of the credential, see `keyring`.
    pub credential_hash: String,
}

impl PullSecret {
    fn is_same_object(&self, other: &Self) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullServiceAccount {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A record that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not JSON of the expected shape.
    #[error("not a record: {0}")]
    Json(#[from] serde_json::Error),
    /// It is something else.
    #[error("{kind} of {api_version}; expected {expected} of {API_GROUP}*")]
    Kind {
        /// Kind that was found.
        kind: String,
        /// Version that was found.
        api_version: String,
        /// Kind that was expected.
        expected: &'static str,
    },
}

impl PullIntent {
    /// An intent in the current format.
    pub fn new(image: &str) -> Self {
        Self { kind: "ImagePullIntent".into(), api_version: API_VERSION.into(), image: image.into() }
    }

    /// Reads an intent of any version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let found: Self = serde_json::from_slice(bytes)?;
        expect(&found.kind, &found.api_version, "ImagePullIntent")?;
        Ok(found)
    }
}

impl PulledRecord {
    /// Reads a record of any version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let found: Self = serde_json::from_slice(bytes)?;
        expect(&found.kind, &found.api_version, "ImagePulledRecord")?;
        Ok(found)
    }
}

fn expect(kind: &str, api_version: &str, expected: &'static str) -> Result<(), RecordError> {
    if kind == expected && api_version.starts_with(API_GROUP) {
        return Ok(());
    }
    Err(RecordError::Kind { kind: kind.into(), api_version: api_version.into(), expected })
}

/// A record or intent as it is written, with the newline that Go's encoder ends with.
fn encode(object: &impl Serialize) -> Vec<u8> {
    // Serializing plain data to JSON cannot fail.
    let mut bytes = serde_json::to_vec(object).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// File name of what is recorded under a name.
pub fn file_name(name: &str) -> String {
    format!("sha256-{}", hex(&Sha256::digest(name)))
}

/// `imagePullCredentialsVerificationPolicy`: which images that are there ask for credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None.
    NeverVerify,
    /// Those that this node's agent has pulled.
    #[default]
    NeverVerifyPreloadedImages,
    /// All but those that match a list: repositories, or prefixes that end in `/`.
    NeverVerifyAllowlistedImages(Allowlist),
    /// All.
    AlwaysVerify,
}

/// Images that never ask for credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowlist {
    names: Vec<String>,
    prefixes: Vec<String>,
}

impl Allowlist {
    /// Reads `preloadedImagesVerificationAllowlist`: repositories without tag and digest, or `prefix/*`.
    pub fn parse(patterns: &[String]) -> Result<Self, String> {
        let mut list = Self::default();
        for pattern in patterns {
            let problem = |text: &str| Err(format!("\"{pattern}\" is not allowed; {text}"));
            match pattern.strip_suffix('*').filter(|prefix| prefix.ends_with('/')) {
                _ if pattern.trim() != pattern => return problem("expected no spaces around it"),
                Some("/") => return problem("expected a registry before /*"),
                Some(prefix) if prefix.contains('*') => return problem("expected a * at the end only, after a /"),
                Some(prefix) => list.prefixes.push(prefix.to_owned()),
                None if pattern.contains('*') => return problem("expected a * at the end only, after a /"),
                None => match without_tag(pattern) {
                    Ok(name) if name == *pattern => list.names.push(name),
                    Ok(_) => return problem("expected an image without tag and digest"),
                    Err(error) => return problem(&format!("expected an image: {error}")),
                },
            }
        }
        Ok(list)
    }

    fn contains(&self, image: &str) -> bool {
        let name = without_tag(image).unwrap_or_else(|_| image.to_owned());
        self.names.contains(&name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

impl Policy {
    fn asks_for_credentials(&self, image: &str, is_ours: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => is_ours,
            Self::NeverVerifyAllowlistedImages(list) => !list.contains(image),
            Self::AlwaysVerify => true,
        }
    }
}

/// What is recorded about an image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: somebody else put it there.
    Nothing,
    /// A pull of it is under way, or was when an agent was killed.
    Intent,
    /// It was pulled.
    Pulled(PulledRecord),
    /// The record cannot be read.
    Unreadable,
}

/// Whether a pod may use an image that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every pod may.
    Granted,
    /// The pod has to ask the registry.
    Pull,
    /// A pod that has one of these may.
    With(PullCredentials),
}

/// Decides from what is recorded.
pub fn access(policy: &Policy, image: &str, known: &Known) -> Access {
    let record = match known {
        Known::Unreadable => return Access::Pull,
        Known::Nothing | Known::Intent => None,
        Known::Pulled(record) => Some(record),
    };
    if !policy.asks_for_credentials(image, *known != Known::Nothing) {
        return Access::Granted;
    }
    let name = without_tag(image);
    let credentials = record.and_then(|record| record.credential_mapping.get(name.as_deref().ok()?));
    match credentials {
        None => Access::Pull,
        Some(found) if found.node_pods_accessible => Access::Granted,
        Some(found) if found.kubernetes_secrets.is_empty() => Access::Pull,
        Some(found) => Access::With(found.clone()),
    }
}

/// What the comparison of a pod's Secrets with a record came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// None of them got the image.
    None,
    /// One of them did.
    Found,
    /// One did under another name or with another password; from now on it is recorded as well.
    FoundAnew(PullSecret),
}

/// Compares: the same credential is as good as the same Secret, whose password may have been changed since.
pub fn compare(recorded: &PullCredentials, secrets: &[PullSecret]) -> Match {
    let may_add = recorded.kubernetes_secrets.len() < MOST_ADDED;
    for secret in secrets {
        for known in &recorded.kubernetes_secrets {
            let same_hash = !known.credential_hash.is_empty() && known.credential_hash == secret.credential_hash;
            match (same_hash, known.is_same_object(secret)) {
                (true, true) => return Match::Found,
                (true, false) if may_add => return Match::FoundAnew(secret.clone()),
                (true, false) => return Match::Found,
                (false, true) if may_add => return Match::FoundAnew(secret.clone()),
                (false, _) => {}
            }
        }
    }
    Match::None
}

/// The record after a pull of `image_ref` by the name `image`, or `None` when the old one says it all.
/// `with` is `None` for an image that came while nobody looked: it is ours, and everybody has to prove a right.
pub fn merged(
    old: Option<PulledRecord>,
    image: &str,
    image_ref: &str,
    with: Option<PullCredentials>,
    now: &str,
) -> Result<Option<PulledRecord>, ReferenceError> {
    let name = without_tag(image)?;
    let is_new = old.is_none();
    let mut record = old.unwrap_or_else(|| PulledRecord {
        kind: "ImagePulledRecord".into(),
        api_version: API_VERSION.into(),
        last_updated_time: String::new(),
        image_ref: image_ref.to_owned(),
        credential_mapping: BTreeMap::new(),
    });
    let changed = with.is_some_and(|with| merge(record.credential_mapping.entry(name).or_default(), with));
    // A new record says something even when nothing is known of credentials: that the image is ours.
    if !changed && !is_new {
        return Ok(None);
    }
    API_VERSION.clone_into(&mut record.api_version);
    now.clone_into(&mut record.last_updated_time);
    Ok(Some(record))
}

fn merge(known: &mut PullCredentials, with: PullCredentials) -> bool {
    if known.node_pods_accessible {
        return false;
    }
    if with.node_pods_accessible {
        *known = with;
        return true;
    }
    let mut changed = false;
    for secret in with.kubernetes_secrets {
        match known.kubernetes_secrets.iter_mut().find(|k| k.is_same_object(&secret)) {
            Some(same) if *same == secret => continue,
            Some(same) => *same = secret,
            None => known.kubernetes_secrets.push(secret),
        }
        changed = true;
    }
    known.kubernetes_secrets.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    changed
}

#[cfg(test)]
mod tests;
