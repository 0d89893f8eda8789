//! Containers.

use std::path::Path;
use std::time::{Duration, Instant};

use harness::fake_cri::{OnTerm, Script};
use nodelet_proto::cri::*;
use tonic::Code;

use crate::rig::{IMAGE, Rig, Runtime};

pub(crate) async fn a_container_goes_from_created_to_running_to_exited(rig: Rig) {
    let pod = rig.pod("created-running-exited").await;
    let id = rig.created(&pod, "main", &Script::exit_after(Duration::from_millis(700), 0)).await;
    let created = rig.status(&id).await;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert_eq!((created.started_at, created.finished_at, created.reason.as_str()), (0, 0, ""));
    assert!(created.created_at > 1_500_000_000_000_000_000, "nanoseconds are expected, not {}", created.created_at);
    assert_eq!(created.metadata, Some(ContainerMetadata { name: "main".to_owned(), attempt: 0 }));
    assert_eq!(created.image.clone().unwrap_or_default().image, IMAGE);
    assert!(created.image_ref.starts_with("sha256:"), "a local image has no digest: {}", created.image_ref);
    assert_eq!(created.log_path, Path::new(&pod.config.log_directory).join("main/0.log").display().to_string());

    rig.start(&id).await.expect("it starts");
    let running = rig.status(&id).await;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= created.created_at && running.finished_at == 0, "{running:?}");

    let exited = rig.exited(&id).await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (0, "Completed"));
    assert_eq!(exited.started_at, running.started_at);
    assert!(exited.finished_at - exited.started_at >= 600_000_000, "{exited:?}");

    rig.remove(&id).await.expect("it goes");
    assert_eq!(rig.try_status(&id).await.expect_err("it is gone").code(), Code::NotFound);
    rig.clean(&pod).await;
}

pub(crate) async fn an_exit_code_is_kept_with_reason_error(rig: Rig) {
    let pod = rig.pod("exit-code").await;
    let id = rig.started(&pod, "main", &Script::exit(7)).await;
    let exited = rig.exited(&id).await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (7, "Error"));
    rig.clean(&pod).await;
}

pub(crate) async fn sigterm_ends_a_container_that_listens(rig: Rig) {
    let pod = rig.pod("listens").await;
    let script = Script::forever().on_term(OnTerm::Exit { code: 0, after_ms: 0 }).say("ready");
    let id = rig.started(&pod, "main", &script).await;
    // The line comes after the trap is set.
    rig.log(&pod, "main", 1).await;
    let began = Instant::now();
    rig.stop(&id, 30).await.expect("it stops");
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    let exited = rig.status(&id).await;
    assert_eq!((exited.state(), exited.exit_code), (ContainerState::ContainerExited, 0));
    assert_eq!(exited.reason, "Completed");
    rig.clean(&pod).await;
}

pub(crate) async fn a_deaf_container_is_killed_after_the_timeout(rig: Rig) {
    let pod = rig.pod("deaf").await;
    let id = rig.started(&pod, "main", &Script::forever().on_term(OnTerm::Ignore).say("ready")).await;
    rig.log(&pod, "main", 1).await;
    let began = Instant::now();
    rig.stop(&id, 1).await.expect("it is killed");
    assert!(began.elapsed() >= Duration::from_secs(1), "it took {:?}", began.elapsed());
    let exited = rig.status(&id).await;
    assert_eq!((exited.exit_code, exited.reason.as_str()), (137, "Error"));
    rig.clean(&pod).await;
}

pub(crate) async fn a_timeout_of_zero_kills_at_once(rig: Rig) {
    let pod = rig.pod("at-once").await;
    let script = Script::forever().on_term(OnTerm::Exit { code: 0, after_ms: 0 }).say("ready");
    let id = rig.started(&pod, "main", &script).await;
    rig.log(&pod, "main", 1).await;
    rig.stop(&id, 0).await.expect("it is killed");
    assert_eq!(rig.status(&id).await.exit_code, 137);
    rig.clean(&pod).await;
}

pub(crate) async fn stopping_twice_and_stopping_an_exited_container_succeed(rig: Rig) {
    let pod = rig.pod("stop-twice").await;
    let id = rig.started(&pod, "main", &Script::exit(3)).await;
    rig.exited(&id).await;
    rig.stop(&id, 5).await.expect("nothing to do");
    rig.stop(&id, 5).await.expect("nothing to do");
    assert_eq!(rig.status(&id).await.exit_code, 3, "a stop changes nothing afterwards");
    rig.clean(&pod).await;
}

pub(crate) async fn a_created_container_can_be_stopped(rig: Rig) {
    let pod = rig.pod("stop-created").await;
    let id = rig.created(&pod, "main", &Script::forever()).await;
    rig.stop(&id, 5).await.expect("nothing runs");
    assert_eq!(rig.status(&id).await.state(), ContainerState::ContainerCreated);
    rig.clean(&pod).await;
}

pub(crate) async fn an_unknown_container_is_not_found(rig: Rig) {
    assert_eq!(rig.try_status("nothing").await.expect_err("unknown").code(), Code::NotFound);
    assert_eq!(rig.start("nothing").await.expect_err("unknown").code(), Code::NotFound);
    let stopped = rig.stop("nothing", 1).await;
    if rig.runtime == Runtime::Containerd16 {
        assert_eq!(stopped.expect_err("1.6 refuses").code(), Code::NotFound);
    } else {
        stopped.expect("2.x has nothing to do");
    }
}

pub(crate) async fn removing_an_unknown_container_succeeds(rig: Rig) {
    rig.remove("nothing").await.expect("nothing to do");
}

pub(crate) async fn removing_a_running_container_kills_it(rig: Rig) {
    let pod = rig.pod("remove-running").await;
    let id = rig.started(&pod, "main", &Script::forever()).await;
    rig.remove(&id).await.expect("it is killed and goes");
    assert_eq!(rig.try_status(&id).await.expect_err("it is gone").code(), Code::NotFound);
    rig.clean(&pod).await;
}

pub(crate) async fn a_second_container_of_the_same_attempt_is_refused(rig: Rig) {
    let pod = rig.pod("same-container").await;
    let first = rig.created(&pod, "main", &Script::forever()).await;
    let config = rig.container_config(&pod, "main", &Script::forever());
    let refused = rig.try_create(&pod, config.clone()).await.expect_err("the name is taken");
    assert!(refused.message().contains(&format!("is reserved for \"{first}\"")), "{refused:?}");
    assert!(refused.message().contains("failed to reserve container name"), "{refused:?}");
    let metadata = Some(ContainerMetadata { name: "main".to_owned(), attempt: 1 });
    let second = rig.try_create(&pod, ContainerConfig { metadata, ..config }).await.expect("another attempt");
    assert_ne!(first, second);
    rig.clean(&pod).await;
}

pub(crate) async fn an_exited_container_does_not_start_again(rig: Rig) {
    let pod = rig.pod("start-again").await;
    let id = rig.started(&pod, "main", &Script::exit(0)).await;
    rig.exited(&id).await;
    let refused = rig.start(&id).await.expect_err("a container runs once");
    assert!(refused.message().contains("container is in CONTAINER_EXITED state"), "{refused:?}");
    rig.clean(&pod).await;
}

pub(crate) async fn a_container_needs_its_image(rig: Rig) {
    let pod = rig.pod("needs-image").await;
    let mut config = rig.container_config(&pod, "main", &Script::forever());
    config.image = Some(ImageSpec { image: "localhost/nothing:1".to_owned(), ..Default::default() });
    let refused = rig.try_create(&pod, config).await.expect_err("there is no such image");
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    // The failed attempt keeps no name.
    rig.created(&pod, "main", &Script::forever()).await;
    rig.clean(&pod).await;
}

pub(crate) async fn a_container_needs_a_ready_sandbox(rig: Rig) {
    let pod = rig.pod("needs-sandbox").await;
    let before = rig.created(&pod, "before", &Script::forever()).await;
    rig.stop_pod(&pod.id).await.expect("it stops");
    rig.start(&before).await.expect_err("its sandbox is not ready");
    let config = rig.container_config(&pod, "after", &Script::forever());
    rig.try_create(&pod, config).await.expect_err("its sandbox is not ready");
    rig.clean(&pod).await;
}

pub(crate) async fn containers_are_listed_by_label_state_and_sandbox(rig: Rig) {
    let (one, two) = (rig.pod("list-one").await, rig.pod("list-two").await);
    let running = rig.started(&one, "runs", &Script::forever()).await;
    let created = rig.created(&one, "waits", &Script::forever()).await;
    let other = rig.created(&two, "runs", &Script::forever()).await;
    let ids = |containers: Vec<Container>| {
        let mut ids: Vec<_> = containers.into_iter().map(|container| container.id).collect();
        ids.sort();
        ids
    };
    let sorted = |mut ids: Vec<String>| {
        ids.sort();
        ids
    };
    let of_one = ContainerFilter { pod_sandbox_id: one.id.clone(), ..Default::default() };
    assert_eq!(ids(rig.containers(of_one.clone()).await), sorted(vec![running.clone(), created.clone()]));
    let label_selector = [("container".to_owned(), "runs".to_owned())].into();
    let by_label = ContainerFilter { label_selector, ..Default::default() };
    assert_eq!(ids(rig.containers(by_label).await), sorted(vec![running.clone(), other]));
    let state = Some(ContainerStateValue { state: ContainerState::ContainerRunning as i32 });
    assert_eq!(ids(rig.containers(ContainerFilter { state, ..of_one }).await), std::slice::from_ref(&running));
    let by_id = rig.containers(ContainerFilter { id: created, ..Default::default() }).await;
    assert_eq!(by_id.len(), 1);
    assert_eq!(
        (by_id[0].pod_sandbox_id.as_str(), by_id[0].state()),
        (one.id.as_str(), ContainerState::ContainerCreated)
    );
    rig.clean(&one).await;
    rig.clean(&two).await;
}

pub(crate) async fn an_id_may_be_shortened(rig: Rig) {
    let pod = rig.pod("shortened").await;
    let id = rig.created(&pod, "main", &Script::forever()).await;
    assert_eq!(id.len(), 64, "{id}");
    assert_eq!(rig.status(&id[..13]).await.id, id);
    assert_eq!(rig.try_pod_status(&pod.id[..13]).await.expect("it is known").id, pod.id);
    rig.clean(&pod).await;
}

pub(crate) async fn output_is_logged_in_cri_format(rig: Rig) {
    let pod = rig.pod("logs").await;
    let long = "x".repeat(16 * 1024 + 10);
    let script = Script::exit(0).say("hello from $HOME").say("").say(&long).complain("and 'sorry'");
    let id = rig.started(&pod, "main", &script).await;
    let lines = rig.log(&pod, "main", 5).await;
    // 1.6 closes its connection to the shim as it hears of an exit, and a kill on its way then fails ("ttrpc: closed").
    // A stop is only refused for that moment; callers come again. Here it is no matter of the case: its end is awaited.
    rig.exited(&id).await;
    let mut contents: Vec<(String, String, usize)> = Vec::new();
    for line in &lines {
        let mut parts = line.splitn(4, ' ');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        let (time, stream, tag, content) = (next(), next(), next(), next());
        time.parse::<k8s_openapi::jiff::Timestamp>().unwrap_or_else(|error| panic!("{time}: {error}"));
        contents.push((stream, tag, content.len()));
    }
    let of = |stream: &str| {
        contents.iter().filter(|line| line.0 == stream).map(|line| (line.1.as_str(), line.2)).collect::<Vec<_>>()
    };
    assert_eq!(of("stdout"), [("F", 16), ("F", 0), ("P", 16 * 1024), ("F", 10)]);
    assert_eq!(of("stderr"), [("F", 11)]);
    rig.clean(&pod).await;
}

pub(crate) async fn a_log_that_was_moved_away_is_reopened(rig: Rig) {
    let pod = rig.pod("reopened").await;
    let id = rig.started(&pod, "main", &Script::forever().say("first")).await;
    rig.log(&pod, "main", 1).await;
    let path = Path::new(&pod.config.log_directory).join("main/0.log");
    std::fs::rename(&path, path.with_extension("old")).expect("the log can be moved");
    let request = || ReopenContainerLogRequest { container_id: id.clone() };
    rig.cri.runtime.clone().reopen_container_log(request()).await.expect("it is opened again");
    assert_eq!(std::fs::read_to_string(&path).expect("the new log is there"), "");
    rig.stop(&id, 0).await.expect("it stops");
    rig.cri.runtime.clone().reopen_container_log(request()).await.expect_err("nothing runs that could log");
    rig.clean(&pod).await;
}
