//! How much a directory takes on its disk, without ever leaving it.
//!
//! Containers fill these directories while they are walked, so nothing is followed: entries are looked at relative to their
//! directory, no symlink and no mount is gone through, and a file with several names counts once. What `du` counts is counted: blocks,
//! not lengths. A directory is read entry by entry, and below [`HELD`] levels directories are closed on the way down and opened
//! again on the way up: neither many files nor depth cost memory or file descriptors.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir as Entries, FileType, Mode, OFlags, ResolveFlags};

use super::safe_path::{Dir, PathError, error};
use super::{VolumeError, Volumes, check_name};
use crate::ids::PodUid;

/// Levels whose directories stay open.
const HELD: usize = 32;
/// Longest relative path that the kernel resolves.
const LONGEST: usize = 4000;

/// What a pod's directory takes on its disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Of the directories that were asked for, in that order; `None` for one that is not there.
    pub directories: Vec<Option<u64>>,
    /// Of the hosts file.
    pub hosts: u64,
    /// Of the files that termination messages are written to. kubelet counts none of them, and a container may write there as
    /// much as it likes.
    pub messages: u64,
}

impl Volumes {
    /// Measures directories below the pod's, given by their paths, and its hosts file. Does not wait for other work on the pod, and has
    /// no deadline.
    pub async fn disk_use(&self, uid: &PodUid, paths: Vec<String>) -> Result<DiskUse, VolumeError> {
        check_name("pod UID", uid.as_str())?;
        let (pods_dir, name) = (self.inner.pods_dir.clone(), uid.as_str().to_owned());
        let work = move || {
            let Some(pod) = Dir::open(&pods_dir)?.child_if_there(&name)? else { return Ok(DiskUse::default()) };
            let measured = |path: &String| match pod.child_if_there(path)? {
                Some(directory) => {
                    let found = usage(&directory)?;
                    if found.is_partial {
                        tracing::debug!(path = %directory.path().display(), "a part of it was not measured");
                    }
                    Ok(Some(found.bytes))
                }
                None => Ok(None),
            };
            let directories = paths.iter().map(measured).collect::<Result<_, PathError>>()?;
            Ok(DiskUse { directories, hosts: hosts_file(&pod).unwrap_or(0), messages: messages(&pod)? })
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| VolumeError::Cancelled)?.map_err(VolumeError::Path)
    }
}

/// Bytes of the pod's hosts file, where it has one.
pub(super) fn hosts_file(pod: &Dir) -> Option<u64> {
    let file = pod.handle("etc-hosts").ok()?;
    Some(blocks(&rustix::fs::fstat(file).ok()?))
}

/// Bytes of `containers/NAME/ID`; the directories are the agent's own.
fn messages(pod: &Dir) -> Result<u64, PathError> {
    let Some(containers) = pod.child_if_there("containers")? else { return Ok(0) };
    let mut bytes = 0u64;
    for name in containers.names()? {
        let Some(container) = name.to_str().ok().map(|name| containers.child_if_there(name)).transpose()?.flatten()
        else {
            continue;
        };
        for file in container.names()? {
            let found = rustix::fs::statat(&container, &file, AtFlags::SYMLINK_NOFOLLOW);
            bytes = bytes.saturating_add(found.as_ref().map_or(0, blocks));
        }
    }
    Ok(bytes)
}

/// What a walk came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// Bytes of all blocks.
    pub(super) bytes: u64,
    /// Files and directories.
    pub(super) inodes: u64,
    /// Something was not looked at: a directory that is deeper than the kernel resolves, or that was moved meanwhile.
    pub(super) is_partial: bool,
}

/// A directory under way.
struct Level {
    entries: Option<Entries>,
    name: CString,
    /// Where to go on after it was closed.
    offset: i64,
}

/// Bytes and inodes that a directory takes, itself included.
pub(super) fn usage(top: &Dir) -> Result<Measured, PathError> {
    let fail = |e: rustix::io::Errno| error("measure", top.path(), e);
    let own = rustix::fs::fstat(top).map_err(fail)?;
    let used = Measured { bytes: blocks(&own), inodes: 1, is_partial: false };
    let mut walk = Walk { device: own.st_dev, seen: HashSet::new(), used };
    let entries = Entries::read_from(top).map_err(fail)?;
    let mut levels = vec![Level { entries: Some(entries), name: CString::default(), offset: 0 }];
    while !levels.is_empty() {
        if !walk.step(&mut levels) {
            levels.pop();
        }
    }
    Ok(walk.used)
}

fn blocks(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

struct Walk {
    device: u64,
    /// Files with several names.
    seen: HashSet<u64>,
    used: Measured,
}

impl Walk {
    /// Looks at the next entry of the innermost directory; false when it has no more.
    fn step(&mut self, levels: &mut Vec<Level>) -> bool {
        let Some(mut entries) = self.innermost(levels) else { return false };
        let depth = levels.len() - 1;
        let mut descends = None;
        while let Some(Ok(entry)) = entries.read() {
            let name = entry.file_name();
            levels[depth].offset = entry.offset();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(directory) = entries.fd() else { return false };
            let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != self.device {
                continue;
            }
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !self.seen.insert(stat.st_ino) {
                continue;
            }
            self.used.bytes = self.used.bytes.saturating_add(blocks(&stat));
            self.used.inodes += 1;
            if is_directory {
                let name = name.to_owned();
                let opened = open(directory, &name);
                match opened.and_then(Entries::new) {
                    Ok(opened) => {
                        descends = Some(Level { entries: Some(opened), name, offset: 0 });
                        break;
                    }
                    // It is a mount, or it went meanwhile.
                    Err(rustix::io::Errno::XDEV | rustix::io::Errno::NOENT) => {}
                    Err(_) => self.used.is_partial = true,
                }
            }
        }
        let Some(below) = descends else { return false };
        // The outer ones stay open; of the others only the innermost.
        levels[depth].entries = (depth < HELD).then_some(entries);
        levels.push(below);
        true
    }

    /// The entries of the innermost directory, opened again where they were closed.
    fn innermost(&mut self, levels: &mut [Level]) -> Option<Entries> {
        if let Some(entries) = levels.last_mut()?.entries.take() {
            return Some(entries);
        }
        let found = reopen(levels);
        self.used.is_partial |= found.is_none();
        found
    }
}

fn open(directory: impl std::os::fd::AsFd, path: &std::ffi::CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve)
}

/// Opens the innermost directory by its path below the last one that is open, and goes on where it was left.
fn reopen(levels: &[Level]) -> Option<Entries> {
    let held = levels.iter().rposition(|level| level.entries.is_some())?;
    let names: Vec<&[u8]> = levels[held + 1..].iter().map(|level| level.name.to_bytes()).collect();
    let path = CString::new(names.join(&b'/')).ok().filter(|path| path.as_bytes().len() <= LONGEST)?;
    let directory = levels[held].entries.as_ref()?.fd().ok()?;
    let mut entries = Entries::new(open(directory, &path).ok()?).ok()?;
    entries.seek(levels.last()?.offset).ok()?;
    Some(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn used(path: &Path) -> Measured {
        usage(&Dir::open(path).unwrap()).unwrap()
    }

    /// What is measured beyond the directory itself.
    fn grown(path: &Path, fill: impl FnOnce(&Path)) -> u64 {
        let before = used(path).bytes;
        fill(path);
        used(path).bytes - before
    }

    #[test]
    fn blocks_count_and_neither_holes_nor_symlinks_nor_second_names_do() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("big"), vec![1; 1 << 20]).unwrap();
        let bytes = grown(dir.path(), |path| {
            std::fs::write(path.join("a"), vec![1; 64 << 10]).unwrap();
            std::fs::hard_link(path.join("a"), path.join("b")).unwrap();
            symlink(outside.path(), path.join("link")).unwrap();
            symlink(outside.path().join("big"), path.join("file")).unwrap();
            std::fs::File::create(path.join("hole")).unwrap().set_len(1 << 30).unwrap();
        });
        assert!((64 << 10..128 << 10).contains(&bytes), "{bytes}");
        let found = used(dir.path());
        assert_eq!((found.inodes, found.is_partial), (5, false), "the directory, a, the links and the hole");
    }

    #[test]
    fn depth_costs_no_file_descriptors_and_nothing_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let mut path = dir.path().to_owned();
        let (levels, files) = (10 * HELD, 3);
        for _ in 0..levels {
            path.push("d");
            std::fs::create_dir(&path).unwrap();
            // Before and behind the directory, whatever the order.
            for name in ["a", "b", "e"] {
                std::fs::write(path.join(name), vec![1; 4096]).unwrap();
            }
        }
        let found = used(dir.path());
        assert!(!found.is_partial && found.bytes >= (levels * files * 4096) as u64, "{found:?}");
        assert!(found.bytes < (levels * (files + 4) * 4096) as u64, "counted twice: {found:?}");
    }
}
