//! Records of pulls in files. The edge of `records`: it reads, writes and removes, and decides nothing.
//!
//! Small files of our own directory, written to a temporary name and renamed, without fsync: the page cache outlives a killed
//! agent, and after a power cut a missing record costs one more pull. They are read when a container starts and its image
//! is there, one file each; nothing of them stays in memory but the number of pulls that are under way.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;

use super::{Known, PullCredentials, PullIntent, PulledRecord, encode, file_name, merged};

/// The records of this node.
#[derive(Debug)]
pub struct Records {
    pulling: PathBuf,
    pulled: PathBuf,
    /// Pulls under way by image; also the lock of all changes to files.
    under_way: Mutex<BTreeMap<String, usize>>,
}

impl Records {
    /// Opens (and makes) `ROOT/image_manager`. `root_dir` is kubelet's directory.
    pub fn open(root_dir: &Path) -> io::Result<Self> {
        let base = root_dir.join("image_manager");
        let records = Self { pulling: base.join("pulling"), pulled: base.join("pulled"), under_way: Mutex::default() };
        for dir in [&records.pulling, &records.pulled] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(records)
    }

    /// Writes that a pull begins. Who cannot write this must not pull: the image would later be taken for everybody's.
    pub fn begin(&self, image: &str) -> io::Result<()> {
        let mut under_way = self.lock();
        write(&self.pulling, &file_name(image), &encode(&PullIntent::new(image)))?;
        *under_way.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// Writes how a pull ended: which image it got with what, or `None` when it failed. The intent stays when the record
    /// cannot be written, so that the image is still known as ours.
    pub fn end(&self, image: &str, pulled: Option<(&str, PullCredentials)>) {
        let mut under_way = self.lock();
        let left = under_way.get(image).copied().unwrap_or(1).saturating_sub(1);
        if left == 0 {
            under_way.remove(image);
        } else {
            under_way.insert(image.to_owned(), left);
        }
        if let Some((image_ref, with)) = pulled
            && let Err(error) = self.write_record(image, image_ref, Some(with))
        {
            tracing::error!(image, %error, "cannot record how an image was pulled; pods will have to pull it again");
            return;
        }
        if left == 0 {
            self.remove_intent(image);
        }
    }

    /// Adds a Secret that was found to be as good as those of the record.
    pub fn add(&self, image: &str, image_ref: &str, with: PullCredentials) {
        let _changes = self.lock();
        if let Err(error) = self.write_record(image, image_ref, Some(with)) {
            tracing::warn!(image, %error, "cannot record that another secret gives access to an image");
        }
    }

    /// What is recorded about an image of the node.
    pub fn known(&self, image: &str, image_ref: &str) -> Known {
        let under_way = self.lock();
        match self.read_record(image_ref) {
            Ok(Some(record)) => return Known::Pulled(record),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(image, %error, "unreadable record of an image pull; pods have to pull the image again");
                return Known::Unreadable;
            }
        }
        if under_way.contains_key(image) {
            return Known::Intent;
        }
        match std::fs::read(self.pulling.join(file_name(image))) {
            Ok(bytes) if PullIntent::decode(&bytes).is_ok_and(|intent| intent.image == image) => Known::Intent,
            Ok(_) => Known::Unreadable,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Known::Nothing,
            Err(error) => {
                tracing::error!(image, %error, "unreadable intent of an image pull; pods have to pull the image again");
                Known::Unreadable
            }
        }
    }

    /// Images whose pull had begun and is not known to have ended: an earlier agent was killed meanwhile.
    pub fn intents(&self) -> Vec<String> {
        let read = |path: PathBuf| PullIntent::decode(&std::fs::read(path).ok()?).ok();
        files(&self.pulling).into_iter().filter_map(read).map(|intent| intent.image).collect()
    }

    /// Turns the intent of an image that turned out to be there into a record without credentials.
    pub fn adopt(&self, image: &str, image_ref: &str) {
        let _changes = self.lock();
        match self.write_record(image, image_ref, None) {
            Ok(()) => self.remove_intent(image),
            Err(error) => tracing::error!(image, %error, "cannot record an image that an earlier agent pulled"),
        }
    }

    /// Removes the records of images that are gone and were not recorded since `listed`, the time before the list of
    /// images was asked for.
    pub fn prune(&self, image_refs: &[&str], listed: SystemTime) {
        let _changes = self.lock();
        for path in files(&self.pulled) {
            let is_older = path.metadata().and_then(|m| m.modified()).is_ok_and(|modified| modified < listed);
            let record = std::fs::read(&path).ok().and_then(|bytes| PulledRecord::decode(&bytes).ok());
            if is_older && record.is_some_and(|record| !image_refs.contains(&record.image_ref.as_str())) {
                remove(&path);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        // What it guards is whole between any two statements.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_record(&self, image_ref: &str) -> io::Result<Option<PulledRecord>> {
        match std::fs::read(self.pulled.join(file_name(image_ref))) {
            Ok(bytes) => {
                let record = PulledRecord::decode(&bytes).map_err(io::Error::other)?;
                Ok(Some(record).filter(|record| record.image_ref == image_ref))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn write_record(&self, image: &str, image_ref: &str, with: Option<PullCredentials>) -> io::Result<()> {
        // An unreadable record is replaced: it grants nothing to anybody.
        let old = self.read_record(image_ref).unwrap_or_default();
        let seconds = Timestamp::now().as_second();
        let now = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH).to_string();
        match merged(old, image, image_ref, with, &now).map_err(io::Error::other)? {
            Some(record) => write(&self.pulled, &file_name(image_ref), &encode(&record)),
            None => Ok(()),
        }
    }

    fn remove_intent(&self, image: &str) {
        remove(&self.pulling.join(file_name(image)));
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove a record of an image pull");
    }
}

/// Finished files of a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot list records of image pulls");
            return Vec::new();
        }
    };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("sha256-") && !name.ends_with(".tmp")
        })
        .collect()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let written = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| io::Write::write_all(&mut file, bytes));
    let renamed = written.and_then(|()| std::fs::rename(&temporary, dir.join(name)));
    if renamed.is_err() {
        // Best effort; what is left is overwritten by the next attempt.
        let _ = std::fs::remove_file(&temporary);
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::super::PullSecret;
    use super::*;

    fn secret() -> PullCredentials {
        let text = String::from;
        PullCredentials::of(Some(PullSecret {
            uid: text("u"),
            namespace: text("ns"),
            name: text("s"),
            credential_hash: text("h"),
        }))
    }

    #[test]
    fn a_pull_leaves_kubelets_files_and_no_intent() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        records.begin("reg.io/a:1").unwrap();
        let intent = dir.path().join("image_manager/pulling").join(file_name("reg.io/a:1"));
        assert_eq!(
            std::fs::read_to_string(&intent).unwrap(),
            "{\"kind\":\"ImagePullIntent\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\"image\":\"reg.io/a:1\"}\n"
        );
        assert_eq!(records.known("reg.io/a:1", "sha256:1"), Known::Intent);
        records.end("reg.io/a:1", Some(("sha256:1", secret())));
        assert!(!intent.exists());
        let record = dir.path().join("image_manager/pulled").join(file_name("sha256:1"));
        let text = std::fs::read_to_string(record).unwrap();
        let (head, tail) = text.split_once(",\"imageRef\"").unwrap();
        let kind =
            "{\"kind\":\"ImagePulledRecord\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\"lastUpdatedTime\":\"";
        assert!(head.starts_with(kind) && head.ends_with("Z\"") && head.len() == kind.len() + 21, "{head}");
        assert_eq!(
            tail,
            ":\"sha256:1\",\"credentialMapping\":{\"reg.io/a\":{\"kubernetesSecrets\":[{\"uid\":\"u\",\"namespace\":\
             \"ns\",\"name\":\"s\",\"credentialHash\":\"h\"}]}}}\n"
        );
    }

    #[test]
    fn the_intent_stays_until_the_last_of_several_pulls_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        records.begin("a").unwrap();
        records.begin("a").unwrap();
        records.end("a", None);
        assert_eq!(records.intents(), ["a"]);
        records.end("a", None);
        assert_eq!(records.intents(), [""; 0]);
        assert_eq!(records.known("a", "sha256:1"), Known::Nothing);
    }

    #[test]
    fn a_pull_that_a_killed_agent_began_becomes_a_record_that_grants_nothing() {
        let dir = tempfile::tempdir().unwrap();
        Records::open(dir.path()).unwrap().begin("reg.io/a:1").unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert_eq!(records.known("reg.io/a:1", "sha256:1"), Known::Intent);
        records.adopt("reg.io/a:1", "sha256:1");
        assert_eq!(records.intents(), [""; 0]);
        let Known::Pulled(record) = records.known("reg.io/a:1", "sha256:1") else { panic!("a record") };
        assert!(record.credential_mapping.is_empty());
    }

    #[test]
    fn a_record_that_cannot_be_read_grants_nothing_and_is_replaced_by_the_next_pull() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        let path = dir.path().join("image_manager/pulled").join(file_name("sha256:1"));
        std::fs::write(&path, "{\"kind\"").unwrap();
        assert_eq!(records.known("a", "sha256:1"), Known::Unreadable);
        records.begin("a").unwrap();
        records.end("a", Some(("sha256:1", secret())));
        assert!(matches!(records.known("a", "sha256:1"), Known::Pulled(_)));
    }

    #[test]
    fn records_of_images_that_are_gone_are_pruned_unless_they_are_newer_than_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        for image in ["sha256:1", "sha256:2"] {
            records.begin("a").unwrap();
            records.end("a", Some((image, secret())));
        }
        records.prune(&["sha256:1"], SystemTime::UNIX_EPOCH);
        assert!(matches!(records.known("a", "sha256:2"), Known::Pulled(_)), "recorded after the list was made");
        records.prune(&["sha256:1"], SystemTime::now() + std::time::Duration::from_secs(60));
        assert!(matches!(records.known("a", "sha256:1"), Known::Pulled(_)));
        assert_eq!(records.known("a", "sha256:2"), Known::Nothing);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_and_not_a_pull() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path()).unwrap();
        std::fs::remove_dir(dir.path().join("image_manager/pulling")).unwrap();
        assert!(records.begin("a").is_err());
        assert_eq!(records.known("a", "x"), Known::Nothing);
    }
}
