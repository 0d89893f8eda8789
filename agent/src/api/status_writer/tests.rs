use super::*;

fn writer() -> StatusWriter {
    let text = "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n\
                clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}]\n";
    let config = super::super::kubeconfig::parse(std::path::Path::new("/x"), text).expect("kubeconfig");
    StatusWriter::new(super::super::client::ApiClient::new(&config, "0").expect("client").kube())
}

fn pod(version: &str, deleted: bool) -> Pod {
    let mut pod =
        serde_json::json!({ "metadata": { "namespace": "d", "name": "p", "uid": "u", "resourceVersion": version } });
    if deleted {
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    serde_json::from_value(pod).expect("pod")
}

fn pod_ref() -> PodRef {
    PodRef { key: ObjectKey::new("d", "p"), uid: PodUid::new("u") }
}

#[tokio::test]
async fn forgetting_a_pod_does_not_lose_its_deletion() {
    let writer = writer();
    writer.delete(pod_ref());
    writer.forget(&pod_ref().uid);
    assert!(writer.shared.lock()[&pod_ref().uid].delete);
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Send(Job::Delete)));
}

#[tokio::test]
async fn late_events_of_a_deleted_pod_leave_nothing_behind() {
    let writer = writer();
    writer.observed(&pod("1", false));
    writer.forget(&pod_ref().uid);
    writer.observed(&pod("2", true));
    assert!(writer.shared.lock().is_empty());
}

#[tokio::test]
async fn only_the_newest_status_is_sent() {
    let writer = writer();
    writer.publish(pod_ref(), status("Pending"));
    writer.publish(pod_ref(), status("Running"));
    let Next::Send(Job::Patch(sent, _)) = next(&writer.shared, &pod_ref()) else { panic!("nothing to send") };
    assert_eq!(sent.phase.as_deref(), Some("Running"));
    // A newer one that came during a failed attempt wins over the one that is put back.
    writer.publish(pod_ref(), status("Succeeded"));
    put_back(&writer.shared, &pod_ref(), Job::Patch(sent, Value::Null));
    let Next::Send(Job::Patch(sent, _)) = next(&writer.shared, &pod_ref()) else { panic!("nothing to send") };
    assert_eq!(sent.phase.as_deref(), Some("Succeeded"));
}

fn shown(version: &str, phase: &str) -> Pod {
    let mut seen = pod(version, false);
    seen.status = Some(status(phase));
    seen
}

fn status(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.into()), ..PodStatus::default() }
}

/// The watch is often faster than the answer to the PATCH. The older acknowledged status was then written again, over
/// the newer one, and the pod stayed not ready at the API server.
#[tokio::test]
async fn a_write_under_way_is_not_undone_by_its_own_echo() {
    let writer = writer();
    let uid = pod_ref().uid;
    writer.publish(pod_ref(), status("Pending"));
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Send(Job::Patch(..))));
    acknowledge(&writer.shared, &pod_ref(), Box::new(status("Pending")), &shown("5", "Pending"));
    writer.publish(pod_ref(), status("Running"));
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Send(Job::Patch(..))));
    writer.observed(&shown("6", "Running"));
    assert!(writer.shared.lock()[&uid].pending.is_none());
    acknowledge(&writer.shared, &pod_ref(), Box::new(status("Running")), &shown("6", "Running"));
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Rest));
}

#[tokio::test]
async fn a_foreign_write_that_the_watch_shows_before_our_answer_is_put_right() {
    let writer = writer();
    writer.publish(pod_ref(), status("Running"));
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Send(Job::Patch(..))));
    writer.observed(&shown("7", "Failed"));
    acknowledge(&writer.shared, &pod_ref(), Box::new(status("Running")), &shown("6", "Running"));
    let Next::Send(Job::Patch(sent, _)) = next(&writer.shared, &pod_ref()) else { panic!("nothing to send") };
    assert_eq!(sent.phase.as_deref(), Some("Running"));
}

#[tokio::test]
async fn a_status_that_the_server_has_is_not_sent() {
    let writer = writer();
    let mut seen = pod("5", false);
    seen.status = Some(PodStatus { phase: Some("Running".into()), ..PodStatus::default() });
    writer.observed(&seen);
    writer.publish(pod_ref(), seen.status.clone().unwrap_or_default());
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Rest));
    assert_eq!(writer.backlog(), 0);
}

#[tokio::test]
async fn a_status_that_says_little_gives_way_to_the_next_and_to_a_deletion() {
    let writer = writer();
    let creating: PodStatus = serde_json::from_value(serde_json::json!({ "phase": "Pending", "containerStatuses": [{
        "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "waiting": { "reason": "ContainerCreating" } },
    }] }))
    .expect("status");
    writer.publish(pod_ref(), creating.clone());
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Wait(..)));
    writer.publish(pod_ref(), status("Running"));
    let Next::Send(Job::Patch(sent, _)) = next(&writer.shared, &pod_ref()) else { panic!("nothing to send") };
    assert_eq!(sent.phase.as_deref(), Some("Running"));
    writer.publish(pod_ref(), creating);
    writer.delete(pod_ref());
    assert!(matches!(next(&writer.shared, &pod_ref()), Next::Send(Job::Patch(..))));
}
