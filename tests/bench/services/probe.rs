//! Real connections: the servers that answer, and the client that asks until the answer is the wanted one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use harness::netns::Netns;

use crate::endpoints::ENDPOINTS;
use crate::report::Samples;

/// The port of both servers.
pub(crate) const TARGET_PORT: u16 = 8080;

/// How long one attempt may take: many times a loopback connection, and the resolution where packets are dropped.
const ATTEMPT: Duration = Duration::from_millis(5);

/// Pause between attempts that failed or answered otherwise.
const PAUSE: Duration = Duration::from_micros(500);

/// Longest that a change may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of one read or write where throughput is measured.
const PIECE: usize = 256 << 10;

/// From the first packet of a connection to the answer, so many times; and how many were not answered.
pub(crate) fn latency(to: SocketAddr, times: usize) -> (Samples, usize) {
    let once = || -> std::io::Result<Duration> {
        let began = Instant::now();
        let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
        connection.read_exact(&mut [0])?;
        Ok(began.elapsed())
    };
    let answered: Vec<Duration> = (0..times).filter_map(|_| once().ok()).collect();
    let failed = times - answered.len();
    (answered.into_iter().collect(), failed)
}

/// Gigabits a second over one connection.
pub(crate) fn throughput(to: SocketAddr, during: Duration) -> anyhow::Result<f64> {
    let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
    let (piece, began, mut sent) = (vec![0; PIECE], Instant::now(), 0);
    while began.elapsed() < during {
        connection.write_all(&piece)?;
        sent += PIECE;
    }
    Ok(sent as f64 * 8.0 / 1e9 / began.elapsed().as_secs_f64())
}

/// What a connection to a ClusterIP finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The endpoint of this number.
    Endpoint(u8),
    /// Nobody.
    Nobody,
}

/// Starts a server on each endpoint address; each sends its number to whoever connects.
pub(crate) fn serve(netns: &Netns) -> anyhow::Result<()> {
    for (number, address) in (0u8..).zip(ENDPOINTS) {
        let listener = netns.within(|| TcpListener::bind((address, TARGET_PORT)))??;
        std::thread::spawn(move || {
            let mut some = vec![0; PIECE];
            for mut connection in listener.incoming().flatten() {
                // A client that gave up is no concern of the server. Who measures throughput sends until it has enough.
                let _ = connection.write_all(&[number]);
                while connection.read(&mut some).is_ok_and(|length| length > 0) {}
            }
        });
    }
    Ok(())
}

/// Asks `service` until it finds `wanted`; returns when the first attempt that found it had its answer, for
/// [`Answer::Nobody`] when it began. `None` when that never came.
pub(crate) fn until(service: SocketAddr, wanted: Answer) -> Option<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let began = Instant::now();
        let found = ask(service);
        if found == wanted {
            return Some(if wanted == Answer::Nobody { began } else { Instant::now() });
        }
        if began > deadline {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}

fn ask(service: SocketAddr) -> Answer {
    let attempt = || {
        let mut connection = TcpStream::connect_timeout(&service, ATTEMPT).ok()?;
        connection.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        let mut number = [0];
        connection.read_exact(&mut number).ok()?;
        Some(number[0])
    };
    attempt().map_or(Answer::Nobody, Answer::Endpoint)
}
