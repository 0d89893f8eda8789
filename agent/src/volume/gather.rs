//! What a pod's volumes need from elsewhere: ConfigMaps, Secrets, tokens, trust bundles, certificates and claims, asked
//! for all at once.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;

use super::claim::{self, Backing, ClaimRef, Claimed};
use super::content::{self, Context, Fetched};
use super::plan::{self, Atomic, Source, Wanted};
use super::projection::{Certificate, Piece};
use super::setup::Job;
use super::{PodFacts, SetUpFailure, Volumes, host_path};
use crate::cgroup;
use crate::ids::{ObjectKey, PodUid};
use crate::objects::{CertificateAsk, ObjectError, TokenAsk};

/// Tokens are renewed at this age at the latest, whatever their life.
const MAX_TOKEN_AGE: Duration = Duration::from_secs(24 * 3600);

impl Volumes {
    /// Fetches what the volumes need and decides their files. Answers when a token has to be renewed.
    pub(super) async fn jobs(&self, pod: &Pod, facts: &PodFacts) -> (Vec<Job>, Option<SystemTime>) {
        let context = Context {
            pod,
            allocatable: &facts.node_allocatable,
            group: plan::fs_group(pod),
            user: plan::common_user(pod),
        };
        let gathered = plan::wanted(pod).into_iter().map(|wanted| self.gather(pod, facts, wanted));
        let gathered = join_all(gathered).await;
        let refresh_at = gathered.iter().flat_map(|(_, fetched)| fetched).filter_map(renewal).min();
        let bytes = |amount: Option<i64>| amount.and_then(|a| u64::try_from(a).ok());
        let pod_limit = bytes(cgroup::plan::pod_memory_limit(pod));
        let allocatable = bytes(facts.node_allocatable.get("memory").map(|memory| memory.value()));
        let jobs = gathered.into_iter().map(|(wanted, fetched)| {
            let (payload, limit) = match &wanted.source {
                Source::Atomic(atomic) => (content::payload(atomic, &fetched, &context), None),
                Source::EmptyDir { limit, .. } => (Ok(content::Payload::new()), *limit),
                Source::HostPath { .. }
                | Source::Claim(_)
                | Source::Local { .. }
                | Source::LocalDevice { .. }
                | Source::Failed(_) => (Ok(content::Payload::new()), None),
            };
            let is_transient = fetched.iter().any(|piece| matches!(piece, Fetched::Unavailable(_)));
            Job { payload, is_transient, size: plan::tmpfs_size(limit, pod_limit, allocatable), wanted }
        });
        (jobs.collect(), refresh_at)
    }

    async fn gather(&self, pod: &Pod, facts: &PodFacts, mut wanted: Wanted) -> (Wanted, Vec<Fetched>) {
        let fetched = match &wanted.source {
            Source::Atomic(atomic) => self.fetch(pod, &wanted.name, atomic).await,
            Source::Claim(claim) => {
                match self.claimed(pod, facts, claim).await {
                    Ok(claimed) => apply(&mut wanted, claimed),
                    Err(failure) => wanted.source = Source::Failed(failure),
                }
                Vec::new()
            }
            Source::EmptyDir { .. }
            | Source::HostPath { .. }
            | Source::Local { .. }
            | Source::LocalDevice { .. }
            | Source::Failed(_) => Vec::new(),
        };
        (wanted, fetched)
    }

    /// What a claim comes to: as it was decided for this pod before, or newly.
    async fn claimed(&self, pod: &Pod, facts: &PodFacts, wanted: &ClaimRef) -> Result<Claimed, SetUpFailure> {
        let uid = PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default());
        if let Some(known) = self.state(&uid, |state| state.claims.get(&wanted.volume).cloned()) {
            return Ok(known);
        }
        let unprocessed = |reason| SetUpFailure::Unprocessed { volume: wanted.volume.clone(), reason };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let objects = &self.inner.objects;
        let pvc = objects.claim(&ObjectKey::new(namespace, &wanted.claim)).await.map_err(|error| {
            let problem = format!("failed to fetch PVC from API server: {}", said(&error));
            unprocessed(claim::processing(pod, wanted, &problem))
        })?;
        let name = claim::bound(pod, wanted, &pvc).map_err(unprocessed)?;
        let pv = objects.persistent_volume(name).await.map_err(|error| {
            let problem = format!("failed to fetch PV {name} from API server: {}", said(&error));
            unprocessed(claim::processing(pod, wanted, &problem))
        })?;
        let claimed = claim::resolve(pod, wanted, &pvc, &pv, &facts.node_labels)?;
        self.reserve(&uid, &wanted.volume, &claimed)?;
        Ok(claimed)
    }

    /// Takes a volume for a pod; one that is for a single pod is refused while another has it.
    fn reserve(&self, uid: &PodUid, volume: &str, claimed: &Claimed) -> Result<(), SetUpFailure> {
        let mut pods = self.pods();
        let mut others = pods.iter().filter(|(other, _)| *other != uid).flat_map(|(_, state)| state.claims.values());
        if claimed.is_exclusive && others.any(|other| other.pv == claimed.pv) {
            let reason = "volume uses the ReadWriteOncePod access mode and is already in use by another pod".to_owned();
            return Err(SetUpFailure::set_up(&claimed.pv, reason));
        }
        pods.entry(uid.clone()).or_default().claims.insert(volume.to_owned(), claimed.clone());
        Ok(())
    }

    async fn fetch(&self, pod: &Pod, volume: &str, atomic: &Atomic) -> Vec<Fetched> {
        let pieces = atomic.pieces.iter().enumerate();
        join_all(pieces.map(|(source, piece)| self.fetch_piece(pod, piece, (volume, source)))).await
    }

    async fn fetch_piece(&self, pod: &Pod, piece: &Piece, place: (&str, usize)) -> Fetched {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let objects = &self.inner.objects;
        match piece {
            Piece::ConfigMap { name, optional, .. } => {
                match objects.config_map(&ObjectKey::new(namespace, name)).await {
                    Ok(map) => Fetched::ConfigMap(map),
                    Err(error) => absent(error, *optional),
                }
            }
            Piece::Secret { name, optional, .. } => match objects.secret(&ObjectKey::new(namespace, name)).await {
                Ok(secret) => Fetched::Secret(secret),
                Err(error) => absent(error, *optional),
            },
            Piece::Token { audience, expiration_seconds, .. } => {
                let ask = TokenAsk {
                    service_account: ObjectKey::new(namespace, service_account(pod)),
                    pod_name: pod.metadata.name.clone().unwrap_or_default(),
                    pod_uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()),
                    audience: audience.clone(),
                    expiration_seconds: *expiration_seconds,
                };
                match objects.token(&ask).await {
                    Ok(token) => Fetched::Token(token),
                    Err(error) => absent(error, false),
                }
            }
            Piece::TrustBundles { chosen, .. } => match chosen.reference() {
                Some(wanted) => match objects.trust_bundles(&wanted).await {
                    Ok(bundles) => Fetched::TrustBundles(bundles),
                    // Not absorbed by `optional`: whether there are bundles is not known.
                    Err(error) => Fetched::Unavailable(format!("clustertrustbundles: {}", said(&error))),
                },
                None => Fetched::Nothing,
            },
            Piece::Certificate(certificate) => {
                match objects.pod_certificate(&certificate_ask(pod, certificate, place)).await {
                    Ok(issued) => Fetched::Certificate(issued),
                    Err(error) => absent(error, false),
                }
            }
            Piece::Downward { .. } | Piece::Refused(_) => Fetched::Nothing,
        }
    }
}

fn service_account(pod: &Pod) -> &str {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
    account.filter(|account| !account.is_empty()).unwrap_or("default")
}

fn certificate_ask(pod: &Pod, wanted: &Certificate, (volume, source): (&str, usize)) -> CertificateAsk {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    CertificateAsk {
        pod: ObjectKey::new(namespace, pod.metadata.name.as_deref().unwrap_or_default()),
        pod_uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()),
        service_account: service_account(pod).to_owned(),
        volume: volume.to_owned(),
        source,
        signer: wanted.signer.clone(),
        key_type: wanted.key_type,
        max_expiration_seconds: wanted.max_expiration_seconds,
        annotations: wanted.annotations.clone(),
    }
}

/// Replaces a claim by what it comes to.
fn apply(wanted: &mut Wanted, claimed: Claimed) {
    wanted.read_only = claimed.read_only;
    wanted.source = match &claimed.backing {
        Backing::HostPath { path, kind } => match host_path::Kind::parse(kind) {
            Some(kind) => Source::HostPath { path: path.clone(), kind },
            None => Source::Failed(SetUpFailure::set_up(&claimed.pv, format!("{kind} is an invalid volume type"))),
        },
        Backing::Local { path, options } => Source::Local { path: path.clone(), options: options.clone() },
        Backing::LocalDevice { path } => Source::LocalDevice { path: path.clone() },
    };
    wanted.claimed = Some(claimed);
}

/// An error as the API server words it.
fn said(error: &ObjectError) -> String {
    match error {
        ObjectError::NotFound { kind, key } => format!("{kind} {:?} not found", &*key.name),
        ObjectError::Unavailable { reason, .. } | ObjectError::Refused { reason, .. } => reason.clone(),
    }
}

fn absent(error: ObjectError, optional: bool) -> Fetched {
    match error {
        ObjectError::NotFound { .. } if optional => Fetched::Nothing,
        ObjectError::NotFound { .. } | ObjectError::Refused { .. } => Fetched::Failed(said(&error)),
        ObjectError::Unavailable { .. } => Fetched::Unavailable(error.to_string()),
    }
}

/// When to ask again. A token is to be renewed at 80 % of its life, and after a day at the latest.
fn renewal(fetched: &Fetched) -> Option<SystemTime> {
    let token = match fetched {
        Fetched::Token(token) => token,
        Fetched::Certificate(issued) => {
            let seconds = u64::try_from(issued.look_again_at?).unwrap_or(0);
            return Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        }
        _ => return None,
    };
    let life = Duration::from_secs(u64::try_from(token.expires_at.saturating_sub(token.issued_at)).unwrap_or(0));
    let issued = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(token.issued_at).unwrap_or(0));
    Some(issued + (life * 4 / 5).min(MAX_TOKEN_AGE))
}
