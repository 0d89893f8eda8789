//! `/stats/summary`: usage as JSON. Pure.
//!
//! Source: `k8s.io/kubelet/pkg/apis/stats/v1alpha1`. Figures that were not measured are left out, never zero: an autoscaler takes
//! a zero for an idle container.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::usage::{
    ContainerUsage, Cpu, FileSystem, Interface, Memory, PodUsage, Pressure, Swap, SystemUsage, Usage, Waited,
};
use super::volumes::{Disks, PodDisk};
use crate::eviction::limits::local_volumes;
use crate::ids::PodUid;
use crate::logs::choose::statuses;
use crate::pod::spec;
use crate::volume::stats::VolumeFigures;

/// What was measured, and the pods that it belongs to.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// Processors, memory, network, disks of the node.
    pub usage: &'a Usage,
    /// The agent, the runtime and all pods.
    pub system: &'a [SystemUsage],
    /// Volumes.
    pub disks: &'a Disks,
    /// Pods.
    pub pods: &'a [Pod],
    /// Whether nothing but processors and memory is asked for.
    pub only_cpu_and_memory: bool,
}

/// The summary.
pub fn summary(node_name: &str, seen: Seen<'_>) -> Value {
    let node = &seen.usage.node;
    let mut out = json!({
        "nodeName": node_name,
        "startTime": node.started,
        "cpu": cpu(&node.cpu),
        "memory": memory(&node.memory),
        "systemContainers": seen.system.iter().map(|system| system_container(system, seen.only_cpu_and_memory)).collect::<Vec<_>>(),
    });
    if !seen.only_cpu_and_memory {
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
    json!({ "node": out, "pods": seen.usage.pods.iter().map(|pod| pod_summary(pod, seen)).collect::<Vec<_>>() })
}

/// kubelet, runtime, pods: without disks, which they do not have to themselves.
fn system_container(found: &SystemUsage, only_cpu_and_memory: bool) -> Value {
    let mut out = json!({ "name": found.name, "startTime": found.started, "cpu": cpu(&found.cpu) });
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
    out
}

fn pod_summary(found: &PodUsage, seen: Seen<'_>) -> Value {
    let pod = seen.pods.iter().find(|pod| spec::uid(pod).as_str() == found.pod.uid);
    let started = pod.and_then(|pod| pod.status.as_ref()?.start_time.clone());
    let own = || seen.usage.containers.iter().filter(|container| container.pod.uid == found.pod.uid);
    let containers: Vec<Value> = own().map(|container| container_summary(container, pod, seen)).collect();
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
    if seen.only_cpu_and_memory {
        return out;
    }
    let time = found.cpu.map_or(seen.usage.node.cpu.time, |cpu| cpu.time);
    if !found.network.is_empty() {
        out["network"] = network(&found.network, time);
    }
    if let Some(count) = found.processes {
        out["process_stats"] = json!({ "process_count": count });
    }
    let swaps = own().filter_map(|container| container.swap);
    if let Some(sum) = swaps.reduce(|a, b| Swap {
        time: a.time.max(b.time),
        used: a.used + b.used,
        available: Some(a.available.unwrap_or(0) + b.available.unwrap_or(0)),
    }) {
        out["swap"] = swap(&sum);
    }
    let disk = seen.disks.get(&PodUid::new(&found.pod.uid));
    if let (Some(pod), Some(disk)) = (pod, disk.filter(|disk| !disk.volumes.is_empty())) {
        out["volume"] = volumes(pod, disk);
    }
    out["ephemeral-storage"] = ephemeral_storage(&own().collect::<Vec<_>>(), pod, disk, &seen.usage.node.root, time);
    out
}

/// Volumes of a pod, each with the claim behind it.
fn volumes(pod: &Pod, disk: &PodDisk) -> Value {
    let claims = claims(pod);
    let one = |(name, (time, found)): (&String, &(jiff::Timestamp, VolumeFigures))| {
        let mut out = json!({
            "time": time,
            "name": name,
            "availableBytes": found.available,
            "capacityBytes": found.capacity,
            "usedBytes": found.used,
            "inodes": found.inodes,
            "inodesFree": found.inodes_free,
            "inodesUsed": found.inodes_used,
        });
        if let Some((_, claim)) = claims.iter().find(|(volume, _)| volume == name) {
            out["pvcRef"] = json!({ "name": claim, "namespace": pod.metadata.namespace });
        }
        out
    };
    disk.volumes.iter().map(one).collect()
}

/// Volumes with a claim behind them, and its name.
pub fn claims(pod: &Pod) -> Vec<(&str, String)> {
    let volumes = spec::spec(pod).volumes.iter().flatten();
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| match &volume.persistent_volume_claim {
        Some(claim) => Some(claim.claim_name.clone()),
        None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", spec::key(pod).name, volume.name)),
    };
    volumes.filter_map(|volume| Some((volume.name.as_str(), claim(volume)?))).collect()
}

/// What a pod takes of the node's disk: layers, logs, its volumes there and the hosts file.
fn ephemeral_storage(
    containers: &[&ContainerUsage],
    pod: Option<&Pod>,
    disk: Option<&PodDisk>,
    root: &FileSystem,
    time: jiff::Timestamp,
) -> Value {
    let layers = containers.iter().filter_map(|container| container.layer);
    let logs = containers.iter().filter_map(|container| container.logs);
    let local = pod.map(local_volumes).unwrap_or_default();
    let volumes = local.iter().filter_map(|(name, _)| disk?.volumes.get(name));
    let volumes = volumes.map(|(_, found)| (found.used, found.inodes_used));
    let hosts = disk.and_then(|disk| disk.hosts).map(|bytes| (bytes, 1));
    let all = layers.chain(logs).chain(volumes).chain(hosts);
    let (bytes, inodes) = all.fold((0, 0), |sum, (bytes, inodes)| (sum.0 + bytes, sum.1 + inodes));
    let mut out = file_system(root, bytes, time);
    out["inodesUsed"] = inodes.into();
    out
}

fn container_summary(found: &ContainerUsage, pod: Option<&Pod>, seen: Seen<'_>) -> Value {
    let usage = seen.usage;
    let status = pod.and_then(|pod| statuses(pod).find(|status| status.name == found.name));
    let running = status.and_then(|status| status.state.as_ref()?.running.as_ref()?.started_at.clone());
    let mut out = json!({ "name": found.name, "startTime": running });
    if let Some(found) = &found.cpu {
        out["cpu"] = cpu(found);
    }
    if let Some(found) = &found.memory {
        out["memory"] = memory(found);
    }
    if seen.only_cpu_and_memory {
        return out;
    }
    if let Some(found) = &found.swap {
        out["swap"] = swap(found);
    }
    if let Some((time, found)) = &found.io {
        out["io"] = json!({ "time": time, "psi": pressure(found) });
    }
    if let Some((bytes, files)) = found.logs {
        let time = found.cpu.map_or(usage.node.cpu.time, |cpu| cpu.time);
        out["logs"] = file_system(&usage.node.root, bytes, time);
        out["logs"]["inodesUsed"] = files.into();
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
mod tests;
