//! Container logs as the runtime writes them.
//!
//! A line of a file is `TIME STREAM TAG TEXT`, where the tag is `F` for a full line and `P` for a part of a longer one.
//! Source: "CRI logging" design of Kubernetes. What a file may be, and how it is read, is in [`file`]; reading runs on threads
//! that may block, 16 KiB at a time, so that a slow disk or a huge file holds up nobody else. Following waits for inotify events; a rotation (the file is moved away and a new one appears
//! under its name) is followed to the new file after the old one was read to its end. Only whether the container still runs
//! is asked once a second, and only while somebody follows: a container that ends leaves no event in its log.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use file::{Lines, Piece};

/// Bytes that are printed at a time: a reader that does not read costs about three times as much.
const CHUNK: usize = 16 * 1024;
/// Bytes of the file that are read at a time, also when nothing of them is wanted.
const MOST_READ: u64 = 4 << 20;
/// Logs that are followed by inotify. The kernel gives a user 128 instances, which sources of pods need, too.
static WATCHES: Semaphore = Semaphore::const_new(48);

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

    /// A piece of a line that is too long to be one of a runtime's.
    fn print_part(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(raw.len());
        out.extend_from_slice(&raw[..most]);
        self.left -= most as u64;
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
    fn open(path: &Path, options: &Options, is_over: impl Fn() -> bool) -> io::Result<Self> {
        let mut file = file::open(path)?;
        let offset = match options.tail {
            Some(lines) => file::tail_offset(&mut file, lines, is_over)?,
            None => 0,
        };
        Ok(Self { path: path.to_owned(), file, offset, printer: Printer::new(options) })
    }

    /// What can be read now, up to about [`CHUNK`] bytes and a line; whether anything was read.
    fn next_chunk(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let begin = self.offset;
        let mut lines = Lines::from(&mut self.file, begin)?;
        let mut line = Vec::new();
        while out.len() < CHUNK && self.offset - begin < MOST_READ && self.printer.left > 0 {
            match lines.next(&mut line)? {
                Piece::Line => {
                    self.offset += line.len() as u64 + 1;
                    self.printer.print(&line, out);
                }
                Piece::Part => {
                    self.offset += line.len() as u64;
                    self.printer.print_part(&line, out);
                }
                Piece::Nothing => break,
            }
        }
        Ok(self.offset > begin)
    }

    /// The new file of the same name after a rotation, if there is one.
    fn rotated(&self) -> io::Result<Option<File>> {
        let new = match file::open(&self.path) {
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

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Whether the reader of the log is still there and wants more.
#[derive(PartialEq, Eq)]
enum Demand {
    More,
    Over,
}

/// Sends everything that can be read now.
async fn drain(mut reader: Reader, tx: &mpsc::Sender<io::Result<Vec<u8>>>) -> io::Result<(Reader, Demand)> {
    loop {
        let (back, out, has_read) = blocking(move || {
            let mut out = Vec::new();
            let has_read = reader.next_chunk(&mut out)?;
            Ok((reader, out, has_read))
        })
        .await?;
        reader = back;
        let is_unwanted = match out.is_empty() {
            true => tx.is_closed(),
            false => tx.send(Ok(out)).await.is_err(),
        };
        if is_unwanted || reader.printer.left == 0 {
            return Ok((reader, Demand::Over));
        }
        if !has_read {
            return Ok((reader, Demand::More));
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
    let mut events = if options.follow { watch(path)? } else { None };
    let (at, wanted, asker) = (path.to_owned(), options.clone(), tx.clone());
    let mut reader = blocking(move || Reader::open(&at, &wanted, || asker.is_closed())).await?;
    loop {
        // Asked before reading: what was written before the container ended is then read.
        let over = ended();
        let demand;
        (reader, demand) = drain(reader, tx).await?;
        if demand == Demand::Over || !options.follow {
            return Ok(());
        }
        let (back, new) = blocking(move || {
            let new = reader.rotated();
            Ok((reader, new))
        })
        .await?;
        reader = back;
        if let Some(new) = new? {
            // The runtime wrote to the old file until it made the new one, which may be after the last read.
            let demand;
            (reader, demand) = drain(reader, tx).await?;
            if demand == Demand::Over {
                return Ok(());
            }
            reader.go_over_to(new);
            continue;
        }
        if over {
            return Ok(());
        }
        let changed = async {
            match &mut events {
                Some((events, _)) => events.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tx.closed() => return Ok(()),
            event = changed => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            // A container that ends writes nothing more, so its end is asked for.
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
        }
    }
}

type Events = (inotify::EventStream<[u8; 1024]>, tokio::sync::SemaphorePermit<'static>);

/// Events of a log's directory; `None` when too many logs are followed, and then the file is looked at once a second.
fn watch(path: &Path) -> io::Result<Option<Events>> {
    let Ok(permit) = WATCHES.try_acquire() else { return Ok(None) };
    let inotify = Inotify::init()?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF;
    inotify.watches().add(directory, mask)?;
    Ok(Some((inotify.into_event_stream([0; 1024])?, permit)))
}

pub mod choose;
pub(crate) mod file;
pub mod kept;
pub mod rotate;

#[cfg(test)]
mod tests;
