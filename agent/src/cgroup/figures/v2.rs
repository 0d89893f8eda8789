//! Figures of cgroup v2: all files in one directory.

use std::path::Path;

use jiff::Timestamp;

use super::{Cpu, Disk, Figures, Limits, Memory, Pressure, Table, created, device, limit, number, processes, text};

pub(super) fn read(directory: &Path) -> Option<Figures> {
    if !directory.is_dir() {
        return None;
    }
    Some(Figures {
        time: Timestamp::now(),
        created: created(&[directory.to_owned()], "cgroup.events"),
        cpu: cpu(directory),
        memory: memory(directory),
        processes: processes(directory),
        threads: (number(directory, "pids.current"), limit(directory, "pids.max").unwrap_or(0)),
        disks: text(directory, "io.stat").lines().filter_map(disk).collect(),
        pressure: ["cpu.pressure", "memory.pressure", "io.pressure"]
            .map(|file| Pressure::parse(&text(directory, file))),
    })
}

fn cpu(directory: &Path) -> Cpu {
    let stat = Table::read(directory, "cpu.stat");
    let nanos = |name: &str| stat.get(name).saturating_mul(1000);
    let max = text(directory, "cpu.max");
    let (quota, period) = max.trim().split_once(' ').unwrap_or_default();
    let weight = text(directory, "cpu.weight").trim().parse();
    Cpu {
        usage: nanos("usage_usec"),
        user: nanos("user_usec"),
        system: nanos("system_usec"),
        periods: stat.pair("nr_periods", "nr_throttled"),
        throttled: nanos("throttled_usec"),
        bursts: (stat.get("nr_bursts"), nanos("burst_usec")),
        period: period.parse().unwrap_or(0),
        quota: quota.parse().ok(),
        shares: weight.map_or(0, shares),
    }
}

/// Shares of a weight as cAdvisor converts them: rounded down.
fn shares(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999
}

fn memory(directory: &Path) -> Option<Memory> {
    let stat = text(directory, "memory.stat");
    if stat.is_empty() {
        return None;
    }
    let (stat, events) = (Table(stat), Table::read(directory, "memory.events"));
    let (rss, cache) = stat.pair("anon", "file");
    // The root has no such file; v1 counted these two there.
    let usage = text(directory, "memory.current").trim().parse().unwrap_or(rss + cache);
    let files = stat.pair("active_file", "inactive_file");
    let limits = directory.join("memory.max").exists().then(|| Limits {
        memory: limit(directory, "memory.max"),
        swap: limit(directory, "memory.swap.max"),
        reservation: limit(directory, "memory.min"),
    });
    Some(Memory {
        usage,
        working_set: usage.saturating_sub(files.1),
        rss,
        cache,
        mapped: stat.get("file_mapped"),
        files,
        swap: number(directory, "memory.swap.current"),
        kernel: 0,
        peak: number(directory, "memory.peak"),
        failures: 0,
        faults: stat.pair("pgfault", "pgmajfault"),
        limit_events: events.pair("high", "max"),
        dirty: stat.pair("file_dirty", "file_writeback"),
        reclaimed: stat.pair("pgscan", "pgsteal"),
        refaults: stat.pair("workingset_refault_file", "workingset_refault_anon"),
        limits,
    })
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`. A disk that did nothing may have its numbers alone.
fn disk(line: &str) -> Option<Disk> {
    let (device, rest) = device(line)?;
    let value = |name: &str| {
        let found = rest.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    Some(Disk { device, bytes: (value("rbytes"), value("wbytes")), operations: (value("rios"), value("wios")) })
}

#[cfg(test)]
mod tests {
    use super::super::Waited;
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        directory
    }

    #[test]
    fn each_figure_comes_from_the_file_of_the_unified_hierarchy() {
        let directory = directory(&[
            ("cgroup.procs", "42\n43\n"),
            ("cgroup.events", "populated 1\n"),
            (
                "cpu.stat",
                "usage_usec 7000\nuser_usec 4000\nsystem_usec 3000\nnr_periods 9\nnr_throttled 2\nthrottled_usec 500\nnr_bursts 1\nburst_usec 8\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "39\n"),
            (
                "cpu.pressure",
                "some avg10=1.25 avg60=0.07 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n",
            ),
            (
                "memory.stat",
                "anon 100\nfile 50\nfile_mapped 20\nactive_file 30\ninactive_file 15\nfile_dirty 4\nfile_writeback 5\npgfault 11\npgmajfault 2\npgscan 6\npgsteal 3\nworkingset_refault_anon 8\nworkingset_refault_file 9\n",
            ),
            ("memory.current", "200\n"),
            ("memory.peak", "300\n"),
            ("memory.max", "4096\n"),
            ("memory.min", "0\n"),
            ("memory.swap.max", "max\n"),
            ("memory.swap.current", "12\n"),
            ("memory.events", "low 0\nhigh 3\nmax 4\noom 0\n"),
            ("pids.current", "5\n"),
            ("pids.max", "64\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n259:1 \n"),
        ]);
        let found = read(directory.path()).unwrap();
        let cpu = Cpu {
            usage: 7_000_000,
            user: 4_000_000,
            system: 3_000_000,
            periods: (9, 2),
            throttled: 500_000,
            bursts: (1, 8000),
            period: 100_000,
            quota: Some(50_000),
            shares: 998,
        };
        assert_eq!(found.cpu, cpu);
        let memory = Memory {
            usage: 200,
            working_set: 185,
            rss: 100,
            cache: 50,
            mapped: 20,
            files: (30, 15),
            swap: 12,
            kernel: 0,
            peak: 300,
            failures: 0,
            faults: (11, 2),
            limit_events: (3, 4),
            dirty: (4, 5),
            reclaimed: (6, 3),
            refaults: (9, 8),
            limits: Some(Limits { memory: Some(4096), swap: None, reservation: Some(0) }),
        };
        assert_eq!(found.memory, Some(memory));
        assert_eq!((found.processes, found.threads), (vec![42, 43], (5, 64)));
        assert_eq!(found.disks[0], Disk { device: (8, 0), bytes: (1, 2), operations: (3, 4) });
        assert_eq!(found.disks[1], Disk { device: (259, 1), ..Disk::default() });
        assert_eq!(found.pressure[0].unwrap().some, Waited { total: 42_000, average: [125, 7, 0] });
        assert_eq!(found.pressure[1..], [None, None]);
        assert!(found.created.is_some_and(|at| at <= found.time));
    }

    #[test]
    fn the_root_has_no_limits_and_uses_what_its_parts_use() {
        let directory =
            directory(&[("cpu.stat", "usage_usec 7\n"), ("memory.stat", "anon 100\nfile 50\ninactive_file 15\n")]);
        let found = read(directory.path()).unwrap();
        let memory = found.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set, memory.limits), (150, 135, None));
        assert_eq!((found.cpu.usage, found.cpu.quota, found.cpu.period, found.cpu.shares), (7000, None, 0, 0));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_figures_and_one_without_controllers_no_memory() {
        let directory = directory(&[("cgroup.procs", ""), ("cpu.max", "max 100000\n")]);
        assert_eq!(read(&directory.path().join("gone")), None);
        let found = read(directory.path()).unwrap();
        assert_eq!((found.memory, found.cpu.quota, found.cpu.period), (None, None, 100_000));
    }
}
