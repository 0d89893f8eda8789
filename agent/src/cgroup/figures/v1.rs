//! Figures of cgroup v1: a directory in the hierarchy of each controller.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Cpu, Disk, Figures, Limits, Memory, Table, created, device, limit, number, processes, text};

/// Nanoseconds of a tick of `cpuacct.stat` (`USER_HZ` is 100 on all architectures with cgroups).
const TICK: u64 = 10_000_000;

/// `of` is the directory in a controller's hierarchy.
pub(super) fn read(of: &dyn Fn(&str) -> Option<PathBuf>) -> Option<Figures> {
    const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];
    let found = |controller: &str| of(controller).filter(|directory| directory.is_dir());
    let mut directories: Vec<PathBuf> = CONTROLLERS.into_iter().filter_map(found).collect();
    directories.dedup();
    let first = directories.first()?.clone();
    let pids = found("pids");
    let threads = |directory: PathBuf| (number(&directory, "pids.current"), limit(&directory, "pids.max").unwrap_or(0));
    Some(Figures {
        time: Timestamp::now(),
        created: created(&directories, "cgroup.clone_children"),
        cpu: cpu(found("cpu").as_deref(), found("cpuacct").as_deref()),
        memory: found("memory").map(|directory| memory(&directory)),
        processes: processes(&first),
        threads: pids.map(threads).unwrap_or_default(),
        disks: found("blkio").map(|directory| disks(&directory)).unwrap_or_default(),
        pressure: [None; 3],
    })
}

fn cpu(cpu: Option<&Path>, accounting: Option<&Path>) -> Cpu {
    let mut found = Cpu::default();
    if let Some(directory) = accounting {
        let stat = Table::read(directory, "cpuacct.stat");
        found.usage = number(directory, "cpuacct.usage");
        (found.user, found.system) = (stat.get("user") * TICK, stat.get("system") * TICK);
    }
    if let Some(directory) = cpu {
        let stat = Table::read(directory, "cpu.stat");
        found.periods = stat.pair("nr_periods", "nr_throttled");
        found.throttled = stat.get("throttled_time");
        // Since Linux 5.15.
        found.bursts = stat.pair("nr_bursts", "burst_time");
        found.period = number(directory, "cpu.cfs_period_us");
        // -1 is no quota.
        found.quota = text(directory, "cpu.cfs_quota_us").trim().parse().ok();
        found.shares = number(directory, "cpu.shares");
    }
    found
}

fn memory(directory: &Path) -> Memory {
    let stat = Table::read(directory, "memory.stat");
    let usage = number(directory, "memory.usage_in_bytes");
    // Those that begin with "total" are with everything below.
    let prefix = if number(directory, "memory.use_hierarchy") == 1 { "total_" } else { "" };
    let get = |name: &str| stat.get(&format!("{prefix}{name}"));
    let files = stat.pair("total_active_file", "total_inactive_file");
    Memory {
        usage,
        working_set: usage.saturating_sub(files.1),
        rss: get("rss"),
        cache: get("cache"),
        mapped: get("mapped_file"),
        files,
        swap: get("swap"),
        kernel: number(directory, "memory.kmem.usage_in_bytes"),
        peak: number(directory, "memory.max_usage_in_bytes"),
        failures: number(directory, "memory.failcnt"),
        faults: stat.pair("pgfault", "pgmajfault"),
        limits: Some(Limits {
            memory: limit(directory, "memory.limit_in_bytes"),
            swap: limit(directory, "memory.memsw.limit_in_bytes"),
            reservation: limit(directory, "memory.soft_limit_in_bytes"),
        }),
        ..Memory::default()
    }
}

/// What the first file that has anything says: which one depends on the scheduler of the disks.
fn disks(directory: &Path) -> Vec<Disk> {
    const FILES: [(&str, &str); 3] = [
        ("blkio.bfq.io_service_bytes_recursive", "blkio.bfq.io_serviced_recursive"),
        ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
        ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced"),
    ];
    let read = |(bytes, operations): (&str, &str)| {
        let mut all: BTreeMap<(u32, u32), Disk> = BTreeMap::new();
        for (device, operation, value) in text(directory, bytes).lines().filter_map(entry) {
            let disk = all.entry(device).or_insert(Disk { device, ..Disk::default() });
            add(&mut disk.bytes, operation, value);
        }
        for (device, operation, value) in text(directory, operations).lines().filter_map(entry) {
            let disk = all.entry(device).or_insert(Disk { device, ..Disk::default() });
            add(&mut disk.operations, operation, value);
        }
        all.into_values().collect::<Vec<_>>()
    };
    FILES.into_iter().map(read).find(|disks| !disks.is_empty()).unwrap_or_default()
}

/// `8:0 Read 4096`; the last line, `Total 4096`, is none.
fn entry(line: &str) -> Option<((u32, u32), &str, u64)> {
    let (device, rest) = device(line)?;
    let (operation, value) = rest.split_once(' ')?;
    Some((device, operation, value.trim().parse().ok()?))
}

fn add(to: &mut (u64, u64), operation: &str, value: u64) {
    match operation {
        "Read" => to.0 += value,
        "Write" => to.1 += value,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_comes_from_the_hierarchy_of_its_controller() {
        let mount = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("cpu/cgroup.procs", "42\n43\n"),
            ("cpu/cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_time 500\nnr_bursts 1\nburst_time 8\n"),
            ("cpu/cpu.cfs_quota_us", "50000\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpu/cpu.shares", "512\n"),
            ("cpuacct/cpuacct.usage", "7000000\n"),
            ("cpuacct/cpuacct.stat", "user 3\nsystem 4\n"),
            (
                "memory/memory.stat",
                "cache 1\nrss 1\ntotal_cache 50\ntotal_rss 100\ntotal_mapped_file 20\ntotal_swap 12\ntotal_active_file 30\ntotal_inactive_file 15\npgfault 11\npgmajfault 2\n",
            ),
            ("memory/memory.use_hierarchy", "1\n"),
            ("memory/memory.usage_in_bytes", "200\n"),
            ("memory/memory.max_usage_in_bytes", "300\n"),
            ("memory/memory.failcnt", "6\n"),
            ("memory/memory.kmem.usage_in_bytes", "8\n"),
            ("memory/memory.limit_in_bytes", "4096\n"),
            ("memory/memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("memory/memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("pids/pids.current", "5\n"),
            ("pids/pids.max", "max\n"),
            ("blkio/blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
            (
                "blkio/blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Total 3\nTotal 3\n",
            ),
            ("blkio/blkio.throttle.io_serviced_recursive", "8:0 Read 3\n8:0 Write 4\nTotal 7\n"),
        ] {
            let path = mount.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = read(&|controller| Some(mount.path().join(controller))).unwrap();
        let cpu = Cpu {
            usage: 7_000_000,
            user: 30_000_000,
            system: 40_000_000,
            periods: (9, 2),
            throttled: 500,
            bursts: (1, 8),
            period: 100_000,
            quota: Some(50_000),
            shares: 512,
        };
        assert_eq!(found.cpu, cpu);
        let memory = found.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set, memory.rss, memory.cache), (200, 185, 100, 50));
        assert_eq!((memory.mapped, memory.swap, memory.kernel, memory.peak, memory.failures), (20, 12, 8, 300, 6));
        assert_eq!((memory.faults, memory.files), ((11, 2), (30, 15)));
        assert_eq!(memory.limits, Some(Limits { memory: Some(4096), swap: None, reservation: None }));
        assert_eq!((found.processes, found.threads), (vec![42, 43], (5, 0)));
        assert_eq!(found.disks, [Disk { device: (8, 0), bytes: (1, 2), operations: (3, 4) }]);
    }

    #[test]
    fn no_quota_is_minus_one_and_a_cgroup_that_is_nowhere_has_no_figures() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("cpu.cfs_quota_us"), "-1\n").unwrap();
        let found = read(&|controller| (controller == "cpu").then(|| mount.path().to_owned())).unwrap();
        assert_eq!((found.cpu.quota, found.memory), (None, None));
        assert_eq!(read(&|_| Some(mount.path().join("gone"))), None);
    }
}
