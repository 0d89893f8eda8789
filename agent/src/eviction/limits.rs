//! What a pod may use of the node's disk, and whether it uses more. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::cgroup::plan::is_critical;
use crate::cgroup::resources::{Overhead, container_limits, pod_limits};
use crate::pod::spec::{self, Role};
use crate::quantity::Quantity;

const RESOURCE: &str = "ephemeral-storage";

/// Limits of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `sizeLimit` of emptyDir volumes on disk, by name, in the order of the spec.
    pub empty_dirs: Vec<(String, Quantity)>,
    /// Of containers and sidecars, by name.
    pub containers: Vec<(String, Quantity)>,
    /// Of all containers together, overhead included.
    pub pod: Option<Quantity>,
}

impl Limits {
    /// Whether more than volumes has to be measured.
    pub fn need_containers(&self) -> bool {
        self.pod.is_some() || !self.containers.is_empty()
    }
}

/// Limits of a pod; `None` when it has none, or when it is not evicted for them.
pub fn limits(pod: &Pod) -> Option<Limits> {
    if is_critical(pod) {
        return None;
    }
    let volumes = spec::spec(pod).volumes.iter().flatten();
    let empty_dirs = volumes.filter_map(|volume| Some((volume.name.clone(), size_limit(volume)?))).collect();
    let spec = spec::spec(pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| spec::init_role(c) == Role::Sidecar);
    let containers = spec.containers.iter().chain(sidecars).filter_map(limit_of).collect();
    let pod = pod_limits(pod, Overhead::Included).get(RESOURCE).copied();
    Some(Limits { empty_dirs, containers, pod }).filter(|limits| *limits != Limits::default())
}

fn limit_of(container: &Container) -> Option<(String, Quantity)> {
    let limit = container_limits(container).get(RESOURCE).copied().filter(|limit| !limit.is_zero())?;
    Some((container.name.clone(), limit))
}

/// A tmpfs is as large as its limit, so the kernel keeps that one.
fn size_limit(volume: &Volume) -> Option<Quantity> {
    let limit = volume.empty_dir.as_ref().filter(|_| is_on_disk(volume))?.size_limit.as_ref()?;
    Quantity::parse(&limit.0).ok().filter(|limit| *limit > Quantity::from_millis(0))
}

fn is_on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref().unwrap_or_default().is_empty())
}

/// Volumes that count for the pod: where each is below the pod's directory, by name.
pub fn local_volumes(pod: &Pod) -> Vec<(String, String)> {
    let place = |volume: &Volume| match (is_on_disk(volume), &volume.config_map) {
        (true, _) => Some("kubernetes.io~empty-dir"),
        (false, Some(_)) => Some("kubernetes.io~configmap"),
        (false, None) => None,
    };
    let volumes = spec::spec(pod).volumes.iter().flatten();
    volumes.filter_map(|v| Some((v.name.clone(), format!("volumes/{}/{}", place(v)?, v.name)))).collect()
}

/// What a container uses, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its writable layer.
    pub layer: u64,
    /// Its log files.
    pub logs: u64,
}

/// What a pod uses, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Volumes on disk, by name.
    pub volumes: BTreeMap<String, u64>,
    /// Containers that run, by name; `None` when they were not measured.
    pub containers: Option<BTreeMap<String, ContainerUse>>,
    /// The hosts file, and files of termination messages.
    pub rest: u64,
    /// Writable layers are on a file system of their own, which is not what a container's limit is about.
    pub has_own_image_disk: bool,
}

/// Why a pod is evicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Label of `kubelet_evictions`.
    pub signal: &'static str,
    /// Message of status and event, with kubelet's space at the end.
    pub message: String,
}

/// What a pod uses too much of; the first of it, in kubelet's order.
pub fn excess(limits: &Limits, used: &Used) -> Option<Excess> {
    for (name, limit) in &limits.empty_dirs {
        if used.volumes.get(name).is_some_and(|bytes| exceeds(*bytes, limit)) {
            let message = format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". ");
            return Some(Excess { signal: "emptydirfs.limit", message });
        }
    }
    let containers = used.containers.as_ref()?;
    let all = containers.values().map(|container| container.layer.saturating_add(container.logs));
    let total = all.chain(used.volumes.values().copied()).fold(used.rest, u64::saturating_add);
    if let Some(limit) = limits.pod.filter(|limit| exceeds(total, limit)) {
        let message = format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(Excess { signal: "ephemeralpodfs.limit", message });
    }
    limits.containers.iter().find_map(|(name, limit)| {
        let found = containers.get(name)?;
        let layer = if used.has_own_image_disk { 0 } else { found.layer };
        exceeds(layer.saturating_add(found.logs), limit).then(|| Excess {
            signal: "ephemeralcontainerfs.limit",
            message: format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "),
        })
    })
}

fn exceeds(bytes: u64, limit: &Quantity) -> bool {
    i64::try_from(bytes).map_or(true, |bytes| bytes > limit.value())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pod(limits: [Option<&str>; 2], volumes: serde_json::Value) -> Pod {
        let container = |name: &str, limit: Option<&str>| {
            let limits = limit.map(|limit| json!({ RESOURCE: limit }));
            json!({ "name": name, "resources": { "limits": limits } })
        };
        serde_json::from_value(json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [container("a", limits[0]), container("b", limits[1])], "volumes": volumes },
        }))
        .unwrap()
    }

    fn used(volume: u64, a: (u64, u64), b: (u64, u64)) -> Used {
        let one = |(layer, logs)| ContainerUse { layer, logs };
        Used {
            volumes: [("cache".to_owned(), volume)].into(),
            containers: Some([("a".to_owned(), one(a)), ("b".to_owned(), one(b))].into()),
            ..Used::default()
        }
    }

    fn message(pod: &Pod, used: &Used) -> Option<String> {
        Some(excess(&limits(pod)?, used)?.message)
    }

    #[test]
    fn each_limit_has_kubelets_words_and_the_volumes_come_first() {
        let volumes = json!([{ "name": "cache", "emptyDir": { "sizeLimit": "1024Ki" } }]);
        let pod = pod([Some("2Mi"), Some("3Mi")], volumes);
        assert_eq!(message(&pod, &used(MIB, (MIB, MIB), (MIB, MIB))), None, "all at their limits");
        assert_eq!(
            message(&pod, &used(MIB + 1, (9 * MIB, 0), (0, 0))).unwrap(),
            "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Mi\". "
        );
        assert_eq!(
            message(&pod, &used(MIB, (0, 0), (4 * MIB, 1))).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
        );
        assert_eq!(
            message(&pod, &used(0, (MIB, MIB + 1), (0, 0))).unwrap(),
            "Container a exceeded its local ephemeral storage limit \"2Mi\". "
        );
        let hosts = Used { rest: 5 * MIB + 1, ..used(0, (0, 0), (0, 0)) };
        assert_eq!(
            message(&pod, &hosts).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
        );
        let apart = Used { has_own_image_disk: true, ..used(0, (MIB, MIB + 1), (0, 0)) };
        assert_eq!(message(&pod, &apart), None, "its layer is on another disk");
    }

    #[test]
    fn what_was_not_measured_is_not_too_much() {
        let volumes =
            json!([{ "name": "cache", "emptyDir": { "sizeLimit": "1Mi" } }, { "name": "other", "emptyDir": {} }]);
        let pod = pod([Some("1"), None], volumes);
        assert_eq!(message(&pod, &Used { containers: None, ..used(5, (0, 0), (0, 0)) }), None);
        let unknown = Used { volumes: BTreeMap::new(), containers: Some(BTreeMap::new()), ..Used::default() };
        assert_eq!(message(&pod, &unknown), None);
    }

    #[test]
    fn a_limit_of_one_container_is_one_for_the_whole_pod() {
        let pod = pod([Some("2Mi"), None], json!([]));
        assert_eq!(
            message(&pod, &used(0, (0, 0), (3 * MIB, 0))).unwrap(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. "
        );
    }

    #[test]
    fn pods_without_limits_and_critical_ones_are_not_measured() {
        let memory = json!([{ "name": "m", "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }, { "name": "d", "emptyDir": {} }]);
        assert_eq!(limits(&pod([None, None], memory.clone())), None);
        assert!(limits(&pod([Some("1Gi"), None], memory)).is_some());
        let mut critical = pod([Some("1Gi"), None], json!([]));
        critical.spec.as_mut().unwrap().priority = Some(2_000_000_000);
        assert_eq!(limits(&critical), None);
        for (name, value) in [(spec::SOURCE_ANNOTATION, "file"), (spec::MIRROR_ANNOTATION, "x")] {
            let mut of_a_file = pod([Some("1Gi"), None], json!([]));
            of_a_file.metadata.annotations = Some([(name.to_owned(), value.to_owned())].into());
            assert_eq!(limits(&of_a_file), None, "{name}");
        }
    }

    #[test]
    fn only_volumes_on_the_nodes_disk_count() {
        let volumes = json!([
            { "name": "d", "emptyDir": {} }, { "name": "m", "emptyDir": { "medium": "Memory" } },
            { "name": "c", "configMap": { "name": "c" } }, { "name": "s", "secret": { "secretName": "s" } },
            { "name": "h", "hostPath": { "path": "/" } },
        ]);
        let found = local_volumes(&pod([None, None], volumes));
        let expected = [("d", "volumes/kubernetes.io~empty-dir/d"), ("c", "volumes/kubernetes.io~configmap/c")];
        assert_eq!(found, expected.map(|(name, path)| (name.to_owned(), path.to_owned())));
    }

    proptest! {
        #[test]
        fn nobody_within_all_limits_is_evicted_and_everybody_above_one_is(
            volume in 0u64..4, a in (0u64..3, 0u64..3), b in (0u64..3, 0u64..3), size in 1u64..4, of_a in 1u64..6, of_b in 1u64..6,
        ) {
            let volumes = json!([{ "name": "cache", "emptyDir": { "sizeLimit": size.to_string() } }]);
            let pod = pod([Some(&of_a.to_string()), Some(&of_b.to_string())], volumes);
            let total = volume + a.0 + a.1 + b.0 + b.1;
            let is_over = volume > size || a.0 + a.1 > of_a || b.0 + b.1 > of_b || total > of_a + of_b;
            prop_assert_eq!(message(&pod, &used(volume, a, b)).is_some(), is_over);
        }
    }
}
