//! The families, subject by subject. Pure.

use std::borrow::Borrow;

use super::{Named, Seen};
use crate::cgroup::figures::{Disk, Figures, Limits, Memory, Pressure};
use crate::metrics::text::{Kind, Text};

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A family's name and help text, and its value of a cgroup.
type Row<T> = (&'static str, Kind, &'static str, fn(&T) -> f64);

/// Families of one figure each.
fn write<T, V: Borrow<T>>(text: &mut Text, rows: &[Row<T>], all: &[(&Named<'_>, V)]) {
    for (name, kind, help, value) in rows {
        let mut family = text.family(name, *kind, help);
        all.iter().for_each(|(named, figures)| named.sample(&mut family, value(figures.borrow())));
    }
}

/// When things were started, and that they are there.
pub(super) fn start(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    let help = "Last time a container was seen by the exporter";
    let mut family = text.family("container_last_seen", Kind::Gauge, help);
    for named in all {
        family.stamped(&named.labels, seen.now.as_second() as f64, Some(seen.now.as_millisecond()));
    }
    let help = "Start time of the container since unix epoch in seconds.";
    let mut family = text.family("container_start_time_seconds", Kind::Gauge, help);
    for (named, at) in all.iter().filter_map(|named| Some((named, named.started?))) {
        family.sample(&named.labels, at as f64);
    }
}

const CPU: [Row<Figures>; 2] = [
    ("container_cpu_system_seconds_total", Kind::Counter, "Cumulative system cpu time consumed in seconds.", |f| {
        seconds(f.cpu.system)
    }),
    ("container_cpu_user_seconds_total", Kind::Counter, "Cumulative user cpu time consumed in seconds.", |f| {
        seconds(f.cpu.user)
    }),
];

/// Only where there is a quota.
const CFS: [Row<Figures>; 5] = [
    ("container_cpu_cfs_burst_periods_total", Kind::Counter, "Number of periods when burst occurs.", |f| {
        f.cpu.bursts.0 as f64
    }),
    (
        "container_cpu_cfs_burst_seconds_total",
        Kind::Counter,
        "Total time duration the container has been bursted.",
        |f| seconds(f.cpu.bursts.1),
    ),
    ("container_cpu_cfs_periods_total", Kind::Counter, "Number of elapsed enforcement period intervals.", |f| {
        f.cpu.periods.0 as f64
    }),
    ("container_cpu_cfs_throttled_periods_total", Kind::Counter, "Number of throttled period intervals.", |f| {
        f.cpu.periods.1 as f64
    }),
    (
        "container_cpu_cfs_throttled_seconds_total",
        Kind::Counter,
        "Total time duration the container has been throttled.",
        |f| seconds(f.cpu.throttled),
    ),
];

/// Processor time, and the limits of it.
pub(super) fn cpu(text: &mut Text, all: &[Named<'_>]) {
    let help = "Cumulative cpu time consumed in seconds.";
    let mut family = text.family("container_cpu_usage_seconds_total", Kind::Counter, help);
    for named in all.iter().filter(|named| named.figures().cpu.usage > 0) {
        named.sample_with(&mut family, &[("cpu", "total")], seconds(named.figures().cpu.usage));
    }
    let figures: Vec<_> = all.iter().map(|named| (named, named.figures())).collect();
    write(text, &CPU, &figures);
    let limited: Vec<_> = figures.iter().copied().filter(|(_, figures)| figures.cpu.quota.is_some()).collect();
    write(text, &CFS, &limited);
    let mut family = text.family("container_spec_cpu_period", Kind::Gauge, "CPU period of the container.");
    all.iter().for_each(|named| family.sample(&named.labels, named.figures().cpu.period as f64));
    let mut family = text.family("container_spec_cpu_quota", Kind::Gauge, "CPU quota of the container.");
    for (named, figures) in limited {
        family.sample(&named.labels, figures.cpu.quota.unwrap_or(0) as f64);
    }
    let mut family = text.family("container_spec_cpu_shares", Kind::Gauge, "CPU share of the container.");
    all.iter().for_each(|named| family.sample(&named.labels, named.figures().cpu.shares as f64));
}

const MEMORY: [Row<Memory>; 19] = [
    ("container_memory_cache", Kind::Gauge, "Number of bytes of page cache memory.", |m| m.cache as f64),
    (
        "container_memory_events_high_total",
        Kind::Counter,
        "Cumulative count of memory.high throttle events for the container",
        |m| m.limit_events.0 as f64,
    ),
    (
        "container_memory_events_max_total",
        Kind::Counter,
        "Cumulative count of memory.max limit hit events for the container",
        |m| m.limit_events.1 as f64,
    ),
    ("container_memory_failcnt", Kind::Counter, "Number of memory usage hits limits", |m| m.failures as f64),
    (
        "container_memory_file_dirty_bytes",
        Kind::Gauge,
        "Number of bytes of file cache that has been modified but not yet written back to disk.",
        |m| m.dirty.0 as f64,
    ),
    (
        "container_memory_file_writeback_bytes",
        Kind::Gauge,
        "Number of bytes of file cache that is currently being written back to disk.",
        |m| m.dirty.1 as f64,
    ),
    ("container_memory_kernel_usage", Kind::Gauge, "Size of kernel memory allocated in bytes.", |m| m.kernel as f64),
    ("container_memory_mapped_file", Kind::Gauge, "Size of memory mapped files in bytes.", |m| m.mapped as f64),
    ("container_memory_max_usage_bytes", Kind::Gauge, "Maximum memory usage recorded in bytes", |m| m.peak as f64),
    (
        "container_memory_pgscan_total",
        Kind::Counter,
        "Cumulative number of pages scanned by the page reclaim algorithm.",
        |m| m.reclaimed.0 as f64,
    ),
    (
        "container_memory_pgsteal_total",
        Kind::Counter,
        "Cumulative number of pages reclaimed by the page reclaim algorithm.",
        |m| m.reclaimed.1 as f64,
    ),
    ("container_memory_rss", Kind::Gauge, "Size of RSS in bytes.", |m| m.rss as f64),
    ("container_memory_swap", Kind::Gauge, "Container swap usage in bytes.", |m| m.swap as f64),
    ("container_memory_total_active_file_bytes", Kind::Gauge, "Current total active file in bytes.", |m| {
        m.files.0 as f64
    }),
    ("container_memory_total_inactive_file_bytes", Kind::Gauge, "Current total inactive file in bytes.", |m| {
        m.files.1 as f64
    }),
    (
        "container_memory_usage_bytes",
        Kind::Gauge,
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |m| m.usage as f64,
    ),
    ("container_memory_working_set_bytes", Kind::Gauge, "Current working set in bytes.", |m| m.working_set as f64),
    (
        "container_memory_workingset_refault_anon_total",
        Kind::Counter,
        "Cumulative number of refaults of previously evicted anonymous pages.",
        |m| m.refaults.1 as f64,
    ),
    (
        "container_memory_workingset_refault_file_total",
        Kind::Counter,
        "Cumulative number of refaults of previously evicted file pages.",
        |m| m.refaults.0 as f64,
    ),
];

/// Memory, and the limits of it.
pub(super) fn memory(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    let measured: Vec<_> = all.iter().filter_map(|named| Some((named, of_machine(named, seen)?))).collect();
    write(text, &MEMORY, &measured);
    let help = "Cumulative count of memory allocation failures.";
    let mut family = text.family("container_memory_failures_total", Kind::Counter, help);
    for (named, memory) in &measured {
        for scope in ["container", "hierarchy"] {
            for (kind, count) in [("pgfault", memory.faults.0), ("pgmajfault", memory.faults.1)] {
                named.sample_with(&mut family, &[("failure_type", kind), ("scope", scope)], count as f64);
            }
        }
    }
    let limited = || measured.iter().filter_map(|(named, memory)| Some((named, memory.limits?)));
    type Limit = fn(&Limits) -> Option<u64>;
    let families: [(&str, &str, Limit); 3] = [
        ("container_spec_memory_limit_bytes", "Memory limit for the container.", |limits| limits.memory),
        ("container_spec_memory_reservation_limit_bytes", "Memory reservation limit for the container.", |limits| {
            limits.reservation
        }),
        ("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", |limits| limits.swap),
    ];
    for (name, help, limit) in families {
        let mut family = text.family(name, Kind::Gauge, help);
        limited().for_each(|(named, limits)| family.sample(&named.labels, limit(&limits).unwrap_or(0) as f64));
    }
}

/// The root's limit is the machine, and on v2 its swap is the machine's.
fn of_machine(named: &Named<'_>, seen: Seen<'_>) -> Option<Memory> {
    let mut memory = named.figures().memory?;
    if named.is_root() {
        let machine = &seen.kernel.machine;
        memory.limits = Some(Limits { memory: Some(machine.memory), swap: Some(machine.swap), reservation: None });
        memory.swap = seen.usage.node.swap.map_or(memory.swap, |swap| swap.used);
    }
    Some(memory)
}

/// What disks did, and what is on them.
pub(super) fn disks(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    let used = || all.iter().flat_map(|named| named.figures().disks.iter().map(move |disk| (named, disk)));
    let device = |disk: &Disk| seen.kernel.disks.get(&disk.device).map_or("", String::as_str);
    type Figure = fn(&Disk) -> u64;
    let families: [(&str, &str, Figure); 4] = [
        ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |disk| disk.bytes.0),
        ("container_fs_reads_total", "Cumulative count of reads completed", |disk| disk.operations.0),
        ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |disk| disk.bytes.1),
        ("container_fs_writes_total", "Cumulative count of writes completed", |disk| disk.operations.1),
    ];
    for (name, help, figure) in families {
        let mut family = text.family(name, Kind::Counter, help);
        for (named, disk) in used() {
            named.sample_with(&mut family, &[("device", device(disk))], figure(disk) as f64);
        }
    }
    let mut family = text.family("container_blkio_device_usage_total", Kind::Counter, "Blkio Device bytes usage");
    for (named, disk) in used() {
        let (major, minor) = (disk.device.0.to_string(), disk.device.1.to_string());
        for (operation, bytes) in [("Read", disk.bytes.0), ("Write", disk.bytes.1)] {
            let more = [("device", device(disk)), ("major", &major), ("minor", &minor), ("operation", operation)];
            named.sample_with(&mut family, &more, bytes as f64);
        }
    }
    file_systems(text, all, seen);
}

/// File systems of the node, and what containers have written on that of images.
fn file_systems(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    let root = || all.iter().filter(|named| named.is_root());
    let whole =
        || root().flat_map(|named| seen.kernel.file_systems.iter().map(move |(device, fs)| (named, device, fs)));
    type Figure = fn(&super::super::usage::FileSystem) -> u64;
    let families: [(&str, &str, Figure); 3] = [
        ("container_fs_inodes_free", "Number of available Inodes", |fs| fs.inodes_free),
        ("container_fs_inodes_total", "Number of Inodes", |fs| fs.inodes),
        (
            "container_fs_limit_bytes",
            "Number of bytes that can be consumed by the container on this filesystem.",
            |fs| fs.capacity,
        ),
    ];
    for (name, help, figure) in families {
        let mut family = text.family(name, Kind::Gauge, help);
        whole().for_each(|(named, device, fs)| {
            named.sample_with(&mut family, &[("device", device)], figure(fs) as f64);
        });
    }
    let help = "Number of bytes that are consumed by the container on this filesystem.";
    let mut family = text.family("container_fs_usage_bytes", Kind::Gauge, help);
    whole().for_each(|(named, device, fs)| named.sample_with(&mut family, &[("device", device)], fs.used as f64));
    for (named, bytes) in all.iter().filter_map(|named| Some((named, named.layer?))) {
        named.sample_with(&mut family, &[("device", &seen.kernel.image_device)], bytes as f64);
    }
}

/// Traffic of pods, which is that of their sandboxes, and of the node.
pub(super) fn network(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    const FAMILIES: [(&str, &str, bool, usize); 8] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", true, 0),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", true, 2),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
            true,
            3,
        ),
        ("container_network_receive_packets_total", "Cumulative count of packets received", true, 1),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", false, 0),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            false,
            2,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
            false,
            3,
        ),
        ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", false, 1),
    ];
    for (name, help, is_received, index) in FAMILIES {
        let mut family = text.family(name, Kind::Counter, help);
        for named in all {
            for one in seen.kernel.traffic.get(&named.cgroup.path).into_iter().flatten() {
                let value = if is_received { one.received[index] } else { one.sent[index] };
                named.sample_with(&mut family, &[("interface", &one.interface)], value as f64);
            }
        }
    }
}

/// Processes and threads, and what containers have open.
pub(super) fn processes(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    let families: [Row<Figures>; 3] = [
        ("container_processes", Kind::Gauge, "Number of processes running inside the container.", |f| {
            f.processes.len() as f64
        }),
        ("container_threads", Kind::Gauge, "Number of threads running inside the container", |f| f.threads.0 as f64),
        (
            "container_threads_max",
            Kind::Gauge,
            "Maximum number of threads allowed inside the container, infinity if value is zero",
            |f| f.threads.1 as f64,
        ),
    ];
    let figures: Vec<_> = all.iter().map(|named| (named, named.figures())).collect();
    write(text, &families, &figures);
    opened(text, all, seen);
}

/// Open files of containers.
fn opened(text: &mut Text, all: &[Named<'_>], seen: Seen<'_>) {
    let known = || all.iter().filter_map(|named| Some((named, seen.kernel.opened.get(&named.cgroup.path)?)));
    let help = "Number of open file descriptors for the container.";
    let mut family = text.family("container_file_descriptors", Kind::Gauge, help);
    known().for_each(|(named, opened)| named.sample(&mut family, opened.files as f64));
    let help = "Number of open sockets for the container.";
    let mut family = text.family("container_sockets", Kind::Gauge, help);
    for (named, sockets) in known().filter_map(|(named, opened)| Some((named, opened.sockets?))) {
        named.sample(&mut family, sockets as f64);
    }
    let help = "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice";
    let mut family = text.family("container_ulimits_soft", Kind::Gauge, help);
    for (named, limit) in known().filter_map(|(named, opened)| Some((named, opened.limit?))) {
        named.sample_with(&mut family, &[("ulimit", "max_open_files")], limit as f64);
    }
}

/// Time that tasks waited: all of them at once (stalled), or at least one (waiting).
pub(super) fn pressure(text: &mut Text, all: &[Named<'_>]) {
    let stalled = |pressure: &Pressure| pressure.full.total;
    let waiting = |pressure: &Pressure| pressure.some.total;
    type Part = fn(&Pressure) -> u64;
    let families: [(&str, &str, usize, Part); 6] = [
        (
            "container_pressure_cpu_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
            0,
            stalled,
        ),
        (
            "container_pressure_cpu_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to CPU congestion.",
            0,
            waiting,
        ),
        (
            "container_pressure_io_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
            2,
            stalled,
        ),
        (
            "container_pressure_io_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to IO congestion.",
            2,
            waiting,
        ),
        (
            "container_pressure_memory_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
            1,
            stalled,
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to memory congestion.",
            1,
            waiting,
        ),
    ];
    for (name, help, index, part) in families {
        let mut family = text.family(name, Kind::Counter, help);
        for (named, found) in all.iter().filter_map(|named| Some((named, named.figures().pressure[index]?))) {
            named.sample(&mut family, seconds(part(&found)));
        }
    }
}
