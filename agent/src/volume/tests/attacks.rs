//! What containers do to make the agent touch files of the host (CVE-2017-1002101, CVE-2017-1002102, CVE-2021-25741).

use std::os::fd::AsFd;

use super::*;

#[tokio::test]
async fn a_subpath_never_leaves_its_volume() {
    let node = Node::new();
    let outside = node.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}]));
    let volume = node.ensure(&pod).await.unwrap().host_path("disk").unwrap().to_owned();
    symlink(&outside, volume.join("absolute")).unwrap();
    symlink("../../../../../../outside", volume.join("relative")).unwrap();
    symlink("/proc/self/root", volume.join("magic")).unwrap();
    for subpath in ["absolute", "absolute/x", "relative", "relative/new", "magic/etc", "../x", "/etc", "a/../../x"] {
        let error = node.volumes.prepare_subpath(node.subpath("disk", subpath)).await.unwrap_err();
        assert!(matches!(error, VolumeError::SubPath { .. }), "{subpath}: {error}");
    }
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

/// CVE-2017-1002101, CVE-2021-25741: a container exchanges a directory and a symlink while its subPath is mounted.
#[tokio::test(flavor = "multi_thread")]
async fn a_subpath_that_is_exchanged_for_a_symlink_stays_in_its_volume() {
    let node = Node::new();
    let outside = node.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("host-file"), "").unwrap();
    let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}]));
    let volume = node.ensure(&pod).await.unwrap().host_path("disk").unwrap().to_owned();
    std::fs::create_dir(volume.join("dir")).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let attacker = {
        let (volume, done) = (Dir::open(&volume).unwrap(), Arc::clone(&done));
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&volume, "dir", &volume, "link", flags).unwrap();
            }
        })
    };
    let (mut mounted, mut refused) = (0, 0);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while (mounted < 100 || refused < 100) && std::time::Instant::now() < deadline {
        match node.volumes.prepare_subpath(node.subpath("disk", "dir")).await {
            Ok(path) => {
                assert!(!path.join("host-file").exists(), "the host is visible in the container");
                mounted += 1;
            }
            Err(VolumeError::SubPath { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    done.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    assert!(mounted >= 100 && refused >= 100, "both sides of the race were seen: {mounted}, {refused}");
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(outside.join("host-file").exists());
}

/// CVE-2017-1002102: what a container planted makes the agent delete files of the host.
#[tokio::test]
async fn teardown_follows_nothing_that_a_container_planted() {
    let node = Node::new();
    let outside = node.root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("canary"), "").unwrap();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "1"}}));
    let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}, {"name": "map", "configMap": {"name": "m"}}]));
    let placed = node.ensure(&pod).await.unwrap();
    let disk = placed.host_path("disk").unwrap();
    symlink(&outside, disk.join("link")).unwrap();
    std::fs::hard_link(outside.join("canary"), disk.join("hard")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, disk.join("pipe"), rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
    let map = placed.host_path("map").unwrap();
    std::fs::remove_file(map.join("..data")).unwrap();
    symlink(&outside, map.join("..data")).unwrap();
    symlink(&outside, map.join("..2000_planted")).unwrap();
    node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"a": "2"}}));
    node.ensure(&pod).await.unwrap();
    assert!(outside.join("canary").exists(), "an update");
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(outside.join("canary").exists(), "a removal");
    assert!(!node.volumes.pod_dir(&PodUid::new("u1")).exists());
}

#[tokio::test]
async fn a_directory_as_deep_as_a_container_can_make_it_is_removed() {
    let node = Node::new();
    let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}]));
    let volume = node.ensure(&pod).await.unwrap().host_path("disk").unwrap().to_owned();
    let mut at = Dir::open(&volume).unwrap();
    for _ in 0..3000 {
        std::fs::write(at.path().join("never"), "").unwrap_or_default();
        rustix::fs::mkdirat(&at, "d", 0o777.into()).unwrap();
        // The path would be too long for the kernel; only the handle is used.
        at = Dir::from_fd(
            rustix::fs::openat(&at, "d", rustix::fs::OFlags::DIRECTORY, 0.into()).unwrap(),
            volume.clone(),
        );
    }
    drop(at);
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(!node.volumes.pod_dir(&PodUid::new("u1")).exists());
}

#[test]
fn the_walk_does_not_cross_a_mount() {
    let node = Node::new();
    let base = node.root.path().join("tree");
    std::fs::create_dir_all(base.join("inner/mounted")).unwrap();
    let target = Dir::open(&base.join("inner/mounted")).unwrap();
    mount::mount_tmpfs(&target, Some(1 << 20)).unwrap();
    std::fs::write(base.join("inner/mounted/data"), "").unwrap();
    std::fs::write(base.join("inner/file"), "").unwrap();
    let mut left = Vec::new();
    let parent = Dir::open(node.root.path()).unwrap();
    remove::remove_tree(&parent, c"tree", remove::Contents::Everything, &mut left);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].contains("inner/mounted is a mount"), "{left:?}");
    assert!(base.join("inner/mounted/data").exists());
    assert!(!base.join("inner/file").exists(), "the rest goes");
}

#[tokio::test]
async fn a_mount_that_a_container_left_is_detached_and_its_source_is_kept() {
    let node = Node::new();
    let precious = node.root.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("data"), "").unwrap();
    let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}]));
    let volume = node.ensure(&pod).await.unwrap().host_path("disk").unwrap().to_owned();
    std::fs::create_dir_all(volume.join("a b/c")).unwrap();
    let (source, target) = (Dir::open(&precious).unwrap(), Dir::open(&volume.join("a b/c")).unwrap());
    mount::bind(source.as_fd(), target.as_fd()).unwrap();
    drop(target);
    assert!(volume.join("a b/c/data").exists());
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(precious.join("data").exists());
    assert!(!node.volumes.pod_dir(&PodUid::new("u1")).exists());
}

#[tokio::test]
async fn files_of_a_plugin_that_is_not_ours_are_kept_and_reported() {
    let node = Node::new();
    node.ensure(&make_pod(json!([{"name": "disk", "emptyDir": {}}]))).await.unwrap();
    let dir = node.volumes.pod_dir(&PodUid::new("u1"));
    let foreign = dir.join("volumes/kubernetes.io~csi/pvc-1");
    std::fs::create_dir_all(foreign.join("mount")).unwrap();
    std::fs::write(foreign.join("vol_data.json"), "{}").unwrap();
    let error = node.volumes.remove(&PodUid::new("u1")).await.unwrap_err();
    assert!(error.to_string().contains("vol_data.json is kept"), "{error}");
    assert!(foreign.join("vol_data.json").exists());
    std::fs::remove_file(foreign.join("vol_data.json")).unwrap();
    node.volumes.remove(&PodUid::new("u1")).await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn names_that_leave_the_pods_directory_are_refused() {
    let node = Node::new();
    for uid in ["", ".", "..", "../x", "a/b"] {
        let error = node.volumes.remove(&PodUid::new(uid)).await.unwrap_err();
        assert!(matches!(error, VolumeError::Name { .. }), "{uid}: {error}");
    }
    let uid = PodUid::new("u1");
    assert!(node.volumes.termination_log(&uid, "../../x", "1").await.is_err());
}

/// Ends an attacker also when an assertion fails: the scope of his thread waits for him.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Class A: thousands of resolutions while two exchanges run, checked by inode and not by what happens to be inside.
#[test]
fn ten_thousand_subpaths_under_attack_resolve_inside_or_not_at_all() {
    let node = Node::new();
    let (volume, outside) = (node.root.path().join("volume"), node.root.path().join("outside"));
    std::fs::create_dir_all(volume.join("dir/inner")).unwrap();
    std::fs::create_dir_all(outside.join("inner")).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    symlink("../../outside", volume.join("dir/up")).unwrap();
    let inside: Vec<u64> =
        ["dir", "dir/inner"].iter().map(|path| std::fs::metadata(volume.join(path)).unwrap().ino()).collect();
    let handle = Dir::open(&volume).unwrap();
    let done = AtomicBool::new(false);
    let (mut resolved, mut refused) = (0u32, 0u32);
    std::thread::scope(|scope| {
        let _ended = Ended(&done);
        scope.spawn(|| {
            let top = Dir::open(&volume).unwrap();
            let below = Dir::open(&volume.join("dir")).unwrap();
            while !done.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let _ = rustix::fs::renameat_with(&top, "dir", &top, "link", exchange);
                let _ = rustix::fs::renameat_with(&below, "inner", &below, "up", exchange);
            }
        });
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while (resolved + refused < 10_000 || resolved < 100 || refused < 100) && std::time::Instant::now() < deadline {
            match safe_path::open_subpath(&handle, "dir/inner") {
                Ok(found) => {
                    let found = rustix::fs::fstat(&found).unwrap().st_ino;
                    assert!(inside.contains(&found), "inode {found} is not of the volume");
                    resolved += 1;
                }
                Err(_) => refused += 1,
            }
        }
    });
    assert!(resolved >= 100 && refused >= 100, "both sides of the race were seen: {resolved}, {refused}");
    assert_eq!(std::fs::read_dir(outside.join("inner")).unwrap().count(), 0, "nothing was created outside");
}

/// Names, types, owners, modes and contents below a directory.
fn picture(directory: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = std::fs::symlink_metadata(&path).unwrap();
        let content = if found.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        lines.push(format!("{} {:o} {} {} {content:?}", path.display(), found.mode(), found.uid(), found.gid()));
        if found.is_dir() {
            lines.extend(picture(&path));
        }
    }
    lines.sort();
    lines
}

/// Fills a directory as a hostile container would; `random` decides.
fn plant(directory: &Path, outside: &Path, random: &mut impl FnMut(usize) -> usize, depth: usize) {
    for n in 0..=random(5) {
        let path = directory.join(["..data", "..data_tmp", "a", "..2020_01_01_00_00_00.1", "key", "x y"][random(6)]);
        let mounts = depth == 0;
        let _ = match random(if mounts { 8 } else { 6 }) {
            0 => symlink(outside, &path),
            1 => symlink("../../../../../../../../outside", &path),
            2 => std::fs::hard_link(outside.join("canary"), &path),
            // Through no link that is there already: the container writes in its own file system.
            3 => std::fs::File::create_new(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, &[b'0'; 3][..n.min(3)])),
            4 => rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o666.into(), 0)
                .map_err(Into::into),
            5 if depth < 4 => std::fs::create_dir(&path).map(|()| plant(&path, outside, random, depth + 1)),
            6 => std::fs::create_dir(&path).and_then(|()| {
                let (source, target) = (Dir::open(outside).unwrap(), Dir::open(&path).unwrap());
                mount::bind(source.as_fd(), target.as_fd())
            }),
            7 => std::fs::create_dir(&path).map(|()| {
                mount::mount_tmpfs(&Dir::open(&path).unwrap(), Some(1 << 16)).unwrap();
                std::fs::write(path.join("in-tmpfs"), "").unwrap();
            }),
            _ => Ok(()),
        };
    }
}

/// Class B over generated trees: whatever is planted in a writable volume and in a volume of the agent, an update and the
/// removal change nothing outside, and nothing of the pod is left.
#[tokio::test]
async fn generated_trees_make_the_agent_touch_nothing_outside() {
    for seed in 1..=60u64 {
        let node = Node::new();
        let outside = node.root.path().join("outside");
        std::fs::create_dir_all(outside.join("deep/er")).unwrap();
        std::fs::write(outside.join("canary"), "alive").unwrap();
        std::fs::write(outside.join("deep/er/canary"), "too").unwrap();
        node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"key": "1", "a": "2"}}));
        let pod = make_pod(json!([{"name": "disk", "emptyDir": {}}, {"name": "map", "configMap": {"name": "m"}}]));
        let placed = node.ensure(&pod).await.unwrap();
        let before = picture(&outside);
        // xorshift64: the same trees every time.
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        for volume in ["disk", "map"] {
            let path = placed.host_path(volume).unwrap();
            if volume == "map" {
                let _ = std::fs::remove_file(path.join("..data"));
                let _ = std::fs::remove_file(path.join("key"));
            }
            plant(path, &outside, &mut random, 0);
        }
        // It may succeed or be refused; it may not reach outside.
        node.objects.maps.lock().unwrap().insert("m".to_owned(), json!({"data": {"key": "3"}}));
        let _ = node.ensure(&pod).await;
        assert_eq!(picture(&outside), before, "seed {seed}: an update");
        node.volumes.remove(&PodUid::new("u1")).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(picture(&outside), before, "seed {seed}: the removal");
        assert!(!node.volumes.pod_dir(&PodUid::new("u1")).exists(), "seed {seed}");
    }
}

/// Class D, CVE-2020-8557: a container fills files of the node that are no volumes. They count as its own.
#[tokio::test]
async fn what_is_written_to_the_hosts_file_and_as_a_termination_message_is_counted() {
    let node = Node::new();
    let uid = PodUid::new("u1");
    node.ensure(&make_pod(json!([]))).await.unwrap();
    let hosts = node.volumes.write_etc_hosts(&uid, "127.0.0.1 localhost\n".to_owned()).await.unwrap();
    let messages = [("c", "0"), ("c", "1"), ("d", "0")];
    let before = node.volumes.disk_use(&uid, Vec::new()).await.unwrap();
    std::fs::write(hosts, vec![1; 3 << 20]).unwrap();
    for (container, attempt) in messages {
        let file = node.volumes.termination_log(&uid, container, attempt).await.unwrap();
        std::fs::write(file, vec![1; 1 << 20]).unwrap();
    }
    let after = node.volumes.disk_use(&uid, Vec::new()).await.unwrap();
    assert!(after.hosts >= before.hosts + (3 << 20) - 4096, "{after:?}");
    assert!(after.messages >= before.messages + (3 << 20), "of all containers and attempts: {after:?}");
}
