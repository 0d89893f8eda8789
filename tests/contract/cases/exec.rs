//! ExecSync.

use std::time::{Duration, Instant};

use harness::fake_cri::Script;
use tonic::Code;

use crate::rig::Rig;

pub(crate) async fn exec_answers_output_and_exit_code(rig: Rig) {
    let pod = rig.pod("exec").await;
    let id = rig.started(&pod, "main", &Script::forever()).await;
    let answer = rig.exec(&id, &Script::exit(4).say("out").complain("err"), 10).await.expect("an answer");
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"out\n"[..], &b"err\n"[..], 4));
    let without_timeout = rig.exec(&id, &Script::exit(0), 0).await.expect("an answer");
    assert_eq!(without_timeout.exit_code, 0);
    rig.clean(&pod).await;
}

pub(crate) async fn an_exec_that_takes_too_long_is_a_deadline(rig: Rig) {
    let pod = rig.pod("exec-timeout").await;
    let id = rig.started(&pod, "main", &Script::forever()).await;
    let began = Instant::now();
    let late = rig.exec(&id, &Script::exit_after(Duration::from_secs(20), 0), 1).await.expect_err("it takes 20 s");
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!(late.message().contains("timeout 1s exceeded"), "{late:?}");
    rig.clean(&pod).await;
}

pub(crate) async fn an_exec_in_a_container_that_is_gone_fails(rig: Rig) {
    let unknown = rig.exec("nothing", &Script::exit(0), 1).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound, "{unknown:?}");
    let pod = rig.pod("exec-exited").await;
    let id = rig.started(&pod, "main", &Script::exit(0)).await;
    rig.exited(&id).await;
    let refused = rig.exec(&id, &Script::exit(0), 1).await.expect_err("nothing runs");
    assert!(refused.message().contains("container is in CONTAINER_EXITED state"), "{refused:?}");
    rig.clean(&pod).await;
}
