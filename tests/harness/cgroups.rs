//! A cgroup of a node in every hierarchy, to be the parent of all its pods.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// The directory in which the hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Sub-directories of one name in all mounted hierarchies (v1 controllers, or the one of v2). Dropping kills what runs in
/// them and removes them.
#[derive(Debug)]
pub struct Cgroups {
    name: String,
    directories: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes them.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut made = Self { name: name.to_owned(), directories: Vec::new() };
        for hierarchy in hierarchies()? {
            let directory = hierarchy.join(name);
            fs::create_dir(&directory).with_context(|| format!("cannot make cgroup {}", directory.display()))?;
            made.directories.push(directory.clone());
            // A v1 cpuset starts empty, and no process can be put into an empty one.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if directory.join(file).exists() && hierarchy.ends_with("cpuset") {
                    let parent = fs::read_to_string(hierarchy.join(file))?;
                    fs::write(directory.join(file), parent.trim())
                        .with_context(|| format!("{file} of {}", directory.display()))?;
                }
            }
        }
        ensure!(!made.directories.is_empty(), "no cgroup hierarchy is mounted below {MOUNT}");
        Ok(made)
    }

    /// The path within each hierarchy, for `cgroupRoot`: `/NAME`.
    pub fn root(&self) -> String {
        format!("/{}", self.name)
    }

    /// The directories of a cgroup below, in every hierarchy that has it.
    pub fn find(&self, below: &str) -> Vec<PathBuf> {
        let directories = self.directories.iter().map(|directory| directory.join(below));
        directories.filter(|directory| directory.is_dir()).collect()
    }

    /// Cgroups below, as paths relative to the node's own, without repetition over hierarchies.
    pub fn children(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = Vec::new();
        for directory in &self.directories {
            walk(directory, &mut |path| {
                if let Ok(below) = path.strip_prefix(directory) {
                    all.push(below.to_path_buf());
                }
            });
        }
        all.sort();
        all.dedup();
        all
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.directories {
            remove(directory);
        }
    }
}

/// All mounted hierarchies: v1 controllers, and v2, in which runc makes directories too where both are mounted.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_cgroups = fields.filter(|f| f.len() > 2 && (f[2] == "cgroup" || f[2] == "cgroup2"));
    Ok(of_cgroups.map(|f| PathBuf::from(f[1])).filter(|path| path.starts_with(MOUNT)).collect())
}

fn walk(directory: &Path, see: &mut impl FnMut(&Path)) {
    for child in fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            see(&child.path());
            walk(&child.path(), see);
        }
    }
}

/// Kills all processes in a cgroup and below, then removes it.
fn remove(directory: &Path) {
    let mut all = vec![directory.to_path_buf()];
    walk(directory, &mut |path| all.push(path.to_path_buf()));
    let deadline = Instant::now() + Duration::from_secs(10);
    // Parents come before children in `all`.
    for cgroup in all.iter().rev() {
        while cgroup.is_dir() && fs::remove_dir(cgroup).is_err() && Instant::now() < deadline {
            for line in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default().lines() {
                kill(line.parse().unwrap_or(0));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Ends a process at once; one that is gone already is what was wanted.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
