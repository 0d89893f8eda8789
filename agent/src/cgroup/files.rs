//! Reading and writing single cgroup files, and emptying and removing cgroup directories: what v1 and v2 share.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Timespec;
use rustix::process::{Pid, PidfdFlags, Signal};

/// How long killed processes may take to leave a cgroup before its removal is given up for now.
const EXIT_DEADLINE: Duration = Duration::from_secs(5);

/// An operation on a cgroup that failed.
#[derive(Debug, thiserror::Error)]
#[error("cgroup: cannot {what} {path}: {source}")]
pub struct FileError {
    /// Such as `write 512 to`.
    pub what: String,
    /// The file or directory.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

impl FileError {
    pub(super) fn new(what: impl Into<String>, path: &Path, source: impl Into<io::Error>) -> Self {
        Self { what: what.into(), path: path.to_owned(), source: source.into() }
    }
}

/// Writes one value.
pub(super) fn write(directory: &Path, file: &str, value: &str) -> Result<(), FileError> {
    let path = directory.join(file);
    // Opened without O_CREAT: a controller that does not offer the file says ENOENT instead of EPERM.
    std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| io::Write::write_all(&mut f, value.as_bytes()))
        .map_err(|e| FileError::new(format!("write {value:?} to"), &path, e))
}

/// Writes one value to a file that not every kernel has.
pub(super) fn write_if_there(directory: &Path, file: &str, value: &str) -> Result<(), FileError> {
    match write(directory, file, value) {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound && directory.exists() => Ok(()),
        other => other,
    }
}

/// Reads one value without the line end.
pub(super) fn read(directory: &Path, file: &str) -> Result<String, FileError> {
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).map_err(|e| FileError::new("read", &path, e))?;
    Ok(text.trim_end().to_owned())
}

/// Creates a directory that may exist already.
pub(super) fn create_directory(path: &Path) -> Result<(), FileError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|e| FileError::new("create", path, e)),
    }
}

/// The directories of a cgroup and everything below it, children first; empty if it does not exist.
pub(super) fn tree(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut found = Vec::new();
    let mut todo = vec![path.to_owned()];
    while let Some(directory) = todo.pop() {
        match std::fs::read_dir(&directory) {
            Ok(entries) => {
                let children = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
                todo.extend(children.map(|e| e.path()));
                found.push(directory);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::new("list", &directory, error)),
        }
    }
    found.reverse();
    Ok(found)
}

/// Kills what runs in the directories and waits until it is gone. Each process is held by a pidfd from before the
/// check that it belongs here, so that a reused PID cannot be hit.
pub(super) fn kill_all(directories: &[PathBuf]) -> Result<(), FileError> {
    let deadline = Instant::now() + EXIT_DEADLINE;
    loop {
        let listed = processes(directories);
        let held: Vec<(Pid, OwnedFd)> = listed
            .iter()
            .filter_map(|pid| Some((*pid, rustix::process::pidfd_open(*pid, PidfdFlags::empty()).ok()?)))
            .collect();
        let still_here = processes(directories);
        if still_here.is_empty() {
            return Ok(());
        }
        for (_, pidfd) in held.iter().filter(|(pid, _)| still_here.contains(pid)) {
            // ESRCH: it exited by itself.
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
        if Instant::now() >= deadline {
            let path = directories.last().map(PathBuf::as_path).unwrap_or(Path::new(""));
            let error = io::Error::new(io::ErrorKind::TimedOut, format!("processes {still_here:?} do not exit"));
            return Err(FileError::new("empty", path, error));
        }
        wait_for_exit(&held, deadline);
    }
}

fn wait_for_exit(held: &[(Pid, OwnedFd)], deadline: Instant) {
    for (_, pidfd) in held {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // An error or a timeout ends the wait; the caller looks again and decides.
        let _ = rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout));
    }
}

fn processes(directories: &[PathBuf]) -> HashSet<Pid> {
    let mut found = HashSet::new();
    for directory in directories {
        let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    }
    found
}

/// Removes directories, children first. A process that was just killed keeps its cgroup busy until it is reaped, so
/// EBUSY is waited out.
pub(super) fn remove_all(directories: &[PathBuf]) -> Result<(), FileError> {
    let deadline = Instant::now() + EXIT_DEADLINE;
    for directory in directories {
        loop {
            match std::fs::remove_dir(directory) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(FileError::new("remove", directory, error)),
            }
        }
    }
    Ok(())
}
