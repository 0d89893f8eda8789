//! A node: namespace, cgroups, directory, containerd and agent, under one name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use nodelet_proto::cri;

use crate::agent::{Agent, AgentCommand};
use crate::cgroups::Cgroups;
use crate::containerd::{Cni, Containerd, Version, unmount_below};
use crate::control_plane::ControlPlane;
use crate::cri_client::CriClient;
use crate::netns::Netns;

/// A node without an agent yet; see [`Node::run_alone`] and [`Node::run_joined`].
// The order of fields is the order in which they are dropped.
#[derive(Debug)]
pub struct Node {
    /// The agent, once started.
    pub agent: Option<Agent>,
    /// The runtime.
    pub containerd: Containerd,
    /// The parent of all pods' cgroups.
    pub cgroups: Cgroups,
    /// More lines of the KubeletConfiguration.
    pub extra_configuration: String,
    directory: Directory,
    netns: Arc<Netns>,
    pod_cidr: String,
}

/// How a node joins, where it is not the usual way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Join {
    /// With a bootstrap token instead of a kubeconfig of its own.
    pub bootstrap: bool,
    /// With `staticPodPath`: see [`Node::write_static_pod`].
    pub static_pods: bool,
    /// Without the service half.
    pub only_pods: bool,
}

/// A directory of its own; dropping unmounts what is mounted below, and removes it.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        unmount_below(&self.0);
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}

impl Node {
    /// The range of ClusterIPs of a node alone.
    pub const SERVICE_CIDR: &'static str = "10.96.0.0/16";

    /// A node on its own network: `eth0` is one end of a pair whose other end is inside, too, so that it has an address
    /// and a default route like a machine, and reaches nothing.
    pub async fn alone(version: Version, cni: Cni) -> anyhow::Result<Self> {
        let netns = Arc::new(Netns::new()?);
        for step in [
            "link add eth0 type veth peer name outside",
            "addr add 10.88.0.2/24 dev eth0",
            "link set eth0 up",
            "link set outside up",
            "route add default via 10.88.0.1",
        ] {
            netns.ip(step)?;
        }
        Self::new(netns, version, cni, "10.244.0.0/24").await
    }

    /// A node on the network of a control plane, with address 10.89.0.`host`; `pod_cidr` is what the controller manager
    /// will give it (10.244.N.0/24 for the N-th node that registers).
    pub async fn on_lan(
        plane: &ControlPlane,
        host: u8,
        version: Version,
        cni: Cni,
        pod_cidr: &str,
    ) -> anyhow::Result<Self> {
        let netns = Arc::new(Netns::new()?);
        plane.lan().attach(&netns, host)?;
        Self::new(netns, version, cni, pod_cidr).await
    }

    async fn new(netns: Arc<Netns>, version: Version, cni: Cni, pod_cidr: &str) -> anyhow::Result<Self> {
        let directory = Directory(std::env::temp_dir().join(netns.name()));
        fs::create_dir_all(&directory.0)?;
        let cgroups = Cgroups::new(netns.name())?;
        let containerd = Containerd::start(version, cni, pod_cidr, &netns, &directory.0.join("ctrd")).await?;
        let pod_cidr = pod_cidr.to_owned();
        let extra_configuration = String::new();
        Ok(Self { agent: None, containerd, cgroups, extra_configuration, directory, netns, pod_cidr })
    }

    /// Its name: that of namespace, directory and cgroup.
    pub fn name(&self) -> &str {
        self.netns.name()
    }

    /// Its namespace.
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// A path below its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    /// The directory that a node alone runs from.
    pub fn manifests(&self) -> PathBuf {
        self.path("manifests")
    }

    /// Writes or replaces a manifest, in one step as editors and tools do.
    pub fn write_manifest(&self, name: &str, content: &str) -> anyhow::Result<()> {
        fs::create_dir_all(self.manifests())?;
        let new = self.path("manifest.new");
        fs::write(&new, content)?;
        Ok(fs::rename(new, self.manifests().join(name))?)
    }

    /// Starts the agent from [`Node::manifests`].
    pub fn run_alone(&mut self) -> anyhow::Result<()> {
        fs::create_dir_all(self.manifests())?;
        let mut arguments = self.common("")?;
        arguments.extend(["--manifests".to_owned(), self.manifests().display().to_string()]);
        arguments.extend(["--service-cidr", Self::SERVICE_CIDR, "--pod-cidr", &self.pod_cidr].map(str::to_owned));
        self.start(arguments)
    }

    /// Starts the agent as node `name` of a control plane.
    pub fn run_joined(&mut self, plane: &ControlPlane, name: &str) -> anyhow::Result<()> {
        self.run_joined_as(plane, name, Join::default())
    }

    /// Starts the agent as node `name`, in a special way.
    pub fn run_joined_as(&mut self, plane: &ControlPlane, name: &str, join: Join) -> anyhow::Result<()> {
        let mut extra =
            format!("authentication:\n  x509:\n    clientCAFile: {}\nrotateCertificates: true\n", plane.ca().display());
        if join.static_pods {
            extra += &self.static_pod_path()?;
        }
        let mut arguments = self.common(&extra)?;
        let show = |path: PathBuf| path.display().to_string();
        let mut flags = vec![("--hostname-override", name.to_owned())];
        match join.bootstrap {
            true => flags.extend([
                ("--kubeconfig", show(self.path("kubelet.conf"))),
                ("--bootstrap-kubeconfig", show(plane.bootstrap_kubeconfig())),
            ]),
            false => flags.push(("--kubeconfig", show(plane.node_kubeconfig(name)))),
        }
        match join.only_pods {
            true => flags.push(("--only", "pods".to_owned())),
            false => flags.push(("--proxy-config", show(self.proxy_config(plane)?))),
        }
        arguments.extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
        self.start(arguments)
    }

    /// Starts a second agent with the service half only, as node `name`. It is told of no runtime.
    pub fn run_services(&self, plane: &ControlPlane, name: &str) -> anyhow::Result<Agent> {
        let state_dir = self.path("state-services");
        let words = [
            "--state-dir",
            &state_dir.display().to_string(),
            "run",
            "--only",
            "services",
            "--hostname-override",
            name,
            "--proxy-config",
            &self.proxy_config(plane)?.display().to_string(),
            "--container-runtime-endpoint",
            "unix:///nonexistent/containerd.sock",
        ];
        let arguments = words.map(str::to_owned).to_vec();
        let command = AgentCommand { arguments, state_dir, log: self.path("nodelet-services.log") };
        Agent::start(command, &self.netns)
    }

    fn proxy_config(&self, plane: &ControlPlane) -> anyhow::Result<PathBuf> {
        let path = self.path("proxy.yaml");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             clusterCIDR: {}\nclientConnection:\n  kubeconfig: {}\n",
            ControlPlane::CLUSTER_CIDR,
            plane.proxy_kubeconfig().display()
        );
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts the agent with nothing but the static pods of `static/`.
    pub fn run_static(&mut self) -> anyhow::Result<()> {
        let extra = self.static_pod_path()?;
        let arguments = self.common(&extra)?;
        self.start(arguments)
    }

    fn static_pod_path(&self) -> anyhow::Result<String> {
        let directory = self.path("static");
        fs::create_dir_all(&directory)?;
        Ok(format!("staticPodPath: {}\n", directory.display()))
    }

    /// Writes or replaces a static pod, in one step.
    pub fn write_static_pod(&self, name: &str, content: &str) -> anyhow::Result<()> {
        fs::create_dir_all(self.path("static"))?;
        let new = self.path("static.new");
        fs::write(&new, content)?;
        Ok(fs::rename(new, self.path("static").join(name))?)
    }

    fn start(&mut self, arguments: Vec<String>) -> anyhow::Result<()> {
        let command = AgentCommand { arguments, state_dir: self.path("state"), log: self.path("nodelet.log") };
        self.agent = Some(Agent::start(command, &self.netns)?);
        Ok(())
    }

    /// Writes the KubeletConfiguration of this node and answers its path.
    pub fn write_kubelet_configuration(&self, extra: &str) -> anyhow::Result<PathBuf> {
        let config = self.path("kubelet.yaml");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: cgroupfs\n\
             cgroupRoot: {}\nfailCgroupV1: false\nfailSwapOn: false\npodLogsDir: {}\n\
             containerRuntimeEndpoint: unix://{}\n{}{}{extra}",
            self.cgroups.root(),
            self.path("pod-logs").display(),
            self.containerd.socket().display(),
            self.without_disk_pressure(),
            self.extra_configuration,
        );
        fs::write(&config, text)?;
        Ok(config)
    }

    /// Nodes of tests share the machine's disk, and how full it is decides nothing, unless a test says otherwise.
    fn without_disk_pressure(&self) -> &'static str {
        const OFF: &str = "imageGCHighThresholdPercent: 100\n";
        if self.extra_configuration.contains("imageGCHighThresholdPercent:") { "" } else { OFF }
    }

    /// The command line up to what the mode adds.
    fn common(&self, extra: &str) -> anyhow::Result<Vec<String>> {
        let config = self.write_kubelet_configuration(extra)?;
        let show = |path: &Path| path.display().to_string();
        let mut arguments = vec!["--state-dir".to_owned(), show(&self.path("state")), "run".to_owned()];
        for (flag, value) in [
            ("--config", show(&config)),
            ("--root-dir", show(&self.path("kubelet"))),
            ("--cert-dir", show(&self.path("pki"))),
            // Never the host's own.
            ("--cni-conf-dir", show(&self.containerd.cni_conf_dir())),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        Ok(arguments)
    }

    /// The agent; fails when none was started.
    pub fn agent(&mut self) -> anyhow::Result<&mut Agent> {
        self.agent.as_mut().context("the node has no agent yet: run_alone or run_joined")
    }

    /// Starts the agent again in its namespace.
    pub fn restart_agent(&mut self) -> anyhow::Result<()> {
        let netns = self.netns.clone();
        self.agent()?.start_again(&netns)
    }

    /// The ends of both logs, for the message of a failure.
    pub fn logs(&self) -> String {
        let agent = self.agent.as_ref().map(Agent::log_tail).unwrap_or_default();
        format!("--- containerd's log:\n{}\n--- the agent's log:\n{agent}", self.containerd.log_tail())
    }

    /// All containers in the runtime, running or not.
    pub async fn containers(&self) -> anyhow::Result<Vec<cri::Container>> {
        let mut client = self.containerd.client().await?;
        Ok(client.runtime.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers)
    }

    /// All sandboxes in the runtime.
    pub async fn sandboxes(&self) -> anyhow::Result<Vec<cri::PodSandbox>> {
        let mut client = self.containerd.client().await?;
        Ok(client.runtime.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items)
    }

    /// The process id of the running container of a pod, as the host sees it.
    pub async fn pid_of(&self, pod: &str) -> anyhow::Result<u32> {
        let container_id = self.running_container(pod).await?.id;
        let mut client: CriClient = self.containerd.client().await?;
        let request = cri::ContainerStatusRequest { container_id, verbose: true };
        let info = client.runtime.container_status(request).await?.into_inner().info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose status")?)?;
        Ok(info["pid"].as_u64().context("no pid")?.try_into()?)
    }

    async fn running_container(&self, pod: &str) -> anyhow::Result<cri::Container> {
        let running = cri::ContainerState::ContainerRunning as i32;
        let mut of_pod = self.containers().await?.into_iter().filter(|container| {
            container.state == running && container.labels.get("io.kubernetes.pod.name").is_some_and(|name| name == pod)
        });
        of_pod.next().with_context(|| format!("pod {pod} has no running container"))
    }

    /// Runs a command in the running container of a pod and gives its standard output.
    pub async fn exec(&self, pod: &str, command: &[&str]) -> anyhow::Result<String> {
        let container = self.running_container(pod).await?;
        let mut client: CriClient = self.containerd.client().await?;
        let request = cri::ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 10,
        };
        let done = client.runtime.exec_sync(request).await?.into_inner();
        let error = String::from_utf8_lossy(&done.stderr);
        anyhow::ensure!(done.exit_code == 0, "{command:?} in {pod}: exit {}: {error}", done.exit_code);
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }
}
