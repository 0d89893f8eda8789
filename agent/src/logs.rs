//! Container logs as the runtime writes them.
//!
//! A line of a file is `TIME STREAM TAG TEXT`, where the tag is `F` for a full line and `P` for a part of a longer one.
//! Source: "CRI logging" design of Kubernetes. Files are opened without following symlinks, because a container's own
//! directory is next to them. Following waits for inotify events; a rotation (the file is moved away and a new one appears
//! under its name) is followed to the new file after the old one was read to its end. Only whether the container still runs
//! is asked once a second, and only while somebody follows: a container that ends leaves no event in its log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use tokio::sync::mpsc;

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only so many of the last lines.
    pub tail: Option<usize>,
    /// Put the time in front of each line.
    pub timestamps: bool,
    /// Go on as lines are written.
    pub follow: bool,
    /// Only lines from this time on; `tail` is applied first.
    pub since: Option<Timestamp>,
    /// Only so many bytes.
    pub limit: Option<u64>,
}

/// One line in CRI format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// RFC 3339 time with nanoseconds.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// Whether the line goes on in the next one.
    pub partial: bool,
    /// Text.
    pub text: &'a [u8],
}

/// Takes a line apart; `None` for what is not CRI format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    matches!(stream, "stdout" | "stderr").then_some(Line { time, stream, partial: tag.starts_with(b"P"), text })
}

/// Opens a log file, not through a symlink.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Where the last `lines` lines of a file begin. Reads from the end, 64 KiB at a time.
fn tail_offset(file: &mut File, lines: usize) -> io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let (mut end, mut found) = (length, 0);
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
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

/// Reads whole lines from where a file was left; half a line stays for the next time.
struct Reader {
    path: PathBuf,
    file: File,
    offset: u64,
    printer: Printer,
}

/// Turns lines of the file into what is wanted of them.
struct Printer {
    timestamps: bool,
    /// Lines before this time are left out; forgotten at the first later line, because times only grow.
    since: Option<Timestamp>,
    /// Bytes that may still be printed.
    left: u64,
    /// Whether the line that was printed last goes on in the next one.
    is_inside: bool,
}

impl Printer {
    fn new(options: &Options) -> Self {
        let left = options.limit.unwrap_or(u64::MAX);
        Self { timestamps: options.timestamps, since: options.since, left, is_inside: false }
    }

    fn print(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        match parse(raw) {
            Some(line) if self.is_too_old(&line) => {}
            Some(line) => {
                if self.timestamps && !self.is_inside {
                    out.extend_from_slice(line.time.as_bytes());
                    out.push(b' ');
                }
                out.extend_from_slice(line.text);
                if !line.partial {
                    out.push(b'\n');
                }
                self.is_inside = line.partial;
            }
            // Not ours to drop: what another writer put there is shown as it is.
            None => {
                out.extend_from_slice(raw);
                out.push(b'\n');
            }
        }
        let added = (out.len() - before) as u64;
        if added > self.left {
            out.truncate(before + usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        self.left = self.left.saturating_sub(added);
    }

    fn is_too_old(&mut self, line: &Line<'_>) -> bool {
        let Some(since) = self.since else { return false };
        let is_old = line.time.parse::<Timestamp>().is_ok_and(|time| time < since);
        if !is_old {
            self.since = None;
        }
        is_old
    }
}

impl Reader {
    fn open(path: &Path, options: &Options) -> io::Result<Self> {
        let mut file = open(path)?;
        let offset = match options.tail {
            Some(lines) => tail_offset(&mut file, lines)?,
            None => 0,
        };
        Ok(Self { path: path.to_owned(), file, offset, printer: Printer::new(options) })
    }

    /// Everything that can be read now, up to about 256 KiB; whether anything was read.
    fn next_chunk(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        const CHUNK: usize = 256 * 1024;
        let begin = self.offset;
        self.file.seek(SeekFrom::Start(begin))?;
        let mut reader = BufReader::with_capacity(64 * 1024, &self.file);
        let mut line = Vec::new();
        while out.len() < CHUNK && self.printer.left > 0 {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            self.offset += read as u64;
            line.pop();
            self.printer.print(&line, out);
        }
        Ok(self.offset > begin)
    }

    /// The new file of the same name after a rotation, if there is one.
    fn rotated(&self) -> io::Result<Option<File>> {
        let new = match open(&self.path) {
            Ok(new) => new,
            // Between moving the old file away and making the new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (new_id, old_id) = (new.metadata()?, self.file.metadata()?);
        Ok(((new_id.dev(), new_id.ino()) != (old_id.dev(), old_id.ino())).then_some(new))
    }

    fn go_over_to(&mut self, file: File) {
        (self.file, self.offset) = (file, 0);
    }
}

/// Whether the reader of the log is still there and wants more.
#[derive(PartialEq, Eq)]
enum Demand {
    More,
    Over,
}

/// Sends everything that can be read now.
async fn drain(reader: &mut Reader, tx: &mpsc::Sender<io::Result<Vec<u8>>>) -> io::Result<Demand> {
    loop {
        let mut out = Vec::new();
        let has_read = reader.next_chunk(&mut out)?;
        if !out.is_empty() && tx.send(Ok(out)).await.is_err() || reader.printer.left == 0 {
            return Ok(Demand::Over);
        }
        if !has_read {
            return Ok(Demand::More);
        }
    }
}

/// Reads a log into a channel. With `follow` it ends when the receiver goes away or `ended` says that the container
/// has ended and everything was read.
pub async fn read(
    path: PathBuf,
    options: Options,
    ended: impl Fn() -> bool + Send,
    tx: mpsc::Sender<io::Result<Vec<u8>>>,
) {
    if let Err(error) = pump(&path, &options, ended, &tx).await {
        let text = format!("log file {}: {error}", path.display());
        // The reader may have gone away already.
        let _ = tx.send(Err(io::Error::new(error.kind(), text))).await;
    }
}

async fn pump(
    path: &Path,
    options: &Options,
    ended: impl Fn() -> bool + Send,
    tx: &mpsc::Sender<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    // The watch is set before the first read, so that nothing written in between is missed.
    let mut events = if options.follow {
        let inotify = Inotify::init()?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        inotify
            .watches()
            .add(directory, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF)?;
        Some(inotify.into_event_stream([0; 4096])?)
    } else {
        None
    };
    let mut reader = Reader::open(path, options)?;
    loop {
        // Asked before reading: what was written before the container ended is then read.
        let over = ended();
        if drain(&mut reader, tx).await? == Demand::Over {
            return Ok(());
        }
        let Some(events) = &mut events else { return Ok(()) };
        if let Some(new) = reader.rotated()? {
            // The runtime wrote to the old file until it made the new one, which may be after the last read.
            if drain(&mut reader, tx).await? == Demand::Over {
                return Ok(());
            }
            reader.go_over_to(new);
            continue;
        }
        if over {
            return Ok(());
        }
        tokio::select! {
            () = tx.closed() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            // A container that ends writes nothing more, so its end is asked for.
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
}

pub mod choose;
pub mod kept;
pub mod rotate;

#[cfg(test)]
mod tests;
