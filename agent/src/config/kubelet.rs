//! `KubeletConfiguration` v1beta1: what is read of it, with kubelet's defaults. Pure.
//! Source: `k8s.io/kubelet/config/v1beta1` v0.37 and "Kubelet Configuration (v1beta1)" of the Kubernetes documentation.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, Findings, Unread};
use crate::pod::images::records::Policy;

pub mod resources;
pub(super) mod sections;

use sections::eviction;

/// The cgroup driver that is asked for; the runtime's own word wins where it has one (KEP-4033).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories.
    Cgroupfs,
    /// Slices of systemd.
    Systemd,
}

/// A taint that the node registers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value, may be empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// The part of a `KubeletConfiguration` that nodelet uses. All defaults are filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Kubelet {
    /// Directory of static pods; `None` for no static pods.
    pub static_pod_path: Option<PathBuf>,
    /// Directory of pod logs.
    pub pod_logs_dir: PathBuf,
    /// Address and port of the kubelet API.
    pub address: IpAddr,
    /// See `address`.
    pub port: u16,
    /// Address of `/healthz`.
    pub healthz_address: IpAddr,
    /// Port of `/healthz`; 0 switches it off.
    pub healthz_port: u16,
    /// Servers of `ClusterFirst` pods.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// The node's resolver configuration; empty for none.
    pub resolv_conf: PathBuf,
    /// Most pods.
    pub max_pods: i64,
    /// Most pods per core; 0 for no such limit.
    pub pods_per_core: i64,
    /// Most processes of a pod; -1 for no limit.
    pub pod_pids_limit: i64,
    /// Cgroup below which `kubepods` is made.
    pub cgroup_root: String,
    /// Whether pods get cgroups by QoS class.
    pub cgroups_per_qos: bool,
    /// Driver, unless the runtime says otherwise.
    pub cgroup_driver: CgroupDriver,
    /// Whether CPU limits are enforced.
    pub cpu_cfs_quota: bool,
    /// Period of CPU limits.
    pub cpu_cfs_period: Duration,
    /// Socket of the runtime.
    pub runtime_endpoint: PathBuf,
    /// Socket of the image service.
    pub image_endpoint: Option<PathBuf>,
    /// Limit of runtime calls.
    pub runtime_timeout: Duration,
    /// How many images are pulled at once.
    pub parallel_pulls: usize,
    /// Which images on the node ask a pod for credentials.
    pub pull_verification: Policy,
    /// How often the node status is computed.
    pub status_update: Duration,
    /// How often it is sent when nothing changed.
    pub status_report: Duration,
    /// Life of the node lease.
    pub lease_duration: Duration,
    /// Whether the Node object is made.
    pub register_node: bool,
    /// Taints to register with.
    pub taints: Vec<Taint>,
    /// `spec.providerID`.
    pub provider_id: String,
    /// What is kept from pods.
    pub reserved: resources::Reserved,
    /// `memorySwap.swapBehavior`.
    pub swap: resources::Swap,
    /// Protection and throttling of memory.
    pub memory_qos: resources::MemoryQos,
    /// Whether the kernel kills one process of a container that is out of memory, not all; `None` leaves it to the version
    /// of cgroups.
    pub single_process_oom_kill: Option<bool>,
    /// The agent's own OOM score.
    pub oom_score_adj: i64,
    /// Hard eviction thresholds by signal, as written.
    pub eviction_hard: Vec<(String, String)>,
    /// Whether client certificates are renewed.
    pub rotate_certificates: bool,
    /// Whether containers without a seccomp profile get RuntimeDefault.
    pub seccomp_default: bool,
    /// Largest crash back-off.
    pub max_crash_backoff: Duration,
    /// Whether swap on the node is an error; `None` where nothing is said.
    pub fail_swap_on: Option<bool>,
    /// Whether cgroup v1 is an error; `None` where nothing is said.
    pub fail_cgroup_v1: Option<bool>,
    /// Most images in the node status.
    pub status_max_images: i64,
    /// Events per second to the API server, and burst; 0 for no limit.
    pub event_qps: (i64, i64),
    /// Requests per second to the API server, and burst; 0 for no limit.
    pub api_qps: (i64, i64),
    /// Image pulls per second, and burst; 0 for no limit.
    pub registry_qps: (i64, i64),
    /// Rotation of container logs; `None` where a negative size switches it off.
    pub log_rotation: Option<LogRotation>,
    /// When images are removed.
    pub image_garbage: ImageGarbage,
    /// Unsafe sysctls that pods may set: names, or prefixes that end in `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// What node allocatable is enforced on.
    pub enforce: Vec<Enforce>,
    /// Cgroup of the system's daemons; empty for none.
    pub system_reserved_cgroup: String,
    /// Cgroup of Kubernetes' daemons; empty for none.
    pub kube_reserved_cgroup: String,
    /// How changes of ConfigMaps and Secrets are noticed.
    pub change_detection: ChangeDetection,
    /// Feature gates as written.
    pub feature_gates: Vec<(String, bool)>,
    /// Who may call the kubelet API, and with what certificate it answers.
    pub server: Server,
    /// What pods get when the node shuts down: all together, and critical ones of it.
    pub shutdown_grace: (Duration, Duration),
    /// Log format and klog verbosity of the file.
    pub logging: Logging,
    /// How often the files of volumes are counted at most; `None` for never.
    pub volume_stats_period: Option<Duration>,
}

/// When container logs are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// Bytes at which a log is rotated.
    pub max_size: u64,
    /// Files of a container that are kept.
    pub max_files: usize,
    /// Files that are compressed at once.
    pub workers: usize,
    /// Longest time between two looks at a log.
    pub interval: Duration,
}

/// When images are removed. 100 percent and an age of zero switch it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGarbage {
    /// Percent of use of the images' file system from which unused images go.
    pub high: u8,
    /// Percent of use down to which they go.
    pub low: u8,
    /// How long a new image stays.
    pub min_age: Duration,
    /// How long an unused image stays; zero for ever.
    pub max_age: Duration,
}

/// A group of processes that node allocatable is enforced on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforce {
    /// Pods, by the limit of the cgroup above them.
    Pods,
    /// The system's daemons.
    SystemReserved,
    /// The system's daemons, CPU only.
    SystemReservedCompressible,
    /// Kubernetes' daemons.
    KubeReserved,
    /// Kubernetes' daemons, CPU only.
    KubeReservedCompressible,
}

/// How changes of ConfigMaps and Secrets are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeDetection {
    /// By watching each object.
    Watch,
    /// By asking again after a time.
    Cache,
    /// By asking at each use.
    Get,
}

/// The kubelet API: certificate, authentication and authorization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Whether it is served.
    pub enabled: bool,
    /// Certificate; made by the agent when absent.
    pub cert_file: Option<PathBuf>,
    /// Key of the certificate.
    pub key_file: Option<PathBuf>,
    /// Whether a certificate is requested from the API server.
    pub bootstrap_cert: bool,
    /// Authority of client certificates; none without it.
    pub client_ca_file: Option<PathBuf>,
    /// Whether callers without credentials are let in as `system:anonymous`.
    pub anonymous: bool,
    /// Whether bearer tokens are checked with the API server, and how long an answer is kept.
    pub token_webhook: Option<Duration>,
    /// Who decides what a caller may do.
    pub authorization: Authorization,
    /// When an idle stream is closed.
    pub stream_idle: Duration,
    /// Versions and cipher suites.
    pub tls: TlsOptions,
    /// Whether `/logs/` shows what is below `/var/log`; kubelet does unless told otherwise, this agent where it is told to.
    pub system_logs: bool,
    /// Port that everybody may read from; `None` for none.
    pub read_only_port: Option<u16>,
    /// Whether streams, logs and commands are served.
    pub debugging: bool,
}

/// TLS of the kubelet API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Lowest version.
    pub min_version: TlsVersion,
    /// Suites of TLS 1.2 by their names; `None` for all.
    pub cipher_suites: Option<Vec<&'static str>>,
    /// Groups of key exchange by their numbers in TLS; `None` for all.
    pub groups: Option<Vec<u16>>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2.
    #[default]
    V12,
    /// 1.3.
    V13,
}

/// Who decides what a caller of the kubelet API may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authorization {
    /// Everybody who is authenticated may do everything.
    AlwaysAllow,
    /// The API server, by SubjectAccessReview.
    Webhook {
        /// How long a yes is kept.
        allowed: Duration,
        /// How long a no is kept.
        denied: Duration,
    },
}

/// Logging of the agent itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Whether lines are JSON.
    pub json: bool,
    /// klog's verbosity.
    pub verbosity: u8,
}

/// Fields that exist and are not read, each with the value that asks for nothing: kubelet's default.
const UNREAD: [Unread; 42] = [
    ("syncFrequency", "1m0s"),
    ("fileCheckFrequency", "20s"),
    ("httpCheckFrequency", "20s"),
    ("staticPodURL", ""),
    ("staticPodURLHeader", ""),
    ("enableContentionProfiling", "false"),
    ("kubeletCgroups", ""),
    ("systemCgroups", ""),
    ("cpuManagerPolicy", "none"),
    ("cpuManagerPolicyOptions", ""),
    ("cpuManagerReconcilePeriod", "10s"),
    ("memoryManagerPolicy", "None"),
    ("topologyManagerPolicy", "none"),
    ("topologyManagerScope", "container"),
    ("topologyManagerPolicyOptions", ""),
    ("qosReserved", ""),
    ("hairpinMode", "promiscuous-bridge"),
    ("podCIDR", ""),
    ("runOnce", "false"),
    ("maxOpenFiles", "1000000"),
    ("contentType", "application/vnd.kubernetes.protobuf"),
    ("evictionSoft", ""),
    ("evictionSoftGracePeriod", ""),
    ("evictionPressureTransitionPeriod", "5m0s"),
    ("evictionMaxPodGracePeriod", "0"),
    ("evictionMinimumReclaim", ""),
    ("enableControllerAttachDetach", "true"),
    ("protectKernelDefaults", "false"),
    ("makeIPTablesUtilChains", "true"),
    ("iptablesMasqueradeBit", "14"),
    ("iptablesDropBit", "15"),
    ("showHiddenMetricsForVersion", ""),
    ("defaultPodSysctls", ""),
    ("volumePluginDir", "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"),
    ("kernelMemcgNotification", "false"),
    ("enableSystemLogQuery", "false"),
    ("shutdownGracePeriodByPodPriority", ""),
    ("reservedMemory", ""),
    ("enableProfilingHandler", "true"),
    ("enableDebugFlagsHandler", "true"),
    ("tracing", ""),
    ("localStorageCapacityIsolation", "true"),
];

/// Reads the top object of a `KubeletConfiguration`.
pub fn read(mut fields: Fields, f: &mut Findings) -> Kubelet {
    let all = &mut fields;
    warn_of_unused(all, f);
    let driver = match all.one_of(f, "cgroupDriver", &["cgroupfs", "systemd"]) {
        Some("systemd") => CgroupDriver::Systemd,
        _ => CgroupDriver::Cgroupfs,
    };
    let status_update = all.duration(f, "nodeStatusUpdateFrequency");
    let mut crash = all.object(f, "crashLoopBackOff");
    let longest = Duration::from_secs(300);
    let max_crash =
        crash.duration_in(f, "maxContainerRestartPeriod", Duration::from_secs(1), longest).unwrap_or(longest);
    crash.finish(f, &[]);
    let feature_gates = all.switches(f, "featureGates").unwrap_or_default();
    let kubelet = Kubelet {
        static_pod_path: all.filled(f, "staticPodPath").map(PathBuf::from),
        pod_logs_dir: all.filled(f, "podLogsDir").unwrap_or_else(|| "/var/log/pods".into()).into(),
        address: all.address(f, "address").unwrap_or(IpAddr::from([0, 0, 0, 0])),
        port: all.port(f, "port").filter(|p| *p != 0).unwrap_or(10250),
        healthz_address: all.address(f, "healthzBindAddress").unwrap_or(IpAddr::from([127, 0, 0, 1])),
        healthz_port: all.port(f, "healthzPort").unwrap_or(10248),
        cluster_dns: all.addresses(f, "clusterDNS").unwrap_or_default(),
        cluster_domain: all.string(f, "clusterDomain").unwrap_or_default().trim_matches('.').to_owned(),
        resolv_conf: all.string(f, "resolvConf").map_or_else(default_resolv_conf, PathBuf::from),
        max_pods: all.count(f, "maxPods").unwrap_or(110),
        pods_per_core: all.count(f, "podsPerCore").unwrap_or(0),
        pod_pids_limit: all.integer(f, "podPidsLimit", -1, i64::MAX).unwrap_or(-1),
        cgroup_root: all.filled(f, "cgroupRoot").unwrap_or_else(|| "/".into()),
        cgroups_per_qos: all.boolean(f, "cgroupsPerQOS").unwrap_or(true),
        cgroup_driver: driver,
        cpu_cfs_quota: all.boolean(f, "cpuCFSQuota").unwrap_or(true),
        cpu_cfs_period: all
            .duration_in(f, "cpuCFSQuotaPeriod", Duration::from_millis(1), Duration::from_secs(1))
            .unwrap_or(Duration::from_millis(100)),
        runtime_endpoint: endpoint(all, f, "containerRuntimeEndpoint")
            .unwrap_or_else(|| "/run/containerd/containerd.sock".into()),
        image_endpoint: endpoint(all, f, "imageServiceEndpoint"),
        runtime_timeout: all.duration(f, "runtimeRequestTimeout").unwrap_or(Duration::from_secs(120)),
        parallel_pulls: parallel_pulls(all, f),
        pull_verification: sections::pull_verification(all, f),
        status_update: status_update.unwrap_or(Duration::from_secs(10)),
        status_report: all
            .duration(f, "nodeStatusReportFrequency")
            .or(status_update)
            .unwrap_or(Duration::from_secs(300)),
        lease_duration: Duration::from_secs(all.count(f, "nodeLeaseDurationSeconds").unwrap_or(40).unsigned_abs()),
        register_node: all.boolean(f, "registerNode").unwrap_or(true),
        taints: taints(all, f),
        provider_id: all.string(f, "providerID").unwrap_or_default(),
        reserved: resources::reserved(all, f),
        swap: resources::swap(all, f),
        memory_qos: resources::memory_qos(all, f, &feature_gates),
        single_process_oom_kill: all.boolean(f, "singleProcessOOMKill"),
        oom_score_adj: all.integer(f, "oomScoreAdj", -1000, 1000).unwrap_or(-999),
        eviction_hard: eviction(all, f),
        rotate_certificates: all.boolean(f, "rotateCertificates").unwrap_or(false),
        seccomp_default: all.boolean(f, "seccompDefault").unwrap_or(false),
        max_crash_backoff: max_crash,
        fail_swap_on: all.boolean(f, "failSwapOn"),
        fail_cgroup_v1: all.boolean(f, "failCgroupV1"),
        status_max_images: all.integer(f, "nodeStatusMaxImages", -1, i64::MAX).unwrap_or(50),
        event_qps: qps(all, f, "eventRecordQPS", "eventBurst", (50, 100)),
        api_qps: qps(all, f, "kubeAPIQPS", "kubeAPIBurst", (50, 100)),
        registry_qps: qps(all, f, "registryPullQPS", "registryBurst", (5, 10)),
        log_rotation: sections::log_rotation(all, f),
        image_garbage: sections::image_garbage(all, f),
        allowed_unsafe_sysctls: all.strings(f, "allowedUnsafeSysctls").unwrap_or_default(),
        enforce: sections::enforce(all, f),
        system_reserved_cgroup: all.string(f, "systemReservedCgroup").unwrap_or_default(),
        kube_reserved_cgroup: all.string(f, "kubeReservedCgroup").unwrap_or_default(),
        change_detection: match all.one_of(f, "configMapAndSecretChangeDetectionStrategy", &["Watch", "Cache", "Get"]) {
            Some("Cache") => ChangeDetection::Cache,
            Some("Get") => ChangeDetection::Get,
            _ => ChangeDetection::Watch,
        },
        feature_gates,
        server: sections::server(all, f),
        shutdown_grace: sections::shutdown(all, f),
        logging: sections::logging(all, f),
        volume_stats_period: sections::volume_stats(all, f),
    };
    sections::cross_check(&kubelet, &fields, f);
    resources::cross_check(&kubelet, &fields, f);
    fields.finish(f, &UNREAD);
    kubelet
}

/// Fields that are checked, and whose feature is still to come.
const UNUSED: [&str; 2] = ["shutdownGracePeriod", "shutdownGracePeriodCriticalPods"];

/// Whether nothing comes of what is written in a field.
pub fn is_unread(name: &str) -> bool {
    UNREAD.iter().any(|(unread, _)| *unread == name) || UNUSED.contains(&name)
}

fn warn_of_unused(all: &Fields, f: &mut Findings) {
    for name in UNUSED.into_iter().filter(|name| all.asks_for_something(name)) {
        f.warnings.push(all.problem(name, "is not implemented by nodelet yet and has no effect"));
    }
}

fn qps(all: &mut Fields, f: &mut Findings, rate: &str, burst: &str, default: (i64, i64)) -> (i64, i64) {
    let rate = all.integer(f, rate, 0, i64::from(i32::MAX)).unwrap_or(default.0);
    (rate, all.count(f, burst).unwrap_or(default.1))
}

/// With systemd-resolved, `/etc/resolv.conf` names only its stub on the node's loopback, which pods cannot reach.
fn default_resolv_conf() -> PathBuf {
    let stub = std::path::Path::new("/run/systemd/resolve/resolv.conf");
    if stub.exists() { stub.into() } else { "/etc/resolv.conf".into() }
}

/// `unix:///path` or `/path`.
pub fn socket(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    path.starts_with('/').then(|| PathBuf::from(path))
}

fn endpoint(all: &mut Fields, f: &mut Findings, name: &str) -> Option<PathBuf> {
    let text = all.filled(f, name)?;
    let found = socket(&text);
    if found.is_none() {
        f.errors.push(all.problem(name, format!("\"{text}\" is not allowed; expected unix:///path/of/socket")));
    }
    found
}

fn parallel_pulls(all: &mut Fields, f: &mut Findings) -> usize {
    let serialize = all.boolean(f, "serializeImagePulls");
    let most = all.integer(f, "maxParallelImagePulls", 1, i64::from(i32::MAX));
    match (serialize, most) {
        (Some(true), Some(most)) if most > 1 => {
            let text = format!("{most} is not allowed together with serializeImagePulls: true; set that to false");
            f.errors.push(all.problem("maxParallelImagePulls", text));
            1
        }
        (_, Some(most)) => usize::try_from(most).unwrap_or(usize::MAX),
        (Some(true), None) => 1,
        // Without a limit in the file nodelet pulls four at a time: one slow registry must not hold up the node.
        (Some(false) | None, None) => 4,
    }
}

fn taints(all: &mut Fields, f: &mut Findings) -> Vec<Taint> {
    let Some(value) = all.raw("registerWithTaints") else { return Vec::new() };
    let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut taints = Vec::new();
    for item in value.as_array().into_iter().flatten() {
        let taint = Taint { key: text(item, "key"), value: text(item, "value"), effect: text(item, "effect") };
        match check_taint(&taint) {
            Ok(()) => taints.push(taint),
            Err(problem) => f.errors.push(all.problem("registerWithTaints", problem)),
        }
    }
    taints
}

/// What is wrong with a taint.
pub fn check_taint(taint: &Taint) -> Result<(), String> {
    if taint.key.is_empty() {
        return Err("a taint has no key; expected key, value and effect".into());
    }
    match taint.effect.as_str() {
        "NoSchedule" | "PreferNoSchedule" | "NoExecute" => Ok(()),
        other => Err(format!(
            "taint {}: effect \"{other}\" is not allowed; expected one of NoSchedule, PreferNoSchedule, NoExecute",
            taint.key
        )),
    }
}
