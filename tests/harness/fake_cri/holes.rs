//! Answers that lack what they should have: whole messages, items of lists, fields.

use nodelet_proto::cri::*;

use super::events::EventStream;

/// What an answer lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// All of it: an empty message, as from a runtime that speaks another version of the protocol.
    All,
    /// Every second item of a list.
    Items,
    /// All fields of a status, or of each item of a list, but the ids.
    Fields,
}

/// An answer that can lose something.
pub(super) trait Holes {
    /// Takes away what `lack` says.
    fn lose(&mut self, lack: Lack);
}

/// Answers without lists and statuses.
macro_rules! plain {
    ($($answer:ty),* $(,)?) => {
        $(impl Holes for $answer {
            fn lose(&mut self, lack: Lack) {
                match lack {
                    Lack::All => *self = Self::default(),
                    Lack::Items | Lack::Fields => {}
                }
            }
        })*
    };
}

/// Answers with one list, and what the items keep.
macro_rules! listing {
    ($($answer:ty, $items:ident, |$item:ident| $bare:expr;)*) => {
        $(impl Holes for $answer {
            fn lose(&mut self, lack: Lack) {
                match lack {
                    Lack::All => *self = Self::default(),
                    Lack::Items => {
                        let mut number = 0;
                        self.$items.retain(|_| {
                            number += 1;
                            number % 2 == 0
                        });
                    }
                    Lack::Fields => self.$items.iter_mut().for_each(|$item| *$item = $bare),
                }
            }
        })*
    };
}

/// Answers with one status, and what it keeps.
macro_rules! status {
    ($($answer:ty, $status:ident, |$old:ident| $bare:expr;)*) => {
        $(impl Holes for $answer {
            fn lose(&mut self, lack: Lack) {
                match lack {
                    Lack::All => *self = Self::default(),
                    Lack::Items => {}
                    Lack::Fields => self.$status = self.$status.take().map(|$old| $bare),
                }
            }
        })*
    };
}

plain!(
    VersionResponse,
    RunPodSandboxResponse,
    StopPodSandboxResponse,
    RemovePodSandboxResponse,
    CreateContainerResponse,
    StartContainerResponse,
    StopContainerResponse,
    RemoveContainerResponse,
    UpdateContainerResourcesResponse,
    ReopenContainerLogResponse,
    ExecSyncResponse,
    UpdateRuntimeConfigResponse,
    RuntimeConfigResponse,
    PullImageResponse,
    RemoveImageResponse,
);

listing!(
    ListPodSandboxResponse, items, |item| PodSandbox { id: item.id.clone(), ..Default::default() };
    ListContainersResponse, containers, |item| Container { id: item.id.clone(), ..Default::default() };
    ListImagesResponse, images, |item| Image { id: item.id.clone(), ..Default::default() };
    ListContainerStatsResponse, stats, |_item| ContainerStats::default();
    ListPodSandboxStatsResponse, stats, |_item| PodSandboxStats::default();
    ImageFsInfoResponse, image_filesystems, |_item| FilesystemUsage::default();
);

status!(
    PodSandboxStatusResponse, status, |old| PodSandboxStatus { id: old.id, ..Default::default() };
    ContainerStatusResponse, status, |old| ContainerStatus { id: old.id, ..Default::default() };
    ImageStatusResponse, image, |old| Image { id: old.id, ..Default::default() };
    StatusResponse, status, |_old| RuntimeStatus::default();
    ContainerStatsResponse, stats, |_old| ContainerStats::default();
    PodSandboxStatsResponse, stats, |_old| PodSandboxStats::default();
);

/// A stream is disturbed event by event instead.
impl Holes for EventStream {
    fn lose(&mut self, _: Lack) {}
}
