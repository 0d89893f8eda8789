//! The cluster that the suite runs against: control plane, nodes with their agents, CoreDNS.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::node::Node;
use harness::programs;

use crate::reference::Reference;
use crate::{AgentKind, Arguments};

/// The ClusterIP of DNS, as pods are told.
const DNS: &str = "10.96.0.10";

// The order of fields is the order in which they end: agents before their nodes.
pub(crate) struct Cluster {
    references: Vec<Reference>,
    nodes: Vec<Node>,
    _dns: Process,
    pub(crate) plane: ControlPlane,
}

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Cluster {
    /// Starts everything, and waits until the nodes are Ready.
    pub(crate) async fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let names = arguments.set.nodes();
        let plane = ControlPlane::start(names).await?;
        let dns = start_dns(&plane)?;
        let mut cluster = Self { references: Vec::new(), nodes: Vec::new(), _dns: dns, plane };
        for name in names {
            cluster.add_node(name, arguments).await?;
        }
        Ok(cluster)
    }

    /// One node after the other: the controller manager gives out pod ranges in the order in which they register.
    async fn add_node(&mut self, name: &str, arguments: &Arguments) -> anyhow::Result<()> {
        let plane = &self.plane;
        let number = self.nodes.len();
        let (host, pods) = (11 + number, format!("10.244.{number}.0/24"));
        let version = if arguments.old_containerd { Version::V1_6 } else { Version::V2 };
        let mut node = Node::on_lan(plane, u8::try_from(host)?, version, Cni::Bridge, &pods).await?;
        node.containerd.import(&programs::repository().join("build/e2e/images.tar"))?;
        // The API server reaches pods and Services itself, for its proxy and for webhooks; so do the other nodes.
        plane.lan().netns().ip(&format!("route add {pods} via 10.89.0.{host}"))?;
        if number == 0 {
            plane.lan().netns().ip(&format!("route add {} via 10.89.0.{host}", ControlPlane::SERVICE_CIDR))?;
        }
        for (at, other) in self.nodes.iter().enumerate() {
            other.netns().ip(&format!("route add {pods} via 10.89.0.{host}"))?;
            node.netns().ip(&format!("route add 10.244.{at}.0/24 via 10.89.0.{}", 11 + at))?;
        }
        node.extra_configuration =
            format!("clusterDNS: [{DNS}]\nclusterDomain: cluster.local\nmaxPods: 300\nenableSystemLogHandler: true\n");
        match arguments.agent {
            AgentKind::Nodelet => node.run_joined(plane, name)?,
            AgentKind::Kubelet => self.references.push(Reference::start(&node, plane, name)?),
        }
        let run = async |words: &[&str]| {
            let done = plane.kubectl(words)?.output()?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Ok::<_, anyhow::Error>(())
        };
        let node_name = format!("node/{name}");
        eventually(Duration::from_secs(180), "the node to be Ready", async || {
            run(&["wait", "--for=condition=Ready", &node_name, "--timeout=5s"]).await
        })
        .await?;
        run(&["label", &node_name, &format!("topology.kubernetes.io/zone=zone-{number}")]).await?;
        self.nodes.push(node);
        Ok(())
    }

    /// Copies the logs of all nodes.
    pub(crate) fn keep_logs(&self, to: &Path) -> anyhow::Result<()> {
        for (number, node) in (1..).zip(&self.nodes) {
            for name in ["nodelet.log", "kubelet.log", "kube-proxy.log", "ctrd/containerd.log"] {
                let from = node.path(name);
                if from.exists() {
                    let name = from.file_name().unwrap_or_default().to_string_lossy();
                    fs::copy(&from, to.join(format!("n{number}-{name}")))?;
                }
            }
        }
        Ok(())
    }
}

/// CoreDNS outside of the cluster, behind a Service without a selector.
fn start_dns(plane: &ControlPlane) -> anyhow::Result<Process> {
    let kubeconfig = plane.admin_kubeconfig();
    let directory = kubeconfig.parent().context("the kubeconfig is in no directory")?;
    let corefile = directory.join("Corefile");
    let address = harness::netns::Lan::ADDRESS;
    let text = format!(
        ".:53 {{\n  bind {address}\n  errors\n  kubernetes cluster.local in-addr.arpa ip6.arpa {{\n    kubeconfig {}\n    \
         pods insecure\n    fallthrough in-addr.arpa ip6.arpa\n  }}\n  cache 5\n}}\n",
        kubeconfig.display()
    );
    fs::write(&corefile, text)?;
    let mut command = Command::new(programs::repository().join("build/e2e/coredns"));
    command.arg("-conf").arg(&corefile);
    let log = File::create(directory.join("coredns.log"))?;
    command.stdout(log.try_clone()?).stderr(log);
    let process = Process(plane.lan().netns().enter(&mut command).spawn().context("coredns")?);
    let ports = "ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]";
    let manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}\n\
         spec:\n  clusterIP: {DNS}\n  {ports}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: kube-dns-1, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\n\
         addressType: IPv4\nendpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]\n{ports}\n"
    );
    let path = directory.join("dns.yaml");
    fs::write(&path, manifest)?;
    let done = plane.kubectl(&["apply", "-f", &path.display().to_string()])?.output()?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(process)
}
