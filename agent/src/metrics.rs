//! Figures that the agent keeps about itself, by the names that kubelet's dashboards and alerts ask for.
//!
//! ```text
//!  cri · api · pod · probe · server ──observe──► METRICS (atomics in static memory) ──write──► Text ──► /metrics
//! ```
//! - One static value for the process, as logging has: whoever measures needs no handle, and its constructor no argument.
//!   Recording is an atomic addition. What labels cannot be known beforehand for is bounded ([`cells::Labelled`]).
//! - Only what was really measured is shown: no family is there with a zero because a dashboard might ask for it.
//! - What belongs to an object (probes, containers, pods) is not kept here. It is read from its owner when it is asked
//!   for, so it is gone with the object.
//!
//! Names and help texts: `pkg/kubelet/metrics`, `component-base/metrics` of Kubernetes 1.37.

pub mod cells;
pub mod garbage;
pub mod operations;
pub mod pods;
pub mod rest;
pub mod served;
pub mod storage;
pub mod text;

use cells::{Counter, DEFAULT, Gauge, Histogram, Labelled};
use pods::Pods;
use text::{Kind, Text};

/// A minute, hours, days, months, years.
static LIVES: [f64; 10] =
    [60.0, 3_600.0, 14_400.0, 86_400.0, 604_800.0, 2_592_000.0, 7_776_000.0, 15_552_000.0, 31_104_000.0, 124_416_000.0];

/// What is counted everywhere.
#[derive(Debug)]
pub struct Metrics {
    /// Calls to the runtime.
    pub runtime: operations::Operations,
    /// Requests to the API server.
    pub rest: rest::Rest,
    /// Requests to us.
    pub served: served::Served,
    /// Health checks.
    pub health: Health,
    /// Pods and containers.
    pub pods: Pods,
    /// What was removed.
    pub garbage: garbage::Garbage,
    /// Volumes.
    pub storage: storage::Storage,
    /// The client certificate.
    pub client_certificate: Certificate,
    /// The certificate of the kubelet API.
    pub server_certificate: Certificate,
    /// Memory that is protected for pods.
    pub memory_qos: MemoryQos,
    /// Lists of all that the runtime has: our full check, kubelet's relist.
    pub relist: Relist,
    /// Runtime handlers: time of sandbox creation.
    pub sandbox_duration: Labelled<Histogram<11>, 1>,
    /// Runtime handlers: failed creations.
    pub sandbox_errors: Labelled<Counter, 1>,
}

/// Figures of this process.
pub static METRICS: Metrics = Metrics {
    runtime: operations::Operations::new(),
    rest: rest::Rest::new(),
    served: served::Served::new(),
    health: Health { sync_loop: Gauge::new(), checks: Labelled::new() },
    pods: Pods::new(),
    garbage: garbage::Garbage::new(),
    storage: storage::Storage::new(),
    client_certificate: Certificate::new(),
    server_certificate: Certificate::new(),
    memory_qos: MemoryQos { is_set: Gauge::new(), min: Gauge::new(), low: Gauge::new() },
    relist: Relist {
        duration: Histogram::new(&DEFAULT),
        interval: Histogram::new(&DEFAULT),
        streams: Counter::new(),
        stream_errors: Counter::new(),
    },
    sandbox_duration: Labelled::new(),
    sandbox_errors: Labelled::new(),
};

/// A certificate: when it ends, and how its renewals went.
#[derive(Debug)]
pub struct Certificate {
    /// `notAfter`, in seconds since the epoch; 0 when there is none.
    pub expires: Gauge,
    /// Renewals that failed.
    pub renew_errors: Counter,
    /// How long certificates lived that were replaced.
    pub lives: Histogram<10>,
}

impl Certificate {
    const fn new() -> Self {
        Self { expires: Gauge::new(), renew_errors: Counter::new(), lives: Histogram::new(&LIVES) }
    }

    /// Seconds left; negative after its end.
    fn left(&self, now: i64) -> f64 {
        match self.expires.get() {
            0 => f64::INFINITY,
            expires => (expires - now) as f64,
        }
    }
}

/// Memory that is protected from reclaim, with `memoryReservationPolicy: TieredReservation`.
#[derive(Debug)]
pub struct MemoryQos {
    is_set: Gauge,
    min: Gauge,
    low: Gauge,
}

impl MemoryQos {
    /// Bytes that Guaranteed and Burstable pods request.
    pub fn set(&self, guaranteed: i64, burstable: i64) {
        self.min.set(guaranteed);
        self.low.set(burstable);
        self.is_set.set(1);
    }

    fn write(&self, text: &mut Text) {
        if self.is_set.get() == 0 {
            return;
        }
        let help = "[ALPHA] Total cgroup v2 memory.min in bytes for Guaranteed pods. This memory is hard-reserved and never \
                    reclaimed by the kernel.";
        text.gauge("kubelet_memory_qos_node_memory_min_bytes", help, self.min.get() as f64);
        let help = "[ALPHA] Total cgroup v2 memory.low in bytes for Burstable pods. This memory is soft-reserved and may be \
                    reclaimed under extreme pressure.";
        text.gauge("kubelet_memory_qos_node_memory_low_bytes", help, self.low.get() as f64);
    }
}

/// Full lists of the runtime, and event streams.
#[derive(Debug)]
pub struct Relist {
    /// Time of a list.
    pub duration: Histogram<11>,
    /// Time between two.
    pub interval: Histogram<11>,
    /// Event streams that were opened.
    pub streams: Counter,
    /// Attempts that failed.
    pub stream_errors: Counter,
}

/// Answers of `/healthz`.
#[derive(Debug)]
pub struct Health {
    /// When the pod manager's loop was last entered, in seconds since the epoch; 0 before it runs.
    pub sync_loop: Gauge,
    /// By name: the last result, successes, errors.
    checks: Labelled<(Gauge, Counter, Counter), 1>,
}

impl Health {
    /// A check of `/healthz` that was carried out.
    pub fn observe(&self, check: &str, is_ok: bool) {
        let make = || (Gauge::new(), Counter::new(), Counter::new());
        self.checks.with([check], make, |(last, successes, errors)| {
            last.set(i64::from(is_ok));
            if is_ok { successes } else { errors }.increment();
        });
    }

    /// `/metrics/slis`.
    pub fn write(&self, text: &mut Text) {
        let help = "[STABLE] This metric records the result of a single healthcheck.";
        let mut family = text.family("kubernetes_healthcheck", Kind::Gauge, help);
        self.checks.each(|[name], (last, _, _)| {
            family.sample(&[("name", name), ("type", "healthz")], last.get() as f64);
        });
        let help = "[STABLE] This metric records the results of all healthcheck.";
        let mut family = text.family("kubernetes_healthchecks_total", Kind::Counter, help);
        self.checks.each(|[name], (_, successes, errors)| {
            for (status, count) in [("error", errors), ("success", successes)] {
                if count.get() > 0 {
                    family.sample(&[("name", name), ("status", status), ("type", "healthz")], count.get() as f64);
                }
            }
        });
    }
}

impl Metrics {
    /// Everything but [`Health`], which has a path of its own. `now` is in seconds since the epoch.
    pub fn write(&self, text: &mut Text, now: i64) {
        self.runtime.write(text);
        self.rest.write(text);
        self.served.write(text);
        self.pods.write(text);
        self.garbage.write(text);
        self.storage.write(text);
        self.relist.write(text);
        self.memory_qos.write(text);
        let help = "[ALPHA] Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.";
        let mut family = text.family("kubelet_run_podsandbox_duration_seconds", Kind::Histogram, help);
        self.sandbox_duration.each(|[handler], cell| family.histogram(&[("runtime_handler", handler)], cell));
        let help = "[ALPHA] Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.";
        let mut family = text.family("kubelet_run_podsandbox_errors_total", Kind::Counter, help);
        self.sandbox_errors.each(|[handler], count| family.sample(&[("runtime_handler", handler)], count.get() as f64));
        self.certificates(text, now);
    }

    fn certificates(&self, text: &mut Text, now: i64) {
        let (client, server) = (&self.client_certificate, &self.server_certificate);
        let help = "[ALPHA] Gauge of the TTL (time-to-live) of the Kubelet's client certificate. The value is in seconds until \
                    certificate expiry (negative if already expired). If client certificate is invalid or unused, the value \
                    will be +INF.";
        text.gauge("kubelet_certificate_manager_client_ttl_seconds", help, client.left(now));
        let help = "[ALPHA] Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in \
                    seconds until certificate expiry (negative if already expired). If serving certificate is invalid or \
                    unused, the value will be +INF.";
        text.gauge("kubelet_certificate_manager_server_ttl_seconds", help, server.left(now));
        let help = "[ALPHA] Counter of certificate renewal errors.";
        text.counter("kubelet_certificate_manager_client_expiration_renew_errors", help, &client.renew_errors);
        text.counter("kubelet_server_expiration_renew_errors", help, &server.renew_errors);
        let help = "[ALPHA] Histogram of the number of seconds the previous certificate lived before being rotated.";
        if server.lives.read().1 > 0 {
            text.histogram("kubelet_certificate_manager_server_rotation_seconds", help, &server.lives);
        }
    }
}

impl Relist {
    fn write(&self, text: &mut Text) {
        if self.duration.read().1 > 0 {
            let help = "[ALPHA] Duration in seconds for relisting pods in PLEG.";
            text.histogram("kubelet_pleg_relist_duration_seconds", help, &self.duration);
        }
        if self.interval.read().1 > 0 {
            let help = "[ALPHA] Interval in seconds between relisting in PLEG.";
            text.histogram("kubelet_pleg_relist_interval_seconds", help, &self.interval);
        }
        let help = "[ALPHA] The number of times a streaming client was obtained to receive CRI Events.";
        text.counter("kubelet_evented_pleg_connection_success_count", help, &self.streams);
        let help = "[ALPHA] The number of errors encountered during the establishment of streaming connection with the CRI runtime.";
        text.counter("kubelet_evented_pleg_connection_error_count", help, &self.stream_errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_nobody_has_never_ends() {
        let certificate = Certificate::new();
        assert_eq!(certificate.left(100), f64::INFINITY);
        certificate.expires.set(90);
        assert_eq!(certificate.left(100), -10.0);
    }

    #[test]
    fn health_checks_show_the_last_result_and_all_of_them() {
        let health = Health { sync_loop: Gauge::new(), checks: Labelled::new() };
        health.observe("ping", true);
        health.observe("syncloop", true);
        health.observe("syncloop", false);
        let mut text = Text::default();
        health.write(&mut text);
        let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
        for line in [
            "kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 0",
            "kubernetes_healthchecks_total{name=\"syncloop\",status=\"error\",type=\"healthz\"} 1",
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
