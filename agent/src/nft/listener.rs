//! Hearing when somebody else changes the ruleset.
//!
//! The kernel tells members of its nf_tables group about every object of every commit. Only the last message of a commit,
//! the new generation, is of interest here, so a socket filter drops the rest inside the kernel: a commit of 100,000
//! elements then leaves one message in the buffer instead of overflowing it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::Socket;
use netlink_sys::constants::NETLINK_NETFILTER;

use super::decode;

/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
/// `NFT_MSG_NEWGEN` of nf_tables.
const NEW_GENERATION: u16 = (10 << 8) | 15;

/// A socket that hears of commits.
pub struct Listener {
    socket: Socket,
}

impl Listener {
    /// Joins the group.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        attach_filter(&socket)?;
        socket.add_membership(GROUP)?;
        Ok(Self { socket })
    }

    /// Waits for the next commit; answers the process id that made it.
    pub fn wait(&self) -> io::Result<u32> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => {
                    let mut commits = decode::messages(&datagram).filter(|(kind, _, _)| *kind == NEW_GENERATION);
                    if let Some((_, _, body)) = commits.next() {
                        // NFTA_GEN_PROC_PID is 2.
                        let pid = decode::attribute(body.get(4..).unwrap_or_default(), 2);
                        return Ok(pid.and_then(|p| p.try_into().ok()).map_or(0, u32::from_be_bytes));
                    }
                }
                // Something was missed: that is a change, too.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Passes only messages whose type is the new generation.
fn attach_filter(socket: &Socket) -> io::Result<()> {
    // Classic BPF loads in network byte order, the type is in host order: on little-endian its bytes are swapped.
    let wanted = u32::from(NEW_GENERATION.to_be());
    let instruction = |code: u16, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        instruction(0x28, 0, 0, 4),      // load half word at offset 4 of the message: nlmsg_type
        instruction(0x15, 0, 1, wanted), // equal?
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
