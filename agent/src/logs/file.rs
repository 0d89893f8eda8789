//! Opening a log file and reading whole lines of it, whatever has become of the file.
//!
//! A container that can write to the directory of logs (a hostPath of `/var/log`) can put anything there: a link to
//! `/etc/shadow`, a FIFO that never answers, `/dev/zero`, a file of a terabyte without a byte in it (k/k#81125). So a file is
//! opened beneath the directory of logs, through no link, without waiting; it must be regular and without holes; and a line
//! is held in memory up to [`LONGEST`] bytes. Everything here blocks.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Longest line that is held; a longer one is passed on in pieces as it is. containerd's are 16 KiB at most.
pub(super) const LONGEST: usize = 256 * 1024;
const BUFFER: usize = 16 * 1024;

/// Opens `POD/CONTAINER/N.log` beneath the directory of logs.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let (root, rest) = below_root(path)?;
    open_in(&root, rest)
}

/// Opens `POD/CONTAINER` beneath the directory of logs, given the path of a log in it, and answers that log's name. Whoever
/// renames or removes logs does it through this handle: a path may lead elsewhere by then.
pub(super) fn directory_of(log: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "it is not the path of a log");
    let (name, directory) = (log.file_name().ok_or_else(bad)?, log.parent().ok_or_else(bad)?);
    let (root, rest) = below_root(log)?;
    let rest = rest.parent().filter(|_| rest.file_name() == Some(name)).ok_or_else(bad)?;
    if rest.as_os_str().is_empty() {
        return Ok((File::open(directory)?.into(), name));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat2(&root, rest, flags, Mode::empty(), beneath())?, name))
}

/// Opens a file beneath a directory: regular, without holes, through no link, without waiting.
pub(super) fn open_in(directory: impl AsFd, rest: impl rustix::path::Arg) -> io::Result<File> {
    // Without NONBLOCK a FIFO waits for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat2(directory, rest, flags, Mode::empty(), beneath())?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file; no runtime made it"));
    }
    if meta.len() > 0 && rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).is_ok_and(|hole| hole < meta.len()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has holes; no runtime wrote it"));
    }
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

/// The directory of logs of `POD/CONTAINER/N.log`, and the path below it.
fn below_root(path: &Path) -> io::Result<(File, &Path)> {
    let root = path.ancestors().nth(3).filter(|root| !root.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let rest = path.strip_prefix(root).map_err(io::Error::other)?;
    Ok((File::open(root)?, rest))
}

fn beneath() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// Where the last `lines` lines of a file begin. Reads from the end, 64 KiB at a time, until `is_over`.
pub(super) fn tail_offset(file: &mut File, lines: usize, is_over: impl Fn() -> bool) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let (mut end, mut found) = (length, 0);
    let mut block = Vec::new();
    while end > 0 && !is_over() {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.resize(usize::try_from(end - start).unwrap_or(0), 0);
        file.read_exact(&mut block)?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = start + index as u64;
            // The newline that ends the file begins no line.
            if *byte == b'\n' && at + 1 < length {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

/// What was read of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A line, without its newline.
    Line,
    /// A piece of a line that is too long.
    Part,
    /// Half a line, or nothing: more may come.
    Nothing,
}

/// Reads lines from an offset on.
pub(super) struct Lines<'a> {
    reader: BufReader<&'a File>,
}

impl<'a> Lines<'a> {
    pub(super) fn from(file: &'a mut File, offset: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { reader: BufReader::with_capacity(BUFFER, file) })
    }

    /// The next line into `line`.
    pub(super) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Piece> {
        line.clear();
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(Piece::Nothing);
            }
            let newline = buffer.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(buffer.len(), |at| at + 1);
            line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if newline.is_some() {
                line.pop();
                return Ok(Piece::Line);
            }
            if line.len() >= LONGEST {
                return Ok(Piece::Part);
            }
        }
    }
}
