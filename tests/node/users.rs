//! Pods with users of their own (`hostUsers: false`), and the volumes that they see, on a real runtime.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::node::Node;

use crate::ending::{on, stop_all};
use crate::look::{all_ready, pod};

const SETTINGS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: settings }\ndata: { colour: green }\n";

const POD: &str = r#"apiVersion: v1
kind: Pod
metadata: { name: NAME }
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 0
  securityContext: { fsGroup: 4321 }
  volumes:
    - { name: disk, emptyDir: {} }
    - { name: memory, emptyDir: { medium: Memory } }
    - { name: settings, configMap: { name: settings, defaultMode: 0400 } }
    - { name: tools, image: { reference: "localhost/busybox:1", pullPolicy: Never } }
  containers:
    - name: c
      image: localhost/busybox:1
      imagePullPolicy: Never
      command: [sleep, "100000"]
      volumeMounts:
        - { name: disk, mountPath: /disk }
        - { name: disk, mountPath: /part, subPath: part }
        - { name: memory, mountPath: /memory }
        - { name: settings, mountPath: /settings }
        - { name: tools, mountPath: /tools, subPath: etc }
"#;

#[tokio::test]
async fn root_of_a_pod_is_nobody_on_the_node_and_its_volumes_are_its_own() {
    on(Node::alone(Version::V2WithUsers, Cni::ByAgent).await.unwrap(), pods_with_users).await.unwrap();
}

async fn pods_with_users(node: &mut Node) -> anyhow::Result<()> {
    node.write_manifest("settings.yaml", SETTINGS)?;
    for name in ["one", "two"] {
        node.write_manifest(&format!("{name}.yaml"), &POD.replace("NAME", name))?;
    }
    node.run_alone()?;
    all_ready(node, &["one", "two"]).await?;
    let mut ranges = BTreeSet::new();
    for name in ["one", "two"] {
        let first = range(node, name).await?;
        ensure!(first >= 65_536 && ranges.insert(first), "{name} has {first}, others {ranges:?}");
        volumes_belong_to_the_pod(node, name).await.with_context(|| name.to_owned())?;
    }
    // A range is for a pod's life, also under another agent.
    node.agent()?.kill9();
    node.restart_agent()?;
    all_ready(node, &["one", "two"]).await?;
    for name in ["one", "two"] {
        ensure!(ranges.contains(&range(node, name).await?));
    }
    stop_all(node, |_| false).await
}

/// What root of a pod is on the node: as the pod sees it, as the node does, and as kubelet's file says.
async fn range(node: &Node, name: &str) -> anyhow::Result<u32> {
    let map = node.exec(name, &["cat", "/proc/self/uid_map"]).await?;
    let numbers: Vec<u32> = map.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [0, first, 65_536] = numbers[..] else { anyhow::bail!("{map}") };
    ensure!(node.exec(name, &["cat", "/proc/self/gid_map"]).await? == map);
    let owner = std::fs::metadata(format!("/proc/{}", node.pid_of(name).await?))?.uid();
    ensure!(owner == first, "root of the pod is {owner} on the node, and {first} in its map");
    let uid = pod(node, name)?.metadata.uid.context("no UID")?;
    let file = std::fs::read_to_string(node.path(&format!("kubelet/pods/{uid}/userns")))?;
    ensure!(file.contains(&format!("\"hostId\":{first}")), "{file}");
    Ok(first)
}

async fn volumes_belong_to_the_pod(node: &Node, name: &str) -> anyhow::Result<()> {
    let script = "echo a >/disk/a; echo b >/memory/b; echo c >/part/c; chown 7:8 /disk/a; cat /settings/colour";
    ensure!(node.exec(name, &["sh", "-ec", script]).await? == "green");
    let seen = node.exec(name, &["stat", "-c", "%u:%g", "/disk/a", "/memory/b", "/part/c", "/tools/passwd"]).await?;
    // The directories have the pod's group, and so has what is made in them.
    ensure!(seen == "7:8\n0:4321\n0:4321\n0:0\n", "{seen}");
    let uid = pod(node, name)?.metadata.uid.context("no UID")?;
    let disk = node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/disk"));
    let made = std::fs::metadata(disk.join("a"))?;
    ensure!((made.uid(), made.gid()) == (7, 8), "volumes are mapped, not chowned: {}:{}", made.uid(), made.gid());
    let written = node.exec(name, &["sh", "-c", "echo x >/settings/colour"]).await;
    ensure!(written.is_err(), "a ConfigMap is read-only");
    Ok(())
}
