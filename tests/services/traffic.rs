//! Servers that say who they are and whom they see, and clients that ask them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use harness::eventually::patience;
use harness::netns::Netns;

/// How long an answer may take. What is refused is told at once; only dropped packets take this long.
const PATIENCE: Duration = Duration::from_millis(1000);

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The server's name.
    pub(crate) who: String,
    /// The client's address as the server sees it.
    pub(crate) peer: IpAddr,
}

impl Answer {
    pub(crate) fn parse(text: &[u8]) -> io::Result<Self> {
        let text = std::str::from_utf8(text).map_err(io::Error::other)?.trim_end();
        let (who, peer) = text.split_once(' ').ok_or_else(|| io::Error::other(format!("answer {text:?}")))?;
        Ok(Self { who: who.to_owned(), peer: peer.parse().map_err(io::Error::other)? })
    }
}

fn greeting(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}\n", peer.ip().to_canonical())
}

/// Serves TCP and UDP on a port of every address of a namespace, until the process ends.
pub(crate) fn serve(on: &Netns, name: &str, port: u16) {
    serve_at(on, name, ([0u16; 8], port).into());
}

/// The same at one address: answers to datagrams come from that, too.
pub(crate) fn serve_at(on: &Netns, name: &str, at: SocketAddr) {
    let sockets = || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    let (tcp, udp) = on.within(sockets).unwrap();
    let own = name.to_owned();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            if let Ok(peer) = stream.peer_addr() {
                // A client that gave up is no concern of the server. It waits for the client to close first: who does waits
                // for a minute before a port is used again, and ports that masquerading chose at random would meet again.
                let _ = stream.set_read_timeout(Some(patience(PATIENCE)));
                let _ = stream.write_all(greeting(&own, peer).as_bytes());
                let _ = stream.read(&mut [0]);
            }
        }
    });
    let own = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(greeting(&own, peer).as_bytes(), peer);
        }
    });
}

/// Asks over a new TCP connection.
pub(crate) fn tcp(from: &Netns, to: SocketAddr) -> io::Result<Answer> {
    from.within(|| tcp_here(to)).map_err(io::Error::other)?
}

/// Who answers a client, or how it is turned away.
pub(crate) fn outcome(from: &Netns, to: SocketAddr) -> String {
    match tcp(from, to) {
        Ok(answer) => answer.who,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => "dropped".to_owned(),
        Err(error) => panic!("{to}: {error}"),
    }
}

/// Asks over a new TCP connection, from the namespace of this thread.
pub(crate) fn tcp_here(to: SocketAddr) -> io::Result<Answer> {
    read_answer(TcpStream::connect_timeout(&to, patience(PATIENCE))?, patience(PATIENCE))
}

/// Reads what a server says.
pub(crate) fn read_answer(stream: TcpStream, limit: Duration) -> io::Result<Answer> {
    stream.set_read_timeout(Some(limit))?;
    let mut text = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut text)?;
    Answer::parse(&text)
}

/// Asks with a datagram of a new socket.
pub(crate) fn udp(from: &Netns, to: SocketAddr) -> io::Result<Answer> {
    UdpClient::new(from, to)?.ask()
}

/// A client that keeps its UDP port, and so its flow in conntrack.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    pub(crate) fn new(from: &Netns, to: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let open = || {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(patience(PATIENCE)))?;
            io::Result::Ok(socket)
        };
        Ok(Self(from.within(open).map_err(io::Error::other)??))
    }

    pub(crate) fn ask(&self) -> io::Result<Answer> {
        self.0.send(b"?")?;
        let mut buffer = [0; 128];
        let length = self.0.recv(&mut buffer)?;
        Answer::parse(&buffer[..length])
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}
