//! What rotation does to files. No symlink is followed: pods with a hostPath of the log directory could plant one.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{CWD, OFlags, RenameFlags};

use super::local_time;
use super::plan::{self, Policy};
use crate::cri::Runtime;
use crate::ids::ContainerId;

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
    let (rotated, compress) = prepared.map_err(|error| error.to_string())??;
    let Err(error) = runtime.reopen_log(id).await else { return Ok(compress) };
    // As it was, so that the next try finds it. A new log that is there after all stays: nothing is lost either way.
    let undone = rustix::fs::renameat_with(CWD, &rotated, CWD, log, RenameFlags::NOREPLACE);
    match undone {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Err(error.to_string()),
        Err(undo) => Err(format!("{error}; and {} cannot be renamed back: {undo}", rotated.display())),
    }
}

fn prepare(log: &Path, policy: &Policy, compressing: bool) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Err(format!("{} is not a path of a log", log.display()));
    };
    let listed = std::fs::read_dir(directory).map_err(|error| format!("list {}: {error}", directory.display()))?;
    let names: Vec<String> = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let files = plan::files(&names, name, local_time::now(), policy, compressing);
    for old in &files.remove {
        let old = directory.join(old);
        match std::fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("remove {}: {error}", old.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let rotated = directory.join(&files.rotated);
    rustix::fs::renameat_with(CWD, log, CWD, &rotated, RenameFlags::NOREPLACE)
        .map_err(|error| format!("rename {} to {}: {error}", log.display(), rotated.display()))?;
    Ok((rotated, files.compress.iter().map(|name| directory.join(name)).collect()))
}

/// Compresses a file to `FILE.gz` of the same mode, by way of `FILE.tmp`, and removes it.
pub(super) fn compress(path: &Path) -> io::Result<()> {
    let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
    let mut source = match File::options().read(true).custom_flags(nofollow).open(path) {
        Ok(source) => source,
        // It was the oldest, and has made room meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mode = source.metadata()?.permissions().mode() & 0o7777;
    let (temporary, compressed) = (with_suffix(path, ".tmp"), with_suffix(path, ".gz"));
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let written = (|| {
        let target = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        // Whatever the process's umask is.
        target.set_permissions(Permissions::from_mode(mode))?;
        let mut encoder = GzEncoder::new(target, Compression::default());
        io::copy(&mut source, &mut encoder)?;
        encoder.finish()?;
        std::fs::rename(&temporary, &compressed)
    })();
    if written.is_err() {
        // What cannot be removed now is removed as unused by the next rotation.
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_compressed_file_has_content_and_mode_of_the_one_it_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log.20250101-000000");
        let text = "2025-01-01T00:00:00Z stdout F line\n".repeat(10_000);
        File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        compress(&path).unwrap();
        assert!(!path.exists() && !with_suffix(&path, ".tmp").exists());
        let compressed = File::open(with_suffix(&path, ".gz")).unwrap();
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
        assert!(!with_suffix(&path, ".gz").exists());
        assert_eq!(size(&dir.path().join("none")).unwrap(), None);
    }

    #[test]
    fn preparing_makes_room_and_renames() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20250101-000000.gz", "0.log.20250101-000001", "0.log.20250101-000002"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let policy = Policy { max_size: 1, max_files: 3, interval: 1 };
        let (rotated, compress) = prepare(&dir.path().join("0.log"), &policy, false).unwrap();
        assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "0.log");
        assert_eq!(compress, [dir.path().join("0.log.20250101-000002")]);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
