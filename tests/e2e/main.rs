//! Upstream's own end-to-end suite against one node: `make e2e-node`, `make e2e-network`.
//!
//! Starts the control plane and a node (two for the network) in namespaces, the agent on it (nodelet, or upstream's kubelet
//! and kube-proxy as the reference), CoreDNS, imports the suite's images, and runs ginkgo with a label filter. Prints what failed,
//! what the other agent made of the same tests when it last ran them, and one closing line. Everything that it starts ends with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use harness::control_plane::ControlPlane;
use harness::programs;

mod cluster;
mod reference;
mod report;

/// Sets of tests, each a label filter. Source of the counts: `e2e.test` v1.37.2 itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Set {
    /// Conformance and NodeConformance: 141.
    Node,
    /// NodeConformance that is no Conformance, quick: 101.
    NodeMore,
    /// sig-network: Conformance (47), and all others that need no cloud, no SCTP and at most two nodes.
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
            Self::Network => {
                "sig-network && (Conformance || \
                 Feature: isEmpty && FeatureGate: isEmpty && !Disruptive && !Serial && !Slow && !Flaky)"
            }
            Self::Kubectl => "sig-cli && Feature: isEmpty && FeatureGate: isEmpty && !Serial && !Slow",
            Self::Storage => "sig-storage && Conformance && !Serial",
        }
    }

    /// What of these cannot run here: three nodes are wanted, or a cloud.
    fn skip(self) -> Option<&'static str> {
        match self {
            Self::Network => Some("implement NodePort and HealthCheckNodePort|Provider"),
            Self::Node | Self::NodeMore | Self::Kubectl | Self::Storage => None,
        }
    }

    /// The nodes that it needs.
    fn nodes(self) -> &'static [&'static str] {
        match self {
            Self::Network => &["n1", "n2"],
            Self::Node | Self::NodeMore | Self::Kubectl | Self::Storage => &["n1"],
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

impl AgentKind {
    fn other(self) -> Self {
        match self {
            Self::Nodelet => Self::Kubelet,
            Self::Kubelet => Self::Nodelet,
        }
    }
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

impl Arguments {
    /// A directory for each set and agent, so that both can be compared.
    fn report_of(&self, agent: AgentKind) -> anyhow::Result<PathBuf> {
        let name = format!("{:?}-{agent:?}", self.set).to_lowercase();
        Ok(std::path::absolute(&self.report)?.join(name))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    for script in ["e2e-programs.sh", "e2e-images.sh"] {
        let script = programs::repository().join("tests/scripts").join(script);
        ensure!(Command::new("bash").arg(&script).status()?.success(), "{} failed", script.display());
    }
    let cluster = cluster::Cluster::start(&arguments).await?;
    let start = Instant::now();
    let report = arguments.report_of(arguments.agent)?;
    fs::create_dir_all(&report)?;
    let run = suite(&arguments, &cluster.plane, &report);
    cluster.keep_logs(&report)?;
    run?;
    let results = report::read(&report.join("junit_01.xml"))?;
    let other = arguments.agent.other();
    let beside = report::read(&arguments.report_of(other)?.join("junit_01.xml")).ok();
    report::print(&results, beside.as_ref().map(|results| (format!("{other:?}"), results)));
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
    if let Some(skip) = arguments.set.skip() {
        command.arg(format!("--skip={skip}"));
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
