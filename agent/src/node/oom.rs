//! What the kernel killed for want of memory: read from its log, counted by container, and told where the node itself was short.
//!
//! ```text
//!  /dev/kmsg ── kmsg (edge) ── records ──► Parser (pure) ──► Kill ──┬─► counts ──► container_oom_events_total
//!                                                                   └─► Event SystemOOM, where no cgroup's limit was the cause
//! ```
//! A kill for a cgroup's own limit is no event of the node: the container's status says `OOMKilled`. The log holds what
//! happened since the boot. All of it is counted, so that counters go on after a restart of the agent; events are made only
//! of what happens from then on.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::event::{Event, EventType, Recorder, Subject};

mod kmsg;

/// A process that the kernel killed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kill {
    /// Process id; 0 if the kernel did not say.
    pub pid: i64,
    /// Name of the process.
    pub process: String,
    /// The cgroup of the process.
    pub cgroup: String,
    /// The cgroup whose limit was reached; `None` where the machine's memory was.
    pub limited: Option<String>,
}

impl Kill {
    /// Message of the node's event, in kubelet's words; `None` where a container's limit was the cause.
    fn message(&self) -> Option<String> {
        if self.limited.is_some() {
            return None;
        }
        let victim = format!(", victim process: {}, pid: {}", self.process, self.pid);
        let is_known = !self.process.is_empty() && self.pid != 0;
        Some(format!("System OOM encountered{}", if is_known { victim.as_str() } else { "" }))
    }
}

/// Finds kills in the kernel's log, line by line. Pure.
#[derive(Debug, Default)]
pub struct Parser {
    /// What was said since a process asked for memory in vain; `None` before.
    open: Option<Kill>,
}

impl Parser {
    /// Takes in a line; answers a kill when it is complete.
    pub fn take(&mut self, line: &str) -> Option<Kill> {
        if line.contains("invoked oom-killer:") {
            self.open = Some(Kill::default());
            return None;
        }
        let kill = self.open.as_mut()?;
        // Since Linux 4.20 one line says it all.
        if let Some((_, fields)) = line.split_once("oom-kill:constraint=") {
            read_fields(kill, fields);
            return self.open.take();
        }
        // Before, and only for limits of cgroups: whose, then which process.
        if let Some((cgroup, limited)) = old_line(line) {
            (kill.cgroup, kill.limited) = (cgroup.to_owned(), Some(limited.to_owned()));
        }
        let (pid, name) = killed(line)?;
        (kill.pid, kill.process) = (pid, name.to_owned());
        self.open.take()
    }
}

/// `CONSTRAINT_MEMCG,nodemask=..,oom_memcg=/a,task_memcg=/a/b,task=NAME,pid=1,uid=0`; `global_oom` in the place of `oom_memcg`
/// where no limit was the cause. Names may have commas, so that each field ends where the next is known to begin.
fn read_fields(kill: &mut Kill, fields: &str) {
    let between = |from: &str, to: &str| {
        let (_, rest) = fields.split_once(from)?;
        Some(rest.rsplit_once(to)?.0.to_owned())
    };
    kill.limited = between(",oom_memcg=", ",task_memcg=");
    kill.cgroup = between(",task_memcg=", ",task=").unwrap_or_default();
    kill.process = between(",task=", ",pid=").unwrap_or_default();
    kill.pid = between(",pid=", ",uid=").and_then(|pid| pid.parse().ok()).unwrap_or_default();
}

/// `Task in /a/b killed as a result of limit of /a`.
fn old_line(line: &str) -> Option<(&str, &str)> {
    line.split_once("Task in ")?.1.split_once(" killed as a result of limit of ")
}

/// `Killed process 123 (name) total-vm:...`.
fn killed(line: &str) -> Option<(i64, &str)> {
    let (pid, rest) = line.split_once("Killed process ")?.1.split_once(" (")?;
    Some((pid.parse().ok()?, rest.rsplit_once(')')?.0))
}

/// Kills by container id.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<String, u64>>);

/// More containers than this are not counted apart; those that are gone make room when the figures are read.
const MOST: usize = 10_000;

/// What was counted in this process.
pub static COUNTS: Counts = Counts(Mutex::new(BTreeMap::new()));

impl Counts {
    fn add(&self, kill: &Kill) {
        let Some(id) = container_id(&kill.cgroup) else { return };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() < MOST || counts.contains_key(id) {
            *counts.entry(id.to_owned()).or_insert(0) += 1;
        }
    }

    /// Kills in a container.
    pub fn of(&self, id: &str) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied().unwrap_or(0)
    }

    /// Forgets containers that are gone. Those of other runtimes on the machine look the same in the kernel's log.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= MOST / 2 {
            counts.retain(|id, _| is_there(id));
        }
    }
}

/// The id of a container in the path of its cgroup or of one that it made itself: `.../podUID/ID` or
/// `.../cri-containerd-ID.scope`.
fn container_id(cgroup: &str) -> Option<&str> {
    let is_id = |text: &&str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let names = cgroup.split('/').map(|name| name.strip_suffix(".scope").unwrap_or(name));
    names.map(|name| name.rsplit('-').next().unwrap_or(name)).find(is_id)
}

/// Follows the kernel's log until shutdown. Where it cannot be opened (inside of a container), nothing is counted.
pub async fn run(recorder: Recorder, shutdown: CancellationToken) {
    let mut log = match kmsg::Log::open() {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%error, "cannot read /dev/kmsg; kills for want of memory are seen in the status of containers only");
            return;
        }
    };
    let mut parser = Parser::default();
    loop {
        let record = tokio::select! {
            () = shutdown.cancelled() => return,
            record = log.next() => record,
        };
        match record {
            Ok(record) => {
                if let Some(kill) = parser.take(&record.text) {
                    take(&kill, record.is_new, &recorder);
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot read /dev/kmsg any longer; kills for want of memory are not counted");
                return;
            }
        }
    }
}

fn take(kill: &Kill, is_new: bool, recorder: &Recorder) {
    COUNTS.add(kill);
    if let Some(message) = kill.message().filter(|_| is_new) {
        recorder.emit(Event { subject: Subject::Node, kind: EventType::Warning, reason: "SystemOOM", message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn kills(log: &str) -> Vec<Kill> {
        let mut parser = Parser::default();
        log.lines().filter_map(|line| parser.take(line)).collect()
    }

    /// Linux 6.18.
    fn limited() -> String {
        format!(
            "tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=999\n\
             Memory cgroup out of memory: usage\n\
             oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={ID},mems_allowed=0,\
             oom_memcg=/kubepods/burstable/podu/{ID},task_memcg=/kubepods/burstable/podu/{ID},task=tail,pid=4711,uid=0\n\
             Memory cgroup out of memory: Killed process 4711 (tail) total-vm:100kB, anon-rss:50kB\n"
        )
    }

    #[test]
    fn a_kill_for_a_containers_limit_is_counted_and_no_event_of_the_node() {
        let all = kills(&(limited() + &limited()));
        assert_eq!(all.len(), 2, "the line after says the same once more");
        let cgroup = format!("/kubepods/burstable/podu/{ID}");
        let expected = Kill { pid: 4711, process: "tail".into(), cgroup: cgroup.clone(), limited: Some(cgroup) };
        assert_eq!(all[0], expected);
        assert_eq!(all[0].message(), None);
        let counts = Counts::default();
        all.iter().for_each(|kill| counts.add(kill));
        assert_eq!((counts.of(ID), counts.of("other")), (2, 0));
    }

    #[test]
    fn a_node_without_memory_is_told_with_the_victim() {
        let log = "java invoked oom-killer: gfp_mask=0x6200ca\n\
                   oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
                   task_memcg=/system.slice/x.service,task=a, b,pid=12,uid=1000\n\
                   Out of memory: Killed process 12 (a, b) total-vm:1kB\n";
        let all = kills(log);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].message().unwrap(), "System OOM encountered, victim process: a, b, pid: 12");
        assert_eq!(all[0].cgroup, "/system.slice/x.service");
        let unnamed = Kill { limited: None, ..Kill::default() };
        assert_eq!(unnamed.message().unwrap(), "System OOM encountered");
    }

    #[test]
    fn old_kernels_say_it_in_two_lines() {
        let log = "x invoked oom-killer: gfp_mask=0xd0\n\
                   Task in /kubepods/pod1/a killed as a result of limit of /kubepods/pod1\n\
                   Memory cgroup out of memory: Kill process 7 (sh) score 1\n\
                   Killed process 7 (s(h) total-vm:1kB\n\
                   y invoked oom-killer: gfp_mask=0xd0\n\
                   Killed process 8 (y) total-vm:1kB\n";
        let all = kills(log);
        let limited = Kill {
            pid: 7,
            process: "s(h".into(),
            cgroup: "/kubepods/pod1/a".into(),
            limited: Some("/kubepods/pod1".into()),
        };
        assert_eq!(all, [limited, Kill { pid: 8, process: "y".into(), ..Kill::default() }]);
        assert!(all[1].message().is_some());
    }

    #[test]
    fn what_is_written_without_a_kill_is_nothing() {
        assert_eq!(kills("Killed process 1 (init)\noom-kill:constraint=CONSTRAINT_NONE\nhello\n"), []);
    }

    #[test]
    fn containers_are_known_by_the_id_in_their_path() {
        let paths = [
            format!("/kubepods/besteffort/pod1-2/{ID}"),
            format!("/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope"),
            format!("/kubepods.slice/kubepods-pod1_2.slice/crio-{ID}.scope/init.scope"),
        ];
        for path in paths {
            assert_eq!(container_id(&path), Some(ID), "{path}");
        }
        assert_eq!(container_id("/system.slice/ssh.service"), None);
    }

    #[test]
    fn only_what_happens_from_now_on_becomes_an_event() {
        let (recorder, mut events) = Recorder::new();
        let kill = Kill { pid: 1, process: "x".into(), ..Kill::default() };
        take(&kill, false, &recorder);
        assert!(events.try_recv().is_err(), "it was told when it happened");
        take(&kill, true, &recorder);
        let event = events.try_recv().unwrap();
        assert_eq!((event.reason, event.subject), ("SystemOOM", Subject::Node));
    }
}
