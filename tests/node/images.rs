//! Images as volumes, mounted by a real runtime.

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Node;

use crate::ending::{on, stop_all};
use crate::look::{LONG, all_ready, pod, statuses};

/// A pod with the image of busybox as a volume.
const POD: &str = r#"apiVersion: v1
kind: Pod
metadata: { name: reader }
spec:
  terminationGracePeriodSeconds: 0
  volumes:
    - { name: tools, image: { reference: "localhost/busybox:1", pullPolicy: Never } }
  containers:
    - name: whole
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [sleep, "100000"]
      volumeMounts:
        - { name: tools, mountPath: /image }
        - { name: tools, mountPath: /accounts, subPath: etc }
        - { name: tools, mountPath: /deep/accounts, subPathExpr: "$(WHERE)" }
      env: [{ name: WHERE, value: etc }]
"#;

#[tokio::test]
async fn an_image_is_a_read_only_volume_whole_or_in_part() {
    on(Node::alone(Version::V2, Cni::ByAgent).await.unwrap(), whole_or_in_part).await.unwrap();
}

async fn whole_or_in_part(node: &mut Node) -> anyhow::Result<()> {
    node.write_manifest("reader.yaml", POD)?;
    // What is not in the image is told by the runtime.
    node.write_manifest("lost.yaml", &POD.replace("reader", "lost").replace("subPath: etc", "subPath: no/such"))?;
    node.run_alone()?;
    all_ready(node, &["reader"]).await?;
    let accounts = "root:x:0:0:root:/root:/bin/sh\n";
    for file in ["/image/etc/passwd", "/accounts/passwd", "/deep/accounts/passwd"] {
        ensure!(node.exec("reader", &["cat", file]).await? == accounts, "{file}");
    }
    ensure!(node.exec("reader", &["ls", "/accounts"]).await? == "group\npasswd\n");
    for file in ["/image/x", "/image/etc/passwd", "/accounts/passwd"] {
        let written = node.exec("reader", &["touch", file]).await;
        ensure!(written.is_err_and(|error| error.to_string().contains("Read-only file system")), "{file}");
    }
    is_told(node, "lost", "no/such").await?;
    stop_all(node, |_| false).await
}

/// Waits until the container of a pod waits, and says why.
async fn is_told(node: &Node, name: &str, text: &str) -> anyhow::Result<()> {
    eventually(LONG, "a container to say why it waits", async || {
        let status = statuses(&pod(node, name)?).into_iter().next().context("no status")?;
        let waiting = status.state.and_then(|state| state.waiting).context("it does not wait")?;
        let message = waiting.message.unwrap_or_default();
        ensure!(message.contains(text), "{:?}: {message}", waiting.reason);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_runtime_that_mounts_no_images_is_named_and_starts_no_container_without_its_volume() {
    on(Node::alone(Version::V1_6, Cni::ByAgent).await.unwrap(), by_an_old_runtime).await.unwrap();
}

async fn by_an_old_runtime(node: &mut Node) -> anyhow::Result<()> {
    node.write_manifest("reader.yaml", POD)?;
    node.run_alone()?;
    is_told(node, "reader", "image volume \"tools\" needs containerd 2.1 or later; this node has containerd 1.6")
        .await?;
    ensure!(node.containers().await?.is_empty(), "no container ran without its volume");
    stop_all(node, |_| false).await
}
