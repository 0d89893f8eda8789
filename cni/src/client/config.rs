use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::protocol::Version;

/// The newest specification that the client knows; a list that allows newer ones is run with what it also allows.
const NEWEST: Version = Version::V1_1_0;

/// A network and its plugins, as loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// The network's name.
    pub name: String,
    /// The version that calls are made in: the highest that the list allows and the client knows.
    pub version: Version,
    /// Every version that the list allows and the client knows.
    pub versions: Vec<Version>,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<Plugin>,
    /// The file that it came from.
    pub source: PathBuf,
    /// The file's bytes, kept for the cache.
    pub(super) bytes: Vec<u8>,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// `type`: the name of the executable.
    pub kind: String,
    /// Its configuration as written.
    pub(super) conf: Map<String, Value>,
}

impl Plugin {
    pub(super) fn declares(&self, capability: &str) -> bool {
        self.conf.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
    }
}

/// Why there is no usable configuration. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The directory has no `.conflist`, `.conf` or `.json` file, or does not exist.
    #[error("no CNI configuration (*.conflist, *.conf, *.json) in {dir}")]
    NoneFound {
        /// The directory.
        dir: PathBuf,
    },
    /// Reading failed.
    #[error("read {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Files are there, and none is right; the reason is that of the first one by name.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
}

/// Loads configurations from a directory.
#[derive(Debug)]
pub struct Config;

impl Config {
    /// The first valid network by file name, as containerd and CRI-O choose it: files that do not parse are passed over
    /// for a later one that does, and reported only when none does.
    pub fn load(dir: &Path) -> Result<NetworkList, ConfigError> {
        let mut first_error = None;
        for path in config_files(dir)? {
            match Self::load_file(&path) {
                Ok(list) => return Ok(list),
                Err(e) => first_error = first_error.or(Some(e)),
            }
        }
        Err(first_error.unwrap_or_else(|| ConfigError::NoneFound { dir: dir.to_owned() }))
    }

    /// One file: a list, or a single plugin that becomes a list of one.
    pub fn load_file(path: &Path) -> Result<NetworkList, ConfigError> {
        let bytes = fs::read(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        let invalid = |reason| ConfigError::Invalid { path: path.to_owned(), reason };
        let is_list = path.extension().is_some_and(|extension| extension == "conflist");
        let mut list = if is_list { parse_list(&bytes) } else { parse_single(&bytes) }.map_err(invalid)?;
        list.source = path.to_owned();
        if is_list && !flag(&object(&bytes).map_err(invalid)?, "loadOnlyInlinedPlugins").map_err(invalid)? {
            list.plugins.extend(load_directory(path, &list.name)?);
        }
        if list.plugins.is_empty() {
            return Err(invalid("no plugins: expected \"plugins\": [{\"type\": ...}]".to_owned()));
        }
        Ok(list)
    }
}

/// Every configuration file of a directory, sorted by name.
pub(crate) fn config_files(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    files(dir, &["conflist", "conf", "json"])
}

fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ConfigError> {
    let error = |source| ConfigError::Io { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(error(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        let wanted = path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted));
        if wanted && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Plugins in `DIR/NAME/*.conf` are appended unless the list has `loadOnlyInlinedPlugins` (libcni 1.3).
fn load_directory(list: &Path, name: &str) -> Result<Vec<Plugin>, ConfigError> {
    let dir = list.with_file_name(name);
    let load = |path: PathBuf| {
        let bytes = fs::read(&path).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
        let plugin = object(&bytes).and_then(parse_plugin);
        plugin.map_err(|reason| ConfigError::Invalid { path, reason })
    };
    files(&dir, &["conf"])?.into_iter().map(load).collect()
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("not a JSON object: {e}"))
}

fn parse_list(bytes: &[u8]) -> Result<NetworkList, String> {
    let raw = object(bytes)?;
    let name = text(&raw, "name")?.ok_or("no \"name\"")?;
    if !crate::protocol::is_container_id(&name) {
        return Err(format!(
            "name {name:?} must start with a letter or digit and hold letters, digits, '_', '.', '-' only"
        ));
    }
    let versions = versions(&raw)?;
    let plugins = match raw.get("plugins") {
        None if flag(&raw, "loadOnlyInlinedPlugins")? => {
            return Err("loadOnlyInlinedPlugins is true and there is no \"plugins\"".to_owned());
        }
        None => Vec::new(),
        Some(Value::Array(plugins)) if plugins.is_empty() => return Err("\"plugins\" is empty".to_owned()),
        Some(Value::Array(plugins)) => {
            let parse = |(index, plugin): (usize, &Value)| {
                let plugin = plugin.as_object().cloned().ok_or("not an object".to_owned()).and_then(parse_plugin);
                plugin.map_err(|e| format!("plugins[{index}]: {e}"))
            };
            plugins.iter().enumerate().map(parse).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(format!("\"plugins\" is {other}, expected a list")),
    };
    Ok(NetworkList {
        name,
        version: versions.iter().copied().max().ok_or("no version")?,
        versions,
        disable_check: flag(&raw, "disableCheck")?,
        disable_gc: flag(&raw, "disableGC")?,
        plugins,
        source: PathBuf::new(),
        bytes: bytes.to_vec(),
    })
}

/// A single plugin's configuration, the form before 1.0.0.
fn parse_single(bytes: &[u8]) -> Result<NetworkList, String> {
    let raw = object(bytes)?;
    if raw.contains_key("plugins") {
        return Err("a list of plugins belongs into a file that ends in .conflist".to_owned());
    }
    let list = serde_json::json!({
        "name": raw.get("name"), "cniVersion": raw.get("cniVersion").cloned().unwrap_or("0.2.0".into()), "plugins": [raw],
    });
    parse_list(list.to_string().as_bytes())
}

fn parse_plugin(conf: Map<String, Value>) -> Result<Plugin, String> {
    let kind = text(&conf, "type")?.ok_or("no \"type\": expected the name of a plugin executable")?;
    if kind.is_empty() || kind.contains('/') {
        return Err(format!("type {kind:?} must be the name of an executable, without a path"));
    }
    Ok(Plugin { kind, conf })
}

/// `cniVersion` and `cniVersions` together, without those that are newer than the client.
fn versions(raw: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let mut texts: Vec<String> = text(raw, "cniVersion")?.into_iter().collect();
    match raw.get("cniVersions") {
        None => {}
        Some(Value::Array(more)) => {
            for (index, version) in more.iter().enumerate() {
                let text =
                    version.as_str().ok_or_else(|| format!("cniVersions[{index}] is {version}, expected text"))?;
                texts.push(text.to_owned());
            }
        }
        Some(other) => return Err(format!("\"cniVersions\" is {other}, expected a list")),
    }
    if texts.is_empty() {
        texts.push("0.1.0".to_owned());
    }
    let mut versions: Vec<Version> = texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    versions.retain(|version| *version <= NEWEST);
    versions.sort_unstable();
    versions.dedup();
    match versions.is_empty() {
        true => Err(format!("cniVersion {} is newer than {NEWEST}, the newest that is known here", texts.join(", "))),
        false => Ok(versions),
    }
}

fn text(raw: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("{key:?} is {other}, expected text")),
    }
}

/// A boolean, or its text: libcni takes `"true"` as well.
fn flag(raw: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match raw.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key:?} is {other}, expected true or false")),
    }
}
