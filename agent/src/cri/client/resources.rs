//! Calls of a resize: telling the runtime, and asking what is used.

use nodelet_proto::cri;
use tonic::Code;

use super::{CriError, Runtime};
use crate::ids::{ContainerId, SandboxId};

impl Runtime {
    /// Changes what a running container is held to.
    pub async fn update_container(
        &self,
        id: &ContainerId,
        resources: cri::LinuxContainerResources,
    ) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_string(),
            linux: Some(resources),
            ..Default::default()
        };
        let answer =
            self.call("UpdateContainerResources", async move { client.update_container_resources(request).await });
        answer.await.map(drop)
    }

    /// Tells the runtime what a sandbox is held to from now on. Answers false when it has no such call.
    pub async fn update_sandbox(
        &self,
        id: &SandboxId,
        overhead: Option<cri::LinuxContainerResources>,
        resources: Option<cri::LinuxContainerResources>,
    ) -> Result<bool, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: id.to_string(), overhead, resources };
        let answer =
            self.call("UpdatePodSandboxResources", async move { client.update_pod_sandbox_resources(request).await });
        match answer.await {
            Ok(_) => Ok(true),
            Err(error) if error.is_unimplemented() => Ok(false),
            // containerd 2.2 says so in words (containerd#13023).
            Err(CriError::Failed { code: Code::Unknown, message, .. }) if message.contains("not implemented") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Memory that a container uses, in bytes; `None` when the runtime does not say.
    pub async fn memory_usage(&self, id: &ContainerId) -> Result<Option<u64>, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::ContainerStatsRequest { container_id: id.to_string() };
        let stats = self.call("ContainerStats", async move { client.container_stats(request).await }).await?.stats;
        let memory = stats.and_then(|stats| stats.memory);
        Ok(memory.and_then(|memory| memory.usage_bytes.or(memory.working_set_bytes)).map(|bytes| bytes.value))
    }
}
