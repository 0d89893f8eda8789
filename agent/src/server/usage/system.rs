//! What the agent, the runtime and all pods together use, from their cgroups: the `systemContainers` of `/stats/summary`.
//!
//! kubelet has `runtime` where `--runtime-cgroups` names it; here it is the cgroup of the process that answers on the runtime's
//! socket. What is in the root cgroup has no figures of its own and is left out.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use tokio::net::UnixStream;

use super::{Cpu, Memory, Pressure, SHARED, Swap, rate};
use crate::cgroup::Cgroups;
use crate::cgroup::figures::{self, Figures};

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemUsage {
    /// `kubelet`, `runtime` or `pods`.
    pub name: &'static str,
    /// When it started.
    pub started: Option<Timestamp>,
    /// Processor.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap.
    pub swap: Option<Swap>,
    /// How long tasks waited for disks.
    pub io: Option<(Timestamp, Pressure)>,
}

/// Where they are.
pub(super) struct Places {
    started: Timestamp,
    /// The runtime's, as long as it exists: a service that starts again has the same.
    runtime: Mutex<Option<String>>,
    /// The last processor times, with the rates between them and those before.
    last: Mutex<BTreeMap<&'static str, Cpu>>,
}

impl Places {
    pub(super) fn new(started: Timestamp) -> Self {
        Self { started, runtime: Mutex::default(), last: Mutex::default() }
    }

    pub(super) async fn measure(&self, cgroups: &Cgroups, socket: &Path) -> Vec<SystemUsage> {
        let places = self.places(cgroups, socket).await;
        let paths = places.iter().map(|(_, path)| path.clone()).collect();
        let found = cgroups.figures(paths).await.unwrap_or_default();
        let figures = |path: &String| found.iter().find(|(found, _)| found == path).map(|(_, figures)| figures);
        let mut all = Vec::new();
        for (name, path) in &places {
            match figures(path) {
                Some(figures) => all.push(system_usage(name, figures, (*name == "kubelet").then_some(self.started))),
                None if *name == "runtime" => *self.runtime() = None,
                None => {}
            }
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        for system in &mut all {
            let known = last.entry(system.name).or_insert(system.cpu);
            *known = followed(*known, system.cpu);
            system.cpu.rate = known.rate;
        }
        all
    }

    /// Names and paths of those that have a cgroup of their own.
    pub(super) async fn places(&self, cgroups: &Cgroups, socket: &Path) -> Vec<(&'static str, String)> {
        let known = self.runtime().clone();
        let runtime = match known {
            Some(path) => Some(path),
            None => process_on(socket).await.and_then(|pid| path_of(cgroups, &pid)),
        };
        self.runtime().clone_from(&runtime);
        let all = [("kubelet", path_of(cgroups, "self")), ("runtime", runtime), ("pods", Some(cgroups.path_of_pods()))];
        all.into_iter().filter_map(|(name, path)| Some((name, path.filter(|path| path != "/")?))).collect()
    }

    fn runtime(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rate since the last measurement. Two that are close together share one.
fn followed(last: Cpu, now: Cpu) -> Cpu {
    if now.time.duration_since(last.time).unsigned_abs() < SHARED {
        return last;
    }
    Cpu { rate: rate((last.total, last.time), (now.total, now.time)), ..now }
}

fn path_of(cgroups: &Cgroups, process: &str) -> Option<String> {
    cgroups.path_of_process(&std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?)
}

/// Who listens on a socket. Under socket activation that is the service manager, which is not what is meant.
async fn process_on(socket: &Path) -> Option<String> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let pid = stream.peer_cred().ok()?.pid().filter(|pid| *pid > 1)?;
    Some(pid.to_string())
}

fn system_usage(name: &'static str, found: &Figures, started: Option<Timestamp>) -> SystemUsage {
    let [cpu, memory, io] = found.pressure;
    SystemUsage {
        name,
        started: started.or(found.created),
        cpu: Cpu { time: found.time, total: found.cpu.usage, rate: None, pressure: cpu },
        memory: found.memory.map(|figures| memory_usage(&figures, found.time, memory)),
        swap: found.memory.map(|memory| Swap { time: found.time, used: memory.swap, available: None }),
        io: io.map(|io| (found.time, io)),
    }
}

fn memory_usage(found: &figures::Memory, time: Timestamp, pressure: Option<Pressure>) -> Memory {
    let limit = found.limits.and_then(|limits| limits.memory);
    Memory {
        time,
        working_set: found.working_set,
        usage: found.usage,
        rss: found.rss,
        available: limit.map(|limit| limit.saturating_sub(found.working_set)),
        faults: found.faults,
        pressure,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_counts_up_to_the_limit_and_is_unknown_without_one() {
        let limits = |memory| Some(figures::Limits { memory, ..figures::Limits::default() });
        let memory =
            |limit| figures::Memory { working_set: 30, usage: 40, limits: limits(limit), ..Default::default() };
        let of = |limit| Figures { memory: Some(memory(limit)), ..Figures::default() };
        let pods = system_usage("pods", &of(Some(100)), None);
        assert_eq!(pods.memory.map(|memory| (memory.working_set, memory.available)), Some((30, Some(70))));
        let agent = system_usage("kubelet", &of(None), Some(Timestamp::UNIX_EPOCH));
        assert_eq!((agent.memory.unwrap().available, agent.started), (None, Some(Timestamp::UNIX_EPOCH)));
    }

    #[test]
    fn measurements_that_are_close_together_share_their_rate() {
        let at = |second, total| Cpu { time: Timestamp::from_second(second).unwrap(), total, ..Cpu::default() };
        let first = at(10, 1_000_000_000);
        assert_eq!(followed(first, first).rate, None);
        let second = followed(first, at(20, 2_000_000_000));
        assert_eq!(second.rate, Some(100_000_000));
        let soon = Cpu { time: second.time + Duration::from_millis(5), total: 2_000_000_001, ..Cpu::default() };
        assert_eq!(followed(second, soon), second);
    }

    #[tokio::test]
    async fn the_runtime_is_who_listens_on_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        assert_eq!(process_on(&socket).await, None);
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(process_on(&socket).await, Some(std::process::id().to_string()));
    }
}
