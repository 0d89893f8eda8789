//! Moving, finding and removing kept logs.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Excess, Kept, Limits};
use crate::cri::Nanos;

/// Where logs are kept, given where those of pods are.
pub fn place(log_dir: &Path) -> PathBuf {
    log_dir.parent().unwrap_or(log_dir).join(super::DIRECTORY)
}

/// Moves a pod's log directory to the kept ones in `keep`. Where that is not possible it is removed. Idempotent.
pub fn put(directory: &Path, keep: &Path, limits: &Limits, now: Nanos) -> io::Result<()> {
    if !directory.try_exists()? {
        return Ok(());
    }
    if let Err(error) = moved(directory, keep) {
        tracing::debug!(directory = %directory.display(), %error, "the last logs of a pod are not kept");
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    tidy(keep, limits, now);
    Ok(())
}

fn moved(directory: &Path, keep: &Path) -> io::Result<()> {
    let name = directory.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(keep)?;
    let target = keep.join(name);
    // A static pod that comes back has the UID it had.
    match std::fs::remove_dir_all(&target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::rename(directory, &target)?;
    // Through handles from here on: somebody with a hostPath of the logs may exchange a directory for a link at any moment.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pod = rustix::fs::open(&target, flags, Mode::empty())?;
    for container in names(&pod)? {
        match rustix::fs::openat(&pod, &container, flags, Mode::empty()) {
            Ok(container) => remove_rotated(&container)?,
            // Not a directory, or gone meanwhile.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // When the pod went; a directory's own time is when its first container was created.
    File::from(pod).set_modified(SystemTime::now())
}

fn remove_rotated(container: &OwnedFd) -> io::Result<()> {
    for name in names(container)? {
        if !name.to_str().is_ok_and(super::is_log) {
            rustix::fs::unlinkat(container, &name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn names(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Everything that is kept.
pub fn list(keep: &Path) -> Vec<Kept> {
    let names = directories(keep).unwrap_or_default();
    let kept = names.into_iter().filter_map(|name| {
        let path = keep.join(&name);
        let since = path.metadata().and_then(|found| found.modified()).ok()?.duration_since(UNIX_EPOCH).ok()?;
        let since = Nanos::try_from(since.as_nanos()).ok()?;
        Some(Kept { bytes: bytes(&path), name, since })
    });
    kept.collect()
}

/// Removes what is beyond the limits; answers what that was.
pub fn tidy(keep: &Path, limits: &Limits, now: Nanos) -> Vec<(Kept, Excess)> {
    let going = super::excess(list(keep), limits, now);
    for (kept, why) in &going {
        if let Err(error) = std::fs::remove_dir_all(keep.join(&kept.name)) {
            tracing::warn!(name = %kept.name, %error, ?why, "kept logs of a pod cannot be removed");
        }
    }
    going
}

/// The log of a container of a pod that is gone. Without a container's name, of its first by name.
pub fn find(keep: &Path, namespace: &str, pod: &str, container: Option<&str>, previous: bool) -> Option<PathBuf> {
    let all = list(keep);
    let directory = keep.join(&super::find(&all, namespace, pod)?.name);
    let mut containers = directories(&directory).ok()?;
    containers.sort();
    let container = containers.into_iter().find(|name| container.is_none_or(|wanted| wanted == name))?;
    let directory = directory.join(container);
    let files = std::fs::read_dir(&directory).ok()?.flatten();
    let files: Vec<String> = files.filter_map(|file| file.file_name().into_string().ok()).collect();
    Some(directory.join(super::pick(&files, previous)?))
}

fn directories(path: &Path) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(path)?.flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn bytes(pod: &Path) -> u64 {
    let containers = directories(pod).unwrap_or_default().into_iter();
    let files = containers.flat_map(|container| std::fs::read_dir(pod.join(container)).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|found| found.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::super::LIMITS;
    use super::*;
    use crate::pod::shared::now;

    #[test]
    fn the_logs_of_a_pod_that_is_gone_are_found_without_what_was_rotated() {
        let root = tempfile::tempdir().unwrap();
        let (directory, keep) = (root.path().join("pods/default_web_u1"), root.path().join("kept"));
        std::fs::create_dir_all(directory.join("app")).unwrap();
        for name in ["0.log", "1.log", "1.log.20250101-000000", "0.log.20250101-000000.gz"] {
            std::fs::write(directory.join("app").join(name), name).unwrap();
        }
        put(&directory, &keep, &LIMITS, now()).unwrap();
        assert!(!directory.exists());
        let find = |container, previous| find(&keep, "default", "web", container, previous);
        assert_eq!(std::fs::read_to_string(find(None, false).unwrap()).unwrap(), "1.log");
        assert_eq!(std::fs::read_to_string(find(Some("app"), true).unwrap()).unwrap(), "0.log");
        assert_eq!(find(Some("other"), false), None);
        assert_eq!(list(&keep)[0].bytes, 10);
        put(&directory, &keep, &LIMITS, now()).unwrap();
        assert_eq!(list(&keep).len(), 1, "again does nothing");
    }

    #[test]
    fn a_bound_of_nothing_keeps_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (directory, keep) = (root.path().join("pods/default_web_u1"), root.path().join("kept"));
        std::fs::create_dir_all(directory.join("app")).unwrap();
        std::fs::write(directory.join("app/0.log"), "x").unwrap();
        put(&directory, &keep, &Limits { bytes: 0, ..LIMITS }, now()).unwrap();
        assert!(list(&keep).is_empty() && !directory.exists());
    }

    /// CVE-2017-1002102 by another door: what is no log is removed from a directory that somebody exchanges for a link.
    #[test]
    fn a_log_directory_that_is_exchanged_for_a_link_costs_no_file_of_the_node() {
        let root = tempfile::tempdir().unwrap();
        let (outside, keep) = (root.path().join("outside"), root.path().join("kept"));
        std::fs::create_dir_all(&outside).unwrap();
        let canaries: Vec<_> = (0..20).map(|n| outside.join(format!("canary-{n}"))).collect();
        canaries.iter().for_each(|path| std::fs::write(path, "").unwrap());
        let mut exchanged = 0u64;
        for round in 0..300 {
            let directory = root.path().join(format!("pods/default_web_u{round}"));
            std::fs::create_dir_all(directory.join("app")).unwrap();
            (0..20).for_each(|n| std::fs::write(directory.join(format!("app/0.log.{n}")), "").unwrap());
            std::os::unix::fs::symlink(&outside, directory.join("link")).unwrap();
            // The handle stays good when the directory is renamed.
            let pod = File::open(&directory).unwrap();
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                let attacker = scope.spawn(|| {
                    let mut times = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let exchange = rustix::fs::RenameFlags::EXCHANGE;
                        times += u64::from(rustix::fs::renameat_with(&pod, "app", &pod, "link", exchange).is_ok());
                    }
                    times
                });
                // It may fail; it may not reach outside.
                let _ = put(&directory, &keep, &LIMITS, now());
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                exchanged += attacker.join().unwrap();
            });
            assert!(canaries.iter().all(|path| path.exists()), "round {round}");
        }
        assert!(exchanged > 300, "there was an attack: {exchanged}");
    }
}
