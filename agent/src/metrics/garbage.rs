//! What was removed because nobody needs it any more, and which pods the node did not let go on.

use super::cells::{Counter, Gauge, Labelled};
use super::text::{Kind, Text};

/// Figures of garbage.
#[derive(Debug)]
pub struct Garbage {
    /// Images, by reason: `age` or `space`.
    pub images: Labelled<Counter, 1>,
    /// Pods of which nobody knows that had a directory at the last full check, and those whose could not be removed.
    pub orphans: (Gauge, Gauge),
    /// Evicted pods, by signal.
    pub evictions: Labelled<Counter, 1>,
    /// Pods that had to go for a critical one, by what that lacked first.
    pub preemptions: Labelled<Counter, 1>,
}

impl Garbage {
    pub(super) const fn new() -> Self {
        let orphans = (Gauge::new(), Gauge::new());
        Self { images: Labelled::new(), orphans, evictions: Labelled::new(), preemptions: Labelled::new() }
    }

    pub(super) fn write(&self, text: &mut Text) {
        let help =
            "[ALPHA] Total number of images garbage collected by the kubelet, whether through disk usage or image age.";
        let mut family = text.family("kubelet_image_garbage_collected_total", Kind::Counter, help);
        self.images.each(|[reason], count| family.sample(&[("reason", reason)], count.get() as f64));
        let help = "[ALPHA] Cumulative number of pod evictions by eviction signal";
        let mut family = text.family("kubelet_evictions", Kind::Counter, help);
        self.evictions.each(|[signal], count| family.sample(&[("eviction_signal", signal)], count.get() as f64));
        let help = "[ALPHA] Cumulative number of pod preemptions by preemption resource";
        let mut family = text.family("kubelet_preemptions", Kind::Counter, help);
        self.preemptions
            .each(|[resource], count| family.sample(&[("preemption_signal", resource)], count.get() as f64));
        let help = "[ALPHA] The total number of orphaned Pods whose volumes were cleaned in the last periodic sweep.";
        text.gauge("kubelet_orphan_pod_cleaned_volumes", help, self.orphans.0.get() as f64);
        let help = "[ALPHA] The number of orphaned Pods whose volumes failed to be cleaned in the last periodic sweep.";
        text.gauge("kubelet_orphan_pod_cleaned_volumes_errors", help, self.orphans.1.get() as f64);
    }
}
