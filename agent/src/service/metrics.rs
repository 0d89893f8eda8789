//! Metrics of the service half: kube-proxy's names, labels and buckets, because dashboards and alerts go by them, and some
//! of our own. Numbers go in under a short lock where something happens; text is made when somebody asks. Pure.
//!
//! One commit covers both families here, so both labels of `ip_family` show the same duration. Source of names and help
//! texts: `pkg/proxy/metrics` of Kubernetes v1.37.

use std::fmt::Write as _;
use std::time::Duration;

use super::index::WithoutLocal;

/// Both values of the label `ip_family`.
pub const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// A histogram with fixed bounds, in seconds or whatever its name says.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above the last; not cumulative.
    counts: Box<[u64]>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1].into(), sum: 0.0 }
    }

    /// Counts a value.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts[at] += 1;
        self.sum += value;
    }

    /// Counts a duration in seconds.
    pub fn observe_time(&mut self, time: Duration) {
        self.observe(time.as_secs_f64());
    }
}

/// `ExponentialBuckets(0.001, 2, 15)`.
const SYNC: [f64; 15] = doubling(0.001);
/// From 0.1 ms on: a change of one endpoint is far below kube-proxy's first bound.
const FAST: [f64; 15] = doubling(0.0001);
/// Numbers of elements.
const ELEMENTS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0];
const BYTES: [f64; 12] = [
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// The bounds of `network_programming_duration_seconds`: 0.25, 0.5, each second to 59, each five to 115, each thirty to 300.
const NETWORK: [f64; 80] = network();

const fn doubling(first: f64) -> [f64; 15] {
    let (mut bounds, mut at) = ([first; 15], 1);
    while at < 15 {
        bounds[at] = bounds[at - 1] * 2.0;
        at += 1;
    }
    bounds
}

const fn network() -> [f64; 80] {
    let (mut bounds, mut at) = ([0.25; 80], 1);
    while at < 80 {
        let step = match at {
            1 => 0.25,
            2 => 0.5,
            3..=61 => 1.0,
            62..=73 => 5.0,
            _ => 30.0,
        };
        bounds[at] = bounds[at - 1] + step;
        at += 1;
    }
    bounds
}

/// Everything that is counted.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// A turn of the programmer, by whether it looked at everything.
    pub full_sync: Histogram,
    /// A turn that looked at changed Services only.
    pub partial_sync: Histogram,
    /// From the change of a pod to the rules, by family.
    pub network_programming: [Histogram; 2],
    /// From hearing of a change to the rules.
    pub programming: Histogram,
    /// Elements of a batch.
    pub batch_elements: Histogram,
    /// Bytes of a batch.
    pub batch_bytes: Histogram,
    /// Comparing flows with the rules, by family.
    pub conntrack: [Histogram; 2],
    /// Stale flows deleted, by family.
    pub flows_deleted: [u64; 2],
    /// Unix time of the last turn that ended well, in seconds.
    pub last_sync: f64,
    /// Unix time of the last change that was heard of.
    pub last_queued: f64,
    /// Batches that the kernel refused, and failures of the socket.
    pub failures: u64,
    /// Tables of kube-proxy that could not be removed.
    pub cleanup_failures: u64,
    /// Changes of EndpointSlices: since the start, and of them still waiting.
    pub endpoint_changes: (u64, u64),
    /// Changes of Services, likewise.
    pub service_changes: (u64, u64),
    /// Comparisons of the kernel with the model.
    pub comparisons: u64,
    /// Comparisons that found a difference.
    pub drift: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        let sync = || Histogram::new(&SYNC);
        Self {
            full_sync: sync(),
            partial_sync: sync(),
            network_programming: [Histogram::new(&NETWORK), Histogram::new(&NETWORK)],
            programming: Histogram::new(&FAST),
            batch_elements: Histogram::new(&ELEMENTS),
            batch_bytes: Histogram::new(&BYTES),
            conntrack: [sync(), sync()],
            flows_deleted: [0; 2],
            last_sync: 0.0,
            last_queued: 0.0,
            failures: 0,
            cleanup_failures: 0,
            endpoint_changes: (0, 0),
            service_changes: (0, 0),
            comparisons: 0,
            drift: 0,
        }
    }
}

/// What is looked up when somebody asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// Services with a policy `Local` that have endpoints elsewhere only.
    pub without_local: WithoutLocal,
    /// Installed fronts and endpoints.
    pub size: (usize, usize),
    /// Fronts of which the kernel refuses something.
    pub refused: usize,
}

/// The text of a family of samples.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.sample(name, "", value);
    }

    fn by_family<T: std::fmt::Display>(&mut self, name: &str, kind: &str, help: &str, values: [T; 2]) {
        self.head(name, kind, help);
        for (family, value) in FAMILIES.iter().zip(values) {
            self.sample(name, &format!("ip_family=\"{family}\""), value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, of: &[(String, &Histogram)]) {
        self.head(name, "histogram", help);
        for (labels, histogram) in of {
            let separated = if labels.is_empty() { String::new() } else { format!("{labels},") };
            let mut count = 0;
            for (at, one) in histogram.counts.iter().enumerate() {
                count += one;
                let bound = histogram.bounds.get(at).map_or("+Inf".to_owned(), f64::to_string);
                self.sample(&format!("{name}_bucket"), &format!("{separated}le=\"{bound}\""), count);
            }
            self.sample(&format!("{name}_sum"), labels, histogram.sum);
            self.sample(&format!("{name}_count"), labels, count);
        }
    }
}

/// A histogram that stands for both families.
fn both(histogram: &Histogram) -> [(String, &Histogram); 2] {
    FAMILIES.map(|family| (format!("ip_family=\"{family}\""), histogram))
}

fn each(histograms: &[Histogram; 2]) -> [(String, &Histogram); 2] {
    [0, 1].map(|at| (format!("ip_family=\"{}\"", FAMILIES[at]), &histograms[at]))
}

impl Metrics {
    /// In Prometheus' text format.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut text = Text(String::with_capacity(16 << 10));
        self.render_syncs(&mut text);
        self.render_changes(&mut text, gauges);
        self.render_ours(&mut text, gauges);
        text.0
    }

    fn render_syncs(&self, text: &mut Text) {
        let name = |rest: &str| format!("kubeproxy_{rest}");
        let mut every = self.full_sync.clone();
        for (count, more) in every.counts.iter_mut().zip(&self.partial_sync.counts) {
            *count += more;
        }
        every.sum += self.partial_sync.sum;
        for (rest, help, histogram) in [
            ("sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", &every),
            (
                "sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                &self.full_sync,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                &self.partial_sync,
            ),
        ] {
            text.histogram(&name(rest), help, &both(histogram));
        }
        for (rest, help, histograms) in [
            (
                "network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                &self.network_programming,
            ),
            (
                "conntrack_reconciler_sync_duration_seconds",
                "ReconcileConntrackFlowsLatency latency in seconds",
                &self.conntrack,
            ),
        ] {
            text.histogram(&name(rest), help, &each(histograms));
        }
        for (rest, help, value) in [
            (
                "sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
                self.last_sync,
            ),
            (
                "sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
                self.last_queued,
            ),
        ] {
            text.by_family(&name(rest), "gauge", help, [value; 2]);
        }
        for (rest, help, values) in [
            (
                "sync_proxy_rules_nftables_sync_failures_total",
                "Cumulative proxy nftables sync failures",
                [self.failures; 2],
            ),
            (
                "sync_proxy_rules_nftables_cleanup_failures_total",
                "Cumulative proxy nftables cleanup failures",
                [self.cleanup_failures; 2],
            ),
            (
                "conntrack_reconciler_deleted_entries_total",
                "Cumulative conntrack flows deleted by conntrack reconciler",
                self.flows_deleted,
            ),
        ] {
            text.by_family(&name(rest), "counter", help, values);
        }
    }

    fn render_changes(&self, text: &mut Text, gauges: &Gauges) {
        for (what, words, (total, pending)) in [
            ("endpoint_changes", "Endpoint changes", self.endpoint_changes),
            ("service_changes", "Service changes", self.service_changes),
        ] {
            let name = format!("kubeproxy_sync_proxy_rules_{what}");
            text.single(&format!("{name}_pending"), "gauge", &format!("Pending proxy rules {words}"), pending);
            text.single(&format!("{name}_total"), "counter", &format!("Cumulative proxy rules {words}"), total);
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        text.head(name, "gauge", "Number of services with a Local traffic policy and no endpoints");
        let WithoutLocal { internal, external } = gauges.without_local;
        for (policy, counts) in [("internal", internal), ("external", external)] {
            for (family, count) in FAMILIES.iter().zip(counts) {
                text.sample(name, &format!("ip_family=\"{family}\",traffic_policy=\"{policy}\""), count);
            }
        }
    }

    fn render_ours(&self, text: &mut Text, gauges: &Gauges) {
        let name = |rest: &str| format!("nodelet_services_{rest}");
        for (rest, help, histogram) in [
            ("programming_duration_seconds", "From hearing of a change to its commit", &self.programming),
            ("batch_elements", "Elements of a transaction", &self.batch_elements),
            ("batch_bytes", "Bytes of a transaction", &self.batch_bytes),
        ] {
            text.histogram(&name(rest), help, &[(String::new(), histogram)]);
        }
        for (rest, help, value) in [
            ("comparisons_total", "Comparisons of the kernel's rules with what they should be", self.comparisons),
            ("drift_total", "Comparisons that found rules changed by somebody else", self.drift),
        ] {
            text.single(&name(rest), "counter", help, value);
        }
        let (fronts, endpoints) = gauges.size;
        text.single(&name("fronts"), "gauge", "Addresses and ports that are served or refused", fronts);
        text.single(&name("endpoints"), "gauge", "Endpoints of all fronts", endpoints);
        text.single(&name("refused"), "gauge", "Fronts of which the kernel refuses something", gauges.refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_kube_proxys() {
        assert_eq!((SYNC[0], SYNC[14]), (0.001, 16.384));
        let spots = [(0, 0.25), (1, 0.5), (2, 1.0), (60, 59.0), (61, 60.0), (72, 115.0), (73, 120.0), (79, 300.0)];
        for (at, bound) in spots {
            assert!((NETWORK[at] - bound).abs() < 1e-9, "{at}: {} is not {bound}", NETWORK[at]);
        }
    }

    #[test]
    fn dashboards_find_kube_proxys_names_and_labels() {
        let mut metrics = Metrics::default();
        metrics.full_sync.observe_time(Duration::from_millis(3));
        metrics.partial_sync.observe_time(Duration::from_micros(500));
        metrics.network_programming[1].observe(0.3);
        metrics.flows_deleted = [2, 0];
        metrics.endpoint_changes = (7, 1);
        metrics.drift = 3;
        let without_local = WithoutLocal { internal: [1, 0], external: [0, 4] };
        let text = metrics.render(&Gauges { without_local, size: (5, 6), refused: 2 });
        for line in [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"} 2",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv6\",le=\"+Inf\"} 2",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.25\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv6\",le=\"0.5\"} 1",
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 0",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 7",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 4",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 0",
            "nodelet_services_drift_total 3",
            "nodelet_services_fronts 5",
            "nodelet_services_refused 2",
            "nodelet_services_batch_bytes_count 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let named =
            |text: &str| text.lines().filter(|l| l.starts_with("# TYPE")).map(str::to_owned).collect::<Vec<_>>();
        let mut once = named(&text);
        once.dedup();
        assert_eq!(once, named(&text), "each name is described once");
    }
}
