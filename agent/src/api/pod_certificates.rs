//! Certificates for pods by PodCertificateRequest (KEP-4317): one request for each `podCertificate` source, renewed when
//! its signer says so.
//!
//! ```text
//!  volume wants it ─► key, POST request ─► watch of that one request ─► issued ─► pod is woken, volume is written
//!                     └─ again at beginRefreshAt, up to 5 min later by chance      └─ denied, failed: event, for good
//! ```
//! `state` decides, `key` makes keys; here are the requests. A request is watched by name until it is answered, so a
//! node without such pods asks for nothing, and neither do certificates that are fresh. While the API server is away the
//! last certificate is served, also after it has expired, as under kubelet. Keys are here and in the volume, nowhere
//! else; the next agent asks for new ones.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequestSpec, PodCertificateRequestStatus};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::PostParams;
use kube::core::{ApiResource, GroupVersionKind, Object, TypeMeta};
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};

use super::objects::{FIRST_ANSWER, lock};
use super::watch::{WatchHandle, error_text, jitter, spawn_watch};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::PodUid;
use crate::objects::{CertificateAsk, ObjectError, PodCertificate};
use crate::watch::{WatchEvent, WatchSink};
use state::{Answer, Note, State};

mod key;
mod state;

const KIND: &str = "podcertificaterequest";
/// After a request that could not be made while there still is a certificate.
const RETRY: i64 = 30;

/// `v1` has the same fields as `v1beta1`, which is the newest that the client's types know.
type Request = Object<PodCertificateRequestSpec, PodCertificateRequestStatus>;

/// One source of one volume of one pod.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    pod: PodUid,
    volume: String,
    source: usize,
}

#[derive(Default)]
struct Entry {
    state: State,
    following: Option<Following>,
}

/// The watch of a request without an answer.
struct Following {
    answers: watch::Receiver<Answer>,
    _watch: WatchHandle,
}

/// Its lock lets one caller ask while others wait for the answer.
type Slot = Arc<tokio::sync::Mutex<Entry>>;

/// The certificates of this node's pods.
pub(super) struct PodCertificates {
    client: kube::Client,
    changed: mpsc::UnboundedSender<PodUid>,
    recorder: Recorder,
    node: watch::Receiver<Option<Arc<Node>>>,
    slots: Mutex<HashMap<Key, Slot>>,
}

impl PodCertificates {
    pub(super) fn new(
        client: kube::Client,
        changed: mpsc::UnboundedSender<PodUid>,
        recorder: Recorder,
        node: watch::Receiver<Option<Arc<Node>>>,
    ) -> Self {
        Self { client, changed, recorder, node, slots: Mutex::default() }
    }

    /// Drops keys and certificates of a pod.
    pub(super) fn forget(&self, pod: &PodUid) {
        lock(&self.slots).retain(|key, _| key.pod != *pod);
    }

    /// What there is for a source now. Asks a signer when it is time, and waits a moment for the first certificate.
    pub(super) async fn certificate(&self, ask: &CertificateAsk) -> Result<PodCertificate, ObjectError> {
        let key = Key { pod: ask.pod_uid.clone(), volume: ask.volume.clone(), source: ask.source };
        let slot = lock(&self.slots).entry(key).or_default().clone();
        let mut entry = slot.lock().await;
        self.hear(ask, &mut entry);
        let mut retry_at = None;
        if entry.state.wants_request(now()) {
            match self.request(ask).await {
                Ok((name, key)) => {
                    entry.state = std::mem::take(&mut entry.state).requested(name.clone(), key, now(), jitter());
                    entry.following = Some(self.follow(ask, &name));
                }
                Err(error) if entry.state.credential().is_none() => return Err(error),
                Err(error) => {
                    tracing::warn!(pod = %ask.pod, %error, "cannot renew a pod's certificate, it keeps the old one");
                    retry_at = Some(now() + RETRY);
                }
            }
        }
        if entry.state.credential().is_none()
            && let Some(following) = &entry.following
        {
            let mut answers = following.answers.clone();
            // Without an answer the pod is woken by the one that comes.
            let _ = tokio::time::timeout(FIRST_ANSWER, answers.wait_for(|a| *a != Answer::Pending)).await;
            self.hear(ask, &mut entry);
        }
        for note in entry.state.reminders(now()) {
            self.tell(ask, note);
        }
        self.served(ask, &entry.state, retry_at)
    }

    fn served(
        &self,
        ask: &CertificateAsk,
        state: &State,
        retry_at: Option<i64>,
    ) -> Result<PodCertificate, ObjectError> {
        if let State::Refused(reason) = state {
            return Err(ObjectError::Refused { kind: KIND, key: ask.pod.clone(), reason: reason.clone() });
        }
        match state.credential() {
            Some(held) => Ok(PodCertificate {
                key: held.key.clone(),
                chain: held.chain.clone(),
                look_again_at: retry_at.or_else(|| state.next_look(now())),
            }),
            None => Err(unavailable(ask, "credential bundle is not issued yet".to_owned())),
        }
    }

    /// Takes in what the watch has heard.
    fn hear(&self, ask: &CertificateAsk, entry: &mut Entry) {
        let Some(following) = &entry.following else { return };
        let answer = following.answers.borrow().clone();
        let (state, note) = std::mem::take(&mut entry.state).heard(answer, &ask.pod.namespace, now(), jitter());
        if !matches!(state, State::Waiting { .. }) {
            entry.following = None;
        }
        entry.state = state;
        if let Some(note) = note {
            self.tell(ask, note);
        }
    }

    fn tell(&self, ask: &CertificateAsk, note: Note) {
        let subject = Subject::Pod { key: ask.pod.clone(), uid: ask.pod_uid.clone(), field_path: String::new() };
        let Note { reason, message } = note;
        self.recorder.emit(Event { subject, kind: EventType::Warning, reason, message });
    }

    /// Makes a key and a request for it; answers the request's name.
    async fn request(&self, ask: &CertificateAsk) -> Result<(String, Arc<[u8]>), ObjectError> {
        let namespace = &ask.pod.namespace;
        let node = self.node.borrow().clone();
        let node = node.ok_or_else(|| unavailable(ask, "the node is not registered yet".to_owned()))?;
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        let account = accounts.get(&ask.service_account).await;
        let account = account.map_err(|e| unavailable(ask, format!("while fetching service account: {}", said(&e))))?;
        let made = key::make(ask.key_type).map_err(|e| unavailable(ask, format!("cannot make a key: {e}")))?;
        let request = body(ask, &node, account.metadata.uid.unwrap_or_default(), made.request);
        let created = self.api(namespace).create(&PostParams::default(), &request).await;
        let created = created.map_err(|e| unavailable(ask, format!("while creating on API: {}", said(&e))))?;
        match created.metadata.name {
            Some(name) => Ok((name, made.key)),
            None => Err(unavailable(ask, "the API server answered with a request that has no name".to_owned())),
        }
    }

    fn api(&self, namespace: &str) -> Api<Request> {
        Api::namespaced_with(self.client.clone(), namespace, &resource())
    }

    fn follow(&self, ask: &CertificateAsk, request: &str) -> Following {
        let (answers, receiver) = watch::channel(Answer::Pending);
        let node = self.node.borrow().as_ref().and_then(|node| node.metadata.name.clone()).unwrap_or_default();
        // The Node authorizer wants the node's name in it.
        let fields = format!("metadata.name={request},spec.nodeName={node}");
        let sink = RequestSink { answers, pod: ask.pod_uid.clone(), changed: self.changed.clone(), listed: None };
        let api = self.api(&ask.pod.namespace);
        Following { answers: receiver, _watch: spawn_watch(api, watcher::Config::default().fields(&fields), sink) }
    }
}

fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("certificates.k8s.io", "v1", "PodCertificateRequest"))
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn unavailable(ask: &CertificateAsk, reason: String) -> ObjectError {
    ObjectError::Unavailable { kind: KIND, key: ask.pod.clone(), reason }
}

fn said(error: &kube::Error) -> String {
    match error {
        // Unlike the 404 of an object it names none.
        kube::Error::Api(status) if status.code == 404 && status.details.iter().all(|d| d.name.is_empty()) => {
            "the API server serves no podcertificaterequests.certificates.k8s.io/v1: it has to be of Kubernetes 1.37 or \
             newer"
                .to_owned()
        }
        error => error_text(error),
    }
}

/// The request for a key, as kubelet makes it.
fn body(ask: &CertificateAsk, node: &Node, account_uid: String, pkcs10: Vec<u8>) -> Request {
    let resource = resource();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: ask.pod.name.to_string(),
        uid: ask.pod_uid.to_string(),
        ..OwnerReference::default()
    };
    Request {
        types: Some(TypeMeta { api_version: resource.api_version, kind: resource.kind }),
        metadata: ObjectMeta {
            namespace: Some(ask.pod.namespace.to_string()),
            generate_name: Some("req-".to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: PodCertificateRequestSpec {
            signer_name: ask.signer.clone(),
            pod_name: ask.pod.name.to_string(),
            pod_uid: ask.pod_uid.to_string(),
            service_account_name: ask.service_account.clone(),
            service_account_uid: account_uid,
            node_name: node.metadata.name.clone().unwrap_or_default(),
            node_uid: node.metadata.uid.clone().unwrap_or_default(),
            max_expiration_seconds: ask.max_expiration_seconds,
            stub_pkc_s10_request: ByteString(pkcs10),
            unverified_user_annotations: Some(ask.annotations.clone()).filter(|annotations| !annotations.is_empty()),
            pkix_public_key: None,
            proof_of_possession: None,
        },
        status: None,
    }
}

/// What a request says. One that is said to be issued and lacks what the API promises has no answer yet.
fn answer(request: &Request) -> Answer {
    let Some(status) = &request.status else { return Answer::Pending };
    let conditions = status.conditions.iter().flatten().filter(|condition| condition.status == "True");
    for condition in conditions {
        let (reason, message) = (condition.reason.clone(), condition.message.clone());
        match condition.type_.as_str() {
            "Denied" => return Answer::Denied { reason, message },
            "Failed" => return Answer::Failed { reason, message },
            "Issued" => {
                if let (Some(chain), Some(begin), Some(end)) =
                    (&status.certificate_chain, &status.begin_refresh_at, &status.not_after)
                {
                    let (begin_refresh_at, not_after) = (begin.0.as_second(), end.0.as_second());
                    return Answer::Issued { chain: chain.as_str().into(), begin_refresh_at, not_after };
                }
                tracing::warn!(request = ?request.metadata.name, "a request is issued without a certificate or its times");
            }
            _ => {}
        }
    }
    Answer::Pending
}

/// Takes in what the watch of a request says.
struct RequestSink {
    answers: watch::Sender<Answer>,
    pod: PodUid,
    changed: mpsc::UnboundedSender<PodUid>,
    listed: Option<Answer>,
}

impl RequestSink {
    fn learn(&self, answer: Answer) {
        let is_news = self.answers.send_if_modified(|known| {
            let is_news = *known != answer;
            *known = answer;
            is_news
        });
        if is_news {
            // A closed channel means that the agent is shutting down.
            let _ = self.changed.send(self.pod.clone());
        }
    }
}

impl WatchSink<Request> for RequestSink {
    fn handle(&mut self, event: WatchEvent<Request>) {
        match event {
            WatchEvent::Restart => self.listed = None,
            WatchEvent::InitApply(request) => self.listed = Some(answer(&request)),
            WatchEvent::InitDone => {
                let listed = self.listed.take().unwrap_or(Answer::Deleted);
                self.learn(listed);
            }
            WatchEvent::Apply(request) => self.learn(answer(&request)),
            WatchEvent::Delete(_) => self.learn(Answer::Deleted),
        }
    }
}

#[cfg(test)]
mod tests;
