//! Lists of all that the runtime has, and the removal of images.

use std::collections::HashMap;
use std::path::PathBuf;

use nodelet_proto::cri;

use super::super::convert;
use super::super::listing::{ListedContainer, ListedImage, ListedSandbox, Listing};
use super::{CriError, Runtime, ignore_missing, image_spec};
use crate::ids::{ContainerId, SandboxId};

impl Runtime {
    /// All sandboxes and containers.
    pub async fn list_all(&self) -> Result<Listing, CriError> {
        let (sandboxes, containers) =
            tokio::try_join!(self.list_sandboxes(HashMap::new()), self.list_containers(HashMap::new()))?;
        Ok(Listing {
            sandboxes: sandboxes.into_iter().map(sandbox).collect(),
            containers: containers.into_iter().map(container).collect(),
        })
    }

    /// All containers.
    pub async fn list_all_containers(&self) -> Result<Vec<ListedContainer>, CriError> {
        Ok(self.list_containers(HashMap::new()).await?.into_iter().map(container).collect())
    }

    /// All images.
    pub async fn list_all_images(&self) -> Result<Vec<ListedImage>, CriError> {
        Ok(self.list_images().await?.into_iter().map(image).collect())
    }

    /// Removes an image with all its names. Idempotent.
    pub async fn remove_image(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.images.clone();
        let request = cri::RemoveImageRequest { image: Some(image_spec(id)) };
        let answer = self.call("RemoveImage", async move { client.remove_image(request).await }).await;
        ignore_missing(answer.map(drop))
    }

    /// Where the images are: a path on their file system.
    pub async fn image_directory(&self) -> Result<PathBuf, CriError> {
        let first = self.image_fs().await?.into_iter().find_map(|usage| usage.fs_id);
        let missing = || CriError::Malformed { call: "ImageFsInfo", missing: "file system" };
        first.map(|id| PathBuf::from(id.mountpoint)).filter(|path| path.is_absolute()).ok_or_else(missing)
    }

    /// The image that the runtime makes sandboxes from, where it tells: containerd before 1.7 does not pin it.
    pub async fn sandbox_image(&self) -> Result<Option<String>, CriError> {
        let info = self.status_info().await?;
        let config: serde_json::Value =
            info.get("config").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        Ok(config["sandboxImage"].as_str().filter(|image| !image.is_empty()).map(str::to_owned))
    }
}

fn sandbox(listed: cri::PodSandbox) -> ListedSandbox {
    ListedSandbox {
        pod: convert::identity(&listed.labels),
        ready: listed.state() == cri::PodSandboxState::SandboxReady,
        created_at: listed.created_at,
        attempt: listed.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        id: SandboxId::new(listed.id),
    }
}

fn container(listed: cri::Container) -> ListedContainer {
    let is_exited = listed.state() == cri::ContainerState::ContainerExited;
    let (name, attempt) = listed.metadata.map(|metadata| (metadata.name, metadata.attempt)).unwrap_or_default();
    let spec = listed.image.map(|spec| [spec.image, spec.user_specified_image]);
    let images = spec.into_iter().flatten().chain([listed.image_ref, listed.image_id]);
    ListedContainer {
        pod: convert::identity(&listed.labels),
        name,
        is_exited,
        created_at: listed.created_at,
        attempt,
        images: images.filter(|image| !image.is_empty()).collect(),
        id: ContainerId::new(listed.id),
        sandbox: SandboxId::new(listed.pod_sandbox_id),
    }
}

fn image(listed: cri::Image) -> ListedImage {
    ListedImage {
        id: listed.id,
        tags: listed.repo_tags,
        digests: listed.repo_digests,
        size: listed.size,
        is_pinned: listed.pinned,
    }
}
