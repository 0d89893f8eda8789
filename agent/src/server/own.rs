//! `/metrics`: figures of this node that come from its pods, by kubelet's names. Pure.

use k8s_openapi::api::core::v1::Pod;

use crate::logs::choose::statuses;
use crate::metrics::text::{Kind, Text};
use crate::pod::spec;

/// Figures of the node's pods with their newest statuses. `cgroup` is the version in use.
pub fn write(text: &mut Text, node: &str, pods: &[Pod], cgroup: u8) {
    let help = "[ALPHA] The node's name. The count is always 1.";
    text.family("kubelet_node_name", Kind::Gauge, help).sample(&[("node", node)], 1.0);
    let with_phase = |phases: &'static [&str]| {
        move |pod: &&Pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            phases.contains(&phase.unwrap_or("Pending"))
        }
    };
    let count = |pods: &mut dyn Iterator<Item = &Pod>| pods.count() as f64;
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    text.gauge("kubelet_running_pods", help, count(&mut pods.iter().filter(with_phase(&["Running"]))));
    let help = "[ALPHA] Number of containers currently running";
    let mut family = text.family("kubelet_running_containers", Kind::Gauge, help);
    let states = || pods.iter().flat_map(statuses).filter_map(|status| status.state.as_ref());
    let running = states().filter(|state| state.running.is_some()).count();
    let exited = states().filter(|state| state.terminated.is_some()).count();
    for (state, number) in [("exited", exited), ("running", running)].into_iter().filter(|(_, number)| *number > 0) {
        family.sample(&[("container_state", state)], number as f64);
    }
    let of_static = |wanted: bool| pods.iter().filter(move |pod| spec::is_static(pod) == wanted);
    let by_source = [("", false), ("true", true)];
    let help = "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the \
                apiserver.";
    let mut family = text.family("kubelet_desired_pods", Kind::Gauge, help);
    for (label, is_static) in by_source {
        family.sample(&[("static", label)], count(&mut of_static(is_static)));
    }
    let help = "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new \
                pods. static is true if the pod is not from the apiserver.";
    let mut family = text.family("kubelet_active_pods", Kind::Gauge, help);
    for (label, is_static) in by_source {
        let active = with_phase(&["Pending", "Running"]);
        family.sample(&[("static", label)], count(&mut of_static(is_static).filter(active)));
    }
    let ephemeral = pods.iter().flat_map(|pod| spec::spec(pod).ephemeral_containers.iter().flatten()).count();
    let help = "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.";
    text.gauge("kubelet_managed_ephemeral_containers", help, ephemeral as f64);
    text.gauge("kubelet_cgroup_version", "[ALPHA] cgroup version on the hosts.", f64::from(cgroup));
    let help =
        "[ALPHA] Metrics provider used by kubelet to collect container stats. Values can be 'cadvisor' and 'cri'";
    text.family("kubelet_metrics_provider", Kind::Gauge, help).sample(&[("provider", "cri")], 1.0);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_count_by_phase_and_source_and_containers_by_state() {
        let container = |state: &str| json!({ "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": { state: { "exitCode": 0 } } });
        let pod = |phase: &str, source: &str, state: &str| {
            let value = json!({
                "metadata": { "name": "p", "annotations": { "kubernetes.io/config.source": source } },
                "spec": { "containers": [{ "name": "c" }] },
                "status": { "phase": phase, "containerStatuses": [container(state)] },
            });
            serde_json::from_value::<Pod>(value).unwrap()
        };
        let pods = [
            pod("Running", "api", "running"),
            pod("Running", "file", "running"),
            pod("Succeeded", "api", "terminated"),
        ];
        let mut text = Text::default();
        write(&mut text, "n\"1", &pods, 2);
        let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
        for line in [
            "kubelet_node_name{node=\"n\\\"1\"} 1",
            "kubelet_running_pods 2",
            "kubelet_running_containers{container_state=\"running\"} 2",
            "kubelet_running_containers{container_state=\"exited\"} 1",
            "kubelet_desired_pods{static=\"\"} 2",
            "kubelet_desired_pods{static=\"true\"} 1",
            "kubelet_active_pods{static=\"\"} 1",
            "kubelet_cgroup_version 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
