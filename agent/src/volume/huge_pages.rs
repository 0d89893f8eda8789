//! The page size of an emptyDir on huge pages. Pure.
//!
//! `HugePages` takes the one size that the pod's resources name, `HugePages-2Mi` its own, which they have to name: pages
//! come from what the pod's cgroup is limited to, and for a size that it does not ask for that is none.

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::cgroup::resources::HUGE_PAGES_PREFIX;
use crate::quantity::Quantity;

/// Mediums on huge pages begin with this.
pub(super) const MEDIUM: &str = "HugePages";

/// Page size in bytes for a medium, or why there is none, in kubelet's words.
pub(super) fn page_size(medium: &str, pod: &Pod) -> Result<u64, String> {
    let asked = sizes(pod)?;
    let found = match medium.strip_prefix(MEDIUM).map(|rest| rest.strip_prefix('-')) {
        Some(Some(size)) => {
            let size =
                bytes(size).ok_or_else(|| format!("medium {medium}: {size:?} is not a page size, such as 2Mi"))?;
            asked.contains(&size).then_some(size)
        }
        Some(None) if medium == MEDIUM => match asked.as_slice() {
            [] => None,
            [size] => Some(*size),
            [_, _, ..] => {
                return Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"));
            }
        },
        Some(None) | None => return Err(format!("unknown storage medium {medium:?}")),
    };
    found.ok_or_else(|| {
        format!("medium {medium}: hugePages storage requested, but there is no resource request for huge pages")
    })
}

/// Page sizes that a pod asks for, each once.
fn sizes(pod: &Pod) -> Result<Vec<u64>, String> {
    let Some(spec) = &pod.spec else { return Ok(Vec::new()) };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let all = containers.filter_map(|c| c.resources.as_ref()).chain(spec.resources.as_ref());
    let mut found = Vec::new();
    for name in all.flat_map(names) {
        if let Some(size) = name.strip_prefix(HUGE_PAGES_PREFIX) {
            found
                .push(bytes(size).ok_or_else(|| format!("resource {name}: {size:?} is not a page size, such as 2Mi"))?);
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Requests, and limits: huge pages have both or, in what was written by hand, the latter for both.
fn names(resources: &ResourceRequirements) -> impl Iterator<Item = &String> {
    resources.requests.iter().chain(&resources.limits).flat_map(|list| list.keys())
}

fn bytes(size: &str) -> Option<u64> {
    u64::try_from(Quantity::parse(size).ok()?.value()).ok().filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(containers: Value, init: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).unwrap()
    }

    fn asking(sizes: &[&str]) -> Value {
        let list: serde_json::Map<String, Value> =
            sizes.iter().map(|size| (format!("hugepages-{size}"), json!("64Mi"))).collect();
        json!([{"name": "c", "resources": {"requests": list.clone(), "limits": list}}])
    }

    #[test]
    fn the_size_is_the_mediums_or_the_one_that_the_pod_asks_for() {
        for (medium, asked, init, size) in [
            ("HugePages", &["2Mi"][..], &[][..], 2 << 20),
            ("HugePages", &[], &["1Gi"], 1 << 30),
            ("HugePages-2Mi", &["2Mi", "1Gi"], &[], 2 << 20),
            ("HugePages-1Gi", &["2Mi"], &["1Gi"], 1 << 30),
            ("HugePages-2048Ki", &["2Mi"], &[], 2 << 20),
        ] {
            assert_eq!(page_size(medium, &pod(asking(asked), asking(init))), Ok(size), "{medium} {asked:?} {init:?}");
        }
        let of_pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}],
            "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "8Mi"}}}}))
        .unwrap();
        assert_eq!(page_size("HugePages", &of_pod), Ok(2 << 20));
    }

    #[test]
    fn a_size_that_is_not_asked_for_or_not_clear_is_an_error() {
        for (medium, asked, said) in [
            ("HugePages", &[][..], "there is no resource request for huge pages"),
            ("HugePages-2Mi", &["1Gi"], "there is no resource request for huge pages"),
            ("HugePages", &["2Mi", "1Gi"], "multiple huge page sizes"),
            ("HugePages-big", &["2Mi"], "\"big\" is not a page size"),
            ("HugePages2Mi", &["2Mi"], "unknown storage medium"),
            ("HugePages", &["much"], "\"much\" is not a page size"),
        ] {
            let error = page_size(medium, &pod(asking(asked), json!([]))).unwrap_err();
            assert!(error.contains(said), "{medium}: {error}");
        }
    }
}
