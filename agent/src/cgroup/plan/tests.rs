use super::*;
use serde_json::{Value, json};

pub(in crate::cgroup) fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": "u1", "name": "p"}, "spec": spec})).unwrap()
}

pub(in crate::cgroup) fn container(name: &str, requests: Value, limits: Value) -> Value {
    json!({"name": name, "resources": {"requests": requests, "limits": limits}})
}

pub(in crate::cgroup) fn facts() -> ContainerFacts {
    ContainerFacts {
        memory_capacity: 4_000_000_000,
        version: CgroupVersion::V1,
        cfs_quota: CfsQuota::Enforced { period: DEFAULT_PERIOD },
        swap: swap::SwapBehavior::Unaccounted,
        memory_qos: MemoryQos::On { is_tiered: false, throttling: None },
        huge_page_sizes: vec![2 << 20],
        single_process_oom_kill: true,
    }
}

#[test]
fn cpu_becomes_shares_and_quota_as_in_kubelet() {
    for (milli, shares, quota) in [
        (0, 2, 0),
        (1, 2, 1000),
        (5, 5, 1000),
        (9, 9, 1000),
        (10, 10, 1000),
        (200, 204, 20_000),
        (500, 512, 50_000),
        (1000, 1024, 100_000),
        (1500, 1536, 150_000),
        (300_000, 262_144, 30_000_000),
    ] {
        assert_eq!(milli_cpu_to_shares(milli), shares, "{milli}m");
        assert_eq!(milli_cpu_to_quota(milli, DEFAULT_PERIOD), quota, "{milli}m");
    }
    assert_eq!(milli_cpu_to_quota(1500, 5_000), 7_500);
}

#[test]
fn shares_become_weight_linearly() {
    for (shares, weight) in [(2, 1), (102, 4), (204, 8), (1024, 39), (2048, 79), (262_144, 10_000), (0, 1)] {
        assert_eq!(shares_to_weight(shares), weight, "{shares}");
    }
}

#[test]
fn qos_classes_follow_requests_and_limits() {
    let full = json!({"cpu": "1", "memory": "1Gi"});
    for (name, class, spec) in [
        ("nothing", QosClass::BestEffort, json!({"containers": [{"name": "a"}]})),
        ("equal", QosClass::Guaranteed, json!({"containers": [container("a", full.clone(), full.clone())]})),
        (
            "equal in value, not in text",
            QosClass::Guaranteed,
            json!({"containers": [container("a", json!({"cpu": "1000m", "memory": "1024Mi"}), full.clone())]}),
        ),
        (
            "cpu only",
            QosClass::Burstable,
            json!({"containers": [container("a", json!({"cpu": "1"}), json!({"cpu": "1"}))]}),
        ),
        (
            "one of two",
            QosClass::Burstable,
            json!({"containers": [container("a", full.clone(), full.clone()), {"name": "b"}]}),
        ),
        (
            "init container differs",
            QosClass::Burstable,
            json!({"initContainers": [{"name": "i"}], "containers": [container("a", full.clone(), full.clone())]}),
        ),
        (
            "pod level",
            QosClass::Guaranteed,
            json!({"resources": {"requests": full, "limits": full}, "containers": [{"name": "a"}]}),
        ),
        (
            "pod level of an extended resource only",
            QosClass::BestEffort,
            json!({"resources": {"limits": {"example.com/gpu": "1"}}, "containers": [{"name": "a"}]}),
        ),
    ] {
        assert_eq!(qos_class(&pod(spec)), class, "{name}");
    }
}

#[test]
fn a_sidecar_adds_to_the_containers_and_to_later_init_containers() {
    let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
    let cpu = |init: Value| {
        let spec = json!({"initContainers": init, "containers": [container("a", json!({"cpu": "200m"}), json!({}))]});
        amount(&pod_requests(&pod(spec), Overhead::Included), CPU).milli_value()
    };
    let init = container("i", json!({"cpu": "500m"}), json!({}));
    assert_eq!(cpu(json!([sidecar])), 300);
    assert_eq!(cpu(json!([sidecar, init])), 600);
    assert_eq!(cpu(json!([init, sidecar])), 500);
}

#[test]
fn a_pod_is_limited_only_if_every_container_is() {
    let limited = container("a", json!({"cpu": "100m"}), json!({"cpu": "200m", "memory": "64Mi"}));
    let both = pod(json!({"containers": [limited, limited], "overhead": {"cpu": "50m", "memory": "16Mi"}}));
    let quota = CfsQuota::Enforced { period: DEFAULT_PERIOD };
    let values = pod_values(&both, quota, Some(100));
    assert_eq!(values.cpu_shares, Some(256), "200m and 50m of overhead");
    assert_eq!(values.cpu_quota, Some(45_000));
    assert_eq!(values.memory, Some(144 << 20));
    assert_eq!(values.pids, Some(100));

    let one = pod(json!({"containers": [limited, {"name": "b"}]}));
    let values = pod_values(&one, quota, None);
    assert_eq!((values.cpu_quota, values.memory), (None, None));
    assert_eq!(pod_memory_limit(&one), None);

    let by_pod = pod(json!({"containers": [limited, {"name": "b"}], "resources": {"limits": {"memory": "1Gi"}}}));
    assert_eq!(pod_memory_limit(&by_pod), Some(1 << 30));

    let best_effort = pod_values(&pod(json!({"containers": [{"name": "a"}]})), quota, None);
    assert_eq!(best_effort, Values { cpu_shares: Some(2), ..Values::default() });
}

#[test]
fn without_cfs_quota_the_pod_is_unlimited() {
    let full = json!({"cpu": "1", "memory": "1Gi"});
    let values = pod_values(&pod(json!({"containers": [container("a", full.clone(), full)]})), CfsQuota::Off, None);
    assert_eq!(values.cpu_quota, Some(-1));
}

/// The table of kubelet's own policy test: 4 GB of memory.
#[test]
fn oom_scores_are_kubelets() {
    let score = |spec: Value, name: &str| {
        let pod = pod(spec);
        let container = init_and_regular(&pod).find(|c| c.name == name).unwrap().clone();
        oom_score_adj(&pod, &container, 4_000_000_000)
    };
    let memory = |amount: &str| json!({"memory": amount});
    let full = json!({"cpu": "1", "memory": "1G"});
    assert_eq!(score(json!({"containers": [{"name": "a"}]}), "a"), 1000);
    assert_eq!(score(json!({"containers": [container("a", full.clone(), full)]}), "a"), -997);
    assert_eq!(score(json!({"containers": [container("a", json!({"cpu": "100m"}), json!({}))]}), "a"), 999);
    assert_eq!(score(json!({"containers": [container("a", memory("2G"), json!({}))]}), "a"), 500);
    assert_eq!(score(json!({"containers": [container("a", memory("3999999999"), json!({}))]}), "a"), 3);
    let critical = json!({"priorityClassName": "system-node-critical", "priority": 2_000_001_000,
        "containers": [{"name": "a"}]});
    assert_eq!(score(critical, "a"), -997);
    // A user may write the class name, but only the API server may set the priority that belongs to it.
    assert_eq!(score(json!({"priorityClassName": "system-node-critical", "containers": [{"name": "a"}]}), "a"), 1000);

    let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"memory": "400M"}}});
    let with_sidecar = json!({"initContainers": [sidecar], "containers": [container("a", memory("2G"), json!({}))]});
    assert_eq!(score(with_sidecar, "s"), 500, "a sidecar lives as long as the container it serves");

    let by_pod = json!({"resources": {"requests": {"memory": "2G"}},
        "containers": [container("a", memory("1G"), json!({})), {"name": "b"}]});
    assert_eq!(score(by_pod.clone(), "a"), 625, "1 G of its own and half of the unassigned 1 G");
    assert_eq!(score(by_pod, "b"), 875);
}

#[test]
fn a_container_without_request_gets_shares_by_its_limit() {
    let pod = pod(json!({"containers": [container("a", json!({}), json!({"cpu": "500m", "memory": "64Mi"}))]}));
    let resources = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &facts());
    assert_eq!(resources.cpu_shares, 512);
    assert_eq!((resources.cpu_quota, resources.cpu_period), (50_000, 100_000));
    assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
    assert_eq!(resources.hugepage_limits[0].page_size, "2MB");
    assert_eq!(resources.hugepage_limits[0].limit, 0);
    assert!(resources.unified.is_empty());
}

#[test]
fn a_container_without_limit_takes_that_of_its_pod() {
    let pod = pod(json!({"resources": {"limits": {"cpu": "2", "memory": "1Gi"}}, "containers": [{"name": "a"}]}));
    let resources = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &facts());
    assert_eq!(resources.cpu_quota, 200_000);
    assert_eq!(resources.memory_limit_in_bytes, 1 << 30);
}

#[test]
fn the_sandbox_is_told_the_pod_without_overhead_and_the_overhead() {
    let pod = pod(json!({"overhead": {"cpu": "250m", "memory": "32Mi"},
        "containers": [container("a", json!({"cpu": "1"}), json!({"cpu": "2", "memory": "1Gi"}))]}));
    let (resources, overhead) = sandbox_resources(&pod, &facts());
    assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.memory_limit_in_bytes), (1024, 200_000, 1 << 30));
    assert_eq!((overhead.cpu_shares, overhead.cpu_quota, overhead.memory_limit_in_bytes), (256, 25_000, 32 << 20));
}

#[test]
fn all_pods_are_held_to_what_the_node_has_for_them() {
    let amounts = [("cpu", "3500m"), ("memory", "7Gi"), ("pid", "31768"), ("pods", "110"), ("hugepages-2Mi", "8Mi")];
    let list: ResourceList =
        amounts.map(|(name, text)| (name.to_owned(), Quantity::parse(text).unwrap())).into_iter().collect();
    let expected = Values {
        cpu_shares: Some(3584),
        memory: Some(7 << 30),
        pids: Some(31_768),
        huge_pages: [(2 << 20, 8 << 20)].into(),
        ..Values::default()
    };
    assert_eq!(kubepods_values(&list), expected, "no quota: idle CPU is free");
}

#[test]
fn daemons_are_held_to_what_is_reserved_for_them_or_to_cpu_alone() {
    let list = |amounts: &[(&str, &str)]| -> ResourceList {
        amounts.iter().map(|(name, text)| ((*name).to_owned(), Quantity::parse(text).unwrap())).collect()
    };
    let all = list(&[("cpu", "500m"), ("memory", "1Gi"), ("pid", "1000"), ("ephemeral-storage", "1Gi")]);
    let values = reserved_values(&all, false, MemoryQos::Off);
    assert_eq!((values.cpu_shares, values.memory, values.pids), (Some(512), Some(1 << 30), Some(1000)));
    let cpu = Values { cpu_shares: Some(512), ..Values::default() };
    assert_eq!(reserved_values(&all, true, MemoryQos::On { is_tiered: false, throttling: None }), cpu);
    assert_eq!(reserved_values(&list(&[("memory", "1Gi")]), true, MemoryQos::Off), Values::default());
    let protected = reserved_values(&all, false, MemoryQos::On { is_tiered: false, throttling: None });
    assert_eq!(protected.unified["memory.min"], (1_i64 << 30).to_string());
}

#[test]
fn a_whole_container_is_killed_on_v2_unless_single_processes_are_asked_for() {
    let pod = pod(json!({"containers": [{"name": "a"}]}));
    for (version, single_process_oom_kill, group) in [
        (CgroupVersion::V2, false, Some("1")),
        (CgroupVersion::V2, true, None),
        (CgroupVersion::V1, false, None),
        (CgroupVersion::V1, true, None),
    ] {
        let facts = ContainerFacts { version, single_process_oom_kill, ..facts() };
        let told = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &facts);
        let written = told.unified.get("memory.oom.group").map(String::as_str);
        assert_eq!(written, group, "{version:?} {single_process_oom_kill}");
    }
}

proptest::proptest! {
    #[test]
    fn kernel_ranges_are_never_left(milli in 0i64..i64::MAX, period in 1_000u64..1_000_000) {
        let shares = milli_cpu_to_shares(milli);
        proptest::prop_assert!((MIN_SHARES..=MAX_SHARES).contains(&shares));
        proptest::prop_assert!((1..=10_000).contains(&shares_to_weight(shares)));
        let quota = milli_cpu_to_quota(milli, period);
        proptest::prop_assert!(quota >= 1_000 || (milli == 0 && quota == 0));
    }
}
