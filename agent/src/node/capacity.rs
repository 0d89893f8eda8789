//! What the node has, and what of it is for pods. Pure.
//!
//! ```text
//!  capacity ── kubeReserved, systemReserved ──► pod limits     of the cgroup `kubepods` (process ids included)
//!           └─ the same, and hard eviction ───► allocatable    of the Node object, for scheduler and admission
//! ```
//! Between the two lies what eviction needs to act in: pods may use it, and some of them have to go then.
//! Source: KEP-353 and "Reserve Compute Resources for System Daemons" of the Kubernetes documentation.

use std::collections::BTreeMap;

use super::NodeSettings;
use super::facts::MachineFacts;
use crate::quantity::{Format, Quantity};

/// Resources by name; the values are exact.
pub type Resources = BTreeMap<String, Quantity>;

/// Process ids: a resource that can be reserved and limited, and that no pod requests.
pub const PIDS: &str = "pid";
const HUGE_PAGES: &str = "hugepages-";

fn bytes(amount: u64) -> Quantity {
    Quantity::from_units(i64::try_from(amount).unwrap_or(i64::MAX), Format::BinarySi)
}

/// What the machine has, by the names of the API.
pub fn capacity(settings: &NodeSettings, facts: &MachineFacts) -> Resources {
    let pods = match settings.pods_per_core {
        0 => settings.max_pods,
        per_core => settings.max_pods.min(per_core.saturating_mul(i64::from(facts.cpus))),
    };
    let mut capacity = Resources::from([
        ("cpu".to_owned(), Quantity::from_millis(i64::from(facts.cpus) * 1000)),
        ("memory".to_owned(), bytes(facts.memory)),
        ("pods".to_owned(), Quantity::from_units(pods, Format::DecimalSi)),
    ]);
    if let Some(disk) = facts.disk {
        capacity.insert("ephemeral-storage".to_owned(), bytes(disk));
    }
    for (size, count) in &facts.hugepages {
        capacity.insert(format!("{HUGE_PAGES}{}", bytes(*size)), bytes(size * count));
    }
    capacity
}

/// What pods may ask for in total. Huge pages are memory that the kernel gives to nobody else.
pub fn allocatable(settings: &NodeSettings, capacity: &Resources) -> Resources {
    let mut allocatable = Resources::new();
    for (name, total) in capacity {
        let left = total.minus(reservation(settings, name, *total));
        allocatable.insert(name.clone(), not_negative(left));
    }
    let huge: Vec<Quantity> =
        capacity.iter().filter(|(name, _)| name.starts_with(HUGE_PAGES)).map(|(_, total)| *total).collect();
    if let Some(memory) = allocatable.get_mut("memory") {
        *memory = not_negative(huge.into_iter().fold(*memory, Quantity::minus));
    }
    allocatable
}

/// The limits of all pods together: capacity, less what is reserved where `enforceNodeAllocatable` names `pods`.
pub fn pod_limits(settings: &NodeSettings, facts: &MachineFacts, is_enforced: bool) -> Resources {
    let mut limits = capacity(settings, facts);
    limits.extend(facts.max_pids.map(|most| {
        (PIDS.to_owned(), Quantity::from_units(i64::try_from(most).unwrap_or(i64::MAX), Format::DecimalSi))
    }));
    for (name, amount) in limits.iter_mut().filter(|_| is_enforced) {
        *amount = not_negative(amount.minus(reserved(settings, name)));
    }
    limits
}

/// What is wrong with reservations that are larger than the machine; `None` where they fit.
pub fn excess(settings: &NodeSettings, capacity: &Resources) -> Option<String> {
    let texts: Vec<String> = capacity
        .iter()
        .map(|(name, total)| (name, total, reservation(settings, name, *total)))
        .filter(|(_, total, kept)| kept > total)
        .map(|(name, total, kept)| {
            format!(
                "{name}: kubeReserved, systemReserved and evictionHard keep {kept} of {total}; expected at most that"
            )
        })
        .collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn reservation(settings: &NodeSettings, name: &str, capacity: Quantity) -> Quantity {
    let eviction = eviction_reservation(settings, name, capacity);
    eviction.map_or(reserved(settings, name), |eviction| reserved(settings, name).plus(eviction))
}

fn reserved(settings: &NodeSettings, name: &str) -> Quantity {
    let of_this = settings.reserved.iter().filter(|(resource, _)| resource == name);
    of_this.fold(Quantity::from_units(0, Format::BinarySi), |sum, (_, amount)| sum.plus(*amount))
}

fn not_negative(quantity: Quantity) -> Quantity {
    match quantity < Quantity::from_millis(0) {
        true => Quantity::from_units(0, Format::BinarySi),
        false => quantity,
    }
}

fn eviction_reservation(settings: &NodeSettings, resource: &str, capacity: Quantity) -> Option<Quantity> {
    let signal = match resource {
        "memory" => "memory.available",
        "ephemeral-storage" => "nodefs.available",
        _ => return None,
    };
    let (_, text) = settings.eviction_hard.iter().find(|(name, _)| name == signal)?;
    match text.strip_suffix('%') {
        // In single precision and then truncated, as kubelet computes it: the same byte count after a switch.
        Some(percent) => {
            let fraction = f64::from(percent.trim().parse::<f32>().ok()? / 100.0);
            Some(Quantity::from_units((capacity.value() as f64 * fraction) as i64, Format::BinarySi))
        }
        None => Quantity::parse(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{facts, settings};
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap()
    }

    fn reserving(amounts: &[(&str, &str)]) -> NodeSettings {
        let reserved = amounts.iter().map(|(name, text)| ((*name).to_owned(), quantity(text))).collect();
        NodeSettings { reserved, ..settings() }
    }

    #[test]
    fn pods_are_limited_to_capacity_less_what_is_reserved_and_eviction_keeps_its_room() {
        let facts = MachineFacts { max_pids: Some(32_768), hugepages: [(2 << 20, 4)].into(), ..facts() };
        let reserved = [("cpu", "500m"), ("memory", "1Gi"), ("pid", "1000"), ("ephemeral-storage", "1Gi")];
        let settings = reserving(&reserved);
        let limits = |is_enforced| {
            let limits = pod_limits(&settings, &facts, is_enforced);
            ["cpu", "memory", "pid", "hugepages-2Mi"].map(|name| limits[name].to_string())
        };
        assert_eq!(limits(true), ["3500m", "7Gi", "31768", "8Mi"]);
        assert_eq!(limits(false), ["4", "8Gi", "32768", "8Mi"], "not enforced");
        let capacity = capacity(&settings, &facts);
        assert!(!capacity.contains_key(PIDS), "no pod can request process ids");
        // 7 Gi less 100 Mi of eviction and 8 Mi of huge pages.
        assert_eq!(allocatable(&settings, &capacity)["memory"], quantity("7060Mi"));
        assert_eq!(excess(&settings, &capacity), None);
    }

    #[test]
    fn reservations_that_the_machine_does_not_have_are_named_and_leave_nothing() {
        let settings = reserving(&[("cpu", "4100m"), ("memory", "8Gi")]);
        let (facts, capacity) = (facts(), capacity(&settings, &facts()));
        let limits = pod_limits(&settings, &facts, true);
        assert_eq!(["cpu", "memory"].map(|name| limits[name].value()), [0, 0]);
        let text = excess(&settings, &capacity).unwrap();
        assert!(text.contains("cpu: kubeReserved") && text.contains("keep 4100m of 4;"), "{text}");
        assert!(text.contains("memory") && text.contains("8292Mi of 8Gi"), "{text}");
    }
}
