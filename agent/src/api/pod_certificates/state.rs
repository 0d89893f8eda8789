//! The life of one pod certificate. Pure: `now` (seconds since the epoch) and chance are arguments.
//!
//! ```text
//!  Initial ──► Waiting ──issued──► Held ──time to refresh──► Waiting { held } ──issued──► Held
//!                 └──denied, failed──► Refused, for the pod's life ◄──┘
//! ```
//! Source: kubelet's `podcertificate.IssuingManager` of v1.37. Another agent asks anew, as after a restart of kubelet:
//! keys are in memory and in the volume only.

use std::sync::Arc;

/// Most that chance adds to the time of a refresh, so that pods of one Deployment do not ask together.
const REFRESH_JITTER: i64 = 300;
/// After this long a refresh is late, and people are told.
const OVERDUE: i64 = 600;
/// A request that somebody deleted is replaced at this age, plus chance; kubelet waits ten minutes, because its cache
/// cannot tell a deleted request from one that it has not seen yet.
const REPLACE_AFTER: i64 = 60;

/// A key and the chain that was issued to it. It has no `Debug`, so that it cannot reach a log.
pub(super) struct Credential {
    /// PKCS#8.
    pub(super) key: Arc<[u8]>,
    /// PEM text as the signer wrote it.
    pub(super) chain: Arc<str>,
}

/// What was issued.
pub(super) struct Held {
    credential: Credential,
    refresh_at: i64,
    not_after: i64,
    told_overdue: bool,
    told_expired: bool,
}

/// A request that its signer has not answered.
pub(super) struct Pending {
    /// Name of the PodCertificateRequest.
    name: String,
    key: Arc<[u8]>,
    replace_at: i64,
}

/// Where a certificate is in its life.
#[derive(Default)]
pub(super) enum State {
    /// Nothing was asked for.
    #[default]
    Initial,
    /// A request is with its signer; what was issued before is served meanwhile.
    Waiting { pending: Pending, held: Option<Held> },
    /// There is a certificate, and it is not time for the next.
    Held(Held),
    /// The signer said no.
    Refused(String),
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nothing yet.
    Pending,
    /// The certificate.
    Issued { chain: Arc<str>, begin_refresh_at: i64, not_after: i64 },
    /// The signer will not issue it.
    Denied { reason: String, message: String },
    /// The signer cannot issue it.
    Failed { reason: String, message: String },
    /// Somebody deleted the request.
    Deleted,
}

/// What people are told, in kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl State {
    /// Whether it is time to ask a signer.
    pub(super) fn wants_request(&self, now: i64) -> bool {
        match self {
            Self::Initial => true,
            Self::Held(held) => now >= held.refresh_at,
            Self::Waiting { .. } | Self::Refused(_) => false,
        }
    }

    /// A request was made, with a new key.
    pub(super) fn requested(self, name: String, key: Arc<[u8]>, now: i64, chance: f64) -> Self {
        let replace_at = now + REPLACE_AFTER + (chance * REPLACE_AFTER as f64) as i64;
        let held = match self {
            Self::Held(held) | Self::Waiting { held: Some(held), .. } => Some(held),
            Self::Initial | Self::Waiting { held: None, .. } | Self::Refused(_) => None,
        };
        Self::Waiting { pending: Pending { name, key, replace_at }, held }
    }

    /// Takes in what is known of the request that is waited for. `namespace` is for the text.
    pub(super) fn heard(self, answer: Answer, namespace: &str, now: i64, chance: f64) -> (Self, Option<Note>) {
        let Self::Waiting { pending, held } = self else { return (self, None) };
        let name = format!("{namespace}/{}", pending.name);
        let refused = |verb: &str, kind: &'static str, how: &str, reason: String, message: String| {
            let told = format!("PodCertificateRequest {name} {how}, reason={reason:?}, message={message:?}");
            let text = format!("PodCertificateRequest was permanently {verb}: reason={reason:?} message={message:?}");
            (Self::Refused(text), Some(Note { reason: kind, message: told }))
        };
        match answer {
            Answer::Issued { chain, begin_refresh_at, not_after } => {
                let credential = Credential { key: pending.key, chain };
                let refresh_at = begin_refresh_at + (chance * REFRESH_JITTER as f64) as i64;
                let held = Held { credential, refresh_at, not_after, told_overdue: false, told_expired: false };
                (Self::Held(held), None)
            }
            Answer::Denied { reason, message } => refused("denied", "Denied", "was denied", reason, message),
            Answer::Failed { reason, message } => refused("failed", "Failed", "failed", reason, message),
            Answer::Deleted if now >= pending.replace_at => (held.map_or(Self::Initial, Self::Held), None),
            Answer::Deleted | Answer::Pending => (Self::Waiting { pending, held }, None),
        }
    }

    /// What has to be told now of a certificate that is not renewed. Each is told once.
    pub(super) fn reminders(&mut self, now: i64) -> Vec<Note> {
        let (Self::Held(held) | Self::Waiting { held: Some(held), .. }) = self else { return Vec::new() };
        let mut notes = Vec::new();
        let mut tell = |told: &mut bool, at: i64, reason, message: &str| {
            if now >= at && !*told {
                *told = true;
                notes.push(Note { reason, message: message.to_owned() });
            }
        };
        let overdue_at = held.refresh_at + OVERDUE;
        tell(&mut held.told_overdue, overdue_at, "CertificateOverdueForRefresh", "PodCertificate refresh overdue");
        tell(&mut held.told_expired, held.not_after, "CertificateExpired", "PodCertificate expired");
        notes
    }

    /// When something is to be done that no answer of the signer starts, if there is such a time.
    pub(super) fn next_look(&self, now: i64) -> Option<i64> {
        let reminder = |held: &Held| {
            let overdue = (!held.told_overdue).then_some(held.refresh_at + OVERDUE);
            let expired = (!held.told_expired).then_some(held.not_after);
            [overdue, expired].into_iter().flatten().min()
        };
        match self {
            Self::Initial | Self::Refused(_) => None,
            Self::Held(held) => Some(held.refresh_at),
            // A request that was deleted early is replaced then; the others cost one look.
            Self::Waiting { held, pending } => {
                let replacement = Some(pending.replace_at).filter(|at| *at > now);
                [held.as_ref().and_then(reminder), replacement].into_iter().flatten().min()
            }
        }
    }

    /// What there is to put into the volume.
    pub(super) fn credential(&self) -> Option<&Credential> {
        match self {
            Self::Held(held) | Self::Waiting { held: Some(held), .. } => Some(&held.credential),
            Self::Initial | Self::Waiting { held: None, .. } | Self::Refused(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
