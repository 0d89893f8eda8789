//! A runtime under test and the steps that cases are made of.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use harness::cri_client::{CriClient, container_for, pod_config};
use harness::fake_cri::Script;
use nodelet_proto::cri::*;
use tonic::Status;

/// A test image with a shell.
pub(crate) const IMAGE: &str = "localhost/busybox:1";

/// Which runtime answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// containerd 1.6.
    Containerd16,
    /// containerd 2.x, or the fake as it is by default.
    Containerd2,
    /// The fake without the calls that 1.6 lacks; its error codes are those of 2.x.
    FakeAs16,
}

/// Everything a case needs.
#[derive(Clone, Debug)]
pub(crate) struct Rig {
    pub(crate) cri: CriClient,
    pub(crate) runtime: Runtime,
    cgroup_parent: String,
    pub(crate) logs: Arc<tempfile::TempDir>,
}

/// A ready sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
}

impl Rig {
    pub(crate) async fn new(socket: &Path, cgroup_parent: &str, runtime: Runtime) -> Self {
        let cri = CriClient::connect_within(socket, Duration::from_secs(10)).await.expect("the runtime answers");
        let logs = Arc::new(tempfile::tempdir().expect("a directory for logs"));
        Self { cri, runtime, cgroup_parent: cgroup_parent.to_owned(), logs }
    }

    pub(crate) fn has_events(&self) -> bool {
        self.runtime == Runtime::Containerd2
    }

    pub(crate) fn pod_config(&self, name: &str) -> PodSandboxConfig {
        pod_config(name, NamespaceMode::Node, &self.cgroup_parent, &self.logs.path().join(name))
    }

    pub(crate) async fn try_pod(&self, config: &PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        Ok(self.cri.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn pod(&self, name: &str) -> Pod {
        let config = self.pod_config(name);
        let id = self.try_pod(&config).await.expect("the sandbox runs");
        Pod { id, config }
    }

    pub(crate) async fn try_create(&self, pod: &Pod, config: ContainerConfig) -> Result<String, Status> {
        let directory = self.logs.path().join(&config.log_path).to_path_buf();
        let below = Path::new(&pod.config.log_directory).join(&config.log_path);
        // As kubelet does; the runtime makes no directories.
        std::fs::create_dir_all(below.parent().unwrap_or(&directory)).expect("a log directory");
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.cri.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub(crate) fn container_config(&self, pod: &Pod, name: &str, script: &Script) -> ContainerConfig {
        container_for(&pod.config, name, IMAGE, script.command())
    }

    pub(crate) async fn created(&self, pod: &Pod, name: &str, script: &Script) -> String {
        let config = self.container_config(pod, name, script);
        self.try_create(pod, config).await.expect("the container is created")
    }

    pub(crate) async fn started(&self, pod: &Pod, name: &str, script: &Script) -> String {
        let id = self.created(pod, name, script).await;
        self.start(&id).await.expect("the container starts");
        id
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.cri.runtime.clone().start_container(request).await.map(drop)
    }

    pub(crate) async fn stop(&self, id: &str, seconds: i64) -> Result<(), Status> {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.cri.runtime.clone().stop_container(request).await.map(drop)
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.cri.runtime.clone().remove_container(request).await.map(drop)
    }

    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.cri.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// Stops and removes a pod with all that is in it.
    pub(crate) async fn clean(&self, pod: &Pod) {
        self.stop_pod(&pod.id).await.expect("the sandbox stops");
        self.remove_pod(&pod.id).await.expect("the sandbox goes");
    }

    pub(crate) async fn try_status(&self, id: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.cri.runtime.clone().container_status(request).await?.into_inner();
        Ok(answer.status.expect("an answer has a status"))
    }

    pub(crate) async fn status(&self, id: &str) -> ContainerStatus {
        self.try_status(id).await.expect("the container is known")
    }

    pub(crate) async fn try_pod_status(&self, id: &str) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.cri.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        Ok(answer.status.expect("an answer has a status"))
    }

    /// The status once the container has exited; fails after 10 s.
    pub(crate) async fn exited(&self, id: &str) -> ContainerStatus {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "the container still runs after 10 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn containers(&self, filter: ContainerFilter) -> Vec<Container> {
        let request = ListContainersRequest { filter: Some(filter) };
        self.cri.runtime.clone().list_containers(request).await.expect("a list").into_inner().containers
    }

    pub(crate) async fn pods(&self, filter: PodSandboxFilter) -> Vec<PodSandbox> {
        let request = ListPodSandboxRequest { filter: Some(filter) };
        self.cri.runtime.clone().list_pod_sandbox(request).await.expect("a list").into_inner().items
    }

    pub(crate) async fn exec(&self, id: &str, script: &Script, timeout: i64) -> Result<ExecSyncResponse, Status> {
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd: script.command(), timeout };
        Ok(self.cri.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// The log of a container, once it has `lines` lines; fails after 5 s.
    pub(crate) async fn log(&self, pod: &Pod, name: &str, lines: usize) -> Vec<String> {
        let path = Path::new(&pod.config.log_directory).join(name).join("0.log");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.lines().count() >= lines {
                return text.lines().map(str::to_owned).collect();
            }
            assert!(tokio::time::Instant::now() < deadline, "{} has after 5 s only: {text:?}", path.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
