//! The CRI client: one lazily connected HTTP/2 channel over the runtime's Unix socket, and one method for each call.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nodelet_proto::cri;
use nodelet_proto::cri::image_service_client::ImageServiceClient;
use nodelet_proto::cri::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::{ContainerView, PodRuntime, RuntimePod, RuntimePods, SandboxView, convert};
use crate::ids::{ContainerId, SandboxId};
use crate::metrics::METRICS;

mod inspect;
pub mod kubelet_api;
mod lists;
mod resources;
mod verify;

pub use inspect::Known;

/// Largest answer that is accepted; kubelet uses the same 16 MiB, which is about 10,000 containers in one list.
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// A CRI call that did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CriError {
    /// The runtime answered with an error, or could not be reached (`Unavailable`).
    #[error("{call}: {message} ({code:?})")]
    Failed {
        /// The RPC.
        call: &'static str,
        /// gRPC code.
        code: Code,
        /// The runtime's text.
        message: String,
    },
    /// No answer in time. The call is left to finish: cancelling a create leaves its name reserved in containerd
    /// (containerd#4604), while a finished one is found and adopted by the next look at the pod.
    #[error("{call}: no answer after {after:?}; the runtime is still at it")]
    Timeout {
        /// The RPC.
        call: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The answer lacks something that the API promises.
    #[error("{call}: the answer has no {missing}")]
    Malformed {
        /// The RPC.
        call: &'static str,
        /// What is not there.
        missing: &'static str,
    },
    /// Two answers of the runtime do not go together; asking again tells which one was old.
    #[error("the runtime contradicts itself about {id}: {text}")]
    Contradiction {
        /// The container or sandbox.
        id: String,
        /// The two answers.
        text: &'static str,
    },
}

impl CriError {
    /// Whether the runtime says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Failed { code: Code::NotFound, .. })
    }

    /// Whether the runtime does not know the RPC.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Failed { code: Code::Unimplemented, .. })
    }

    /// The runtime's text without our wrapping, for events and waiting messages.
    pub fn text(&self) -> String {
        match self {
            Self::Failed { message, .. } => message.clone(),
            Self::Timeout { .. } | Self::Malformed { .. } | Self::Contradiction { .. } => self.to_string(),
        }
    }
}

/// Result of a command that ran to its end inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exit code.
    pub exit_code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// Client of a container runtime. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Runtime {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    socket: PathBuf,
    timeout: Duration,
}

impl Runtime {
    /// A client for the sockets at `runtime` and `images`; nothing is dialled before the first call.
    /// `timeout` is `runtimeRequestTimeout`: the limit of every call but streams, pulls and graceful stops.
    pub fn new(runtime: PathBuf, images: PathBuf, timeout: Duration) -> Self {
        let runtime_channel = channel(runtime.clone());
        let image_channel = if images == runtime { runtime_channel.clone() } else { channel(images) };
        Self {
            runtime: RuntimeServiceClient::new(runtime_channel).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(image_channel).max_decoding_message_size(MAX_MESSAGE),
            socket: runtime,
            timeout,
        }
    }

    /// The runtime's socket.
    pub fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// Waits for a call, bounded by the request timeout, without ever cancelling it.
    async fn call<T, F>(&self, name: &'static str, rpc: F) -> Result<T, CriError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        self.call_within(name, self.timeout, rpc).await
    }

    async fn call_within<T, F>(&self, name: &'static str, limit: Duration, rpc: F) -> Result<T, CriError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<T>, Status>> + Send + 'static,
    {
        let began = Instant::now();
        let answer = tokio::time::timeout(limit, tokio::spawn(rpc)).await;
        METRICS.runtime.observe(name, began.elapsed(), matches!(answer, Ok(Ok(Ok(_)))));
        match answer {
            Ok(Ok(answer)) => answer.map(Response::into_inner).map_err(|status| failed(name, &status)),
            Ok(Err(_)) => {
                Err(CriError::Failed { call: name, code: Code::Cancelled, message: "the agent is stopping".into() })
            }
            Err(_) => Err(CriError::Timeout { call: name, after: limit }),
        }
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<cri::VersionResponse, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::VersionRequest { version: "v1".into() };
        verify::version(self.call("Version", async move { client.version(request).await }).await?)
    }

    /// Conditions, handlers and features of the runtime.
    pub async fn status(&self) -> Result<cri::StatusResponse, CriError> {
        let mut client = self.runtime.clone();
        let asked = async move { client.status(cri::StatusRequest { verbose: false }).await };
        verify::status(self.call_within("Status", Duration::from_secs(30), asked).await?)
    }

    /// What the runtime says about itself to people who debug it, as texts by name. containerd's `config` is JSON.
    pub async fn status_info(&self) -> Result<HashMap<String, String>, CriError> {
        let mut client = self.runtime.clone();
        let answer = self.call("Status", async move { client.status(cri::StatusRequest { verbose: true }).await });
        Ok(answer.await?.info)
    }

    /// All sandboxes, of whatever state.
    pub async fn sandbox_ids(&self) -> Result<std::collections::BTreeSet<String>, CriError> {
        Ok(self.list_sandboxes(HashMap::new()).await?.into_iter().map(|sandbox| sandbox.id).collect())
    }

    /// The runtime's own configuration (cgroup driver). `Unimplemented` before containerd 2.0.
    pub async fn runtime_config(&self) -> Result<cri::RuntimeConfigResponse, CriError> {
        let mut client = self.runtime.clone();
        self.call("RuntimeConfig", async move { client.runtime_config(cri::RuntimeConfigRequest {}).await }).await
    }

    /// All pods that a kubelet or nodelet made, by the labels of their sandboxes and containers.
    pub async fn list_pods(&self) -> Result<RuntimePods, CriError> {
        let sandboxes = self.list_sandboxes(HashMap::new());
        let containers = self.list_containers(HashMap::new());
        let (sandboxes, containers) = tokio::try_join!(sandboxes, containers)?;
        let mut pods = RuntimePods::new();
        let labelled =
            sandboxes.iter().map(|s| (&s.labels, &s.id)).chain(containers.iter().map(|c| (&c.labels, &c.id)));
        for (labels, id) in labelled {
            if let Some(identity) = convert::identity(labels) {
                let pod = pods.entry(identity.uid.clone()).or_insert_with(|| RuntimePod { identity, ids: Vec::new() });
                pod.ids.push(id.clone());
            }
        }
        Ok(pods)
    }

    async fn list_sandboxes(&self, selector: HashMap<String, String>) -> Result<Vec<cri::PodSandbox>, CriError> {
        let mut client = self.runtime.clone();
        let filter = cri::PodSandboxFilter { label_selector: selector, ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.call("ListPodSandbox", async move { client.list_pod_sandbox(request).await }).await?.items)
    }

    async fn list_containers(&self, selector: HashMap<String, String>) -> Result<Vec<cri::Container>, CriError> {
        let mut client = self.runtime.clone();
        let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.call("ListContainers", async move { client.list_containers(request).await }).await?.containers)
    }

    /// The current state of a sandbox.
    pub async fn sandbox_status(&self, id: &SandboxId) -> Result<SandboxView, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_string(), verbose: false };
        let answer = self.call("PodSandboxStatus", async move { client.pod_sandbox_status(request).await }).await?;
        Ok(convert::sandbox(&verify::sandbox(id.as_str(), answer.status)?))
    }

    /// The current state of a container of `sandbox`.
    pub async fn container_status(&self, id: &ContainerId, sandbox: &str) -> Result<ContainerView, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::ContainerStatusRequest { container_id: id.to_string(), verbose: false };
        let answer = self.call("ContainerStatus", async move { client.container_status(request).await }).await?;
        Ok(convert::container(&verify::container(id.as_str(), answer.status)?, sandbox))
    }

    /// Creates and starts a sandbox, network included.
    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: String) -> Result<SandboxId, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler };
        // kubelet doubles the timeout here, because the call covers CNI and the sandbox image as well.
        let answer = self
            .call_within("RunPodSandbox", self.timeout * 2, async move { client.run_pod_sandbox(request).await })
            .await?;
        verify::id("RunPodSandbox", answer.pod_sandbox_id).map(SandboxId::new)
    }

    /// Stops a sandbox and everything in it, and tears its network down. Idempotent.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_string() };
        let answer = self.call("StopPodSandbox", async move { client.stop_pod_sandbox(request).await }).await;
        ignore_missing(answer.map(drop))
    }

    /// Removes a sandbox and the containers in it. Idempotent.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_string() };
        let answer = self.call("RemovePodSandbox", async move { client.remove_pod_sandbox(request).await }).await;
        ignore_missing(answer.map(drop))
    }

    /// Creates a container in a sandbox.
    pub async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<ContainerId, CriError> {
        let mut client = self.runtime.clone();
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_string(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        // tonic's future holds both configurations several times over; boxed, its callers stay small.
        let rpc = Box::pin(async move { client.create_container(request).await });
        let answer = self.call("CreateContainer", rpc).await?;
        verify::id("CreateContainer", answer.container_id).map(ContainerId::new)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::StartContainerRequest { container_id: id.to_string() };
        self.call("StartContainer", async move { client.start_container(request).await }).await.map(drop)
    }

    /// Asks a container to end, and kills it after `grace_seconds`. Idempotent.
    pub async fn stop_container(&self, id: &ContainerId, grace_seconds: i64) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::StopContainerRequest { container_id: id.to_string(), timeout: grace_seconds };
        let limit = self.timeout + Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
        let answer =
            self.call_within("StopContainer", limit, async move { client.stop_container(request).await }).await;
        ignore_missing(answer.map(drop))
    }

    /// Removes a container; a running one is killed. Idempotent.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::RemoveContainerRequest { container_id: id.to_string() };
        let answer = self.call("RemoveContainer", async move { client.remove_container(request).await }).await;
        ignore_missing(answer.map(drop))
    }

    /// Runs a command in a container and waits for it, at most `limit`.
    pub async fn exec(&self, id: &ContainerId, cmd: Vec<String>, limit: Duration) -> Result<ExecResult, CriError> {
        let mut client = self.runtime.clone();
        // The runtime counts whole seconds; 0 would mean no limit.
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = cri::ExecSyncRequest { container_id: id.to_string(), cmd, timeout };
        let slack = Duration::from_secs(2);
        let answer =
            self.call_within("ExecSync", limit + slack, async move { client.exec_sync(request).await }).await?;
        Ok(ExecResult { exit_code: answer.exit_code, stdout: answer.stdout.to_vec(), stderr: answer.stderr.to_vec() })
    }

    /// Tells the runtime to open a container's log file again, after a rotation moved it away.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = cri::ReopenContainerLogRequest { container_id: id.to_string() };
        self.call("ReopenContainerLog", async move { client.reopen_container_log(request).await }).await.map(drop)
    }

    /// An image that is on the node, or `None`.
    pub async fn image_status(&self, image: &str) -> Result<Option<cri::Image>, CriError> {
        let mut client = self.images.clone();
        let request = cri::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        verify::image(self.call("ImageStatus", async move { client.image_status(request).await }).await?.image)
    }

    /// All images on the node.
    pub async fn list_images(&self) -> Result<Vec<cri::Image>, CriError> {
        let mut client = self.images.clone();
        let request = cri::ListImagesRequest { filter: None };
        Ok(self.call("ListImages", async move { client.list_images(request).await }).await?.images)
    }

    /// Pulls an image; answers its reference. Has no deadline of its own: dropping the future cancels the pull.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox_config: Option<cri::PodSandboxConfig>,
    ) -> Result<String, CriError> {
        let mut client = self.images.clone();
        let request = cri::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config };
        let began = Instant::now();
        let answer = client.pull_image(Request::new(request)).await;
        METRICS.runtime.observe("PullImage", began.elapsed(), answer.is_ok());
        verify::id("PullImage", answer.map_err(|s| failed("PullImage", &s))?.into_inner().image_ref)
    }

    /// Opens the stream of container events. `Unimplemented` before containerd 1.7.
    pub async fn container_events(&self) -> Result<tonic::Streaming<cri::ContainerEventResponse>, CriError> {
        let mut client = self.runtime.clone();
        let answer = client.get_container_events(cri::GetEventsRequest {}).await;
        answer.map(Response::into_inner).map_err(|status| failed("GetContainerEvents", &status))
    }

    /// Tells the runtime the node's pod CIDR, for network plugins that take it from there.
    pub async fn update_pod_cidr(&self, cidr: String) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let runtime_config = cri::RuntimeConfig { network_config: Some(cri::NetworkConfig { pod_cidr: cidr }) };
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(runtime_config) };
        self.call("UpdateRuntimeConfig", async move { client.update_runtime_config(request).await }).await.map(drop)
    }
}

impl PodRuntime {
    /// Puts the newest sandbox and container first. Attempts decide, because clocks may step.
    pub fn sort(&mut self) {
        self.sandboxes.sort_by_key(|s: &SandboxView| std::cmp::Reverse((s.created_at, s.attempt)));
        self.containers.sort_by_key(|c: &ContainerView| std::cmp::Reverse((c.created_at, c.attempt)));
    }
}

fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..Default::default() }
}

/// Bytes of a runtime's error that are kept. It may carry what a registry or a container said, and goes on into statuses, events,
/// the log and the journal.
const MOST_SAID: usize = 8 * 1024;

fn failed(call: &'static str, status: &Status) -> CriError {
    let message = status.message();
    let message = message[..message.floor_char_boundary(MOST_SAID)].to_owned();
    CriError::Failed { call, code: status.code(), message }
}

fn ignore_missing(answer: Result<(), CriError>) -> Result<(), CriError> {
    match answer {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// A channel over a Unix socket. The authority is `localhost`: servers refuse one that is a path (hyperium/h2#487).
pub fn channel(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}
