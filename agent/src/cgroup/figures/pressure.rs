//! Pressure stall information: how long tasks waited. Pure.

/// How long tasks waited for a resource (PSI), where the kernel and the runtime tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// All tasks at once.
    pub full: Waited,
    /// At least one.
    pub some: Waited,
}

/// Time waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// Nanoseconds since the beginning.
    pub total: u64,
    /// Of the last 10, 60 and 300 seconds, in hundredths of a percent: the kernel's precision.
    pub average: [u32; 3],
}

impl Pressure {
    /// `some avg10=0.12 avg60=0.00 avg300=0.00 total=MICROSECONDS`, and a line for `full`.
    pub fn parse(text: &str) -> Option<Self> {
        let waited = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            let value =
                |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            let hundredths = |name: &str| value(name)?.replace('.', "").parse::<u32>().ok();
            let total = value("total")?.parse::<u64>().ok()?.saturating_mul(1000);
            Some(Waited { total, average: [hundredths("avg10")?, hundredths("avg60")?, hundredths("avg300")?] })
        };
        // Older kernels have no `full` for processors.
        Some(Self { some: waited("some")?, full: waited("full").unwrap_or_default() })
    }
}
