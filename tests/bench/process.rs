//! Memory and CPU time of a process, as the kernel counts them.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

/// A process to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process(pub(crate) u32);

/// A reading of the CPU time that a process has used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuReading {
    used: Duration,
    at: Instant,
}

impl Process {
    /// Resident memory in MiB.
    pub(crate) fn resident_mib(self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/status", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("{path}: is the process still there?"))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| format!("{path}: no VmRSS"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{path}: VmRSS {line}"))?;
        Ok(kib / 1024.0)
    }

    /// CPU time so far, of all threads.
    pub(crate) fn cpu(self) -> anyhow::Result<CpuReading> {
        let path = format!("/proc/{}/schedstat", self.0);
        let mut used = Duration::ZERO;
        // /proc/PID/schedstat is the main thread alone, in nanoseconds; the ticks of /proc/PID/stat are 10 ms, too coarse.
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).with_context(|| format!("{path}: process gone"))?;
        for task in tasks.flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let nanoseconds = text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
            used += Duration::from_nanos(nanoseconds);
        }
        Ok(CpuReading { used, at: Instant::now() })
    }

    /// CPU time since an earlier reading. Threads that ended since are not counted.
    pub(crate) fn cpu_between(self, earlier: CpuReading) -> anyhow::Result<Duration> {
        Ok(self.cpu()?.used.saturating_sub(earlier.used))
    }

    /// Thousandths of one CPU since an earlier reading, in the same way.
    pub(crate) fn milli_cpu_since(self, earlier: CpuReading) -> anyhow::Result<f64> {
        let used = self.cpu_between(earlier)?.as_secs_f64();
        Ok(1000.0 * used / earlier.at.elapsed().as_secs_f64())
    }
}
