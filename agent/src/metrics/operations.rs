//! Calls to the runtime, by kubelet's names for them.

use std::time::Duration;

use super::cells::{Counter, Histogram};
use super::text::{Kind, Text};

/// Calls of the CRI, and what kubelet calls them in `operation_type`.
const CALLS: [(&str, &str); 36] = [
    ("Version", "version"),
    ("Status", "status"),
    ("RuntimeConfig", "runtime_config"),
    ("UpdateRuntimeConfig", "update_runtime_config"),
    ("RunPodSandbox", "run_podsandbox"),
    ("StopPodSandbox", "stop_podsandbox"),
    ("RemovePodSandbox", "remove_podsandbox"),
    ("PodSandboxStatus", "podsandbox_status"),
    ("ListPodSandbox", "list_podsandbox"),
    ("PodSandboxStats", "podsandbox_stats"),
    ("ListPodSandboxStats", "list_podsandbox_stats"),
    ("UpdatePodSandboxResources", "update_podsandbox_resources"),
    ("CreateContainer", "create_container"),
    ("StartContainer", "start_container"),
    ("StopContainer", "stop_container"),
    ("RemoveContainer", "remove_container"),
    ("ListContainers", "list_containers"),
    ("ContainerStatus", "container_status"),
    ("UpdateContainerResources", "update_container"),
    ("ReopenContainerLog", "reopen_container_log"),
    ("ContainerStats", "container_stats"),
    ("ListContainerStats", "list_container_stats"),
    ("CheckpointContainer", "checkpoint_container"),
    ("GetContainerEvents", "get_container_events"),
    ("ListMetricDescriptors", "list_metric_descriptors"),
    ("ListPodSandboxMetrics", "list_podsandbox_metrics"),
    ("ExecSync", "exec_sync"),
    ("Exec", "exec"),
    ("Attach", "attach"),
    ("PortForward", "port_forward"),
    ("ListImages", "list_images"),
    ("ImageStatus", "image_status"),
    ("PullImage", "pull_image"),
    ("RemoveImage", "remove_image"),
    ("ImageFsInfo", "image_fs_info"),
    ("Close", "close"),
];

/// 5 ms, and 2.5 times as much each: kubelet's bounds.
static BOUNDS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];

#[derive(Debug)]
struct Operation {
    errors: Counter,
    duration: Histogram<14>,
}

/// All calls.
#[derive(Debug)]
pub struct Operations([Operation; CALLS.len()]);

impl Operations {
    pub(super) const fn new() -> Self {
        Self([const { Operation { errors: Counter::new(), duration: Histogram::new(&BOUNDS) } }; CALLS.len()])
    }

    /// A call that ended. `call` is the CRI's name of it.
    pub fn observe(&self, call: &str, took: Duration, is_ok: bool) {
        let Some(operation) = CALLS.iter().position(|(known, _)| *known == call).map(|index| &self.0[index]) else {
            return;
        };
        operation.duration.observe(took);
        if !is_ok {
            operation.errors.increment();
        }
    }

    pub(super) fn write(&self, text: &mut Text) {
        let used = || self.0.iter().zip(CALLS).map(|(operation, (_, name))| (operation, name));
        let used = || used().filter(|(operation, _)| operation.duration.read().1 > 0);
        let help = "[ALPHA] Cumulative number of runtime operations by operation type.";
        let mut family = text.family("kubelet_runtime_operations_total", Kind::Counter, help);
        used().for_each(|(one, name)| family.sample(&[("operation_type", name)], one.duration.read().1 as f64));
        let help = "[ALPHA] Cumulative number of runtime operation errors by operation type.";
        let mut family = text.family("kubelet_runtime_operations_errors_total", Kind::Counter, help);
        let failed = used().filter(|(one, _)| one.errors.get() > 0);
        failed.for_each(|(one, name)| family.sample(&[("operation_type", name)], one.errors.get() as f64));
        let help = "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.";
        let mut family = text.family("kubelet_runtime_operations_duration_seconds", Kind::Histogram, help);
        used().for_each(|(one, name)| family.histogram(&[("operation_type", name)], &one.duration));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_the_client_has_kubelets_name() {
        let sources = [include_str!("../cri/client.rs"), include_str!("../cri/client/kubelet_api.rs")];
        let calls = sources.iter().flat_map(|source| source.split(".call").skip(1));
        let named = calls.filter_map(|rest| rest.split_once('(')?.1.trim_start().strip_prefix('"')?.split('"').next());
        let named: Vec<&str> = named.collect();
        assert!(named.len() > 20, "{named:?}");
        for name in named {
            assert!(CALLS.iter().any(|(known, _)| *known == name), "{name} is not counted");
        }
    }

    #[test]
    fn only_calls_that_were_made_are_shown() {
        let operations = Operations::new();
        operations.observe("RunPodSandbox", Duration::from_millis(10), false);
        let mut text = Text::default();
        operations.write(&mut text);
        let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
        assert!(text.contains("kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 1\n"), "{text}");
        assert!(text.contains("kubelet_runtime_operations_errors_total{operation_type=\"run_podsandbox\"} 1\n"));
        let bucket =
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"run_podsandbox\",le=\"0.0125\"} 1\n";
        assert!(text.contains(bucket), "{text}");
        assert!(!text.contains("version"));
    }
}
