//! The nfnetlink socket: commits batches, dumps sets and chains. Blocking; one thread owns it.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::constants::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::batch::Batch;
use super::{Family, NftError, decode};

const ERROR: u16 = 2;
const DONE: u16 = 3;
const DUMP: u16 = 0x300;
const REQUEST: u16 = 1;

/// What can be dumped, with the request's message number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dump<'a> {
    /// Chains of a family: bodies of `NEWCHAIN`.
    Chains,
    /// Rules of a table: bodies of `NEWRULE`.
    Rules(&'a str),
    /// Elements of a set of a table.
    Elements(&'a str, &'a str),
}

/// A socket to nf_tables of the network namespace that it was opened in.
pub struct Kernel {
    socket: Socket,
    send_buffer: usize,
    sequence: u32,
}

impl Kernel {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // Acknowledgements without the message that they answer: an error of a 1 MiB message would not fit otherwise.
        socket.set_cap_ack(true)?;
        let kernel = Self { socket, send_buffer: 0, sequence: 0 };
        // Dumps come in 32 KiB pieces; errors of a refused batch are small. 4 MiB hold more than either ever has.
        force_buffer(&kernel.socket, Buffer::Receive, 4 << 20)?;
        Ok(kernel)
    }

    /// The socket's port id, which the kernel puts into notifications of our own changes.
    pub fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Applies a whole batch or nothing of it.
    pub fn commit(&mut self, batch: &mut Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.last_sequence();
        self.send(batch.finish(), last)
    }

    /// Asks whether a whole batch would be applied; nothing changes.
    pub fn check(&mut self, batch: &mut Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.last_sequence();
        self.send(batch.question(), last)
    }

    /// Sends the messages of a batch, and waits for what comes of them.
    fn send(&mut self, bytes: &[u8], last: u32) -> Result<(), NftError> {
        // A batch is one datagram, which must fit the send buffer (EMSGSIZE otherwise); the kernel counts its own
        // overhead too, so the buffer is twice as large.
        if bytes.len() * 2 > self.send_buffer {
            self.send_buffer = bytes.len() * 2 + (64 << 10);
            force_buffer(&self.socket, Buffer::Send, self.send_buffer)?;
        }
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        let mut first_error = None;
        loop {
            let (datagram, _) = self.receive()?;
            for (kind, sequence, body) in decode::messages(&datagram) {
                if kind != ERROR {
                    continue;
                }
                let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                if code != 0 && first_error.is_none() {
                    let source = io::Error::from_raw_os_error(-code);
                    first_error = Some(NftError::Refused { sequence, source });
                }
                // The acknowledgement of the last message comes after all errors; a refused batch ends with the error
                // of its last message only if that one failed, so anything refused ends the wait once nothing is left.
                if sequence == last {
                    return first_error.map_or(Ok(()), Err);
                }
            }
            if first_error.is_some() && !self.has_more()? {
                return first_error.map_or(Ok(()), Err);
            }
        }
    }

    fn receive(&self) -> io::Result<(Vec<u8>, SocketAddr)> {
        loop {
            match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn has_more(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(poll(&mut fds, Some(&none))? > 0)
    }

    /// Dumps something: folds the bodies of all messages (after `nfgenmsg`). A missing table is an empty dump.
    pub fn dump<T: Default>(
        &mut self,
        family: Family,
        what: Dump<'_>,
        mut fold: impl FnMut(&[u8], &mut T),
    ) -> io::Result<T> {
        again(|| {
            let mut folded = T::default();
            match self.dump_once(family, what, &mut |body| fold(body, &mut folded)) {
                Ok(()) => Ok(folded),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
                Err(error) => Err(error),
            }
        })
    }

    /// Dumps the elements of a set; a missing one has none. `Interrupted` when the ruleset changed meanwhile: then what
    /// was read may stand in it twice, and is worth nothing.
    pub fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        mut each: impl FnMut(&decode::Raw<'_>),
    ) -> io::Result<()> {
        let dumped = self.dump_once(family, Dump::Elements(table, set), &mut |body| {
            decode::elements(body).for_each(|raw| each(&raw));
        });
        dumped.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
    }

    fn dump_once(&mut self, family: Family, what: Dump<'_>, each: &mut impl FnMut(&[u8])) -> io::Result<()> {
        self.sequence += 1;
        let request = request(family, what, self.sequence);
        self.socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.receive()?;
            for (kind, sequence, body) in decode::messages(&datagram) {
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    DONE => {
                        let again = io::ErrorKind::Interrupted.into();
                        return if interrupted { Err(again) } else { Ok(()) };
                    }
                    ERROR => {
                        let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => each(body.get(4..).unwrap_or_default()),
                }
            }
            interrupted |= is_interrupted(&datagram);
        }
    }
}

/// Reads until that was not interrupted by a change of the ruleset, each time from nothing.
pub fn again<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..8 {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "the ruleset changed during each of eight dumps"))
}

/// NLM_F_DUMP_INTR in the flags of the first message.
fn is_interrupted(datagram: &[u8]) -> bool {
    datagram.get(6..8).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes) & 0x10 != 0
}

fn request(family: Family, what: Dump<'_>, sequence: u32) -> Vec<u8> {
    let (message, names): (u16, Vec<&str>) = match what {
        Dump::Chains => (4, vec![]),
        Dump::Rules(table) => (7, vec![table]),
        Dump::Elements(table, set) => (13, vec![table, set]),
    };
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&((10 << 8) | message).to_ne_bytes());
    bytes.extend_from_slice(&(REQUEST | DUMP).to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[family.number(), 0, 0, 0]);
    for (index, name) in names.iter().enumerate() {
        let length = u16::try_from(name.len() + 5).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&u16::try_from(index + 1).unwrap_or(1).to_ne_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Which buffer of a socket.
#[derive(Clone, Copy)]
pub(super) enum Buffer {
    Send,
    Receive,
}

/// Sets a buffer beyond the system's limit; needs CAP_NET_ADMIN, which writing rules needs anyway.
pub(super) fn force_buffer(socket: &Socket, which: Buffer, bytes: usize) -> io::Result<()> {
    let option = match which {
        Buffer::Send => libc::SO_SNDBUFFORCE,
        Buffer::Receive => libc::SO_RCVBUFFORCE,
    };
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    super::listener::set_option(socket.as_raw_fd(), option, &bytes.to_ne_bytes())
}
