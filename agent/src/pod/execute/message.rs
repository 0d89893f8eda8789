//! Termination messages: what a container left to say.
//!
//! The file is written by the container, so it is opened without following symlinks or waiting, and read to a limit; what a log
//! may be is decided in `logs::file`.
//! Source: "Determine the Reason for Pod Failure" of the Kubernetes documentation; limits are kubelet's.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::cri::{ContainerState, ContainerView, PodRuntime};

/// Most of a termination message that is kept.
const MAX_MESSAGE: u64 = 4096;
/// Most of the log that stands in for a message.
const MAX_LOG: u64 = 2048;
const MAX_LOG_LINES: usize = 80;

/// Adds the messages of all ended containers.
pub async fn with_messages(mut runtime: PodRuntime) -> PodRuntime {
    for container in &mut runtime.containers {
        *container = with_message(container.clone()).await;
    }
    runtime
}

/// Adds the message of a container that has ended.
pub(super) async fn with_message(container: ContainerView) -> ContainerView {
    if !container.is_exited() {
        return container;
    }
    let before = container.clone();
    tokio::task::spawn_blocking(move || add(container)).await.unwrap_or(before)
}

fn add(mut container: ContainerView) -> ContainerView {
    let (path, log_path) = (container.termination_message.clone(), container.log_path.clone());
    let to_logs = container.message_falls_back_to_logs;
    if let ContainerState::Exited { exit_code, message, .. } = &mut container.state {
        let mut text = path.and_then(|path| read_head(&path)).unwrap_or_default();
        if text.is_empty() && to_logs && *exit_code != 0 {
            text = read_log_tail(&log_path).unwrap_or_default();
        }
        if !text.is_empty() {
            *message = if message.is_empty() { text } else { format!("{message}: {text}") };
        }
    }
    container
}

fn open(path: &str) -> Option<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn read_head(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    open(path)?.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log in CRI format, without time and stream.
fn read_log_tail(path: &str) -> Option<String> {
    let mut file = crate::logs::file::open(Path::new(path)).ok()?;
    let length = file.metadata().ok()?.len();
    // A CRI line carries about 40 bytes of its own; four times the limit holds enough of them for short lines too.
    file.seek(SeekFrom::Start(length.saturating_sub(4 * MAX_LOG))).ok()?;
    let mut bytes = Vec::new();
    file.take(4 * MAX_LOG).read_to_end(&mut bytes).ok()?;
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let mut tail = Vec::new();
    // The last piece is what follows the last newline: nothing, or half a line.
    let whole = &lines[..lines.len().saturating_sub(1)];
    for line in &whole[whole.len().saturating_sub(MAX_LOG_LINES)..] {
        let Some(line) = crate::logs::parse(line) else { continue };
        tail.extend_from_slice(line.text);
        // Output that did not end in a newline is written as a part of a line.
        if !line.partial {
            tail.push(b'\n');
        }
    }
    let start = tail.len().saturating_sub(usize::try_from(MAX_LOG).unwrap_or(usize::MAX));
    Some(String::from_utf8_lossy(&tail[start..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_termination_message_that_is_a_symlink_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, link) = (dir.path().join("secret"), dir.path().join("link"));
        std::fs::write(&secret, "s3cret").unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        assert_eq!(read_head(secret.to_str().unwrap()).as_deref(), Some("s3cret"));
        assert_eq!(read_head(link.to_str().unwrap()), None);
    }

    #[test]
    fn a_long_message_and_a_long_log_are_cut_to_their_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, "x".repeat(10_000)).unwrap();
        assert_eq!(read_head(path.to_str().unwrap()).unwrap().len(), 4096);
        let log: String = (0..500).map(|n| format!("2026-01-01T00:00:00.0Z stdout F line {n}\n")).collect();
        std::fs::write(&path, log).unwrap();
        let tail = read_log_tail(path.to_str().unwrap()).unwrap();
        assert!(tail.ends_with("line 499\n") && tail.lines().count() == 80, "{tail}");
    }

    /// `[sig-node] Container Runtime ... should report termination message from log output`
    #[test]
    fn a_log_that_ends_without_a_newline_gives_a_message_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, "2026-01-01T00:00:00.0Z stdout P DONE\n").unwrap();
        assert_eq!(read_log_tail(path.to_str().unwrap()).as_deref(), Some("DONE"));
    }

    /// `/dev/termination-log` is a file of the node's that the container writes; its log's place it may reach by a hostPath.
    #[test]
    fn what_is_no_file_of_a_container_gives_no_message_and_nobody_waits_for_it() {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        let dir = tempfile::tempdir().unwrap();
        let [fifo, zero, sparse, secrets] = ["fifo", "zero", "sparse", "secrets"].map(|name| dir.path().join(name));
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        mknodat(CWD, &zero, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, 5)).unwrap();
        std::fs::File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        std::fs::create_dir(&secrets).unwrap();
        std::fs::write(secrets.join("0.log"), "2026-01-01T00:00:00.0Z stdout F secret\n").unwrap();
        std::fs::create_dir(dir.path().join("pod")).unwrap();
        std::os::unix::fs::symlink(&secrets, dir.path().join("pod/app")).unwrap();
        let through = dir.path().join("pod/app/0.log");
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let heads = [(text(&fifo), None), (text(&zero), None), (text(&sparse), Some(4096))];
        let (tx, rx) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (path, length) in heads {
                let found = read_head(&path).map(|text| text.len());
                tx.send((path, found, length)).unwrap();
            }
            for path in [&fifo, &zero, &sparse, &through] {
                tx.send((text(path), read_log_tail(&text(path)).map(|text| text.len()), None)).unwrap();
            }
        });
        for _ in 0..7 {
            let (path, found, expected) = rx.recv_timeout(std::time::Duration::from_secs(5)).expect("nobody waits");
            assert_eq!(found, expected, "{path}");
        }
    }
}
