//! Answers with holes and answers that are wrong: "missing" is not "gone".

use std::time::Duration;

use anyhow::ensure;
use harness::eventually::{always, eventually};
use harness::fake_cri::EventFault;

use crate::rig::{LONG, Rig};

/// Two looks of each worker, and the pause between them.
const LOOKS: Duration = Duration::from_millis(2500);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_in_a_list_is_neither_killed_nor_started_again() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let before = rig.steady("web");
    rig.fake.hide_from_lists(rig.containers("web").into_iter().chain(rig.sandboxes("web")));
    rig.interrupt();
    always(LOOKS, "web goes on", async || rig.is_undisturbed("web", &before)).await.unwrap();
    // An agent that knows only what is written down.
    rig.restart_agent().unwrap();
    always(LOOKS, "web goes on", async || rig.is_undisturbed("web", &before)).await.unwrap();
    rig.fake.show_all_in_lists();
    rig.interrupt();
    rig.until_ready(&["web"]).await.unwrap();
    rig.is_undisturbed("web", &before).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_forgets_addresses_costs_no_pod_its_sandbox() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let before = rig.steady("web");
    rig.fake.forget_addresses();
    rig.interrupt();
    always(LOOKS, "web goes on", async || rig.is_undisturbed("web", &before)).await.unwrap();
    rig.restart_agent().unwrap();
    always(LOOKS, "web goes on", async || rig.is_undisturbed("web", &before)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_is_gone_by_list_and_status_is_started_again() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    let before = rig.containers("web");
    // Its end is told to nobody.
    rig.fake.disturb_events(EventFault::Drop(1));
    assert!(rig.fake.exit(&before[0], 1));
    rig.interrupt();
    eventually(LONG, "another container", async || {
        let now = rig.containers("web");
        ensure!(now.len() == 1 && now != before, "{now:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_lost_doubled_or_in_the_wrong_order_only_delay() {
    for fault in [EventFault::Drop(8), EventFault::Duplicate(20), EventFault::Reverse(6), EventFault::Blank(20)] {
        let mut rig = Rig::start().await.unwrap();
        rig.add("web").unwrap();
        rig.until_ready(&["web"]).await.unwrap();
        let before = rig.steady("web");
        rig.fake.disturb_events(fault);
        for name in ["a", "b"] {
            rig.add(name).unwrap();
        }
        rig.until_ready(&["a", "b"]).await.unwrap();
        let old = rig.containers("a");
        assert!(rig.fake.exit(&old[0], 1));
        rig.remove("b").unwrap();
        rig.until_gone("b").await.unwrap();
        rig.interrupt();
        eventually(LONG, "a to run again", async || {
            ensure!(rig.containers("a").len() == 1 && rig.containers("a") != old, "{fault:?}");
            Ok(())
        })
        .await
        .unwrap();
        rig.is_undisturbed("web", &before).unwrap();
    }
}
