//! Pods' lives: how long they take to start, to settle, to be reported; what was started and how it ended.

use super::cells::{Counter, DEFAULT, Histogram, Labelled};
use super::text::{Kind, Text};

mod working;

pub use working::{Phase, Standing, Worker, Working};

static CONTAINERS: [f64; 5] = [1.0, 2.0, 4.0, 8.0, 16.0];
static PULLS: [f64; 18] = [
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
static STATUS: [f64; 11] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// Bounds of pods' starts, in seconds.
static STARTS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];

/// What a worker was at, from its first operation until nothing was to be done: `operation_type` of
/// `kubelet_pod_worker_duration_seconds`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sync {
    /// A pod came.
    Create = 0,
    /// Its spec changed.
    Update = 1,
    /// Something happened to it.
    #[default]
    Sync = 2,
    /// It was stopped.
    Terminated = 3,
}

impl Sync {
    const ALL: [Self; 4] = [Self::Create, Self::Update, Self::Sync, Self::Terminated];

    fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Sync => "sync",
            Self::Terminated => "terminated",
        }
    }
}

/// Figures of pods' lives.
#[derive(Debug)]
pub struct Pods {
    /// From a pod's arrival to its worker's first turn.
    pub worker_start: Histogram<11>,
    /// From the first operation until nothing is to be done, by [`Sync`].
    pub worker: [Histogram<11>; 4],
    /// From a pod's arrival to its phase Running.
    pub start: Histogram<25>,
    /// From its creation to all containers started.
    pub start_total: Histogram<25>,
    /// The same without pulls and init containers.
    pub start_sli: Histogram<25>,
    /// From a change of status to the server's answer.
    pub status_sync: Histogram<11>,
    /// Containers of a pod.
    pub containers: Histogram<5>,
    /// Sandboxes that were asked for.
    pub started: Counter,
    /// Those that were not made.
    pub start_errors: Counter,
    /// Containers that were asked for, by type.
    pub containers_started: Labelled<Counter, 1>,
    /// Those that did not start, by type and reason.
    pub container_errors: Labelled<Counter, 2>,
    /// Ends of containers, by type, exit code and reason.
    pub terminated: Labelled<Counter, 3>,
    /// Pods that came back with the same UID.
    pub restarted: Labelled<Counter, 1>,
    /// Pods that only the runtime knew.
    pub orphaned: Counter,
    /// Pods that the node did not take, by reason.
    pub rejected: Labelled<Counter, 1>,
    /// Pulls with waiting, by size.
    pub pulls: Labelled<Histogram<18>, 1>,
    /// Hooks that were to sleep for longer than there was time.
    pub sleeps_cut_short: Counter,
    /// Pods that have a worker.
    pub working: Working,
}

impl Pods {
    pub(super) const fn new() -> Self {
        Self {
            worker_start: Histogram::new(&DEFAULT),
            worker: [const { Histogram::new(&DEFAULT) }; 4],
            start: Histogram::new(&STARTS),
            start_total: Histogram::new(&STARTS),
            start_sli: Histogram::new(&STARTS),
            status_sync: Histogram::new(&STATUS),
            containers: Histogram::new(&CONTAINERS),
            started: Counter::new(),
            start_errors: Counter::new(),
            containers_started: Labelled::new(),
            container_errors: Labelled::new(),
            terminated: Labelled::new(),
            restarted: Labelled::new(),
            orphaned: Counter::new(),
            rejected: Labelled::new(),
            pulls: Labelled::new(),
            sleeps_cut_short: Counter::new(),
            working: Working::new(),
        }
    }

    /// A pull that succeeded: time with waiting for its turn, bytes of the image.
    pub fn pulled(&self, took: std::time::Duration, bytes: u64) {
        self.pulls.with([size(bytes)], || Histogram::new(&PULLS), |histogram| histogram.observe(took));
    }
}

/// The class of an image's size, in kubelet's words.
fn size(bytes: u64) -> &'static str {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let classes = [
        (10 * MIB, "0-10MB"),
        (100 * MIB, "10MB-100MB"),
        (500 * MIB, "100MB-500MB"),
        (GIB, "500MB-1GB"),
        (5 * GIB, "1GB-5GB"),
        (10 * GIB, "5GB-10GB"),
        (20 * GIB, "10GB-20GB"),
        (30 * GIB, "20GB-30GB"),
        (40 * GIB, "30GB-40GB"),
        (60 * GIB, "40GB-60GB"),
        (100 * GIB, "60GB-100GB"),
    ];
    classes.iter().find(|(end, _)| bytes < *end).map_or("GT100GB", |(_, name)| name)
}

impl Pods {
    pub(super) fn write(&self, text: &mut Text) {
        let histograms: [(&str, &str, &Histogram<25>); 3] = [
            (
                "kubelet_pod_start_duration_seconds",
                "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
                &self.start,
            ),
            (
                "kubelet_pod_start_total_duration_seconds",
                "[ALPHA] Duration in seconds to start a pod since creation, including time to pull images and run init \
                 containers, measured from pod creation timestamp to when all its containers are reported as started",
                &self.start_total,
            ),
            (
                "kubelet_pod_start_sli_duration_seconds",
                "[ALPHA] Duration in seconds to start a pod, excluding time to pull images and run init containers, measured \
                 from pod creation timestamp to when all its containers are reported as started",
                &self.start_sli,
            ),
        ];
        for (name, help, histogram) in histograms.into_iter().filter(|(_, _, histogram)| histogram.read().1 > 0) {
            text.histogram(name, help, histogram);
        }
        let help = "[ALPHA] Duration in seconds from kubelet seeing a pod to starting a worker.";
        text.histogram("kubelet_pod_worker_start_duration_seconds", help, &self.worker_start);
        let help =
            "[ALPHA] Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync";
        let mut family = text.family("kubelet_pod_worker_duration_seconds", Kind::Histogram, help);
        for (sync, histogram) in Sync::ALL.iter().zip(&self.worker).filter(|(_, h)| h.read().1 > 0) {
            family.histogram(&[("operation_type", sync.word())], histogram);
        }
        let help = "[ALPHA] Duration in seconds to sync a pod status update. Measures time from detection of a change to pod \
                    status until the API is successfully updated for that pod, even if multiple intevening changes to pod \
                    status occur.";
        if self.status_sync.read().1 > 0 {
            text.histogram("kubelet_pod_status_sync_duration_seconds", help, &self.status_sync);
        }
        text.histogram(
            "kubelet_containers_per_pod_count",
            "[ALPHA] The number of containers per pod.",
            &self.containers,
        );
        self.write_counts(text);
    }

    fn write_counts(&self, text: &mut Text) {
        text.counter("kubelet_started_pods_total", "[ALPHA] Cumulative number of pods started", &self.started);
        let help = "[ALPHA] Cumulative number of errors when starting pods";
        text.counter("kubelet_started_pods_errors_total", help, &self.start_errors);
        let help = "[ALPHA] Cumulative number of containers started";
        let mut family = text.family("kubelet_started_containers_total", Kind::Counter, help);
        self.containers_started.each(|[kind], count| family.sample(&[("container_type", kind)], count.get() as f64));
        let help = "[ALPHA] Cumulative number of errors when starting containers";
        let mut family = text.family("kubelet_started_containers_errors_total", Kind::Counter, help);
        self.container_errors.each(|[code, kind], count| {
            family.sample(&[("code", code), ("container_type", kind)], count.get() as f64);
        });
        let help = "[ALPHA] Cumulative number of container terminations.";
        let mut family = text.family("kubelet_terminated_containers_total", Kind::Counter, help);
        self.terminated.each(|[kind, exit_code, reason], count| {
            let labels = [("container_type", kind), ("exit_code", exit_code), ("reason", reason)];
            family.sample(&labels, count.get() as f64);
        });
        let help = "[ALPHA] Number of pods that have been restarted because they were deleted and recreated with the same UID \
                    while the kubelet was watching them (common for static pods, extremely uncommon for API pods)";
        let mut family = text.family("kubelet_restarted_pods_total", Kind::Counter, help);
        self.restarted.each(|[is_static], count| family.sample(&[("static", is_static)], count.get() as f64));
        let help = "[ALPHA] Number of pods that have been detected in the container runtime without being already known to the \
                    pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or \
                    in the local configuration, which is unusual.";
        text.counter("kubelet_orphaned_runtime_pods_total", help, &self.orphaned);
        let help = "[ALPHA] Cumulative number pod admission rejections by the Kubelet.";
        let mut family = text.family("kubelet_admission_rejections_total", Kind::Counter, help);
        self.rejected.each(|[reason], count| family.sample(&[("reason", reason)], count.get() as f64));
        let help = "[ALPHA] Duration in seconds to pull an image.";
        let mut family = text.family("kubelet_image_pull_duration_seconds", Kind::Histogram, help);
        self.pulls.each(|[size], cell| family.histogram(&[("image_size_in_bytes", size)], cell));
        let help = "[ALPHA] The number of times lifecycle sleep handler got terminated before it finishes";
        text.counter("kubelet_sleep_action_terminated_early_total", help, &self.sleeps_cut_short);
        self.working.write(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_image_has_kubelets_class() {
        assert_eq!(size(0), "0-10MB");
        assert_eq!(size(10 << 20), "10MB-100MB");
        assert_eq!(size(200 << 30), "GT100GB");
    }
}
