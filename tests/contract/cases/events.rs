//! The event stream.

use std::time::Duration;

use harness::fake_cri::Script;
use nodelet_proto::cri::*;
use tonic::Code;

use crate::rig::Rig;

pub(crate) async fn a_pod_tells_its_life_in_events(rig: Rig) {
    if !rig.has_events() {
        // The other case of this file holds for such a runtime.
        return;
    }
    let mut stream =
        rig.cri.runtime.clone().get_container_events(GetEventsRequest {}).await.expect("events").into_inner();
    let pod = rig.pod("events").await;
    let id = rig.started(&pod, "main", &Script::exit(5)).await;
    rig.exited(&id).await;
    rig.remove(&id).await.expect("it goes");
    rig.clean(&pod).await;
    let mut seen = Vec::new();
    let reading = async {
        while let Some(event) = stream.message().await.expect("the stream stands") {
            let kind = event.container_event_type();
            let who = if event.container_id == pod.id { "pod" } else { "main" };
            if event.container_id != pod.id && event.container_id != id {
                continue;
            }
            if (who, kind) == ("main", ContainerEventType::ContainerStoppedEvent) {
                let status = event.containers_statuses.iter().find(|status| status.id == id).expect("its status");
                assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 5));
            }
            seen.push((who, kind));
            if (who, kind) == ("pod", ContainerEventType::ContainerDeletedEvent) {
                return;
            }
        }
    };
    let complete = tokio::time::timeout(Duration::from_secs(20), reading).await;
    assert!(complete.is_ok(), "the last event never came after {seen:?}");
    use ContainerEventType::*;
    let expected = [
        ("pod", ContainerCreatedEvent),
        ("pod", ContainerStartedEvent),
        ("main", ContainerCreatedEvent),
        ("main", ContainerStartedEvent),
        ("main", ContainerStoppedEvent),
        ("main", ContainerDeletedEvent),
        ("pod", ContainerStoppedEvent),
        ("pod", ContainerDeletedEvent),
    ];
    assert_eq!(seen, expected);
}

pub(crate) async fn without_events_the_call_is_unimplemented(rig: Rig) {
    if rig.has_events() {
        // The other case of this file holds for such a runtime.
        return;
    }
    let refused = rig.cri.runtime.clone().get_container_events(GetEventsRequest {}).await;
    assert_eq!(refused.expect_err("1.6 does not know the call").code(), Code::Unimplemented);
}
