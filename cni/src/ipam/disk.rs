//! Leases in a directory: `DATA_DIR/NETWORK/{lock,leases.json}`.
//!
//! The lock file is never replaced, so that `flock` always meets the same inode; the kernel drops the lock when its
//! holder dies. A write goes to `leases.new`, is synced, and takes the place of `leases.json`: a reader sees the old or the
//! new file. The two change places, and neither becomes smaller, so that a disk that is full does not keep a pod from giving
//! its address back: without that nothing of the pod could be removed, and the disk stayed full. The directory is not synced: losing the rename means losing power, and with it every namespace that a lease was
//! for. The first line is a checksum of the rest, because a file system may still hand back a file of zeros or half a
//! file after a power cut (xfs: <https://xfs.org/index.php/XFS_FAQ>, "why do I see binary NULLs").

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::{Leases, Store, StoreError};

/// What follows the leases up to the end of a block, or of a file that once held more of them.
const PADDING: u8 = b'\n';
/// What disks give out at once; some thirty leases.
const BLOCK: usize = 4096;

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
        let content = encode(leases).map_err(io_error("encode", &new))?;
        write(&new, content.clone()).map_err(io_error("write", &new))?;
        match renameat_with(CWD, &new, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            // The first leases, or a file system that cannot exchange.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
                fs::rename(&new, &path).map_err(io_error("replace", &path))?;
            }
            Err(e) => return Err(io_error("replace", &path)(e.into())),
        }
        let length = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        if length(&new) < length(&path) {
            // Room for the next write; without it that one asks for room of its own.
            let _ = write(&new, content);
        }
        Ok(())
    }
}

/// Writes over what is there: the blocks of a file that does not become larger are there already.
fn write(path: &Path, mut content: Vec<u8>) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    let had = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    content.resize(content.len().next_multiple_of(BLOCK).max(had), PADDING);
    file.write_all(&content)?;
    file.sync_data()
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
    let body = file[end + 1..].trim_ascii_end();
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
