//! `process_*` and build metrics of this process, in Prometheus' text format.
//!
//! Names and meanings are those of the Prometheus client libraries, because dashboards join on them.
//! Source: `proc_pid_stat(5)`, `proc_pid_status(5)`.

use std::fmt::Write;
use std::fs;

/// Clock ticks a second in `/proc`; the kernel's `USER_HZ`, 100 on every architecture that this agent runs on.
const TICKS: f64 = 100.0;

/// What `/proc/self` says, as text.
struct Sources {
    stat: String,
    status: String,
    limits: String,
    system: String,
    open_files: usize,
}

/// The metrics now. What cannot be read is left out.
pub fn metrics() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    render(&Sources {
        stat: read("/proc/self/stat"),
        status: read("/proc/self/status"),
        limits: read("/proc/self/limits"),
        system: read("/proc/stat"),
        // The directory that is being read is itself an open file.
        open_files: fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count().saturating_sub(1)),
    })
}

fn render(from: &Sources) -> String {
    let mut out = String::new();
    let mut put = |name: &str, kind: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    };
    // The name in field 2 may hold spaces and brackets; fields are counted from its closing one.
    let fields: Vec<&str> = from.stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    let kib = |name: &str| {
        let line = from.status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
    };
    let cpu = ticks(14).zip(ticks(15)).map(|(user, system)| (user + system) / TICKS);
    let boot = from.system.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let start = boot.zip(ticks(22)).map(|(boot, start)| boot + start / TICKS);
    let most = from.limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    put("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", cpu);
    put("process_open_fds", "gauge", "Number of open file descriptors.", Some(from.open_files as f64));
    put(
        "process_max_fds",
        "gauge",
        "Maximum number of open file descriptors.",
        most.map(|m| m.parse().unwrap_or(f64::INFINITY)),
    );
    put("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", kib("VmRSS"));
    put("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", kib("VmSize"));
    put("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", start);
    let version = crate::config::KUBELET_VERSION;
    let (major, minor) = version.trim_start_matches('v').split_once('.').unwrap_or_default();
    let minor = minor.split('.').next().unwrap_or_default();
    let _ = write!(
        out,
        "# HELP kubernetes_build_info A metric with a constant '1' value labeled by version.\n\
         # TYPE kubernetes_build_info gauge\n\
         kubernetes_build_info{{git_version=\"{version}\",major=\"{major}\",minor=\"{minor}\",platform=\"linux/{}\"}} 1\n",
        std::env::consts::ARCH
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_past_a_process_name_with_brackets_and_spaces() {
        let mut stat = String::from("42 (no) delet) S");
        // Fields 4 to 52: field n has the value n * 100.
        (4..=52).for_each(|field| stat += &format!(" {}", field * 100));
        let text = render(&Sources {
            stat,
            status: "VmSize:\t    2000 kB\nVmRSS:\t    1000 kB\n".into(),
            limits: "Max open files            1024                 4096                 files\n".into(),
            system: "cpu 1 2 3\nbtime 1000\n".into(),
            open_files: 7,
        });
        for line in [
            "process_cpu_seconds_total 29",
            "process_open_fds 7",
            "process_max_fds 1024",
            "process_resident_memory_bytes 1024000",
            "process_virtual_memory_bytes 2048000",
            "process_start_time_seconds 1022",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(text.contains("major=\"1\",minor=\"37\""), "{text}");
    }

    #[test]
    fn this_process_has_memory_and_a_start() {
        let text = metrics();
        for name in ["process_resident_memory_bytes", "process_start_time_seconds", "process_cpu_seconds_total"] {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() >= 0.0);
        }
    }
}
