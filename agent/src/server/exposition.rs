//! `/metrics/resource`: containers, pods and the node by the names that metrics-server reads (stable since Kubernetes 1.29), with
//! timestamps. Pure.

use k8s_openapi::api::core::v1::Pod;

use super::usage::{ContainerUsage, PodName, Usage};
use crate::logs::choose::statuses;
use crate::metrics::text::{Kind, Text};
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

/// The text; no usage says that there was nothing to measure with.
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
}
