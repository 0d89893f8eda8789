//! The files of cgroup v1: one directory per controller for each cgroup.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::{self, FileError};
use super::huge_pages::page_size_name;
use super::plan::{PodCgroup, Values};

/// `memory.limit_in_bytes` without a limit: the largest number of bytes in whole pages of up to 64 KiB.
const NO_MEMORY_LIMIT: i64 = i64::MAX - 0xffff;

/// The mounted controllers.
#[derive(Clone, Debug)]
pub(super) struct V1 {
    mounts: BTreeMap<String, PathBuf>,
}

impl V1 {
    pub(super) fn new(mounts: BTreeMap<String, PathBuf>) -> Self {
        Self { mounts }
    }

    /// Directories of a cgroup, one per distinct mount.
    pub(super) fn directories(&self, path: &str) -> Vec<PathBuf> {
        let mut directories: Vec<PathBuf> = self.mounts.values().map(|mount| join(mount, path)).collect();
        directories.sort();
        directories.dedup();
        directories
    }

    /// The directory of a cgroup in the hierarchy of a controller.
    pub(super) fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        self.mounts.get(controller).map(|mount| join(mount, path))
    }

    /// The directories that a cgroup of somebody else's lacks, of the hierarchies that values are written to or that count
    /// its processes.
    pub(super) fn missing(&self, path: &str) -> Vec<String> {
        const NEEDED: [&str; 7] = ["cpu", "cpuacct", "cpuset", "memory", "name=systemd", "pids", "hugetlb"];
        let needed = self.mounts.iter().filter(|(controller, _)| NEEDED.contains(&controller.as_str()));
        let directories = needed.map(|(_, mount)| join(mount, path)).filter(|directory| !directory.is_dir());
        directories.map(|directory| directory.display().to_string()).collect()
    }

    /// Creates a cgroup and its parents in every hierarchy.
    pub(super) fn create(&self, path: &str) -> Result<(), FileError> {
        for (controller, mount) in &self.mounts {
            let mut directory = mount.clone();
            for component in path.split('/').filter(|c| !c.is_empty()) {
                let parent = directory.clone();
                directory.push(component);
                files::create_directory(&directory)?;
                if controller == "cpuset" {
                    // A new cpuset is empty and takes no process until both files are filled.
                    inherit(&parent, &directory, "cpuset.cpus")?;
                    inherit(&parent, &directory, "cpuset.mems")?;
                }
            }
        }
        Ok(())
    }

    /// What a cgroup has.
    pub(super) fn read(&self, path: &str) -> Result<PodCgroup, FileError> {
        let number = |controller: &str, file: &str| -> Result<i64, FileError> {
            let Some(mount) = self.mounts.get(controller) else { return Ok(i64::MAX) };
            // Without a limit, memory shows more than an i64's half, rounded to pages.
            Ok(files::read(&join(mount, path), file)?.parse::<i64>().unwrap_or(i64::MAX))
        };
        let memory = number("memory", "memory.limit_in_bytes")?;
        let quota = number("cpu", "cpu.cfs_quota_us")?;
        Ok(PodCgroup {
            cpu_shares: u64::try_from(number("cpu", "cpu.shares")?).unwrap_or(0),
            cpu_quota: if quota < 0 { i64::MAX } else { quota },
            cpu_period: u64::try_from(number("cpu", "cpu.cfs_period_us")?).unwrap_or(0),
            memory_limit: if memory >= NO_MEMORY_LIMIT { i64::MAX } else { memory },
            memory_usage: u64::try_from(number("memory", "memory.usage_in_bytes")?).unwrap_or(0),
        })
    }

    /// Writes values; only those that are set and whose controller is mounted.
    pub(super) fn apply(&self, path: &str, values: &Values) -> Result<(), FileError> {
        let directory = |controller: &str| self.mounts.get(controller).map(|mount| join(mount, path));
        if let Some(cpu) = directory("cpu") {
            if let Some(shares) = values.cpu_shares {
                files::write(&cpu, "cpu.shares", &shares.to_string())?;
            }
            apply_quota(&cpu, values)?;
        }
        if let (Some(memory), Some(limit)) = (directory("memory"), values.memory.filter(|limit| *limit > 0)) {
            files::write(&memory, "memory.limit_in_bytes", &limit.to_string())?;
        }
        if let (Some(pids), Some(limit)) = (directory("pids"), values.pids.filter(|limit| *limit > 0)) {
            files::write(&pids, "pids.max", &limit.to_string())?;
        }
        if let Some(hugetlb) = directory("hugetlb") {
            for (size, limit) in &values.huge_pages {
                let file = format!("hugetlb.{}.limit_in_bytes", page_size_name(*size));
                files::write_if_there(&hugetlb, &file, &limit.to_string())?;
                // Pages that are reserved by mmap and not touched yet; since Linux 5.7.
                let file = format!("hugetlb.{}.rsvd.limit_in_bytes", page_size_name(*size));
                files::write_if_there(&hugetlb, &file, &limit.to_string())?;
            }
        }
        Ok(())
    }
}

/// The kernel checks quota against period on each write, so they go in the order that is valid in between.
fn apply_quota(cpu: &Path, values: &Values) -> Result<(), FileError> {
    let quota = values.cpu_quota.filter(|quota| *quota != 0);
    let Some(period) = values.cpu_period else {
        return match quota {
            Some(quota) => files::write(cpu, "cpu.cfs_quota_us", &quota.to_string()),
            None => Ok(()),
        };
    };
    // Going through "unlimited" makes every order valid, also when a child has a larger share than the new value.
    files::write(cpu, "cpu.cfs_quota_us", "-1")?;
    files::write(cpu, "cpu.cfs_period_us", &period.to_string())?;
    match quota {
        Some(quota) => files::write(cpu, "cpu.cfs_quota_us", &quota.to_string()),
        None => Ok(()),
    }
}

fn inherit(parent: &Path, child: &Path, file: &str) -> Result<(), FileError> {
    if !files::read(child, file)?.is_empty() {
        return Ok(());
    }
    match files::read(parent, file)? {
        empty if empty.is_empty() => Ok(()),
        value => files::write(child, file, &value),
    }
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_of_others_must_be_in_the_hierarchies_that_matter() {
        let mount = tempfile::tempdir().unwrap();
        let of = |controller: &str| mount.path().join(controller);
        let controllers = ["cpu", "memory", "pids", "blkio", "unified"];
        let v1 = V1::new(controllers.map(|controller| (controller.to_owned(), of(controller))).into());
        std::fs::create_dir_all(of("cpu").join("system")).unwrap();
        std::fs::create_dir_all(of("memory").join("system")).unwrap();
        assert_eq!(v1.missing("/system"), [of("pids").join("system").display().to_string()]);
        std::fs::create_dir_all(of("pids").join("system")).unwrap();
        assert_eq!(v1.missing("/system"), [""; 0], "blkio holds nothing of ours");
    }

    #[test]
    fn each_value_goes_to_the_file_of_its_controller() {
        let mount = tempfile::tempdir().unwrap();
        let files = [
            ("cpu", "cpu.shares"),
            ("memory", "memory.limit_in_bytes"),
            ("pids", "pids.max"),
            ("hugetlb", "hugetlb.2MB.limit_in_bytes"),
            ("hugetlb", "hugetlb.2MB.rsvd.limit_in_bytes"),
        ];
        for (controller, file) in files {
            let directory = mount.path().join(controller).join("kubepods");
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(file), "").unwrap();
        }
        let mounts = files.map(|(controller, _)| (controller.to_owned(), mount.path().join(controller)));
        let values = Values {
            cpu_shares: Some(512),
            memory: Some(1 << 30),
            pids: Some(64),
            huge_pages: [(2 << 20, 4 << 20), (1 << 30, 0)].into(),
            ..Values::default()
        };
        V1::new(mounts.into()).apply("/kubepods", &values).unwrap();
        let read = |(controller, file)| files::read(&mount.path().join(controller).join("kubepods"), file).unwrap();
        assert_eq!(files.map(read), ["512", "1073741824", "64", "4194304", "4194304"]);
    }
}
