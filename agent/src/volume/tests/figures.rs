//! What volumes hold and what is left for them.

use super::super::stats::{PodFigures, VolumeFigures, Way};
use super::*;

async fn measured(node: &Node, pod: &Pod) -> (BTreeMap<String, VolumeFigures>, Option<u64>) {
    let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
    // What has no figures is asked for, too: it must not be measured by mistake.
    let asked = volumes.iter().map(|v| (v.name.clone(), Way::of(v).unwrap_or(Way::Ask))).collect();
    let PodFigures { volumes, hosts } = node.volumes.figures(&PodUid::new("u1"), asked).await.unwrap();
    (volumes.into_iter().collect(), hosts)
}

#[tokio::test]
async fn volumes_on_the_nodes_disk_are_walked_and_a_memory_volume_has_its_own_size() {
    let node = Node::new();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"key": "v".repeat(100_000)}}));
    let pod = make_pod(json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "map", "configMap": {"name": "m"}},
        {"name": "host", "hostPath": {"path": node.root.path()}}
    ]));
    assert_eq!(measured(&node, &pod).await, (BTreeMap::new(), None), "before anything is in place");
    let placed = node.ensure(&pod).await.unwrap();
    node.volumes.write_etc_hosts(&PodUid::new("u1"), "127.0.0.1 localhost\n".to_owned()).await.unwrap();
    let before = measured(&node, &pod).await.0;
    std::fs::write(placed.host_path("disk").unwrap().join("file"), vec![1; 1 << 20]).unwrap();
    std::fs::write(placed.host_path("mem").unwrap().join("file"), vec![1; 1 << 20]).unwrap();
    let (after, hosts) = measured(&node, &pod).await;
    assert_eq!(after.keys().collect::<Vec<_>>(), ["disk", "map", "mem"], "a hostPath has no figures");
    for name in ["disk", "mem"] {
        let grown = after[name].used - before[name].used;
        assert!((1 << 20..2 << 20).contains(&grown), "{name}: {grown}");
        assert_eq!(after[name].inodes_used, before[name].inodes_used + 1, "{name}");
    }
    assert_eq!(after["mem"].capacity, 8 << 20);
    assert!(after["mem"].available < before["mem"].available);
    assert!(after["map"].used >= 100_000 && after["map"].capacity > 8 << 20, "{:?}", after["map"]);
    assert!(hosts.is_some_and(|bytes| bytes >= 512), "{hosts:?}");
    let counts = node.volumes.counts(&[Pod::clone(&pod)]);
    let expected = [("configmap", 1), ("empty-dir", 2), ("host-path", 1)];
    let expected: BTreeMap<_, _> = expected.map(|(name, count)| (format!("kubernetes.io/{name}"), count)).into();
    assert_eq!((&counts.desired, &counts.actual), (&expected, &expected));
    assert!(node.volumes.counts(&[]).desired.is_empty());
}

#[tokio::test]
async fn a_claim_has_the_figures_of_its_file_system() {
    let node = Node::new();
    let disk = node.root.path().join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    let claim = json!({"metadata": {"name": "c", "namespace": "n", "uid": "c"}, "spec": {"volumeName": "pv"},
        "status": {"phase": "Bound"}});
    let pv = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"uid": "c"}, "local": {"path": disk}}});
    node.objects.claims.lock().unwrap().insert("c".to_owned(), claim);
    node.objects.pvs.lock().unwrap().insert("pv".to_owned(), pv);
    let pod = make_pod(json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]));
    assert!(node.volumes.counts(&[Pod::clone(&pod)]).desired.is_empty(), "it was not looked up yet");
    node.ensure(&pod).await.unwrap();
    let counts = node.volumes.counts(&[Pod::clone(&pod)]);
    assert_eq!(counts.desired, [("kubernetes.io/local-volume".to_owned(), 1)].into());
    assert_eq!(counts.actual, counts.desired);
    let found = measured(&node, &pod).await.0["data"];
    let whole = rustix::fs::statvfs(&disk).unwrap();
    assert_eq!(found.capacity, whole.f_blocks * whole.f_frsize);
    assert_eq!(found.inodes, whole.f_files);
    assert!(found.used > 0 && found.used + found.available <= found.capacity, "{found:?}");
}
