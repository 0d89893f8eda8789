//! Whether an answer has what the API promises. Pure.
//!
//! A status without its fields is not the status of another container: taken at its word it names nothing, has begun never
//! and has not run, and the pod that it belongs to would be started again beside itself. kubelet refuses the same answers
//! (`k8s.io/cri-client`, `pkg/utils.go`).

use nodelet_proto::cri;

use super::CriError;

fn missing(call: &'static str, missing: &'static str) -> CriError {
    CriError::Malformed { call, missing }
}

fn ensure(is_there: bool, call: &'static str, what: &'static str) -> Result<(), CriError> {
    if is_there { Ok(()) } else { Err(missing(call, what)) }
}

/// A sandbox's status: of `id`, with a name and a time.
pub(super) fn sandbox(id: &str, status: Option<cri::PodSandboxStatus>) -> Result<cri::PodSandboxStatus, CriError> {
    const CALL: &str = "PodSandboxStatus";
    let status = status.ok_or_else(|| missing(CALL, "status"))?;
    ensure(is_of(&status.id, id), CALL, "id that was asked for")?;
    let named = status.metadata.as_ref().is_some_and(|m| !m.name.is_empty() && !m.uid.is_empty());
    ensure(named, CALL, "name and UID of the pod")?;
    ensure(status.created_at != 0, CALL, "time of creation")?;
    Ok(status)
}

/// A container's status: of `id`, with a name, a time and an image.
pub(super) fn container(id: &str, status: Option<cri::ContainerStatus>) -> Result<cri::ContainerStatus, CriError> {
    const CALL: &str = "ContainerStatus";
    let status = status.ok_or_else(|| missing(CALL, "status"))?;
    ensure(is_of(&status.id, id), CALL, "id that was asked for")?;
    ensure(status.metadata.as_ref().is_some_and(|m| !m.name.is_empty()), CALL, "name of the container")?;
    ensure(status.created_at != 0, CALL, "time of creation")?;
    let has_image = status.image.as_ref().is_some_and(|image| !image.image.is_empty());
    ensure(has_image && !status.image_ref.is_empty(), CALL, "image")?;
    Ok(status)
}

/// Ids that were written down may be the beginning of one.
fn is_of(told: &str, asked: &str) -> bool {
    !told.is_empty() && told.starts_with(asked)
}

/// An image, where there is one: with its id and size.
pub(super) fn image(image: Option<cri::Image>) -> Result<Option<cri::Image>, CriError> {
    let whole = image.as_ref().is_none_or(|image| !image.id.is_empty() && image.size != 0);
    ensure(whole, "ImageStatus", "id and size of the image")?;
    Ok(image)
}

/// The id of something new.
pub(super) fn id(call: &'static str, id: String) -> Result<String, CriError> {
    ensure(!id.is_empty(), call, "id")?;
    Ok(id)
}

/// Name and version of the runtime.
pub(super) fn version(answer: cri::VersionResponse) -> Result<cri::VersionResponse, CriError> {
    let named = !answer.runtime_name.is_empty() && !answer.runtime_version.is_empty();
    ensure(named, "Version", "name and version of the runtime")?;
    Ok(answer)
}

/// The runtime's own two conditions.
pub(super) fn status(answer: cri::StatusResponse) -> Result<cri::StatusResponse, CriError> {
    let told = |kind: &str| {
        let conditions = answer.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| condition.r#type == kind)
    };
    ensure(told("RuntimeReady") && told("NetworkReady"), "Status", "conditions RuntimeReady and NetworkReady")?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_container() -> cri::ContainerStatus {
        cri::ContainerStatus {
            id: "c1".into(),
            metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
            created_at: 1,
            image: Some(cri::ImageSpec { image: "app:1".into(), ..Default::default() }),
            image_ref: "sha256:1".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_status_without_what_the_api_promises_is_no_status() {
        assert!(container("c1", Some(whole_container())).is_ok());
        assert!(container("c2", Some(whole_container())).is_err(), "of another container");
        assert!(container("c1", None).is_err());
        let holes: [fn(&mut cri::ContainerStatus); 4] =
            [|c| c.metadata = None, |c| c.created_at = 0, |c| c.image = None, |c| c.image_ref.clear()];
        for hole in holes {
            let mut status = whole_container();
            hole(&mut status);
            assert!(matches!(container("c1", Some(status)), Err(CriError::Malformed { .. })));
        }
        let bare = cri::PodSandboxStatus { id: "s".into(), ..Default::default() };
        assert_eq!(
            sandbox("s", Some(bare)).unwrap_err().to_string(),
            "PodSandboxStatus: the answer has no name and UID of the pod"
        );
    }

    #[test]
    fn an_empty_answer_is_neither_an_image_nor_a_runtime() {
        assert!(image(None).unwrap().is_none(), "it is not on the node");
        assert!(image(Some(cri::Image::default())).is_err());
        assert!(id("CreateContainer", String::new()).is_err());
        assert!(version(cri::VersionResponse::default()).is_err());
        assert!(status(cri::StatusResponse::default()).is_err());
    }
}
