//! Service account tokens for pods, by TokenRequest: cached by the whole request, renewed at 80 % of their life or
//! after a day, whichever is first, each node a little earlier than that by chance.
//!
//! A token that cannot be renewed is served until it expires: the workload outlives an API server that is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::watch::{error_text, jitter};
use crate::ids::PodUid;
use crate::objects::{ObjectError, Token, TokenAsk};

const DAY: i64 = 24 * 3600;
/// Most that chance takes off the renewal time.
const MAX_JITTER: f64 = 10.0;

struct Cached {
    token: Token,
    renew_at: i64,
}

/// One slot per request; its lock lets one caller ask while others wait for the answer.
type Slot = Arc<tokio::sync::Mutex<Option<Cached>>>;

/// The cache.
pub(super) struct Tokens {
    client: kube::Client,
    slots: Mutex<HashMap<TokenAsk, Slot>>,
}

impl Tokens {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, slots: Mutex::default() }
    }

    /// Drops the tokens of a pod.
    pub(super) fn forget(&self, pod: &PodUid) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).retain(|ask, _| ask.pod_uid != *pod);
    }

    pub(super) async fn token(&self, ask: &TokenAsk) -> Result<Token, ObjectError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(ask.clone()).or_default().clone()
        };
        let mut cached = slot.lock().await;
        let now = now();
        if let Some(known) = cached.as_ref().filter(|known| now < known.renew_at) {
            return Ok(known.token.clone());
        }
        match self.request(ask).await {
            Ok(token) => {
                let renew_at = renew_at(token.issued_at, token.expires_at, jitter());
                *cached = Some(Cached { token: token.clone(), renew_at });
                Ok(token)
            }
            Err(error) => match cached.as_ref().filter(|known| now < known.token.expires_at) {
                Some(known) => {
                    tracing::warn!(%error, "cannot renew a service account token, the old one is still valid");
                    Ok(known.token.clone())
                }
                None => Err(error),
            },
        }
    }

    async fn request(&self, ask: &TokenAsk) -> Result<Token, ObjectError> {
        let key = &ask.service_account;
        let unavailable =
            |reason: String| ObjectError::Unavailable { kind: "serviceaccount token", key: key.clone(), reason };
        let audiences = if ask.audience.is_empty() { Vec::new() } else { vec![ask.audience.clone()] };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audiences),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(ask.pod_name.clone()),
                    uid: Some(ask.pod_uid.to_string()),
                }),
                expiration_seconds: Some(ask.expiration_seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let issued_at = now();
        match api.create_token_request(&key.name, &PostParams::default(), &request).await {
            Ok(answer) => {
                let status = answer.status.unwrap_or_default();
                let (Some(token), Some(expiry)) = (status.token, status.expiration_timestamp) else {
                    return Err(unavailable("the API server answered without a token or its expiry".to_owned()));
                };
                Ok(Token { token, expires_at: expiry.0.as_second(), issued_at })
            }
            Err(kube::Error::Api(status)) if status.code == 404 && status.message.contains("serviceaccounts") => {
                Err(ObjectError::NotFound { kind: "serviceaccount", key: key.clone() })
            }
            Err(error) => Err(unavailable(error_text(&error))),
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Times in seconds; `chance` is in `0.0..1.0`.
fn renew_at(issued_at: i64, expires_at: i64, chance: f64) -> i64 {
    let life = (expires_at - issued_at).max(0);
    let wanted = (life * 4 / 5).min(DAY);
    issued_at + wanted - (chance * MAX_JITTER.min(wanted as f64 / 10.0)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life_or_daily() {
        assert_eq!(renew_at(1000, 4600, 0.0), 1000 + 2880);
        assert_eq!(renew_at(1000, 4600, 0.999), 1000 + 2880 - 9);
        assert_eq!(renew_at(0, 365 * DAY, 0.0), DAY);
        assert_eq!(renew_at(1000, 900, 0.5), 1000, "clocks may disagree");
    }
}
