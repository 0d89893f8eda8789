//! Credential providers: programs of the node's operator that know a registry's credentials (KEP-2133). Pure; `exec` runs them.
//!
//! A provider names images that it is for. Before a pull of one, it is run with a `CredentialProviderRequest` on standard
//! input and answers a `CredentialProviderResponse`: credentials by pattern, and for how long and for which images they
//! hold. They are everybody's on the node, like the node's own docker configuration, and are tried after it.
//!
//! Not here: service account tokens for providers (`tokenAttributes`, KEP-4412); the configuration says so.
//! Source: `pkg/credentialprovider/plugin` and `k8s.io/kubelet/pkg/apis/credentialprovider` v1.37.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::keyring::{Credential, DockerConfig, matches_url};

pub mod exec;

/// A provider as configured, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Name of the program below the directory of providers.
    pub name: String,
    /// Version of the request, such as `credentialprovider.kubelet.k8s.io/v1`; the answer has to be of it too.
    pub api_version: String,
    /// Images that it is asked about: hosts with `*`, ports, beginnings of paths.
    pub match_images: Vec<String>,
    /// How long an answer holds that does not say; zero is not at all.
    pub default_cache: Duration,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment, beside the agent's own.
    pub env: Vec<(String, String)>,
}

impl Provider {
    /// Whether it is asked about a repository.
    pub fn is_for(&self, repository: &str) -> bool {
        self.match_images.iter().any(|pattern| matches_url(pattern, repository))
    }

    /// The request on its standard input.
    pub fn request(&self, repository: &str) -> Vec<u8> {
        let request = serde_json::json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": self.api_version,
            "image": repository,
        });
        request.to_string().into_bytes()
    }
}

/// Which images an answer holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum CacheKeyType {
    /// The one that was asked about.
    Image,
    /// All of its registry.
    Registry,
    /// All.
    Global,
}

/// What a provider answered.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// Credentials by pattern.
    pub config: DockerConfig,
    /// Which images it holds for.
    pub key_type: CacheKeyType,
    /// How long it holds, when it says.
    pub duration: Option<Duration>,
}

/// Why an answer cannot be used. Texts never quote it: it holds passwords.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not JSON of the expected shape.
    #[error(
        "its answer is not a CredentialProviderResponse (line {line}, column {column}); expected cacheKeyType Image, Registry or Global and credentials in auth"
    )]
    Shape {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// Another kind or version.
    #[error("its answer is {found}; expected CredentialProviderResponse of {expected}")]
    Version {
        /// What it says that it is.
        found: String,
        /// The version of the request.
        expected: String,
    },
    /// `cacheDuration` is not a duration.
    #[error("cacheDuration of its answer is not a duration such as 5m0s")]
    Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawAnswer {
    kind: String,
    api_version: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, RawAuth>>,
}

#[derive(Deserialize)]
struct RawAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Reads what a provider wrote to its standard output.
pub fn parse_answer(bytes: &[u8], api_version: &str) -> Result<Answer, AnswerError> {
    let raw: RawAnswer = serde_json::from_slice(bytes)
        .map_err(|error| AnswerError::Shape { line: error.line(), column: error.column() })?;
    if raw.kind != "CredentialProviderResponse" || raw.api_version != api_version {
        let found = format!("{} of {}", raw.kind, raw.api_version);
        return Err(AnswerError::Version { found, expected: api_version.to_owned() });
    }
    let duration = match raw.cache_duration {
        Some(text) => Some(crate::config::duration::parse(&text).ok_or(AnswerError::Duration)?),
        None => None,
    };
    let credential =
        |raw: RawAuth| Credential { username: raw.username, password: raw.password, ..Credential::default() };
    let auth = raw.auth.unwrap_or_default().into_iter();
    let config = auth.map(|(pattern, auth)| (pattern, credential(auth))).collect();
    Ok(Answer { config, key_type: raw.cache_key_type, duration })
}

/// Answers that still hold.
#[derive(Default)]
pub struct Cache {
    answers: BTreeMap<CacheKey, (DockerConfig, Duration)>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum CacheKey {
    Image(String),
    Registry(String),
    Global,
}

fn registry(repository: &str) -> String {
    repository.split('/').next().unwrap_or_default().to_owned()
}

impl Cache {
    /// What holds for a repository at `now`, a time since an arbitrary beginning.
    pub fn get(&self, repository: &str, now: Duration) -> Option<DockerConfig> {
        let keys = [CacheKey::Image(repository.to_owned()), CacheKey::Registry(registry(repository)), CacheKey::Global];
        let found = keys.iter().filter_map(|key| self.answers.get(key));
        found.filter(|(_, until)| *until >= now).map(|(config, _)| config.clone()).next()
    }

    /// Keeps an answer for as long as it holds, and drops those that do not any more.
    pub fn put(&mut self, repository: &str, answer: &Answer, default: Duration, now: Duration) {
        self.answers.retain(|_, (_, until)| *until >= now);
        let holds = answer.duration.unwrap_or(default);
        if holds.is_zero() {
            return;
        }
        let key = match answer.key_type {
            CacheKeyType::Image => CacheKey::Image(repository.to_owned()),
            CacheKeyType::Registry => CacheKey::Registry(registry(repository)),
            CacheKeyType::Global => CacheKey::Global,
        };
        self.answers.insert(key, (answer.config.clone(), now.saturating_add(holds)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn make_answer(extra: &str) -> String {
        format!("{{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"{V1}\"{extra}}}")
    }

    fn parse(extra: &str) -> Result<Answer, AnswerError> {
        parse_answer(make_answer(extra).as_bytes(), V1)
    }

    #[test]
    fn the_request_is_kubelets() {
        let provider = Provider {
            name: "p".into(),
            api_version: V1.into(),
            match_images: vec!["*.dkr.io:5000/team".into()],
            default_cache: Duration::ZERO,
            args: Vec::new(),
            env: Vec::new(),
        };
        let request: serde_json::Value = serde_json::from_slice(&provider.request("a.dkr.io:5000/team/x")).unwrap();
        assert_eq!(request["kind"], "CredentialProviderRequest");
        assert_eq!(request["apiVersion"], V1);
        assert_eq!(request["image"], "a.dkr.io:5000/team/x");
        assert!(provider.is_for("a.dkr.io:5000/team/x"));
        assert!(!provider.is_for("a.dkr.io:5000/other") && !provider.is_for("a.dkr.io/team/x"));
    }

    #[test]
    fn an_answer_is_read_and_one_without_credentials_is_none() {
        let full = parse(
            ",\"cacheKeyType\":\"Registry\",\"cacheDuration\":\"1m30s\",\"auth\":{\"*.io\":{\"username\":\"u\",\
             \"password\":\"p\"}}",
        );
        let full = full.ok().unwrap();
        assert_eq!((full.key_type, full.duration), (CacheKeyType::Registry, Some(Duration::from_secs(90))));
        assert_eq!(full.config["*.io"].username, "u");
        let none = parse(",\"cacheKeyType\":\"Global\",\"auth\":null").ok().unwrap();
        assert!(none.config.is_empty() && none.duration.is_none());
    }

    #[test]
    fn an_answer_that_cannot_be_used_says_why_and_is_not_quoted() {
        for (text, part) in [
            (make_answer(""), "not a CredentialProviderResponse"),
            (make_answer(",\"cacheKeyType\":\"hunter2\""), "expected cacheKeyType Image, Registry or Global"),
            (make_answer(",\"cacheKeyType\":\"Image\",\"cacheDuration\":\"hunter2\""), "cacheDuration"),
            (
                make_answer(",\"cacheKeyType\":\"Image\",\"auth\":{\"a\":\"hunter2\"}"),
                "not a CredentialProviderResponse",
            ),
            (make_answer(",\"cacheKeyType\":\"Image\"").replace("/v1", "/v1beta1"), "v1beta1; expected"),
            ("hunter2".into(), "line 1"),
        ] {
            let error = parse_answer(text.as_bytes(), V1).err().unwrap().to_string();
            assert!(error.contains(part) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_answer_holds_for_what_it_says_and_as_long_as_it_says() {
        let answer = |kind: &str, duration: &str| {
            parse(&format!(
                ",\"cacheKeyType\":\"{kind}\"{duration},\"auth\":{{\"{kind}\":{{\"username\":\"u\",\"password\":\"p\"}}}}"
            ))
            .ok()
            .unwrap()
        };
        let second = Duration::from_secs;
        let found = |cache: &Cache, image: &str, now: u64| {
            cache.get(image, second(now)).map(|config| config.into_keys().next().unwrap_or_default())
        };
        let mut cache = Cache::default();
        cache.put("a.io/x", &answer("Image", ",\"cacheDuration\":\"10s\""), second(60), Duration::ZERO);
        cache.put("a.io/y", &answer("Registry", ""), second(60), Duration::ZERO);
        assert_eq!(found(&cache, "a.io/x", 10).as_deref(), Some("Image"), "the nearest answer first");
        assert_eq!(found(&cache, "a.io/x", 11).as_deref(), Some("Registry"));
        assert_eq!(found(&cache, "a.io/z", 60).as_deref(), Some("Registry"));
        assert_eq!(found(&cache, "a.io/z", 61), None);
        assert_eq!(found(&cache, "b.io/x", 0), None);
        cache.put("a.io/x", &answer("Global", ",\"cacheDuration\":\"0s\""), second(60), second(70));
        cache.put("a.io/x", &answer("Global", ""), Duration::ZERO, second(70));
        assert_eq!(found(&cache, "b.io/x", 70), None, "zero is not at all");
        assert!(cache.answers.is_empty(), "what no longer holds is dropped");
        cache.put("a.io/x", &answer("Global", ""), second(5), second(70));
        assert_eq!(found(&cache, "b.io/x", 75).as_deref(), Some("Global"));
    }
}
