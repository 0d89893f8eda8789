//! `bench-services`: how long the API's changes to Services take to reach real connections, at a size that hurts.
//!
//! Many Services with many endpoints are written to a real API server. The agent runs its Service half in a network
//! namespace of its own, where two echo servers stand for the endpoints that count. Every time is from the API write to the
//! answer of a real connection to the ClusterIP; the floor is the same write to the event at a bare watch, in the same run.
//!
//! The API server has a namespace of its own, too; the two share a bridge, as machines share a network.

mod cluster;
mod contestant;
#[path = "services/endpoints.rs"]
mod endpoints;
#[path = "services/measure.rs"]
mod measure;
#[path = "services/objects.rs"]
mod objects;
#[path = "services/probe.rs"]
mod probe;
mod process;
mod report;
#[path = "services/seen.rs"]
mod seen;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Parser;

use harness::control_plane::ControlPlane;
use harness::programs;
use report::{Column, table};

/// Time of changes to Services, beside the API server's own.
#[derive(Debug, Parser)]
struct Arguments {
    /// Services to load.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Changes of each kind that are measured.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// API writes in flight while loading.
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// The agent's command line, with {kubeconfig}, {node}, {root} and {nodelet} filled in.
    #[arg(
        long,
        default_value = "{nodelet} --state-dir {root}/state run --only services --kubeconfig {kubeconfig} \
                         --hostname-override {node} --root-dir {root}"
    )]
    agent: String,
    /// Another agent to measure beside, in the same form; `kube-proxy` is upstream's in nftables mode.
    #[arg(long)]
    reference: Option<String>,
    /// Load the objects, measure the floor only.
    #[arg(long)]
    floor_only: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let plane = ControlPlane::start(&[]).await?;
    let client = plane.client().await?;
    let objects = objects::Objects::new(client.clone(), arguments.in_flight);
    cluster::ensure_namespace(&client, objects::NAMESPACE).await?;
    let began = Instant::now();
    objects.load(arguments.services, arguments.endpoints).await.context("loading")?;
    eprintln!("{} Services x {} endpoints loaded in {:.1?}", arguments.services, arguments.endpoints, began.elapsed());

    println!("{}", table(&columns(&arguments, &plane, &objects).await?));
    Ok(())
}

async fn columns(
    arguments: &Arguments,
    plane: &ControlPlane,
    objects: &objects::Objects,
) -> anyhow::Result<Vec<Column>> {
    let mut columns = vec![measure::floor(arguments, objects).await.context("the floor")?];
    let mut agents = vec![("nodelet", arguments.agent.clone())];
    match arguments.reference.as_deref() {
        None => {}
        Some("kube-proxy") => agents.push(("kube-proxy", kube_proxy()?)),
        Some(command) => agents.push(("reference", command.to_owned())),
    }
    for (number, (name, command)) in (0u8..).zip(agents).filter(|_| !arguments.floor_only) {
        let agent = measure::Agent { name, command: &command, host: 11 + number };
        let column = measure::agent(arguments, plane, objects, &agent).await;
        match column.with_context(|| name.to_owned()) {
            Ok(column) => columns.push(column),
            // What was measured before is worth printing all the same.
            Err(error) if number > 0 => eprintln!("no column of another agent: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    Ok(columns)
}

/// The command line of upstream's kube-proxy, which is built where it is not there yet.
fn kube_proxy() -> anyhow::Result<String> {
    let script = programs::repository().join("tests/scripts/e2e-programs.sh");
    ensure!(Command::new("bash").arg(&script).status()?.success(), "{} failed", script.display());
    Ok(format!(
        "{} --kubeconfig={{kubeconfig}} --proxy-mode=nftables --hostname-override={{node}} --cluster-cidr={} \
         --conntrack-max-per-core=0",
        programs::repository().join("build/e2e/kube-proxy").display(),
        ControlPlane::CLUSTER_CIDR
    ))
}
