//! The result cache in libcni's format (`libcni/api.go`, `cniCacheV1`): `CACHE/results/NETWORK-CONTAINER-IFNAME`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{AttachmentArgs, ChainError, Client, NetworkList};
use crate::protocol::{AddResult, AttachmentId, Version};

const KIND: &str = "cniCacheV1";

/// One file of the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CachedAttachment {
    kind: String,
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// The list as it was at ADD, base64.
    config: String,
    /// CNI_IFNAME.
    pub if_name: String,
    /// The network that it belongs to.
    pub network_name: String,
    /// CNI_NETNS at ADD.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    cni_args: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Map::is_empty", deserialize_with = "null_as_default")]
    capability_args: Map<String, Value>,
    /// The last plugin's result as it was printed.
    #[serde(default)]
    pub result: Value,
    /// When the file was written.
    #[serde(skip)]
    pub(super) written_at: Option<SystemTime>,
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl CachedAttachment {
    /// Container and interface.
    pub fn id(&self) -> AttachmentId {
        AttachmentId { container_id: self.container_id.clone(), ifname: self.if_name.clone() }
    }

    /// The arguments of its ADD.
    pub fn args(&self) -> AttachmentArgs {
        AttachmentArgs {
            container_id: self.container_id.clone(),
            ifname: self.if_name.clone(),
            netns: self.netns.clone(),
            args: self.cni_args.clone(),
            capabilities: self.capability_args.clone(),
        }
    }

    /// The result in the version of the configuration, which may have changed since the ADD. `None` where it cannot be
    /// expressed in it.
    pub(super) fn result_as(&self, version: Version) -> Option<Value> {
        let cached: Version = self.result["cniVersion"].as_str()?.parse().ok()?;
        if cached == version {
            return Some(self.result.clone());
        }
        if cached < Version::V0_3_0 || version < Version::V0_3_0 {
            return None;
        }
        serde_json::from_value::<AddResult>(self.result.clone()).ok().map(|result| result.to_json(version))
    }
}

/// The file of an attachment.
pub(super) fn path(client: &Client, network: &str, attachment: &AttachmentArgs) -> Result<PathBuf, ChainError> {
    let AttachmentArgs { container_id, ifname, .. } = attachment;
    // The three become one file name: a slash would leave the directory.
    if [network, container_id, ifname].iter().any(|part| part.is_empty() || part.contains('/')) {
        return Err(ChainError::Unsupported(format!(
            "network {network:?}, container {container_id:?} and interface {ifname:?} must be names without '/'"
        )));
    }
    Ok(client.cache_dir.join("results").join(format!("{network}-{container_id}-{ifname}")))
}

pub(super) fn save(
    file: &Path,
    list: &NetworkList,
    attachment: &AttachmentArgs,
    result: &Value,
) -> Result<(), ChainError> {
    let cached = CachedAttachment {
        kind: KIND.to_owned(),
        container_id: attachment.container_id.clone(),
        config: base64(&list.bytes),
        if_name: attachment.ifname.clone(),
        network_name: list.name.clone(),
        netns: attachment.netns.clone(),
        cni_args: attachment.args.clone(),
        capability_args: attachment.capabilities.clone(),
        result: result.clone(),
        written_at: None,
    };
    let write = || -> io::Result<()> {
        if let Some(dir) = file.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        // Renamed into place: a reader of the directory never sees half a file. The leading dot hides the new one from
        // libcni, which wants NETWORK-CONTAINER-IFNAME.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let new = file.with_file_name(format!(".{name}.new"));
        let mut out = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        out.write_all(&serde_json::to_vec(&cached)?)?;
        fs::rename(&new, file)
    };
    write().map_err(|e| error(file, &e))
}

/// `None` when there is no file.
pub(super) fn load(file: &Path) -> Result<Option<CachedAttachment>, ChainError> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(error(file, &e)),
    };
    let mut cached: CachedAttachment = serde_json::from_slice(&bytes).map_err(|e| error(file, &e))?;
    if cached.kind != KIND {
        return Err(error(file, &format!("kind is {:?}, expected {KIND}", cached.kind)));
    }
    cached.written_at = fs::metadata(file).and_then(|meta| meta.modified()).ok();
    Ok(Some(cached))
}

pub(super) fn remove(file: &Path) -> Result<(), ChainError> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(file, &e)),
        _ => Ok(()),
    }
}

/// Every attachment in the cache; files that are not ours to read (older formats, half-written) are passed over.
pub(super) fn list(client: &Client) -> Result<Vec<CachedAttachment>, ChainError> {
    let dir = client.cache_dir.join("results");
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(&dir, &e)),
    };
    let mut files: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    files.sort();
    Ok(files.iter().filter_map(|file| load(file).ok().flatten()).collect())
}

fn error(path: &Path, reason: &impl ToString) -> ChainError {
    ChainError::Cache { path: path.display().to_string(), reason: reason.to_string() }
}

/// Standard base64 with padding, as Go writes a `[]byte` into JSON.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let sextet = (bits >> (18 - 6 * position)) & 63;
            let used = position <= chunk.len();
            text.push(if used { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_matches_rfc_4648() {
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(super::base64(plain.as_bytes()), text);
        }
    }
}
