use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

fn line(tag: &str, text: &str) -> String {
    format!("2026-01-01T00:00:00.000000001Z stdout {tag} {text}\n")
}

async fn collect(path: &Path, options: Options) -> String {
    let (tx, mut rx) = mpsc::channel(16);
    let task = tokio::spawn(read(path.to_owned(), options, || true, tx));
    let mut all = Vec::new();
    while let Some(chunk) = rx.recv().await {
        all.extend(chunk.unwrap());
    }
    task.await.unwrap();
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn parts_are_joined_and_the_tail_counts_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let text = line("F", "one") + &line("P", "tw") + &line("F", "o") + &line("F", "") + "2026 half";
    std::fs::write(&path, text).unwrap();
    assert_eq!(collect(&path, Options::default()).await, "one\ntwo\n\n");
    let stamped = collect(&path, Options { timestamps: true, ..Options::default() }).await;
    assert!(
        stamped.starts_with("2026-01-01T00:00:00.000000001Z one\n2026-01-01T00:00:00.000000001Z two\n"),
        "{stamped}"
    );
    std::fs::write(&path, (0..5000).map(|n| line("F", &n.to_string())).collect::<String>()).unwrap();
    assert_eq!(collect(&path, Options { tail: Some(2), ..Options::default() }).await, "4998\n4999\n");
    assert_eq!(collect(&path, Options { tail: Some(0), ..Options::default() }).await, "");
}

#[tokio::test]
async fn following_sees_new_lines_across_a_rotation_and_ends_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, line("F", "a")).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let (tx, mut rx) = mpsc::channel(16);
    let is_over = ended.clone();
    let options = Options { follow: true, ..Options::default() };
    let task = tokio::spawn(read(path.clone(), options, move || is_over.load(Ordering::SeqCst), tx));
    let mut next = async || {
        let chunk = tokio::time::timeout(Duration::from_secs(10), rx.recv()).await.expect("a line in time");
        chunk.map(|c| String::from_utf8(c.unwrap()).unwrap())
    };
    assert_eq!(next().await.as_deref(), Some("a\n"));
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(line("F", "b").as_bytes()).unwrap();
    assert_eq!(next().await.as_deref(), Some("b\n"));
    std::fs::rename(&path, dir.path().join("0.log.20260101")).unwrap();
    std::fs::write(&path, line("F", "c")).unwrap();
    assert_eq!(next().await.as_deref(), Some("c\n"));
    ended.store(true, Ordering::SeqCst);
    assert_eq!(next().await, None);
    task.await.unwrap();
}

#[tokio::test]
async fn a_log_that_is_a_symlink_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    let (tx, mut rx) = mpsc::channel(16);
    read(path, Options::default(), || true, tx).await;
    assert!(rx.recv().await.unwrap().is_err());
}

#[tokio::test]
async fn since_and_limit_cut_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let at = |second: u32, text: &str| format!("2026-01-01T00:00:{second:02}.5Z stderr F {text}\n");
    std::fs::write(&path, at(1, "one") + &at(2, "two") + &at(3, "three")).unwrap();
    let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
    assert_eq!(collect(&path, Options { since, ..Options::default() }).await, "two\nthree\n");
    let limit = Some(6);
    assert_eq!(collect(&path, Options { limit, ..Options::default() }).await, "one\ntw");
    assert_eq!(collect(&path, Options { since, limit, tail: Some(1), ..Options::default() }).await, "three\n");
}

#[test]
fn lines_that_were_written_to_the_old_file_before_the_new_one_was_made_are_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, line("F", "a")).unwrap();
    let mut reader = Reader::open(&path, &Options::default(), || false).unwrap();
    let mut out = Vec::new();
    assert!(reader.next_chunk(&mut out).unwrap());
    let moved = dir.path().join("0.log.1");
    std::fs::rename(&path, &moved).unwrap();
    assert!(reader.rotated().unwrap().is_none(), "there is no new file yet");
    std::fs::OpenOptions::new().append(true).open(&moved).unwrap().write_all(line("F", "b").as_bytes()).unwrap();
    std::fs::write(&path, line("F", "c")).unwrap();
    let new = reader.rotated().unwrap().expect("a new file");
    assert!(reader.next_chunk(&mut out).unwrap());
    reader.go_over_to(new);
    assert!(reader.next_chunk(&mut out).unwrap());
    assert_eq!(String::from_utf8(out).unwrap(), "a\nb\nc\n");
}

/// What a container with a hostPath of the logs may put in a log's place: k/k#81125.
#[tokio::test]
async fn what_no_runtime_writes_is_refused_at_once() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = tempfile::tempdir().unwrap();
    let (pod, secret) = (dir.path().join("pod/c"), dir.path().join("secret"));
    std::fs::create_dir_all(&pod).unwrap();
    std::fs::write(&secret, line("F", "root:x:0")).unwrap();
    let (fifo, sparse, link, zero) = (pod.join("1.log"), pod.join("2.log"), pod.join("3.log"), pod.join("4.log"));
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("pod/d")).unwrap();
    let through = dir.path().join("pod/d/secret");
    for (path, follow) in
        [&fifo, &sparse, &link, &zero, &through].into_iter().flat_map(|path| [(path, false), (path, true)])
    {
        let (tx, mut rx) = mpsc::channel(1);
        let options = Options { follow, tail: Some(10), ..Options::default() };
        let reading = tokio::time::timeout(Duration::from_secs(5), read(path.clone(), options, || false, tx));
        let (done, first) = tokio::join!(reading, rx.recv());
        done.unwrap_or_else(|_| panic!("{} hangs", path.display()));
        assert!(first.unwrap().is_err(), "{} was read", path.display());
    }
}

/// A megabyte without a line's end took a megabyte, and a terabyte would have taken a terabyte.
#[tokio::test]
async fn a_line_without_an_end_takes_bounded_memory_and_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, vec![b'x'; 4 << 20]).unwrap();
    let (tx, mut rx) = mpsc::channel(1);
    let task = tokio::spawn(read(path, Options::default(), || true, tx));
    let (mut largest, mut all) = (0, 0);
    while let Some(chunk) = rx.recv().await {
        let chunk = chunk.unwrap();
        largest = largest.max(chunk.len());
        all += chunk.len();
    }
    task.await.unwrap();
    assert!(largest <= file::LONGEST + CHUNK, "{largest} bytes at once");
    assert_eq!(all, 4 << 20, "nothing is lost");
}

#[tokio::test]
async fn the_end_of_a_huge_log_is_not_looked_for_when_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let mut file = file::open(&path).unwrap();
    let asked = std::cell::Cell::new(0);
    let offset = file::tail_offset(&mut file, 10, || {
        asked.set(asked.get() + 1);
        asked.get() > 2
    });
    assert_eq!((offset.unwrap(), asked.get()), (0, 3), "it stops between two blocks");
}
