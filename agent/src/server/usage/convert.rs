//! From the runtime's figures to ours. Pure.

use std::collections::HashMap;

use jiff::Timestamp;
use nodelet_proto::cri;

use super::{ContainerUsage, Cpu, Interface, Memory, PodName, PodUsage, Pressure, Swap, Waited};
use crate::cri::labels;

fn pod_name(labels: &HashMap<String, String>) -> PodName {
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    PodName { namespace: label(labels::POD_NAMESPACE), name: label(labels::POD_NAME), uid: label(labels::POD_UID) }
}

fn time(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}

fn number(value: Option<cri::UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

fn pressure(stats: cri::PsiStats) -> Pressure {
    let waited = |data: Option<cri::PsiData>| {
        let data = data.unwrap_or_default();
        // A share of time: 0 to 100 percent.
        let hundredths = |percent: f64| (percent.clamp(0.0, 100.0) * 100.0).round() as u32;
        Waited { total: data.total, average: [data.avg10, data.avg60, data.avg300].map(hundredths) }
    };
    Pressure { full: waited(stats.full), some: waited(stats.some) }
}

fn cpu(usage: cri::CpuUsage) -> Cpu {
    let rate = usage.usage_nano_cores.map(|value| value.value).filter(|rate| *rate > 0);
    let pressure = usage.psi.map(pressure);
    Cpu { time: time(usage.timestamp), total: number(usage.usage_core_nano_seconds), rate, pressure }
}

fn memory(usage: cri::MemoryUsage) -> Memory {
    Memory {
        time: time(usage.timestamp),
        working_set: number(usage.working_set_bytes),
        usage: number(usage.usage_bytes),
        rss: number(usage.rss_bytes),
        available: usage.available_bytes.map(|value| value.value).filter(|left| *left > 0),
        faults: (number(usage.page_faults), number(usage.major_page_faults)),
        pressure: usage.psi.map(pressure),
    }
}

/// A runtime on a node without swap answers with nothing in it.
fn swap(usage: cri::SwapUsage) -> Option<Swap> {
    let available = usage.swap_available_bytes.map(|value| value.value);
    Some(Swap { time: time(usage.timestamp), used: usage.swap_usage_bytes?.value, available })
}

pub(super) fn container(stats: cri::ContainerStats) -> ContainerUsage {
    let attributes = stats.attributes.unwrap_or_default();
    let layer = stats.writable_layer.map(|layer| (number(layer.used_bytes), number(layer.inodes_used)));
    ContainerUsage {
        name: attributes.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default(),
        pod: pod_name(&attributes.labels),
        id: attributes.id,
        cpu: stats.cpu.map(cpu),
        memory: stats.memory.map(memory),
        swap: stats.swap.and_then(swap),
        io: stats.io.and_then(|io| Some((time(io.timestamp), pressure(io.psi?)))),
        layer,
        logs: None,
    }
}

pub(super) fn sandbox(stats: cri::PodSandboxStats) -> PodUsage {
    let attributes = stats.attributes.unwrap_or_default();
    let linux = stats.linux.unwrap_or_default();
    let network = linux.network.unwrap_or_default();
    let interfaces = network.default_interface.into_iter().chain(network.interfaces);
    let interface = |usage: cri::NetworkInterfaceUsage| Interface {
        name: usage.name,
        received: (number(usage.rx_bytes), number(usage.rx_errors)),
        sent: (number(usage.tx_bytes), number(usage.tx_errors)),
    };
    let mut network: Vec<Interface> = Vec::new();
    for found in interfaces.map(interface) {
        // Some runtimes list the default interface a second time.
        if !network.iter().any(|known| known.name == found.name) {
            network.push(found);
        }
    }
    PodUsage {
        pod: pod_name(&attributes.labels),
        id: attributes.id,
        cpu: linux.cpu.map(cpu),
        memory: linux.memory.map(memory),
        network,
        processes: linux.process.and_then(|process| process.process_count).map(|count| count.value),
    }
}
