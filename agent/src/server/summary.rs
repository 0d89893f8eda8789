//! `/stats/summary`: usage as JSON. Pure.
//!
//! Source: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`. Figures that were not measured are left out, never zero: an autoscaler takes
//! a zero for an idle container.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::usage::{ContainerUsage, Cpu, FileSystem, Interface, Memory, PodUsage, Pressure, Swap, Usage, Waited};
use crate::logs::choose::statuses;
use crate::pod::spec;

/// The summary; with `only_cpu_and_memory` nothing but these.
pub fn summary(node_name: &str, usage: &Usage, pods: &[Pod], only_cpu_and_memory: bool) -> Value {
    let node = &usage.node;
    let mut out = json!({
        "nodeName": node_name,
        "startTime": node.started,
        "cpu": cpu(&node.cpu),
        "memory": memory(&node.memory),
    });
    if !only_cpu_and_memory {
        if let Some(found) = &node.swap {
            out["swap"] = swap(found);
        }
        if let Some((time, found)) = &node.io {
            out["io"] = json!({ "time": time, "psi": pressure(found) });
        }
        out["network"] = network(&node.network, node.cpu.time);
        out["fs"] = file_system(&node.root, node.root.used, node.cpu.time);
        out["rlimit"] = json!({ "time": node.cpu.time, "maxpid": node.processes.0, "curproc": node.processes.1 });
        if let Some((images, used)) = &node.images {
            let images = file_system(images, *used, node.cpu.time);
            out["runtime"] = json!({ "imageFs": images, "containerFs": images });
        }
    }
    let of_pod = |found: &PodUsage| {
        let pod = pods.iter().find(|pod| spec::uid(pod).as_str() == found.pod.uid);
        pod_summary(found, pod, usage, only_cpu_and_memory)
    };
    json!({ "node": out, "pods": usage.pods.iter().map(of_pod).collect::<Vec<_>>() })
}

fn pod_summary(found: &PodUsage, pod: Option<&Pod>, usage: &Usage, only_cpu_and_memory: bool) -> Value {
    let started = pod.and_then(|pod| pod.status.as_ref()?.start_time.clone());
    let containers = usage.containers.iter().filter(|container| container.pod.uid == found.pod.uid);
    let containers: Vec<Value> =
        containers.map(|container| container_summary(container, pod, usage, only_cpu_and_memory)).collect();
    let mut out = json!({
        "podRef": { "name": found.pod.name, "namespace": found.pod.namespace, "uid": found.pod.uid },
        "startTime": started,
        "containers": containers,
    });
    if let Some(found) = &found.cpu {
        out["cpu"] = cpu(found);
    }
    if let Some(found) = &found.memory {
        out["memory"] = memory(found);
    }
    if only_cpu_and_memory {
        return out;
    }
    let time = found.cpu.map_or(usage.node.cpu.time, |cpu| cpu.time);
    if !found.network.is_empty() {
        out["network"] = network(&found.network, time);
    }
    if let Some(count) = found.processes {
        out["process_stats"] = json!({ "process_count": count });
    }
    let layers = usage.containers.iter().filter(|container| container.pod.uid == found.pod.uid);
    let used: u64 = layers.map(|one| one.layer.map_or(0, |(bytes, _)| bytes) + one.logs.unwrap_or(0)).sum();
    out["ephemeral-storage"] = file_system(&usage.node.root, used, time);
    out
}

fn container_summary(found: &ContainerUsage, pod: Option<&Pod>, usage: &Usage, only_cpu_and_memory: bool) -> Value {
    let status = pod.and_then(|pod| statuses(pod).find(|status| status.name == found.name));
    let running = status.and_then(|status| status.state.as_ref()?.running.as_ref()?.started_at.clone());
    let mut out = json!({ "name": found.name, "startTime": running });
    if let Some(found) = &found.cpu {
        out["cpu"] = cpu(found);
    }
    if let Some(found) = &found.memory {
        out["memory"] = memory(found);
    }
    if only_cpu_and_memory {
        return out;
    }
    if let Some(found) = &found.swap {
        out["swap"] = swap(found);
    }
    if let Some((time, found)) = &found.io {
        out["io"] = json!({ "time": time, "psi": pressure(found) });
    }
    if let Some(bytes) = found.logs {
        let time = found.cpu.map_or(usage.node.cpu.time, |cpu| cpu.time);
        out["logs"] = file_system(&usage.node.root, bytes, time);
    }
    if let Some((bytes, inodes)) = found.layer {
        let time = found.cpu.map_or(usage.node.cpu.time, |cpu| cpu.time);
        let images = usage.node.images.map_or(usage.node.root, |(images, _)| images);
        out["rootfs"] = file_system(&images, bytes, time);
        out["rootfs"]["inodesUsed"] = inodes.into();
    }
    out
}

fn cpu(found: &Cpu) -> Value {
    let mut out = json!({ "time": found.time, "usageCoreNanoSeconds": found.total });
    if let Some(rate) = found.rate {
        out["usageNanoCores"] = rate.into();
    }
    if let Some(found) = &found.pressure {
        out["psi"] = pressure(found);
    }
    out
}

fn memory(found: &Memory) -> Value {
    let mut out = json!({
        "time": found.time,
        "usageBytes": found.usage,
        "workingSetBytes": found.working_set,
        "rssBytes": found.rss,
        "pageFaults": found.faults.0,
        "majorPageFaults": found.faults.1,
    });
    if let Some(available) = found.available {
        out["availableBytes"] = available.into();
    }
    if let Some(found) = &found.pressure {
        out["psi"] = pressure(found);
    }
    out
}

fn swap(found: &Swap) -> Value {
    let mut out = json!({ "time": found.time, "swapUsageBytes": found.used });
    if let Some(available) = found.available {
        out["swapAvailableBytes"] = available.into();
    }
    out
}

fn pressure(found: &Pressure) -> Value {
    let waited = |waited: &Waited| {
        let [ten, sixty, three_hundred] = waited.average.map(|hundredths| f64::from(hundredths) / 100.0);
        json!({ "total": waited.total, "avg10": ten, "avg60": sixty, "avg300": three_hundred })
    };
    json!({ "full": waited(&found.full), "some": waited(&found.some) })
}

fn network(interfaces: &[Interface], time: jiff::Timestamp) -> Value {
    let one = |interface: &Interface| {
        let (received, sent) = (interface.received, interface.sent);
        json!({
            "name": interface.name,
            "rxBytes": received.0,
            "rxErrors": received.1,
            "txBytes": sent.0,
            "txErrors": sent.1,
        })
    };
    let mut out = interfaces.first().map_or_else(|| Value::Object(Map::new()), one);
    out["time"] = json!(time);
    out["interfaces"] = interfaces.iter().map(one).collect();
    out
}

fn file_system(found: &FileSystem, used: u64, time: jiff::Timestamp) -> Value {
    json!({
        "time": time,
        "availableBytes": found.available,
        "capacityBytes": found.capacity,
        "usedBytes": used,
        "inodes": found.inodes,
        "inodesFree": found.inodes_free,
        "inodesUsed": found.inodes.saturating_sub(found.inodes_free),
    })
}

#[cfg(test)]
mod tests {
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
            logs: Some(30),
            ..ContainerUsage::default()
        };
        let network = vec![Interface { name: "eth0".into(), received: (1, 0), sent: (2, 0) }];
        Usage {
            pods: vec![PodUsage { pod, network, ..PodUsage::default() }],
            containers: vec![container],
            ..Usage::default()
        }
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let found = summary("node", &usage(), &[], false);
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
        let found = summary("node", &usage, &[], false);
        assert_eq!(
            found["node"]["io"]["psi"]["some"],
            json!({ "total": 5, "avg10": 1.25, "avg60": 0.07, "avg300": 0.0 })
        );
        assert_eq!(found["node"]["memory"]["psi"]["full"]["total"], 0);
        assert_eq!(found["pods"][0]["containers"][0]["swap"]["swapUsageBytes"], 9);
        assert!(found["node"].get("swap").is_none(), "a node without swap has no zero");
        assert!(found["node"]["cpu"].get("psi").is_none());
    }

    #[test]
    fn cpu_and_memory_alone_when_asked_for() {
        let found = summary("node", &usage(), &[], true);
        assert!(found["node"].get("fs").is_none());
        assert!(found["pods"][0].get("network").is_none());
        assert!(found["pods"][0]["containers"][0].get("rootfs").is_none());
    }
}
