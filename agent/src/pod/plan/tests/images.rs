//! Plans about images: of containers and of image volumes.

use k8s_openapi::api::core::v1::{ImageVolumeSource, Volume, VolumeMount};

use super::*;

fn make_image_volume(pod: &mut Pod) {
    let spec = pod.spec.as_mut().unwrap();
    spec.volumes = Some(vec![Volume {
        name: "data".into(),
        image: Some(ImageVolumeSource { reference: Some("reg.io/data:1".into()), ..ImageVolumeSource::default() }),
        ..Volume::default()
    }]);
    spec.containers[0].volume_mounts =
        Some(vec![VolumeMount { name: "data".into(), mount_path: "/d".into(), ..VolumeMount::default() }]);
}

#[test]
fn a_container_waits_for_its_image_volumes() {
    let mut pod = make_pod(&[], &["a", "b"], "Always");
    make_image_volume(&mut pod);
    let mut sim = Sim::new(pod);
    sim.memory.observed = true;
    sim.turn();
    let volume = Op::EnsureImage { for_use: ImageUse::Volume("data".into()), image: "reg.io/data:1".into() };
    assert_eq!(sim.inflight.values().filter(|op| **op == volume).count(), 1);
    let failed = Failure { reason: "ErrImagePull", message: "no".into(), container: None };
    sim.inflight.remove(&volume.key());
    sim.memory.record(volume.key(), Err(failed), &mut sim.runtime, sim.now);
    sim.turn();
    let due = sim.memory.volume_images["data"].failure().unwrap().retry_at;
    assert_eq!(due, sim.now + 10 * SECOND, "a failed pull of a volume backs off like one of a container");
    assert!(!sim.inflight.contains_key(&volume.key()));
    sim.now = due;
    sim.turn();
    assert!(sim.inflight.contains_key(&volume.key()));
}

#[test]
fn an_edit_of_the_image_ends_the_pull_of_the_old_one_and_forgets_its_back_off() {
    let mut sim = Sim::new(make_pod(&[], &["a"], "Always"));
    sim.memory.observed = true;
    sim.turn();
    let pull = |image: &str| OpKey::Image(ImageUse::Container("a".into()), image.into());
    assert!(sim.inflight.contains_key(&pull("img")));
    sim.pod.spec.as_mut().unwrap().containers[0].image = Some("img:2".into());
    sim.turn();
    assert!(!sim.inflight.contains_key(&pull("img")) && sim.inflight.contains_key(&pull("img:2")));
    let failed = Failure { reason: "ErrImagePull", message: "no".into(), container: None };
    sim.inflight.remove(&pull("img:2"));
    sim.memory.record(pull("img:2"), Err(failed), &mut sim.runtime, sim.now);
    sim.turn();
    assert!(!sim.inflight.contains_key(&pull("img:2")), "it waits");
    sim.pod.spec.as_mut().unwrap().containers[0].image = Some("img:3".into());
    sim.turn();
    assert!(sim.inflight.contains_key(&pull("img:3")), "another image does not wait for the failures of the last one");
}
