//! Hearing when somebody else changes the ruleset.
//!
//! The kernel tells members of its nf_tables group about every object of every commit, several in one datagram. A socket
//! filter drops our own commits inside the kernel, by the port that every message names: a commit of 100,000 elements then
//! does not overflow the buffer. What others write in tables of their own is read and left alone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::Socket;
use netlink_sys::constants::NETLINK_NETFILTER;

use super::decode;
use super::socket::{Buffer, force_buffer};

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFT_MSG_NEWGEN` of nf_tables.
const NEW_GENERATION: u16 = (10 << 8) | 15;

/// A socket that hears of commits.
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Joins the group; commits that come from the socket of port `own` are not heard.
    pub fn open(own: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        attach_filter(&socket, own)?;
        force_buffer(&socket, Buffer::Receive, 1 << 20)?;
        socket.add_membership(GROUP)?;
        Ok(Self { socket })
    }

    /// Waits for the next commit that changes something of a table, or may have done so.
    pub fn wait(&self, table: &str) -> io::Result<()> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let mut objects = decode::messages(&datagram).filter(|(kind, _, _)| *kind != NEW_GENERATION);
                    // Attribute 1 of every object is the name of its table.
                    if objects.any(|(_, _, body)| decode::string(body.get(4..).unwrap_or_default(), 1) == Some(table)) {
                        return Ok(());
                    }
                }
                // Something was missed: that may have been a change, too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Drops what a port has caused.
fn attach_filter(socket: &Socket, own: u32) -> io::Result<()> {
    let instruction = |code: u16, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        instruction(0x20, 0, 0, 12), // load the word at offset 12 of the first message: nlmsg_pid
        // Classic BPF loads in network byte order, the port is in host order: on little-endian its bytes are swapped.
        instruction(0x15, 1, 0, own.to_be()), // equal? then to the last
        instruction(0x06, 0, 0, u32::MAX),
        instruction(0x06, 0, 0, 0),
    ];
    let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: `filter` is a plain C struct; it and the program that it points to outlive the call that reads them.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(&filter).cast::<u8>(), std::mem::size_of::<libc::sock_fprog>())
    };
    set_option(socket.as_raw_fd(), libc::SO_ATTACH_FILTER, bytes)
}

/// `setsockopt` at `SOL_SOCKET` with a value of these bytes.
pub(super) fn set_option(fd: RawFd, option: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes from a live slice of that length, and the descriptor is borrowed from a
    // socket that outlives the call; a wrong descriptor is an error, not undefined.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
