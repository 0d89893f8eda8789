//! Upstream's own end-to-end suite against one node: `make e2e-node`, `make e2e-network`.
//!
//! Starts the control plane and a node in namespaces, the agent on it (nodelet, or upstream's kubelet and kube-proxy as the
//! reference), imports the suite's images, and runs ginkgo with a label filter. Prints what failed and one closing line.
//! Everything that it starts ends with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::node::Node;
use harness::programs;

mod reference;
mod report;

/// Sets of tests, each a label filter. Source of the counts: `e2e.test` v1.37.2 itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Set {
    /// Conformance and NodeConformance: 141.
    Node,
    /// NodeConformance that is no Conformance, quick: 101.
    NodeMore,
    /// sig-network Conformance: 47; needs CoreDNS for some.
    Network,
    /// kubectl, quick: 76.
    Kubectl,
    /// sig-storage Conformance: 91.
    Storage,
}

impl Set {
    fn filter(self) -> &'static str {
        match self {
            Self::Node => "Conformance && NodeConformance && !Serial",
            Self::NodeMore => "NodeConformance && !Conformance && !Serial && !Slow && Feature: isEmpty",
            Self::Network => "sig-network && Conformance",
            Self::Kubectl => "sig-cli && Feature: isEmpty && FeatureGate: isEmpty && !Serial && !Slow",
            Self::Storage => "sig-storage && Conformance && !Serial",
        }
    }
}

/// What runs on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AgentKind {
    /// This project.
    Nodelet,
    /// Upstream's kubelet and kube-proxy.
    Kubelet,
}

#[derive(Debug, Parser)]
#[command(name = "e2e", about = "Upstream's end-to-end suite against one node")]
struct Arguments {
    /// Which tests.
    set: Set,
    /// What runs on the node.
    #[arg(long, default_value = "nodelet")]
    agent: AgentKind,
    /// Processes that run tests.
    #[arg(long, default_value_t = 8)]
    procs: u32,
    /// Only tests whose name matches this regular expression.
    #[arg(long)]
    focus: Option<String>,
    /// Where reports and the agent's log go.
    #[arg(long, default_value = "build/e2e/report")]
    report: PathBuf,
    /// Which containerd: 2.x, or Debian's 1.6.
    #[arg(long)]
    old_containerd: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    for script in ["e2e-programs.sh", "e2e-images.sh"] {
        let script = programs::repository().join("tests/scripts").join(script);
        ensure!(Command::new("bash").arg(&script).status()?.success(), "{} failed", script.display());
    }
    let plane = ControlPlane::start(&["n1"]).await?;
    let version = if arguments.old_containerd { Version::V1_6 } else { Version::V2 };
    let mut node = Node::on_lan(&plane, 11, version, Cni::Bridge, "10.244.0.0/24").await?;
    node.containerd.import(&programs::repository().join("build/e2e/images.tar"))?;
    // The API server reaches pods and Services itself, for its proxy and for webhooks.
    for range in ["10.244.0.0/24", ControlPlane::SERVICE_CIDR] {
        plane.lan().netns().ip(&format!("route add {range} via 10.89.0.11"))?;
    }
    node.extra_configuration = "clusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\nmaxPods: 300\n".to_owned();
    let _reference = match arguments.agent {
        AgentKind::Nodelet => {
            node.run_joined(&plane, "n1")?;
            None
        }
        AgentKind::Kubelet => Some(reference::Reference::start(&node, &plane)?),
    };
    let wait = ["wait", "--for=condition=Ready", "node/n1", "--timeout=5s"];
    eventually(Duration::from_secs(60), "the node to be Ready", async || {
        let done = plane.kubectl(&wait)?.output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let start = Instant::now();
    let report = std::path::absolute(&arguments.report)?;
    fs::create_dir_all(&report)?;
    let run = suite(&arguments, &plane, &report);
    for name in ["nodelet.log", "kubelet.log", "kube-proxy.log", "ctrd/containerd.log"] {
        let from = node.path(name);
        if from.exists() {
            fs::copy(&from, report.join(from.file_name().unwrap_or_default()))?;
        }
    }
    run?;
    let results = report::read(&report.join("junit_01.xml"))?;
    report::print(&results);
    println!(
        "{:?} {:?}: {} passed, {} failed in {} s",
        arguments.agent,
        arguments.set,
        results.passed.len(),
        results.failed.len(),
        start.elapsed().as_secs()
    );
    ensure!(!results.passed.is_empty(), "no test ran: the filter selects nothing");
    ensure!(results.failed.is_empty(), "{} failed", results.failed.len());
    Ok(())
}

/// Runs ginkgo. Failed tests are no error here: the report names them.
fn suite(arguments: &Arguments, plane: &ControlPlane, report: &Path) -> anyhow::Result<()> {
    let programs = programs::repository().join("build/e2e");
    let mut command = Command::new(programs.join("ginkgo"));
    command
        .arg(format!("--procs={}", arguments.procs))
        .args(["--no-color", "--timeout=2h", "--succinct"])
        .arg(format!("--label-filter={}", arguments.set.filter()));
    if let Some(focus) = &arguments.focus {
        command.arg(format!("--focus={focus}"));
    }
    command
        .arg(programs.join("e2e.test"))
        .arg("--")
        .args(["--provider=skeleton", "--disable-log-dump", "--node-schedulable-timeout=2m"])
        .args(["--system-pods-startup-timeout=2m", "--system-daemonsets-startup-timeout=1m"])
        .arg(format!("--kubeconfig={}", plane.admin_kubeconfig().display()))
        .arg(format!("--kubectl-path={}", programs::built("kubectl")?.display()))
        .arg(format!("--report-dir={}", report.display()));
    let log = fs::File::create(report.join("ginkgo.log"))?;
    command.stdout(log.try_clone()?).stderr(log);
    let _ = fs::remove_file(report.join("junit_01.xml"));
    plane.lan().netns().enter(&mut command).status().context("ginkgo")?;
    Ok(())
}
