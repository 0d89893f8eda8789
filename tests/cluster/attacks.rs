//! Class E of `tests/ATTACKS.md` on a joined node: floods of the kubelet API, and what everybody else notices of them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use kube::Api;
use nodelet::api::tls::{Trust, client_config};
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;

use crate::rig::{NAME, NODE, Rig, address};

/// Two leases and some more.
const DURATION: Duration = Duration::from_secs(25);
/// Bytes that floods may make of the agent's memory: 320 connections, 192 of them with a stream of two buffers, in a debug build.
const MEMORY: u64 = 48 << 20;
/// File descriptors: a socket for each connection, one to the runtime for each stream, and those that are about to be closed. The
/// floods hold 1300 connections.
const FILES: usize = 64 + 256 + STREAMS + 256;
/// Streams of one caller.
const STREAMS: usize = 192;

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

fn connect_tls(to: SocketAddr) -> anyhow::Result<Tls> {
    let config = Arc::new(client_config(Trust::Anybody, Arc::default())?);
    let connection = ClientConnection::new(config, "n1".try_into()?)?;
    Ok(StreamOwned::new(connection, connect(to)?))
}

/// Connections that say nothing, or begin a handshake and no more. Many are held, whichever the server ends.
fn silent(to: SocketAddr, stop: &AtomicBool) {
    let mut held = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = connect(to) {
            let _ = stream.write_all(&[0x16, 3, 1]);
            held.push_back(stream);
        }
        if held.len() > 1000 {
            held.pop_front();
        }
    }
}

/// Heads that trickle in, on a hundred connections at a time.
fn slow(to: SocketAddr, stop: &AtomicBool) {
    let mut held: Vec<Tls> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        held.retain_mut(|stream| stream.write_all(b"y").and_then(|()| stream.flush()).is_ok());
        if held.len() < 100
            && let Ok(mut stream) = connect_tls(to)
            && stream.write_all(b"GET /pods HTTP/1.1\r\nX: ").is_ok()
        {
            held.push(stream);
        }
    }
}

/// Heads of a megabyte.
fn large(to: SocketAddr, stop: &AtomicBool) {
    let head = [&b"GET /pods HTTP/1.1\r\nX: "[..], &vec![b'y'; 1 << 20]].concat();
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = connect_tls(to) {
            let _ = stream.write_all(&head);
        }
    }
}

/// Streams of HTTP/2 that are reset as soon as they are opened.
fn resets(to: SocketAddr, stop: &AtomicBool) {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream in (1..20_000u32).step_by(2).map(u32::to_be_bytes) {
        // HEADERS with GET, /, https and an authority; RST_STREAM with CANCEL.
        bytes.extend([&[0, 0, 6, 1, 5][..], &stream, &[0x82, 0x84, 0x87, 0x41, 1, b'n']].concat());
        bytes.extend([&[0, 0, 4, 3, 0][..], &stream, &[0, 0, 0, 8]].concat());
    }
    while !stop.load(Ordering::Relaxed) {
        if let Ok(mut stream) = connect_tls(to) {
            let _ = stream.write_all(&bytes);
        }
    }
}

/// Streams of exec by somebody who may: as many as there may be, held open. Counts those that began and those that were refused.
fn execs(to: SocketAddr, stop: &AtomicBool, token: &str, counts: &[AtomicUsize; 2]) {
    let head = format!(
        "POST /exec/default/victim/c?command=sleep&command=1000&output=1 HTTP/1.1\r\nHost: n\r\nAuthorization: Bearer {token}\r\n\
         Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = connect_tls(to) else { continue };
        let mut answer = [0; 12];
        if stream.write_all(head.as_bytes()).and_then(|()| stream.read_exact(&mut answer)).is_err() {
            continue;
        }
        match &answer[9..] {
            b"101" => {
                counts[0].fetch_add(1, Ordering::Relaxed);
                held.push(stream);
            }
            b"429" => {
                counts[1].fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
            _ => {}
        }
    }
}

/// Resident memory, and open files.
fn figures(pid: u32) -> anyhow::Result<(u64, usize)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibi: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok((kibi << 10, fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_the_kubelet_api_take_bounded_memory_and_nobody_else_notices() {
    scenario().await.unwrap();
}

async fn scenario() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Nodelet).await?;
    let container = json!({ "name": "c", "image": "localhost/busybox:1", "imagePullPolicy": "Never",
        "command": ["sh", "-c", "echo alive; trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"] });
    let spec = json!({ "nodeName": NAME, "containers": [container], "terminationGracePeriodSeconds": 2 });
    rig.create::<Pod>(json!({ "metadata": { "name": "victim" }, "spec": spec })).await?;
    rig.pod_is_ready("victim").await?;
    let token = token(&rig)?;
    logs_are_read(&rig)?;
    let pid = rig.node.agent()?.pid().context("no agent")?;
    let before = figures(pid)?;
    let ready = ready_condition(&rig).await?;

    let (to, stop, counts) =
        (address(&format!("{NODE}:10250")), AtomicBool::new(false), [const { AtomicUsize::new(0) }; 2]);
    let (stop, counts, token) = (&stop, &counts, &token);
    let netns = rig.plane.lan().netns();
    let seen = std::thread::scope(|scope| {
        for flood in [silent, slow, large, resets] {
            scope.spawn(move || netns.within(|| flood(to, stop)));
        }
        scope.spawn(move || netns.within(|| execs(to, stop, token, counts)));
        let seen = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(watch(&rig, pid)));
        stop.store(true, Ordering::Relaxed);
        seen
    })?;
    let counts = [0, 1].map(|index| counts[index].load(Ordering::Relaxed));
    eprintln!("before {before:?}, {seen:?}, {counts:?} streams began and were refused");
    ensure!(counts[0] >= STREAMS && counts[1] > 0, "{counts:?}: there was no flood of streams");
    ensure!(seen.memory <= before.0 + MEMORY, "{} KiB at most, {} before", seen.memory >> 10, before.0 >> 10);
    ensure!(seen.files <= before.1 + FILES, "{} open files at most, {} before", seen.files, before.1);
    ensure!(seen.slowest < Duration::from_secs(5), "the API server waited for {:?}", seen.slowest);
    ensure!(seen.leases >= 2 && seen.latest < Duration::from_secs(15), "{seen:?}");
    ensure!(rig.node.agent()?.pid() == Some(pid) && ready_condition(&rig).await? == ready, "the node was not Ready");
    eventually(Duration::from_secs(60), "connections to be given back", async || {
        let after = figures(pid)?;
        ensure!(after.1 <= before.1 + 16, "{after:?}, {before:?} before");
        anyhow::Ok(())
    })
    .await?;
    rig.delete::<Pod>("victim").await?;
    rig.nothing_is_left().await?;
    rig.finish()
}

/// The token of somebody who may run things in pods of the node.
fn token(rig: &Rig) -> anyhow::Result<String> {
    let binding = ["clusterrolebinding", "runner", "--clusterrole=runner", "--serviceaccount=default:default"];
    for words in [&["clusterrole", "runner", "--verb=get,create", "--resource=nodes/proxy"][..], &binding] {
        let done = rig.plane.kubectl(&[&["create"], words].concat())?.output()?;
        ensure!(done.status.success(), "{done:?}");
    }
    let made = rig.plane.kubectl(&["create", "token", "default"])?.output()?;
    Ok(String::from_utf8(made.stdout)?.trim().to_owned())
}

/// What kubectl asks, through the API server; answers how long that took.
fn logs_are_read(rig: &Rig) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let done = rig.plane.kubectl(&["logs", "victim", "--request-timeout=10s"])?.output()?;
    ensure!(done.status.success() && done.stdout == b"alive\n", "{done:?}");
    Ok(began.elapsed())
}

async fn ready_condition(rig: &Rig) -> anyhow::Result<Option<String>> {
    let node = Api::<ApiNode>::all(rig.client.clone()).get(NAME).await?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == "True");
    Ok(ready.and_then(|ready| ready.last_transition_time).map(|time| time.0.to_string()))
}

/// What others notice, at its worst.
#[derive(Debug, Default)]
struct Seen {
    memory: u64,
    files: usize,
    slowest: Duration,
    leases: usize,
    /// Longest time between two renewals of the lease.
    latest: Duration,
}

async fn watch(rig: &Rig, pid: u32) -> anyhow::Result<Seen> {
    let leases: Api<Lease> = Api::namespaced(rig.client.clone(), "kube-node-lease");
    let (mut seen, mut renewed, mut since) = (Seen::default(), None, Instant::now());
    let end = Instant::now() + DURATION;
    while Instant::now() < end {
        let (memory, files) = figures(pid)?;
        (seen.memory, seen.files) = (seen.memory.max(memory), seen.files.max(files));
        let lease = leases.get(NAME).await?.spec.and_then(|spec| spec.renew_time).map(|time| time.0);
        if lease != renewed {
            (renewed, since) = (lease, Instant::now());
            seen.leases += 1;
        }
        seen.latest = seen.latest.max(since.elapsed());
        seen.slowest = seen.slowest.max(logs_are_read(rig)?);
    }
    Ok(seen)
}
