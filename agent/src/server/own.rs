//! `/metrics`: figures of this node that come from its pods, by kubelet's names. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use super::summary::claims;
use super::volumes::Disks;
use crate::logs::choose::statuses;
use crate::metrics::text::{Kind, Text};
use crate::pod::spec;
use crate::volume::stats::{Counts, VolumeFigures};

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
    let help = "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)";
    let admitted = of_static(true).filter(|pod| !is_rejected(pod)).count();
    text.gauge("kubelet_mirror_pods", help, admitted as f64);
    let ephemeral = pods.iter().flat_map(|pod| spec::spec(pod).ephemeral_containers.iter().flatten()).count();
    let help = "[ALPHA] Current number of ephemeral containers in pods managed by this kubelet.";
    text.gauge("kubelet_managed_ephemeral_containers", help, ephemeral as f64);
    text.gauge("kubelet_cgroup_version", "[ALPHA] cgroup version on the hosts.", f64::from(cgroup));
    let help =
        "[ALPHA] Metrics provider used by kubelet to collect container stats. Values can be 'cadvisor' and 'cri'";
    text.family("kubelet_metrics_provider", Kind::Gauge, help).sample(&[("provider", "cri")], 1.0);
}

/// A pod that the node did not take has no status of any container.
fn is_rejected(pod: &Pod) -> bool {
    let is_failed = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
    is_failed && statuses(pod).next().is_none()
}

/// Figures of claims that pods have mounted; a claim of several pods is there once.
pub fn volumes(text: &mut Text, pods: &[Pod], disks: &Disks) {
    let mut all: BTreeMap<(&str, String), VolumeFigures> = BTreeMap::new();
    for pod in pods {
        let Some(disk) = disks.get(&spec::uid(pod)) else { continue };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for (volume, claim) in claims(pod) {
            if let Some((_, found)) = disk.volumes.get(volume) {
                all.insert((namespace, claim), *found);
            }
        }
    }
    type Figure = fn(&VolumeFigures) -> u64;
    let families: [(&str, &str, Figure); 6] = [
        ("kubelet_volume_stats_available_bytes", "[ALPHA] Number of available bytes in the volume", |v| v.available),
        ("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume", |v| v.capacity),
        ("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume", |v| v.inodes),
        ("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume", |v| v.inodes_free),
        ("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume", |v| v.inodes_used),
        ("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume", |v| v.used),
    ];
    for (name, help, figure) in families {
        let mut family = text.family(name, Kind::Gauge, help);
        for ((namespace, claim), found) in &all {
            family.sample(&[("namespace", namespace), ("persistentvolumeclaim", claim)], figure(found) as f64);
        }
    }
}

/// Volumes that pods want and have, by plugin.
pub fn volume_counts(text: &mut Text, counts: &Counts) {
    let help = "[ALPHA] Number of volumes in Volume Manager";
    let mut family = text.family("volume_manager_total_volumes", Kind::Gauge, help);
    for (state, counts) in [("actual_state_of_world", &counts.actual), ("desired_state_of_world", &counts.desired)] {
        for (plugin, count) in counts {
            family.sample(&[("plugin_name", plugin), ("state", state)], *count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::volumes::PodDisk;

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
            "kubelet_mirror_pods 1",
            "kubelet_cgroup_version 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn a_claim_of_two_pods_is_shown_once_and_volumes_without_one_not_at_all() {
        let pod = |uid: &str| {
            let value = json!({
                "metadata": { "name": "p", "namespace": "n", "uid": uid },
                "spec": { "containers": [], "volumes": [
                    { "name": "data", "persistentVolumeClaim": { "claimName": "c" } },
                    { "name": "scratch", "emptyDir": {} }] },
            });
            serde_json::from_value::<Pod>(value).unwrap()
        };
        let pods = [pod("a"), pod("b"), pod("c")];
        let figures = VolumeFigures { capacity: 9, available: 2, used: 7, inodes: 5, inodes_free: 1, inodes_used: 4 };
        let volumes = ["data", "scratch"].map(|name| (name.to_owned(), (jiff::Timestamp::UNIX_EPOCH, figures)));
        let disk = PodDisk { volumes: volumes.into(), hosts: None };
        let disks: Disks = ["a", "b"].map(|uid| (crate::ids::PodUid::new(uid), disk.clone())).into();
        let mut text = Text::default();
        super::volumes(&mut text, &pods, &disks);
        let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let mut counted = Text::default();
        let counts = Counts { desired: [("kubernetes.io/secret".to_owned(), 2)].into(), ..Counts::default() };
        volume_counts(&mut counted, &counts);
        let counted = String::from_utf8(counted.finish().0.to_vec()).unwrap();
        let line =
            "volume_manager_total_volumes{plugin_name=\"kubernetes.io/secret\",state=\"desired_state_of_world\"} 2";
        assert!(counted.lines().any(|found| found == line), "{counted}");
        let labels = "{namespace=\"n\",persistentvolumeclaim=\"c\"}";
        let expected = [
            ("available_bytes", 2),
            ("capacity_bytes", 9),
            ("inodes", 5),
            ("inodes_free", 1),
            ("inodes_used", 4),
            ("used_bytes", 7),
        ];
        assert_eq!(samples, expected.map(|(name, value)| format!("kubelet_volume_stats_{name}{labels} {value}")));
    }
}
