//! Putting one volume in place, and the other files of a pod's directory. Blocking; runs on a thread of its own.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::content::Payload;
use super::ownership::{Access, set_group};
use super::plan::{Medium, Observed, Source, Step, Wanted, step};
use super::safe_path::{Dir, PathError, error, identity, open_subpath};
use super::{atomic_write, host_path, mount};

const PRIVATE: u32 = 0o750;
const OPEN: u32 = 0o777;
const READY: &str = "ready";

/// A volume with everything that it needs from elsewhere.
pub(super) struct Job {
    pub(super) wanted: Wanted,
    /// Files of an atomic volume.
    pub(super) payload: Result<Payload, String>,
    /// Size of its tmpfs.
    pub(super) size: Option<u64>,
}

/// What all volumes of a pod have in common.
#[derive(Clone, Copy)]
pub(super) struct PodFiles {
    pub(super) group: Option<u32>,
    pub(super) now: SystemTime,
}

/// Sets up all volumes; a failed one does not keep the others. Answers paths and problems by volume name.
pub(super) fn set_up_all(
    pod: &Dir,
    jobs: &[Job],
    files: PodFiles,
) -> (BTreeMap<String, PathBuf>, Vec<(String, String)>) {
    let mut paths = BTreeMap::new();
    let mut problems = Vec::new();
    for job in jobs {
        match set_up(pod, job, files) {
            Ok(path) => drop(paths.insert(job.wanted.name.clone(), path)),
            Err(problem) => problems.push((job.wanted.name.clone(), problem)),
        }
    }
    (paths, problems)
}

fn set_up(pod: &Dir, job: &Job, files: PodFiles) -> Result<PathBuf, String> {
    let text = |e: PathError| e.to_string();
    match &job.wanted.source {
        Source::Refused(reason) => Err(reason.clone()),
        Source::HostPath { path, kind } => {
            host_path::ensure(Path::new(path), *kind)?;
            Ok(PathBuf::from(path))
        }
        Source::EmptyDir { medium, .. } => {
            let place = Place { job, medium: *medium, marker: job.wanted.name.clone() };
            let (directory, step) = place.ensure(pod).map_err(text)?;
            if let (Some(gid), Step::SetUp) = (files.group, step) {
                set_group(&directory, gid, Access::ReadWrite).map_err(text)?;
            }
            place.mark_ready(pod).map_err(text)?;
            Ok(directory.path().to_owned())
        }
        Source::Atomic(atomic) => {
            let payload = job.payload.as_ref().map_err(Clone::clone)?;
            let marker = format!("wrapped_{}", job.wanted.name);
            let place = Place { job, medium: atomic.medium, marker };
            let (directory, _) = place.ensure(pod).map_err(text)?;
            for nested in &job.wanted.nested {
                directory.ensure(nested, 0o755).map_err(text)?;
            }
            atomic_write::write(&directory, payload, files.group, files.now).map_err(text)?;
            place.mark_ready(pod).map_err(text)?;
            Ok(directory.path().to_owned())
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

    fn ensure(&self, pod: &Dir) -> Result<(Dir, Step), PathError> {
        let relative = self.relative();
        let found = pod.child_if_there(&relative)?;
        let observed = Observed {
            ready: pod.handle(&format!("{}/{READY}", self.marker())).is_ok(),
            exists: found.is_some(),
            mounted: found.as_ref().map(Dir::identity).transpose()?.is_some_and(|i| i.is_mount_root),
        };
        if let (Step::Keep, Some(directory)) = (step(self.medium, observed), found) {
            return Ok((directory, Step::Keep));
        }
        let (parent, name) = relative.rsplit_once('/').unwrap_or(("", &relative));
        let directory = pod.ensure(parent, PRIVATE)?.ensure(name, OPEN)?;
        if self.medium == Medium::Memory && !observed.mounted {
            directory.set_mode(OPEN)?;
            mount::mount_tmpfs(&directory, self.job.size)?;
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
