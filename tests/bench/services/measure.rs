//! One column: the floor, or one agent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use harness::control_plane::ControlPlane;
use harness::netns::Netns;
use harness::programs;

use super::Arguments;
use crate::contestant::Contestant;
use crate::endpoints::{self, ENDPOINTS};
use crate::objects::{Objects, ensure_node};
use crate::probe::{self, Answer};
use crate::process::Process;
use crate::report::{Column, Samples};
use crate::seen::Seen;

const PERCENTS: [usize; 2] = [50, 90];

/// Who is measured.
#[derive(Debug)]
pub(crate) struct Agent<'a> {
    /// Title of the column.
    pub(crate) name: &'a str,
    /// Command line with placeholders.
    pub(crate) command: &'a str,
    /// Its host number on the control plane's network.
    pub(crate) host: u8,
}

/// Times of the three kinds of change.
#[derive(Debug, Default)]
struct Changes {
    added: Samples,
    replaced: Samples,
    removed: Samples,
}

impl Changes {
    fn into(self, column: &mut Column) {
        column.add_percentiles("Service added", &self.added, &PERCENTS);
        column.add_percentiles("endpoint replaced", &self.replaced, &PERCENTS);
        column.add_percentiles("Service removed", &self.removed, &PERCENTS);
    }
}

/// Each kind of change, from the write to its event at a bare watch.
pub(crate) async fn floor(arguments: &Arguments, objects: &Objects) -> anyhow::Result<Column> {
    let services = Seen::watch(objects.services.clone()).await?;
    let slices = Seen::watch(objects.slices.clone()).await?;
    let mut changes = Changes::default();
    for number in 0..arguments.changes {
        let name = format!("floor-{number}");
        objects.add_slice(&name, &ENDPOINTS[..1]).await?;
        slices.after(&name, 0).await?;
        let began = Instant::now();
        objects.add_service(&name).await?;
        changes.added.push(services.after(&name, 0).await?.duration_since(began));
        let (count, began) = (slices.count(&name), Instant::now());
        objects.point(&name, ENDPOINTS[1]).await?;
        changes.replaced.push(slices.after(&name, count).await?.duration_since(began));
        let (count, began) = (services.count(&name), Instant::now());
        objects.remove_service(&name).await?;
        changes.removed.push(services.after(&name, count).await?.duration_since(began));
    }
    let mut column = Column::new("floor");
    changes.into(&mut column);
    Ok(column)
}

/// Cold start, memory, and each kind of change from the write to the answer of a connection.
pub(crate) async fn agent(
    arguments: &Arguments,
    plane: &ControlPlane,
    objects: &Objects,
    agent: &Agent<'_>,
) -> anyhow::Result<Column> {
    let name = agent.name;
    let node = format!("bench-{name}");
    ensure_node(&plane.client().await?, &node, &format!("10.89.0.{}", agent.host)).await?;
    let netns = endpoints::namespace(plane, agent.host)?;
    probe::serve(&netns)?;
    let root = tempfile::tempdir()?;
    let kubeconfig = plane.proxy_kubeconfig().display().to_string();
    let root_text = root.path().display().to_string();
    let mut replace = vec![("kubeconfig", kubeconfig.as_str()), ("node", node.as_str()), ("root", root_text.as_str())];
    let nodelet = agent.command.contains("{nodelet}").then(|| programs::workspace_binary("nodelet")).transpose()?;
    let nodelet = nodelet.map(|path| path.display().to_string()).unwrap_or_default();
    replace.push(("nodelet", nodelet.as_str()));
    let log = root.path().join("agent.log");
    let measured = async {
        let live = objects.live(arguments.services).await?;
        let began = Instant::now();
        let agent = Contestant::start(agent.command, &replace, &netns, &log)?;
        let mut last = began;
        for service in live.iter().copied() {
            last = last.max(found(&netns, service, Answer::Endpoint(0)).await.context("cold start")?);
        }
        let mut column = Column::new(name);
        column.add("cold start, ms", last.duration_since(began).as_secs_f64() * 1000.0);
        column.add("memory after start, MiB", agent.process().resident_mib()?);
        changes(arguments, objects, &netns, name).await?.into(&mut column);
        packets(&mut column, &netns, live[0])?;
        many_changes(arguments, objects, agent.process(), &mut column).await?;
        column.add("memory after changes, MiB", agent.process().resident_mib()?);
        let idle = agent.process().cpu()?;
        tokio::time::sleep(Duration::from_secs(10)).await;
        column.add("idle CPU, mCPU", agent.process().milli_cpu_since(idle)?);
        Ok(column)
    };
    let measured: anyhow::Result<Column> = measured.await;
    measured.with_context(|| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(10).collect();
        format!("the agent's last lines, newest first:\n{}", tail.join("\n"))
    })
}

/// What a connection through a Service costs, beside one to its endpoint.
fn packets(column: &mut Column, netns: &Arc<Netns>, service: SocketAddr) -> anyhow::Result<()> {
    let direct = SocketAddr::from((ENDPOINTS[0], probe::TARGET_PORT));
    for (what, to) in [("direct", direct), ("by Service", service)] {
        let ((latency, failed), throughput) = netns
            .within(|| anyhow::Ok((probe::latency(to, 1000), probe::throughput(to, Duration::from_secs(2))?)))?
            .with_context(|| format!("{what}, {to}"))?;
        let micros = latency.percentile(50).context("nobody answered")? * 1000.0;
        column.add(&format!("connection and answer {what} p50, us"), micros);
        column.add(&format!("connections that failed of 1,000 {what}"), failed as f64);
        column.add(&format!("throughput {what}, Gbit/s"), throughput);
    }
    Ok(())
}

/// Changes of endpoints as fast as the API server takes them, and the CPU time that they cost the agent.
async fn many_changes(
    arguments: &Arguments,
    objects: &Objects,
    agent: Process,
    column: &mut Column,
) -> anyhow::Result<()> {
    const CHANGES: usize = 3000;
    let (before, began) = (agent.cpu()?, Instant::now());
    let writes = stream::iter(0..CHANGES).map(|number| {
        let name = format!("load-{}", 1 + number % (arguments.services / 2).clamp(1, 400));
        async move { objects.point(&name, Ipv4Addr::from(0x0b80_0000 + u32::try_from(number)?)).await }
    });
    writes.buffer_unordered(arguments.in_flight).try_collect::<Vec<()>>().await?;
    let took = began.elapsed();
    // What waits to be programmed is part of it: nobody takes longer than kube-proxy's longest pause.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = agent.cpu_between(before)?;
    column.add("endpoint changes a second", CHANGES as f64 / took.as_secs_f64());
    column.add("CPU of 1,000 endpoint changes, ms", used.as_secs_f64() * 1000.0 * 1000.0 / CHANGES as f64);
    Ok(())
}

async fn changes(arguments: &Arguments, objects: &Objects, netns: &Arc<Netns>, agent: &str) -> anyhow::Result<Changes> {
    let mut changes = Changes::default();
    for number in 0..arguments.changes {
        let name = format!("{agent}-{number}");
        objects.add_slice(&name, &ENDPOINTS[..1]).await?;
        // The slice is known long before; only the Service is measured.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let began = Instant::now();
        let service = objects.add_service(&name).await?;
        changes.added.push(found(netns, service, Answer::Endpoint(0)).await.context("added")?.duration_since(began));

        let asking = ask(netns, service, Answer::Endpoint(1));
        let began = Instant::now();
        objects.point(&name, ENDPOINTS[1]).await?;
        changes.replaced.push(answer(asking).await.context("replaced")?.duration_since(began));

        let asking = ask(netns, service, Answer::Nobody);
        let began = Instant::now();
        objects.remove_service(&name).await?;
        // An attempt that failed by chance before the write would make this negative; it counts as 0.
        changes.removed.push(answer(asking).await.context("removed")?.saturating_duration_since(began));
    }
    Ok(changes)
}

type Asking = std::thread::JoinHandle<anyhow::Result<Option<Instant>>>;

fn ask(netns: &Arc<Netns>, service: SocketAddr, wanted: Answer) -> Asking {
    let netns = Arc::clone(netns);
    std::thread::spawn(move || netns.within(|| probe::until(service, wanted)))
}

async fn answer(asking: Asking) -> anyhow::Result<Instant> {
    let joined = tokio::task::spawn_blocking(move || asking.join()).await?;
    joined.map_err(|_| anyhow::anyhow!("the asking thread panicked"))??.context("the answer never came")
}

async fn found(netns: &Arc<Netns>, service: SocketAddr, wanted: Answer) -> anyhow::Result<Instant> {
    answer(ask(netns, service, wanted)).await.with_context(|| format!("{service} should have answered {wanted:?}"))
}
