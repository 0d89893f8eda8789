//! Stale flows of UDP and SCTP. A UDP "connection" is whatever conntrack remembers: a client that keeps sending keeps its entry alive,
//! and with it the translation to an endpoint that is gone, or no translation at all when the Service came later.
//!
//! TCP ends such connections by itself, with one exception: one that was begun while there were no rules (before the first
//! start, or after somebody flushed them) repeats its first packet into nowhere for as long as the client has patience.
//!
//! Level-triggered: after a change (and once at start) the flows of the fronts concerned are listed, compared with what
//! the rules say now, and exactly the stale ones are deleted. A flow to a living endpoint is never touched.
//! Wire facts: `linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::program::{Program, Way};
use super::{Backend, Front, Protocol};
use crate::nft::Family;
use crate::nft::decode::{attribute, messages};

const SUBSYS: u16 = 1 << 8;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const SEEN_REPLY: u32 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

/// A flow as conntrack has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What the client sent to.
    pub front: Front,
    /// Who answers.
    pub answers: Backend,
    /// Whether somebody has answered.
    pub is_answered: bool,
    /// The attributes that name exactly this flow: its original tuple, its id and its zone, as they came.
    names: Vec<(u16, Vec<u8>)>,
}

/// Whether a flow is to be deleted. `touched` are the fronts that may have changed, `program` what a front comes to now.
///
/// A flow is stale when who answers is not among the backends; that covers flows that were never translated (they are
/// "answered" by the front itself) once there is a backend. A front that is gone has no backends, so all translated
/// flows to it are stale.
pub fn is_stale<'a>(flow: &Flow, touched: &BTreeSet<Front>, program: impl Fn(&Front) -> Option<&'a Program>) -> bool {
    if !touched.contains(&flow.front) {
        return false;
    }
    let untranslated = flow.answers.address == flow.front.address && flow.answers.port == flow.front.port;
    let ways = program(&flow.front).into_iter().flat_map(|program| [Some(&program.all), program.local.as_ref()]);
    let mut backends = ways.flatten().flat_map(Way::backends).peekable();
    let is_served = backends.peek().is_some();
    if flow.front.protocol == Protocol::Tcp {
        return untranslated && !flow.is_answered && is_served;
    }
    if !is_served {
        return !untranslated;
    }
    !backends.any(|backend| backend == flow.answers)
}

/// Deletes the stale flows of the fronts of a family in `touched`; answers how many, `None` where there is no such front.
pub fn reconcile<'a>(
    family: Family,
    touched: &BTreeSet<Front>,
    program: impl Fn(&Front) -> Option<&'a Program>,
) -> io::Result<Option<u64>> {
    if !touched.iter().any(|front| super::element::family(front.address) == family) {
        return Ok(None);
    }
    let socket = open()?;
    let mut deleted = 0;
    for flow in flows(&socket, family)?.iter().filter(|flow| is_stale(flow, touched, &program)) {
        delete(&socket, family, flow)?;
        deleted += 1;
    }
    Ok(Some(deleted))
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    Ok(socket)
}

fn message(kind: u16, flags: u16, family: Family, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&(SUBSYS | kind).to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&1u32.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family.number(), 0, 0, 0]);
    bytes.extend_from_slice(payload);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// All flows of a family.
fn flows(socket: &Socket, family: Family) -> io::Result<Vec<Flow>> {
    socket.send_to(&message(GET, 0x301, family, &[]), &SocketAddr::new(0, 0), 0)?;
    let mut flows = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, _, body) in messages(&datagram) {
            match kind {
                3 => return Ok(flows),
                2 => return Err(errno(body)),
                _ => flows.extend(body.get(4..).and_then(|body| parse(family, body))),
            }
        }
    }
}

fn errno(body: &[u8]) -> io::Error {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    io::Error::from_raw_os_error(-code)
}

fn parse(family: Family, body: &[u8]) -> Option<Flow> {
    let original = attribute(body, TUPLE_ORIGINAL)?;
    let reply = attribute(body, TUPLE_REPLY)?;
    let protocol = Protocol::from_number(*attribute(attribute(original, 2)?, 1)?.first()?)?;
    let (source, destination) = if family == Family::V4 { (1, 2) } else { (3, 4) };
    let front = Front {
        address: address(attribute(attribute(original, 1)?, destination)?)?,
        protocol,
        port: port(attribute(attribute(original, 2)?, 3)?)?,
    };
    let answers = Backend {
        address: address(attribute(attribute(reply, 1)?, source)?)?,
        port: port(attribute(attribute(reply, 2)?, 2)?)?,
    };
    let name = |kind| attribute(body, kind).map(|value| (kind, value.to_vec()));
    let names = [TUPLE_ORIGINAL, ZONE, ID].into_iter().filter_map(name).collect();
    let status = attribute(body, STATUS).and_then(|s| s.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some(Flow { front, answers, is_answered: status & SEEN_REPLY != 0, names })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

fn port(bytes: &[u8]) -> Option<u16> {
    bytes.try_into().ok().map(u16::from_be_bytes)
}

fn delete(socket: &Socket, family: Family, flow: &Flow) -> io::Result<()> {
    let mut payload = Vec::new();
    for (kind, value) in &flow.names {
        let length = u16::try_from(value.len() + 4).map_err(io::Error::other)?;
        let nested = if *kind == TUPLE_ORIGINAL { 0x8000 } else { 0 };
        payload.extend_from_slice(&length.to_ne_bytes());
        payload.extend_from_slice(&(kind | nested).to_ne_bytes());
        payload.extend_from_slice(value);
        payload.resize(payload.len().next_multiple_of(4), 0);
    }
    socket.send_to(&message(DELETE, 5, family, &payload), &SocketAddr::new(0, 0), 0)?;
    let (datagram, _) = socket.recv_from_full()?;
    let answer = messages(&datagram).find(|(kind, _, _)| *kind == 2).map(|(_, _, body)| errno(body));
    match answer {
        // It may have ended by itself meanwhile.
        Some(error) if !matches!(error.raw_os_error(), Some(0 | libc::ENOENT)) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_flows_that_nobody_answers_are_stale() {
        let front = Front { address: [10, 96, 0, 10].into(), protocol: Protocol::Udp, port: 53 };
        let backend = |n: u8| Backend { address: [10, 0, 0, n].into(), port: 5353 };
        let flow = |answers| Flow { front, answers, is_answered: false, names: Vec::new() };
        let own = Backend { address: front.address, port: front.port };
        let touched = BTreeSet::from([front]);
        let served = |by: &[Backend]| Program { all: Way::To(by.iter().copied().collect()), ..Program::default() };
        let (one, none) = (served(&[backend(1)]), Program::default());
        for (what, answers, program, stale) in [
            ("a living endpoint", backend(1), Some(&one), false),
            ("a dead endpoint", backend(2), Some(&one), true),
            ("never translated, now served", own, Some(&one), true),
            ("never translated, not served", own, Some(&none), false),
            ("translated, nobody serves now", backend(1), Some(&none), true),
            ("translated, Service gone", backend(1), None, true),
        ] {
            assert_eq!(is_stale(&flow(answers), &touched, |_| program), stale, "{what}");
        }
        let tcp = Front { protocol: Protocol::Tcp, ..front };
        let own_tcp = |is_answered| Flow { front: tcp, is_answered, ..flow(own) };
        for (what, flow, stale) in [
            ("begun without rules", own_tcp(false), true),
            ("answered by whoever has the address", own_tcp(true), false),
            ("translated to an endpoint that is gone", Flow { front: tcp, ..flow(backend(2)) }, false),
        ] {
            assert_eq!(is_stale(&flow, &BTreeSet::from([tcp]), |_| Some(&one)), stale, "TCP, {what}");
        }
        assert!(!is_stale(&flow(backend(2)), &BTreeSet::new(), |_| Some(&one)), "an untouched front keeps its flows");
    }
}
