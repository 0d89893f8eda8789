//! Reading a file of environment variables that a container has written into a volume.

use std::path::Path;

use super::safe_path::Dir;

/// Largest file of variables.
const LIMIT: u64 = 64 * 1024;

/// Reads a file below a volume. Containers write there, so no symlink is followed, and only so much is read.
pub fn read_variables(volume: &Path, path: &str) -> Result<String, String> {
    let dir = Dir::open(volume).map_err(|error| error.to_string())?;
    let bytes = dir.read(path, LIMIT + 1).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > LIMIT {
        return Err(format!("{path} has more than {LIMIT} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read_and_nothing_outside_of_its_volume_or_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        std::fs::write(volume.join("sub/env"), "A='1'").unwrap();
        std::fs::write(dir.path().join("secret"), "A='s3cret'").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), volume.join("link")).unwrap();
        std::fs::write(volume.join("large"), vec![b'#'; 70_000]).unwrap();
        assert_eq!(read_variables(&volume, "sub/env").as_deref(), Ok("A='1'"));
        for path in ["../secret", "link", "large", "none", "sub"] {
            assert!(read_variables(&volume, path).is_err(), "{path}");
        }
    }
}
