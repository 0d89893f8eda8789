//! Metrics of containers, pods and the node in Prometheus' text format. Pure.
//!
//! `/metrics/resource` has the names that metrics-server reads (stable since Kubernetes 1.29), with timestamps;
//! `/metrics/cadvisor` has cAdvisor's names and labels, which dashboards join on.

use k8s_openapi::api::core::v1::Pod;

use super::usage::{ContainerUsage, Memory, PodName, Pressure, Usage};
use crate::logs::choose::statuses;
use crate::metrics::text::{Kind, Text};
use crate::node::oom::{COUNTS, Counts};
use crate::pod::spec;

type Pair<'a> = (&'a str, &'a str);

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn pod_labels(pod: &PodName) -> [Pair<'_>; 2] {
    [("namespace", &pod.namespace), ("pod", &pod.name)]
}

fn container_labels(container: &ContainerUsage) -> [Pair<'_>; 3] {
    let [namespace, pod] = pod_labels(&container.pod);
    [("container", &container.name), namespace, pod]
}

/// When each running container was started, in seconds since the epoch.
fn starts(pods: &[Pod]) -> impl Iterator<Item = (&Pod, &str, f64)> {
    pods.iter().flat_map(|pod| {
        statuses(pod).filter_map(move |status| {
            let started = status.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
            Some((pod, status.name.as_str(), started.0.as_millisecond() as f64 / 1e3))
        })
    })
}

/// `/metrics/resource`; no usage says that there was nothing to measure with.
pub fn resource(text: &mut Text, usage: Option<&Usage>, pods: &[Pod]) {
    if let Some(usage) = usage {
        resource_of_containers(text, usage, pods);
        resource_of_pods(text, usage);
        resource_of_node(text, usage);
    }
    let error = if usage.is_some() { 0.0 } else { 1.0 };
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    text.gauge("resource_scrape_error", help, error);
    let help = "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container metrics, 0 otherwise";
    text.gauge("scrape_error", help, error);
}

fn resource_of_containers(text: &mut Text, usage: &Usage, pods: &[Pod]) {
    let help = "[STABLE] Cumulative cpu time consumed by the container in core-seconds";
    let mut family = text.family("container_cpu_usage_seconds_total", Kind::Counter, help);
    for (container, cpu) in usage.containers.iter().filter_map(|c| Some((c, c.cpu?))) {
        family.stamped(&container_labels(container), seconds(cpu.total), Some(cpu.time.as_millisecond()));
    }
    let help = "[STABLE] Current working set of the container in bytes";
    let mut family = text.family("container_memory_working_set_bytes", Kind::Gauge, help);
    for (container, memory) in usage.containers.iter().filter_map(|c| Some((c, c.memory?))) {
        let millis = Some(memory.time.as_millisecond());
        family.stamped(&container_labels(container), memory.working_set as f64, millis);
    }
    let help = "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems";
    let mut family = text.family("container_swap_usage_bytes", Kind::Gauge, help);
    for (container, swap) in usage.containers.iter().filter_map(|c| Some((c, c.swap?))) {
        let millis = Some(swap.time.as_millisecond());
        family.stamped(&container_labels(container), swap.used as f64, millis);
    }
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    let mut family = text.family("container_start_time_seconds", Kind::Gauge, help);
    for (pod, name, at) in starts(pods) {
        let key = spec::key(pod);
        family.sample(&[("container", name), ("namespace", &key.namespace), ("pod", &key.name)], at);
    }
}

fn resource_of_pods(text: &mut Text, usage: &Usage) {
    let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
    let mut family = text.family("pod_cpu_usage_seconds_total", Kind::Counter, help);
    for (pod, cpu) in usage.pods.iter().filter_map(|pod| Some((pod, pod.cpu?))) {
        family.stamped(&pod_labels(&pod.pod), seconds(cpu.total), Some(cpu.time.as_millisecond()));
    }
    let help = "[STABLE] Current working set of the pod in bytes";
    let mut family = text.family("pod_memory_working_set_bytes", Kind::Gauge, help);
    for (pod, memory) in usage.pods.iter().filter_map(|pod| Some((pod, pod.memory?))) {
        family.stamped(&pod_labels(&pod.pod), memory.working_set as f64, Some(memory.time.as_millisecond()));
    }
    let help = "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
    let mut family = text.family("pod_swap_usage_bytes", Kind::Gauge, help);
    for pod in &usage.pods {
        let own = usage.containers.iter().filter(|container| container.pod.uid == pod.pod.uid);
        let swaps = own.filter_map(|container| container.swap);
        if let Some((used, time)) = swaps.map(|s| (s.used, s.time)).reduce(|a, b| (a.0 + b.0, a.1.max(b.1))) {
            family.stamped(&pod_labels(&pod.pod), used as f64, Some(time.as_millisecond()));
        }
    }
}

fn resource_of_node(text: &mut Text, usage: &Usage) {
    let (cpu, memory) = (usage.node.cpu, usage.node.memory);
    let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
    let mut family = text.family("node_cpu_usage_seconds_total", Kind::Counter, help);
    family.stamped(&[], seconds(cpu.total), Some(cpu.time.as_millisecond()));
    let help = "[STABLE] Current working set of the node in bytes";
    let mut family = text.family("node_memory_working_set_bytes", Kind::Gauge, help);
    family.stamped(&[], memory.working_set as f64, Some(memory.time.as_millisecond()));
    let help = "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems";
    let mut family = text.family("node_swap_usage_bytes", Kind::Gauge, help);
    if let Some(swap) = usage.node.swap {
        family.stamped(&[], swap.used as f64, Some(swap.time.as_millisecond()));
    }
}

/// `/metrics/cadvisor`.
pub fn cadvisor(text: &mut Text, usage: &Usage, pods: &[Pod]) {
    cadvisor_containers(text, usage, pods);
    cadvisor_oom(text, usage, pods, &COUNTS);
    cadvisor_pressure(text, usage, pods);
    cadvisor_network(text, usage);
    let node = &usage.node;
    text.gauge("machine_cpu_cores", "Number of logical CPU cores.", node.cpus as f64);
    let memory = node.memory.working_set + node.memory.available.unwrap_or(0);
    text.gauge("machine_memory_bytes", "Amount of memory installed on the machine.", memory as f64);
}

/// Calls `each` with every container and its labels: cAdvisor's `id` is the cgroup, `name` the runtime's id.
fn with_labels(usage: &Usage, pods: &[Pod], mut each: impl FnMut(&ContainerUsage, [Pair<'_>; 6])) {
    for container in &usage.containers {
        let pod = pods.iter().find(|pod| spec::uid(pod).as_str() == container.pod.uid);
        let image = pod.map_or("", |pod| spec::image(pod, &container.name));
        let id = format!("/kubepods/pod{}/{}", container.pod.uid, container.id);
        let [namespace, pod] = pod_labels(&container.pod);
        each(
            container,
            [("container", &container.name), ("id", &id), ("image", image), ("name", &container.id), namespace, pod],
        );
    }
}

fn cadvisor_containers(text: &mut Text, usage: &Usage, pods: &[Pod]) {
    let help = "Cumulative cpu time consumed in seconds.";
    let mut family = text.family("container_cpu_usage_seconds_total", Kind::Counter, help);
    with_labels(usage, pods, |container, [name, rest @ ..]| {
        if let Some(cpu) = container.cpu {
            let [id, image, runtime, namespace, pod] = rest;
            let labels = [name, ("cpu", "total"), id, image, runtime, namespace, pod];
            family.stamped(&labels, seconds(cpu.total), Some(cpu.time.as_millisecond()));
        }
    });
    type Figure = fn(&Memory) -> u64;
    let figures: [(&str, &str, Figure); 3] = [
        ("container_memory_working_set_bytes", "Current working set in bytes.", |memory| memory.working_set),
        ("container_memory_usage_bytes", "Current memory usage in bytes, including all memory.", |memory| memory.usage),
        ("container_memory_rss", "Size of RSS in bytes.", |memory| memory.rss),
    ];
    for (name, help, figure) in figures {
        let mut family = text.family(name, Kind::Gauge, help);
        with_labels(usage, pods, |container, labels| {
            if let Some(memory) = container.memory {
                family.stamped(&labels, figure(&memory) as f64, Some(memory.time.as_millisecond()));
            }
        });
    }
    let help = "Number of bytes that are consumed on this filesystem.";
    let mut family = text.family("container_fs_usage_bytes", Kind::Gauge, help);
    with_labels(usage, pods, |container, labels| {
        if let Some((bytes, _)) = container.layer {
            family.sample(&labels, bytes as f64);
        }
    });
    let mut family =
        text.family("container_start_time_seconds", Kind::Gauge, "Start time since unix epoch in seconds.");
    with_labels(usage, pods, |container, labels| {
        let is_it = |pod: &Pod, name: &str| spec::uid(pod).as_str() == container.pod.uid && name == container.name;
        if let Some((_, _, at)) = starts(pods).find(|(pod, name, _)| is_it(pod, name)) {
            family.sample(&labels, at);
        }
    });
}

/// Processes that the kernel killed in containers for want of memory.
fn cadvisor_oom(text: &mut Text, usage: &Usage, pods: &[Pod], counts: &Counts) {
    let help = "Count of out of memory events observed for the container";
    let mut family = text.family("container_oom_events_total", Kind::Counter, help);
    with_labels(usage, pods, |container, labels| family.sample(&labels, counts.of(&container.id) as f64));
    counts.retain(|id| usage.containers.iter().any(|container| container.id == id));
}

/// Time that tasks waited (PSI): all of them at once (stalled), or at least one (waiting).
fn cadvisor_pressure(text: &mut Text, usage: &Usage, pods: &[Pod]) {
    type Figure = fn(&ContainerUsage) -> Option<Pressure>;
    let cpu: Figure = |container| container.cpu?.pressure;
    let memory: Figure = |container| container.memory?.pressure;
    let io: Figure = |container| Some(container.io?.1);
    type Part = fn(&Pressure) -> u64;
    let stalled: Part = |pressure| pressure.full.total;
    let waiting: Part = |pressure| pressure.some.total;
    for (name, figure, part) in [
        ("container_pressure_cpu_stalled_seconds_total", cpu, stalled),
        ("container_pressure_cpu_waiting_seconds_total", cpu, waiting),
        ("container_pressure_memory_stalled_seconds_total", memory, stalled),
        ("container_pressure_memory_waiting_seconds_total", memory, waiting),
        ("container_pressure_io_stalled_seconds_total", io, stalled),
        ("container_pressure_io_waiting_seconds_total", io, waiting),
    ] {
        let mut family =
            text.family(name, Kind::Counter, "Total time duration in seconds that tasks waited for the resource.");
        with_labels(usage, pods, |container, labels| {
            if let Some(pressure) = figure(container) {
                family.sample(&labels, seconds(part(&pressure)));
            }
        });
    }
}

fn cadvisor_network(text: &mut Text, usage: &Usage) {
    type Figure = fn(&super::usage::Interface) -> u64;
    let figures: [(&str, &str, Figure); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.received.0),
        ("container_network_receive_errors_total", "Cumulative count of errors while receiving", |i| i.received.1),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.sent.0),
        ("container_network_transmit_errors_total", "Cumulative count of errors while transmitting", |i| i.sent.1),
    ];
    for (name, help, figure) in figures {
        let mut family = text.family(name, Kind::Counter, help);
        for pod in &usage.pods {
            let id = format!("/kubepods/pod{}", pod.pod.uid);
            let [namespace, pod_name] = pod_labels(&pod.pod);
            for interface in &pod.network {
                let labels =
                    [("id", id.as_str()), ("interface", &interface.name), ("name", &pod.id), namespace, pod_name];
                family.sample(&labels, figure(interface) as f64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::usage::{Cpu, Memory};
    use super::*;

    fn usage() -> Usage {
        let pod = PodName { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let time = jiff::Timestamp::from_second(100).unwrap();
        let container = ContainerUsage {
            id: "cid".into(),
            name: "c".into(),
            pod,
            cpu: Some(Cpu { time, total: 1_500_000_000, ..Cpu::default() }),
            memory: Some(Memory { time, working_set: 42, ..Memory::default() }),
            layer: None,
            swap: None,
            io: None,
            logs: None,
        };
        Usage { containers: vec![container], ..Usage::default() }
    }

    fn written(write: impl FnOnce(&mut Text)) -> String {
        let mut text = Text::default();
        write(&mut text);
        String::from_utf8(text.finish().0.to_vec()).unwrap()
    }

    #[test]
    fn metrics_server_finds_its_names_with_timestamps() {
        let text = written(|text| resource(text, Some(&usage()), &[]));
        let wanted = "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 100000\n";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("node_cpu_usage_seconds_total 0 0\n"), "{text}");
        assert!(text.contains("resource_scrape_error 0\n"), "{text}");
        assert!(written(|text| resource(text, None, &[])).contains("resource_scrape_error 1\n"));
    }

    #[test]
    fn cadvisor_has_the_labels_that_dashboards_join_on() {
        let text = written(|text| cadvisor(text, &usage(), &[]));
        let wanted = "container_memory_working_set_bytes{container=\"c\",id=\"/kubepods/podu/cid\",image=\"\",name=\"cid\",\
                      namespace=\"n\",pod=\"p\"} 42 100000\n";
        assert!(text.contains(wanted), "{text}");
        let wanted = "container_oom_events_total{container=\"c\",id=\"/kubepods/podu/cid\",image=\"\",name=\"cid\",\
                      namespace=\"n\",pod=\"p\"} 0\n";
        assert!(text.contains(wanted), "{text}");
    }
}
