//! Calls that only the kubelet API makes: URLs of streams, and usage.

use std::collections::{BTreeMap, HashMap};

use nodelet_proto::cri;

use super::super::labels;
use super::{CriError, Runtime};
use crate::ids::{ContainerId, PodUid, SandboxId};

/// Which streams of a process a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; with a terminal it is a part of standard output.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

impl Runtime {
    /// Where a command can be run with streams. The URL works once.
    pub async fn exec_url(&self, id: &ContainerId, cmd: Vec<String>, streams: Streams) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        let Streams { stdin, stdout, stderr, tty } = streams;
        let request = cri::ExecRequest { container_id: id.to_string(), cmd, tty, stdin, stdout, stderr };
        Ok(self.call("Exec", async move { client.exec(request).await }).await?.url)
    }

    /// Where the streams of a container's first process can be used. The URL works once.
    pub async fn attach_url(&self, id: &ContainerId, streams: Streams) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        let Streams { stdin, stdout, stderr, tty } = streams;
        let request = cri::AttachRequest { container_id: id.to_string(), stdin, tty, stdout, stderr };
        Ok(self.call("Attach", async move { client.attach(request).await }).await?.url)
    }

    /// Where ports inside a sandbox can be reached. The URL works once.
    pub async fn port_forward_url(&self, id: &SandboxId, port: Vec<i32>) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::PortForwardRequest { pod_sandbox_id: id.to_string(), port };
        Ok(self.call("PortForward", async move { client.port_forward(request).await }).await?.url)
    }

    /// Writes a container's memory and files into an archive at `location`; `timeout` in seconds, 0 for the runtime's own.
    pub async fn checkpoint(&self, container_id: String, location: String, timeout: i64) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::CheckpointContainerRequest { container_id, location, timeout };
        let limit = self.timeout.max(std::time::Duration::from_secs(u64::try_from(timeout).unwrap_or(0)));
        let rpc = async move { client.checkpoint_container(request).await };
        self.call_within("CheckpointContainer", limit, rpc).await.map(drop)
    }

    /// Usage of all containers.
    pub async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::ListContainerStatsRequest { filter: None };
        Ok(self.call("ListContainerStats", async move { client.list_container_stats(request).await }).await?.stats)
    }

    /// Bytes of the writable layers of a pod's containers that run, by name.
    pub async fn writable_layers(&self, pod: &PodUid) -> Result<BTreeMap<String, u64>, CriError> {
        let mut client = self.runtime.clone();
        let label_selector = HashMap::from([(labels::POD_UID.to_owned(), pod.to_string())]);
        let filter = cri::ContainerStatsFilter { label_selector, ..Default::default() };
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let answer = self.call("ListContainerStats", async move { client.list_container_stats(request).await }).await?;
        let layer = |stats: cri::ContainerStats| {
            let name = stats.attributes?.metadata?.name;
            Some((name, stats.writable_layer.and_then(|layer| layer.used_bytes).map_or(0, |bytes| bytes.value)))
        };
        let mut layers = BTreeMap::new();
        for (name, bytes) in answer.stats.into_iter().filter_map(layer) {
            // Dead containers of the same name may be listed, too: all of them are on the disk.
            *layers.entry(name).or_default() += bytes;
        }
        Ok(layers)
    }

    /// Usage of all sandboxes. `Unimplemented` before containerd 1.6.
    pub async fn sandbox_stats(&self) -> Result<Vec<cri::PodSandboxStats>, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::ListPodSandboxStatsRequest { filter: None };
        Ok(self.call("ListPodSandboxStats", async move { client.list_pod_sandbox_stats(request).await }).await?.stats)
    }

    /// Usage of the file systems of images.
    pub async fn image_fs(&self) -> Result<Vec<cri::FilesystemUsage>, CriError> {
        let mut client = self.images.clone();
        let request = cri::ImageFsInfoRequest {};
        Ok(self.call("ImageFsInfo", async move { client.image_fs_info(request).await }).await?.image_filesystems)
    }
}
