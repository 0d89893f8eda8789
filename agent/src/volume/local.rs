//! PersistentVolumes that are directories or block devices of this node, and the record of what a claim came to.
//!
//! A directory is bound to `volumes/kubernetes.io~local-volume/PV` of the pod, a block device linked from
//! `volumeDevices/kubernetes.io~local-volume/PV`, as kubelet does. Not done: making a file system on a block device for
//! `volumeMode: Filesystem` (kubelet runs `mkfs`; this agent executes no programs), and the loop device by which kubelet
//! keeps a block device busy.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType};

use super::claim::{BindOption, Claimed};
use super::ownership::{Access, is_given, set_group_and_tell};
use super::plan::{LOCAL_PLUGIN, Wanted};
use super::safe_path::{Dir, PathError, error};
use super::setup::{PodFiles, Reporter};
use super::{SetUpFailure, mount};

/// Records are the agent's own; kubelet deletes directories below `plugins/` that it does not know with the pod.
const RECORDS: &str = "plugins/nodelet~claim";
/// Largest record that is read; a path and a few names.
const MAX_RECORD: u64 = 64 * 1024;
const PRIVATE: u32 = 0o750;

/// kubelet tells of a slow walk after 30 s and then each minute.
const FIRST_REPORT: Duration = Duration::from_secs(30);
const NEXT_REPORT: Duration = Duration::from_secs(60);

/// Binds a directory of the host into the pod's directory and gives it to the pod's group.
pub(super) fn set_up(
    pod: &Dir,
    wanted: &Wanted,
    path: &Path,
    options: &[BindOption],
    files: &PodFiles,
) -> Result<PathBuf, SetUpFailure> {
    let pv = pv_name(wanted);
    let failed = |e: PathError| SetUpFailure::set_up(pv, e.to_string());
    let relative = format!("volumes/{LOCAL_PLUGIN}/{pv}");
    let there = pod.child_if_there(&relative).map_err(failed)?;
    let is_mounted = match &there {
        Some(directory) => directory.identity().map_err(failed)?.is_mount_root,
        None => false,
    };
    if !is_mounted {
        let source = open_source(pv, path)?;
        let target = pod
            .ensure(&format!("volumes/{LOCAL_PLUGIN}"), PRIVATE)
            .and_then(|d| d.ensure(pv, PRIVATE))
            .map_err(failed)?;
        let read_only = wanted.read_only.then_some(BindOption::Ro);
        let options: Vec<BindOption> = options.iter().copied().chain(read_only).collect();
        mount::bind_restricted(source.as_fd(), target.as_fd(), &options)
            .map_err(|e| failed(error("bind the volume to", target.path(), e)))?;
    }
    // Opened again: the mount covers what was opened before it.
    let volume = pod.child(&relative).map_err(failed)?;
    let is_writable = !wanted.read_only && !options.contains(&BindOption::Ro);
    if let Some(gid) = files.group.filter(|_| is_writable && !is_recorded(pod, wanted)) {
        // A mount without a record is kubelet's, or one whose walk was cut off: the top directory is changed last.
        give(pod, pv, &volume, gid, is_mounted || files.on_mismatch_only, &files.reporter).map_err(failed)?;
    }
    Ok(volume.path().to_owned())
}

fn open_source(pv: &str, path: &Path) -> Result<Dir, SetUpFailure> {
    let failed = |step, reason| Err(SetUpFailure::Step { step, volume: pv.to_owned(), reason });
    match rustix::fs::stat(path) {
        Err(rustix::io::Errno::NOENT) => {
            failed("MountVolume.NewMounter initialization", format!("path {path:?} does not exist"))
        }
        Err(e) => failed("MountVolume.NewMounter initialization", format!("stat {}: {e}", path.display())),
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Dir::open(path).map_err(|e| SetUpFailure::set_up(pv, e.to_string())),
            FileType::BlockDevice => failed(
                "MountVolume.MountDevice",
                format!(
                    "{} is a block device and the volume has volumeMode Filesystem: this node agent makes and mounts no file systems on devices; mount it on the node and name the directory, or use volumeMode Block",
                    path.display()
                ),
            ),
            _ => failed("MountVolume.MountDevice", "only directory and block device are supported".to_owned()),
        },
    }
}

/// Gives the volume to the pod's group, unless another pod has it mounted: then its group is not this pod's to change.
fn give(
    pod: &Dir,
    pv: &str,
    volume: &Dir,
    gid: u32,
    on_mismatch_only: bool,
    reporter: &Reporter,
) -> Result<(), PathError> {
    let found = volume.identity()?;
    let suffix = Path::new("volumes").join(LOCAL_PLUGIN).join(pv);
    let pods = pod.path().parent().unwrap_or(pod.path());
    let mounted = mount::mounts_below(pods)?;
    if mounted.iter().any(|point| point.ends_with(&suffix) && !point.starts_with(pod.path())) {
        if found.gid != gid {
            let text = format!(
                "The requested fsGroup is {gid}, but the volume {pv} has GID {}. The volume may not be shareable.",
                found.gid
            );
            reporter.warn("AlreadyMountedVolume", text);
        }
        return Ok(());
    }
    if on_mismatch_only && is_given(&found, gid, Access::ReadWrite) {
        return Ok(());
    }
    let mut slow = Slow::new(pod, volume, reporter);
    set_group_and_tell(volume, gid, Access::ReadWrite, &mut || slow.count())
}

/// Tells of a walk that takes long, in kubelet's words.
struct Slow<'a> {
    reporter: &'a Reporter,
    directory: String,
    files: u64,
    next: Instant,
    is_told: bool,
}

impl<'a> Slow<'a> {
    fn new(pod: &Dir, volume: &Dir, reporter: &'a Reporter) -> Self {
        // From the pod's UID on, as kubelet shows it.
        let pods = pod.path().parent().unwrap_or(pod.path());
        let directory = volume.path().strip_prefix(pods).unwrap_or(volume.path()).display().to_string();
        Self { reporter, directory, files: 0, next: Instant::now() + FIRST_REPORT, is_told: false }
    }

    fn count(&mut self) {
        self.files += 1;
        // The clock is looked at now and then only.
        if self.files.is_multiple_of(256) && Instant::now() >= self.next {
            self.next = Instant::now() + NEXT_REPORT;
            let text = slow_text(&self.directory, self.files, self.is_told);
            self.is_told = true;
            self.reporter.warn("VolumePermissionChangeInProgress", text);
        }
    }
}

fn slow_text(directory: &str, files: u64, is_told: bool) -> String {
    if is_told {
        return format!("Setting volume ownership for {directory}, processed {files} files.");
    }
    format!(
        "Setting volume ownership for {directory} is taking longer than expected, consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods"
    )
}

/// Links a block device of the host in the pod's directory.
pub(super) fn set_up_device(pod: &Dir, wanted: &Wanted, path: &Path) -> Result<PathBuf, SetUpFailure> {
    let pv = pv_name(wanted);
    let failed = |reason| SetUpFailure::Step { step: "MapVolume.MapPodDevice", volume: pv.to_owned(), reason };
    let stat = rustix::fs::stat(path).map_err(|e| failed(format!("stat {}: {e}", path.display())))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(failed(format!("{} is not a block device", path.display())));
    }
    link(pod, pv, path).map_err(|e| failed(e.to_string()))
}

fn link(pod: &Dir, pv: &str, path: &Path) -> Result<PathBuf, PathError> {
    let directory = pod.ensure("volumeDevices", PRIVATE)?.ensure(LOCAL_PLUGIN, PRIVATE)?;
    let link = directory.path().join(pv);
    let fail = |e| error("link device at", &link, e);
    match rustix::fs::readlinkat(&directory, pv, Vec::new()) {
        Ok(target) if Path::new(&*target.to_string_lossy()) == path => return Ok(link),
        Ok(_) => rustix::fs::unlinkat(&directory, pv, AtFlags::empty()).map_err(fail)?,
        Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(fail(e)),
    }
    rustix::fs::symlinkat(path, &directory, pv).map_err(fail)?;
    Ok(link)
}

fn pv_name(wanted: &Wanted) -> &str {
    wanted.claimed.as_ref().map_or(wanted.name.as_str(), |claimed| claimed.pv.as_str())
}

fn is_recorded(pod: &Dir, wanted: &Wanted) -> bool {
    pod.handle(&format!("{RECORDS}/{}", wanted.name)).is_ok()
}

/// Writes down what the claim of a volume came to, once the volume is in place.
pub(super) fn record_claim(pod: &Dir, wanted: &Wanted) -> Result<(), PathError> {
    let Some(claimed) = &wanted.claimed else { return Ok(()) };
    if is_recorded(pod, wanted) {
        return Ok(());
    }
    let record = pod.path().join(RECORDS).join(&wanted.name);
    let text = serde_json::to_vec(claimed).map_err(|e| error("encode", &record, io::Error::other(e)))?;
    pod.ensure("plugins", PRIVATE)?.ensure("nodelet~claim", PRIVATE)?.write(&wanted.name, 0o600, &text).map(drop)
}

/// What earlier agents wrote for a pod. A record that cannot be read is as good as none: the claim is asked for again.
pub(super) fn recorded_claims(pods: &Dir, uid: &str) -> BTreeMap<String, Claimed> {
    let directory = pods.child(uid).and_then(|pod| pod.child_if_there(RECORDS));
    let Ok(Some(directory)) = directory else { return BTreeMap::new() };
    let names = directory.names().unwrap_or_default();
    let records = names.iter().filter_map(|name| {
        let name = name.to_str().ok()?;
        let read = directory.read(name, MAX_RECORD).map_err(|e| e.to_string());
        match read.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string())) {
            Ok(claimed) => Some((name.to_owned(), claimed)),
            Err(problem) => {
                tracing::warn!(pod = uid, volume = name, problem, "the record of a claim cannot be read");
                None
            }
        }
    });
    records.collect()
}
