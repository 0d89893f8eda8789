//! Sandboxes.

use std::time::{Duration, Instant};

use harness::fake_cri::Script;
use nodelet_proto::cri::*;
use tonic::Code;

use crate::rig::{Pod, Rig, Runtime};

pub(crate) async fn a_sandbox_lives_and_goes(rig: Rig) {
    let pod = rig.pod("lives-and-goes").await;
    let status = rig.try_pod_status(&pod.id).await.expect("the sandbox is known");
    assert_eq!((status.id.as_str(), status.state()), (pod.id.as_str(), PodSandboxState::SandboxReady));
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert!(status.created_at > 1_500_000_000_000_000_000, "nanoseconds are expected, not {}", status.created_at);
    assert_eq!(status.network.unwrap_or_default().ip, "", "the host's network has no address of the pod");
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    assert_eq!(options.unwrap_or_default().network(), NamespaceMode::Node);

    rig.stop_pod(&pod.id).await.expect("it stops");
    let stopped = rig.try_pod_status(&pod.id).await.expect("a stopped sandbox is known");
    assert_eq!(stopped.state(), PodSandboxState::SandboxNotready);
    assert_eq!(stopped.created_at, status.created_at);

    rig.remove_pod(&pod.id).await.expect("it goes");
    assert_eq!(rig.try_pod_status(&pod.id).await.expect_err("it is gone").code(), Code::NotFound);
}

pub(crate) async fn a_stopped_sandbox_can_be_stopped_again(rig: Rig) {
    let pod = rig.pod("stopped-again").await;
    rig.stop_pod(&pod.id).await.expect("it stops");
    rig.stop_pod(&pod.id).await.expect("it stays stopped");
    rig.remove_pod(&pod.id).await.expect("it goes");
}

pub(crate) async fn an_unknown_sandbox_is_not_found(rig: Rig) {
    assert_eq!(rig.try_pod_status("nothing").await.expect_err("unknown").code(), Code::NotFound);
    let stopped = rig.stop_pod("nothing").await;
    if rig.runtime == Runtime::Containerd16 {
        assert_eq!(stopped.expect_err("1.6 refuses").code(), Code::NotFound);
    } else {
        stopped.expect("2.x has nothing to do");
    }
}

pub(crate) async fn removing_an_unknown_sandbox_succeeds(rig: Rig) {
    rig.remove_pod("nothing").await.expect("nothing to do");
}

pub(crate) async fn a_second_sandbox_of_the_same_attempt_is_refused(rig: Rig) {
    let pod = rig.pod("same-attempt").await;
    let refused = rig.try_pod(&pod.config).await.expect_err("the name is taken");
    let expected = format!("is reserved for \"{}\"", pod.id);
    assert!(refused.message().contains(&expected), "{refused:?}");
    assert!(
        refused.message().contains("failed to reserve sandbox name \"same-attempt_default_uid-same-attempt_0\""),
        "{refused:?}"
    );
    rig.clean(&pod).await;
}

fn attempt(config: &PodSandboxConfig, attempt: u32) -> PodSandboxConfig {
    let metadata = config.metadata.clone().map(|metadata| PodSandboxMetadata { attempt, ..metadata });
    PodSandboxConfig { metadata, ..config.clone() }
}

pub(crate) async fn the_next_attempt_is_another_sandbox(rig: Rig) {
    let first = rig.pod("next-attempt").await;
    rig.stop_pod(&first.id).await.expect("it stops");
    let config = attempt(&first.config, 1);
    let second = Pod { id: rig.try_pod(&config).await.expect("another name"), config };
    assert_ne!(first.id, second.id);
    let app = [("app".to_owned(), "next-attempt".to_owned())];
    let listed = rig.pods(PodSandboxFilter { label_selector: app.into(), ..Default::default() }).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    rig.clean(&first).await;
    rig.clean(&second).await;
}

pub(crate) async fn a_removed_sandbox_gives_its_name_back(rig: Rig) {
    let first = rig.pod("name-back").await;
    rig.clean(&first).await;
    let second = rig.pod("name-back").await;
    assert_ne!(first.id, second.id);
    rig.clean(&second).await;
}

pub(crate) async fn sandboxes_are_listed_by_label_state_and_id(rig: Rig) {
    let (ready, stopped) = (rig.pod("list-ready").await, rig.pod("list-stopped").await);
    rig.stop_pod(&stopped.id).await.expect("it stops");
    let ids = |pods: Vec<PodSandbox>| pods.into_iter().map(|pod| pod.id).collect::<Vec<_>>();
    let by_label =
        PodSandboxFilter { label_selector: [("app".to_owned(), "list-ready".to_owned())].into(), ..Default::default() };
    assert_eq!(ids(rig.pods(by_label).await), std::slice::from_ref(&ready.id));
    let state = |state: PodSandboxState| Some(PodSandboxStateValue { state: state as i32 });
    let by_state = PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..Default::default() };
    // containerd 2 answers the stop before it has taken note of the exit.
    let deadline = Instant::now() + Duration::from_secs(10);
    let not_ready = loop {
        let listed = ids(rig.pods(by_state.clone()).await);
        if listed.contains(&stopped.id) {
            break listed;
        }
        assert!(Instant::now() < deadline, "it is not called so: {listed:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(!not_ready.contains(&ready.id), "{not_ready:?}");
    let by_id = PodSandboxFilter { id: ready.id.clone(), ..Default::default() };
    assert_eq!(ids(rig.pods(by_id.clone()).await), std::slice::from_ref(&ready.id));
    let both = PodSandboxFilter { state: state(PodSandboxState::SandboxNotready), ..by_id };
    assert_eq!(ids(rig.pods(both).await), Vec::<String>::new());
    rig.clean(&ready).await;
    rig.clean(&stopped).await;
}

pub(crate) async fn removing_a_running_sandbox_takes_its_containers_along(rig: Rig) {
    let pod = rig.pod("takes-along").await;
    let container = rig.started(&pod, "main", &Script::forever()).await;
    rig.remove_pod(&pod.id).await.expect("it is stopped by force");
    assert_eq!(rig.try_status(&container).await.expect_err("it went along").code(), Code::NotFound);
}

pub(crate) async fn stopping_a_sandbox_kills_its_containers(rig: Rig) {
    let pod = rig.pod("kills-containers").await;
    let container = rig.started(&pod, "main", &Script::forever()).await;
    rig.stop_pod(&pod.id).await.expect("it stops");
    let status = rig.status(&container).await;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    rig.remove_pod(&pod.id).await.expect("it goes");
}
