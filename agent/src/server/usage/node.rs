//! What the machine as a whole uses: `/proc` and the file systems.

use std::path::Path;

use jiff::Timestamp;

use super::{Cpu, FileSystem, Interface, Memory, NodeUsage, Pressure, Swap};

pub(in crate::server) fn file_system(path: &Path) -> FileSystem {
    let Ok(found) = rustix::fs::statvfs(path) else { return FileSystem::default() };
    let size = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    FileSystem {
        capacity: size(found.f_blocks),
        available: size(found.f_bavail),
        used: size(found.f_blocks.saturating_sub(found.f_bfree)),
        inodes: found.f_files,
        inodes_free: found.f_ffree,
    }
}

pub(super) fn read_node(root_dir: &Path) -> NodeUsage {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let now = Timestamp::now();
    let files = NodeFiles {
        stat: text("/proc/stat"),
        meminfo: text("/proc/meminfo"),
        vmstat: text("/proc/vmstat"),
        net: text("/proc/net/dev"),
        route: text("/proc/net/route"),
        loadavg: text("/proc/loadavg"),
        pid_max: text("/proc/sys/kernel/pid_max"),
        pressure: ["cpu", "memory", "io"].map(|resource| text(&format!("/proc/pressure/{resource}"))),
    };
    NodeUsage { root: file_system(root_dir), ..node_of(&files, now) }
}

/// What `/proc` says, as text.
#[derive(Default)]
struct NodeFiles {
    stat: String,
    meminfo: String,
    vmstat: String,
    net: String,
    route: String,
    loadavg: String,
    pid_max: String,
    /// Of processors, memory and disks; empty where the kernel does not measure it.
    pressure: [String; 3],
}

fn node_of(files: &NodeFiles, now: Timestamp) -> NodeUsage {
    // user, nice, system, irq, softirq and steal, in hundredths of a second; idle and iowait are no work.
    let ticks: Vec<u64> = files
        .stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum();
    let boot = field(&files.stat, "btime").and_then(|seconds| i64::try_from(seconds).ok());
    let kib = |name| field(&files.meminfo, name).unwrap_or(0) * 1024;
    let (total, free) = (kib("MemTotal:"), kib("MemFree:"));
    // The root cgroup's working set: what is in use without the inactive part of the page cache.
    let usage = total.saturating_sub(free);
    let working_set = usage.saturating_sub(kib("Inactive(file):"));
    let faults = (field(&files.vmstat, "pgfault").unwrap_or(0), field(&files.vmstat, "pgmajfault").unwrap_or(0));
    let processes = files.loadavg.split_whitespace().nth(3).and_then(|both| both.split_once('/')?.1.parse().ok());
    NodeUsage {
        started: boot.and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or_default(),
        cpu: Cpu { time: now, total: busy * 10_000_000, rate: None, pressure: Pressure::parse(&files.pressure[0]) },
        memory: Memory {
            time: now,
            working_set,
            usage,
            rss: kib("AnonPages:"),
            available: Some(total.saturating_sub(working_set)),
            faults,
            pressure: Pressure::parse(&files.pressure[1]),
        },
        io: Pressure::parse(&files.pressure[2]).map(|io| (now, io)),
        swap: swap(kib("SwapTotal:"), kib("SwapFree:"), now),
        network: interfaces(&files.net, &files.route),
        processes: (files.pid_max.trim().parse().unwrap_or(0), processes.unwrap_or(0)),
        cpus: files.stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count(),
        ..NodeUsage::default()
    }
}

fn swap(total: u64, free: u64, time: Timestamp) -> Option<Swap> {
    (total > 0).then(|| Swap { time, used: total.saturating_sub(free), available: Some(free) })
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Interfaces but the loopback and those of pods; that of the default route first.
fn interfaces(net: &str, route: &str) -> Vec<Interface> {
    let is_default = |line: &&str| line.split_whitespace().nth(1) == Some("00000000");
    let default = route.lines().find(is_default).and_then(|line| line.split_whitespace().next()).unwrap_or_default();
    let mut found: Vec<Interface> = net
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let name = name.trim();
            let numbers: Vec<u64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let is_of_pods =
                ["lo", "veth", "cali", "lxc", "docker", "cni"].iter().any(|prefix| name.starts_with(prefix));
            (numbers.len() >= 16 && !is_of_pods).then(|| Interface {
                name: name.to_owned(),
                received: (numbers[0], numbers[2]),
                sent: (numbers[8], numbers[10]),
            })
        })
        .collect();
    found.sort_by_key(|interface| interface.name != default);
    found
}

#[cfg(test)]
mod tests {
    use super::super::Waited;
    use super::*;

    #[test]
    fn the_node_is_read_from_proc() {
        let files = NodeFiles {
            stat: "cpu  100 0 50 9999 7 1 2 3 0 0\ncpu0 1\ncpu1 1\nbtime 1700000000\n".into(),
            meminfo: "MemTotal: 1000 kB\nMemFree: 400 kB\nInactive(file): 100 kB\nAnonPages: 200 kB\n".into(),
            vmstat: "pgfault 7\npgmajfault 2\n".into(),
            net: "h\nh\n  lo: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n eth1: 5 0 1 0 0 0 0 0 6 0 2 0 0 0 0 0\n eth0: 3 0 0 0 0 0 0 0 4 0 0 0 0 0 0 0\n".into(),
            route: "Iface Destination\neth0 00000000 x\n".into(),
            loadavg: "0.1 0.1 0.1 1/77 99".into(),
            pid_max: "4194304\n".into(),
            pressure: [
                "some avg10=1.25 avg60=0.07 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n".into(),
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n".into(),
                String::new(),
            ],
        };
        let node = node_of(&files, Timestamp::UNIX_EPOCH);
        assert_eq!((node.cpu.total, node.cpus), (156 * 10_000_000, 2));
        assert_eq!((node.memory.working_set, node.memory.usage), (500 * 1024, 600 * 1024));
        let waited = |total, average| Waited { total, average };
        let cpu = Pressure { some: waited(42_000, [125, 7, 0]), full: waited(7000, [0; 3]) };
        assert_eq!((node.cpu.pressure, node.io), (Some(cpu), None));
        assert_eq!(node.memory.pressure.map(|memory| memory.some.total), Some(1000));
        assert_eq!(node.processes, (4_194_304, 77));
        let names: Vec<_> = node.network.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1"]);
    }
}
