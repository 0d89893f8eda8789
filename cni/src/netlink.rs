//! The plugin's route netlink socket: one blocking request at a time.
//!
//! A plugin lives for a few milliseconds and has nothing to overlap, so there is no runtime and no connection task:
//! `netlink-packet-route` encodes, `netlink-sys` sends, every request asks for an acknowledgement.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::cidr::Cidr;
use crate::plan::{End, Mac, Via};

/// A request that the kernel refused.
#[derive(Debug)]
pub(crate) struct NetlinkError {
    what: String,
    source: io::Error,
}

impl NetlinkError {
    /// The errno, when the kernel gave one.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for NetlinkError {}

/// An interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// Empty for interfaces without one.
    pub(crate) mac: Vec<u8>,
    pub(crate) mtu: u32,
    pub(crate) up: bool,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelRoute {
    pub(crate) dst: Cidr,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) interface: u32,
}

/// A socket in the namespace that it was opened in.
pub(crate) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
    /// Numbers of interfaces that were asked for: a plugin configures the two or three that it made itself.
    indexes: Vec<(String, u32)>,
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let open = || {
            let socket = Socket::new(NETLINK_ROUTE)?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError { what: "open a netlink socket".to_owned(), source })?;
        // 32 KiB is the most that the kernel puts into one message of a dump (netlink_dump).
        Ok(Self { socket, buffer: vec![0; 32 * 1024], sequence: 0, indexes: Vec::new() })
    }

    fn request(&mut self, what: impl fmt::Display, message: Message, flags: u16) -> Result<Vec<Message>, NetlinkError> {
        self.exchange(message, flags).map_err(|source| NetlinkError { what: what.to_string(), source })
    }

    fn exchange(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut replies = Vec::new();
        loop {
            let received = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            let mut rest = &self.buffer[..received.min(self.buffer.len())];
            while !rest.is_empty() {
                let reply = NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
                let length = (reply.header.length as usize).next_multiple_of(4).clamp(16, rest.len());
                rest = &rest[length.min(rest.len())..];
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(replies),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(replies),
                    NetlinkPayload::InnerMessage(message) => replies.push(message),
                    _ => {}
                }
            }
        }
    }

    /// The interface of this name; `None` if there is none.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(format_args!("look for interface {name}"), message)
    }

    fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(format_args!("look for interface number {index}"), message)
    }

    fn one_link(&mut self, what: fmt::Arguments<'_>, message: LinkMessage) -> Result<Option<Link>, NetlinkError> {
        match self.request(what, Message::GetLink(message), 0) {
            Ok(replies) => Ok(replies.into_iter().find_map(to_link)),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn index(&mut self, name: &str) -> Result<u32, NetlinkError> {
        let gone = || NetlinkError {
            what: format!("look for interface {name}"),
            source: io::Error::from_raw_os_error(libc::ENODEV),
        };
        if let Some((_, index)) = self.indexes.iter().find(|(known, _)| known == name) {
            return Ok(*index);
        }
        let index = self.link(name)?.ok_or_else(gone)?.index;
        self.indexes.push((name.to_owned(), index));
        Ok(index)
    }

    /// Creates a veth pair with one end here and the other in the namespace `pod_netns`.
    pub(crate) fn create_veth(
        &mut self,
        host: &End,
        pod: &End,
        mtu: u32,
        pod_netns: RawFd,
    ) -> Result<(), NetlinkError> {
        let end = |end: &End| {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(end.name.clone()));
            message.attributes.push(LinkAttribute::Address(end.mac.0.to_vec()));
            if mtu != 0 {
                message.attributes.push(LinkAttribute::Mtu(mtu));
            }
            message
        };
        let (mut here, mut there) = (end(host), end(pod));
        there.attributes.push(LinkAttribute::NetNsFd(pod_netns));
        here.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there))),
        ]));
        let what = format_args!("create veth pair {} and {}", host.name, pod.name);
        self.request(what, Message::NewLink(here), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Removes an interface, and with it the other end of a pair; `false` if there is none of this name.
    pub(crate) fn delete_link(&mut self, name: &str) -> Result<bool, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(format_args!("delete interface {name}"), Message::DelLink(message), 0) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(libc::ENODEV) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(format_args!("set interface {name} up"), Message::SetLink(message), 0).map(drop)
    }

    /// Adds `address` as one host, without duplicate address detection.
    pub(crate) fn add_address(&mut self, interface: &str, address: IpAddr) -> Result<(), NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = Cidr::host(address).prefix();
        message.header.scope = AddressScope::Universe;
        message.header.index = self.index(interface)?;
        message.attributes.push(AddressAttribute::Address(address));
        message.attributes.push(AddressAttribute::Local(address));
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let what = format_args!("add address {address} to {interface}");
        self.request(what, Message::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Adds a permanent neighbour entry; IPv6 ones are routers, or the kernel drops the default route through them.
    pub(crate) fn add_neighbour(&mut self, interface: &str, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = self.index(interface)?;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        if address.is_ipv6() {
            message.header.flags = NeighbourFlags::Router;
        }
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let what = format_args!("add neighbour {address} {mac} to {interface}");
        self.request(what, Message::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Adds a route to the main table. It replaces one to the same destination: IPAM decides whose an address is, so an
    /// older route to it can only be a leftover.
    pub(crate) fn add_route(&mut self, interface: &str, dst: Cidr, via: Via) -> Result<(), NetlinkError> {
        let mut message = route_message(dst.addr());
        message.header.destination_prefix_length = dst.prefix();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(self.index(interface)?));
        if dst.prefix() != 0 {
            message.attributes.push(RouteAttribute::Destination(dst.addr().into()));
        }
        match via {
            Via::Link { source } => {
                message.header.scope = RouteScope::Link;
                message.attributes.push(RouteAttribute::PrefSource(source.into()));
            }
            Via::Gateway(gateway) => message.attributes.push(RouteAttribute::Gateway(gateway.into())),
        }
        let what = format_args!("add route to {dst} on {interface}");
        self.request(what, Message::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// The addresses of an interface.
    pub(crate) fn addresses(&mut self, interface: u32) -> Result<Vec<Cidr>, NetlinkError> {
        let replies = self.request("list addresses", Message::GetAddress(AddressMessage::default()), NLM_F_DUMP)?;
        let to_cidr = |message| match message {
            Message::NewAddress(message) if message.header.index == interface => {
                let local = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                };
                let remote = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                };
                let attributes = &message.attributes;
                let address = attributes.iter().find_map(local).or_else(|| attributes.iter().find_map(remote))?;
                Cidr::new(address, message.header.prefix_len)
            }
            _ => None,
        };
        Ok(replies.into_iter().filter_map(to_cidr).collect())
    }

    /// The unicast routes of the main table, both families.
    pub(crate) fn routes(&mut self) -> Result<Vec<KernelRoute>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let replies = self.request("list routes", Message::GetRoute(route_message(family)), NLM_F_DUMP)?;
            routes.extend(replies.into_iter().filter_map(|message| to_route(message, family)));
        }
        Ok(routes)
    }

    /// The interface that a packet to `address` leaves by; `None` where there is no route.
    pub(crate) fn route_to(&mut self, address: IpAddr) -> Result<Option<Link>, NetlinkError> {
        let mut message = route_message(address);
        message.header.destination_prefix_length = Cidr::host(address).prefix();
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let replies = match self.request(format_args!("look for a route to {address}"), Message::GetRoute(message), 0) {
            Ok(replies) => replies,
            Err(e) if matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let oif = |message: &Message| match message {
            Message::NewRoute(route) if route.header.kind == RouteType::Unicast => oif(route),
            _ => None,
        };
        match replies.iter().find_map(oif) {
            Some(index) => self.link_by_index(index),
            None => Ok(None),
        }
    }

    /// Host routes to addresses behind veth interfaces with our kind of name: what IPAM rebuilds lost leases from.
    pub(crate) fn pod_routes(&mut self) -> Result<Vec<(IpAddr, String)>, NetlinkError> {
        let mut found = Vec::new();
        for route in self.routes()? {
            if route.gateway.is_none()
                && route.dst == Cidr::host(route.dst.addr())
                && let Some(link) = self.link_by_index(route.interface)?
                && link.name.len() == 15
                && link.name.starts_with("veth")
            {
                found.push((route.dst.addr(), link.name));
            }
        }
        Ok(found)
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn route_message(of_family: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of_family);
    message
}

fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn to_link(message: Message) -> Option<Link> {
    let Message::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(LinkFlags::Up);
    let mut link = Link { index: message.header.index, name: String::new(), mac: Vec::new(), mtu: 0, up };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            _ => {}
        }
    }
    Some(link)
}

fn to_route(message: Message, like: IpAddr) -> Option<KernelRoute> {
    let Message::NewRoute(message) = message else { return None };
    if message.header.table != RouteHeader::RT_TABLE_MAIN || message.header.kind != RouteType::Unicast {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let (mut dst, mut gateway) = (Cidr::default_route(like).addr(), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => dst = address(to)?,
            RouteAttribute::Gateway(via) => gateway = address(via),
            _ => {}
        }
    }
    let dst = Cidr::new(dst, message.header.destination_prefix_length)?;
    Some(KernelRoute { dst, gateway, interface: oif(&message)? })
}
