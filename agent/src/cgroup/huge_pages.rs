//! Limits of huge pages: of the node, of pods and of containers. Pure.
//!
//! Huge pages are never overcommitted: a size that is not named is limited to none, at every level but that of QoS classes.

use std::collections::BTreeMap;

use nodelet_proto::cri;

use super::resources::{HUGE_PAGES_PREFIX, ResourceList};
use crate::quantity::Quantity;

/// Limits in bytes by page size in bytes.
pub fn limits(list: &ResourceList) -> BTreeMap<i64, i64> {
    let mut limits = BTreeMap::new();
    for (name, quantity) in list {
        let size = name.strip_prefix(HUGE_PAGES_PREFIX).and_then(|size| Quantity::parse(size).ok());
        if let Some(size) = size {
            *limits.entry(size.value()).or_insert(0) += quantity.value();
        }
    }
    limits
}

/// The same with zero for every size of the kernel that is not named.
pub fn of_all_sizes(mut limits: BTreeMap<i64, i64>, sizes: &[i64]) -> BTreeMap<i64, i64> {
    for size in sizes {
        limits.entry(*size).or_insert(0);
    }
    limits
}

/// What the runtime is told for a container; what the pod is limited to counts for the sizes that the container leaves out.
pub(super) fn of_container(pod: &ResourceList, container: &ResourceList, sizes: &[i64]) -> Vec<cri::HugepageLimit> {
    let (pod, own) = (limits(pod), limits(container));
    let limit = |size: &i64| own.get(size).or_else(|| pod.get(size)).copied().unwrap_or(0);
    let told = |size: &i64| cri::HugepageLimit {
        page_size: page_size_name(*size),
        limit: u64::try_from(limit(size)).unwrap_or(0),
    };
    sizes.iter().map(told).collect()
}

/// A page size as cgroup files and the CRI name it: `2MB`, `1GB`, `64KB`.
pub fn page_size_name(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::plan::tests::{container, facts, pod};
    use super::super::plan::{CfsQuota, ContainerFacts, container_resources, kubepods_values, pod_values};
    use super::*;

    const SIZES: [i64; 3] = [64 << 10, 2 << 20, 1 << 30];

    fn told(spec: Value) -> Vec<(String, u64)> {
        let pod = pod(spec);
        let facts = ContainerFacts { huge_page_sizes: SIZES.to_vec(), ..facts() };
        let told = container_resources(&pod, &pod.spec.as_ref().unwrap().containers[0], &facts).hugepage_limits;
        told.into_iter().map(|limit| (limit.page_size, limit.limit)).collect()
    }

    fn by_size(limits: [u64; 3]) -> Vec<(String, u64)> {
        ["64KB", "2MB", "1GB"].map(str::to_owned).into_iter().zip(limits).collect()
    }

    #[test]
    fn a_container_has_what_it_names_else_what_its_pod_names_else_none() {
        let pages = json!({"hugepages-2Mi": "4Mi", "memory": "64Mi"});
        let own = container("a", pages.clone(), pages);
        assert_eq!(told(json!({"containers": [own]})), by_size([0, 4 << 20, 0]));
        let level = json!({"limits": {"hugepages-2Mi": "8Mi", "hugepages-1Gi": "1Gi"}});
        assert_eq!(told(json!({"resources": level, "containers": [own]})), by_size([0, 4 << 20, 1 << 30]));
        assert_eq!(told(json!({"containers": [{"name": "a"}]})), by_size([0, 0, 0]));
    }

    #[test]
    fn a_pod_has_the_sum_of_its_containers_and_nothing_of_other_sizes() {
        let pages = json!({"hugepages-2Mi": "4Mi", "memory": "64Mi"});
        let one = |name| container(name, pages.clone(), pages.clone());
        let two = pod(json!({"containers": [one("a"), one("b")]}));
        let values = pod_values(&two, CfsQuota::Off, None);
        let expected = [(64 << 10, 0), (2 << 20, 8 << 20), (1 << 30, 0)].into();
        assert_eq!(of_all_sizes(values.huge_pages, &SIZES), expected);
    }

    #[test]
    fn all_pods_together_have_what_the_node_has() {
        let amount = |text: &str| Quantity::parse(text).unwrap();
        let node = [("hugepages-2Mi".to_owned(), amount("16Mi")), ("hugepages-1Gi".to_owned(), amount("0"))];
        assert_eq!(kubepods_values(&node.into()).huge_pages, [(2 << 20, 16 << 20), (1 << 30, 0)].into());
    }
}
