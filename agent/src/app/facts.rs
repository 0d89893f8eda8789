//! A few facts about the machine that the wiring itself needs before the node domain is up.

use std::net::{IpAddr, UdpSocket};

/// The node's addresses: those of the configuration, else the source address of the default routes (connecting a UDP
/// socket sends nothing), else loopback, so that a node without a network still runs its pods.
pub fn node_addresses(configured: &[IpAddr]) -> Vec<IpAddr> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    // Documentation addresses (RFC 5737, RFC 3849): routed like anything unknown.
    let routes = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    let source = |(local, remote): (&str, &str)| {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
    };
    let found: Vec<IpAddr> = routes.into_iter().filter_map(source).collect();
    if found.is_empty() { vec![IpAddr::from([127, 0, 0, 1])] } else { found }
}
