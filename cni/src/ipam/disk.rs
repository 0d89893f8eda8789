//! Leases in a directory: `DATA_DIR/NETWORK/{lock,leases.json}`.
//!
//! The lock file is never replaced, so that `flock` always meets the same inode; the kernel drops the lock when its
//! holder dies. A write goes to `leases.new`, is synced, and renamed over `leases.json`: a reader sees the old or the new
//! file. The directory is not synced: losing the rename means losing power, and with it every namespace that a lease was
//! for. The first line is a checksum of the rest, because a file system may still hand back a file of zeros or half a
//! file after a power cut (xfs: <https://xfs.org/index.php/XFS_FAQ>, "why do I see binary NULLs").

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{Leases, Store, StoreError};

/// The leases of one network, locked while this value lives.
#[derive(Debug)]
pub struct DiskStore {
    dir: PathBuf,
    _lock: File,
}

impl DiskStore {
    /// Waits for the lock of `network` below `data_dir`, making directories as needed (0700).
    ///
    /// Waiting has no limit here: a holder only reads and writes one file, and the runtime limits each call.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let dir = data_dir.join(network);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("create directory", &dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
            .map_err(|e| io_error("lock", &path)(e.into()))?;
        Ok(Self { dir, _lock: lock })
    }

    fn damaged(&self, path: &Path, reason: &str) -> StoreError {
        // One copy is kept for a human; the newest is the most useful one.
        let aside = self.dir.join("leases.damaged");
        match fs::rename(path, &aside) {
            Ok(()) => StoreError::Damaged {
                path: path.display().to_string(),
                reason: reason.to_owned(),
                aside: aside.display().to_string(),
            },
            Err(e) => io_error("set aside damaged", path)(e),
        }
    }
}

impl Store for DiskStore {
    fn load(&mut self) -> Result<Leases, StoreError> {
        let path = self.dir.join("leases.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Leases::default()),
            Err(e) => return Err(io_error("read", &path)(e)),
        };
        decode(&bytes).map_err(|reason| self.damaged(&path, &reason))
    }

    fn save(&mut self, leases: &Leases) -> Result<(), StoreError> {
        let (path, new) = (self.dir.join("leases.json"), self.dir.join("leases.new"));
        let write = || {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&encode(leases)?)?;
            file.sync_data()
        };
        write().map_err(io_error("write", &new))?;
        fs::rename(&new, &path).map_err(io_error("replace", &path))
    }
}

fn encode(leases: &Leases) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(leases)?;
    let mut file = format!("nodelet-leases 1 {:016x}\n", checksum(&body)).into_bytes();
    file.extend(body);
    Ok(file)
}

fn decode(file: &[u8]) -> Result<Leases, String> {
    let end = file.iter().position(|byte| *byte == b'\n').ok_or("no first line")?;
    let head = std::str::from_utf8(&file[..end]).map_err(|_| "the first line is not text")?;
    let body = &file[end + 1..];
    let expected = format!("nodelet-leases 1 {:016x}", checksum(body));
    if head != expected {
        return Err(format!("first line {head:?}, expected {expected:?}"));
    }
    serde_json::from_slice(body).map_err(|e| e.to_string())
}

/// FNV-1a, 64 bits: against torn writes, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.display().to_string();
    move |source| StoreError::Io { action, path, source }
}
