//! Removal of what nobody needs: images, and what pods left.

use anyhow::{Context, ensure};
use harness::eventually::eventually;
use harness::fake_cri::{Fault, Rpc};
use nodelet::garbage::images::Policy;
use nodelet::garbage::report::{Kind, Outcome, Report};
use nodelet_proto::cri;
use tonic::Code;

use crate::rig::{LONG, Rig};

/// Images of 1 MiB each beside that of the pods, and a disk that is 90 % full.
const UNUSED: [&str; 3] = ["localhost/a:1", "localhost/b:1", "localhost/c:1"];

async fn with_images(policy: Policy) -> anyhow::Result<Rig> {
    let mut rig = Rig::start().await?;
    rig.garbage = policy;
    rig.add("web")?;
    rig.until_ready(&["web"]).await?;
    UNUSED.iter().for_each(|image| rig.fake.add_image(image));
    rig.restart_agent()?;
    rig.until_ready(&["web"]).await?;
    Ok(rig)
}

fn images(report: &Report) -> Vec<(&str, bool)> {
    let images = report.items.iter().filter(|item| item.kind == Kind::Image);
    images.map(|item| (item.name.as_str(), item.outcome == Outcome::Removed)).collect()
}

#[tokio::test]
async fn a_dry_run_shows_what_a_run_then_removes_and_what_is_in_use_stays() {
    let rig = with_images(Policy { high: 100, low: 99, min_age: 0, max_age: 0 }).await.unwrap();
    let shown = rig.gc(true, Some(2 << 20)).await.unwrap();
    assert_eq!(shown.problems, [""; 0]);
    assert!(shown.notes[1].contains("1 in use, 0 pinned, 3 unused"), "{shown:#?}");
    assert_eq!((images(&shown).len(), rig.fake.count(Rpc::RemoveImage)), (2, 0), "{shown:#?}");
    let done = rig.gc(false, Some(2 << 20)).await.unwrap();
    let names = |report: &Report| images(report).iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&done), names(&shown));
    assert!(images(&done).iter().all(|(_, is_removed)| *is_removed) && done.is_clean(), "{done:#?}");
    let left = rig.gc(true, Some(u64::MAX)).await.unwrap();
    assert_eq!(images(&left).len(), 1, "one unused image is left, and the pod's: {left:#?}");
    rig.are_ready(&["web"]).unwrap();
}

#[tokio::test]
async fn a_full_disk_costs_unused_images_and_the_node_is_told_when_that_is_not_enough() {
    let rig = with_images(Policy { high: 85, low: 80, min_age: 0, max_age: 0 }).await.unwrap();
    // The first round comes by itself and finds images that it sees for the first time.
    let text = "Insufficient free disk space on the node's image filesystem (90% of 100.0 MiB used). Failed to free \
                sufficient space by deleting unused images (freed 3145728 bytes). Investigate disk usage, as it could be used \
                by active images, logs, volumes, or other data.";
    eventually(LONG, "the disk to be complained about", async || {
        let events = rig.node_events();
        ensure!(events.contains(&("FreeDiskSpaceFailed", text.to_owned())), "{events:#?}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(rig.node_events().iter().all(|(reason, _)| *reason != "ImageGCFailed"), "one failure is no event");
    assert_eq!(images(&rig.gc(true, Some(u64::MAX)).await.unwrap()), [], "only the pod's image is left");
}

#[tokio::test]
async fn an_image_that_cannot_be_removed_is_made_up_for_by_the_next() {
    let rig = with_images(Policy { high: 100, low: 99, min_age: 0, max_age: 0 }).await.unwrap();
    let first = images(&rig.gc(true, Some(1)).await.unwrap())[0].0.to_owned();
    rig.fake.inject(Rpc::RemoveImage, Fault::fail(Code::Unknown, "read-only file system").once());
    let done = rig.gc(false, Some(1)).await.unwrap();
    let outcomes = images(&done);
    assert_eq!(outcomes.iter().map(|(_, is_removed)| *is_removed).collect::<Vec<_>>(), [false, true], "{done:#?}");
    assert_eq!(outcomes[0].0, first);
    assert!(done.problems[0].contains("wanted to free 1 bytes, but freed 1048576 bytes space"), "{done:#?}");
}

#[tokio::test]
async fn a_runtime_that_does_not_answer_makes_nothing_unused() {
    let rig = with_images(Policy { high: 85, low: 80, min_age: i64::MAX, max_age: 0 }).await.unwrap();
    for rpc in [Rpc::ListContainers, Rpc::ListImages, Rpc::ImageFsInfo, Rpc::Status] {
        rig.fake.inject(rpc, Fault::fail(Code::Unavailable, "away"));
        let done = rig.gc(false, Some(u64::MAX)).await.unwrap();
        assert!(!done.problems.is_empty() && images(&done).is_empty(), "{rpc:?}: {done:#?}");
        rig.fake.heal(rpc);
    }
    assert_eq!(rig.fake.count(Rpc::RemoveImage), 0);
}

#[tokio::test]
async fn what_is_of_no_use_is_shown_with_its_reason_and_then_removed() {
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.until_ready(&["web"]).await.unwrap();
    // Dead containers that cannot be removed for now.
    rig.fake.inject(Rpc::RemoveContainer, Fault::fail(Code::Unknown, "device busy"));
    for attempt in 0..2 {
        let container = eventually(LONG, "the container to run", async || {
            let running = |c: &cri::ContainerStatus| c.state() == cri::ContainerState::ContainerRunning;
            let all = rig.fake.containers();
            let found = all.iter().find(|c| running(c) && c.metadata.as_ref().is_some_and(|m| m.attempt == attempt));
            found.map(|c| c.id.clone()).with_context(|| format!("{all:#?}"))
        });
        assert!(rig.fake.exit(&container.await.unwrap(), 1));
    }
    let shown = rig.gc(true, None).await.unwrap();
    let is_it = |report: &Report| report.items.iter().filter(|item| item.kind == Kind::Container).count() == 1;
    assert!(is_it(&shown) && shown.items[0].why.contains("newer dead containers of app"), "{shown:#?}");
    assert_eq!(shown.items[0].pod.as_deref(), Some("default/web"));
    // The worker tries at once and cannot: it is said that it is still there.
    let done = rig.gc(false, None).await.unwrap();
    assert!(is_it(&done) && matches!(done.items[0].outcome, Outcome::Failed(_)) && !done.is_clean(), "{done:#?}");
    rig.fake.heal(Rpc::RemoveContainer);
    assert!(rig.gc(false, None).await.unwrap().is_clean());
    assert_eq!(rig.gc(true, None).await.unwrap().items, []);
    let dead = rig.fake.containers().iter().filter(|c| c.state() == cri::ContainerState::ContainerExited).count();
    assert_eq!(dead, 1, "the newest one stays");
}

#[tokio::test]
async fn an_evicted_pod_has_failed_with_its_reason_and_does_so_once() {
    const MESSAGE: &str = "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". ";
    let mut rig = Rig::start().await.unwrap();
    rig.add("web").unwrap();
    rig.add("other").unwrap();
    rig.until_ready(&["web", "other"]).await.unwrap();
    let other = rig.steady("other");
    // Whoever measures says so at every look until the pod has ended.
    rig.evict("web", MESSAGE).await.unwrap();
    rig.evict("web", MESSAGE).await.unwrap();
    let status = eventually(LONG, "the pod to have failed", async || {
        let status = rig.status("web").context("no status")?;
        ensure!(status.phase.as_deref() == Some("Failed"), "{status:#?}");
        Ok(status)
    })
    .await
    .unwrap();
    assert_eq!((status.reason.as_deref(), status.message.as_deref()), (Some("Evicted"), Some(MESSAGE)));
    let conditions = status.conditions.unwrap_or_default();
    assert!(
        conditions.iter().all(|c| c.type_ != "DisruptionTarget"),
        "its own doing is no disruption, as under kubelet"
    );
    rig.evict("web", MESSAGE).await.unwrap();
    rig.restart_agent().unwrap();
    rig.until_ready(&["other"]).await.unwrap();
    assert_eq!(rig.pod_events("web", "Evicted"), [MESSAGE]);
    assert_eq!(rig.status("web").unwrap().reason.as_deref(), Some("Evicted"), "also after a restart");
    rig.is_undisturbed("other", &other).unwrap();
}
