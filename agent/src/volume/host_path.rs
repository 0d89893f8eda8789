//! `hostPath`: a path of the host that the pod's author chose. Nothing is mounted; its type is checked or it is created.

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// `hostPath.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Empty: no check.
    Unset,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

impl Kind {
    /// Reads the API's text.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" => Self::Unset,
            "DirectoryOrCreate" => Self::DirectoryOrCreate,
            "Directory" => Self::Directory,
            "FileOrCreate" => Self::FileOrCreate,
            "File" => Self::File,
            "Socket" => Self::Socket,
            "CharDevice" => Self::CharDevice,
            "BlockDevice" => Self::BlockDevice,
            _ => return None,
        })
    }

    fn words(self) -> &'static str {
        match self {
            Self::Unset => "path",
            Self::DirectoryOrCreate | Self::Directory => "directory",
            Self::FileOrCreate | Self::File => "file",
            Self::Socket => "socket file",
            Self::CharDevice => "character device",
            Self::BlockDevice => "block device",
        }
    }
}

/// Makes a path what its type says, or says why it is not. Symlinks are followed: the host's administrator made them.
pub(super) fn ensure(path: &Path, kind: Kind) -> Result<(), String> {
    if path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(format!("invalid HostPath `{}`: must not contain '..'", path.display()));
    }
    let found = match (std::fs::metadata(path), kind) {
        (_, Kind::Unset) => return Ok(()),
        (Err(e), Kind::DirectoryOrCreate) if e.kind() == io::ErrorKind::NotFound => {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
            return made.map_err(|e| format!("cannot create directory {}: {e}", path.display()));
        }
        (Err(e), Kind::FileOrCreate) if e.kind() == io::ErrorKind::NotFound => {
            let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path);
            return made.map(drop).map_err(|e| format!("cannot create file {}: {e}", path.display()));
        }
        (Err(e), _) => {
            let (path, words) = (path.display(), kind.words());
            return Err(format!(
                "hostPath type check failed, {path} is not a {words}, unable to determine its type: {e}"
            ));
        }
        (Ok(metadata), _) => metadata.file_type(),
    };
    let fits = match kind {
        Kind::Unset => true,
        Kind::DirectoryOrCreate | Kind::Directory => found.is_dir(),
        Kind::FileOrCreate | Kind::File => found.is_file(),
        Kind::Socket => found.is_socket(),
        Kind::CharDevice => found.is_char_device(),
        Kind::BlockDevice => found.is_block_device(),
    };
    if fits {
        return Ok(());
    }
    Err(format!("hostPath type check failed: {} is not a {}, it's a {}", path.display(), kind.words(), name_of(found)))
}

fn name_of(found: std::fs::FileType) -> &'static str {
    if found.is_dir() {
        "Directory"
    } else if found.is_socket() {
        "Socket"
    } else if found.is_char_device() {
        "CharDevice"
    } else if found.is_block_device() {
        "BlockDevice"
    } else if found.is_file() {
        "File"
    } else {
        "pipe"
    }
}
