//! The files of cgroup v2: one directory for each cgroup, controllers enabled from the top.

use std::path::{Path, PathBuf};

use super::files::{self, FileError};
use super::huge_pages::page_size_name;
use super::plan::{PodCgroup, Values, shares_to_weight, weight_to_shares};

/// Controllers that pods need; others of the root are left to their owners.
const WANTED: [&str; 7] = ["cpu", "cpuset", "io", "memory", "hugetlb", "pids", "rdma"];

/// The unified mount.
#[derive(Clone, Debug)]
pub(super) struct V2 {
    mount: PathBuf,
    controllers: Vec<String>,
}

impl V2 {
    pub(super) fn new(mount: PathBuf, controllers: Vec<String>) -> Self {
        Self { mount, controllers }
    }

    /// The directory of a cgroup.
    pub(super) fn directory(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// What a cgroup of somebody else's lacks: its directory, or controllers that values are written to.
    pub(super) fn missing(&self, path: &str) -> Vec<String> {
        const NEEDED: [&str; 5] = ["cpu", "cpuset", "memory", "hugetlb", "pids"];
        let directory = self.directory(path);
        let Ok(enabled) = files::read(&directory, "cgroup.controllers") else {
            return vec![directory.display().to_string()];
        };
        let needed = self.controllers.iter().filter(|controller| NEEDED.contains(&controller.as_str()));
        let missing = needed.filter(|controller| !enabled.split_whitespace().any(|e| e == *controller));
        missing.map(|controller| format!("controller {controller} of {}", directory.display())).collect()
    }

    /// Creates a cgroup and its parents, each with the controllers enabled for what is below it.
    pub(super) fn create(&self, path: &str) -> Result<(), FileError> {
        let mut directory = self.mount.clone();
        for component in path.split('/').filter(|c| !c.is_empty()) {
            self.enable(&directory)?;
            directory.push(component);
            files::create_directory(&directory)?;
        }
        self.enable(&directory)
    }

    /// Controllers are enabled one by one: one that is refused (realtime processes hold `cpu`) keeps none of the others.
    fn enable(&self, directory: &Path) -> Result<(), FileError> {
        let enabled = files::read(directory, "cgroup.subtree_control")?;
        for controller in self.controllers.iter().filter(|c| WANTED.contains(&c.as_str())) {
            if enabled.split_whitespace().any(|e| e == controller) {
                continue;
            }
            if let Err(error) = files::write(directory, "cgroup.subtree_control", &format!("+{controller}")) {
                tracing::warn!(%error, controller, "cgroup controller stays off");
            }
        }
        Ok(())
    }

    /// What a cgroup has.
    pub(super) fn read(&self, path: &str) -> Result<PodCgroup, FileError> {
        let directory = self.directory(path);
        let number = |text: &str| if text == "max" { i64::MAX } else { text.parse().unwrap_or(i64::MAX) };
        let max = files::read(&directory, "cpu.max")?;
        let (quota, period) = max.split_once(' ').unwrap_or((max.as_str(), "100000"));
        let weight = files::read(&directory, "cpu.weight")?.parse().unwrap_or(1);
        Ok(PodCgroup {
            cpu_shares: weight_to_shares(weight),
            cpu_quota: number(quota),
            cpu_period: period.parse().unwrap_or(100_000),
            memory_limit: number(&files::read(&directory, "memory.max")?),
            memory_usage: files::read(&directory, "memory.current")?.parse().unwrap_or(0),
        })
    }

    /// Writes values; only those that are set.
    pub(super) fn apply(&self, path: &str, values: &Values) -> Result<(), FileError> {
        let directory = self.directory(path);
        if let Some(shares) = values.cpu_shares {
            files::write(&directory, "cpu.weight", &shares_to_weight(shares).to_string())?;
        }
        if let Some(max) = cpu_max(values) {
            files::write(&directory, "cpu.max", &max)?;
        }
        if let Some(limit) = values.memory.filter(|limit| *limit > 0) {
            files::write(&directory, "memory.max", &limit.to_string())?;
        }
        if let Some(limit) = values.pids.filter(|limit| *limit > 0) {
            files::write_if_there(&directory, "pids.max", &limit.to_string())?;
        }
        for (size, limit) in &values.huge_pages {
            let file = format!("hugetlb.{}.max", page_size_name(*size));
            files::write_if_there(&directory, &file, &limit.to_string())?;
            // Pages that are reserved by mmap and not touched yet; since Linux 5.7.
            let file = format!("hugetlb.{}.rsvd.max", page_size_name(*size));
            files::write_if_there(&directory, &file, &limit.to_string())?;
        }
        for (file, value) in &values.unified {
            files::write_if_there(&directory, file, value)?;
        }
        Ok(())
    }
}

/// `cpu.max`: quota and period in microseconds, `max` for none.
fn cpu_max(values: &Values) -> Option<String> {
    let quota = match values.cpu_quota? {
        quota if quota > 0 => quota.to_string(),
        _ => "max".to_owned(),
    };
    Some(match values.cpu_period {
        Some(period) => format!("{quota} {period}"),
        None => quota,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a cgroup: v2 files that the kernel would make are made by hand.
    fn fake(controllers: &[&str]) -> (tempfile::TempDir, V2) {
        let mount = tempfile::tempdir().unwrap();
        let v2 = V2::new(mount.path().to_owned(), controllers.iter().map(|c| (*c).to_owned()).collect());
        (mount, v2)
    }

    #[test]
    fn values_are_written_to_the_files_of_the_unified_hierarchy() {
        let (mount, v2) = fake(&["cpu", "memory"]);
        for file in ["cpu.weight", "cpu.max", "memory.max", "pids.max"] {
            std::fs::write(mount.path().join(file), "").unwrap();
        }
        let values = Values {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory: Some(1 << 20),
            pids: Some(64),
            ..Values::default()
        };
        v2.apply("/", &values).unwrap();
        let read = |file: &str| files::read(mount.path(), file).unwrap();
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("pids.max"), "64");
    }

    #[test]
    fn a_cgroup_of_others_must_have_the_controllers() {
        let (mount, v2) = fake(&["cpu", "memory", "io"]);
        let system = mount.path().join("system.slice");
        assert_eq!(v2.missing("/system.slice"), [system.display().to_string()]);
        std::fs::create_dir_all(&system).unwrap();
        std::fs::write(system.join("cgroup.controllers"), "memory io\n").unwrap();
        assert_eq!(v2.missing("/system.slice"), [format!("controller cpu of {}", system.display())]);
        std::fs::write(system.join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(v2.missing("/system.slice"), [""; 0]);
    }

    #[test]
    fn what_was_written_is_read_back_and_max_is_no_limit() {
        let (mount, v2) = fake(&["cpu", "memory"]);
        let files =
            [("cpu.weight", "39\n"), ("cpu.max", "max 100000\n"), ("memory.max", "max\n"), ("memory.current", "7\n")];
        for (file, text) in files {
            std::fs::write(mount.path().join(file), text).unwrap();
        }
        let unlimited = v2.read("/").unwrap();
        assert_eq!((unlimited.cpu_quota, unlimited.memory_limit, unlimited.memory_usage), (i64::MAX, i64::MAX, 7));
        assert_eq!(shares_to_weight(unlimited.cpu_shares), 39);
        std::fs::write(mount.path().join("cpu.max"), "5000 20000\n").unwrap();
        std::fs::write(mount.path().join("memory.max"), "4096\n").unwrap();
        let limited = v2.read("/").unwrap();
        assert_eq!((limited.quota_in(100_000), limited.memory_limit), (25_000, 4096));
    }

    #[test]
    fn a_quota_of_minus_one_is_max() {
        let values = Values { cpu_quota: Some(-1), cpu_period: Some(100_000), ..Values::default() };
        assert_eq!(cpu_max(&values).as_deref(), Some("max 100000"));
        assert_eq!(cpu_max(&Values::default()), None);
    }
}
