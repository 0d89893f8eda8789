//! Putting one volume in place, and the other files of a pod's directory. Blocking; runs on a thread of its own.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use k8s_openapi::api::core::v1::Pod;

use super::content::Payload;
use super::ownership::{Access, set_group};
use super::plan::{Medium, Observed, Source, Step, Wanted, step};
use super::safe_path::{Dir, PathError, error, identity, open_subpath};
use super::{PlacedVolume, SetUpFailure, atomic_write, host_path, local, mount, stats};
use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::{ObjectKey, PodUid};
use crate::metrics::METRICS;

const PRIVATE: u32 = 0o750;
const OPEN: u32 = 0o777;
const READY: &str = "ready";

/// A volume with everything that it needs from elsewhere.
pub(super) struct Job {
    pub(super) wanted: Wanted,
    /// Files of an atomic volume.
    pub(super) payload: Result<Payload, String>,
    /// A missing payload may come yet: what an earlier agent wrote is used meanwhile.
    pub(super) is_transient: bool,
    /// Size of its tmpfs.
    pub(super) size: Option<u64>,
}

/// What all volumes of a pod have in common.
pub(super) struct PodFiles {
    /// `fsGroup`.
    pub(super) group: Option<u32>,
    /// `fsGroupChangePolicy: OnRootMismatch`.
    pub(super) on_mismatch_only: bool,
    pub(super) now: SystemTime,
    pub(super) reporter: Reporter,
}

/// Tells people about work on a pod's volumes that is slow or doubtful.
pub(super) struct Reporter {
    recorder: Recorder,
    subject: Subject,
}

impl Reporter {
    pub(super) fn new(pod: &Pod, recorder: Recorder) -> Self {
        let meta = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = ObjectKey::new(text(&meta.namespace).as_str(), text(&meta.name).as_str());
        let subject = Subject::Pod { key, uid: PodUid::new(text(&meta.uid)), field_path: String::new() };
        Self { recorder, subject }
    }

    pub(super) fn warn(&self, reason: &'static str, message: String) {
        self.recorder.emit(Event { subject: self.subject.clone(), kind: EventType::Warning, reason, message });
    }
}

/// A volume that is in place.
pub(super) struct Made {
    pub(super) volume: PlacedVolume,
    /// It holds what an earlier agent wrote, because its objects cannot be read now.
    pub(super) is_stale: bool,
}

/// Sets up all volumes; a failed one does not keep the others. Answers them by name, and what failed.
pub(super) fn set_up_all(pod: &Dir, jobs: &[Job], files: &PodFiles) -> (BTreeMap<String, Made>, Vec<SetUpFailure>) {
    let mut made = BTreeMap::new();
    let mut failures = Vec::new();
    for job in jobs {
        let began = Instant::now();
        let done = set_up(pod, job, files).and_then(|placed| {
            local::record_claim(pod, &job.wanted).map_err(|e| SetUpFailure::set_up(&job.wanted.name, e.to_string()))?;
            Ok(placed)
        });
        if let Some((plugin, operation)) = stats::operation(&job.wanted) {
            METRICS.storage.observe(&plugin, operation, began.elapsed(), done.is_ok());
        }
        match done {
            Ok((path, is_stale)) => {
                let is_device = matches!(job.wanted.source, Source::LocalDevice { .. });
                let volume = PlacedVolume { path, read_only: job.wanted.read_only, is_device };
                made.insert(job.wanted.name.clone(), Made { volume, is_stale });
            }
            Err(failure) => failures.push(failure),
        }
    }
    (made, failures)
}

/// Answers the path, and whether the content is an earlier agent's.
fn set_up(pod: &Dir, job: &Job, files: &PodFiles) -> Result<(PathBuf, bool), SetUpFailure> {
    let failed = |reason: String| SetUpFailure::set_up(&job.wanted.name, reason);
    let text = |e: PathError| failed(e.to_string());
    match &job.wanted.source {
        Source::Failed(failure) => Err(failure.clone()),
        Source::Claim(claim) => Err(failed(format!("claim {:?} was not looked up", claim.claim))),
        Source::HostPath { path, kind } => {
            let name = job.wanted.claimed.as_ref().map_or(&job.wanted.name, |claimed| &claimed.pv);
            host_path::ensure(Path::new(path), *kind).map_err(|reason| SetUpFailure::set_up(name, reason))?;
            Ok((PathBuf::from(path), false))
        }
        Source::Local { path, options } => {
            Ok((local::set_up(pod, &job.wanted, Path::new(path), options, files)?, false))
        }
        Source::LocalDevice { path } => Ok((local::set_up_device(pod, &job.wanted, Path::new(path))?, false)),
        Source::EmptyDir { medium, .. } => {
            let place = Place { job, medium: *medium, marker: job.wanted.name.clone() };
            let (directory, step) = place.ensure(pod).map_err(text)?;
            if let (Some(gid), Step::SetUp) = (files.group, step) {
                set_group(&directory, gid, Access::ReadWrite).map_err(text)?;
            }
            place.mark_ready(pod).map_err(text)?;
            Ok((directory.path().to_owned(), false))
        }
        Source::Atomic(atomic) => {
            let marker = format!("wrapped_{}", job.wanted.name);
            let place = Place { job, medium: atomic.medium, marker };
            let payload = match &job.payload {
                Ok(payload) => payload,
                Err(reason) => {
                    let kept = if job.is_transient { place.kept(pod).map_err(text)? } else { None };
                    return kept
                        .map(|directory| (directory.path().to_owned(), true))
                        .ok_or_else(|| failed(reason.clone()));
                }
            };
            let (directory, _) = place.ensure(pod).map_err(text)?;
            for nested in &job.wanted.nested {
                directory.ensure(nested, 0o755).map_err(text)?;
            }
            atomic_write::write(&directory, payload, files.group, files.now).map_err(text)?;
            place.mark_ready(pod).map_err(text)?;
            Ok((directory.path().to_owned(), false))
        }
    }
}

/// The directory of a volume in the pod's.
struct Place<'a> {
    job: &'a Job,
    medium: Medium,
    /// Directory of kubelet's marker; volumes that are written by the agent are "wrapped" in an emptyDir there.
    marker: String,
}

impl Place<'_> {
    fn relative(&self) -> String {
        format!("volumes/{}/{}", self.job.wanted.source.plugin().unwrap_or_default(), self.job.wanted.name)
    }

    fn marker(&self) -> String {
        format!("plugins/kubernetes.io~empty-dir/{}", self.marker)
    }

    /// The directory, if an earlier set-up was finished.
    fn kept(&self, pod: &Dir) -> Result<Option<Dir>, PathError> {
        Ok(self.look(pod)?.1.filter(|(_, step)| *step == Step::Keep).map(|(directory, _)| directory))
    }

    fn look(&self, pod: &Dir) -> Result<(Observed, Option<(Dir, Step)>), PathError> {
        let found = pod.child_if_there(&self.relative())?;
        let observed = Observed {
            ready: pod.handle(&format!("{}/{READY}", self.marker())).is_ok(),
            exists: found.is_some(),
            mounted: found.as_ref().map(Dir::identity).transpose()?.is_some_and(|i| i.is_mount_root),
        };
        Ok((observed, found.map(|directory| (directory, step(self.medium, observed)))))
    }

    fn ensure(&self, pod: &Dir) -> Result<(Dir, Step), PathError> {
        let relative = self.relative();
        let observed = match self.look(pod)? {
            (_, Some((directory, Step::Keep))) => return Ok((directory, Step::Keep)),
            (observed, _) => observed,
        };
        let (parent, name) = relative.rsplit_once('/').unwrap_or(("", &relative));
        let directory = pod.ensure(parent, PRIVATE)?.ensure(name, OPEN)?;
        match self.medium {
            Medium::Memory | Medium::HugePages(_) if observed.mounted => {}
            Medium::Disk => {}
            Medium::Memory => {
                directory.set_mode(OPEN)?;
                mount::mount_tmpfs(&directory, self.job.size)?;
            }
            Medium::HugePages(page) => mount::mount_huge_pages(&directory, page, OPEN)?,
        }
        // Opened again: the mount covers what was opened before it.
        Ok((pod.child(&relative)?, Step::SetUp))
    }

    fn mark_ready(&self, pod: &Dir) -> Result<(), PathError> {
        let marker = self.marker();
        if pod.handle(&format!("{marker}/{READY}")).is_ok() {
            return Ok(());
        }
        pod.ensure(&marker, PRIVATE)?.write(READY, 0o644, b"").map(drop)
    }
}

/// Where a subPath is made visible.
pub(super) struct SubPathPlace<'a> {
    pub(super) volume: &'a str,
    pub(super) container: &'a str,
    pub(super) index: usize,
}

/// Binds what `subpath` leads to in a volume to a path that no container controls.
pub(super) fn bind_subpath(
    pod: &Dir,
    volume_path: &Path,
    subpath: &str,
    place: &SubPathPlace<'_>,
) -> Result<PathBuf, PathError> {
    let volume = Dir::open(volume_path)?;
    let source = open_subpath(&volume, subpath)?;
    let found = identity(source.as_fd(), &volume_path.join(subpath))?;
    let parent = pod.ensure(&format!("volume-subpaths/{}/{}", place.volume, place.container), PRIVATE)?;
    let name = place.index.to_string();
    let path = parent.path().join(&name);
    if let Ok(existing) = parent.handle(&name) {
        let existing = identity(existing.as_fd(), &path)?;
        if existing.is_mount_root && existing.same_file(&found) {
            return Ok(path);
        }
        remove_target(&parent, &name, &path, existing.is_mount_root)?;
    }
    if found.is_dir() {
        parent.ensure(&name, PRIVATE)?;
    } else {
        parent.write(&name, 0o640, b"")?;
    }
    let target = parent.handle(&name)?;
    mount::bind(source.as_fd(), target.as_fd()).map_err(|e| error("bind subPath to", &path, e))?;
    Ok(path)
}

/// Removes the target of an earlier bind. Never what was bound: a target that is still a mount is not touched.
fn remove_target(parent: &Dir, name: &str, path: &Path, is_mount_root: bool) -> Result<(), PathError> {
    if is_mount_root {
        mount::unmount(path)?;
    }
    let flags = [rustix::fs::AtFlags::empty(), rustix::fs::AtFlags::REMOVEDIR];
    let removed = flags.into_iter().any(|flags| rustix::fs::unlinkat(parent, name, flags).is_ok());
    let reason = || std::io::Error::other("it is neither a file nor an empty directory");
    if removed { Ok(()) } else { Err(error("replace", path, reason())) }
}

/// Writes the pod's hosts file. Containers have the file mounted, so its inode stays.
pub(super) fn write_etc_hosts(pod: &Dir, content: &str) -> Result<PathBuf, PathError> {
    const NAME: &str = "etc-hosts";
    let is_current = pod.read(NAME, content.len() as u64 + 1).is_ok_and(|found| found == content.as_bytes());
    if !is_current {
        pod.write(NAME, 0o644, content.as_bytes())?;
    }
    Ok(pod.path().join(NAME))
}

/// Makes the file that a container writes its last message to. Any user of the container may write to it.
pub(super) fn termination_log(pod: &Dir, container: &str, id: &str) -> Result<PathBuf, PathError> {
    let directory = pod.ensure(&format!("containers/{container}"), PRIVATE)?;
    if directory.handle(id).is_err() {
        directory.write(id, 0o666, b"")?;
    }
    Ok(directory.path().join(id))
}

const USER_NAMESPACE: &str = "userns";

/// The file of a pod's user namespace, if it has one.
pub(super) fn read_user_namespace(pod: &Dir) -> Result<Option<Vec<u8>>, PathError> {
    // kubelet's file has 150 bytes.
    match pod.read(USER_NAMESPACE, 4096) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes it so that it is there whole or not at all, also after a power cut: the pod's files belong to these ids.
pub(super) fn write_user_namespace(pod: &Dir, text: &str) -> Result<(), PathError> {
    const NEW: &str = ".userns.new";
    let path = pod.path().join(USER_NAMESPACE);
    let file = pod.write(NEW, 0o600, text.as_bytes())?;
    rustix::fs::fsync(&file).map_err(|e| error("sync", &path, e))?;
    rustix::fs::renameat(pod, NEW, pod, USER_NAMESPACE).map_err(|e| error("rename to", &path, e))?;
    rustix::fs::fsync(pod).map_err(|e| error("sync", pod.path(), e))
}
