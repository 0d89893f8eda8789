//! What the node's status says beside machine and runtime: the images that are there.
//!
//! The runtime does not tell of images; they are listed at start and with every full status report (five minutes).

use std::sync::Arc;
use std::time::Duration;

use nodelet_proto::cri;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cri::Runtime;
use crate::node::{NodeExtras, NodeImage};

/// Keeps `extras` current, every `period`.
pub async fn run(
    runtime: Runtime,
    extras: Arc<watch::Sender<NodeExtras>>,
    period: Duration,
    shutdown: CancellationToken,
) {
    loop {
        match runtime.list_images().await {
            Ok(images) => {
                let images: Arc<[NodeImage]> = images.into_iter().map(node_image).collect();
                extras.send_if_modified(|extras| {
                    let changed = extras.images.as_ref() != Some(&images);
                    extras.images = Some(images);
                    changed
                });
            }
            // What was listed before is still the best that is known.
            Err(error) => tracing::warn!(%error, "cannot list images; the node status keeps those it has"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}

fn node_image(image: cri::Image) -> NodeImage {
    let names: Vec<String> = image.repo_digests.into_iter().chain(image.repo_tags).collect();
    let names = if names.is_empty() { vec!["<none>@<none>".into(), "<none>:<none>".into()] } else { names };
    NodeImage { names, size: i64::try_from(image.size).unwrap_or(i64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_named_before_tags_and_an_image_without_names_says_so() {
        let image = cri::Image {
            repo_tags: vec!["a:1".into()],
            repo_digests: vec!["a@sha256:0".into()],
            size: 5,
            ..Default::default()
        };
        assert_eq!(node_image(image), NodeImage { names: vec!["a@sha256:0".into(), "a:1".into()], size: 5 });
        assert_eq!(node_image(cri::Image::default()).names, ["<none>@<none>", "<none>:<none>"]);
    }
}
