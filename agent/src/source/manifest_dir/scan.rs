//! The disk side of the manifest directory: listing, reading, and copies of good manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::debounce::Work;
use super::state::{FileRead, Scan};

/// One byte more than the decoder takes, so that it is the decoder who refuses.
const READ_LIMIT: u64 = 3 * 1024 * 1024 + 1;

/// Tells a changed file from an unchanged one without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Fingerprint {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Is this the name of a file that is read?
pub(super) fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, e)| e);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Reads the directory, each file only when it changed.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    dir: PathBuf,
    copies: Copies,
    seen: BTreeMap<String, Option<Fingerprint>>,
}

impl Scanner {
    pub(super) fn new(dir: PathBuf, last_good: PathBuf) -> Self {
        Self { dir, copies: Copies { dir: last_good }, seen: BTreeMap::new() }
    }

    pub(super) fn copies(&self) -> Copies {
        self.copies.clone()
    }

    /// One pass. Fails only when the directory cannot be listed; a partial list is never taken for the whole.
    pub(super) fn scan(&mut self, work: &Work) -> io::Result<Scan> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            if let Ok(name) = entry?.file_name().into_string()
                && is_manifest(&name)
            {
                names.insert(name);
            }
        }
        // Known, not there, but perhaps only being replaced: keep it for now.
        names.extend(work.busy.iter().filter(|n| self.seen.contains_key(*n)).cloned());
        let mut files = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for name in names {
            let known = self.seen.get(&name).copied();
            if work.busy.contains(&name) {
                if let Some(known) = known {
                    seen.insert(name.clone(), known);
                    files.insert(name, FileRead::Same);
                }
                continue;
            }
            let (fingerprint, read) = self.read(&name, known, work.changed.contains(&name));
            if let Some(read) = read {
                seen.insert(name.clone(), fingerprint);
                files.insert(name, read);
            }
        }
        self.seen = seen;
        Ok(Scan { files })
    }

    /// `known` is `None` for a file that was never looked at. No answer: it vanished, or it is a directory.
    fn read(
        &self,
        name: &str,
        known: Option<Option<Fingerprint>>,
        changed: bool,
    ) -> (Option<Fingerprint>, Option<FileRead>) {
        let path = self.dir.join(name);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => None,
            _ => Some(FileRead::Failed(error.to_string())),
        };
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) => return (None, failed(error)),
        };
        if meta.is_dir() {
            return (None, None);
        }
        if !meta.is_file() {
            return (None, Some(FileRead::Failed("is not a regular file".to_owned())));
        }
        let fingerprint = Fingerprint::of(&meta);
        if !changed && known == Some(Some(fingerprint)) {
            return (Some(fingerprint), Some(FileRead::Same));
        }
        match read_file(&path) {
            // The fingerprint was taken before reading: a change in between is seen by the next pass.
            Ok(bytes) => {
                let last_good = if known.is_none() { self.copies.load(name) } else { None };
                (Some(fingerprint), Some(FileRead::Content { bytes, last_good }))
            }
            Err(error) => (None, failed(error)),
        }
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Not blocking: the file may have become a FIFO since it was looked at.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)?;
    let mut bytes = Vec::new();
    file.take(READ_LIMIT).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Copies of the last good content of each manifest.
///
/// They hold Secrets, so only root may read them.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies {
    dir: PathBuf,
}

impl Copies {
    fn load(&self, name: &str) -> Option<Vec<u8>> {
        read_file(&self.dir.join(name)).ok()
    }

    /// Keeps `good` and forgets `gone`; goes on after an error and gives back the first.
    pub(super) fn keep(&self, good: &[(String, Vec<u8>)], gone: &[String]) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let written = good.iter().map(|(name, bytes)| self.write(name, bytes));
        let removed = gone.iter().map(|name| match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        let results = written.chain(removed).collect::<Vec<_>>();
        results.into_iter().collect()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.dir.join(name);
        if read_file(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        let temporary = self.dir.join(format!(".{name}.tmp"));
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&temporary, &path)
    }
}
