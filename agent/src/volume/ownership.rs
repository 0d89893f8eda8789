//! `fsGroup`: giving a volume to a group, so that a container without root can use it.
//!
//! Every file gets the group and its permissions; directories get setgid, so that what is created later belongs to the
//! group too. `fsGroupChangePolicy` is for persistent volumes: [`is_given`] answers whether the top directory is right
//! already, and because it is changed last, so is everything below then.
//! Source: `securityContext.fsGroup` of the Pod API, KEP-695.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, OFlags};

use super::safe_path::{Dir, Identity, PathError, error, identity};

/// Levels that are walked; volumes that need it have no more.
const MAX_DEPTH: usize = 200;
const SYMLINK: u32 = 0o120_000;
const FILE_TYPE: u32 = 0o170_000;

/// Whether containers may write to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// The agent writes, containers read.
    ReadOnly,
    /// Containers write.
    ReadWrite,
}

impl Access {
    fn file_bits(self) -> u32 {
        match self {
            Self::ReadOnly => 0o440,
            Self::ReadWrite => 0o660,
        }
    }
}

/// Gives a volume to a group.
pub(super) fn set_group(volume: &Dir, gid: u32, access: Access) -> Result<(), PathError> {
    set_group_and_tell(volume, gid, access, &mut || {})
}

/// Gives a volume to a group and calls `each` for every file: large volumes take minutes.
pub(super) fn set_group_and_tell(
    volume: &Dir,
    gid: u32,
    access: Access,
    each: &mut dyn FnMut(),
) -> Result<(), PathError> {
    walk(volume, gid, access, 0, each)
}

/// Whether the top directory has the group and at least its permissions, so that `OnRootMismatch` changes nothing.
pub(super) fn is_given(root: &Identity, gid: u32, access: Access) -> bool {
    let bits = access.file_bits() | 0o2110;
    root.gid == gid && root.mode & bits == bits
}

/// The bits that a file or directory has after [`set_group`].
fn bits_for(found: &Identity, access: Access) -> u32 {
    let bits = (found.mode & 0o7777) | access.file_bits();
    if found.is_dir() { bits | 0o2110 } else { bits }
}

/// Children first, so that the root is right only when all of it is.
fn walk(directory: &Dir, gid: u32, access: Access, depth: usize, each: &mut dyn FnMut()) -> Result<(), PathError> {
    if depth > MAX_DEPTH {
        let reason = std::io::Error::other(format!("directories are nested more than {MAX_DEPTH} levels deep"));
        return Err(error("set fsGroup below", directory.path(), reason));
    }
    for name in directory.names()? {
        let Some(handle) = open_entry(directory, &name)? else { continue };
        let path = directory.path().join(OsStr::from_bytes(name.to_bytes()));
        let found = identity(handle.as_fd(), &path)?;
        if found.is_dir() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(directory, name.as_c_str(), flags, Mode::empty())
                .map_err(|e| error("open", &path, e))?;
            walk(&Dir::from_fd(fd, path), gid, access, depth + 1, each)?;
        } else {
            change(handle.as_fd(), &found, gid, access).map_err(|e| error("set group of", &path, e))?;
            each();
        }
    }
    let found = directory.identity()?;
    each();
    change(directory.as_fd(), &found, gid, access).map_err(|e| error("set group of", directory.path(), e))
}

fn open_entry(directory: &Dir, name: &CStr) -> Result<Option<OwnedFd>, PathError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(handle) => Ok(Some(handle)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(error("open", directory.path(), e)),
    }
}

fn change(handle: BorrowedFd<'_>, found: &Identity, gid: u32, access: Access) -> std::io::Result<()> {
    rustix::fs::chownat(handle, "", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
    if found.mode & FILE_TYPE != SYMLINK {
        // fchmod refuses O_PATH handles; their link leads to exactly what was opened.
        let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
        rustix::fs::chmod(link, Mode::from_raw_mode(bits_for(found, access)))?;
    }
    Ok(())
}
