//! The conflist that nodelet writes when a node has no CNI configuration.
//!
//! One plugin, `nodelet-cni`: hostPorts and masquerade are elements of the agent's own nftables table, so there is no
//! `portmap` behind it. The file is [`FILE_NAME`]; a directory with any other configuration belongs to somebody else,
//! and then nothing is written.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cidr::Cidr;
use crate::client::ConfigError;

/// Sorts before `10-x` of most vendors; what is installed later with a lower number wins, as is usual.
pub const FILE_NAME: &str = "10-nodelet.conflist";

/// What goes into the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflist {
    /// The node's `spec.podCIDRs`, or the default when alone.
    pub pod_cidrs: Vec<Cidr>,
    /// Bytes; 0: that of the uplink at each ADD.
    pub mtu: u32,
    /// Where the plugin keeps leases.
    pub data_dir: PathBuf,
}

/// What [`ensure_conflist`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There was no configuration; ours is there now.
    Written,
    /// Ours was there with other content, and has this one now.
    Updated,
    /// Ours was there with this content.
    Unchanged,
    /// Somebody else's configuration is there (the first by name); nothing was written.
    Foreign(PathBuf),
}

/// The file's text.
pub fn render(conflist: &Conflist) -> String {
    let json = json!({
        // libcni before 1.2 (containerd 1.6 and 1.7) does not know cniVersions, and refuses results of 1.1.0.
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"],
        "name": "nodelet",
        "plugins": [{
            "type": "nodelet-cni",
            "podCIDRs": conflist.pod_cidrs,
            "mtu": conflist.mtu,
            "dataDir": conflist.data_dir,
        }],
    });
    format!("{json:#}\n")
}

/// Writes [`FILE_NAME`] into `dir` if there is no configuration, and keeps it current if it is ours. It is ours when its
/// only plugin is `nodelet-cni`; an edited one with more plugins is foreign.
///
/// The file is synced and renamed into place: containerd watches the directory and reads a file as soon as it appears.
pub fn ensure_conflist(dir: &Path, conflist: &Conflist) -> Result<Outcome, ConfigError> {
    let text = render(conflist);
    let path = dir.join(FILE_NAME);
    let outcome = match fs::read_to_string(&path) {
        Ok(current) if current == text => return Ok(Outcome::Unchanged),
        Ok(current) if is_ours(&current) => Outcome::Updated,
        Ok(_) => return Ok(Outcome::Foreign(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if let Some(other) = crate::client::config_files(dir)?.into_iter().next() {
                return Ok(Outcome::Foreign(other));
            }
            Outcome::Written
        }
        Err(source) => return Err(ConfigError::Io { path, source }),
    };
    replace(&path, &text).map_err(|source| ConfigError::Io { path, source })?;
    Ok(outcome)
}

/// The pod CIDRs of [`FILE_NAME`] in `dir`, where it is there and ours.
pub fn current(dir: &Path) -> Option<Vec<Cidr>> {
    let text = fs::read_to_string(dir.join(FILE_NAME)).ok().filter(|text| is_ours(text))?;
    let json: Value = serde_json::from_str(&text).ok()?;
    Some(json["plugins"][0]["podCIDRs"].as_array()?.iter().filter_map(|cidr| cidr.as_str()?.parse().ok()).collect())
}

fn is_ours(text: &str) -> bool {
    let json: Value = match serde_json::from_str(text) {
        Ok(json) => json,
        // Half of our own file, from a crash before renames were used, or somebody's typing error: leave it.
        Err(_) => return false,
    };
    matches!(json["plugins"].as_array().map(Vec::as_slice), Some([only]) if only["type"] == "nodelet-cni")
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let new = path.with_file_name(format!(".{FILE_NAME}.new"));
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Config;

    fn conflist(cidr: &str) -> Conflist {
        Conflist { pod_cidrs: vec![cidr.parse().unwrap()], mtu: 0, data_dir: "/var/lib/cni/nodelet".into() }
    }

    #[test]
    fn it_is_written_once_and_follows_the_pod_cidrs() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("net.d");
        assert_eq!(ensure_conflist(&dir, &conflist("10.0.0.0/24")).unwrap(), Outcome::Written);
        assert_eq!(ensure_conflist(&dir, &conflist("10.0.0.0/24")).unwrap(), Outcome::Unchanged);
        assert_eq!(ensure_conflist(&dir, &conflist("10.0.1.0/24")).unwrap(), Outcome::Updated);
        let list = Config::load(&dir).unwrap();
        assert_eq!((list.name.as_str(), list.plugins[0].kind.as_str()), ("nodelet", "nodelet-cni"));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_runtime_that_does_not_negotiate_gets_a_version_that_containerd_1_6_understands() {
        let json: Value = serde_json::from_str(&render(&conflist("10.0.0.0/24"))).unwrap();
        assert_eq!(json["cniVersion"], "1.0.0");
        let dir = tempfile::tempdir().unwrap();
        ensure_conflist(dir.path(), &conflist("10.0.0.0/24")).unwrap();
        assert_eq!(Config::load(dir.path()).unwrap().version.to_string(), "1.1.0", "one that does gets STATUS and GC");
    }

    #[test]
    fn it_never_touches_what_others_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("05-calico.conflist");
        fs::write(&other, "{}").unwrap();
        assert_eq!(ensure_conflist(dir.path(), &conflist("10.0.0.0/24")).unwrap(), Outcome::Foreign(other.clone()));
        assert!(!dir.path().join(FILE_NAME).exists());
        fs::remove_file(&other).unwrap();
        let edited = r#"{"name":"mine","plugins":[{"type":"nodelet-cni"},{"type":"portmap"}]}"#;
        for text in [edited, "half a fi"] {
            fs::write(dir.path().join(FILE_NAME), text).unwrap();
            let outcome = ensure_conflist(dir.path(), &conflist("10.0.0.0/24")).unwrap();
            assert_eq!(outcome, Outcome::Foreign(dir.path().join(FILE_NAME)));
            assert_eq!(fs::read_to_string(dir.path().join(FILE_NAME)).unwrap(), text);
        }
    }
}
