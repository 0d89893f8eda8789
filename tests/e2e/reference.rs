//! Upstream's kubelet and kube-proxy on a node, as the reference.

use std::fs::{self, File};
use std::process::{Child, Command};

use anyhow::Context as _;
use harness::control_plane::ControlPlane;
use harness::node::Node;
use harness::programs;

/// The running processes; dropping ends them.
pub(crate) struct Reference {
    processes: Vec<Child>,
}

impl Reference {
    /// Starts both with the configuration that the node's agent would get.
    pub(crate) fn start(node: &Node, plane: &ControlPlane, name: &str) -> anyhow::Result<Self> {
        let config = node.write_kubelet_configuration(&format!(
            "authentication:\n  x509:\n    clientCAFile: {}\n{}",
            plane.ca().display(),
            // Nodes share the machine's disk, and how full it is decides nothing here.
            "evictionHard: {nodefs.available: 0%, imagefs.available: 0%, nodefs.inodesFree: 0%, imagefs.inodesFree: 0%}\n"
        ))?;
        let mut kubelet = Command::new(programs::repository().join("build/e2e/kubelet"));
        kubelet
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", plane.node_kubeconfig(name).display()))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--root-dir={}", node.path("kubelet").display()))
            .arg(format!("--cert-dir={}", node.path("pki").display()));
        let proxy_config = node.path("proxy.yaml");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             hostnameOverride: {name}\nclusterCIDR: {}\nconntrack: {{maxPerCore: 0}}\nclientConnection: {{kubeconfig: {}}}\n",
            ControlPlane::CLUSTER_CIDR,
            plane.proxy_kubeconfig().display()
        );
        fs::write(&proxy_config, text)?;
        let mut proxy = Command::new(programs::repository().join("build/e2e/kube-proxy"));
        proxy.arg(format!("--config={}", proxy_config.display()));
        let mut made = Self { processes: Vec::new() };
        for (name, mut command) in [("kubelet", kubelet), ("kube-proxy", proxy)] {
            let log = File::create(node.path(&format!("{name}.log")))?;
            command.stdout(log.try_clone()?).stderr(log);
            made.processes.push(node.netns().enter(&mut command).spawn().context(name)?);
        }
        Ok(made)
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
