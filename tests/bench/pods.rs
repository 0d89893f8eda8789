//! `bench-pods`: how long pods take, beside the floor that the runtime sets.
//!
//! The floor is a bare CRI client that makes the calls of one pod and nothing else. The agent, and any `--reference` agent,
//! gets the same pods through a real API server: created means written there, Ready and gone mean that a watch said so. All
//! columns run in one go, each on a private containerd of the same build, so that the ratios hold on any machine.
//!
//! Pods get their network from containernetworking's bridge chain in every column.

// The futures of tonic's calls are large; here each lives in one task of a program that has nothing else in memory.
#![allow(clippy::large_futures)]

#[path = "pods/api.rs"]
mod api;
mod cluster;
mod contestant;
#[path = "pods/floor.rs"]
mod floor;
mod process;
mod report;

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use harness::containerd::Version;
use harness::control_plane::ControlPlane;
use harness::fake_cri::{OnTerm, Script};

use api::Agent;
use process::Process;
use report::{Column, table};

/// Time of pods: create to Ready, delete to gone, a burst, and what the agent costs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pods that are created and deleted one after the other.
    #[arg(long, default_value_t = 30)]
    singles: usize,
    /// Pods that are created at once.
    #[arg(long, default_value_t = 100)]
    burst: usize,
    /// Pods that the floor starts at the same time in the burst; 0 is twice the number of cores.
    #[arg(long, default_value_t = 0)]
    concurrency: usize,
    /// Seconds over which the steady CPU use is measured.
    #[arg(long, default_value_t = 30)]
    steady: u64,
    /// The containerd to run: 1.6 (Debian's) or 2 (built by `make setup`).
    #[arg(long, default_value = "2", value_parser = ["1.6", "2"])]
    containerd: String,
    /// Measure the floor only.
    #[arg(long)]
    floor_only: bool,
    /// The command line of another agent to measure beside, with {config} (a KubeletConfiguration), {kubeconfig}, {node},
    /// {endpoint} and {root} filled in.
    #[arg(long)]
    reference: Option<String>,
}

impl Arguments {
    fn limit(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        if self.concurrency == 0 { 2 * cores } else { self.concurrency }
    }

    fn version(&self) -> Version {
        if self.containerd == "2" { Version::V2 } else { Version::V1_6 }
    }
}

/// What runs in each pod: a shell that ends at once on SIGTERM, as a well-behaved server does.
fn workload() -> Script {
    Script::forever().on_term(OnTerm::Exit { code: 0, after_ms: 0 })
}

/// The image of the workload.
const IMAGE: &str = "localhost/busybox:1";

/// Between two single pods the node comes to rest: an agent tells that a pod is gone before its sandbox is cleared away, and
/// the next one is not to pay for that. The burst measures a node that does not rest.
const REST: Duration = Duration::from_millis(300);

/// Percentiles that the tables have.
const PERCENTS: [usize; 3] = [50, 90, 99];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut columns = vec![floor::measure(&arguments).await.context("the floor")?];
    if !arguments.floor_only {
        let mut agents = vec![Agent::Nodelet];
        agents.extend(arguments.reference.as_deref().map(Agent::Reference));
        let plane = ControlPlane::start(&[Agent::NODELET, Agent::REFERENCE]).await?;
        // The controller manager gives out pod ranges in the order in which nodes register.
        for (number, agent) in (0u8..).zip(agents) {
            let column = api::measure(&arguments, &plane, number, agent).await;
            columns.push(column.with_context(|| agent.node())?);
        }
    }
    println!("{}", table(&columns));
    Ok(())
}

/// Adds memory rows and, over `steady`, CPU rows, for each process.
async fn add_costs(column: &mut Column, label: &str, steady: Duration, of: &[(&str, Process)]) -> anyhow::Result<()> {
    let mut readings = Vec::new();
    for (name, process) in of {
        readings.push((name, process, process.cpu()?));
    }
    tokio::time::sleep(steady).await;
    for (name, process, before) in readings {
        column.add(&format!("{name} memory {label}, MiB"), process.resident_mib()?);
        column.add(&format!("{name} CPU {label}, mCPU"), process.milli_cpu_since(before)?);
    }
    Ok(())
}
