use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::ids::NodeName;
use crate::node::{Handler, NodeImage};
use crate::quantity::Quantity;

pub(in crate::node) fn settings() -> NodeSettings {
    NodeSettings {
        name: NodeName::new("n"),
        hostname: "n".into(),
        node_ips: Vec::new(),
        external_cloud: false,
        labels: Vec::new(),
        taints: Vec::new(),
        provider_id: String::new(),
        register: true,
        kubelet_version: "v1.37.0".into(),
        port: 10250,
        max_pods: 110,
        pods_per_core: 0,
        reserved: Vec::new(),
        eviction_hard: vec![("memory.available".into(), "100Mi".into()), ("nodefs.available".into(), "10%".into())],
        max_images: 50,
        status_update: Duration::from_secs(10),
        status_report: Duration::from_secs(300),
        lease_duration: Duration::from_secs(40),
        root_dir: PathBuf::from("/var/lib/kubelet"),
    }
}

pub(in crate::node) fn facts() -> MachineFacts {
    MachineFacts { cpus: 4, memory: 8 << 30, disk: Some(100 << 30), architecture: "amd64", ..MachineFacts::default() }
}

fn healthy() -> RuntimeHealth {
    RuntimeHealth {
        runtime_ready: Ok(()),
        network_ready: Ok(()),
        name: "containerd".into(),
        version: "v2.1.4".into(),
        handlers: Vec::new(),
        supplemental_groups_policy: Some(true),
    }
}

struct Case {
    settings: NodeSettings,
    facts: MachineFacts,
    addresses: Result<Vec<IpAddr>, String>,
    runtime: RuntimeHealth,
    extras: NodeExtras,
    shutting_down: bool,
    previous: Option<NodeStatus>,
    now: i64,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            settings: settings(),
            facts: facts(),
            addresses: Ok(vec!["10.0.0.5".parse().expect("ip")]),
            runtime: healthy(),
            extras: NodeExtras::default(),
            shutting_down: false,
            previous: None,
            now: 1000,
        }
    }
}

impl Case {
    fn build(&self) -> NodeStatus {
        build(&Inputs {
            settings: &self.settings,
            facts: &self.facts,
            addresses: &self.addresses,
            runtime: &self.runtime,
            extras: &self.extras,
            shutting_down: self.shutting_down,
            previous: self.previous.as_ref(),
            now: &time(self.now),
        })
    }

    fn condition(&self, kind: &str) -> String {
        let conditions = self.build().conditions.expect("conditions");
        let condition = conditions.iter().find(|condition| condition.type_ == kind).expect("condition");
        format!(
            "{} {}: {}",
            condition.status,
            condition.reason.as_deref().unwrap_or_default(),
            condition.message.as_deref().unwrap_or_default()
        )
    }
}

fn time(seconds: i64) -> Time {
    Time(k8s_openapi::jiff::Timestamp::from_second(seconds).expect("time"))
}

#[test]
fn conditions_have_kubelets_words_and_ready_is_last() {
    let case = Case::default();
    let types: Vec<String> = case.build().conditions.expect("conditions").into_iter().map(|c| c.type_).collect();
    assert_eq!(types, ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
    assert_eq!(case.condition("Ready"), "True KubeletReady: kubelet is posting ready status");
    assert_eq!(
        case.condition("MemoryPressure"),
        "False KubeletHasSufficientMemory: kubelet has sufficient memory available"
    );
    assert_eq!(case.condition("DiskPressure"), "False KubeletHasNoDiskPressure: kubelet has no disk pressure");
    assert_eq!(case.condition("PIDPressure"), "False KubeletHasSufficientPID: kubelet has sufficient PID available");
    let extras = NodeExtras { memory_pressure: true, disk_pressure: true, pid_pressure: true, ..NodeExtras::default() };
    let case = Case { extras, ..Case::default() };
    assert_eq!(
        case.condition("MemoryPressure"),
        "True KubeletHasInsufficientMemory: kubelet has insufficient memory available"
    );
    assert_eq!(case.condition("DiskPressure"), "True KubeletHasDiskPressure: kubelet has disk pressure");
    assert_eq!(case.condition("PIDPressure"), "True KubeletHasInsufficientPID: kubelet has insufficient PID available");
}

#[test]
fn each_thing_that_ready_needs_is_named_when_it_is_missing() {
    let ready = |case: Case| case.condition("Ready");
    let network = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:x";
    let runtime = RuntimeHealth { network_ready: Err(network.into()), ..healthy() };
    assert_eq!(
        ready(Case { runtime: runtime.clone(), ..Case::default() }),
        format!("False KubeletNotReady: {network}")
    );
    assert_eq!(
        ready(Case { runtime, shutting_down: true, ..Case::default() }),
        format!("False KubeletNotReady: [{network}, node is shutting down]")
    );
    assert_eq!(
        ready(Case { runtime: RuntimeHealth::down("container runtime is down"), ..Case::default() }),
        "False KubeletNotReady: container runtime is down"
    );
    assert_eq!(
        ready(Case { facts: MachineFacts { disk: None, ..facts() }, ..Case::default() }),
        "False KubeletNotReady: missing node capacity for resources: ephemeral-storage"
    );
    assert_eq!(
        ready(Case { addresses: Err("no address".into()), ..Case::default() }),
        "False KubeletNotReady: no address"
    );
}

#[test]
fn a_transition_time_changes_with_the_status_only() {
    let first = Case::default().build();
    let mut case = Case { previous: Some(first), now: 2000, ..Case::default() };
    let ready = |case: &Case| case.build().conditions.expect("conditions").pop().expect("ready");
    assert_eq!(ready(&case).last_transition_time, Some(time(1000)));
    assert_eq!(ready(&case).last_heartbeat_time, Some(time(2000)));
    case.shutting_down = true;
    assert_eq!(ready(&case).last_transition_time, Some(time(2000)));
}

#[test]
fn allocatable_is_capacity_less_what_is_kept() {
    let mut case = Case::default();
    case.settings.reserved = vec![
        ("cpu".into(), Quantity::parse("500m").expect("quantity")),
        ("memory".into(), Quantity::parse("1Gi").expect("quantity")),
    ];
    case.facts.hugepages = BTreeMap::from([(2 << 20, 256), (1 << 30, 0)]);
    let status = case.build();
    let (capacity, allocatable) = (status.capacity.expect("capacity"), status.allocatable.expect("allocatable"));
    let both = |name: &str| format!("{} {}", capacity[name].0, allocatable[name].0);
    assert_eq!(both("cpu"), "4 3500m");
    // 8 Gi less 1 Gi reserved, 100 Mi eviction threshold and 512 Mi of huge pages.
    assert_eq!(both("memory"), "8Gi 6556Mi");
    assert_eq!(both("pods"), "110 110");
    // 10 % in single precision, as kubelet computes it.
    assert_eq!(both("ephemeral-storage"), "100Gi 96636764000");
    assert_eq!(both("hugepages-2Mi"), "512Mi 512Mi");
    assert_eq!(both("hugepages-1Gi"), "0 0");
    case.settings.pods_per_core = 10;
    assert_eq!(case.build().capacity.expect("capacity")["pods"].0, "40");
    case.settings.reserved = vec![("memory".into(), Quantity::parse("1Ti").expect("quantity"))];
    assert_eq!(case.build().allocatable.expect("allocatable")["memory"].0, "0", "never negative");
}

#[test]
fn addresses_end_with_the_hostname_and_survive_a_failed_look_up() {
    let text = |status: &NodeStatus| {
        let list = status.addresses.iter().flatten().map(|a| format!("{}={}", a.type_, a.address));
        list.collect::<Vec<_>>().join(" ")
    };
    let status = Case::default().build();
    assert_eq!(text(&status), "InternalIP=10.0.0.5 Hostname=n");
    let failed = Case { addresses: Err("gone".into()), previous: Some(status), ..Case::default() };
    assert_eq!(text(&failed.build()), "InternalIP=10.0.0.5 Hostname=n");
    let mut cloud = Case::default();
    cloud.settings.external_cloud = true;
    assert_eq!(text(&cloud.build()), "Hostname=n", "the cloud controller says the rest");
}

#[test]
fn the_largest_images_are_listed_with_at_most_five_names() {
    let image = |size, names: usize| NodeImage { names: (0..names).map(|n| format!("i{size}:{n}")).collect(), size };
    let mut case = Case::default();
    case.extras.images = Some([image(1, 1), image(3, 7), image(2, 1)].into());
    case.settings.max_images = 2;
    let images = case.build().images.expect("images");
    assert_eq!(images.iter().map(|image| image.size_bytes).collect::<Vec<_>>(), [Some(3), Some(2)]);
    assert_eq!(images[0].names.as_ref().map(Vec::len), Some(5));
    case.settings.max_images = -1;
    assert_eq!(case.build().images.expect("images").len(), 3);
}

#[test]
fn the_order_of_runtime_handlers_does_not_look_like_a_change() {
    let handler = |name: &str| Handler { name: name.into(), recursive_read_only_mounts: true, user_namespaces: false };
    let with = |names: [&str; 2]| {
        let runtime = RuntimeHealth { handlers: names.map(handler).to_vec(), ..healthy() };
        Case { runtime, ..Case::default() }.build().runtime_handlers
    };
    assert_eq!(with(["", "runc"]), with(["runc", ""]));
}

#[test]
fn the_runtime_version_stays_known_while_the_runtime_restarts() {
    let first = Case::default().build();
    assert_eq!(first.node_info.as_ref().expect("info").container_runtime_version, "containerd://2.1.4");
    let case = Case { runtime: RuntimeHealth::down("x"), previous: Some(first), ..Case::default() };
    let info = case.build().node_info.expect("info");
    assert_eq!(info.container_runtime_version, "containerd://2.1.4");
    assert_eq!(info.kube_proxy_version, "");
}
