//! What the runtime says about itself and its images.

use nodelet_proto::cri::*;
use tonic::Code;

use crate::rig::{IMAGE, Rig, Runtime};

pub(crate) async fn the_runtime_tells_its_name_and_version(rig: Rig) {
    let answer = rig.cri.runtime.clone().version(VersionRequest::default()).await.expect("a version").into_inner();
    assert_eq!((answer.runtime_name.as_str(), answer.runtime_api_version.as_str()), ("containerd", "v1"));
    let expected = if rig.has_events() { "2." } else { "1.6." };
    assert!(answer.runtime_version.trim_start_matches('v').starts_with(expected), "{answer:?}");
}

pub(crate) async fn the_runtime_is_ready(rig: Rig) {
    let answer = rig.cri.runtime.clone().status(StatusRequest::default()).await.expect("a status").into_inner();
    let conditions = answer.status.expect("an answer has a status").conditions;
    let ready = conditions.iter().find(|condition| condition.r#type == "RuntimeReady").expect("RuntimeReady is told");
    assert!(ready.status, "{ready:?}");
    // Without a CNI configuration the network is not ready; pods on the host's network run all the same.
    assert!(conditions.iter().any(|condition| condition.r#type == "NetworkReady"), "{conditions:?}");
}

pub(crate) async fn the_cgroup_driver_is_told_from_version_2_on(rig: Rig) {
    let answer = rig.cri.runtime.clone().runtime_config(RuntimeConfigRequest {}).await;
    if rig.runtime == Runtime::Containerd2 {
        let linux = answer.expect("2.x knows the call").into_inner().linux.expect("this is Linux");
        assert_eq!(linux.cgroup_driver(), CgroupDriver::Cgroupfs);
    } else {
        assert_eq!(answer.expect_err("1.6 does not know the call").code(), Code::Unimplemented);
    }
}

async fn image(rig: &Rig, name: &str) -> Option<Image> {
    let image = ImageSpec { image: name.to_owned(), ..Default::default() };
    let request = ImageStatusRequest { image: Some(image), verbose: false };
    rig.cri.images.clone().image_status(request).await.expect("an answer").into_inner().image
}

pub(crate) async fn an_image_is_found_by_name_and_by_id(rig: Rig) {
    let by_name = image(&rig, IMAGE).await.expect("the image is there");
    assert!(by_name.id.starts_with("sha256:"), "{by_name:?}");
    assert_eq!(by_name.repo_tags, [IMAGE]);
    assert!(by_name.size > 0, "{by_name:?}");
    let by_id = image(&rig, &by_name.id).await.expect("the image is there");
    assert_eq!(by_id.id, by_name.id);
}

pub(crate) async fn an_unknown_image_is_an_empty_answer(rig: Rig) {
    assert_eq!(image(&rig, "localhost/nothing:1").await, None);
}
