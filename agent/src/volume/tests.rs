//! These run as root: mounts are made below temporary directories of their own and removed with them.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use serde_json::{Value, json};

use super::*;
use crate::event::Event;
use crate::ids::ObjectKey;
use crate::objects::{
    CertificateAsk, ObjectError, PodCertificate, ServiceEnv, Token, TokenAsk, TrustBundle, TrustBundleRef,
};

mod attacks;
mod claims;
mod figures;
mod huge_pages;
mod projections;

/// Objects that tests change.
#[derive(Default)]
struct Fake {
    maps: Mutex<BTreeMap<String, Value>>,
    secrets: Mutex<BTreeMap<String, Value>>,
    claims: Mutex<BTreeMap<String, Value>>,
    pvs: Mutex<BTreeMap<String, Value>>,
    bundles: Mutex<Vec<Arc<TrustBundle>>>,
    certificate: Mutex<Option<PodCertificate>>,
    asked: Mutex<Vec<CertificateAsk>>,
    /// The API server does not answer.
    is_away: AtomicBool,
}

impl Fake {
    fn answer(
        &self,
        table: &Mutex<BTreeMap<String, Value>>,
        kind: &'static str,
        name: &str,
    ) -> Result<Value, ObjectError> {
        let key = ObjectKey::new("", name);
        if self.is_away.load(Ordering::Relaxed) {
            return Err(ObjectError::Unavailable { kind, key, reason: "connection refused".to_owned() });
        }
        table.lock().unwrap().get(name).cloned().ok_or(ObjectError::NotFound { kind, key })
    }
}

impl Objects for Fake {
    fn register(&self, _: &PodUid, _: Vec<ObjectRef>) {}
    fn unregister(&self, _: &PodUid) {}
    fn config_map<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<ConfigMap>, ObjectError>> {
        let found = self.answer(&self.maps, "configmap", &key.name);
        Box::pin(async move { Ok(Arc::new(serde_json::from_value(found?).unwrap())) })
    }
    fn secret<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Arc<Secret>, ObjectError>> {
        let found = self.answer(&self.secrets, "secret", &key.name);
        Box::pin(async move { Ok(Arc::new(serde_json::from_value(found?).unwrap())) })
    }
    fn token<'a>(&'a self, ask: &'a TokenAsk) -> BoxFuture<'a, Result<Token, ObjectError>> {
        let token = format!("{}/{}/{}", ask.service_account, ask.pod_name, ask.audience);
        let (issued_at, expires_at) = (1000, 1000 + ask.expiration_seconds);
        Box::pin(async move { Ok(Token { token, expires_at, issued_at }) })
    }
    fn trust_bundles<'a>(
        &'a self,
        wanted: &'a TrustBundleRef,
    ) -> BoxFuture<'a, Result<Vec<Arc<TrustBundle>>, ObjectError>> {
        let found: Vec<_> = self.bundles.lock().unwrap().iter().filter(|b| wanted.covers(b)).cloned().collect();
        let away = self.is_away.load(Ordering::Relaxed).then(|| ObjectError::Unavailable {
            kind: "clustertrustbundles",
            key: ObjectKey::new("", ""),
            reason: "connection refused".to_owned(),
        });
        Box::pin(async move { away.map_or(Ok(found), Err) })
    }
    fn pod_certificate<'a>(&'a self, ask: &'a CertificateAsk) -> BoxFuture<'a, Result<PodCertificate, ObjectError>> {
        self.asked.lock().unwrap().push(ask.clone());
        let pending = ObjectError::Unavailable { kind: "r", key: ask.pod.clone(), reason: "not issued yet".to_owned() };
        let found = self.certificate.lock().unwrap().clone().ok_or(pending);
        Box::pin(async move { found })
    }
    fn services<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Vec<ServiceEnv>, ObjectError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn runtime_handler<'a>(&'a self, _class: &'a str) -> BoxFuture<'a, Result<String, ObjectError>> {
        Box::pin(async { Ok(String::new()) })
    }

    fn claim<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<PersistentVolumeClaim, ObjectError>> {
        let found = self.answer(&self.claims, "persistentvolumeclaims", &key.name);
        Box::pin(async move { Ok(serde_json::from_value(found?).unwrap()) })
    }

    fn persistent_volume<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<PersistentVolume, ObjectError>> {
        let found = self.answer(&self.pvs, "persistentvolumes", name);
        Box::pin(async move { Ok(serde_json::from_value(found?).unwrap()) })
    }
}

struct Node {
    volumes: Volumes,
    objects: Arc<Fake>,
    root: tempfile::TempDir,
    events: tokio::sync::mpsc::Receiver<Event>,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let objects = Arc::new(Fake::default());
        let (recorder, events) = Recorder::new();
        let settings = Settings { root_dir: root.path().join("kubelet"), deadline: Duration::from_secs(20) };
        let volumes = Volumes::new(settings, Arc::clone(&objects) as Arc<dyn Objects>, recorder).unwrap();
        Self { volumes, objects, root, events }
    }

    /// Another agent on the same directories.
    fn restart(&mut self) {
        let (recorder, events) = Recorder::new();
        let settings = self.volumes.inner.settings.clone();
        self.volumes = Volumes::new(settings, Arc::clone(&self.objects) as Arc<dyn Objects>, recorder).unwrap();
        self.events = events;
    }

    async fn ensure(&self, pod: &Arc<Pod>) -> Result<PodVolumes, VolumeError> {
        let allocatable = [("memory".to_owned(), Quantity::parse("1Gi").unwrap())].into();
        let node_labels = [("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into();
        self.volumes.ensure(pod, &PodFacts { node_allocatable: allocatable, node_labels }).await
    }

    fn subpath(&self, volume: &str, subpath: &str) -> SubPathAsk {
        SubPathAsk {
            uid: PodUid::new("u1"),
            volume: volume.to_owned(),
            container: "c".to_owned(),
            index: 0,
            subpath: subpath.to_owned(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for point in mount::mounts_below(&self.root.path().canonicalize().unwrap()).unwrap().iter().rev() {
            mount::unmount(point).unwrap();
        }
    }
}

/// A pod whose one container mounts all its volumes.
fn make_pod(volumes: Value) -> Arc<Pod> {
    make_pod_with(volumes, json!({}))
}

fn make_pod_with(volumes: Value, security: Value) -> Arc<Pod> {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|v| json!({"name": v["name"], "mountPath": format!("/{}", v["name"].as_str().unwrap())}))
        .collect();
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u1", "labels": {"a": "1"}}, "spec": {
        "volumes": volumes, "securityContext": security, "containers": [{"name": "c", "volumeMounts": mounts}]}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn magic(path: &Path) -> i64 {
    rustix::fs::statfs(path).unwrap().f_type as i64
}

const TMPFS: i64 = 0x0102_1994;

#[tokio::test]
async fn volumes_have_kubelets_layout_and_modes() {
    let node = Node::new();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"key": "value"}}));
    node.objects.secrets.lock().unwrap().insert("s".to_owned(), json!({"data": {"pw": "aHVudGVy"}}));
    let pod = make_pod(json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "map", "configMap": {"name": "m"}},
        {"name": "sec", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"name": "proj", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    ]));
    let placed = node.ensure(&pod).await.unwrap();
    let dir = node.volumes.pod_dir(&PodUid::new("u1"));
    for (name, plugin) in [
        ("disk", "empty-dir"),
        ("mem", "empty-dir"),
        ("map", "configmap"),
        ("sec", "secret"),
        ("down", "downward-api"),
        ("proj", "projected"),
    ] {
        let expected = dir.join(format!("volumes/kubernetes.io~{plugin}/{name}"));
        assert_eq!(placed.host_path(name), Some(expected.as_path()));
        assert_eq!(placed.volumes[name].read_only, plugin != "empty-dir");
    }
    let path = |name: &str| placed.host_path(name).unwrap().to_owned();
    assert_eq!((mode(&dir), mode(&dir.join("volumes"))), (0o750, 0o750));
    assert_eq!(mode(&path("disk")), 0o777);
    assert_eq!(std::fs::read(path("map").join("key")).unwrap(), b"value");
    assert_eq!(mode(&path("sec").join("..data/pw")), 0o400);
    assert_eq!(std::fs::read(path("down").join("labels")).unwrap(), b"a=\"1\"");
    assert_eq!(std::fs::read(path("proj").join("token")).unwrap(), b"n/default/p/");
    for name in ["mem", "sec", "down", "proj"] {
        assert_eq!(magic(&path(name)), TMPFS, "{name}");
    }
    assert_ne!(magic(&path("map")), TMPFS);
    let size = rustix::fs::statvfs(path("mem")).unwrap();
    assert_eq!(size.f_blocks * size.f_frsize, 8 << 20);
    assert!(dir.join("plugins/kubernetes.io~empty-dir/disk/ready").exists());
    assert!(dir.join("plugins/kubernetes.io~empty-dir/wrapped_map/ready").exists());
    // 3600 s of life from second 1000: renewed at 80 %.
    assert_eq!(placed.refresh_at, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + 2880)));

    assert_eq!(node.volumes.existing_pods().unwrap(), [PodUid::new("u1")]);
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(!dir.exists());
    node.volumes.remove(&PodUid::new("u1")).await.expect("twice is once");
    assert!(node.volumes.existing_pods().unwrap().is_empty());
}

#[tokio::test]
async fn what_a_container_wrote_survives_and_no_second_tmpfs_covers_it() {
    let mut node = Node::new();
    let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory"}}]));
    let placed = node.ensure(&pod).await.unwrap();
    for name in ["disk", "mem"] {
        let path = placed.host_path(name).unwrap();
        std::fs::write(path.join("data"), name).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    // A new agent knows nothing but the disk.
    node.restart();
    let again = node.ensure(&pod).await.unwrap();
    assert_eq!(again, placed);
    for name in ["disk", "mem"] {
        let path = again.host_path(name).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("data")).unwrap(), name);
        assert_eq!(mode(path), 0o700, "the container's choice is kept");
    }
    let mem = placed.host_path("mem").unwrap();
    assert_eq!(mount::mounts_below(mem).unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_object_is_named_and_the_other_volumes_are_in_place() {
    let node = Node::new();
    let pod = make_pod(json!([
        {"name": "x", "configMap": {"name": "y"}},
        {"name": "opt", "secret": {"secretName": "none", "optional": true}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "disk", "emptyDir": {}}]));
    let error = node.ensure(&pod).await.unwrap_err();
    let VolumeError::SetUp(failures) = &error else { panic!("{error}") };
    assert_eq!(failures[0].to_string(), r#"MountVolume.SetUp failed for volume "x" : configmap "y" not found"#);
    let text = "Unable to attach or mount volumes: unmounted volumes=[claim], unattached volumes=[], failed to process \
                volumes=[claim]: error processing PVC n/c: failed to fetch PVC from API server: \
                persistentvolumeclaims \"c\" not found";
    assert_eq!((failures.len(), failures[1].to_string().as_str()), (2, text));
    let volumes = node.volumes.pod_dir(&PodUid::new("u1")).join("volumes");
    assert!(volumes.join("kubernetes.io~empty-dir/disk").is_dir());
    assert!(volumes.join("kubernetes.io~secret/opt").is_dir());
}

#[tokio::test]
async fn a_volume_that_nobody_mounts_is_not_needed() {
    let node = Node::new();
    let mut pod = (*make_pod(json!([{"name": "x", "configMap": {"name": "y"}}]))).clone();
    assert_eq!(object_refs(&pod), [ObjectRef::ConfigMap(ObjectKey::new("n", "y"))]);
    pod.spec.as_mut().unwrap().containers[0].volume_mounts = None;
    assert!(object_refs(&pod).is_empty());
    assert!(node.ensure(&Arc::new(pod)).await.unwrap().volumes.is_empty());
}

#[tokio::test]
async fn a_volume_inside_a_read_only_volume_finds_its_mount_point() {
    let node = Node::new();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"key": "value"}}));
    let mut pod =
        (*make_pod(json!([{"name": "map", "configMap": {"name": "m"}}, {"name": "in", "emptyDir": {}}]))).clone();
    pod.spec.as_mut().unwrap().containers[0].volume_mounts.as_mut().unwrap()[1].mount_path = "/map/sub/dir".to_owned();
    let pod = Arc::new(pod);
    for data in [json!({"key": "value"}), json!({"key": "new"})] {
        node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": data}));
        let placed = node.ensure(&pod).await.unwrap();
        assert!(placed.host_path("map").unwrap().join("sub/dir").is_dir());
    }
}

#[tokio::test]
async fn fs_group_owns_what_containers_and_the_agent_write() {
    let node = Node::new();
    node.objects.secrets.lock().unwrap().insert("s".to_owned(), json!({"data": {"pw": "aHVudGVy"}}));
    let volumes = json!([
        {"name": "disk", "emptyDir": {}},
        {"name": "sec", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "proj", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]);
    let pod = make_pod_with(volumes, json!({"fsGroup": 1234, "runAsUser": 77}));
    let placed = node.ensure(&pod).await.unwrap();
    let disk = placed.host_path("disk").unwrap();
    assert_eq!((mode(disk), std::fs::metadata(disk).unwrap().gid()), (0o2777, 1234));
    let secret = placed.host_path("sec").unwrap().join("pw");
    assert_eq!(std::fs::metadata(&secret).unwrap().gid(), 1234);
    assert_eq!(std::fs::metadata(&secret).unwrap().permissions().mode() & 0o7777, 0o440);
    let token = std::fs::metadata(placed.host_path("proj").unwrap().join("token")).unwrap();
    assert_eq!((token.uid(), token.gid(), token.permissions().mode() & 0o7777), (77, 1234, 0o640));
}

#[tokio::test]
async fn an_unchanged_volume_is_not_rewritten_and_stale_files_go() {
    let node = Node::new();
    let set = |data: Value| drop(node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": data})));
    set(json!({"a": "1", "gone": "x"}));
    let pod = make_pod(json!([{"name": "map", "configMap": {"name": "m"}}]));
    let path = node.ensure(&pod).await.unwrap().host_path("map").unwrap().to_owned();
    let version = || std::fs::read_link(path.join("..data")).unwrap();
    let first = version();
    node.ensure(&pod).await.unwrap();
    assert_eq!(version(), first);
    std::fs::remove_file(path.join("a")).unwrap();
    node.ensure(&pod).await.unwrap();
    assert!(path.join("a").exists(), "a lost link comes back");
    set(json!({"a": "2"}));
    node.ensure(&pod).await.unwrap();
    assert_ne!(version(), first);
    assert_eq!(std::fs::read(path.join("a")).unwrap(), b"2");
    assert!(std::fs::symlink_metadata(path.join("gone")).is_err());
    assert!(!path.join(first).exists());
}

#[test]
fn a_reader_sees_all_old_or_all_new_files() {
    let root = tempfile::tempdir().unwrap();
    let volume = Dir::open(root.path()).unwrap();
    let payload = |value: u64| -> content::Payload {
        let file = |_| content::File { data: value.to_string().into_bytes(), mode: 0o644, user: None };
        ["a", "sub/b"].map(|path| (path.to_owned(), file(path))).into()
    };
    atomic_write::write(&volume, &payload(0), None, SystemTime::now()).unwrap();
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // As a program that reloads: it opens the version once and reads both files of it.
                let Ok(version) = std::fs::read_link(root.path().join("..data")) else { panic!("..data is gone") };
                let version = root.path().join(version);
                let read = |name: &str| std::fs::read_to_string(version.join(name));
                // The version may be replaced and removed meanwhile; what is read is never a mixture.
                if let (Ok(a), Ok(b)) = (read("a"), read("sub/b")) {
                    assert_eq!(a, b);
                    assert!(!a.is_empty());
                    reads.fetch_add(1, Ordering::Relaxed);
                }
                assert!(std::fs::symlink_metadata(root.path().join("..data")).is_ok());
            }
        });
        for value in 1..500 {
            atomic_write::write(&volume, &payload(value), None, SystemTime::now()).unwrap();
        }
        while reads.load(Ordering::Relaxed) == 0 && !reader.is_finished() {
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[tokio::test]
async fn a_crash_between_the_steps_of_a_write_is_repaired() {
    let node = Node::new();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "1"}}));
    let pod = make_pod(json!([{"name": "map", "configMap": {"name": "m"}}]));
    let path = node.ensure(&pod).await.unwrap().host_path("map").unwrap().to_owned();
    std::fs::create_dir(path.join("..2020_01_01_00_00_00.7")).unwrap();
    symlink("..2020_01_01_00_00_00.7", path.join("..data_tmp")).unwrap();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "2"}}));
    node.ensure(&pod).await.unwrap();
    assert_eq!(std::fs::read(path.join("a")).unwrap(), b"2");
    assert!(!path.join("..2020_01_01_00_00_00.7").exists());
    assert!(std::fs::symlink_metadata(path.join("..data_tmp")).is_err());
}

#[tokio::test]
async fn a_subpath_of_a_config_map_is_a_file_of_it() {
    let node = Node::new();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "1"}}));
    let pod = make_pod(json!([{"name": "map", "configMap": {"name": "m"}}, {"name": "disk", "emptyDir": {}}]));
    let placed = node.ensure(&pod).await.unwrap();
    let file = node.volumes.prepare_subpath(node.subpath("map", "a")).await.unwrap();
    assert_eq!(file, node.volumes.pod_dir(&PodUid::new("u1")).join("volume-subpaths/map/c/0"));
    assert_eq!(std::fs::read(&file).unwrap(), b"1");
    node.volumes.prepare_subpath(node.subpath("map", "a")).await.expect("twice is once");
    assert_eq!(mount::mounts_below(&file).unwrap().len(), 1);
    // After an update, the next container gets the new file.
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "2"}}));
    node.ensure(&pod).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"1", "a subPath is not updated live");
    node.volumes.prepare_subpath(node.subpath("map", "a")).await.unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"2");

    let directory = node.volumes.prepare_subpath(node.subpath("disk", "new/dir")).await.unwrap();
    std::fs::write(directory.join("x"), "through").unwrap();
    let inside = placed.host_path("disk").unwrap().join("new/dir");
    assert_eq!(std::fs::read(inside.join("x")).unwrap(), b"through");
    assert_eq!(mode(&inside), 0o777, "as the volume");
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
}

#[tokio::test]
async fn hosts_file_and_termination_log_keep_their_inode() {
    let node = Node::new();
    let uid = PodUid::new("u1");
    let hosts = node.volumes.write_etc_hosts(&uid, "127.0.0.1 localhost\n".to_owned()).await.unwrap();
    let inode = std::fs::metadata(&hosts).unwrap().ino();
    node.volumes.write_etc_hosts(&uid, "new\n".to_owned()).await.unwrap();
    assert_eq!(std::fs::read(&hosts).unwrap(), b"new\n");
    assert_eq!((std::fs::metadata(&hosts).unwrap().ino(), mode(&hosts)), (inode, 0o644));
    assert_eq!(hosts, node.volumes.pod_dir(&uid).join("etc-hosts"));

    let log = node.volumes.termination_log(&uid, "c", "4f2a").await.unwrap();
    assert_eq!((mode(&log), log.ends_with("u1/containers/c/4f2a")), (0o666, true));
    std::fs::write(&log, "bye").unwrap();
    node.volumes.termination_log(&uid, "c", "4f2a").await.unwrap();
    assert_eq!(std::fs::read(&log).unwrap(), b"bye");
}

#[test]
fn host_path_types_are_checked_or_made() {
    use host_path::Kind;
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    std::fs::create_dir(path("dir")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    symlink(path("dir"), path("link")).unwrap();
    let device = |name: &str, kind| {
        rustix::fs::mknodat(rustix::fs::CWD, path(name), kind, 0o600.into(), rustix::fs::makedev(1, 3)).unwrap();
    };
    device("char", rustix::fs::FileType::CharacterDevice);
    device("block", rustix::fs::FileType::BlockDevice);
    let names = ["dir", "link", "file", "socket", "char", "block", "none"];
    for (text, fits) in [
        ("", &names[..]),
        ("Directory", &["dir", "link"]),
        ("File", &["file"]),
        ("Socket", &["socket"]),
        ("CharDevice", &["char"]),
        ("BlockDevice", &["block"]),
    ] {
        for name in names {
            let result = host_path::ensure(&path(name), Kind::parse(text).unwrap());
            assert_eq!(result.is_ok(), fits.contains(&name), "{text} {name}: {result:?}");
        }
    }
    host_path::ensure(&path("new/dir"), Kind::DirectoryOrCreate).unwrap();
    host_path::ensure(&path("new/file"), Kind::FileOrCreate).unwrap();
    assert!(path("new/dir").is_dir() && path("new/file").is_file());
    let error = host_path::ensure(&path("file"), Kind::DirectoryOrCreate).unwrap_err();
    assert!(error.ends_with("is not a directory, it's a File"), "{error}");
    assert!(host_path::ensure(&path("dir/../file"), Kind::Unset).is_err());
    assert_eq!(Kind::parse("Nonsense"), None);
}

#[test]
fn a_tmpfs_is_as_large_as_the_least_limit() {
    for (limit, pod, node, size) in [
        (None, None, None, None),
        (Some(8), None, Some(100), Some(8)),
        (Some(8), Some(4), Some(100), Some(4)),
        (None, Some(400), Some(100), Some(100)),
        (Some(0), None, Some(100), Some(100)),
    ] {
        assert_eq!(plan::tmpfs_size(limit, pod, node), size);
    }
}

#[tokio::test]
async fn a_hung_volume_holds_up_only_its_own_pod() {
    let mut node = Node::new();
    let settings = Settings { deadline: Duration::from_millis(300), ..node.volumes.inner.settings.clone() };
    node.volumes = Volumes::new(settings, Arc::clone(&node.objects) as Arc<dyn Objects>, Recorder::new().0).unwrap();
    let (release, hung) = std::sync::mpsc::channel::<()>();
    let uid = PodUid::new("u1");
    let first = node.volumes.on_pod(&uid, move |_, _| {
        // A file system that does not answer.
        let _ = hung.recv();
        Ok(())
    });
    assert!(matches!(first.await, Err(VolumeError::Stuck { .. })));
    assert!(matches!(node.ensure(&make_pod(json!([]))).await, Err(VolumeError::Stuck { .. })), "its turn is taken");
    node.volumes.write_etc_hosts(&PodUid::new("u2"), String::new()).await.expect("another pod goes on");
    drop(release);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while let Err(error) = node.ensure(&make_pod(json!([]))).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
}
