//! `/metrics/probes`: how probes went, as long as their pod is here.

use std::time::Duration;

use super::{Kind, Outcome, Table};
use crate::ids::{ObjectKey, PodUid};
use crate::metrics::cells::{Counter, DEFAULT, Histogram};
use crate::metrics::text::{self, Text};

/// Figures of one probe of one container, over all of its restarts.
#[derive(Debug)]
pub(super) struct Figures {
    successful: Counter,
    failed: Counter,
    unknown: Counter,
    duration: Histogram<11>,
}

impl Figures {
    pub(super) fn new() -> Self {
        Self {
            successful: Counter::new(),
            failed: Counter::new(),
            unknown: Counter::new(),
            duration: Histogram::new(&DEFAULT),
        }
    }

    /// An attempt. As with kubelet, the time of a failed one is not shown: it is that of the timeout.
    pub(super) fn observe(&self, outcome: Outcome, took: Duration) {
        match outcome {
            Outcome::Success => self.successful.increment(),
            Outcome::Failure => return self.failed.increment(),
            Outcome::Inconclusive => self.unknown.increment(),
        }
        self.duration.observe(took);
    }
}

/// A probe as its labels name it.
struct Named<'a> {
    uid: &'a PodUid,
    key: &'a ObjectKey,
    container: &'a str,
    kind: Kind,
    figures: &'a Figures,
}

fn all(table: &Table) -> impl Iterator<Item = Named<'_>> {
    table.pods.iter().flat_map(|(uid, pod)| {
        pod.figures.iter().map(move |((container, kind), figures)| Named {
            uid,
            key: &pod.key,
            container,
            kind: *kind,
            figures,
        })
    })
}

pub(super) fn write(table: &Table, text: &mut Text) {
    let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    let mut family = text.family("prober_probe_total", text::Kind::Counter, help);
    for probe in all(table) {
        let figures = probe.figures;
        let counts = [("successful", &figures.successful), ("failed", &figures.failed), ("unknown", &figures.unknown)];
        for (result, count) in counts.into_iter().filter(|(_, count)| count.get() > 0) {
            let labels = [
                ("container", probe.container),
                ("namespace", &*probe.key.namespace),
                ("pod", &*probe.key.name),
                ("pod_uid", probe.uid.as_str()),
                ("probe_type", probe.kind.word()),
                ("result", result),
            ];
            family.sample(&labels, count.get() as f64);
        }
    }
    let help = "[ALPHA] Duration in seconds for a probe response.";
    let mut family = text.family("prober_probe_duration_seconds", text::Kind::Histogram, help);
    for probe in all(table).filter(|probe| probe.figures.duration.read().1 > 0) {
        let labels = [
            ("container", probe.container),
            ("namespace", &*probe.key.namespace),
            ("pod", &*probe.key.name),
            ("probe_type", probe.kind.word()),
        ];
        family.histogram(&labels, &probe.figures.duration);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::probe::PodEntry;

    #[test]
    fn probes_of_pods_that_are_here_are_shown_by_result() {
        let figures = Arc::new(Figures::new());
        figures.observe(Outcome::Success, Duration::from_millis(7));
        figures.observe(Outcome::Failure, Duration::from_secs(1));
        let entry = PodEntry {
            key: ObjectKey::new("n", "p"),
            figures: BTreeMap::from([(("c".to_owned(), Kind::Liveness), figures)]),
            ip: watch::Sender::new(None),
            containers: BTreeMap::new(),
        };
        let mut table = Table::default();
        table.pods.insert(PodUid::new("u"), entry);
        let written = |table: &Table| {
            let mut text = Text::default();
            write(table, &mut text);
            String::from_utf8(text.finish().0.to_vec()).expect("text")
        };
        let text = written(&table);
        for line in [
            "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=\"successful\"} 1",
            "prober_probe_total{container=\"c\",namespace=\"n\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=\"failed\"} 1",
            "prober_probe_duration_seconds_count{container=\"c\",namespace=\"n\",pod=\"p\",probe_type=\"Liveness\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        table.pods.clear();
        assert_eq!(written(&table), "", "nothing stays of a pod that is gone");
    }
}
