//! Deleting what a pod leaves behind, without ever leaving it.
//!
//! Containers fill these directories, so the walk trusts nothing in them: entries are opened relative to their
//! directory, no symlink is followed, no mount is crossed (`RESOLVE_NO_XDEV`), and depth costs neither stack nor
//! file descriptors: what is too deep is first moved up. What cannot be removed is reported, and the rest still goes.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::mount;
use super::safe_path::{Dir, PathError, error};

/// Levels that are walked with a handle each; deeper directories are moved to the top first.
const MAX_DEPTH: usize = 32;
/// Reports are cut here: a directory of a million undeletable files is one problem, not a million.
const MAX_REPORTS: usize = 16;

/// Plugins whose volumes consist of files that the agent wrote or that live and die with the pod. In directories of
/// other plugins there may be a user's data behind a mount that did not go: only empty directories are removed there.
const OWN_PLUGINS: [&str; 5] = [
    "kubernetes.io~empty-dir",
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
];

/// Unmounts and deletes a pod's directory. Answers what is left and why; nothing when all is gone.
pub(super) fn remove_pod(pods: &Dir, uid: &str) -> Result<Vec<String>, PathError> {
    let Some(pod) = pods.child_if_there(uid)? else { return Ok(Vec::new()) };
    let mut left = unmount_all(&pod)?;
    if !left.is_empty() {
        return Ok(left);
    }
    if let Some(volumes) = pod.child_if_there("volumes")? {
        for plugin in volumes.names()? {
            if !OWN_PLUGINS.iter().any(|own| own.as_bytes() == plugin.to_bytes()) {
                remove_tree(&volumes, &plugin, Contents::EmptyDirectories, &mut left);
            }
        }
    }
    if !left.is_empty() {
        return Ok(left);
    }
    let name = CString::new(uid).map_err(|e| error("remove", pod.path(), e))?;
    remove_tree(pods, &name, Contents::Everything, &mut left);
    Ok(left)
}

/// Detaches every mount at or below a directory, the newest first.
fn unmount_all(pod: &Dir) -> Result<Vec<String>, PathError> {
    let mut problems = Vec::new();
    for point in mount::mounts_below(pod.path())?.iter().rev() {
        let result = match point.strip_prefix(pod.path()).map(|p| p.components().count()) {
            // volumes/PLUGIN/NAME and volume-subpaths/VOLUME/CONTAINER/INDEX: parents are the agent's own.
            Ok(0..=3) => mount::unmount(point),
            Ok(4) if point.starts_with(pod.path().join("volume-subpaths")) => mount::unmount(point),
            _ => unmount_inside(pod, point),
        };
        if let Err(error) = result {
            problems.push(error.to_string());
        }
    }
    if problems.is_empty() {
        let left = mount::mounts_below(pod.path())?;
        problems.extend(left.iter().map(|point| format!("{} is still mounted", point.display())));
    }
    Ok(problems)
}

/// A mount inside a volume, which a privileged container left there.
fn unmount_inside(pod: &Dir, point: &Path) -> Result<(), PathError> {
    let Some(relative) = point.strip_prefix(pod.path()).ok().and_then(Path::to_str) else {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path is not UTF-8");
        return Err(error("unmount", point, reason));
    };
    match pod.handle(relative) {
        Ok(handle) => mount::unmount_handle(handle.as_fd(), point),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a removal may delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Files, symlinks, devices and directories.
    Everything,
    /// Directories only; a file is reported.
    EmptyDirectories,
}

/// Removes `name` in `parent` and all below it; adds what could not be removed to `left`.
pub(super) fn remove_tree(parent: &Dir, name: &CStr, contents: Contents, left: &mut Vec<String>) {
    let mut walk = Walk { contents, left, moved: 0, top: None };
    walk.remove(parent, name, 0);
}

struct Walk<'a> {
    contents: Contents,
    left: &'a mut Vec<String>,
    moved: usize,
    /// The directory that deep ones are moved to.
    top: Option<Dir>,
}

impl Walk<'_> {
    fn remove(&mut self, parent: &Dir, name: &CStr, depth: usize) {
        let path = parent.path().join(OsStr::from_bytes(name.to_bytes()));
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return,
            Err(Errno::NOTDIR) => return self.remove_file(parent, name, &path),
            // A mount point is busy; opening it below says so.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::BUSY) => {}
            Err(e) => return self.report(format!("cannot remove directory {}: {e}", path.display())),
        }
        if depth >= MAX_DEPTH && self.move_up(parent, name) {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd = match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::XDEV) => return self.report(format!("{} is a mount, which is not crossed", path.display())),
            Err(e) => return self.report(format!("cannot open {}: {e}", path.display())),
        };
        let directory = Dir::from_fd(fd, path);
        if depth == 0 && self.contents == Contents::Everything {
            self.top = directory.child(".").ok();
        }
        let problems = self.left.len();
        self.empty(&directory, depth);
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Its contents are reported already.
            Err(_) if self.left.len() > problems => {}
            Err(e) => self.report(format!("cannot remove directory {}: {e}", directory.path().display())),
        }
    }

    /// Removes entries; the top once more for each time that something was moved to it.
    fn empty(&mut self, directory: &Dir, depth: usize) {
        loop {
            let moved_before = self.moved;
            match directory.names() {
                Ok(names) => names.iter().for_each(|name| self.remove(directory, name, depth + 1)),
                Err(error) => return self.report(error.to_string()),
            }
            if depth > 0 || self.moved == moved_before {
                return;
            }
        }
    }

    fn remove_file(&mut self, parent: &Dir, name: &CStr, path: &Path) {
        if self.contents == Contents::EmptyDirectories {
            return self.report(format!("{} is kept: the agent did not write it", path.display()));
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => self.report(format!("cannot remove {}: {e}", path.display())),
        }
    }

    fn move_up(&mut self, parent: &Dir, name: &CStr) -> bool {
        let Some(top) = &self.top else { return false };
        // A name that is taken is not overwritten: rename refuses a directory that is not empty.
        let moved = (0..8u32).any(|attempt| {
            let target = format!("..nodelet-deep-{}-{attempt}", self.moved);
            rustix::fs::renameat(parent, name, top, target.as_str()).is_ok()
        });
        self.moved += usize::from(moved);
        moved
    }

    fn report(&mut self, problem: String) {
        if self.left.len() < MAX_REPORTS {
            self.left.push(problem);
        }
    }
}
