//! The node's own docker configuration, with which every pod may pull. Edge: reads files.
//!
//! The first file that can be read counts, the newer form before the older one: `config.json` in kubelet's directory, the
//! working directory, `~/.docker` and `/.docker`; then `.dockercfg` in kubelet's directory, the working directory, `~` and
//! `/`. They are read for each pull (kubelet keeps them for 5 minutes), so that `docker login` helps at once.
//! Source: `pkg/credentialprovider/config.go` of k8s.io/kubernetes v1.37.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::keyring::{ConfigError, DockerConfig, parse_config_json, parse_dockercfg};

type Parse = fn(&[u8]) -> Result<DockerConfig, ConfigError>;

/// Reads the configuration; empty when there is none.
pub fn read(root_dir: &Path, home: &Path) -> DockerConfig {
    let here = PathBuf::new();
    let json = [root_dir.to_path_buf(), here.clone(), home.join(".docker"), "/.docker".into()];
    let old = [root_dir.to_path_buf(), here, home.to_path_buf(), "/".into()];
    let json = json.into_iter().map(|dir| (dir.join("config.json"), parse_config_json as Parse));
    let old = old.into_iter().map(|dir| (dir.join(".dockercfg"), parse_dockercfg as Parse));
    json.chain(old).find_map(|(path, parse)| read_one(&path, parse)).unwrap_or_default()
}

fn read_one(path: &Path, parse: Parse) -> Option<DockerConfig> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the node's docker configuration, looking further");
            return None;
        }
    };
    match parse(&bytes) {
        Ok(config) => Some(config),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "unusable docker configuration of the node, looking further");
            None
        }
    }
}

/// The agent's home directory; root's where the service manager sets none.
pub fn home() -> PathBuf {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map_or_else(|| "/root".into(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "{\"auths\":{\"a.io\":{\"auth\":\"dTpw\"}}}";
    const OLD: &str = "{\"b.io\":{\"auth\":\"dTpw\"}}";

    fn registries(root: &Path, home: &Path) -> Vec<String> {
        read(root, home).into_keys().collect()
    }

    #[test]
    fn the_first_file_that_can_be_read_counts_and_the_newer_form_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let (root, home) = (dir.path().join("kubelet"), dir.path().join("home"));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::create_dir_all(home.join(".docker")).unwrap();
        assert_eq!(registries(&root, &home), [""; 0]);
        std::fs::write(root.join(".dockercfg"), OLD).unwrap();
        assert_eq!(registries(&root, &home), ["b.io"]);
        std::fs::write(home.join(".docker/config.json"), JSON).unwrap();
        assert_eq!(registries(&root, &home), ["a.io"]);
        std::fs::write(root.join("config.json"), JSON.replace("a.io", "c.io")).unwrap();
        assert_eq!(registries(&root, &home), ["c.io"]);
        std::fs::write(root.join("config.json"), "not json").unwrap();
        assert_eq!(registries(&root, &home), ["a.io"], "a broken file hides none of the others");
    }
}
