//! What is left of a node on the host after it was dropped, and whether the host's own network is as before.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::containerd::cni_results;
use crate::node::Node;

/// Files that `nodelet-cni` keeps.
const OWN_BOOKS: [&str; 3] = ["lock", "leases.json", "leases.new"];

/// What is left of pods on a node that is to have none: containers and sandboxes, mounts and network namespaces,
/// directories, cgroups, links, addresses, shims and the agent's own records.
pub async fn remains_of_pods(node: &Node) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    found.extend(node.containers().await?.into_iter().map(|c| format!("container {} {:?}", c.id, c.labels)));
    found.extend(node.sandboxes().await?.into_iter().map(|s| format!("sandbox {} {:?}", s.id, s.metadata)));
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    found.extend(points.filter(|at| Path::new(at).starts_with(node.path(""))).map(|at| format!("mount {at}")));
    for directory in ["kubelet/pods", "pod-logs", "state/pods", "ctrd/cni/data/pods", "ctrd/state/netns"] {
        let entries = fs::read_dir(node.path(directory)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        // host-local and nodelet-cni keep their books beside the leases.
        let of_pods = names.filter(|name| !name.starts_with("last_reserved_ip") && !OWN_BOOKS.contains(&name.as_str()));
        found.extend(of_pods.map(|name| format!("{directory}/{name}")));
    }
    for leases in ["ctrd/cni/data/pods/leases.json", "state/cni/nodelet/leases.json"] {
        let text = fs::read_to_string(node.path(leases)).unwrap_or_default();
        let list: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap_or("{}"))?;
        found.extend(list["leases"].as_array().into_iter().flatten().map(|lease| format!("lease {lease}")));
    }
    let classes = ["kubepods", "kubepods/burstable", "kubepods/besteffort"];
    let cgroups = node.cgroups.children().into_iter().filter(|path| !classes.iter().any(|class| path.ends_with(class)));
    found.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
    let links = node.netns().ip("-br link")?;
    let names = links.lines().filter_map(|line| line.split(['@', ' ']).next());
    found.extend(
        names.filter(|name| !["lo", "eth0", "outside", "cni0"].contains(name)).map(|name| format!("link {name}")),
    );
    found.extend(shims(&node.containerd.socket().display().to_string()));
    found
        .extend(cni_results(&node.path("ctrd").display().to_string()).iter().map(|file| format!("{}", file.display())));
    Ok(found)
}

/// Whether containerd has lost this: 1.6 and 2.x now and then forget a shim whose start its client does not live to see (as
/// in containerd#8931 and #13692), with the root that it had mounted in containerd's own directory of tasks. Nothing that
/// CRI offers finds either; sandboxes and containers that CRI shows are listed beside them.
pub fn is_forgotten_by_containerd(what: &str) -> bool {
    let is_task_root = || what.starts_with("mount ") && what.contains("/ctrd/state/io.containerd.runtime.v2.task/");
    what.starts_with("shim ") || is_task_root()
}

/// Shims of one containerd.
fn shims(socket: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = processes.map(|process| fs::read(process.path().join("cmdline")).unwrap_or_default());
    let commands = commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " "));
    let of_socket = commands.filter(|command| command.contains("containerd-shim") && command.contains(socket));
    of_socket.map(|command| format!("shim {command}")).collect()
}

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
    found.extend(cni_results(&directory.display().to_string()).iter().map(|file| format!("{}", file.display())));
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
