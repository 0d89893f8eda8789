//! The fields of a `KubeletConfiguration` about CPU, memory, swap and process ids. Pure.

use super::Kubelet;
use crate::config::fields::{Fields, Findings};
use crate::node::capacity::PIDS;
use crate::node::facts::count_cpus;
use crate::quantity::{Format, Quantity};

/// Amounts by resource name.
pub type Amounts = Vec<(String, Quantity)>;

/// What is kept from pods, and for whom.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reserved {
    /// `kubeReserved`.
    pub kube: Amounts,
    /// `systemReserved`.
    pub system: Amounts,
    /// Whether `reservedSystemCPUs` says how much CPU it is.
    pub has_cpu_list: bool,
}

impl Reserved {
    /// Both together.
    pub fn total(&self) -> Amounts {
        let mut sum = self.kube.clone();
        for (name, quantity) in &self.system {
            match sum.iter_mut().find(|(n, _)| n == name) {
                Some((_, total)) => *total = total.plus(*quantity),
                None => sum.push((name.clone(), *quantity)),
            }
        }
        sum
    }
}

/// Whether containers may swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swap {
    /// They may not.
    #[default]
    NoSwap,
    /// Those of Burstable pods get a share.
    LimitedSwap,
}

/// Protection and throttling of memory on cgroup v2 (KEP-2570).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryQos {
    /// The feature gate, which is on by default.
    pub is_on: bool,
    /// `memoryReservationPolicy: TieredReservation`: requests are protected from reclaim.
    pub is_tiered: bool,
    /// `memoryThrottlingFactor`: where between request and limit throttling begins; `None` for no throttling.
    pub throttling: Option<f64>,
}

/// `kubeReserved`, `systemReserved` and `reservedSystemCPUs`.
pub(super) fn reserved(all: &mut Fields, f: &mut Findings) -> Reserved {
    let (kube, system) = (amounts(all, f, "kubeReserved"), amounts(all, f, "systemReserved"));
    let mut reserved = Reserved { kube, system, has_cpu_list: false };
    if let Some(list) = all.filled(f, "reservedSystemCPUs") {
        match count_cpus(&list) {
            // The list says more exactly what the amounts say.
            Some(count) => {
                reserved.has_cpu_list = true;
                reserved.kube.retain(|(name, _)| name != "cpu");
                reserved.system.retain(|(name, _)| name != "cpu");
                reserved.system.push(("cpu".to_owned(), Quantity::from_units(i64::from(count), Format::DecimalSi)));
            }
            None => {
                let text = format!("\"{list}\" is not allowed; expected CPUs such as 0-1,4");
                f.errors.push(all.problem("reservedSystemCPUs", text));
            }
        }
    }
    reserved
}

fn amounts(all: &mut Fields, f: &mut Findings, field: &str) -> Amounts {
    const KNOWN: [&str; 4] = ["cpu", "memory", "ephemeral-storage", PIDS];
    let mut amounts = all.quantities(f, field).unwrap_or_default();
    amounts.retain(|(name, _)| {
        let is_known = KNOWN.contains(&name.as_str());
        if !is_known {
            let text = format!("{name}: cannot be reserved; expected one of {}", KNOWN.join(", "));
            f.errors.push(all.problem(field, text));
        }
        is_known
    });
    amounts
}

/// `memorySwap`.
pub(super) fn swap(all: &mut Fields, f: &mut Findings) -> Swap {
    let mut swap = all.object(f, "memorySwap");
    let behavior = swap.one_of(f, "swapBehavior", &["NoSwap", "LimitedSwap"]);
    swap.finish(f, &[]);
    match behavior {
        Some("LimitedSwap") => Swap::LimitedSwap,
        _ => Swap::NoSwap,
    }
}

/// `memoryThrottlingFactor` and `memoryReservationPolicy`, with the feature gate of both.
pub(super) fn memory_qos(all: &mut Fields, f: &mut Findings, gates: &[(String, bool)]) -> MemoryQos {
    const FACTOR: &str = "memoryThrottlingFactor";
    const POLICY: &str = "memoryReservationPolicy";
    // Written by kubelets before 1.37, where it was the default.
    const OLD_DEFAULT: f64 = 0.9;
    let is_on = gates.iter().rfind(|(name, _)| name == "MemoryQoS").is_none_or(|(_, is_on)| *is_on);
    let is_tiered = all.one_of(f, POLICY, &["None", "TieredReservation"]) == Some("TieredReservation");
    let throttling = all.number(f, FACTOR);
    if let Some(factor) = throttling.filter(|factor| *factor <= 0.0 || *factor > 1.0) {
        let text = format!("{factor} is not allowed; expected a number above 0 and at most 1");
        f.errors.push(all.problem(FACTOR, text));
    }
    let gate = "needs the feature gate MemoryQoS; set it to true, or leave this out";
    if !is_on && is_tiered {
        f.errors.push(all.problem(POLICY, gate));
    }
    if !is_on && throttling.is_some_and(|factor| factor != OLD_DEFAULT) {
        f.errors.push(all.problem(FACTOR, gate));
    }
    MemoryQos { is_on, is_tiered, throttling: throttling.filter(|_| is_on) }
}

/// What depends on more than one field.
pub(super) fn cross_check(kubelet: &Kubelet, all: &Fields, f: &mut Findings) {
    const CPUS: &str = "reservedSystemCPUs";
    let has_cgroups = !kubelet.system_reserved_cgroup.is_empty() || !kubelet.kube_reserved_cgroup.is_empty();
    if kubelet.reserved.has_cpu_list && has_cgroups {
        let text = "is not allowed together with systemReservedCgroup or kubeReservedCgroup; expected one or the other";
        f.errors.push(all.problem(CPUS, text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::kubelet::read;
    use crate::config::tree::Node;

    fn parsed(text: &str) -> (Kubelet, Vec<String>) {
        let mut findings = Findings::default();
        let node = Node::parse("f", text).unwrap();
        let fields = Fields::new(node, &mut findings);
        let kubelet = read(fields, &mut findings);
        (kubelet, findings.errors.iter().chain(&findings.warnings).map(ToString::to_string).collect())
    }

    fn shown(amounts: &Amounts) -> Vec<String> {
        amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect()
    }

    #[test]
    fn reservations_are_kept_apart_and_added_up() {
        let (kubelet, problems) =
            parsed("kubeReserved: {cpu: 100m, pid: '100'}\nsystemReserved: {cpu: 200m, memory: 1Gi}\n");
        assert_eq!(problems, [""; 0]);
        assert_eq!(shown(&kubelet.reserved.kube), ["cpu=100m", "pid=100"]);
        assert_eq!(shown(&kubelet.reserved.total()), ["cpu=300m", "pid=100", "memory=1Gi"]);
        let (_, problems) = parsed("systemReserved: {example.com/gpu: 1}\n");
        assert!(problems[0].contains("systemReserved: example.com/gpu: cannot be reserved; expected one of cpu"));
    }

    #[test]
    fn a_list_of_reserved_cpus_takes_the_place_of_amounts() {
        let (kubelet, _) = parsed("kubeReserved: {cpu: 100m, memory: 1Gi}\nreservedSystemCPUs: 0-1,4\n");
        assert_eq!(shown(&kubelet.reserved.total()), ["memory=1Gi", "cpu=3"]);
        let (_, problems) = parsed("reservedSystemCPUs: many\n");
        assert!(problems[0].contains("\"many\" is not allowed; expected CPUs such as 0-1,4"), "{problems:?}");
        let (_, problems) = parsed("reservedSystemCPUs: '0'\nkubeReservedCgroup: /kube\n");
        assert!(problems[0].contains("not allowed together with systemReservedCgroup"), "{problems:?}");
    }

    #[test]
    fn swap_is_off_unless_it_is_asked_for() {
        for (text, swap, wrong) in [
            ("", Swap::NoSwap, false),
            ("memorySwap: {}", Swap::NoSwap, false),
            ("memorySwap: {swapBehavior: ''}", Swap::NoSwap, false),
            ("memorySwap: {swapBehavior: LimitedSwap}", Swap::LimitedSwap, false),
            ("memorySwap: {swapBehavior: UnlimitedSwap}", Swap::NoSwap, true),
        ] {
            let (kubelet, problems) = parsed(text);
            assert_eq!((kubelet.swap, !problems.is_empty()), (swap, wrong), "{text}: {problems:?}");
        }
    }

    #[test]
    fn memory_qos_is_checked_as_by_kubelet() {
        let off = "featureGates: {MemoryQoS: false}\n";
        for (text, expected) in [
            ("", Ok((true, false, None))),
            ("memoryThrottlingFactor: 0.8\nmemoryReservationPolicy: TieredReservation", Ok((true, true, Some(0.8)))),
            ("memoryThrottlingFactor: 1", Ok((true, false, Some(1.0)))),
            ("memoryThrottlingFactor: 0", Err("above 0 and at most 1")),
            ("memoryThrottlingFactor: 1.1", Err("above 0 and at most 1")),
            ("memoryThrottlingFactor: much", Err("expected a number")),
            ("memoryReservationPolicy: Some", Err("one of None, TieredReservation")),
            (&format!("{off}memoryThrottlingFactor: 0.9"), Ok((false, false, None))),
            (&format!("{off}memoryThrottlingFactor: 0.8"), Err("needs the feature gate MemoryQoS")),
            (&format!("{off}memoryReservationPolicy: TieredReservation"), Err("needs the feature gate MemoryQoS")),
        ] {
            let (kubelet, problems) = parsed(text);
            let MemoryQos { is_on, is_tiered, throttling } = kubelet.memory_qos;
            match expected {
                Ok(expected) => assert_eq!((is_on, is_tiered, throttling), expected, "{text}: {problems:?}"),
                Err(part) => assert!(problems.iter().any(|p| p.contains(part)), "{text}: {problems:?}"),
            }
        }
    }
}
