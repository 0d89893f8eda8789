//! These run as root on real cgroups, each below a `cgroupRoot` of its own that is removed at the end.

use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::json;

use super::*;
use crate::quantity::{Format, Quantity};

struct OwnRoot {
    cgroups: Cgroups,
}

impl OwnRoot {
    fn new(test: &str) -> Self {
        let settings = Settings {
            driver: Driver::Cgroupfs,
            cgroup_root: format!("/nodelet-test-{}-{test}", std::process::id()).replace('_', "-"),
            qos_cgroups: true,
            cfs_quota: CfsQuota::Enforced { period: plan::DEFAULT_PERIOD },
            pids_limit: Some(64),
            allocatable: [
                ("cpu".to_owned(), Quantity::from_millis(1500)),
                ("memory".to_owned(), Quantity::from_units(1 << 30, Format::BinarySi)),
                ("pid".to_owned(), Quantity::from_units(500, Format::DecimalSi)),
            ]
            .into(),
            memory_capacity: 4 << 30,
            swap: SwapBehavior::Unaccounted,
            memory_qos: MemoryQos::On { is_tiered: false, throttling: None },
            single_process_oom_kill: true,
        };
        let cgroups = Cgroups::new(settings).expect("the test machine has cgroups");
        cgroups.inner.create(&cgroups.inner.root).expect("tests run as root");
        Self { cgroups }
    }

    fn directories(&self, name: &CgroupName) -> Vec<PathBuf> {
        self.cgroups.inner.directories(name)
    }

    /// A file of a cgroup in the hierarchy that has it.
    fn value(&self, name: &CgroupName, file: &str) -> String {
        let directory = self.directories(name).into_iter().find(|d| d.join(file).exists());
        files::read(&directory.unwrap_or_else(|| panic!("no {file}")), file).unwrap()
    }
}

impl Drop for OwnRoot {
    fn drop(&mut self) {
        for directory in self.directories(&self.cgroups.inner.root) {
            let tree = files::tree(&directory).unwrap();
            files::kill_all(&tree).unwrap();
            files::remove_all(&tree).unwrap();
        }
    }
}

fn make_pod(uid: &str, requests: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": [
        {"name": "a", "resources": {"requests": requests, "limits": {"cpu": "500m", "memory": "64Mi"}}}]}}))
    .unwrap()
}

#[tokio::test]
async fn pods_appear_in_every_hierarchy_with_their_values() {
    let root = OwnRoot::new("values");
    let cgroups = &root.cgroups;
    cgroups.ensure_roots().await.unwrap();
    cgroups.ensure_roots().await.expect("twice is once");
    cgroups.enforce_pods().await.unwrap();
    let pod = make_pod("11-aa", json!({"cpu": "250m"}));
    cgroups.ensure_pod(&pod).await.unwrap();
    cgroups.ensure_pod(&pod).await.expect("twice is once");

    let tree = &cgroups.inner.tree;
    let name = tree.pod(&PodUid::new("11-aa"), QosClass::Burstable);
    assert!(root.directories(&name).iter().all(|d| d.is_dir()));
    assert!(cgroups.parent_for(&pod).ends_with("/kubepods/burstable/pod11-aa"));
    match cgroups.version() {
        CgroupVersion::V1 => {
            assert_eq!(root.value(tree.kubepods(), "cpu.shares"), "1536");
            assert_eq!(root.value(tree.kubepods(), "memory.limit_in_bytes"), (1u64 << 30).to_string());
            assert_eq!(root.value(&tree.qos(QosClass::BestEffort), "cpu.shares"), "2");
            assert_eq!(root.value(&tree.qos(QosClass::Burstable), "cpu.shares"), "256");
            assert_eq!(root.value(&name, "cpu.shares"), "256");
            assert_eq!(root.value(&name, "cpu.cfs_quota_us"), "50000");
            assert_eq!(root.value(&name, "memory.limit_in_bytes"), (64u64 << 20).to_string());
            assert!(!root.value(&name, "cpuset.cpus").is_empty(), "an empty cpuset takes no process");
        }
        CgroupVersion::V2 => {
            assert_eq!(root.value(&name, "cpu.max"), "50000 100000");
            assert_eq!(root.value(&name, "memory.max"), (64u64 << 20).to_string());
        }
    }
    assert_eq!(root.value(&name, "pids.max"), "64");
    assert_eq!(root.value(tree.kubepods(), "pids.max"), "500");
}

/// `systemReservedCgroup` with everything reserved, or CPU alone.
fn reserved(root: &OwnRoot, is_cpu_only: bool) -> Reserved {
    let amounts = [("cpu", "250m"), ("memory", "64Mi"), ("pid", "99")];
    Reserved {
        daemons: Daemons::System,
        cgroup: format!("{}/system_daemons", root.cgroups.inner.settings.cgroup_root),
        amounts: amounts.map(|(name, text)| (name.to_owned(), Quantity::parse(text).unwrap())).into(),
        is_cpu_only,
    }
}

#[tokio::test]
async fn daemons_are_held_to_what_is_reserved_and_their_cgroup_has_to_be_there() {
    let root = OwnRoot::new("reserved");
    let cgroups = &root.cgroups;
    let error = cgroups.enforce_reserved(&reserved(&root, false)).await.unwrap_err().to_string();
    assert!(error.contains("system_daemons\" has some missing paths: /sys/fs/cgroup/"), "{error}");
    let name = CgroupName::of_path(&reserved(&root, false).cgroup).unwrap();
    cgroups.inner.create(&name).unwrap();
    let value = |v1: &str, v2: &str| match cgroups.version() {
        CgroupVersion::V1 => root.value(&name, v1),
        CgroupVersion::V2 => root.value(&name, v2),
    };
    let weight = |shares: u64| match cgroups.version() {
        CgroupVersion::V1 => shares.to_string(),
        CgroupVersion::V2 => plan::shares_to_weight(shares).to_string(),
    };
    cgroups.enforce_reserved(&reserved(&root, true)).await.unwrap();
    assert_eq!(value("cpu.shares", "cpu.weight"), weight(256));
    assert_eq!(value("pids.max", "pids.max"), "max");
    cgroups.enforce_reserved(&reserved(&root, false)).await.unwrap();
    assert_eq!(value("memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(value("pids.max", "pids.max"), "99");
    let nothing = Reserved { amounts: ResourceList::new(), ..reserved(&root, false) };
    let error = cgroups.enforce_reserved(&nothing).await.unwrap_err().to_string();
    assert!(error.contains("nothing is reserved for it"), "{error}");
}

#[tokio::test]
async fn shares_of_the_burstable_class_follow_its_pods() {
    let root = OwnRoot::new("sum");
    let cgroups = &root.cgroups;
    cgroups.ensure_roots().await.unwrap();
    let burstable = cgroups.inner.tree.qos(QosClass::Burstable);
    let shares = || match cgroups.version() {
        CgroupVersion::V1 => root.value(&burstable, "cpu.shares"),
        CgroupVersion::V2 => root.value(&burstable, "cpu.weight"),
    };
    let weight = |shares: u64| match cgroups.version() {
        CgroupVersion::V1 => shares.to_string(),
        CgroupVersion::V2 => plan::shares_to_weight(shares).to_string(),
    };
    let pods: Vec<Pod> = (0..8).map(|i| make_pod(&format!("u{i}"), json!({"cpu": "125m"}))).collect();
    futures_util::future::try_join_all(pods.iter().map(|pod| cgroups.ensure_pod(pod))).await.unwrap();
    assert_eq!(shares(), weight(1024));
    cgroups.remove_pod(&PodUid::new("u0"), QosClass::Burstable).await.unwrap();
    assert_eq!(shares(), weight(896));
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().expect("sleep is there")
}

#[tokio::test]
async fn removing_a_pod_kills_what_is_left_in_it() {
    let root = OwnRoot::new("kill");
    let cgroups = &root.cgroups;
    cgroups.ensure_roots().await.unwrap();
    let uid = PodUid::new("u1");
    cgroups.ensure_pod(&make_pod("u1", json!({"cpu": "100m"}))).await.unwrap();
    assert_eq!(cgroups.existing_pods().await.unwrap(), [(uid.clone(), QosClass::Burstable)].into());

    let mut child = sleeper();
    let name = cgroups.inner.tree.pod(&uid, QosClass::Burstable);
    for directory in root.directories(&name) {
        let container = directory.join("container");
        files::create_directory(&container).unwrap();
        if container.join("cpuset.cpus").exists() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                files::write(&container, file, &files::read(&directory, file).unwrap()).unwrap();
            }
        }
        files::write(&container, "cgroup.procs", &child.id().to_string()).unwrap();
    }
    // Reaped in the background, as the runtime's shim does.
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    cgroups.remove_pod(&uid, QosClass::Burstable).await.unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(reaper.join().unwrap().signal(), Some(9));
    assert!(root.directories(&name).iter().all(|d| !d.exists()));
    cgroups.remove_pod(&uid, QosClass::Burstable).await.expect("twice is once");
    assert!(cgroups.existing_pods().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_uid_that_leaves_the_tree_is_refused() {
    let root = OwnRoot::new("uid");
    let error = root.cgroups.remove_pod(&PodUid::new("x/../../.."), QosClass::Guaranteed).await.unwrap_err();
    assert!(matches!(error, CgroupError::Uid(_)), "{error}");
}

#[tokio::test]
async fn a_missing_root_is_named() {
    let mut settings = OwnRoot::new("tmp").cgroups.inner.settings.clone();
    settings.cgroup_root = "/nodelet-test-nowhere".to_owned();
    let error = Cgroups::new(settings).unwrap().ensure_roots().await.unwrap_err();
    assert!(error.to_string().contains("/nodelet-test-nowhere"), "{error}");
}
