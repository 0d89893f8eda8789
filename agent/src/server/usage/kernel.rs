//! What the kernel says of cgroups, of networks of pods and of disks, read when `/metrics/cadvisor` is asked for.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::opened::{Opened, opened};
use super::{FileSystem, Meter, PodName, Usage, file_system};
use crate::cgroup::{CgroupError, Place, Surveyed};
use crate::cri::PodIdentity;
use crate::node::facts::{self, MachineFacts};

/// Cgroups as they are, and the machine.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// All of them.
    pub cgroups: Vec<Surveyed>,
    /// Pods by the ids of their sandboxes.
    pub sandboxes: BTreeMap<String, PodName>,
    /// Traffic by the path of a cgroup: of sandboxes, and of the machine.
    pub traffic: BTreeMap<String, Vec<Traffic>>,
    /// Open files by the path of a container's cgroup.
    pub opened: BTreeMap<String, Opened>,
    /// `/dev/NAME` of disks that cgroups used, by their numbers.
    pub disks: BTreeMap<(u32, u32), String>,
    /// The file systems of the kubelet's directory and of images, by device.
    pub file_systems: BTreeMap<String, FileSystem>,
    /// The device of the file system of images; empty where it is none of the machine's.
    pub image_device: String,
    /// The machine.
    pub machine: MachineFacts,
    /// Cores and sockets.
    pub cores: (usize, usize),
    /// The image that sandboxes are made from.
    pub sandbox_image: String,
}

/// Bytes, packets, errors and drops of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Its name.
    pub interface: String,
    /// Received.
    pub received: [u64; 4],
    /// Sent.
    pub sent: [u64; 4],
}

impl Meter {
    /// Reads the cgroups of what `usage` names.
    pub async fn kernel(&self, usage: &Usage) -> Result<Kernel, CgroupError> {
        let _turn = self.survey.lock().await;
        let sources = &self.sources;
        let daemons = self.system.places(&sources.cgroups, sources.runtime.socket()).await;
        let daemons = daemons.into_iter().filter(|(name, _)| *name != "pods").map(|(_, path)| path).collect();
        let cgroups = sources.cgroups.survey(daemons).await?;
        let sandbox_image = self.sandbox_image().await;
        let images = usage.node.image_dir.clone();
        let (root_dir, sandboxes) = (sources.root_dir.clone(), self.sandboxes(usage).await);
        let work = move || read(cgroups, sandboxes, sandbox_image, &root_dir, images);
        tokio::task::spawn_blocking(work).await.map_err(|_| CgroupError::Cancelled)
    }

    /// Those that the runtime gave figures for; one without figures of sandboxes is asked which there are.
    async fn sandboxes(&self, usage: &Usage) -> BTreeMap<String, PodName> {
        if !usage.pods.iter().any(super::PodUsage::is_sum) {
            return usage.pods.iter().map(|pod| (pod.id.clone(), pod.pod.clone())).collect();
        }
        let listed = self.sources.runtime.list_all().await.map(|listing| listing.sandboxes).unwrap_or_default();
        let named = listed.into_iter().filter(|sandbox| sandbox.ready).filter_map(|sandbox| {
            let PodIdentity { uid, namespace, name } = sandbox.pod?;
            Some((sandbox.id.to_string(), PodName { namespace, name, uid: uid.to_string() }))
        });
        named.collect()
    }

    /// It is asked for once: a runtime keeps it until it starts again.
    async fn sandbox_image(&self) -> String {
        let asked = async || self.sources.runtime.sandbox_image().await.map(Option::unwrap_or_default);
        self.sandbox_image.get_or_try_init(asked).await.cloned().unwrap_or_default()
    }
}

fn read(
    cgroups: Vec<Surveyed>,
    sandboxes: BTreeMap<String, PodName>,
    sandbox_image: String,
    root_dir: &Path,
    images: Option<PathBuf>,
) -> Kernel {
    let mut traffic = BTreeMap::new();
    for cgroup in &cgroups {
        let process = match &cgroup.place {
            Place::Root => "self".to_owned(),
            // Other containers of the pod have the same network.
            Place::Container(_, id) if sandboxes.contains_key(id) => {
                let Some(pid) = cgroup.figures.processes.first() else { continue };
                pid.to_string()
            }
            Place::Container(..) | Place::Pods | Place::Pod(_) | Place::Daemon => continue,
        };
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{process}/net/dev")) {
            traffic.insert(cgroup.path.clone(), interfaces(&text));
        }
    }
    let containers = cgroups.iter().filter(|cgroup| matches!(cgroup.place, Place::Container(..)));
    let opened = containers.map(|one| (one.path.clone(), opened(Path::new("/proc"), &one.figures.processes))).collect();
    let used = cgroups.iter().flat_map(|cgroup| &cgroup.figures.disks).map(|disk| disk.device);
    let disks = used.map(|device| (device, device_name(device))).collect();
    let mut file_systems = BTreeMap::new();
    let mut image_device = String::new();
    for (path, is_of_images) in [(Some(root_dir.to_owned()), false), (images, true)] {
        let Some((path, device)) = path.and_then(|path| Some((path.clone(), device_of(&path)?))) else { continue };
        file_systems.insert(device.clone(), file_system(&path));
        if is_of_images {
            image_device = device;
        }
    }
    let (machine, cores) = (facts::read(root_dir), topology(Path::new("/sys/devices/system/cpu")));
    Kernel { cgroups, sandboxes, traffic, opened, disks, file_systems, image_device, machine, cores, sandbox_image }
}

/// `/proc/PID/net/dev` without the interfaces that cAdvisor leaves out.
fn interfaces(text: &str) -> Vec<Traffic> {
    let one = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let name = name.trim();
        let numbers: Vec<u64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let is_left_out = ["lo", "veth", "docker", "nerdctl"].iter().any(|prefix| name.starts_with(prefix));
        let four = |from: usize| numbers.get(from..from + 4)?.try_into().ok();
        (!is_left_out).then_some(Traffic { interface: name.to_owned(), received: four(0)?, sent: four(8)? })
    };
    text.lines().filter_map(one).collect()
}

/// `/dev/sda` for 8:0; empty for what is no disk of the machine.
fn device_name((major, minor): (u32, u32)) -> String {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    name.map(|name| format!("/dev/{name}")).unwrap_or_default()
}

/// The device of the file system of a path; `None` where it has none, as an overlay.
fn device_of(path: &Path) -> Option<String> {
    let number = path.metadata().ok()?.dev();
    let name = device_name((rustix::fs::major(number), rustix::fs::minor(number)));
    Some(name).filter(|name| !name.is_empty())
}

/// Cores and sockets of a directory like `/sys/devices/system/cpu`; on a machine that does not tell, none.
fn topology(directory: &Path) -> (usize, usize) {
    let (mut cores, mut sockets) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let number = |file: &str| {
            let text = std::fs::read_to_string(entry.path().join("topology").join(file)).ok()?;
            text.trim().parse::<i64>().ok()
        };
        if let (Some(socket), Some(core)) = (number("physical_package_id"), number("core_id")) {
            cores.insert((socket, core));
            sockets.insert(socket);
        }
    }
    (cores.len(), sockets.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_read_with_packets_errors_and_drops_and_without_local_interfaces() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n\
                    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 9 50 6 7 8 0 0 0 0\n\
                    veth12: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  odd: 1 2\n";
        let expected = Traffic { interface: "eth0".into(), received: [10, 2, 3, 4], sent: [50, 6, 7, 8] };
        assert_eq!(interfaces(text), [expected]);
    }

    #[test]
    fn threads_of_a_core_are_one_core_and_cores_of_a_socket_one_socket() {
        let directory = tempfile::tempdir().unwrap();
        for (cpu, socket, core) in [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 1, 0)] {
            let topology = directory.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("physical_package_id"), format!("{socket}\n")).unwrap();
            std::fs::write(topology.join("core_id"), format!("{core}\n")).unwrap();
        }
        std::fs::create_dir(directory.path().join("cpufreq")).unwrap();
        assert_eq!(topology(directory.path()), (3, 2));
        assert_eq!(topology(&directory.path().join("none")), (0, 0));
    }
}
