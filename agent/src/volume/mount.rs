//! The only file that mounts and unmounts, by file descriptor where the kernel can (fsopen(2), open_tree(2), mount_setattr(2)).
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::claim::BindOption;
use super::safe_path::{Dir, PathError, error};

/// A new tmpfs, not yet visible anywhere. Without a size the kernel's default applies (half of memory). Its pages are
/// kept out of swap where the kernel can (6.3), because Secrets are in it.
fn tmpfs(size: Option<u64>) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", "tmpfs")?;
    if let Some(size) = size.filter(|size| *size > 0) {
        rustix::mount::fsconfig_set_string(context.as_fd(), "size", size.to_string())?;
    }
    // Older kernels do not know the option.
    let _ = rustix::mount::fsconfig_set_flag(context.as_fd(), "noswap");
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RELATIME;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes what a handle refers to visible at another. Mounts below it are not taken along.
pub(super) fn bind(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    attach(&rustix::mount::open_tree(source, "", flags)?, target)
}

/// As [`bind`], with more restrictions than the source has; those that the source has stay.
pub(super) fn bind_restricted(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    options: &[BindOption],
) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", flags)?;
    restrict(tree.as_fd(), options)?;
    attach(&tree, target)
}

/// mount_setattr(2) on a mount that is not yet visible. Unlike a remount it changes nothing that is not named.
fn restrict(tree: BorrowedFd<'_>, options: &[BindOption]) -> io::Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    let set = options.iter().fold(MountAttrFlags::empty(), |set, option| set | attribute(*option));
    // The kinds of access times exclude each other, and one takes the place of another.
    let changes_access_time = options.iter().any(|o| matches!(o, BindOption::NoAtime | BindOption::RelAtime));
    let clear = if changes_access_time { MountAttrFlags::MOUNT_ATTR__ATIME } else { MountAttrFlags::empty() };
    let attributes =
        MountAttributes { set: set.bits().into(), clear: clear.bits().into(), propagation: 0, user_namespace: 0 };
    let (empty, size) = (c"".as_ptr(), std::mem::size_of::<MountAttributes>());
    // SAFETY: the path is a NUL-terminated string, and the kernel reads `size` bytes of `attributes`, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty,
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

fn attribute(option: BindOption) -> MountAttrFlags {
    match option {
        BindOption::Ro => MountAttrFlags::MOUNT_ATTR_RDONLY,
        BindOption::NoSuid => MountAttrFlags::MOUNT_ATTR_NOSUID,
        BindOption::NoDev => MountAttrFlags::MOUNT_ATTR_NODEV,
        BindOption::NoExec => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        BindOption::NoAtime => MountAttrFlags::MOUNT_ATTR_NOATIME,
        BindOption::NoDirAtime => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        BindOption::RelAtime => MountAttrFlags::MOUNT_ATTR_RELATIME,
    }
}

/// Mounts a tmpfs on a directory.
pub(super) fn mount_tmpfs(target: &Dir, size: Option<u64>) -> Result<(), PathError> {
    tmpfs(size).and_then(|mount| attach(&mount, target.as_fd())).map_err(|e| error("mount tmpfs on", target.path(), e))
}

/// Mounts huge pages on a directory; its root has this mode, because no other handle leads to it. What the node has of
/// them counts when a file is written, not here.
pub(super) fn mount_huge_pages(target: &Dir, page: u64, mode: u32) -> Result<(), PathError> {
    let made = huge_pages(page, mode).and_then(|mount| attach(&mount, target.as_fd()));
    made.map_err(|e| error("mount huge pages on", target.path(), e))
}

fn huge_pages(page: u64, mode: u32) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("hugetlbfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "source", "nodev")?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "pagesize", page.to_string())?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "mode", format!("{mode:o}"))?;
    rustix::mount::fsconfig_create(context.as_fd()).map_err(|e| match e {
        rustix::io::Errno::INVAL => io::Error::other(format!(
            "{e}: the kernel has no huge pages of {page} bytes (/sys/kernel/mm/hugepages lists the sizes it has)"
        )),
        e => e.into(),
    })?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RELATIME;
    Ok(rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn attach(mount: &OwnedFd, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount.as_fd(), "", target, "", flags)?)
}

/// Mount points at and below a path, in the order in which they were made, as `/proc/self/mountinfo` names them
/// (proc_pid_mountinfo(5)).
pub(super) fn mounts_below(path: &Path) -> Result<Vec<PathBuf>, PathError> {
    let file = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(file).map_err(|e| error("read", file, e))?;
    let points = text.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(4));
    Ok(points.map(unescape).filter(|point| point.starts_with(path)).collect())
}

/// Detaches the mount on a path whose parent directories no container controls.
pub(super) fn unmount(path: &Path) -> Result<(), PathError> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Somebody else was faster, or it went with its parent.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(error("unmount", path, e)),
    }
}

/// Detaches the mount whose root a handle refers to: for paths through directories that a container could change.
pub(super) fn unmount_handle(handle: BorrowedFd<'_>, path: &Path) -> Result<(), PathError> {
    // The link of a handle leads to exactly what was opened, whatever its path leads to now.
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    rustix::mount::unmount(link, UnmountFlags::DETACH).map_err(|e| error("unmount", path, e))
}

/// `\040` and the like stand for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match octal {
            Some(digits) => {
                plain.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape(br"/a\9"), PathBuf::from(r"/a\9"));
    }
}
