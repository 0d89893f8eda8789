//! Volumes that were put in place, by kubelet's names of what makes them.

use std::time::Duration;

use super::cells::{Histogram, Labelled};
use super::text::{Kind, Text};

static BOUNDS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];

/// Figures of storage.
#[derive(Debug)]
pub struct Storage(Labelled<Histogram<13>, 3>);

impl Storage {
    pub(super) const fn new() -> Self {
        Self(Labelled::new())
    }

    /// An operation that ended: the plugin such as `kubernetes.io/secret`, the operation such as `volume_mount`.
    pub fn observe(&self, plugin: &str, operation: &str, took: Duration, is_ok: bool) {
        let status = if is_ok { "success" } else { "fail-unknown" };
        self.0.with([operation, status, plugin], || Histogram::new(&BOUNDS), |histogram| histogram.observe(took));
    }

    pub(super) fn write(&self, text: &mut Text) {
        let help = "[BETA] Storage operation duration";
        let mut family = text.family("storage_operation_duration_seconds", Kind::Histogram, help);
        self.0.each(|[operation, status, plugin], histogram| {
            let labels =
                [("migrated", "false"), ("operation_name", operation), ("status", status), ("volume_plugin", plugin)];
            family.histogram(&labels, histogram);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_counted_by_plugin_and_by_how_they_ended() {
        let storage = Storage::new();
        storage.observe("kubernetes.io/secret", "volume_mount", Duration::from_millis(200), true);
        storage.observe("kubernetes.io/secret", "volume_mount", Duration::from_millis(10), false);
        let mut text = Text::default();
        storage.write(&mut text);
        let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
        for (status, bound, count) in [("success", "0.1", 0), ("success", "0.25", 1), ("fail-unknown", "0.1", 1)] {
            let line = format!(
                "storage_operation_duration_seconds_bucket{{migrated=\"false\",operation_name=\"volume_mount\",status=\"{status}\",\
                 volume_plugin=\"kubernetes.io/secret\",le=\"{bound}\"}} {count}"
            );
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
