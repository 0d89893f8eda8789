//! `alone.json`: allocations that survive the agent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::allocate::Remembered;

/// The format that this code reads and writes.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    #[serde(flatten)]
    remembered: Remembered,
}

/// The file.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// A store at `path`; nothing is touched yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was kept. A file that cannot be understood is set aside under another name, and everything is allocated anew: most
    /// Services get the same addresses again, because these begin at a hash of the name.
    pub fn load(&self) -> Remembered {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Remembered::default(),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "kept Service addresses cannot be read");
                return Remembered::default();
            }
        };
        let problem = match serde_json::from_slice::<OnDisk>(&text) {
            Ok(disk) if disk.version == VERSION => return disk.remembered,
            Ok(disk) => format!("version {} is not {VERSION}", disk.version),
            Err(error) => error.to_string(),
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let aside = self.path.with_extension(format!("json.corrupt-{seconds}"));
        let moved = fs::rename(&self.path, &aside);
        tracing::error!(path = %self.path.display(), aside = %aside.display(), %problem, ?moved, "kept Service addresses are unreadable and set aside; addresses are allocated anew");
        Remembered::default()
    }

    /// Keeps allocations; an error is said and the agent goes on with what it has in memory.
    pub async fn save(&self, remembered: Remembered) {
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || write(&path, remembered)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(path = %self.path.display(), %error, "Service addresses cannot be kept; after a restart they may change");
            }
            Err(error) => tracing::error!(%error, "keeping Service addresses failed"),
        }
    }
}

/// Old or new, never half: written beside, synced, moved over, directory synced.
fn write(path: &Path, remembered: Remembered) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&OnDisk { version: VERSION, remembered })?;
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = path.with_extension("json.tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}
