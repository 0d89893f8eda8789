//! The systemd driver: cgroups are slices that systemd creates and owns.
//!
//! Values are handed to systemd as unit properties, so that a `daemon-reload` does not undo them, and then written to
//! the files too, because some have no property. The names of properties are those of systemd.resource-control(5).

use super::CgroupError;
use super::name::CgroupName;
use super::plan::{CgroupVersion, DEFAULT_PERIOD, Values, shares_to_weight};

#[cfg(feature = "systemd")]
mod bus;

/// The value of a unit property, in the D-Bus types that systemd expects.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Property {
    /// `b`.
    Flag(bool),
    /// `t`.
    Number(u64),
    /// `s`.
    Text(String),
    /// `as`.
    List(Vec<String>),
}

type Properties = Vec<(&'static str, Property)>;

/// The connection to systemd; made at the first use, and again after it was lost.
#[derive(Default)]
pub(super) struct Systemd {
    #[cfg(feature = "systemd")]
    bus: bus::Bus,
}

impl Systemd {
    /// Starts the slice of a cgroup; systemd starts those above it. Blocking; a slice that runs already is left alone.
    pub(super) fn start_slice(&self, name: &CgroupName) -> Result<(), CgroupError> {
        self.run(name, Call::Start(slice_properties(name)))
    }

    /// Hands values to systemd. Blocking.
    pub(super) fn set_properties(
        &self,
        name: &CgroupName,
        values: &Values,
        version: CgroupVersion,
    ) -> Result<(), CgroupError> {
        match value_properties(values, version) {
            none if none.is_empty() => Ok(()),
            properties => self.run(name, Call::Set(properties)),
        }
    }

    /// Stops the slice of a cgroup. Blocking; a slice that is gone is fine.
    pub(super) fn stop_slice(&self, name: &CgroupName) -> Result<(), CgroupError> {
        self.run(name, Call::Stop)
    }

    #[cfg(feature = "systemd")]
    fn run(&self, name: &CgroupName, call: Call) -> Result<(), CgroupError> {
        let (what, unit) = (call.verb(), name.unit());
        let handle = tokio::runtime::Handle::current();
        let result = handle.block_on(self.bus.call(&unit, call));
        result.map_err(|reason| CgroupError::Systemd { what, unit, reason })
    }

    #[cfg(not(feature = "systemd"))]
    fn run(&self, name: &CgroupName, call: Call) -> Result<(), CgroupError> {
        let reason =
            "nodelet was built without the feature `systemd`; set cgroupDriver: cgroupfs here and in the runtime";
        Err(CgroupError::Systemd { what: call.verb(), unit: name.unit(), reason: reason.to_owned() })
    }
}

/// What systemd is asked to do with a unit.
#[derive(Debug)]
#[cfg_attr(not(feature = "systemd"), expect(dead_code, reason = "without the bus, calls are only named"))]
enum Call {
    Start(Properties),
    Set(Properties),
    Stop,
}

impl Call {
    fn verb(&self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Set(_) => "set properties of",
            Self::Stop => "stop",
        }
    }
}

/// Properties of a new slice: accounting makes systemd enable the controllers.
fn slice_properties(name: &CgroupName) -> Properties {
    let mut properties = vec![
        ("Description", Property::Text(format!("nodelet pods, {}", name.unit()))),
        ("DefaultDependencies", Property::Flag(false)),
        ("MemoryAccounting", Property::Flag(true)),
        ("CPUAccounting", Property::Flag(true)),
        ("IOAccounting", Property::Flag(true)),
        ("TasksAccounting", Property::Flag(true)),
    ];
    if let Some(parent) = name.parent().filter(|parent| !parent.is_root()) {
        properties.push(("Wants", Property::List(vec![parent.unit()])));
    }
    properties
}

fn value_properties(values: &Values, version: CgroupVersion) -> Properties {
    let positive = |value: Option<i64>| value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
    let mut properties = Properties::new();
    let (memory, cpu) = match version {
        CgroupVersion::V1 => ("MemoryLimit", values.cpu_shares.map(|shares| ("CPUShares", shares))),
        CgroupVersion::V2 => ("MemoryMax", values.cpu_shares.map(|shares| ("CPUWeight", shares_to_weight(shares)))),
    };
    properties.extend(cpu.map(|(name, value)| (name, Property::Number(value))));
    properties.extend(positive(values.memory).map(|limit| (memory, Property::Number(limit))));
    properties.extend(positive(values.pids).map(|limit| ("TasksMax", Property::Number(limit))));
    if let Some(quota) = values.cpu_quota.filter(|quota| *quota != 0) {
        let period = values.cpu_period.unwrap_or(DEFAULT_PERIOD).max(1);
        if period != DEFAULT_PERIOD {
            properties.push(("CPUQuotaPeriodUSec", Property::Number(period)));
        }
        properties.push(("CPUQuotaPerSecUSec", Property::Number(quota_per_second(quota, period))));
    }
    if version == CgroupVersion::V2 {
        properties.extend(values.unified.iter().filter_map(|(file, value)| unified_property(file, value)));
    }
    properties
}

/// Files of cgroup v2 that systemd keeps as properties; others are only written.
fn unified_property(file: &str, value: &str) -> Option<(&'static str, Property)> {
    let name = match file {
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        _ => return None,
    };
    let number = if value == "max" { u64::MAX } else { value.parse().ok()? };
    Some((name, Property::Number(number)))
}

/// Microseconds of CPU per second. systemd keeps whole percents, so it is rounded up to 10 ms; the exact value is
/// written to the file afterwards.
fn quota_per_second(quota: i64, period: u64) -> u64 {
    let Some(quota) = u64::try_from(quota).ok() else { return u64::MAX };
    let exact = u128::from(quota) * 1_000_000 / u128::from(period);
    u64::try_from(exact.div_ceil(10_000) * 10_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_the_properties_of_their_hierarchy() {
        let values = Values {
            cpu_shares: Some(512),
            cpu_quota: Some(25_500),
            cpu_period: Some(100_000),
            memory: Some(1 << 20),
            pids: Some(64),
            ..Values::default()
        };
        let number = Property::Number;
        assert_eq!(
            value_properties(&values, CgroupVersion::V1),
            [
                ("CPUShares", number(512)),
                ("MemoryLimit", number(1 << 20)),
                ("TasksMax", number(64)),
                ("CPUQuotaPerSecUSec", number(260_000)),
            ]
        );
        assert_eq!(
            value_properties(&values, CgroupVersion::V2)[..2],
            [("CPUWeight", number(20)), ("MemoryMax", number(1 << 20))]
        );
        let files = [("memory.low", "7"), ("memory.high", "max"), ("memory.oom.group", "1")];
        let protected = Values {
            unified: files.map(|(file, value)| (file.to_owned(), value.to_owned())).into(),
            ..Values::default()
        };
        let expected = [("MemoryHigh", number(u64::MAX)), ("MemoryLow", number(7))];
        assert_eq!(value_properties(&protected, CgroupVersion::V2), expected);
        assert_eq!(value_properties(&protected, CgroupVersion::V1), []);
        let unlimited = Values { cpu_quota: Some(-1), cpu_period: Some(50_000), ..Values::default() };
        assert_eq!(
            value_properties(&unlimited, CgroupVersion::V2),
            [("CPUQuotaPeriodUSec", number(50_000)), ("CPUQuotaPerSecUSec", number(u64::MAX))]
        );
    }
}
