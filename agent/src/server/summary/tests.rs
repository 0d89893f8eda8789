//! What the summary says.

use super::super::usage::PodName;
use super::*;

fn usage() -> Usage {
    let pod = PodName { namespace: "n".into(), name: "p".into(), uid: "u".into() };
    let cpu = Cpu { total: 5, ..Cpu::default() };
    let container = ContainerUsage {
        name: "c".into(),
        pod: pod.clone(),
        cpu: Some(cpu),
        layer: Some((7, 1)),
        logs: Some((30, 2)),
        ..ContainerUsage::default()
    };
    let network = vec![Interface { name: "eth0".into(), received: (1, 0), sent: (2, 0) }];
    Usage {
        pods: vec![PodUsage { pod, network, ..PodUsage::default() }],
        containers: vec![container],
        ..Usage::default()
    }
}

fn of(usage: &Usage, pods: &[Pod], disks: &Disks, only_cpu_and_memory: bool) -> Value {
    summary("node", Seen { usage, system: &[], disks, pods, only_cpu_and_memory })
}

#[test]
fn what_was_not_measured_is_left_out() {
    let found = of(&usage(), &[], &Disks::new(), false);
    let container = &found["pods"][0]["containers"][0];
    assert_eq!(container["cpu"]["usageCoreNanoSeconds"], 5);
    assert!(container["cpu"].get("usageNanoCores").is_none());
    assert!(container.get("memory").is_none());
    assert_eq!(container["rootfs"]["usedBytes"], 7);
    assert_eq!(container["logs"]["usedBytes"], 30);
    assert_eq!(found["pods"][0]["ephemeral-storage"]["usedBytes"], 37);
    assert_eq!(found["pods"][0]["network"]["interfaces"][0]["txBytes"], 2);
    assert_eq!(found["node"]["nodeName"], "node");
}

#[test]
fn swap_and_pressure_are_shown_where_they_were_measured() {
    let mut usage = usage();
    let some = Waited { total: 5, average: [125, 7, 0] };
    let measured = Pressure { some, full: Waited::default() };
    usage.node.io = Some((jiff::Timestamp::UNIX_EPOCH, measured));
    usage.node.memory.pressure = Some(measured);
    usage.containers[0].swap = Some(Swap { used: 9, ..Swap::default() });
    let found = of(&usage, &[], &Disks::new(), false);
    assert_eq!(found["node"]["io"]["psi"]["some"], json!({ "total": 5, "avg10": 1.25, "avg60": 0.07, "avg300": 0.0 }));
    assert_eq!(found["node"]["memory"]["psi"]["full"]["total"], 0);
    assert_eq!(found["pods"][0]["containers"][0]["swap"]["swapUsageBytes"], 9);
    assert!(found["node"].get("swap").is_none(), "a node without swap has no zero");
    assert!(found["node"]["cpu"].get("psi").is_none());
}

#[test]
fn cpu_and_memory_alone_when_asked_for() {
    let found = of(&usage(), &[], &Disks::new(), true);
    assert!(found["node"].get("fs").is_none());
    assert!(found["pods"][0].get("network").is_none());
    assert!(found["pods"][0]["containers"][0].get("rootfs").is_none());
}

fn figures(used: u64) -> (jiff::Timestamp, VolumeFigures) {
    let figures = VolumeFigures { capacity: 1000, available: 900, used, inodes: 50, inodes_free: 40, inodes_used: 3 };
    (jiff::Timestamp::UNIX_EPOCH, figures)
}

#[test]
fn volumes_have_their_claims_and_those_on_the_nodes_disk_count_for_the_pod() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "p", "namespace": "n", "uid": "u" },
        "spec": { "containers": [], "volumes": [
            { "name": "scratch", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory" } },
            { "name": "map", "configMap": { "name": "m" } },
            { "name": "token", "projected": {} },
            { "name": "data", "persistentVolumeClaim": { "claimName": "c" } },
            { "name": "own", "ephemeral": {} },
            { "name": "later", "emptyDir": {} }] },
    }))
    .unwrap();
    let volumes = [("scratch", 100), ("memory", 200), ("map", 300), ("token", 400), ("data", 500), ("own", 600)];
    let volumes = volumes.map(|(name, used)| (name.to_owned(), figures(used))).into();
    let disks: Disks = [(PodUid::new("u"), PodDisk { volumes, hosts: Some(4) })].into();
    let found = of(&usage(), &[pod], &disks, false);
    let pod = &found["pods"][0];
    let volume = |name: &str| pod["volume"].as_array().unwrap().iter().find(|volume| volume["name"] == name).cloned();
    let expected = json!({
        "time": "1970-01-01T00:00:00Z", "name": "data", "pvcRef": { "name": "c", "namespace": "n" },
        "availableBytes": 900, "capacityBytes": 1000, "usedBytes": 500, "inodes": 50, "inodesFree": 40, "inodesUsed": 3,
    });
    assert_eq!(volume("data"), Some(expected));
    assert_eq!(volume("own").unwrap()["pvcRef"]["name"], "p-own");
    assert!(volume("scratch").unwrap().get("pvcRef").is_none());
    assert_eq!(volume("later"), None, "what was not measured");
    let storage = &pod["ephemeral-storage"];
    assert_eq!(storage["usedBytes"], 7 + 30 + 100 + 300 + 4, "layer, logs, emptyDir, ConfigMap, hosts file");
    assert_eq!(storage["inodesUsed"], 1 + 2 + 3 + 3 + 1);
    assert!(of(&usage(), &[], &disks, true)["pods"][0].get("volume").is_none());
}

#[test]
fn the_agent_the_runtime_and_all_pods_have_no_disks() {
    let memory = Memory { working_set: 8, available: Some(2), ..Memory::default() };
    let (memory, swap) = (Some(memory), Some(Swap::default()));
    let system = [SystemUsage { name: "pods", memory, swap, ..SystemUsage::default() }];
    let (usage, disks) = (usage(), Disks::new());
    let of = |only_cpu_and_memory| {
        summary("node", Seen { usage: &usage, system: &system, disks: &disks, pods: &[], only_cpu_and_memory })
    };
    let (whole, short) = (of(false), of(true));
    let pods = &whole["node"]["systemContainers"][0];
    assert_eq!((&pods["name"], &pods["memory"]["availableBytes"]), (&json!("pods"), &json!(2)));
    assert!(pods.get("rootfs").is_none() && pods.get("logs").is_none() && pods.get("swap").is_some());
    assert!(short["node"]["systemContainers"][0].get("swap").is_none());
}
