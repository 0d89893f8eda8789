//! Metrics of containers, pods and the node in Prometheus' text format. Pure.
//!
//! `/metrics/resource` has the names that metrics-server reads (stable since Kubernetes 1.29), with timestamps;
//! `/metrics/cadvisor` has cAdvisor's names and labels, which dashboards join on.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Pod;

use super::usage::{ContainerUsage, PodName, Usage};
use crate::logs::choose::statuses;
use crate::pod::spec;

/// Samples of one metric after another; a metric without samples is left out.
struct Text {
    out: String,
}

type Sample = (Vec<(&'static str, String)>, f64, Option<i64>);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = Sample>) {
        let mut samples = samples.peekable();
        if samples.peek().is_none() {
            return;
        }
        // Writing to a String does not fail.
        let _ = write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value, millis) in samples {
            self.out.push_str(name);
            for (index, (label, text)) in labels.iter().enumerate() {
                self.out.push(if index == 0 { '{' } else { ',' });
                let _ = write!(self.out, "{label}=\"{}\"", escaped(text));
            }
            self.out.push_str(if labels.is_empty() { "" } else { "}" });
            let _ = write!(self.out, " {value}");
            if let Some(millis) = millis {
                let _ = write!(self.out, " {millis}");
            }
            self.out.push('\n');
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn pod_labels(pod: &PodName) -> Vec<(&'static str, String)> {
    vec![("namespace", pod.namespace.clone()), ("pod", pod.name.clone())]
}

fn container_labels(container: &ContainerUsage) -> Vec<(&'static str, String)> {
    let mut labels = vec![("container", container.name.clone())];
    labels.extend(pod_labels(&container.pod));
    labels
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

/// `/metrics/resource`; `failed` says that there was nothing to measure with.
pub fn resource(usage: Option<&Usage>, pods: &[Pod]) -> String {
    let mut text = Text { out: String::new() };
    if let Some(usage) = usage {
        resource_of(&mut text, usage, pods);
    }
    let error = if usage.is_some() { 0.0 } else { 1.0 };
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    text.metric("resource_scrape_error", "gauge", help, [(Vec::new(), error, None)].into_iter());
    let help = "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container metrics, 0 otherwise";
    text.metric("scrape_error", "gauge", help, [(Vec::new(), error, None)].into_iter());
    text.out
}

fn resource_of(text: &mut Text, usage: &Usage, pods: &[Pod]) {
    let containers = || usage.containers.iter();
    let help = "[STABLE] Cumulative cpu time consumed by the container in core-seconds";
    let cpu = containers().filter_map(|c| {
        let cpu = c.cpu?;
        Some((container_labels(c), seconds(cpu.total), Some(cpu.time.as_millisecond())))
    });
    text.metric("container_cpu_usage_seconds_total", "counter", help, cpu);
    let help = "[STABLE] Current working set of the container in bytes";
    let memory = containers().filter_map(|c| {
        let memory = c.memory?;
        Some((container_labels(c), memory.working_set as f64, Some(memory.time.as_millisecond())))
    });
    text.metric("container_memory_working_set_bytes", "gauge", help, memory);
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    let started = starts(pods).map(|(pod, name, at)| {
        let key = spec::key(pod);
        let labels = vec![
            ("container", name.to_owned()),
            ("namespace", key.namespace.to_string()),
            ("pod", key.name.to_string()),
        ];
        (labels, at, None)
    });
    text.metric("container_start_time_seconds", "gauge", help, started);
    let (cpu, memory) = (usage.node.cpu, usage.node.memory);
    let help = "[STABLE] Cumulative cpu time consumed by the node in core-seconds";
    let sample = (Vec::new(), seconds(cpu.total), Some(cpu.time.as_millisecond()));
    text.metric("node_cpu_usage_seconds_total", "counter", help, [sample].into_iter());
    let help = "[STABLE] Current working set of the node in bytes";
    let sample = (Vec::new(), memory.working_set as f64, Some(memory.time.as_millisecond()));
    text.metric("node_memory_working_set_bytes", "gauge", help, [sample].into_iter());
    let help = "[STABLE] Cumulative cpu time consumed by the pod in core-seconds";
    let of_pods = usage.pods.iter().filter_map(|pod| {
        let cpu = pod.cpu?;
        Some((pod_labels(&pod.pod), seconds(cpu.total), Some(cpu.time.as_millisecond())))
    });
    text.metric("pod_cpu_usage_seconds_total", "counter", help, of_pods);
    let help = "[STABLE] Current working set of the pod in bytes";
    let of_pods = usage.pods.iter().filter_map(|pod| {
        let memory = pod.memory?;
        Some((pod_labels(&pod.pod), memory.working_set as f64, Some(memory.time.as_millisecond())))
    });
    text.metric("pod_memory_working_set_bytes", "gauge", help, of_pods);
}

/// `/metrics/cadvisor`.
pub fn cadvisor(usage: &Usage, pods: &[Pod]) -> String {
    let mut text = Text { out: String::new() };
    cadvisor_containers(&mut text, usage, pods);
    cadvisor_network(&mut text, usage);
    let node = &usage.node;
    let one = |value: f64| [(Vec::new(), value, None)].into_iter();
    text.metric("machine_cpu_cores", "gauge", "Number of logical CPU cores.", one(node.cpus as f64));
    let memory = node.memory.working_set + node.memory.available.unwrap_or(0);
    text.metric("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.", one(memory as f64));
    text.out
}

/// Labels of a container: cAdvisor's `id` is the cgroup, `name` the runtime's id.
fn cadvisor_labels(container: &ContainerUsage, pods: &[Pod]) -> Vec<(&'static str, String)> {
    let pod = pods.iter().find(|pod| spec::uid(pod).as_str() == container.pod.uid);
    let image = pod.map(|pod| spec::image(pod, &container.name).to_owned()).unwrap_or_default();
    vec![
        ("container", container.name.clone()),
        ("id", format!("/kubepods/pod{}/{}", container.pod.uid, container.id)),
        ("image", image),
        ("name", container.id.clone()),
        ("namespace", container.pod.namespace.clone()),
        ("pod", container.pod.name.clone()),
    ]
}

fn cadvisor_containers(text: &mut Text, usage: &Usage, pods: &[Pod]) {
    let containers = || usage.containers.iter().map(|container| (container, cadvisor_labels(container, pods)));
    let cpu = containers().filter_map(|(container, mut labels)| {
        labels.insert(1, ("cpu", "total".to_owned()));
        let cpu = container.cpu?;
        Some((labels, seconds(cpu.total), Some(cpu.time.as_millisecond())))
    });
    text.metric("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", cpu);
    type Figure = fn(&super::usage::Memory) -> u64;
    let figures: [(&str, &str, Figure); 3] = [
        ("container_memory_working_set_bytes", "Current working set in bytes.", |memory| memory.working_set),
        ("container_memory_usage_bytes", "Current memory usage in bytes, including all memory.", |memory| memory.usage),
        ("container_memory_rss", "Size of RSS in bytes.", |memory| memory.rss),
    ];
    for (name, help, figure) in figures {
        let samples = containers().filter_map(|(container, labels)| {
            let memory = container.memory?;
            Some((labels, figure(&memory) as f64, Some(memory.time.as_millisecond())))
        });
        text.metric(name, "gauge", help, samples);
    }
    let layers = containers().filter_map(|(container, labels)| Some((labels, container.layer?.0 as f64, None)));
    text.metric("container_fs_usage_bytes", "gauge", "Number of bytes that are consumed on this filesystem.", layers);
    let started = containers().filter_map(|(container, labels)| {
        let mut all = starts(pods);
        let (_, _, at) =
            all.find(|(pod, name, _)| spec::uid(pod).as_str() == container.pod.uid && *name == container.name)?;
        Some((labels, at, None))
    });
    text.metric("container_start_time_seconds", "gauge", "Start time since unix epoch in seconds.", started);
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
        let samples = usage.pods.iter().flat_map(|pod| {
            pod.network.iter().map(move |interface| {
                let mut labels = vec![
                    ("id", format!("/kubepods/pod{}", pod.pod.uid)),
                    ("interface", interface.name.clone()),
                    ("name", pod.id.clone()),
                ];
                labels.extend(pod_labels(&pod.pod));
                (labels, figure(interface) as f64, None)
            })
        });
        text.metric(name, "counter", help, samples);
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
            cpu: Some(Cpu { time, total: 1_500_000_000, rate: None }),
            memory: Some(Memory { time, working_set: 42, ..Memory::default() }),
            layer: None,
        };
        Usage { containers: vec![container], ..Usage::default() }
    }

    #[test]
    fn metrics_server_finds_its_names_with_timestamps() {
        let text = resource(Some(&usage()), &[]);
        let wanted = "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 100000\n";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("node_cpu_usage_seconds_total 0 0\n"), "{text}");
        assert!(text.contains("resource_scrape_error 0\n"), "{text}");
        assert!(resource(None, &[]).contains("resource_scrape_error 1\n"));
    }

    #[test]
    fn cadvisor_has_the_labels_that_dashboards_join_on() {
        let text = cadvisor(&usage(), &[]);
        let wanted = "container_memory_working_set_bytes{container=\"c\",id=\"/kubepods/podu/cid\",image=\"\",name=\"cid\",\
                      namespace=\"n\",pod=\"p\"} 42 100000\n";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
