//! What processes of a container have open, from `/proc/PID/fd`.

use std::path::Path;

/// Links that are read of one container to tell sockets from files: a proxy may have a million of them.
const LOOKED_AT: u64 = 20_000;

/// Open files of a container's processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// All of them.
    pub files: u64,
    /// Those that are sockets; `None` where there are too many to look at.
    pub sockets: Option<u64>,
    /// How many its first process may have; -1 for any number.
    pub limit: Option<i64>,
}

/// Looks at processes of a directory like `/proc`. One that ends meanwhile has nothing open.
pub(super) fn opened(proc: &Path, processes: &[u32]) -> Opened {
    let (mut files, mut sockets) = (0, 0);
    for process in processes {
        let Ok(entries) = std::fs::read_dir(proc.join(process.to_string()).join("fd")) else { continue };
        for entry in entries.flatten() {
            files += 1;
            if files <= LOOKED_AT {
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            }
        }
    }
    let limits = processes.first().map(|first| proc.join(first.to_string()).join("limits"));
    let limit = limits.and_then(|path| max_open_files(&std::fs::read_to_string(path).ok()?));
    Opened { files, sockets: (files <= LOOKED_AT).then_some(sockets), limit }
}

/// `Max open files   1024   4096   files`: the first number.
fn max_open_files(limits: &str) -> Option<i64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(-1) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn sockets_are_told_from_files_until_there_are_too_many() {
        let proc = tempfile::tempdir().unwrap();
        let fd = |process: u32| {
            let fd = proc.path().join(process.to_string()).join("fd");
            std::fs::create_dir_all(&fd).unwrap();
            fd
        };
        for (process, number, target) in [(7, 0, "/dev/null"), (7, 1, "socket:[12]"), (9, 0, "socket:[13]")] {
            symlink(target, fd(process).join(number.to_string())).unwrap();
        }
        let limits = "Limit Soft Limit Hard Limit Units\nMax processes 5 6 processes\nMax open files 1024 4096 files\n";
        std::fs::write(proc.path().join("7/limits"), limits).unwrap();
        let expected = Opened { files: 3, sockets: Some(2), limit: Some(1024) };
        assert_eq!(opened(proc.path(), &[7, 8, 9]), expected, "8 has ended");
        assert_eq!(max_open_files("Max open files unlimited unlimited files\n"), Some(-1));
        for number in 0..=LOOKED_AT {
            symlink("socket:[1]", fd(10).join(number.to_string())).unwrap();
        }
        let many = opened(proc.path(), &[10]);
        assert_eq!((many.files, many.sockets, many.limit), (LOOKED_AT + 1, None, None));
    }
}
