//! How much swap a container may use (KEP-2400). Pure.
//!
//! Unless `LimitedSwap` is asked for, none. With it, only containers that may be reclaimed from anyway: of Burstable pods that
//! are not critical, with a memory request below the limit. Each gets as much of the node's swap as it requests of its
//! memory.

use k8s_openapi::api::core::v1::{Container, Pod};
use nodelet_proto::cri;

use super::plan::{CgroupVersion, ContainerFacts, is_critical};
use super::resources::{MEMORY, QosClass, amount, container_limits, container_requests, qos_class};

/// How much swap containers may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapBehavior {
    /// The kernel has no swap accounting: nothing is written.
    Unaccounted,
    /// `memorySwap.swapBehavior: NoSwap`.
    NoSwap,
    /// `memorySwap.swapBehavior: LimitedSwap`: Burstable containers get a share by their memory request.
    LimitedSwap {
        /// Swap of the node in bytes.
        available: i64,
    },
}

/// Tells the runtime.
pub(super) fn set(
    resources: &mut cri::LinuxContainerResources,
    pod: &Pod,
    container: &Container,
    facts: &ContainerFacts,
) {
    let limit = match (facts.swap, facts.version) {
        (SwapBehavior::Unaccounted, _) => return,
        (_, CgroupVersion::V1) => {
            // v1 counts memory and swap together: the same limit leaves no swap.
            resources.memory_swap_limit_in_bytes = resources.memory_limit_in_bytes;
            return;
        }
        (SwapBehavior::NoSwap, CgroupVersion::V2) => 0,
        (SwapBehavior::LimitedSwap { available }, CgroupVersion::V2) => {
            limit(pod, container, facts.memory_capacity, available)
        }
    };
    resources.unified.insert("memory.swap.max".to_owned(), limit.to_string());
}

/// Whether a container swaps where that is limited.
pub fn may_swap(pod: &Pod, container: &Container) -> bool {
    let request = amount(&container_requests(container), MEMORY);
    let limit = amount(&container_limits(container), MEMORY);
    // Also where it has neither: both are zero.
    qos_class(pod) == QosClass::Burstable && !is_critical(pod) && request != limit
}

fn limit(pod: &Pod, container: &Container, memory_capacity: i64, available: i64) -> i64 {
    let request = amount(&container_requests(container), MEMORY).value();
    if !may_swap(pod, container) || memory_capacity <= 0 || request > memory_capacity {
        return 0;
    }
    // In double precision and then truncated, as kubelet computes it.
    (request as f64 / memory_capacity as f64 * available as f64) as i64
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::plan::container_resources;
    use super::super::plan::tests::{container, facts, pod};
    use super::*;

    const LIMITED: SwapBehavior = SwapBehavior::LimitedSwap { available: 2_000_000_000 };

    fn told(spec: Value, version: CgroupVersion, swap: SwapBehavior) -> cri::LinuxContainerResources {
        let pod = pod(spec);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        container_resources(&pod, container, &ContainerFacts { version, swap, ..facts() })
    }

    fn asking(requests: Value, limits: Value) -> Value {
        json!({"containers": [container("a", requests, limits)]})
    }

    #[test]
    fn swap_is_shared_by_memory_request_among_those_that_may() {
        let (one, two) = (json!({"memory": "1G"}), json!({"memory": "2G"}));
        let full = json!({"cpu": "1", "memory": "1G"});
        let mut critical = asking(one.clone(), two.clone());
        critical["priority"] = 2_000_000_000.into();
        for (name, spec, limit) in [
            ("a quarter of the memory, a quarter of the swap", asking(one.clone(), two.clone()), "500000000"),
            ("without a limit", asking(one.clone(), json!({})), "500000000"),
            ("a limit and no request", asking(json!({}), two), "0"),
            ("request and limit are the same", asking(one.clone(), one), "0"),
            ("Guaranteed", asking(full.clone(), full), "0"),
            ("BestEffort", asking(json!({}), json!({})), "0"),
            ("Burstable by CPU alone", asking(json!({"cpu": "1"}), json!({})), "0"),
            ("critical", critical, "0"),
            ("more than the node has", asking(json!({"memory": "5G"}), json!({})), "0"),
        ] {
            assert_eq!(told(spec, CgroupVersion::V2, LIMITED).unified["memory.swap.max"], limit, "{name}");
        }
    }

    #[test]
    fn without_limited_swap_there_is_none_and_without_accounting_nothing_is_written() {
        let spec = || asking(json!({"memory": "1G"}), json!({"memory": "2G"}));
        assert_eq!(told(spec(), CgroupVersion::V2, SwapBehavior::NoSwap).unified["memory.swap.max"], "0");
        for swap in [SwapBehavior::NoSwap, LIMITED] {
            let told = told(spec(), CgroupVersion::V1, swap);
            assert_eq!((told.memory_swap_limit_in_bytes, told.unified.len()), (2_000_000_000, 0), "{swap:?}");
        }
        let v2 = told(spec(), CgroupVersion::V2, SwapBehavior::Unaccounted);
        assert!(!v2.unified.contains_key("memory.swap.max"));
        assert_eq!(told(spec(), CgroupVersion::V1, SwapBehavior::Unaccounted).memory_swap_limit_in_bytes, 0);
    }
}
