//! Who the caller is and what it may do, as the API server decides: TokenReview and SubjectAccessReview, with kubelet's
//! caches.
//!
//! An answer that cannot be had is an error, never a yes. A refusal is kept shorter than a permission, so that a role that
//! was just bound works soon.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Api;
use kube::api::PostParams;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::route::Access;
use crate::api::watch::error_text;
use crate::config::kubelet::Authorization;

/// Entries of one cache. A flood of different tokens costs that much memory and no more.
const CAPACITY: usize = 1024;
/// Questions to the API server at a time. A flood of tokens must not crowd out the node's own requests, above all its lease.
const QUESTIONS: usize = 16;

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// UID, from a token.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// More attributes, from a token, sorted by name.
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    /// A user by name and groups, as a certificate says.
    pub fn new(name: String, groups: Vec<String>) -> Self {
        Self { name, uid: String::new(), groups, extra: Vec::new() }
    }
}

/// Values with an end.
struct Cache<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Self { entries: Mutex::default() }
    }

    fn get(&self, key: &K, now: Instant) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(_, end)| now < *end).map(|(value, _)| value.clone())
    }

    fn put(&self, key: K, value: V, end: Instant, now: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= CAPACITY {
            entries.retain(|_, (_, end)| now < *end);
        }
        if entries.len() < CAPACITY {
            entries.insert(key, (value, end));
        }
    }
}

/// Asks the API server.
pub struct Reviewer {
    client: kube::Client,
    node: String,
    /// How long the owner of a token is remembered; `None` when tokens are not asked about.
    token_ttl: Option<Duration>,
    authorization: Authorization,
    /// Keys are hashes: a token does not stay in memory.
    tokens: Cache<[u8; 32], User>,
    decisions: Cache<(User, &'static str, &'static str), bool>,
    /// Tokens that are nobody's are kept apart: a flood of them does not take the place of those that are somebody's.
    strangers: Cache<[u8; 32], ()>,
    questions: Semaphore,
}

impl Reviewer {
    /// A reviewer for the API of node `node`.
    pub fn new(client: kube::Client, node: String, token_ttl: Option<Duration>, authorization: Authorization) -> Self {
        Self {
            client,
            node,
            token_ttl,
            authorization,
            tokens: Cache::new(),
            decisions: Cache::new(),
            strangers: Cache::new(),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// The owner of a bearer token; `None` when it is nobody's. An error says that the API server could not tell.
    pub async fn token(&self, token: &str) -> Result<Option<User>, String> {
        let Some(ttl) = self.token_ttl else { return Ok(None) };
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(known) = self.tokens.get(&key, Instant::now()) {
            return Ok(Some(known));
        }
        if self.strangers.get(&key, Instant::now()).is_some() {
            return Ok(None);
        }
        // The semaphore is never closed.
        let _turn = self.questions.acquire().await;
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|error| error_text(&error))?;
        let status = answer.status.unwrap_or_default();
        if let Some(error) = status.error.filter(|error| !error.is_empty()) {
            tracing::debug!(error, "token review");
        }
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default().into_iter().collect(),
        });
        let now = Instant::now();
        match &user {
            Some(user) => self.tokens.put(key, user.clone(), now + ttl, now),
            None => self.strangers.put(key, (), now + ttl, now),
        }
        Ok(user)
    }

    /// Whether a user may do it.
    pub async fn may(&self, user: &User, access: &Access) -> Result<bool, String> {
        let (allowed_ttl, denied_ttl) = match self.authorization {
            Authorization::AlwaysAllow => return Ok(true),
            Authorization::Webhook { allowed, denied } => (allowed, denied),
        };
        for &subresource in access.subresources {
            let key = (user.clone(), access.verb, subresource);
            let known = self.decisions.get(&key, Instant::now());
            let allowed = match known {
                Some(allowed) => allowed,
                None => {
                    let allowed = self.ask(user, access.verb, subresource).await?;
                    let now = Instant::now();
                    let ttl = if allowed { allowed_ttl } else { denied_ttl };
                    self.decisions.put(key, allowed, now + ttl, now);
                    allowed
                }
            };
            if allowed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn ask(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, String> {
        let _turn = self.questions.acquire().await;
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some(subresource.to_owned()),
            name: Some(self.node.clone()),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.iter().cloned().collect()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await.map_err(|error| error_text(&error))?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_ends_and_a_flood_of_keys_is_bounded() {
        let cache = Cache::new();
        let start = Instant::now();
        cache.put("a".to_owned(), true, start + Duration::from_secs(30), start);
        assert_eq!(cache.get(&"a".to_owned(), start), Some(true));
        assert_eq!(cache.get(&"a".to_owned(), start + Duration::from_secs(30)), None);
        for index in 0..2 * CAPACITY {
            cache.put(index.to_string(), false, start + Duration::from_secs(60), start);
        }
        assert_eq!(cache.entries.lock().expect("lock").len(), CAPACITY);
        assert_eq!(cache.get(&"a".to_owned(), start), Some(true), "a flood does not push out what is known");
        cache.put("later".to_owned(), true, start + Duration::from_secs(99), start + Duration::from_secs(61));
        assert_eq!(cache.entries.lock().expect("lock").len(), 1, "what has ended makes room");
    }
}
