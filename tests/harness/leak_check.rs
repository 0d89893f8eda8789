//! What is left of a node on the host after it was dropped, and whether the host's own network is as before.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Everything on the host that carries a name made by [`crate::names::unique`]: namespaces, mounts, cgroups,
/// directories and processes.
pub fn remains(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    // nlt-1-1 is the beginning of nlt-1-11, too.
    let has = |text: &str| {
        text.match_indices(name).any(|(at, _)| !text[at + name.len()..].starts_with(|c: char| c.is_ascii_digit()))
    };
    if Path::new("/run/netns").join(name).exists() {
        found.push(format!("namespace {name}"));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| has(line)).map(|line| format!("mount {line}")));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let cgroup = hierarchy.path().join(name);
        if cgroup.exists() {
            found.push(format!("cgroup {}", cgroup.display()));
        }
    }
    let directory = std::env::temp_dir().join(name);
    if directory.exists() {
        found.push(format!("directory {}", directory.display()));
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if has(&command) {
            found.push(format!("process {} {command}", process.file_name().to_string_lossy()));
        }
    }
    found
}

/// The rules and links of the host's own namespace, which tests may not touch.
#[derive(Debug, PartialEq, Eq)]
pub struct HostNetwork {
    tables: String,
    links: String,
    forwarding: String,
}

impl HostNetwork {
    /// Looks.
    pub fn now() -> anyhow::Result<Self> {
        let links = fs::read_dir("/sys/class/net").context("/sys/class/net")?.flatten();
        let mut links: Vec<String> = links.map(|link| link.file_name().to_string_lossy().into_owned()).collect();
        links.sort();
        Ok(Self {
            tables: run("nft", &["list", "tables"])?,
            links: links.join(" "),
            forwarding: fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?,
        })
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let done = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    ensure!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
