//! TCP probes: success is a connection.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::worker::{Answer, within};

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Connects; the error is the text that an event shows.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect((host, port)).await;
    stream.map_err(|error| format!("dial tcp {}: {}", authority(host, port), reason(&error)))
}

/// The kernel's words in lower case, as Go prints them, for messages that people know.
pub(super) fn reason(error: &io::Error) -> String {
    let text = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused",
        io::ErrorKind::ConnectionReset => "read: connection reset by peer",
        io::ErrorKind::HostUnreachable => "connect: no route to host",
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable",
        io::ErrorKind::TimedOut => "i/o timeout",
        _ => return error.to_string(),
    };
    text.to_owned()
}

pub(super) async fn probe(host: &str, port: u16, timeout: Duration) -> Answer {
    let late = || Answer::failure(format!("dial tcp {}: i/o timeout", authority(host, port)));
    let work = async {
        match connect(host, port).await {
            Ok(_) => Answer::success(String::new()),
            Err(text) => Answer::failure(text),
        }
    };
    within(timeout, work, late).await
}
