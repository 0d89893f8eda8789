//! What becomes of container logs: rotation, links, and the logs of pods that are gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Node;

use crate::look::{LONG, all_ready};

const LIMIT: u64 = 300 << 10;

/// A node whose pod writes eight times its log's limit within some ten seconds, which kubelet would look at three times.
async fn chatty() -> anyhow::Result<Node> {
    let mut node = Node::alone(Version::V2, Cni::ByAgent).await?;
    node.extra_configuration =
        format!("containerLogMaxSize: {LIMIT}\ncontainerLogMaxFiles: 4\ncontainerLogMonitorInterval: 3s\n");
    node.write_manifest("chatty.yaml", include_str!("../data/node/chatty.yaml"))?;
    node.run_alone()?;
    all_ready(&node, &["chatty"]).await?;
    Ok(node)
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// The files of the writer: what was rotated, the oldest first, then the log.
fn files(node: &Node) -> anyhow::Result<Vec<PathBuf>> {
    let pods = entries(&node.path("pod-logs"))?;
    let pod = pods.into_iter().find(|path| path.to_string_lossy().contains("_chatty_")).context("no log directory")?;
    let mut files = entries(&pod.join("writer"))?;
    files.rotate_left(1);
    Ok(files)
}

/// The numbers of the lines in a file, whether it is compressed or not.
fn numbers(file: &Path) -> anyhow::Result<Vec<u32>> {
    let content = match file.extension().is_some_and(|extension| extension == "gz") {
        true => Command::new("gzip").arg("-dc").arg(file).output()?.stdout,
        false => fs::read(file)?,
    };
    let text = String::from_utf8(content)?;
    let number = |line: &str| line.split_whitespace().skip_while(|word| *word != "line").nth(1)?.parse().ok();
    Ok(text.lines().filter_map(number).collect())
}

#[tokio::test]
async fn a_fast_writer_is_kept_near_the_limit_and_loses_no_line() {
    let node = chatty().await.unwrap();
    let files = eventually(LONG, "the writer to be done and its old logs to be compressed", async || {
        let files = files(&node)?;
        let log = fs::read_to_string(files.last().context("no log")?)?;
        ensure!(log.contains("done after 16000"), "it still writes: {files:?}");
        let compressed = files.iter().filter(|file| file.extension().is_some_and(|e| e == "gz")).count();
        ensure!(files.len() == 4 && compressed == 2, "{files:?}");
        anyhow::Ok(files)
    })
    .await
    .with_context(|| node.logs())
    .unwrap();
    let newest_rotated = files[2].to_string_lossy().into_owned();
    assert!(!newest_rotated.ends_with(".gz"), "shippers still read it: {newest_rotated}");
    let sizes: Vec<u64> = files[2..].iter().map(|file| fs::metadata(file).unwrap().len()).collect();
    // The second between two rotations is 200 KiB of text, 280 KiB with times; kubelet's interval of 3 s would be 840 KiB.
    assert!(sizes.iter().all(|size| *size < LIMIT * 2), "{sizes:?}");
    let lines: Vec<u32> = files.iter().flat_map(|file| numbers(file).unwrap()).collect();
    let expected: Vec<u32> = (lines[0]..=16_000).collect();
    assert_eq!(lines, expected, "no line is lost between two files");
}

#[tokio::test]
async fn the_last_logs_of_a_deleted_pod_can_be_read_and_its_links_are_gone() {
    let mut node = Node::alone(Version::V2, Cni::ByAgent).await.unwrap();
    node.write_manifest("client.yaml", &include_str!("../data/node/client.yaml").replace("while", "echo alive; while"))
        .unwrap();
    node.run_alone().unwrap();
    all_ready(&node, &["client"]).await.unwrap();
    let links = entries(&node.path("containers")).unwrap();
    assert_eq!(links.len(), 1, "{links:?}");
    assert!(fs::read_to_string(&links[0]).unwrap().contains("alive"));
    fs::remove_file(node.manifests().join("client.yaml")).unwrap();
    eventually(LONG, "the pod's log directory to be gone", async || {
        let left = entries(&node.path("pod-logs"))?;
        ensure!(left.is_empty(), "{left:?}");
        anyhow::Ok(())
    })
    .await
    .with_context(|| node.logs())
    .unwrap();
    assert!(entries(&node.path("containers")).unwrap().is_empty());
    let said = node.agent().unwrap().ask(&["logs", "client"]).unwrap();
    assert_eq!(said, "alive\n");
}
