//! How many pods have a worker, by where they are in their lives and who wants them.

use super::super::METRICS;
use super::super::cells::Gauge;
use super::super::text::{Kind, Text};

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is to run.
    Sync = 0,
    /// It is being stopped.
    Terminating = 1,
    /// Nothing of it runs.
    Terminated = 2,
}

/// Who wants a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The API server.
    Desired = 0,
    /// A manifest.
    DesiredStatic = 1,
    /// Nobody any more; it came from the API server.
    Orphan = 2,
    /// Nobody any more; it came from a manifest.
    OrphanStatic = 3,
    /// Only the runtime knew it.
    RuntimeOnly = 4,
}

const PHASES: [(Phase, &str); 3] =
    [(Phase::Sync, "sync"), (Phase::Terminating, "terminating"), (Phase::Terminated, "terminated")];
/// With the labels `config` and `static`.
const STANDINGS: [(Standing, &str, &str); 5] = [
    (Standing::Desired, "desired", ""),
    (Standing::DesiredStatic, "desired", "true"),
    (Standing::Orphan, "orphan", ""),
    (Standing::OrphanStatic, "orphan", "true"),
    (Standing::RuntimeOnly, "runtime_only", "unknown"),
];

/// Numbers of pods.
#[derive(Debug)]
pub struct Working([[Gauge; 5]; 3]);

impl Working {
    pub(super) const fn new() -> Self {
        Self([const { [const { Gauge::new() }; 5] }; 3])
    }

    pub(super) fn write(&self, text: &mut Text) {
        let help = "[ALPHA] Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is \
                    desired, orphaned, or runtime only (also orphaned), and whether the pod is static. An orphaned pod has been \
                    removed from local configuration or force deleted in the API and consumes resources that are not otherwise \
                    visible.";
        let mut family = text.family("kubelet_working_pods", Kind::Gauge, help);
        for (phase, lifecycle) in PHASES {
            for (standing, config, is_static) in STANDINGS {
                let labels = [("config", config), ("lifecycle", lifecycle), ("static", is_static)];
                family.sample(&labels, self.0[phase as usize][standing as usize].get() as f64);
            }
        }
    }
}

/// One worker's pod among them, until the worker ends.
#[derive(Debug, Default)]
pub struct Worker(Option<(Phase, Standing)>);

impl Worker {
    /// The pod is there now.
    pub fn is_at(&mut self, phase: Phase, standing: Standing) {
        self.moves(Some((phase, standing)), &METRICS.pods.working);
    }

    fn moves(&mut self, to: Option<(Phase, Standing)>, among: &Working) {
        if self.0 == to {
            return;
        }
        for (place, change) in [(self.0, -1), (to, 1)] {
            if let Some((phase, standing)) = place {
                among.0[phase as usize][standing as usize].add(change);
            }
        }
        self.0 = to;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.moves(None, &METRICS.pods.working);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_counted_where_it_is_and_nowhere_after_its_end() {
        let working = Working::new();
        let (mut one, mut other) = (Worker::default(), Worker::default());
        one.moves(Some((Phase::Sync, Standing::Desired)), &working);
        other.moves(Some((Phase::Sync, Standing::Desired)), &working);
        one.moves(Some((Phase::Terminating, Standing::Orphan)), &working);
        one.moves(Some((Phase::Terminating, Standing::Orphan)), &working);
        let shown = || {
            let mut text = Text::default();
            working.write(&mut text);
            let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
            let is_some = |line: &&str| !line.starts_with('#') && !line.ends_with(" 0");
            text.lines().filter(is_some).map(str::to_owned).collect::<Vec<_>>()
        };
        let line = |config, lifecycle| {
            format!("kubelet_working_pods{{config=\"{config}\",lifecycle=\"{lifecycle}\",static=\"\"}} 1")
        };
        assert_eq!(shown(), [line("desired", "sync"), line("orphan", "terminating")]);
        one.moves(None, &working);
        other.moves(None, &working);
        assert!(shown().is_empty());
    }
}
