//! Volumes behind claims, on disk.

use super::*;

/// A bound claim of this name and its volume.
fn bind(node: &Node, name: &str, spec: Value) {
    let claim = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"volumeName": format!("pv-{name}")},
        "status": {"phase": "Bound"}});
    let mut pv = json!({"metadata": {"name": format!("pv-{name}")}, "spec": {"claimRef": {"uid": name}}});
    pv["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    node.objects.claims.lock().unwrap().insert(name.to_owned(), claim);
    node.objects.pvs.lock().unwrap().insert(format!("pv-{name}"), pv);
}

fn claim(name: &str) -> Value {
    json!([{"name": "data", "persistentVolumeClaim": {"claimName": name}}])
}

fn with_uid(pod: &Arc<Pod>, uid: &str) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    pod.metadata.uid = Some(uid.to_owned());
    Arc::new(pod)
}

fn disk(node: &Node) -> PathBuf {
    let disk = node.root.path().join("disk");
    std::fs::create_dir_all(&disk).unwrap();
    disk
}

#[tokio::test]
async fn a_local_volume_is_bound_where_kubelet_binds_it_and_its_files_outlive_the_pod() {
    let node = Node::new();
    let disk = disk(&node);
    std::fs::write(disk.join("old"), "here").unwrap();
    bind(&node, "c", json!({"local": {"path": disk}}));
    let pod = make_pod_with(claim("c"), json!({"fsGroup": 4321}));
    let placed = node.ensure(&pod).await.unwrap();
    let path = placed.host_path("data").unwrap();
    assert_eq!(path, node.volumes.pod_dir(&PodUid::new("u1")).join("volumes/kubernetes.io~local-volume/pv-c"));
    assert_eq!(std::fs::read(path.join("old")).unwrap(), b"here");
    assert_eq!((std::fs::metadata(disk.join("old")).unwrap().gid(), mode(&disk) & 0o2770), (4321, 0o2770));
    std::fs::write(path.join("new"), "x").unwrap();
    node.ensure(&pod).await.unwrap();
    assert_eq!(mount::mounts_below(path).unwrap().len(), 1, "twice is once");
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(disk.join("old").exists() && disk.join("new").exists(), "a volume is not the pod's to delete");
    assert!(!node.volumes.pod_dir(&PodUid::new("u1")).exists());
}

#[tokio::test]
async fn a_read_only_claim_cannot_be_written_by_anybody() {
    let node = Node::new();
    let disk = disk(&node);
    bind(&node, "c", json!({"local": {"path": disk}, "mountOptions": ["noexec"]}));
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}]);
    let placed = node.ensure(&make_pod_with(volumes, json!({"fsGroup": 4321}))).await.unwrap();
    assert!(placed.volumes["data"].read_only);
    let error = std::fs::write(placed.host_path("data").unwrap().join("x"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_ne!(std::fs::metadata(&disk).unwrap().gid(), 4321, "what is read-only is given to nobody");
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = info.lines().find(|line| line.contains("kubernetes.io~local-volume/pv-c")).unwrap();
    assert!(line.contains("ro,") && line.contains("noexec"), "{line}");
}

#[tokio::test]
async fn a_host_path_volume_is_the_path_itself() {
    let node = Node::new();
    let path = node.root.path().join("made");
    bind(&node, "c", json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}}));
    let placed = node.ensure(&make_pod(claim("c"))).await.unwrap();
    assert_eq!(placed.host_path("data"), Some(path.as_path()));
    assert!(path.is_dir() && !placed.volumes["data"].read_only);
    bind(&node, "d", json!({"hostPath": {"path": path, "type": "File"}}));
    let error = node.ensure(&with_uid(&make_pod(claim("d")), "u2")).await.unwrap_err().to_string();
    assert!(error.starts_with("MountVolume.SetUp failed for volume \"pv-d\" : hostPath type check failed"), "{error}");
}

#[tokio::test]
async fn what_is_not_a_directory_is_refused_with_kubelets_words() {
    let node = Node::new();
    let missing = node.root.path().join("missing");
    bind(&node, "c", json!({"local": {"path": missing}}));
    let error = node.ensure(&make_pod(claim("c"))).await.unwrap_err().to_string();
    let text =
        format!("MountVolume.NewMounter initialization failed for volume \"pv-c\" : path {missing:?} does not exist");
    assert_eq!(error, text);
    std::fs::write(&missing, "").unwrap();
    let error = node.ensure(&make_pod(claim("c"))).await.unwrap_err().to_string();
    assert!(error.ends_with("only directory and block device are supported"), "{error}");
    let error = node.ensure(&make_pod(claim("none"))).await.unwrap_err().to_string();
    let text =
        "error processing PVC n/none: failed to fetch PVC from API server: persistentvolumeclaims \"none\" not found";
    assert!(error.ends_with(text), "{error}");
}

#[tokio::test]
async fn a_volume_for_one_pod_is_refused_to_a_second_until_the_first_is_gone() {
    let mut node = Node::new();
    let disk = disk(&node);
    bind(&node, "c", json!({"local": {"path": disk}, "accessModes": ["ReadWriteOncePod"]}));
    let (first, second) = (make_pod(claim("c")), with_uid(&make_pod(claim("c")), "u2"));
    node.ensure(&first).await.unwrap();
    let refused = "MountVolume.SetUp failed for volume \"pv-c\" : volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    assert_eq!(node.ensure(&second).await.unwrap_err().to_string(), refused);
    // A restarted agent knows it before any pod was looked at.
    node.restart();
    assert_eq!(node.ensure(&second).await.unwrap_err().to_string(), refused);
    node.ensure(&first).await.expect("its own");
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    node.ensure(&second).await.unwrap();
}

#[tokio::test]
async fn a_volume_that_could_not_be_set_up_is_free_for_others() {
    let node = Node::new();
    bind(&node, "c", json!({"local": {"path": "/nowhere/at/all"}, "accessModes": ["ReadWriteOncePod"]}));
    node.ensure(&make_pod(claim("c"))).await.unwrap_err();
    bind(&node, "c", json!({"local": {"path": disk(&node)}, "accessModes": ["ReadWriteOncePod"]}));
    node.ensure(&with_uid(&make_pod(claim("c")), "u2")).await.unwrap();
}

#[tokio::test]
async fn a_restarted_agent_has_all_volumes_of_a_pod_while_the_api_server_is_away() {
    let mut node = Node::new();
    bind(&node, "c", json!({"local": {"path": disk(&node)}}));
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "1"}}));
    let pod = make_pod(json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "map", "configMap": {"name": "m"}}]));
    let before = node.ensure(&pod).await.unwrap();
    node.restart();
    node.objects.is_away.store(true, Ordering::Relaxed);
    let after = node.ensure(&pod).await.unwrap();
    assert_eq!(after.volumes, before.volumes);
    assert!(after.refresh_at.is_some(), "it is looked at again");
    assert_eq!(std::fs::read(after.host_path("map").unwrap().join("a")).unwrap(), b"1");
    let new = node.ensure(&with_uid(&pod, "u2")).await.unwrap_err().to_string();
    assert!(new.contains("connection refused"), "a new pod has nothing to fall back on: {new}");
    // Deleted is an answer: what is gone is not made up.
    node.objects.is_away.store(false, Ordering::Relaxed);
    node.objects.maps.lock().unwrap().clear();
    node.ensure(&pod).await.unwrap_err();
}

#[tokio::test]
async fn a_second_pod_with_another_group_is_told_that_it_may_not_share() {
    let mut node = Node::new();
    let disk = disk(&node);
    bind(&node, "c", json!({"local": {"path": disk}}));
    node.ensure(&make_pod_with(claim("c"), json!({"fsGroup": 1000}))).await.unwrap();
    let second = with_uid(&make_pod_with(claim("c"), json!({"fsGroup": 2000})), "u2");
    node.ensure(&second).await.unwrap();
    assert_eq!(std::fs::metadata(&disk).unwrap().gid(), 1000, "the first pod's files are not taken away");
    let event = node.events.try_recv().unwrap();
    assert_eq!(event.reason, "AlreadyMountedVolume");
    let text = "The requested fsGroup is 2000, but the volume pv-c has GID 1000. The volume may not be shareable.";
    assert_eq!(event.message, text);
}

#[tokio::test]
async fn on_root_mismatch_leaves_a_volume_whose_root_is_right() {
    let node = Node::new();
    let disk = disk(&node);
    std::fs::write(disk.join("theirs"), "").unwrap();
    rustix::fs::chown(&disk, None, Some(rustix::fs::Gid::from_raw(77))).unwrap();
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o2770)).unwrap();
    bind(&node, "c", json!({"local": {"path": disk}}));
    let security = |policy: &str| json!({"fsGroup": 77, "fsGroupChangePolicy": policy});
    node.ensure(&make_pod_with(claim("c"), security("OnRootMismatch"))).await.unwrap();
    assert_ne!(std::fs::metadata(disk.join("theirs")).unwrap().gid(), 77);
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    node.ensure(&make_pod_with(claim("c"), security("Always"))).await.unwrap();
    assert_eq!(std::fs::metadata(disk.join("theirs")).unwrap().gid(), 77);
}

#[tokio::test]
async fn a_block_volume_is_a_link_to_the_device_that_goes_with_the_pod() {
    let node = Node::new();
    let device = node.root.path().join("device");
    let numbers = rustix::fs::makedev(7, 200);
    rustix::fs::mknodat(rustix::fs::CWD, &device, rustix::fs::FileType::BlockDevice, 0o600.into(), numbers).unwrap();
    bind(&node, "c", json!({"local": {"path": device}, "volumeMode": "Block"}));
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u1"}, "spec": {
        "volumes": claim("c"),
        "containers": [{"name": "c", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]}}))
    .unwrap();
    let placed = node.ensure(&Arc::new(pod)).await.unwrap();
    let link = node.volumes.pod_dir(&PodUid::new("u1")).join("volumeDevices/kubernetes.io~local-volume/pv-c");
    assert_eq!((placed.host_path("data"), placed.volumes["data"].is_device), (Some(link.as_path()), true));
    assert_eq!(std::fs::read_link(&link).unwrap(), device);
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(device.exists() && !node.volumes.pod_dir(&PodUid::new("u1")).exists());
}

#[tokio::test]
async fn a_generic_ephemeral_volume_is_named_after_pod_and_volume() {
    let node = Node::new();
    bind(&node, "p-data", json!({"local": {"path": disk(&node)}}));
    let pod = make_pod(json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]));
    let error = node.ensure(&pod).await.unwrap_err().to_string();
    assert!(error.ends_with("PVC n/p-data was not created for pod n/p (pod is not owner)"), "{error}");
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u1", "controller": true}]);
    node.objects.claims.lock().unwrap().get_mut("p-data").unwrap()["metadata"]["ownerReferences"] = owner;
    node.ensure(&pod).await.unwrap();
}

#[tokio::test]
async fn a_pods_user_namespace_is_its_own_and_outlives_the_agent() {
    let mut node = Node::new();
    let (first, second) = (PodUid::new("u1"), PodUid::new("u2"));
    let range = node.volumes.user_namespace(&first).await.unwrap();
    let file = node.volumes.pod_dir(&first).join("userns");
    assert!(
        std::fs::read_to_string(&file)
            .unwrap()
            .starts_with(&format!("{{\"uidMappings\":[{{\"hostId\":{}", range.first))
    );
    node.restart();
    assert_ne!(node.volumes.user_namespace(&second).await.unwrap().first, range.first);
    assert_eq!(node.volumes.user_namespace(&first).await.unwrap(), range);
    // A torn file: its range is not guessed, and nobody else gets one that may be it.
    std::fs::write(&file, "{\"uidMap").unwrap();
    node.restart();
    assert!(node.volumes.user_namespace(&first).await.is_err());
    let error = node.volumes.user_namespace(&PodUid::new("u3")).await.unwrap_err().to_string();
    assert!(error.contains("\"u1\" cannot be read"), "{error}");
    node.volumes.remove(&first).await.unwrap();
    assert_eq!(node.volumes.user_namespace(&PodUid::new("u3")).await.unwrap(), range, "what is released is used again");
}
