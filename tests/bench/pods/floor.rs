//! The floor: the CRI calls of a pod, made by a client that does nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use harness::containerd::Cni;
use harness::cri_client::{CriClient, container_for, pod_config};
use harness::node::Node;
use nodelet::pod::security::{MASKED_PATHS, READONLY_PATHS};
use nodelet_proto::cri::*;
use tokio::sync::Semaphore;

use super::{Arguments, IMAGE, PERCENTS, REST, add_costs, workload};
use crate::process::Process;
use crate::report::{Column, Samples};

/// What is needed to make pods.
#[derive(Clone, Debug)]
struct Client {
    cri: CriClient,
    cgroup_parent: String,
    logs: PathBuf,
}

/// A pod that runs.
#[derive(Debug)]
struct Running {
    sandbox: String,
    container: String,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Column> {
    let node = Node::alone(arguments.version(), Cni::Bridge).await?;
    let runtime = Process(node.containerd.pid().context("containerd runs")?);
    let logs = tempfile::tempdir()?;
    let cri = CriClient::connect(node.containerd.socket()).await?;
    let client = Client { cri, cgroup_parent: node.cgroups.root(), logs: logs.path().to_path_buf() };
    let mut column = Column::new("floor");
    let steady = Duration::from_secs(arguments.steady);
    add_costs(&mut column, "at 0 pods", steady, &[("containerd", runtime)]).await?;

    let (mut created, mut deleted) = (Samples::default(), Samples::default());
    for number in 0..arguments.singles {
        let began = Instant::now();
        let pod = client.create(&format!("single-{number}")).await.context("create")?;
        created.push(began.elapsed());
        let began = Instant::now();
        client.delete(&pod).await.context("delete")?;
        deleted.push(began.elapsed());
        tokio::time::sleep(REST).await;
    }
    column.add_percentiles("create -> Ready", &created, &PERCENTS);
    column.add_percentiles("delete -> gone", &deleted, &PERCENTS);

    let began = Instant::now();
    let pods = burst(&client, arguments).await.context("burst")?;
    let seconds = began.elapsed().as_secs_f64();
    column.add(&format!("burst of {}, pods/s", arguments.burst), arguments.burst as f64 / seconds);
    let label = format!("at {} pods", arguments.burst);
    add_costs(&mut column, &label, steady, &[("containerd", runtime)]).await?;
    for pod in &pods {
        client.delete(pod).await.context("delete after the burst")?;
    }
    Ok(column)
}

/// All pods at once, as many of them in work as the limiter lets.
async fn burst(client: &Client, arguments: &Arguments) -> anyhow::Result<Vec<Running>> {
    let limiter = Arc::new(Semaphore::new(arguments.limit()));
    let tasks: Vec<_> = (0..arguments.burst)
        .map(|number| {
            let (client, limiter) = (client.clone(), Arc::clone(&limiter));
            tokio::spawn(async move {
                let _permit = limiter.acquire().await?;
                client.create(&format!("burst-{number}")).await
            })
        })
        .collect();
    let mut pods = Vec::new();
    for task in tasks {
        pods.push(task.await??);
    }
    Ok(pods)
}

impl Client {
    /// Sandbox, container, start, and one look at the status, which an agent needs before it can say Ready.
    async fn create(&self, name: &str) -> anyhow::Result<Running> {
        let mut runtime = self.cri.runtime.clone();
        let pod = pod_config(name, NamespaceMode::Pod, &self.cgroup_parent, &self.logs.join(name));
        let mut config = container_for(&pod, "main", IMAGE, workload().command());
        std::fs::create_dir_all(self.logs.join(name).join("main"))?;
        self.complete(name, &mut config)?;
        let request = RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        let sandbox = runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let request =
            CreateContainerRequest { pod_sandbox_id: sandbox.clone(), config: Some(config), sandbox_config: Some(pod) };
        let container = runtime.create_container(request).await?.into_inner().container_id;
        runtime.start_container(StartContainerRequest { container_id: container.clone() }).await?;
        let request = ContainerStatusRequest { container_id: container.clone(), verbose: false };
        let status = runtime.container_status(request).await?.into_inner().status.context("no status")?;
        anyhow::ensure!(status.state() == ContainerState::ContainerRunning, "the container does not run: {status:?}");
        Ok(Running { sandbox, container })
    }

    /// What every agent has to ask for in a container without requests and a security context: the same work for the runtime in
    /// every column. Paths are those of the OCI runtime specification's defaults as kubelet sends them.
    fn complete(&self, name: &str, config: &mut ContainerConfig) -> anyhow::Result<()> {
        for (file, path) in [("hosts", "/etc/hosts"), ("message", "/dev/termination-log")] {
            let host = self.logs.join(name).join(file);
            std::fs::write(&host, "")?;
            let (host_path, container_path) = (host.display().to_string(), path.to_owned());
            config.mounts.push(Mount { host_path, container_path, ..Default::default() });
        }
        let linux = config.linux.get_or_insert_default();
        linux.resources = Some(LinuxContainerResources { cpu_shares: 2, oom_score_adj: 1000, ..Default::default() });
        let security = linux.security_context.get_or_insert_default();
        security.masked_paths.extend(MASKED_PATHS.map(str::to_owned));
        security.readonly_paths.extend(READONLY_PATHS.map(str::to_owned));
        Ok(())
    }

    async fn delete(&self, pod: &Running) -> anyhow::Result<()> {
        let mut runtime = self.cri.runtime.clone();
        let (container_id, pod_sandbox_id) = (pod.container.clone(), pod.sandbox.clone());
        runtime.stop_container(StopContainerRequest { container_id: container_id.clone(), timeout: 30 }).await?;
        runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() }).await?;
        runtime.remove_container(RemoveContainerRequest { container_id }).await?;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
        Ok(())
    }
}
