//! One set of cases about CRI, run against the fake runtime and against real containerd, so that the fake cannot lie.
//!
//! Every test of this binary is one runtime; every case is an `async fn` over a [`Rig`]. A runtime's test runs all cases and
//! reports all that failed. Where containerd's versions differ, the case says so and asks [`Rig::runtime`].

// The futures of tonic's calls are large and live in a test's own task: boxing them one by one would only hide the steps.
#![allow(clippy::large_futures)]

mod cases;
mod rig;

use std::time::Duration;

use harness::containerd::{Cni, Version};
use harness::fake_cri::{FakeCri, Options};
use harness::node::Node;

use rig::{Rig, Runtime};

/// Runs every case on `rig` and fails with a list of those that failed.
async fn keep_the_contract(rig: Rig) {
    // One after the other on purpose: two cores run a real container's start, stop and 1 s timeouts reliably only so.
    let mut failed = Vec::new();
    for (name, case) in cases::ALL {
        let done = tokio::time::timeout(Duration::from_secs(60), tokio::spawn(case(rig.clone()))).await;
        match done {
            Ok(Ok(())) => println!("ok      {name}"),
            Ok(Err(panic)) => failed.push(format!("{name}: {panic}")),
            Err(_) => failed.push(format!("{name}: not done after 60 s")),
        }
    }
    assert!(failed.is_empty(), "{} of {} cases failed:\n{}", failed.len(), cases::ALL.len(), failed.join("\n"));
}

async fn fake_keeps_the_contract(options: Options, runtime: Runtime) {
    let directory = tempfile::tempdir().expect("a directory for the socket");
    let fake = FakeCri::start_with(directory.path().join("cri.sock"), options).await.expect("the fake listens");
    fake.add_image(rig::IMAGE);
    keep_the_contract(Rig::new(fake.path(), "/fake", runtime).await).await;
}

#[tokio::test]
async fn the_fake_behaves_as_containerd_2() {
    fake_keeps_the_contract(Options::default(), Runtime::Containerd2).await;
}

#[tokio::test]
async fn the_fake_behaves_as_containerd_1_6_without_events_and_runtime_config() {
    let options =
        Options { version: "1.6.20".to_owned(), has_events: false, cgroup_driver: None, ..Options::default() };
    fake_keeps_the_contract(options, Runtime::FakeAs16).await;
}

async fn containerd_keeps_the_contract(version: Version, runtime: Runtime) {
    let node = Node::alone(version, Cni::Bridge).await.expect("a node with containerd");
    keep_the_contract(Rig::new(&node.containerd.socket(), &node.cgroups.root(), runtime).await).await;
}

#[tokio::test]
async fn containerd_1_6_keeps_the_contract() {
    containerd_keeps_the_contract(Version::V1_6, Runtime::Containerd16).await;
}

#[tokio::test]
async fn containerd_2_keeps_the_contract() {
    containerd_keeps_the_contract(Version::V2, Runtime::Containerd2).await;
}
