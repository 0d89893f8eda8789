//! Which cgroup hierarchies this machine has, and where they are mounted. Mounts are read, never changed.
//!
//! - **v2**: `/sys/fs/cgroup` is one `cgroup2` file system with all controllers.
//! - **v1**: `/sys/fs/cgroup` is a tmpfs with one mount per controller (or group of them).
//! - **hybrid**: v1, and a `cgroup2` mount without controllers beside it. It is treated as v1, as runtimes treat it. They
//!   put containers into that mount, too, but remove only the containers' directories: the pods' above are ours to make
//!   and to remove. So it counts as one more hierarchy of v1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::plan::CgroupVersion;

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// Where every distribution mounts cgroups (systemd's file hierarchy, FHS 3.0).
const MOUNT: &str = "/sys/fs/cgroup";
/// Where systemd mounts the v2 hierarchy beside those of v1; runc looks for it here and nowhere else.
const HYBRID: &str = "/sys/fs/cgroup/unified";
/// What the hybrid mount is called among controllers; no controller of the kernel has this name.
const UNIFIED: &str = "unified";

/// The hierarchies of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchies {
    /// Mount directories by controller; controllers that share a mount are listed once each. The v2 mount of a hybrid
    /// machine, which has no controllers, is listed as `unified`.
    V1(BTreeMap<String, PathBuf>),
    /// The unified mount and the controllers that its root offers.
    V2 {
        /// Usually `/sys/fs/cgroup`.
        mount: PathBuf,
        /// `cgroup.controllers` of the root.
        controllers: Vec<String>,
    },
}

/// Why no usable hierarchy was found.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// A file that describes the machine could not be read.
    #[error("cannot read {path}: {source}; cgroups must be mounted below {MOUNT}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A controller without which pods cannot be held to their limits is missing.
    #[error("cgroup controllers {missing:?} are not mounted: found {found:?}; enable them on the kernel command line")]
    MissingControllers {
        /// Needed and not there.
        missing: Vec<&'static str>,
        /// There.
        found: Vec<String>,
    },
}

impl Hierarchies {
    /// Looks at the machine.
    pub fn detect() -> Result<Self, DetectError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| DetectError::Read { path: path.to_owned(), source })
        };
        let magic = rustix::fs::statfs(MOUNT)
            .map_err(|e| DetectError::Read { path: MOUNT.into(), source: e.into() })?
            .f_type as u64;
        let found = if magic == CGROUP2_MAGIC {
            let mount = PathBuf::from(MOUNT);
            let controllers = read(&mount.join("cgroup.controllers"))?;
            Self::V2 { mount, controllers: controllers.split_whitespace().map(str::to_owned).collect() }
        } else {
            Self::V1(v1_mounts(&read(Path::new("/proc/self/mountinfo"))?))
        };
        found.check()
    }

    /// v1 or v2.
    pub fn version(&self) -> CgroupVersion {
        match self {
            Self::V1(_) => CgroupVersion::V1,
            Self::V2 { .. } => CgroupVersion::V2,
        }
    }

    /// Names of the controllers.
    pub fn controllers(&self) -> Vec<String> {
        match self {
            Self::V1(mounts) => mounts.keys().cloned().collect(),
            Self::V2 { controllers, .. } => controllers.clone(),
        }
    }

    /// Whether the kernel counts swap by cgroup: the file of its limit is there.
    pub fn accounts_swap(&self) -> bool {
        match self {
            Self::V1(mounts) => {
                mounts.get("memory").is_some_and(|mount| mount.join("memory.memsw.limit_in_bytes").exists())
            }
            // The root has no limits; whatever is below it shows which files there are.
            Self::V2 { mount, .. } => std::fs::read_dir(mount)
                .is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|e| e.path().join("memory.swap.max").exists()))),
        }
    }

    fn check(self) -> Result<Self, DetectError> {
        let needed: &[&'static str] = match self {
            Self::V1(_) => &["cpu", "cpuacct", "cpuset", "memory"],
            Self::V2 { .. } => &["cpu", "cpuset", "memory"],
        };
        let found = self.controllers();
        let missing: Vec<&'static str> = needed.iter().copied().filter(|c| !found.iter().any(|f| f == c)).collect();
        if missing.is_empty() { Ok(self) } else { Err(DetectError::MissingControllers { missing, found }) }
    }
}

/// Controllers and mount points of `/proc/self/mountinfo` (proc_pid_mountinfo(5)); of several mounts, the shortest path.
fn v1_mounts(mountinfo: &str) -> BTreeMap<String, PathBuf> {
    let mut mounts: BTreeMap<String, PathBuf> = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut fields = after.split(' ');
        let kind = fields.next();
        let (Some(point), Some(options)) = (before.split(' ').nth(4), fields.nth(1)) else { continue };
        if kind == Some("cgroup2") && point == HYBRID {
            mounts.insert(UNIFIED.to_owned(), PathBuf::from(point));
        }
        if kind != Some("cgroup") {
            continue;
        }
        for controller in
            options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "noprefix" | "nsdelegate"))
        {
            let point = PathBuf::from(point);
            let shortest = mounts.entry(controller.to_owned()).or_insert_with(|| point.clone());
            if point.as_os_str().len() < shortest.as_os_str().len() {
                *shortest = point;
            }
        }
    }
    mounts
}

/// Sizes of huge pages that the kernel offers, in bytes, from `/sys/kernel/mm/hugepages/hugepages-<n>kB`.
pub fn huge_page_sizes() -> Vec<i64> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut sizes: Vec<i64> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let kib: i64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(kib * 1024)
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_mount_is_one_more_hierarchy_of_v1() {
        let mountinfo = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:29 / /mnt/a/much/longer/place/elsewhere rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:38 / /run/somebody/cgroup2 rw,relatime - cgroup2 cgroup2 rw
";
        let mounts = v1_mounts(mountinfo);
        let expected = [
            ("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
            ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/memory"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
            ("unified", "/sys/fs/cgroup/unified"),
        ];
        assert_eq!(mounts, expected.into_iter().map(|(c, p)| (c.to_owned(), p.into())).collect());
    }

    #[test]
    fn swap_is_accounted_where_its_limit_is_a_file() {
        let mount = tempfile::tempdir().unwrap();
        let v1 = Hierarchies::V1([("memory".to_owned(), mount.path().to_owned())].into());
        let v2 = Hierarchies::V2 { mount: mount.path().to_owned(), controllers: Vec::new() };
        std::fs::create_dir(mount.path().join("system.slice")).unwrap();
        assert!(!v1.accounts_swap() && !v2.accounts_swap());
        std::fs::write(mount.path().join("memory.memsw.limit_in_bytes"), "").unwrap();
        std::fs::write(mount.path().join("system.slice/memory.swap.max"), "").unwrap();
        assert!(v1.accounts_swap() && v2.accounts_swap());
    }

    #[test]
    fn missing_controllers_are_named() {
        let error = Hierarchies::V1([("cpu".to_owned(), "/x".into())].into()).check().unwrap_err();
        assert!(error.to_string().contains(r#"["cpuacct", "cpuset", "memory"]"#), "{error}");
    }

    #[test]
    fn this_machine_has_cgroups() {
        Hierarchies::detect().expect("the test machine has cgroups");
    }
}
