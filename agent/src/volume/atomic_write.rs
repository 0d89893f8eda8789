//! Replacing the files of a volume so that a reader sees all old files or all new ones.
//!
//! ```text
//!  VOLUME/..2026_11_24_00_00_00.1/a   the files
//!  VOLUME/..data -> ..2026_11_24_00_00_00.1    one rename exchanges this link
//!  VOLUME/a -> ..data/a               made once for each file or top directory
//! ```
//! The layout is kubelet's, which users' programs watch. Everything is done relative to the volume's handle.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Gid, Uid};
use rustix::io::Errno;

use super::content::Payload;
use super::ownership::{Access, set_group};
use super::remove::{Contents, remove_tree};
use super::safe_path::{Dir, PathError, error};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether files had to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Unchanged,
    Written,
}

/// Makes the volume contain exactly these files, owned by `group` if there is one.
pub(super) fn write(
    volume: &Dir,
    payload: &Payload,
    group: Option<u32>,
    now: SystemTime,
) -> Result<Outcome, PathError> {
    let current = current_version(volume)?;
    let old = match &current {
        Some(name) => volume.child_if_there(name)?,
        None => None,
    };
    let old_files = match &old {
        Some(directory) => files_of(directory)?,
        None => BTreeSet::new(),
    };
    let is_current = match &old {
        Some(directory) => is_same(directory, &old_files, payload)?,
        None => false,
    };
    if !is_current {
        let name = new_version(volume, payload, now)?;
        publish(volume, &name, group)?;
    }
    link_visible(volume, payload)?;
    if let Some(gid) = group.filter(|_| !is_current) {
        // Again for the new links.
        set_group(volume, gid, Access::ReadOnly)?;
    }
    unlink_stale(volume, &old_files, payload)?;
    if !is_current {
        remove_old_versions(volume)?;
    }
    Ok(if is_current { Outcome::Unchanged } else { Outcome::Written })
}

/// The directory that `..data` points to; `None` before the first write, or if it is not one of ours.
fn current_version(volume: &Dir) -> Result<Option<String>, PathError> {
    match rustix::fs::readlinkat(volume, DATA, Vec::new()) {
        Ok(target) => {
            let target = target.to_string_lossy().into_owned();
            Ok(Some(target).filter(|t| t.starts_with("..") && super::safe_path::is_component(t)))
        }
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(e) => Err(error("read link", &volume.path().join(DATA), e)),
    }
}

/// Relative paths of all files of a version.
fn files_of(directory: &Dir) -> Result<BTreeSet<String>, PathError> {
    let mut files = BTreeSet::new();
    let mut todo = vec![String::new()];
    while let Some(prefix) = todo.pop() {
        let at = match prefix.as_str() {
            "" => directory.child(".")?,
            prefix => directory.child(prefix)?,
        };
        for name in at.names()? {
            let Ok(name) = name.to_str() else { continue };
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            let handle = directory.handle(&path)?;
            if super::safe_path::identity(handle.as_fd(), &directory.path().join(&path))?.is_dir() {
                todo.push(path);
            } else {
                files.insert(path);
            }
        }
    }
    Ok(files)
}

fn is_same(directory: &Dir, old_files: &BTreeSet<String>, payload: &Payload) -> Result<bool, PathError> {
    if !old_files.iter().eq(payload.keys()) {
        return Ok(false);
    }
    for (path, file) in payload {
        // One byte more than expected, so that a longer file is seen as different.
        if directory.read(path, file.data.len() as u64 + 1)? != file.data {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a version next to the current one, not yet visible.
fn new_version(volume: &Dir, payload: &Payload, now: SystemTime) -> Result<String, PathError> {
    let name = version_name(volume, now)?;
    let version = volume.ensure(&name, 0o755)?;
    for (path, file) in payload {
        let (parent, base) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = version.ensure(parent, 0o755)?;
        let fd = directory.write(base, file.mode & 0o7777, &file.data)?;
        if let Some(user) = file.user {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(user)), None::<Gid>)
                .map_err(|e| error("set owner of", &version.path().join(path), e))?;
        }
    }
    Ok(name)
}

/// `..YYYY_MM_DD_hh_mm_ss.<nanoseconds>`, which no directory has yet.
fn version_name(volume: &Dir, now: SystemTime) -> Result<String, PathError> {
    let zoned = jiff::Timestamp::try_from(now).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_zoned(jiff::tz::TimeZone::UTC);
    let stamp = zoned.strftime("%Y_%m_%d_%H_%M_%S");
    let taken: BTreeSet<CString> = volume.names()?.into_iter().collect();
    let first = u64::from(zoned.subsec_nanosecond().unsigned_abs());
    let free = (first..).map(|n| format!("..{stamp}.{n}"));
    let mut free = free.filter(|name| CString::new(name.as_str()).is_ok_and(|name| !taken.contains(&name)));
    Ok(free.next().expect("a directory has fewer entries than there are numbers"))
}

/// Gives the version to the group and exchanges the link.
fn publish(volume: &Dir, version: &str, group: Option<u32>) -> Result<(), PathError> {
    if let Some(gid) = group {
        set_group(&volume.child(version)?, gid, Access::ReadOnly)?;
    }
    let path = volume.path().join(DATA);
    // Left by a crash between the two calls below.
    unlink(volume, NEW_DATA)?;
    rustix::fs::symlinkat(version, volume, NEW_DATA).map_err(|e| error("create link", &path, e))?;
    rustix::fs::renameat(volume, NEW_DATA, volume, DATA).map_err(|e| error("exchange link", &path, e))
}

fn link_visible(volume: &Dir, payload: &Payload) -> Result<(), PathError> {
    for first in top_level(payload.keys()) {
        match rustix::fs::symlinkat(format!("{DATA}/{first}"), volume, first) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(error("create link", &volume.path().join(first), e)),
        }
    }
    Ok(())
}

fn unlink_stale(volume: &Dir, old_files: &BTreeSet<String>, payload: &Payload) -> Result<(), PathError> {
    let kept = top_level(payload.keys());
    top_level(old_files.iter()).difference(&kept).try_for_each(|stale| unlink(volume, stale))
}

fn top_level<'a>(paths: impl Iterator<Item = &'a String>) -> BTreeSet<&'a str> {
    paths.map(|path| path.split('/').next().unwrap_or(path)).collect()
}

/// Removes a link; directories (mount points of nested volumes) stay.
fn unlink(volume: &Dir, name: &str) -> Result<(), PathError> {
    match rustix::fs::unlinkat(volume, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
        Err(e) => Err(error("remove link", &volume.path().join(name), e)),
    }
}

/// Removes all versions but the current one, also those that a crash left.
fn remove_old_versions(volume: &Dir) -> Result<(), PathError> {
    let current = current_version(volume)?;
    for name in volume.names()? {
        let is_version = name.to_bytes().starts_with(b"..") && !matches!(name.to_bytes(), b"..data" | b"..data_tmp");
        if is_version && current.as_deref().map(str::as_bytes) != Some(name.to_bytes()) {
            remove_version(volume, &name)?;
        }
    }
    Ok(())
}

fn remove_version(volume: &Dir, name: &CStr) -> Result<(), PathError> {
    let mut left = Vec::new();
    remove_tree(volume, name, Contents::Everything, &mut left);
    match left.is_empty() {
        true => Ok(()),
        false => Err(error("remove old version of", volume.path(), std::io::Error::other(left.join("; ")))),
    }
}
