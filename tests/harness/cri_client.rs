//! A bare CRI client: a connection and the smallest configurations that a runtime takes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nodelet_proto::cri::image_service_client::ImageServiceClient;
use nodelet_proto::cri::runtime_service_client::RuntimeServiceClient;
use nodelet_proto::cri::{self, NamespaceMode};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Both services of one runtime over one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CriClient {
    /// Sandboxes and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
}

impl CriClient {
    /// Connects to a runtime's socket.
    pub async fn connect(socket: impl AsRef<Path>) -> anyhow::Result<Self> {
        let path: PathBuf = socket.as_ref().to_path_buf();
        // The address is never used: the connector goes to the socket.
        let channel = Endpoint::from_static("http://runtime.invalid")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await?;
        Ok(Self { runtime: RuntimeServiceClient::new(channel.clone()), images: ImageServiceClient::new(channel) })
    }

    /// Connects as soon as the runtime answers Version, at most `within`.
    pub async fn connect_within(socket: impl AsRef<Path>, within: Duration) -> anyhow::Result<Self> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let attempt = async {
                let mut client = Self::connect(&socket).await?;
                client.runtime.version(cri::VersionRequest::default()).await?;
                anyhow::Ok(client)
            };
            match attempt.await {
                Ok(client) => return Ok(client),
                Err(error) if tokio::time::Instant::now() > deadline => {
                    return Err(error.context(format!("no runtime at {} within {within:?}", socket.as_ref().display())));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Whether the runtime has an image.
    pub async fn has_image(&mut self, name: &str) -> anyhow::Result<bool> {
        let image = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
        Ok(self.images.image_status(request).await?.into_inner().image.is_some())
    }
}

/// A sandbox on its own network (`NamespaceMode::Pod`, which needs CNI) or on the node's (`NamespaceMode::Node`).
pub fn pod_config(
    name: &str,
    network: NamespaceMode,
    cgroup_parent: &str,
    log_directory: &Path,
) -> cri::PodSandboxConfig {
    let namespace_options =
        cri::NamespaceOption { network: network as i32, pid: NamespaceMode::Container as i32, ..Default::default() };
    let security_context =
        cri::LinuxSandboxSecurityContext { namespace_options: Some(namespace_options), ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        log_directory: log_directory.display().to_string(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent.to_owned(),
            security_context: Some(security_context),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container for a pod of [`pod_config`]; it logs to `NAME/0.log` below the pod's log directory.
pub fn container_for(
    pod: &cri::PodSandboxConfig,
    name: &str,
    image: &str,
    command: Vec<String>,
) -> cri::ContainerConfig {
    let sandbox_context = pod.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    let security_context = cri::LinuxContainerSecurityContext {
        namespace_options: sandbox_context.namespace_options,
        ..Default::default()
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command,
        labels: [("container".to_owned(), name.to_owned())].into(),
        log_path: format!("{name}/0.log"),
        linux: Some(cri::LinuxContainerConfig { security_context: Some(security_context), resources: None }),
        ..Default::default()
    }
}
