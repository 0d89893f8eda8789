//! Pods that use more of the disk than their limits allow, on a real runtime.

use std::process::Command;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::node::Node;
use k8s_openapi::api::core::v1::Pod;

use crate::look::{LONG, all_ready, container_ids, pod};

/// A pod with two containers: the first writes 5 MiB to `path`, the second does nothing.
fn writer(name: &str, path: &str, size_limit: &str, limits: [&str; 2]) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{ name: {name} }}
spec:
  terminationGracePeriodSeconds: 30
  volumes:
    - {{ name: cache, emptyDir: {{ sizeLimit: {size_limit} }} }}
  containers:
    - name: writer
      image: localhost/busybox:1
      imagePullPolicy: Never
      resources: {{ limits: {{ ephemeral-storage: {} }} }}
      command: [sh, -c, 'dd if=/dev/zero of={path} bs=1M count=5; trap "exit 0" TERM; while :; do sleep 1000 & wait $!; done']
      volumeMounts: [{{ name: cache, mountPath: /cache }}]
    - name: idle
      image: localhost/busybox:1
      imagePullPolicy: Never
      resources: {{ limits: {{ ephemeral-storage: {} }} }}
      command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 1000 & wait $!; done']
"#,
        limits[0], limits[1]
    )
}

/// What is mounted inside of a volume is on no disk of the node's: 30 MiB of it are not the volume's.
fn fill_a_mount_in_its_volume(node: &Node, pod: &Pod) -> anyhow::Result<()> {
    let uid = pod.metadata.uid.as_deref().context("no UID")?;
    let mount = node.path(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/cache/mount"));
    std::fs::create_dir(&mount)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&mount).status()?;
    ensure!(mounted.success(), "mount");
    Ok(std::fs::write(mount.join("file"), vec![1; 30 << 20])?)
}

#[tokio::test]
async fn pods_beyond_their_limits_are_evicted_with_the_reason_and_no_others() {
    let mut node = Node::alone(Version::V2, Cni::ByAgent).await.unwrap();
    let cases = [
        (
            "volume",
            "/cache/file",
            "1Mi",
            ["1Gi", "1Gi"],
            Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". "),
        ),
        (
            "layer",
            "/root/file",
            "1Gi",
            ["2Mi", "1Gi"],
            Some("Container writer exceeded its local ephemeral storage limit \"2Mi\". "),
        ),
        (
            "whole",
            "/root/file",
            "1Gi",
            ["2Mi", "1Mi"],
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
        ),
        // Files of the node's that are mounted in the container (CVE-2020-8557).
        (
            "hosts",
            "/etc/hosts",
            "1Gi",
            ["2Mi", "1Mi"],
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
        ),
        (
            "message",
            "/dev/termination-log",
            "1Gi",
            ["2Mi", "1Mi"],
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "),
        ),
        ("within", "/cache/file", "6Mi", ["20Mi", "20Mi"], None),
    ];
    for (name, path, size, limits, _) in cases {
        node.write_manifest(&format!("{name}.yaml"), &writer(name, path, size, limits)).unwrap();
    }
    node.run_alone().unwrap();
    all_ready(&node, &["within"]).await.unwrap();
    let before = container_ids(&pod(&node, "within").unwrap());
    fill_a_mount_in_its_volume(&node, &pod(&node, "within").unwrap()).unwrap();
    for (name, message) in cases.iter().filter_map(|(name, .., message)| Some((*name, (*message)?))) {
        eventually(LONG, "the pod to be evicted", async || {
            let status = pod(&node, name)?.status.context("no status")?;
            let is = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
            ensure!(is == (Some("Failed"), Some("Evicted"), Some(message)), "{name}: {is:?}");
            anyhow::Ok(())
        })
        .await
        .with_context(|| node.logs())
        .unwrap();
        let told = node.agent().unwrap().ask(&["describe", "pod", name]).unwrap();
        assert!(told.contains("Evicted") && told.contains(message.trim_end()), "{told}");
    }
    let running = node.containers().await.unwrap().into_iter().filter(|container| container.state == 1);
    let pods: Vec<String> = running.filter_map(|c| c.labels.get("io.kubernetes.pod.name").cloned()).collect();
    assert_eq!(pods, ["within", "within"]);
    assert_eq!(container_ids(&pod(&node, "within").unwrap()), before);
}
