//! What a scraper finds, from figures as the kernel has them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;

use super::super::usage::kernel::Traffic;
use super::super::usage::opened::Opened;
use super::super::usage::{ContainerUsage, FileSystem, PodName};
use super::*;
use crate::cgroup::figures::{Cpu, Disk, Limits, Memory, Pressure, Waited};
use crate::ids::PodUid;
use crate::node::facts::MachineFacts;

fn machine() -> MachineFacts {
    MachineFacts {
        machine_id: "m".into(),
        system_uuid: "s".into(),
        boot_id: "b".into(),
        kernel_version: String::new(),
        os_image: String::new(),
        architecture: "amd64",
        cpus: 4,
        memory: 8 << 30,
        swap: 0,
        max_pids: None,
        is_swap_on: false,
        hugepages: BTreeMap::new(),
        disk: None,
    }
}

fn figures() -> Figures {
    let limits = Limits { memory: Some(4096), swap: None, reservation: Some(0) };
    Figures {
        time: Timestamp::from_second(100).unwrap(),
        created: Some(Timestamp::from_second(50).unwrap()),
        cpu: Cpu {
            usage: 1_500_000_000,
            user: 1_000_000_000,
            periods: (9, 2),
            throttled: 500_000_000,
            period: 100_000,
            quota: Some(50_000),
            shares: 512,
            ..Cpu::default()
        },
        memory: Some(Memory { working_set: 42, faults: (7, 1), limits: Some(limits), ..Memory::default() }),
        processes: vec![1, 2],
        threads: (5, 64),
        disks: vec![Disk { device: (8, 0), bytes: (1, 2), operations: (3, 4) }],
        pressure: [
            Some(Pressure { some: Waited { total: 2_000_000_000, average: [0; 3] }, ..Default::default() }),
            None,
            None,
        ],
    }
}

fn surveyed(path: &str, place: Place, figures: Figures) -> Surveyed {
    Surveyed { path: path.to_owned(), place, figures }
}

fn pod() -> PodName {
    PodName { namespace: "n".into(), name: "p".into(), uid: "u".into() }
}

fn kernel() -> Kernel {
    let uid = PodUid::new("u");
    let unlimited = || {
        let mut found = figures();
        found.cpu.quota = None;
        found
    };
    let traffic = Traffic { interface: "eth0".into(), received: [10, 20, 30, 40], sent: [50, 60, 70, 80] };
    let file_system = FileSystem { capacity: 1000, available: 1, used: 900, inodes: 50, inodes_free: 5 };
    Kernel {
        cgroups: vec![
            surveyed("/", Place::Root, unlimited()),
            surveyed("/kubepods", Place::Pods, unlimited()),
            surveyed("/kubepods/podu", Place::Pod(uid.clone()), figures()),
            surveyed("/kubepods/podu/cid", Place::Container(uid.clone(), "cid".into()), figures()),
            surveyed("/kubepods/podu/sid", Place::Container(uid.clone(), "sid".into()), unlimited()),
            surveyed("/kubepods/podu/old", Place::Container(uid, "old".into()), figures()),
        ],
        sandboxes: [("sid".to_owned(), pod())].into(),
        traffic: [("/kubepods/podu/sid".to_owned(), vec![traffic])].into(),
        opened: [("/kubepods/podu/cid".to_owned(), Opened { files: 6, sockets: Some(3), limit: Some(1024) })].into(),
        disks: [((8, 0), "/dev/sda".to_owned())].into(),
        file_systems: [("/dev/sda1".to_owned(), file_system)].into(),
        image_device: "/dev/sda1".into(),
        machine: machine(),
        cores: (2, 1),
        sandbox_image: "pause:1".into(),
    }
}

fn usage() -> Usage {
    let layer = Some((7, 1));
    let container = ContainerUsage { id: "cid".into(), name: "c".into(), pod: pod(), layer, ..Default::default() };
    let mut usage = Usage { containers: vec![container], ..Usage::default() };
    usage.node.started = Timestamp::from_second(9).unwrap();
    usage
}

fn text() -> String {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "p", "namespace": "n", "uid": "u" },
        "spec": { "containers": [{ "name": "c", "image": "i:1" }] },
        "status": { "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": "1970-01-01T00:01:00Z" } } }] },
    }))
    .unwrap();
    let mut text = Text::default();
    let (kernel, usage) = (kernel(), usage());
    let now = Timestamp::from_second(200).unwrap();
    write(&mut text, Seen { kernel: &kernel, usage: &usage, pods: &[pod], now });
    String::from_utf8(text.finish().0.to_vec()).unwrap()
}

const CONTAINER: &str =
    "container=\"c\",id=\"/kubepods/podu/cid\",image=\"i:1\",name=\"cid\",namespace=\"n\",pod=\"p\"";
const SANDBOX: &str = "container=\"\",id=\"/kubepods/podu/sid\",image=\"pause:1\"";
const ROOT: &str = "container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"";

#[test]
fn a_container_has_the_series_and_labels_that_dashboards_join_on() {
    let text = text();
    let cpu = CONTAINER.replacen(',', ",cpu=\"total\",", 1);
    let on_disk = CONTAINER.replacen(',', ",device=\"/dev/sda\",", 1);
    let layer = CONTAINER.replacen(',', ",device=\"/dev/sda1\",", 1);
    let device = on_disk.replace("name=\"cid\"", "major=\"8\",minor=\"0\",name=\"cid\"");
    let device = device.replace("pod=\"p\"", "operation=\"Write\",pod=\"p\"");
    let failure = CONTAINER.replacen(',', ",failure_type=\"pgmajfault\",", 1) + ",scope=\"container\"";
    let limit = format!("{CONTAINER},ulimit=\"max_open_files\"");
    for (name, labels, value) in [
        ("container_cpu_usage_seconds_total", cpu.as_str(), "1.5 100000"),
        ("container_cpu_user_seconds_total", CONTAINER, "1 100000"),
        ("container_cpu_cfs_periods_total", CONTAINER, "9 100000"),
        ("container_cpu_cfs_throttled_periods_total", CONTAINER, "2 100000"),
        ("container_cpu_cfs_throttled_seconds_total", CONTAINER, "0.5 100000"),
        ("container_spec_cpu_period", CONTAINER, "100000"),
        ("container_spec_cpu_quota", CONTAINER, "50000"),
        ("container_spec_cpu_shares", CONTAINER, "512"),
        ("container_memory_working_set_bytes", CONTAINER, "42 100000"),
        ("container_memory_failures_total", &failure, "1 100000"),
        ("container_spec_memory_limit_bytes", CONTAINER, "4096"),
        ("container_spec_memory_swap_limit_bytes", CONTAINER, "0"),
        ("container_fs_writes_total", &on_disk, "4 100000"),
        ("container_fs_reads_bytes_total", &on_disk, "1 100000"),
        ("container_blkio_device_usage_total", &device, "2 100000"),
        ("container_fs_usage_bytes", &layer, "7 100000"),
        ("container_processes", CONTAINER, "2 100000"),
        ("container_file_descriptors", CONTAINER, "6 100000"),
        ("container_sockets", CONTAINER, "3 100000"),
        ("container_ulimits_soft", &limit, "1024 100000"),
        ("container_threads", CONTAINER, "5 100000"),
        ("container_threads_max", CONTAINER, "64 100000"),
        ("container_start_time_seconds", CONTAINER, "60"),
        ("container_last_seen", CONTAINER, "200 200000"),
        ("container_pressure_cpu_waiting_seconds_total", CONTAINER, "2 100000"),
        ("container_oom_events_total", CONTAINER, "0 100000"),
    ] {
        let line = format!("{name}{{{labels}}} {value}");
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[test]
fn traffic_is_the_sandboxs_and_quotas_are_told_where_there_are_some() {
    let text = text();
    let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    let dropped = lines("container_network_transmit_packets_dropped_total{");
    let labels = format!("{SANDBOX},interface=\"eth0\",name=\"sid\",namespace=\"n\",pod=\"p\"");
    assert_eq!(dropped, [format!("container_network_transmit_packets_dropped_total{{{labels}}} 80 100000")]);
    assert_eq!(lines("container_network_receive_packets_total{").len(), 1);
    assert_eq!(lines("container_spec_cpu_quota{").len(), 2, "the pod and its container");
    assert_eq!(lines("container_cpu_cfs_periods_total{").len(), 2);
    assert!(!text.contains("/kubepods/podu/old"), "what the runtime does not run");
    assert!(lines("container_start_time_seconds{").iter().any(|line| line.contains(SANDBOX) && line.ends_with(" 50")));
}

#[test]
fn the_node_and_all_pods_are_there_without_names() {
    let text = text();
    for line in [
        format!("container_spec_memory_limit_bytes{{{ROOT}}} 8589934592"),
        format!("container_start_time_seconds{{{ROOT}}} 9"),
        format!("container_fs_limit_bytes{{{}}} 1000 100000", ROOT.replacen(',', ",device=\"/dev/sda1\",", 1)),
        format!("container_memory_working_set_bytes{{{}}} 42 100000", ROOT.replace("\"/\"", "\"/kubepods\"")),
        "machine_cpu_cores{boot_id=\"b\",machine_id=\"m\",system_uuid=\"s\"} 4".to_owned(),
        "machine_memory_bytes{boot_id=\"b\",machine_id=\"m\",system_uuid=\"s\"} 8589934592".to_owned(),
        "container_scrape_error 0".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let pod = "container_memory_working_set_bytes{container=\"\",id=\"/kubepods/podu\",image=\"\",name=\"\",namespace=\"n\",pod=\"p\"}";
    assert!(text.contains(pod), "{text}");
}

#[test]
fn no_series_is_there_twice_and_labels_are_in_order() {
    let text = text();
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once('}').map_or(line, |(series, _)| series);
        assert!(seen.insert(series.to_owned()), "{series} is there twice");
        let Some((_, labels)) = series.split_once('{') else { continue };
        let names: Vec<&str> =
            labels.split("\",").filter_map(|label| label.split_once('=')).map(|(name, _)| name).collect();
        assert!(names.is_sorted(), "{series}");
    }
}
