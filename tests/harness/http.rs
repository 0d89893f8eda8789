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

/// A connection over which one request follows the other.
struct KeptAlive(TcpStream);

impl KeptAlive {
    fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    /// Asks, and reads the answer up to the end that its length names.
    fn get(&mut self, path: &str) -> anyhow::Result<()> {
        // In one write: the next of several would wait for the acknowledgement of the first.
        self.0.write_all(format!("GET {path} HTTP/1.1\r\nHost: service\r\n\r\n").as_bytes())?;
        let (mut answer, mut some) = (Vec::new(), [0; 4096]);
        loop {
            let length = self.0.read(&mut some)?;
            ensure!(length > 0, "the connection was closed");
            answer.extend_from_slice(&some[..length]);
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            ensure!(head.split(' ').nth(1) == Some("200"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
            if body.len() >= length.context("the answer has no length")? {
                return Ok(());
            }
        }
    }
}

/// Requests one after the other until [`Traffic::stop`].
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<Record>>,
}

/// A request that was not answered as it should be.
#[derive(Clone)]
pub struct Failure {
    /// When it was made.
    pub asked: Instant,
    /// Seconds since the start of the traffic, and why.
    pub text: String,
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Record {
    /// Requests answered.
    pub answered: u64,
    /// Failures.
    pub failed: Vec<Failure>,
    /// The slowest answer.
    pub slowest: Duration,
}

impl Traffic {
    /// Starts asking `GET path` from inside `netns` every `every`, each time over a new connection.
    pub fn start(netns: Arc<Netns>, address: SocketAddr, path: &str, every: Duration) -> Self {
        let path = path.to_owned();
        Self::ask(netns, every, move || get_here(address, &path, Duration::from_secs(5)).map(drop))
    }

    /// The same over one connection, which is opened again when it breaks.
    pub fn over_one_connection(netns: Arc<Netns>, address: SocketAddr, path: &str, every: Duration) -> Self {
        let (path, mut connection) = (path.to_owned(), None);
        Self::ask(netns, every, move || {
            let mut open = match connection.take() {
                Some(open) => open,
                None => KeptAlive::open(address)?,
            };
            open.get(&path)?;
            connection = Some(open);
            Ok(())
        })
    }

    fn ask(netns: Arc<Netns>, every: Duration, mut ask: impl FnMut() -> anyhow::Result<()> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            netns.within(|| {
                let (start, mut record) = (Instant::now(), Record::default());
                while !stopped.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    match ask() {
                        Ok(()) => record.answered += 1,
                        Err(error) => {
                            let text = format!("{:.3}s: {error:#}", (asked - start).as_secs_f64());
                            record.failed.push(Failure { asked, text });
                        }
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
