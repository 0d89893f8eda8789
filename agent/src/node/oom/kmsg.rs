//! The kernel's log: one record a read, waited for without polling.
//!
//! Source: kernel `Documentation/ABI/testing/dev-kmsg`.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// A record is at most this long (`PRINTK_MESSAGE_MAX`).
const LONGEST: usize = 8192;

/// A line of the log.
#[derive(Debug)]
pub(super) struct Record {
    /// Without its head and the values that follow it.
    pub(super) text: String,
    /// Written after the log was opened.
    pub(super) is_new: bool,
}

/// The open log.
pub(super) struct Log {
    fd: AsyncFd<OwnedFd>,
    buffer: Box<[u8; LONGEST]>,
    has_read_all: bool,
    lines: VecDeque<String>,
}

impl Log {
    pub(super) fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/kmsg", flags, Mode::empty())?;
        // SAFETY: `OwnedFd` keeps one open file, gives its number only by shared references, and is dropped with the `AsyncFd`
        // that owns it, after it is deregistered.
        let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }?;
        Ok(Self { fd, buffer: Box::new([0; LONGEST]), has_read_all: false, lines: VecDeque::new() })
    }

    /// The next line, from the oldest that the kernel still has. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Record> {
        loop {
            if let Some(text) = self.lines.pop_front() {
                return Ok(Record { text, is_new: self.has_read_all });
            }
            match rustix::io::read(self.fd.get_ref(), self.buffer.as_mut_slice()) {
                Ok(length) => self.lines.extend(text_of(&self.buffer[..length])),
                // The kernel wrote over records before they were read: the next read goes on with the oldest.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.has_read_all = true;
                    // `poll` of the log tells when there is more; reading again first would only say EAGAIN again.
                    self.fd.readable().await?.clear_ready();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// `6,339,5140900,-;text\n KEY=value\n`: the text is between the first semicolon and the end of the line.
fn text_of(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let (_, text) = record.split_once(';')?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_its_text_without_head_and_values() {
        let record = b"6,339,5140900,-;NET: Registered; family 10\n SUBSYSTEM=net\n DEVICE=n1\n";
        assert_eq!(text_of(record).as_deref(), Some("NET: Registered; family 10"));
        assert_eq!(text_of(b"no head"), None);
    }

    #[tokio::test]
    async fn the_log_is_read_from_its_start_and_what_comes_later_is_new() {
        let mut log = Log::open().expect("tests run as root on a machine with a kernel log");
        let marker = format!("nodelet-test-{}", std::process::id());
        let limit = std::time::Duration::from_secs(20);
        let mut next = async || tokio::time::timeout(limit, log.next()).await.expect("a record in time").unwrap();
        assert!(!next().await.is_new, "the boot is over");
        // Without its end the kernel would wait for the rest of the line.
        std::fs::write("/dev/kmsg", format!("{marker}\n")).expect("root may write to the log");
        while !next().await.text.contains(&marker) {}
    }
}
