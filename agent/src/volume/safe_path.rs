//! Paths below a directory handle, resolved by the kernel in one step.
//!
//! A container can exchange a directory for a symlink between a check and a use (CVE-2017-1002101, CVE-2021-25741), so
//! nothing below a pod's directory is opened by a path that was checked before: `openat2` refuses symlinks and ways
//! out (`RESOLVE_BENEATH`) itself, and what follows works on the handle that it answered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};

/// Something on disk that could not be done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", path.display())]
pub struct PathError {
    /// Such as `create directory`.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// A directory that is held open, and the path that it was opened by (for messages and for the runtime).
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// Which file a handle refers to, and what the file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: (u32, u32),
    inode: u64,
    /// `st_mode`.
    pub(super) mode: u32,
    /// Group of the file.
    pub(super) gid: u32,
    /// Whether it is the root of the mount that it was reached by.
    pub(super) is_mount_root: bool,
}

impl Identity {
    pub(super) fn same_file(&self, other: &Self) -> bool {
        self.device == other.device && self.inode == other.inode
    }

    pub(super) fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }
}

fn strictly() -> ResolveFlags {
    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

impl Dir {
    /// Opens a directory that no container controls; symlinks of its path are followed.
    pub(super) fn open(path: &Path) -> Result<Self, PathError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| error("open", path, e))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    pub(super) fn from_fd(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// Opens a directory below, through no symlink.
    pub(super) fn child(&self, relative: &str) -> Result<Self, PathError> {
        let path = if relative == "." { self.path.clone() } else { self.path.join(relative) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, relative, flags, Mode::empty(), strictly())
            .map_err(|e| error("open directory", &path, e))?;
        Ok(Self { fd, path })
    }

    /// As [`Dir::child`], `None` when there is none.
    pub(super) fn child_if_there(&self, relative: &str) -> Result<Option<Self>, PathError> {
        match self.child(relative) {
            Ok(dir) => Ok(Some(dir)),
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens a directory below and creates what is missing of its path with exactly these permission bits.
    pub(super) fn ensure(&self, relative: &str, mode: u32) -> Result<Self, PathError> {
        let mut parent = self.child(".")?;
        for name in relative.split('/').filter(|c| !c.is_empty()) {
            let created = match rustix::fs::mkdirat(&parent.fd, name, Mode::from_raw_mode(mode)) {
                Ok(()) => true,
                Err(rustix::io::Errno::EXIST) => false,
                Err(e) => return Err(error("create directory", &parent.path.join(name), e)),
            };
            parent = parent.child(name)?;
            if created {
                // Again, because mkdir subtracts the umask.
                parent.set_mode(mode)?;
            }
        }
        Ok(parent)
    }

    pub(super) fn set_mode(&self, mode: u32) -> Result<(), PathError> {
        rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(mode)).map_err(|e| error("set mode of", &self.path, e))
    }

    /// A handle of anything below, through no symlink, without opening it: devices and pipes do not react.
    pub(super) fn handle(&self, relative: &str) -> Result<OwnedFd, PathError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.fd, relative, flags, Mode::empty(), strictly())
            .map_err(|e| error("find", &self.path.join(relative), e))
    }

    /// Reads a file below, at most `limit` bytes.
    pub(super) fn read(&self, relative: &str, limit: u64) -> Result<Vec<u8>, PathError> {
        let path = self.path.join(relative);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, relative, flags, Mode::empty(), strictly())
            .map_err(|e| error("open", &path, e))?;
        let mut content = Vec::new();
        let mut file = io::Read::take(std::fs::File::from(fd), limit);
        io::Read::read_to_end(&mut file, &mut content).map_err(|e| error("read", &path, e))?;
        Ok(content)
    }

    /// Writes a file below with exactly these permission bits. An existing file keeps its inode, which containers may
    /// have mounted.
    pub(super) fn write(&self, name: &str, mode: u32, content: &[u8]) -> Result<OwnedFd, PathError> {
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.fd, name, flags, Mode::from_raw_mode(mode), strictly())
            .map_err(|e| error("create", &path, e))?;
        let mut file = std::fs::File::from(fd);
        file.set_len(0).map_err(|e| error("truncate", &path, e))?;
        io::Write::write_all(&mut file, content).map_err(|e| error("write", &path, e))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|e| error("set mode of", &path, e))?;
        Ok(file.into())
    }

    /// Names of the entries.
    pub(super) fn names(&self) -> Result<Vec<std::ffi::CString>, PathError> {
        let entries = rustix::fs::Dir::read_from(&self.fd).map_err(|e| error("list", &self.path, e))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| error("list", &self.path, e))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    pub(super) fn identity(&self) -> Result<Identity, PathError> {
        identity(self.fd.as_fd(), &self.path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Says what a handle refers to.
pub(super) fn identity(fd: BorrowedFd<'_>, path: &Path) -> Result<Identity, PathError> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(fd, "", flags, StatxFlags::BASIC_STATS).map_err(|e| error("stat", path, e))?;
    Ok(Identity {
        device: (found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        mode: u32::from(found.stx_mode),
        gid: found.stx_gid,
        is_mount_root: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// A handle of `subpath` in a volume, whose missing directories are created with the volume's own mode.
///
/// Symlinks are followed as long as they stay in the volume, because the files of a ConfigMap are symlinks; the kernel
/// refuses any step out (`EXDEV`). An absolute symlink counts as a step out.
pub(super) fn open_subpath(volume: &Dir, subpath: &str) -> Result<OwnedFd, PathError> {
    let path = volume.path.join(subpath);
    let components: Vec<&str> = subpath.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    if subpath.starts_with('/') || components.contains(&"..") {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, "a subPath must be relative and have no '..'");
        return Err(error("use subPath", &path, reason));
    }
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // EAGAIN: something was renamed while the kernel looked; openat2(2) says to try again.
    let open = |relative: &str| {
        let again = (0..100).map(|_| rustix::fs::openat2(&volume.fd, relative, flags, Mode::empty(), inside));
        let mut last = Err(rustix::io::Errno::AGAIN);
        for result in again {
            last = result;
            if !matches!(last, Err(rustix::io::Errno::AGAIN)) {
                break;
            }
        }
        last
    };
    match open(if components.is_empty() { "." } else { subpath }) {
        Err(rustix::io::Errno::NOENT) => {}
        other => return other.map_err(|e| error("open subPath", &path, e)),
    }
    let mode = volume.identity()?.mode & 0o7777;
    let mut parent = open(".").map_err(|e| error("open", &volume.path, e))?;
    for end in 1..=components.len() {
        parent = match open(&components[..end].join("/")) {
            Err(rustix::io::Errno::NOENT) => make_directory(parent.as_fd(), components[end - 1], mode),
            other => other,
        }
        .map_err(|e| error("create subPath", &path, e))?;
    }
    Ok(parent)
}

fn make_directory(parent: BorrowedFd<'_>, name: &str, mode: u32) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode & 0o777)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let made = rustix::fs::openat2(parent, name, flags, Mode::empty(), strictly())?;
    rustix::fs::fchmod(&made, Mode::from_raw_mode(mode))?;
    Ok(made)
}

/// Whether text can be one component of a path.
pub(super) fn is_component(text: &str) -> bool {
    !text.is_empty() && text != "." && text != ".." && text.len() <= 255 && !text.contains(['/', '\0'])
}

pub(super) fn error(what: &'static str, path: &Path, source: impl Into<io::Error>) -> PathError {
    PathError { what, path: path.to_owned(), source: source.into() }
}
