//! Protection and throttling of memory (MemoryQoS, KEP-2570). Pure; cgroup v2 only.
//!
//! ```text
//!  memory.min    Guaranteed: what is requested is never reclaimed      ┐ only with memoryReservationPolicy
//!  memory.low    Burstable: it is reclaimed after everything else      ┘ TieredReservation, at every level
//!  memory.high   a container that may exceed its request is slowed     only with a memoryThrottlingFactor
//!                down before it reaches its limit and is killed
//! ```
//! A child is protected only as far as all above it are, so that `kubepods` and `burstable` have the sums of their pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::plan::Request;
use super::resources::{
    MEMORY, Overhead, QosClass, amount, container_limits, container_requests, init_and_regular, pod_level, pod_limits,
    pod_requests, qos_class, resource_list,
};

/// Files of cgroup v2 and what is written to them.
pub type Unified = BTreeMap<String, String>;

const MIN: &str = "memory.min";
const LOW: &str = "memory.low";
const HIGH: &str = "memory.high";

/// What is done about memory beyond its limits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MemoryQos {
    /// The feature gate is off: throttling that was set before is taken back.
    Off,
    /// It is on, as by default.
    On {
        /// `memoryReservationPolicy: TieredReservation`.
        is_tiered: bool,
        /// `memoryThrottlingFactor`, and the bytes that stand for a limit where there is none: what the node has for pods.
        throttling: Option<Throttling>,
    },
}

/// Where throttling begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttling {
    /// Between request (0) and limit (1).
    pub factor: f64,
    /// Memory of the node for pods, in bytes.
    pub allocatable: i64,
    /// Bytes of a page.
    pub page_size: i64,
}

impl Throttling {
    /// `memory.high`: whole pages between request and limit; `None` where that is no more than the request.
    fn high(self, request: i64, limit: i64) -> Option<i64> {
        let exact = request as f64 + (limit as f64 - request as f64) * self.factor;
        let high = (exact / self.page_size as f64).floor() as i64 * self.page_size;
        (high > 0 && high > request).then_some(high)
    }
}

impl MemoryQos {
    /// Whether what pods request is protected, so that the values above them follow the pods.
    pub fn is_tiered(self) -> bool {
        matches!(self, Self::On { is_tiered: true, .. })
    }
}

fn file(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// Where the protection of a class is written.
fn protection(class: QosClass) -> &'static str {
    if class == QosClass::Guaranteed { MIN } else { LOW }
}

/// Of a container; the runtime is told.
pub(super) fn of_container(pod: &Pod, container: &Container, qos: MemoryQos) -> Unified {
    let MemoryQos::On { is_tiered, throttling } = qos else { return Unified::from([file(HIGH, "max")]) };
    let request = amount(&container_requests(container), MEMORY).value();
    let limit = amount(&container_limits(container), MEMORY).value();
    let mut unified = match is_tiered && request != 0 {
        true => Unified::from([file(protection(qos_class(pod)), request)]),
        // What an earlier configuration left behind is taken back.
        false => Unified::from([file(MIN, 0), file(LOW, 0)]),
    };
    let level = resource_list(pod_level(pod).and_then(|resources| resources.limits.as_ref()));
    // The pod's own memory.high holds for its containers.
    let is_held_by_pod = limit == 0 && !amount(&level, MEMORY).is_zero();
    let may_exceed = request != limit || request == 0;
    if let Some(throttling) = throttling.filter(|_| may_exceed && !is_held_by_pod) {
        let limit = if limit == 0 { throttling.allocatable } else { limit };
        unified.extend(throttling.high(request, limit).map(|high| file(HIGH, high)));
    }
    unified
}

/// Of a pod's cgroup.
pub fn of_pod(pod: &Pod, qos: MemoryQos) -> Unified {
    let MemoryQos::On { is_tiered, throttling } = qos else { return Unified::new() };
    let request = amount(&pod_requests(pod, Overhead::Included), MEMORY).value();
    let mut unified = Unified::new();
    if is_tiered && request > 0 {
        unified.extend([file(protection(qos_class(pod)), request)]);
    }
    let (Some(throttling), Some(level)) = (throttling, pod_level(pod)) else { return unified };
    let is_limited = !amount(&resource_list(level.limits.as_ref()), MEMORY).is_zero()
        || init_and_regular(pod).all(|container| !amount(&container_limits(container), MEMORY).is_zero());
    let limit = amount(&pod_limits(pod, Overhead::Included), MEMORY).value();
    if is_limited && limit != 0 && request != limit {
        unified.extend(throttling.high(request, limit).map(|high| file(HIGH, high)));
    }
    unified
}

/// What pods request together, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// By Guaranteed pods.
    pub guaranteed: i64,
    /// By Burstable pods.
    pub burstable: i64,
}

impl Sums {
    /// Sums of requests.
    pub fn of<'a>(requests: impl Iterator<Item = &'a Request>) -> Self {
        requests.fold(Self::default(), |sums, request| match request.class {
            QosClass::Guaranteed => Self { guaranteed: sums.guaranteed.saturating_add(request.memory), ..sums },
            QosClass::Burstable => Self { burstable: sums.burstable.saturating_add(request.memory), ..sums },
            QosClass::BestEffort => sums,
        })
    }
}

/// Of `kubepods`: it covers both classes.
pub fn of_kubepods(sums: Sums, qos: MemoryQos) -> Unified {
    let (min, low) = match qos.is_tiered() {
        true => (sums.guaranteed.saturating_add(sums.burstable), sums.burstable),
        false => (0, 0),
    };
    Unified::from([file(MIN, min), file(LOW, low)])
}

/// Of the class Burstable.
pub fn of_burstable(sums: Sums, qos: MemoryQos) -> Unified {
    Unified::from([file(LOW, if qos.is_tiered() { sums.burstable } else { 0 })])
}

/// Of a cgroup of daemons with `memory` reserved.
pub(super) fn of_reserved(memory: Option<i64>, qos: MemoryQos) -> Unified {
    match qos {
        MemoryQos::Off => Unified::new(),
        MemoryQos::On { .. } => memory.map(|memory| file(MIN, memory)).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::plan::tests::{container, pod};
    use super::*;

    const NONE: MemoryQos = MemoryQos::On { is_tiered: false, throttling: None };
    const TIERED: MemoryQos = MemoryQos::On { is_tiered: true, throttling: None };
    const THROTTLED: MemoryQos = MemoryQos::On {
        is_tiered: false,
        throttling: Some(Throttling { factor: 0.9, allocatable: 8 << 30, page_size: 4096 }),
    };

    fn asking(request: &str, limit: &str) -> Value {
        let amount = |text: &str| match text {
            "" => json!({}),
            text => json!({"memory": text, "cpu": "1"}),
        };
        json!({"containers": [container("a", amount(request), amount(limit))]})
    }

    fn shown(unified: Unified) -> String {
        let file = |(name, value): (String, String)| format!("{}={value}", name.trim_start_matches("memory."));
        unified.into_iter().map(file).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn containers_have_the_values_of_kubelet() {
        // 1 Gi and 0.9 of the other Gi, in whole pages; and of the node where there is no limit.
        let (high, of_node) = ("high=2040107008", "high=7838314496");
        for (name, qos, request, limit, expected) in [
            ("off", MemoryQos::Off, "1Gi", "2Gi", "high=max".to_owned()),
            ("by default", NONE, "1Gi", "2Gi", "low=0 min=0".to_owned()),
            ("Guaranteed", TIERED, "1Gi", "1Gi", format!("min={}", 1 << 30)),
            ("Burstable", TIERED, "1Gi", "2Gi", format!("low={}", 1 << 30)),
            ("BestEffort", TIERED, "", "", "low=0 min=0".to_owned()),
            ("throttled before the limit", THROTTLED, "1Gi", "2Gi", format!("{high} low=0 min=0")),
            ("throttled before the node is full", THROTTLED, "1Gi", "", format!("{of_node} low=0 min=0")),
            ("BestEffort is throttled, too", THROTTLED, "", "", "high=7730937856 low=0 min=0".to_owned()),
            ("Guaranteed is not", THROTTLED, "1Gi", "1Gi", "low=0 min=0".to_owned()),
        ] {
            let pod = pod(asking(request, limit));
            let unified = of_container(&pod, &pod.spec.as_ref().unwrap().containers[0], qos);
            assert_eq!(shown(unified), expected, "{name}");
        }
    }

    #[test]
    fn a_limit_of_the_pod_throttles_the_pod_and_not_the_container_without_its_own() {
        let level = |request: &str, limit: &str| {
            let resources = json!({"requests": {"memory": request}, "limits": {"memory": limit}});
            pod(json!({"resources": resources, "containers": [{"name": "a"}]}))
        };
        let one = level("1Gi", "2Gi");
        assert_eq!(shown(of_container(&one, &one.spec.as_ref().unwrap().containers[0], THROTTLED)), "low=0 min=0");
        assert_eq!(shown(of_pod(&one, THROTTLED)), "high=2040107008");
        assert_eq!(shown(of_pod(&level("1Gi", "1Gi"), THROTTLED)), "");
        assert_eq!(shown(of_pod(&pod(asking("1Gi", "2Gi")), THROTTLED)), "", "only with pod-level resources");
    }

    #[test]
    fn pods_are_protected_by_their_class() {
        for (name, qos, spec, expected) in [
            ("by default", NONE, asking("1Gi", "2Gi"), String::new()),
            ("off", MemoryQos::Off, asking("1Gi", "2Gi"), String::new()),
            ("Guaranteed", TIERED, asking("1Gi", "1Gi"), format!("min={}", 1 << 30)),
            ("Burstable", TIERED, asking("1Gi", ""), format!("low={}", 1 << 30)),
            ("BestEffort", TIERED, asking("", ""), String::new()),
        ] {
            assert_eq!(shown(of_pod(&pod(spec), qos)), expected, "{name}");
        }
    }

    #[test]
    fn what_is_above_pods_covers_them() {
        let request = |class, memory| Request { class, milli_cpu: 0, memory };
        let requests = [
            request(QosClass::Guaranteed, 100),
            request(QosClass::Burstable, 20),
            request(QosClass::Burstable, 3),
            request(QosClass::BestEffort, 1000),
        ];
        let sums = Sums::of(requests.iter());
        assert_eq!(sums, Sums { guaranteed: 100, burstable: 23 });
        assert_eq!(shown(of_kubepods(sums, TIERED)), "low=23 min=123");
        assert_eq!(shown(of_burstable(sums, TIERED)), "low=23");
        for qos in [NONE, THROTTLED, MemoryQos::Off] {
            assert_eq!(shown(of_kubepods(sums, qos)), "low=0 min=0", "what was there before is taken back");
            assert_eq!(shown(of_burstable(sums, qos)), "low=0");
        }
        assert_eq!(shown(of_reserved(Some(7), NONE)), "min=7");
        assert_eq!(shown(of_reserved(Some(7), MemoryQos::Off)) + &shown(of_reserved(None, NONE)), "");
    }
}
