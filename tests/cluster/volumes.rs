//! Claims, bound by the real controllers, with the kubelet's own rights (Node authorizer).

use std::time::Duration;

use anyhow::ensure;
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};

use crate::rig::{NAME, PATIENCE, Rig};

fn volume(name: &str, source: &Value) -> Value {
    let mut spec = json!({
        "capacity": { "storage": "1Mi" },
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": name,
        "persistentVolumeReclaimPolicy": "Retain",
    });
    if let (Some(spec), Some(source)) = (spec.as_object_mut(), source.as_object()) {
        spec.extend(source.clone());
    }
    json!({ "metadata": { "name": format!("pv-{name}") }, "spec": spec })
}

fn claim_spec(class: &str) -> Value {
    json!({
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class,
        "resources": { "requests": { "storage": "1Mi" } },
    })
}

fn affinity() -> Value {
    json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [
        { "key": "kubernetes.io/hostname", "operator": "In", "values": [NAME] }] }] } })
}

fn pod(name: &str, volumes: &Value, command: &str) -> Value {
    let names = volumes.as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str());
    let mounts: Vec<Value> = names.map(|name| json!({ "name": name, "mountPath": format!("/{name}") })).collect();
    json!({
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "securityContext": { "fsGroup": 4321 },
            "volumes": volumes,
            "containers": [{
                "name": "c",
                "image": "localhost/busybox:1",
                "command": ["sh", "-c", command],
                "volumeMounts": mounts,
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_the_volumes_of_their_claims_and_the_data_outlives_them() {
    volumes_of_claims().await.unwrap();
}

async fn volumes_of_claims() -> anyhow::Result<()> {
    let mut rig = Rig::joined(Version::V2, Cni::Bridge).await?;
    let (disk, host) = (rig.node.path("disk"), rig.node.path("host"));
    std::fs::create_dir(&disk)?;
    let volumes: Api<PersistentVolume> = Api::all(rig.client.clone());
    for (name, source) in [
        ("local", json!({ "local": { "path": disk }, "nodeAffinity": affinity() })),
        ("host", json!({ "hostPath": { "path": host, "type": "DirectoryOrCreate" } })),
        ("own", json!({ "hostPath": { "path": host, "type": "DirectoryOrCreate" } })),
    ] {
        volumes.create(&PostParams::default(), &serde_json::from_value(volume(name, &source))?).await?;
    }
    for name in ["local", "host"] {
        let claim = json!({ "metadata": { "name": name }, "spec": claim_spec(name) });
        rig.create::<PersistentVolumeClaim>(claim).await?;
    }
    let of_claims = json!([
        { "name": "local", "persistentVolumeClaim": { "claimName": "local" } },
        { "name": "host", "persistentVolumeClaim": { "claimName": "host", "readOnly": true } },
        { "name": "own", "ephemeral": { "volumeClaimTemplate": { "spec": claim_spec("own") } } },
    ]);
    let write = "echo written > /local/f; echo own > /own/f; touch /host/x 2>/dev/null && exit 1; sleep 100000";
    rig.create::<Pod>(pod("writer", &of_claims, write)).await?;
    rig.pod_is_ready("writer").await?;
    eventually(PATIENCE, "the container to have written", async || {
        ensure!(std::fs::read_to_string(disk.join("f"))? == "written\n");
        ensure!(std::fs::read_to_string(host.join("f"))? == "own\n");
        anyhow::Ok(())
    })
    .await?;
    ensure!(rig.node.exec("writer", &["cat", "/host/f"]).await? == "own\n", "the read-only claim");
    ensure!(rig.node.exec("writer", &["sh", "-c", "touch /host/x; ls /host"]).await? == "f\n", "it is read-only");
    ensure!(rig.node.exec("writer", &["stat", "-c", "%g", "/local/f"]).await? == "4321\n", "fsGroup");

    the_claim_on_a_disk_of_the_node_has_figures(&rig).await?;
    a_claim_that_waits_is_told_and_taken_up(&mut rig).await?;

    rig.delete::<Pod>("writer").await?;
    rig.delete::<Pod>("late").await?;
    rig.nothing_is_left().await?;
    ensure!(std::fs::read_to_string(disk.join("f"))? == "written\n", "a volume is not the pod's to delete");
    rig.finish()
}

/// What the alert of volumes that fill up asks for. A hostPath has no file system of its own to tell of.
async fn the_claim_on_a_disk_of_the_node_has_figures(rig: &Rig) -> anyhow::Result<()> {
    let path = format!("/api/v1/nodes/{NAME}/proxy/metrics");
    eventually(PATIENCE, "the figures of the claim", async || {
        let output = rig.plane.kubectl(&["get", "--raw", &path])?.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let of = |claim: &str| {
            let labels = format!("{{namespace=\"default\",persistentvolumeclaim=\"{claim}\"}} ");
            let start = format!("kubelet_volume_stats_capacity_bytes{labels}");
            text.lines().find_map(|line| line.strip_prefix(&start)).map(str::parse::<f64>)
        };
        ensure!(matches!(of("local"), Some(Ok(bytes)) if bytes > 0.0), "{text}");
        ensure!(of("host").is_none(), "{text}");
        anyhow::Ok(())
    })
    .await
}

/// A pod that was placed before its claim is bound says why it waits, and starts without anybody touching it.
async fn a_claim_that_waits_is_told_and_taken_up(rig: &mut Rig) -> anyhow::Result<()> {
    let claim = json!({ "metadata": { "name": "late" }, "spec": claim_spec("late") });
    rig.create::<PersistentVolumeClaim>(claim).await?;
    let of_claim = json!([{ "name": "late", "persistentVolumeClaim": { "claimName": "late" } }]);
    let mut late = pod("late", &of_claim, "sleep 100000");
    // The scheduler would wait for the claim.
    late["spec"]["nodeName"] = json!(NAME);
    rig.create::<Pod>(late).await?;
    let events = rig.api::<Event>();
    let text = "unmounted volumes=[late], unattached volumes=[], failed to process volumes=[late]: error processing PVC \
                default/late: PVC is not bound";
    eventually(PATIENCE, "an event about the claim", async || {
        let list = events.list(&ListParams::default()).await?.items;
        let told = list.iter().filter(|event| event.reason.as_deref() == Some("FailedMount"));
        let told: Vec<&str> = told.filter_map(|event| event.message.as_deref()).collect();
        ensure!(told.iter().any(|message| message.ends_with(text)), "{told:?}");
        anyhow::Ok(())
    })
    .await?;
    let source = json!({ "hostPath": { "path": rig.node.path("late"), "type": "DirectoryOrCreate" } });
    let volumes: Api<PersistentVolume> = Api::all(rig.client.clone());
    volumes.create(&PostParams::default(), &serde_json::from_value(volume("late", &source))?).await?;
    let start = std::time::Instant::now();
    rig.pod_is_ready("late").await?;
    ensure!(start.elapsed() < Duration::from_secs(45), "{:?}", start.elapsed());
    Ok(())
}
