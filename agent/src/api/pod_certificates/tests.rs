use super::*;
use crate::ids::ObjectKey;
use crate::objects::KeyType;
use serde_json::{Value, json};

fn ask() -> CertificateAsk {
    CertificateAsk {
        pod: ObjectKey::new("ns", "p"),
        pod_uid: PodUid::new("u"),
        service_account: "sa".to_owned(),
        volume: "v".to_owned(),
        source: 0,
        signer: "example.com/s".to_owned(),
        key_type: KeyType::EcdsaP256,
        max_expiration_seconds: Some(7200),
        annotations: [("example.com/a".to_owned(), "b".to_owned())].into(),
    }
}

#[test]
fn a_request_names_pod_account_and_node_and_belongs_to_the_pod() {
    let node = serde_json::from_value(json!({"metadata": {"name": "n1", "uid": "node-uid"}})).unwrap();
    let made = serde_json::to_value(body(&ask(), &node, "sa-uid".to_owned(), vec![1, 2, 3])).unwrap();
    let expected = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "PodCertificateRequest",
        "metadata": {"namespace": "ns", "generateName": "req-",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}]},
        "spec": {"signerName": "example.com/s", "podName": "p", "podUID": "u", "serviceAccountName": "sa",
            "serviceAccountUID": "sa-uid", "nodeName": "n1", "nodeUID": "node-uid", "maxExpirationSeconds": 7200,
            "stubPKCS10Request": "AQID", "unverifiedUserAnnotations": {"example.com/a": "b"}},
    });
    assert_eq!(made, expected);
}

fn answered(status: Value) -> Answer {
    let request = json!({"metadata": {"name": "req-1"}, "spec": {"signerName": "s", "podName": "p", "podUID": "u",
        "serviceAccountName": "a", "serviceAccountUID": "b", "nodeName": "n", "nodeUID": "m", "stubPKCS10Request": ""},
        "status": status});
    answer(&serde_json::from_value(request).unwrap())
}

fn condition(kind: &str, status: &str) -> Value {
    json!([{"type": kind, "status": status, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

#[test]
fn conditions_are_answers_and_what_is_incomplete_is_none() {
    let refused = ("R".to_owned(), "m".to_owned());
    assert_eq!(answered(json!({})), Answer::Pending);
    assert_eq!(answered(json!({"conditions": condition("Denied", "False")})), Answer::Pending);
    let (reason, message) = refused.clone();
    assert_eq!(answered(json!({"conditions": condition("Denied", "True")})), Answer::Denied { reason, message });
    let (reason, message) = refused;
    assert_eq!(answered(json!({"conditions": condition("Failed", "True")})), Answer::Failed { reason, message });
    let mut status = json!({"conditions": condition("Issued", "True"), "certificateChain": "c",
        "beginRefreshAt": "1970-01-01T00:01:00Z", "notAfter": "1970-01-01T00:02:00Z"});
    let issued = Answer::Issued { chain: "c".into(), begin_refresh_at: 60, not_after: 120 };
    assert_eq!(answered(status.clone()), issued);
    status.as_object_mut().unwrap().remove("notAfter");
    assert_eq!(answered(status), Answer::Pending);
}

#[test]
fn an_answer_wakes_the_pod_once_and_a_deletion_is_an_answer() {
    let (answers, seen) = watch::channel(Answer::Pending);
    let (changed, mut wakes) = mpsc::unbounded_channel();
    let mut sink = RequestSink { answers, pod: PodUid::new("u"), changed, listed: None };
    let mut request: Request =
        serde_json::from_value(json!({"metadata": {"name": "req-1"}, "spec": {"signerName": "s",
        "podName": "p", "podUID": "u", "serviceAccountName": "a", "serviceAccountUID": "b", "nodeName": "n",
        "nodeUID": "m", "stubPKCS10Request": ""}}))
        .unwrap();
    let mut woken = || std::iter::from_fn(|| wakes.try_recv().ok()).count();
    sink.handle(WatchEvent::Restart);
    sink.handle(WatchEvent::InitApply(request.clone()));
    sink.handle(WatchEvent::InitDone);
    assert_eq!((woken(), seen.borrow().clone()), (0, Answer::Pending));
    request.status = serde_json::from_value(json!({"conditions": condition("Denied", "True")})).unwrap();
    for _ in 0..2 {
        sink.handle(WatchEvent::Apply(request.clone()));
    }
    assert_eq!(woken(), 1);
    sink.handle(WatchEvent::Restart);
    sink.handle(WatchEvent::InitDone);
    assert_eq!((woken(), seen.borrow().clone()), (1, Answer::Deleted));
}
