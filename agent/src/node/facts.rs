//! Reads the machine: identity, kernel, processors, memory, disk. Files and two system calls, no network.
//!
//! A fact that cannot be read is left empty or zero: a container host without DMI or swap is normal, and a node status
//! with an empty field is better than none. Values as cadvisor finds them, because people compare them after a switch.

use std::collections::BTreeMap;
use std::path::Path;

/// What the machine is. Changes only by hot-plugging and reboots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// DMI product UUID, or the machine id where there is no DMI.
    pub system_uuid: String,
    /// Random per boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel_version: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// GOARCH name: `amd64`, `arm64`.
    pub architecture: &'static str,
    /// Online processors.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Bytes; 0 without swap.
    pub swap: u64,
    /// Most tasks that the kernel lets exist; `None` if it cannot be told.
    pub max_pids: Option<u64>,
    /// Whether a swap device or file is in use.
    pub is_swap_on: bool,
    /// Number of pages by page size in bytes.
    pub hugepages: BTreeMap<u64, u64>,
    /// Size of the file system of the kubelet directory in bytes; `None` if it cannot be told.
    pub disk: Option<u64>,
}

/// Reads all facts. `root_dir` may not exist yet; then its nearest parent counts.
pub fn read(root_dir: &Path) -> MachineFacts {
    let uname = rustix::system::uname();
    MachineFacts {
        kernel_version: uname.release().to_string_lossy().into_owned(),
        architecture: architecture(),
        disk: disk_size(root_dir),
        ..read_files(Path::new("/"))
    }
}

/// Facts that are files below `root`.
fn read_files(root: &Path) -> MachineFacts {
    let machine_id = first_line(root, &["etc/machine-id", "var/lib/dbus/machine-id"]);
    let uuid =
        first_line(root, &["sys/class/dmi/id/product_uuid", "proc/device-tree/system-id", "proc/device-tree/vm,uuid"]);
    let meminfo = text(root, "proc/meminfo");
    MachineFacts {
        system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
        machine_id,
        boot_id: first_line(root, &["proc/sys/kernel/random/boot_id"]),
        os_image: os_image(root),
        cpus: count_cpus(&text(root, "sys/devices/system/cpu/online")).unwrap_or(1),
        memory: meminfo_bytes(&meminfo, "MemTotal:"),
        swap: meminfo_bytes(&meminfo, "SwapTotal:"),
        max_pids: max_pids(root),
        // The first line is a heading.
        is_swap_on: text(root, "proc/swaps").trim().lines().count() > 1,
        hugepages: hugepages(root),
        ..MachineFacts::default()
    }
}

fn text(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_default()
}

fn first_line(root: &Path, paths: &[&str]) -> String {
    let lines = paths.iter().map(|path| text(root, path).trim_matches(['\0', '\n', ' ']).to_owned());
    lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default()
}

fn os_image(root: &Path) -> String {
    for path in ["etc/os-release", "usr/lib/os-release"] {
        for line in text(root, path).lines() {
            if let Some(name) = line.strip_prefix("PRETTY_NAME=") {
                return name.trim_matches(['"', '\'']).to_owned();
            }
        }
    }
    "Unknown".to_owned()
}

/// How many a list such as `0-3,8` names.
pub fn count_cpus(list: &str) -> Option<u32> {
    let mut count = 0;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        count += last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1;
    }
    Some(count)
}

fn meminfo_bytes(meminfo: &str, name: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The smaller of the two limits on all tasks of the system.
fn max_pids(root: &Path) -> Option<u64> {
    let limits = ["proc/sys/kernel/pid_max", "proc/sys/kernel/threads-max"];
    limits.iter().filter_map(|path| text(root, path).trim().parse().ok()).min()
}

fn hugepages(root: &Path) -> BTreeMap<u64, u64> {
    let dir = root.join("sys/kernel/mm/hugepages");
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
    let size_and_count = entries.filter_map(|entry| {
        let name = entry.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        Some((kib * 1024, count.trim().parse().ok()?))
    });
    size_and_count.collect()
}

fn disk_size(dir: &Path) -> Option<u64> {
    let stat = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok())?;
    Some(stat.f_blocks * stat.f_frsize)
}

/// The name that Go and Kubernetes use for this architecture.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_dmi_is_known_by_its_machine_id() {
        let dir = tempfile::tempdir().expect("dir");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(path, text).expect("write");
        };
        write("etc/machine-id", "abc\n");
        write("etc/os-release", "NAME=x\nPRETTY_NAME=\"Some Linux 1\"\n");
        write("proc/meminfo", "MemTotal:        2048 kB\nSwapTotal:        10 kB\n");
        write("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 10 0 -2\n");
        write("proc/sys/kernel/pid_max", "32768\n");
        write("proc/sys/kernel/threads-max", "9000\n");
        write("sys/devices/system/cpu/online", "0-3,8\n");
        write("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "5\n");
        let facts = read_files(dir.path());
        assert_eq!((facts.machine_id.as_str(), facts.system_uuid.as_str()), ("abc", "abc"));
        assert_eq!((facts.memory, facts.swap, facts.cpus), (2 << 20, 10 << 10, 5));
        assert_eq!((facts.max_pids, facts.is_swap_on), (Some(9000), true));
        assert_eq!(facts.os_image, "Some Linux 1");
        assert_eq!(facts.hugepages, BTreeMap::from([(2 << 20, 5)]));
    }

    #[test]
    fn this_machine_has_the_facts_that_ready_needs() {
        let facts = read(Path::new("/nonexistent/below/root"));
        assert!(facts.cpus > 0 && facts.memory > 0 && facts.disk.is_some_and(|disk| disk > 0), "{facts:?}");
        assert!(!facts.boot_id.is_empty() && !facts.kernel_version.is_empty(), "{facts:?}");
    }
}
