//! What pods and the node use, measured when somebody asks and at no other time.
//!
//! Containers and sandboxes come from the runtime (CRI `ListContainerStats`, `ListPodSandboxStats`), the node from `/proc` and
//! from the file systems. Rates need two measurements: the last one is kept, so that a scraper sees the rate since its own
//! last visit, and the very first visit sees none.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::volumes::VolumeMeter;
use crate::cgroup::Cgroups;
pub use crate::cgroup::figures::{Pressure, Waited};
use crate::cri::{CriError, Runtime};

mod convert;
pub mod kernel;
mod node;
pub mod opened;
mod system;

pub(super) use node::file_system;
use node::read_node;
pub use system::SystemUsage;

/// In front of the UID: the id of a pod without figures of a sandbox.
const SUM: &str = "pod/";
/// So long a measurement is good for others.
const SHARED: Duration = Duration::from_secs(1);

/// Processor time and how fast it grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// When it was measured.
    pub time: Timestamp,
    /// Nanoseconds of one core since the beginning.
    pub total: u64,
    /// Nanoseconds of a core in a second, since the last measurement.
    pub rate: Option<u64>,
    /// How long tasks waited for it.
    pub pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// When it was measured.
    pub time: Timestamp,
    /// In use and not reclaimable at once.
    pub working_set: u64,
    /// In use, caches included.
    pub usage: u64,
    /// Anonymous.
    pub rss: u64,
    /// Left up to the limit; `None` without one.
    pub available: Option<u64>,
    /// Faults, and those that read from disk.
    pub faults: (u64, u64),
    /// How long tasks waited for it.
    pub pressure: Option<Pressure>,
}

/// Swap, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    /// When it was measured.
    pub time: Timestamp,
    /// In use.
    pub used: u64,
    /// Left, where there is a limit.
    pub available: Option<u64>,
}

/// A file system, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Size.
    pub capacity: u64,
    /// Left for us.
    pub available: u64,
    /// In use.
    pub used: u64,
    /// Number of inodes.
    pub inodes: u64,
    /// Free ones.
    pub inodes_free: u64,
}

/// Traffic of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Bytes and errors, received.
    pub received: (u64, u64),
    /// Bytes and errors, sent.
    pub sent: (u64, u64),
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// The runtime's id.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// UID, namespace and name of its pod.
    pub pod: PodName,
    /// Processor.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Swap.
    pub swap: Option<Swap>,
    /// How long tasks waited for disks.
    pub io: Option<(Timestamp, Pressure)>,
    /// Bytes and inodes of its writable layer.
    pub layer: Option<(u64, u64)>,
    /// Bytes of its log files, and how many there are.
    pub logs: Option<(u64, u64)>,
}

/// Whose usage it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

/// One pod as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Which.
    pub pod: PodName,
    /// The sandbox.
    pub id: String,
    /// Processor.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Traffic, the default interface first.
    pub network: Vec<Interface>,
    /// Processes.
    pub processes: Option<u64>,
}

impl PodUsage {
    /// Whether it is the sum of its containers, and not of a sandbox.
    pub fn is_sum(&self) -> bool {
        self.id.starts_with(SUM)
    }
}

/// The node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// When it started.
    pub started: Timestamp,
    /// Processor.
    pub cpu: Cpu,
    /// Memory; `available` is up to the size of the machine.
    pub memory: Memory,
    /// Swap; `None` on a node without.
    pub swap: Option<Swap>,
    /// How long tasks waited for disks.
    pub io: Option<(Timestamp, Pressure)>,
    /// The file system of the kubelet's directory.
    pub root: FileSystem,
    /// The file system of images, and the bytes that they use of it.
    pub images: Option<(FileSystem, u64)>,
    /// Traffic, the interface of the default route first.
    pub network: Vec<Interface>,
    /// Processes that may exist, and that do.
    pub processes: (u64, u64),
    /// Processors.
    pub cpus: usize,
    /// Where images are.
    pub image_dir: Option<PathBuf>,
}

/// Everything, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The node.
    pub node: NodeUsage,
    /// Pods.
    pub pods: Vec<PodUsage>,
    /// Containers.
    pub containers: Vec<ContainerUsage>,
}

/// What is measured.
pub struct Sources {
    /// The runtime.
    pub runtime: Runtime,
    /// kubelet's directory, for its file system.
    pub root_dir: PathBuf,
    /// Logs of pods.
    pub log_dir: PathBuf,
    /// The cgroup tree.
    pub cgroups: Cgroups,
    /// Volumes.
    pub volumes: VolumeMeter,
}

/// Measures.
pub struct Meter {
    sources: Sources,
    system: system::Places,
    /// The image that sandboxes are made from.
    sandbox_image: tokio::sync::OnceCell<String>,
    /// One look at all cgroups at a time.
    survey: tokio::sync::Mutex<()>,
    /// Total and time of the last measurement, by id; the node is the empty one.
    last: Mutex<HashMap<String, (u64, Timestamp)>>,
    /// The newest measurement; held while one is made.
    newest: tokio::sync::Mutex<Option<(Instant, Arc<Usage>)>>,
}

impl Meter {
    /// A meter that has measured nothing yet.
    pub fn new(sources: Sources) -> Self {
        let (sandbox_image, survey, last, newest) = Default::default();
        Self { sources, system: system::Places::new(Timestamp::now()), sandbox_image, survey, last, newest }
    }

    /// What the agent, the runtime and all pods use, as far as they have cgroups.
    pub async fn system(&self) -> Vec<SystemUsage> {
        self.system.measure(&self.sources.cgroups, self.sources.runtime.socket()).await
    }

    /// The meter of volumes.
    pub fn volumes(&self) -> &VolumeMeter {
        &self.sources.volumes
    }

    /// Everything as it was within the last second. One measurement is made at a time, and who waited for it shares it: ten
    /// scrapers cost the runtime as much as one.
    pub async fn measure(&self) -> Result<Arc<Usage>, CriError> {
        let mut newest = self.newest.lock().await;
        if let Some((at, usage)) = newest.as_ref().filter(|(at, _)| at.elapsed() < SHARED) {
            tracing::trace!(age = ?at.elapsed(), "usage is shared");
            return Ok(usage.clone());
        }
        let usage = Arc::new(self.measure_now().await?);
        *newest = Some((Instant::now(), usage.clone()));
        Ok(usage)
    }

    async fn measure_now(&self) -> Result<Usage, CriError> {
        let Sources { runtime, root_dir, log_dir, .. } = &self.sources;
        let (containers, sandboxes, images) =
            tokio::join!(runtime.container_stats(), runtime.sandbox_stats(), runtime.image_fs());
        let mut containers: Vec<_> = containers?.into_iter().map(convert::container).collect();
        for container in &mut containers {
            let PodName { namespace, name, uid } = &container.pod;
            let directory = log_dir.join(format!("{namespace}_{name}_{uid}")).join(&container.name);
            container.logs = bytes_of_files(&directory);
        }
        // An old runtime does not know sandboxes' usage: pods are then the sums of their containers.
        let mut pods: Vec<_> = match sandboxes {
            Ok(sandboxes) => sandboxes.into_iter().map(convert::sandbox).collect(),
            Err(error) => {
                tracing::debug!(%error, "no usage of sandboxes");
                Vec::new()
            }
        };
        add_sums(&mut pods, &containers);
        let mut node = read_node(root_dir);
        if let Some(found) = images.unwrap_or_default().into_iter().next() {
            let path = PathBuf::from(found.fs_id.map(|id| id.mountpoint).unwrap_or_default());
            node.images = Some((file_system(&path), found.used_bytes.map_or(0, |value| value.value)));
            node.image_dir = Some(path).filter(|path| path.is_absolute());
        }
        let cpus = containers.iter_mut().map(|c| (&c.id, &mut c.cpu));
        let cpus = cpus.chain(pods.iter_mut().map(|p| (&p.id, &mut p.cpu)));
        self.rates(cpus.filter_map(|(id, cpu)| Some((id.as_str(), cpu.as_mut()?))).chain([("", &mut node.cpu)]));
        Ok(Usage { node, pods, containers })
    }

    /// Fills in rates and remembers this measurement; what was not measured this time is forgotten.
    fn rates<'a>(&self, cpus: impl Iterator<Item = (&'a str, &'a mut Cpu)>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = HashMap::with_capacity(last.len());
        for (id, cpu) in cpus {
            if let Some(&(total, time)) = last.get(id) {
                cpu.rate = rate((total, time), (cpu.total, cpu.time)).or(cpu.rate);
            }
            new.insert(id.to_owned(), (cpu.total, cpu.time));
        }
        *last = new;
    }
}

fn rate(before: (u64, Timestamp), now: (u64, Timestamp)) -> Option<u64> {
    let nanos = u128::try_from(now.1.as_nanosecond() - before.1.as_nanosecond()).ok().filter(|nanos| *nanos > 0)?;
    let used = u128::from(now.0.checked_sub(before.0)?);
    u64::try_from(used * 1_000_000_000 / nanos).ok()
}

/// Bytes and number of the files in a directory; `None` when it cannot be listed. Nothing is opened or followed.
fn bytes_of_files(directory: &Path) -> Option<(u64, u64)> {
    let files = std::fs::read_dir(directory).ok()?.flatten();
    let files = files.filter_map(|file| file.metadata().ok()).filter(std::fs::Metadata::is_file);
    Some(files.fold((0, 0), |(bytes, count), file| (bytes + file.len(), count + 1)))
}

/// Pods without figures of their own get the sums of their containers.
fn add_sums(pods: &mut Vec<PodUsage>, containers: &[ContainerUsage]) {
    for container in containers {
        if !pods.iter().any(|pod| pod.pod.uid == container.pod.uid) {
            let id = format!("{SUM}{}", container.pod.uid);
            pods.push(PodUsage { pod: container.pod.clone(), id, ..PodUsage::default() });
        }
    }
    for pod in pods {
        let own = || containers.iter().filter(|container| container.pod.uid == pod.pod.uid);
        if pod.cpu.is_none_or(|cpu| cpu.total == 0) {
            pod.cpu = own().filter_map(|container| container.cpu).reduce(|a, b| Cpu {
                time: a.time.max(b.time),
                total: a.total + b.total,
                rate: None,
                pressure: None,
            });
        }
        if pod.memory.is_none_or(|memory| memory.working_set == 0) {
            pod.memory = own().filter_map(|container| container.memory).reduce(|a, b| Memory {
                time: a.time.max(b.time),
                working_set: a.working_set + b.working_set,
                usage: a.usage + b.usage,
                rss: a.rss + b.rss,
                available: None,
                faults: (a.faults.0 + b.faults.0, a.faults.1 + b.faults.1),
                pressure: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_was_used_between_two_measurements() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(rate((1_000, at(10)), (2_000_001_000, at(20))), Some(200_000_000));
        assert_eq!(rate((5, at(10)), (9, at(10))), None);
        assert_eq!(rate((9, at(10)), (5, at(11))), None, "a counter that began anew");
    }

    #[test]
    fn logs_are_measured_with_their_rotated_files_and_without_what_is_linked() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log"), [0; 7]).unwrap();
        std::fs::write(dir.path().join("0.log.20260101-000000.gz"), [0; 5]).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("1.log")).unwrap();
        assert_eq!(bytes_of_files(dir.path()), Some((12, 2)));
        assert_eq!(bytes_of_files(&dir.path().join("nothing")), None);
    }

    #[test]
    fn pods_without_figures_of_their_own_are_the_sums_of_their_containers() {
        let pod = PodName { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let one = |total| ContainerUsage {
            pod: pod.clone(),
            cpu: Some(Cpu { total, ..Cpu::default() }),
            ..ContainerUsage::default()
        };
        let mut pods = Vec::new();
        add_sums(&mut pods, &[one(3), one(4)]);
        assert_eq!(pods.len(), 1);
        assert_eq!(pods[0].cpu.map(|cpu| cpu.total), Some(7));
    }
}
