//! What the kernel counts for a cgroup, in the terms of both versions. Files are read when somebody asks; a file that is not
//! there counts as 0 or as no limit, because neither version nor kernel has all of them.
//!
//! Source: "Control Group v2", "Memory Resource Controller" and "CPU Accounting Controller" of the kernel's documentation. What stands for what in
//! the two versions is as in cAdvisor, whose names the figures end up under.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;

mod pressure;
mod v1;
mod v2;

pub use pressure::{Pressure, Waited};

use super::{Backend, Inner};

/// A cgroup, with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// When it was read.
    pub time: Timestamp,
    /// When it was made, as far as its files tell.
    pub created: Option<Timestamp>,
    /// Processor.
    pub cpu: Cpu,
    /// Memory; `None` where the controller is off.
    pub memory: Option<Memory>,
    /// Processes of the cgroup itself, not of what is below it.
    pub processes: Vec<u32>,
    /// Threads that run, and that may; 0 for no limit.
    pub threads: (u64, u64),
    /// Disks that were read or written.
    pub disks: Vec<Disk>,
    /// How long tasks waited for processors, memory and disks.
    pub pressure: [Option<Pressure>; 3],
}

/// Processor time in nanoseconds, and the limits of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of it.
    pub usage: u64,
    /// Spent in user mode.
    pub user: u64,
    /// Spent in the kernel.
    pub system: u64,
    /// Periods of CFS that had something to run, and those in which it had to wait.
    pub periods: (u64, u64),
    /// Time of waiting for the next period.
    pub throttled: u64,
    /// Periods with a burst, and time beyond the quota.
    pub bursts: (u64, u64),
    /// Microseconds of a period.
    pub period: u64,
    /// Microseconds of it that may be used.
    pub quota: Option<u64>,
    /// Shares against siblings, in the terms of v1.
    pub shares: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// In use, caches included.
    pub usage: u64,
    /// In use without files that were not used lately.
    pub working_set: u64,
    /// Anonymous.
    pub rss: u64,
    /// Files.
    pub cache: u64,
    /// Files that are mapped.
    pub mapped: u64,
    /// Files that were used lately, and that were not.
    pub files: (u64, u64),
    /// On swap.
    pub swap: u64,
    /// Of the kernel; 0 on v2.
    pub kernel: u64,
    /// Most that was in use.
    pub peak: u64,
    /// How often it came to its limit; 0 on v2, see `limit_events`.
    pub failures: u64,
    /// Faults, and those that read from disk.
    pub faults: (u64, u64),
    /// How often it was throttled at `memory.high`, and came to `memory.max`.
    pub limit_events: (u64, u64),
    /// Files that are to be written, and that are being written.
    pub dirty: (u64, u64),
    /// Pages that reclaim looked at, and took.
    pub reclaimed: (u64, u64),
    /// Pages of files and anonymous ones that were read again soon.
    pub refaults: (u64, u64),
    /// Limits, where there is a file for them.
    pub limits: Option<Limits>,
}

/// Limits of memory in bytes; `None` for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of memory.
    pub memory: Option<u64>,
    /// Of swap; on v1 of both together.
    pub swap: Option<u64>,
    /// What is kept for it.
    pub reservation: Option<u64>,
}

/// What a disk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes read and written.
    pub bytes: (u64, u64),
    /// Reads and writes.
    pub operations: (u64, u64),
}

impl Inner {
    /// The figures of a cgroup by its path below the mounts; `None` where it does not exist.
    pub(super) fn figures(&self, path: &str) -> Option<Figures> {
        match &self.hierarchies {
            Backend::V1(of) => v1::read(&|controller| of.directory(controller, path)),
            Backend::V2(of) => v2::read(&of.directory(path)),
        }
    }
}

/// A file of a cgroup; empty where there is none.
fn text(directory: &Path, file: &str) -> String {
    std::fs::read_to_string(directory.join(file)).unwrap_or_default()
}

fn number(directory: &Path, file: &str) -> u64 {
    text(directory, file).trim().parse().unwrap_or(0)
}

/// A limit: a number, or `max`. v1 writes its largest number for none (`PAGE_COUNTER_MAX`, 2^63 rounded down to pages).
fn limit(directory: &Path, file: &str) -> Option<u64> {
    text(directory, file).trim().parse().ok().filter(|limit| *limit <= 1 << 62)
}

/// A file of lines with a name and a number.
struct Table(String);

impl Table {
    fn read(directory: &Path, file: &str) -> Self {
        Self(text(directory, file))
    }

    fn get(&self, name: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(found, _)| *found == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
    }

    fn pair(&self, first: &str, second: &str) -> (u64, u64) {
        (self.get(first), self.get(second))
    }
}

fn processes(directory: &Path) -> Vec<u32> {
    text(directory, "cgroup.procs").lines().filter_map(|line| line.parse().ok()).collect()
}

/// When a cgroup was made. A directory changes with what is made in it; the file beside it does not.
fn created(directories: &[PathBuf], file: &str) -> Option<Timestamp> {
    let time = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    let times = directories.iter().flat_map(|directory| [time(directory), time(&directory.join(file))]);
    times.flatten().min().and_then(|time: SystemTime| Timestamp::try_from(time).ok())
}

/// `MAJOR:MINOR` in front of the rest of a line.
fn device(line: &str) -> Option<((u32, u32), &str)> {
    let (numbers, rest) = line.split_once(' ')?;
    let (major, minor) = numbers.split_once(':')?;
    Some(((major.parse().ok()?, minor.parse().ok()?), rest))
}
