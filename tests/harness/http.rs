//! HTTP requests from inside namespaces: single ones, and a stream of them that records every failure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::netns::Netns;

/// The body of `GET path`, over a new connection made inside `netns`; anything but 200 fails.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> anyhow::Result<String> {
    netns.within(|| get_here(address, path, Duration::from_secs(3)))?
}

fn get_here(address: SocketAddr, path: &str, limit: Duration) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("answer of {address}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{address}{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

/// What a UDP datagram from inside `netns` is answered with.
pub fn ask_udp(netns: &Netns, address: SocketAddr) -> anyhow::Result<String> {
    netns.within(|| {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(address)?;
        socket.send(b"who")?;
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer).with_context(|| format!("answer of {address}"))?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    })?
}

/// Requests one after the other, each over a new connection, until [`Traffic::stop`].
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<Record>>,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Record {
    /// Requests answered.
    pub answered: u64,
    /// Failures: seconds since the start, and why.
    pub failed: Vec<String>,
    /// The slowest answer.
    pub slowest: Duration,
}

impl Traffic {
    /// Starts asking `GET path` from inside `netns` every `every`.
    pub fn start(netns: Arc<Netns>, address: SocketAddr, path: &str, every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, path) = (stop.clone(), path.to_owned());
        let thread = std::thread::spawn(move || {
            netns.within(|| {
                let (start, mut record) = (Instant::now(), Record::default());
                while !stopped.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    match get_here(address, &path, Duration::from_secs(5)) {
                        Ok(_) => record.answered += 1,
                        Err(error) => record.failed.push(format!("{:.3}s: {error:#}", start.elapsed().as_secs_f64())),
                    }
                    record.slowest = record.slowest.max(asked.elapsed());
                    std::thread::sleep(every.saturating_sub(asked.elapsed()));
                }
                record
            })
        });
        Self { stop, thread }
    }

    /// Ends it and gives the record.
    pub fn stop(self) -> anyhow::Result<Record> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the traffic thread panicked"))?
    }
}
