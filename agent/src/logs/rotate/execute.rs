//! What rotation does to files. All of it goes through a handle of their directory, no symlink is followed, and only what a
//! runtime may have written is read: pods with a hostPath of the log directory could plant anything.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};

use super::local_time;
use super::plan::{self, Policy};
use crate::cri::Runtime;
use crate::ids::ContainerId;
use crate::logs::file;

/// Size of a log; `None` when there is none. Anything but a regular file is an error.
pub(super) fn size(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(found.len())),
        Ok(found) => Err(io::Error::other(format!("not a regular file but {:?}", found.file_type()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes room, renames the log and has the runtime open a new one. Answers what is to be compressed.
pub(super) async fn rotate(
    runtime: &Runtime,
    id: &ContainerId,
    log: &Path,
    policy: Policy,
    compressing: bool,
) -> Result<Vec<PathBuf>, String> {
    let path = log.to_owned();
    let prepared = tokio::task::spawn_blocking(move || prepare(&path, &policy, compressing)).await;
    let prepared = prepared.map_err(|error| error.to_string())??;
    let Err(error) = runtime.reopen_log(id).await else { return Ok(prepared.compress) };
    // As it was, so that the next try finds it. A new log that is there after all stays: nothing is lost either way.
    let (directory, rotated) = (&prepared.directory, prepared.rotated.as_str());
    let undone = rustix::fs::renameat_with(directory, rotated, directory, &prepared.name, RenameFlags::NOREPLACE);
    match undone {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Err(error.to_string()),
        Err(undo) => Err(format!("{error}; and {rotated} cannot be renamed back: {undo}")),
    }
}

/// A log that was renamed.
#[derive(Debug)]
struct Prepared {
    directory: OwnedFd,
    /// Its name, and the one that it has now.
    name: OsString,
    rotated: String,
    compress: Vec<PathBuf>,
}

fn prepare(log: &Path, policy: &Policy, compressing: bool) -> Result<Prepared, String> {
    let Some((parent, text)) = log.parent().zip(log.file_name().and_then(|name| name.to_str())) else {
        return Err(format!("{} is not a path of a log", log.display()));
    };
    let (directory, name) = file::directory_of(log).map_err(|error| format!("open {}: {error}", parent.display()))?;
    let listed =
        rustix::fs::Dir::read_from(&directory).map_err(|error| format!("list {}: {error}", parent.display()))?;
    let names: Vec<String> = listed.flatten().filter_map(|e| e.file_name().to_str().ok().map(str::to_owned)).collect();
    let files = plan::files(&names, text, local_time::now(), policy, compressing);
    for old in &files.remove {
        unlink(&directory, old).map_err(|error| format!("remove {}: {error}", parent.join(old).display()))?;
    }
    rustix::fs::renameat_with(&directory, name, &directory, &files.rotated, RenameFlags::NOREPLACE)
        .map_err(|error| format!("rename {} to {}: {error}", log.display(), files.rotated))?;
    let (name, compress) = (name.to_owned(), files.compress.iter().map(|name| parent.join(name)).collect());
    Ok(Prepared { directory, name, rotated: files.rotated, compress })
}

/// Compresses a file to `FILE.gz` of the same mode, by way of `FILE.tmp`, and removes it.
pub(super) fn compress(path: &Path) -> io::Result<()> {
    let (directory, name) = file::directory_of(path)?;
    let mut source = match file::open_in(&directory, name) {
        Ok(source) => source,
        // It was the oldest, and has made room meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mode = source.metadata()?.permissions().mode() & 0o7777;
    let (temporary, compressed) = (with_suffix(name, ".tmp"), with_suffix(name, ".gz"));
    unlink(&directory, &temporary)?;
    let written = (|| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = File::from(rustix::fs::openat(&directory, &temporary, flags, Mode::from_raw_mode(mode))?);
        // Whatever the process's umask is.
        target.set_permissions(Permissions::from_mode(mode))?;
        let mut encoder = GzEncoder::new(target, Compression::default());
        io::copy(&mut source, &mut encoder)?;
        encoder.finish()?;
        Ok(rustix::fs::renameat(&directory, &temporary, &directory, &compressed)?)
    })();
    if written.is_err() {
        // What cannot be removed now is removed as unused by the next rotation.
        let _ = unlink(&directory, &temporary);
    }
    written.and_then(|()| unlink(&directory, name))
}

fn unlink(directory: &OwnedFd, name: impl rustix::path::Arg) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn with_suffix(name: &OsStr, suffix: &str) -> OsString {
    let mut text = name.to_owned();
    text.push(suffix);
    text
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn beside(path: &Path, suffix: &str) -> PathBuf {
        path.with_file_name(with_suffix(path.file_name().unwrap(), suffix))
    }

    #[test]
    fn a_compressed_file_has_content_and_mode_of_the_one_it_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log.20250101-000000");
        let text = "2025-01-01T00:00:00Z stdout F line\n".repeat(10_000);
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        compress(&path).unwrap();
        assert!(!path.exists() && !beside(&path, ".tmp").exists());
        let compressed = File::open(beside(&path, ".gz")).unwrap();
        let found = compressed.metadata().unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o640);
        assert!(found.len() < text.len() as u64 / 20);
        let mut read = String::new();
        flate2::read::GzDecoder::new(compressed).read_to_string(&mut read).unwrap();
        assert_eq!(read, text);
    }

    #[test]
    fn a_link_in_the_place_of_a_log_is_neither_measured_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, path) = (dir.path().join("secret"), dir.path().join("0.log.20250101-000000"));
        std::fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(size(&path).unwrap_err().to_string().contains("not a regular file"));
        assert!(compress(&path).is_err());
        assert!(!beside(&path, ".gz").exists());
        assert_eq!(size(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn preparing_makes_room_and_renames() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20250101-000000.gz", "0.log.20250101-000001", "0.log.20250101-000002"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let policy = Policy { max_size: 1, max_files: 3, interval: 1 };
        let prepared = prepare(&dir.path().join("0.log"), &policy, false).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(&prepared.rotated)).unwrap(), "0.log");
        assert_eq!(prepared.compress, [dir.path().join("0.log.20250101-000002")]);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }

    /// What a pod with a hostPath of the logs puts in the place of a rotated log: compressing a FIFO waits for ever, a device
    /// or a terabyte of nothing fills the disk or takes a core for hours.
    #[test]
    fn what_no_runtime_wrote_is_not_compressed_and_nobody_waits_for_it() {
        use rustix::fs::{CWD, FileType, makedev, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let [fifo, zero, sparse] = ["0", "1", "2"].map(|n| dir.path().join(format!("0.log.20250101-00000{n}")));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        mknodat(CWD, &zero, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 5)).unwrap();
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        let (tx, rx) = std::sync::mpsc::channel();
        for path in [fifo, zero, sparse] {
            let (tx, of) = (tx.clone(), path.clone());
            std::thread::spawn(move || tx.send(compress(&of).is_err()));
            let refused = rx.recv_timeout(std::time::Duration::from_secs(5));
            assert_eq!(refused, Ok(true), "{}", path.display());
            assert!(path.exists() && !beside(&path, ".gz").exists() && !beside(&path, ".tmp").exists());
        }
    }

    /// The directory of a container's logs becomes a link to somebody else's files that are called like logs.
    #[test]
    fn a_directory_that_became_a_link_is_not_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, link) = (dir.path().join("outside"), dir.path().join("pods/pod/app"));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::fs::create_dir(&outside).unwrap();
        let names = ["0.log", "0.log.20250101-000000", "0.log.20250101-000001", "0.log.20250101-000002"];
        names.iter().for_each(|name| std::fs::write(outside.join(name), name).unwrap());
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        let policy = Policy { max_size: 1, max_files: 2, interval: 1 };
        prepare(&link.join("0.log"), &policy, false).unwrap_err();
        compress(&link.join(names[1])).unwrap_err();
        for name in names {
            assert_eq!(std::fs::read_to_string(outside.join(name)).unwrap(), name);
        }
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), names.len());
    }
}
