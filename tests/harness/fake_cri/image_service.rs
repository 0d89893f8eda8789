//! ImageService.

use std::sync::Arc;

use futures_util::stream::Empty;
use nodelet_proto::cri::image_service_server::ImageService;
use nodelet_proto::cri::*;
use tonic::{Request, Response, Status};

use super::faults::Stage;
use super::model::normalized;
use super::shared::{Rpc, Shared, lock};

type Answer<T> = Result<Response<T>, Status>;

/// The service of one fake.
pub(super) struct ImageFacade(pub(super) Arc<Shared>);

fn name_of(image: Option<ImageSpec>) -> String {
    image.map(|spec| spec.image).unwrap_or_default()
}

#[tonic::async_trait]
impl ImageService for ImageFacade {
    type StreamImagesStream = Empty<Result<StreamImagesResponse, Status>>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let filter = name_of(request.into_inner().filter.and_then(|filter| filter.image));
        let shared = Arc::clone(&self.0);
        let work = async move {
            let hidden = lock(&shared.hidden).clone();
            let images = shared.read(|model| {
                let chosen: Vec<_> = match filter.as_str() {
                    "" => model.images.values().collect(),
                    name => model.image(name).into_iter().collect(),
                };
                chosen.into_iter().filter(|image| !hidden.contains(&image.id)).cloned().collect()
            });
            Ok(ListImagesResponse { images })
        };
        self.0.call(Rpc::ListImages, Vec::new(), work).await
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let name = name_of(request.into_inner().image);
        let (shared, about) = (Arc::clone(&self.0), vec![name.clone()]);
        let work = async move {
            let image = shared.read(|model| model.image(&name).cloned());
            Ok(ImageStatusResponse { image, ..Default::default() })
        };
        self.0.call(Rpc::ImageStatus, about, work).await
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        let auth = request.auth.unwrap_or_default();
        let name = name_of(request.image);
        let (shared, about) = (Arc::clone(&self.0), vec![name.clone(), auth.username.clone()]);
        let work = async move {
            shared.faults.strike(Rpc::PullImage, Stage::During, std::slice::from_ref(&name)).await?;
            let users = lock(&shared.options).private_images.clone();
            let mut users = users.into_iter().filter(|(image, ..)| *image == name).peekable();
            let is_private = users.peek().is_some();
            if is_private && !users.any(|(_, user, password)| user == auth.username && password == auth.password) {
                return Err(Status::unknown(format!(
                    "failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": pull access denied, \
                     repository does not exist or may require authorization: authorization failed: no basic auth credentials"
                )));
            }
            let open = lock(&shared.options).any_image_can_be_pulled;
            shared.update(|model| {
                if open && model.image(&name).is_none() {
                    model.add_image(&name);
                }
                let full = normalized(&name);
                let found = model.image(&name).map(|image| PullImageResponse { image_ref: image.id.clone() });
                found.ok_or_else(|| {
                    Status::not_found(format!(
                        "failed to pull and unpack image \"{full}\": failed to resolve reference \"{full}\": {full}: not found"
                    ))
                })
            })
        };
        self.0.call(Rpc::PullImage, about, work).await
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = name_of(request.into_inner().image);
        let (shared, about) = (Arc::clone(&self.0), vec![name.clone()]);
        let work = async move {
            shared.update(|model| {
                if let Some(id) = model.image(&name).map(|image| image.id.clone()) {
                    model.images.remove(&id);
                }
            });
            Ok(RemoveImageResponse {})
        };
        self.0.call(Rpc::RemoveImage, about, work).await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let shared = Arc::clone(&self.0);
        let work = async move {
            let used = shared.read(|model| model.images.values().map(|image| image.size).sum());
            let inodes = shared.read(|model| model.images.len() as u64);
            let usage = FilesystemUsage {
                timestamp: shared.now(),
                fs_id: Some(FilesystemIdentifier { mountpoint: "/var/lib/containerd".to_owned() }),
                used_bytes: Some(UInt64Value { value: used }),
                inodes_used: Some(UInt64Value { value: inodes }),
            };
            Ok(ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
        };
        self.0.call(Rpc::ImageFsInfo, Vec::new(), work).await
    }

    async fn stream_images(&self, _: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        Err(Status::unimplemented("the fake has no StreamImages"))
    }
}
