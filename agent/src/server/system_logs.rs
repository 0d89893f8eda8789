//! `/logs/`: what is below `/var/log`, where the configuration says `enableSystemLogHandler: true`.
//!
//! kubelet serves it unless told otherwise; here somebody has to ask for it, because `/var/log` holds more than logs of pods and
//! pods are given parts of it to write to (k/k#81125). Directories and regular files are shown that are reached through no
//! symlink, and there is no redirect.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Response, StatusCode};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};
use tokio::sync::mpsc;

use super::answer::{Answer, Body, Refusal, answer as whole, streamed};

/// Bytes that are read at a time.
const PIECE: usize = 64 << 10;
/// Names of a directory that are shown. Ten times what a node with 110 pods has in `/var/log/containers`.
const NAMES: usize = 10_000;

enum Found {
    Listing(String),
    /// A file, and its length by now: what grows is not followed.
    File(File, u64),
}

/// Answers with a file, or with the names in a directory.
pub(super) async fn answer(root: PathBuf, parts: Vec<String>) -> Answer {
    let found = tokio::task::spawn_blocking(move || find(&root, &parts)).await;
    let found = found.unwrap_or_else(|error| Err(io::Error::other(error)));
    match found {
        Ok(Found::Listing(text)) => Ok(whole(StatusCode::OK, "text/html; charset=utf-8", text)),
        Ok(Found::File(file, length)) => Ok(file_body(file, length)),
        // Why it is not shown is nobody's business: whether a link leads to something that is there, for example.
        Err(_) => Err(Refusal(StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
    }
}

fn find(root: &std::path::Path, parts: &[String]) -> io::Result<Found> {
    let root = File::open(root)?;
    let below = if parts.is_empty() { ".".to_owned() } else { parts.join("/") };
    // Without NONBLOCK a FIFO waits for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened: OwnedFd = rustix::fs::openat2(&root, below.as_str(), flags, Mode::empty(), resolve)?;
    let status = rustix::fs::fstat(&opened)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory => Ok(Found::Listing(listing(&opened)?)),
        FileType::RegularFile => Ok(Found::File(opened.into(), u64::try_from(status.st_size).unwrap_or(0))),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Names as links, as Go's file server writes them.
fn listing(directory: &OwnedFd) -> io::Result<String> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)?.take(NAMES) {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if !matches!(&*name, "." | "..") {
            let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
            names.push(format!("{name}{slash}"));
        }
    }
    names.sort();
    let mut text = "<pre>\n".to_owned();
    for name in names {
        let _ = writeln!(text, "<a href=\"{}\">{}</a>", percent(&name), escaped(&name));
    }
    text.push_str("</pre>\n");
    Ok(text)
}

fn escaped(name: &str) -> String {
    name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

fn percent(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn file_body(file: File, length: u64) -> Response<Body> {
    let (tx, rx) = mpsc::channel::<io::Result<Bytes>>(1);
    // A slow reader holds one thread that waits for it; the gate limits how many requests there are.
    tokio::task::spawn_blocking(move || {
        let mut rest = file.take(length);
        loop {
            let mut piece = vec![0; PIECE];
            match rest.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    piece.truncate(length);
                    if tx.blocking_send(Ok(Bytes::from(piece))).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Who reads is told that it is not all; if nobody reads any more, nobody is.
                    let _ = tx.blocking_send(Err(error));
                    return;
                }
            }
        }
    });
    streamed("text/plain; charset=utf-8", rx)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use http_body_util::BodyExt as _;

    use super::*;

    async fn get(root: &std::path::Path, path: &str) -> Result<String, StatusCode> {
        let parts = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        let response = answer(root.to_owned(), parts).await.map_err(|Refusal(status, _)| status)?;
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Ok(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn files_and_directories_below_are_shown_and_nothing_that_a_link_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("syslog"), "x".repeat(3 * PIECE + 1)).unwrap();
        std::fs::write(root.join("<b>&\"x"), "odd").unwrap();
        symlink("../secret", root.join("link")).unwrap();
        symlink("..", root.join("pods/up")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let text = get(&root, "").await.unwrap();
        for line in ["<a href=\"pods/\">pods/</a>", "<a href=\"%3Cb%3E%26%22x\">&lt;b&gt;&amp;&#34;x</a>"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(get(&root, "syslog").await.unwrap().len(), 3 * PIECE + 1);
        assert_eq!(get(&root, "<b>&\"x").await.unwrap(), "odd");
        for path in ["link", "pods/up/../secret", "../secret", "pods/../../secret", "fifo", "absent", "syslog/x"] {
            assert_eq!(get(&root, path).await, Err(StatusCode::NOT_FOUND), "{path}");
        }
    }
}
