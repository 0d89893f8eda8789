//! emptyDirs on huge pages, on a real hugetlbfs.

use super::*;

#[tokio::test]
async fn huge_pages_are_mounted_once_with_their_size_and_belong_to_the_pod() {
    let mut node = Node::new();
    let mut pod = Pod::clone(&make_pod_with(
        json!([{"name": "huge", "emptyDir": {"medium": "HugePages"}}, {"name": "sized", "emptyDir": {"medium": "HugePages-2Mi"}}]),
        json!({"fsGroup": 4321}),
    ));
    pod.spec.as_mut().unwrap().containers[0].resources =
        serde_json::from_value(json!({"limits": {"hugepages-2Mi": "4Mi"}})).unwrap();
    let pod = Arc::new(pod);
    let placed = node.ensure(&pod).await.unwrap();
    node.restart();
    assert_eq!(node.ensure(&pod).await.unwrap(), placed);
    for name in ["huge", "sized"] {
        let path = placed.host_path(name).unwrap();
        let found = rustix::fs::statfs(path).unwrap();
        // HUGETLBFS_MAGIC; its block is a page.
        assert_eq!((found.f_type as i64, found.f_bsize as i64), (0x9584_58f6, 2 << 20), "{name}");
        assert_eq!(mount::mounts_below(path).unwrap().len(), 1);
        assert_eq!((mode(path), std::fs::metadata(path).unwrap().gid()), (0o2777, 4321), "{name}");
    }
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(!node.volumes.pod_dir(&PodUid::new("u1")).exists());

    let lost = make_pod(json!([{"name": "huge", "emptyDir": {"medium": "HugePages"}}]));
    let error = node.ensure(&lost).await.unwrap_err().to_string();
    assert!(error.contains("no resource request for huge pages"), "{error}");
}
