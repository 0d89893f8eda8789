//! `KubeProxyConfiguration` v1alpha1: what is read of it, with kube-proxy's defaults. Pure.
//! Source: `k8s.io/kube-proxy/config/v1alpha1` v0.37.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::fields::{Fields, Findings, Unread};
use super::kubelet::Logging;
use super::kubelet::sections::logging;

/// How traffic from this node's pods is told from other traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalMode {
    /// By the pod CIDRs of the whole cluster.
    ClusterCidr,
    /// By the pod CIDRs of this node.
    NodeCidr,
    /// By the bridge that pods are on.
    BridgeInterface(String),
    /// By the first letters of pods' interfaces on the node.
    InterfaceNamePrefix(String),
}

impl LocalMode {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClusterCidr => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface(_) => "BridgeInterface",
            Self::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
        }
    }
}

/// The part of a `KubeProxyConfiguration` that nodelet uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// Kubeconfig for Services and EndpointSlices.
    pub kubeconfig: Option<PathBuf>,
    /// Node name.
    pub hostname_override: String,
    /// Address of `/healthz`; `None` switches it off.
    pub healthz: Option<SocketAddr>,
    /// Address of `/metrics`; `None` switches it off.
    pub metrics: Option<SocketAddr>,
    /// Masquerade everything that goes to a Service.
    pub masquerade_all: bool,
    /// Retry and full-check period.
    pub sync_period: Duration,
    /// Least time between two commits; 0 commits at once.
    pub min_sync_period: Duration,
    /// How local traffic is detected.
    pub local_mode: LocalMode,
    /// Pod CIDRs of the cluster.
    pub cluster_cidrs: Vec<String>,
    /// Addresses that serve NodePorts: CIDRs, `primary`, `localhost` and `all`; empty means `primary`.
    pub node_port_addresses: Vec<String>,
    /// Address of the node, where it is not to be found out.
    pub bind_address: Option<IpAddr>,
    /// Settings of the kernel's connection tracking.
    pub conntrack: Conntrack,
    /// Requests per second to the API server, and burst.
    pub api_qps: (f64, i64),
    /// Feature gates as written.
    pub feature_gates: Vec<(String, bool)>,
    /// Log format and klog verbosity of the file.
    pub logging: Logging,
    /// The same as it was given: file and flags, merged. `/configz` shows it.
    pub given: serde_json::Value,
}

/// Settings of the kernel's connection tracking; `None` leaves the kernel's own value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries per core; `None` leaves the kernel's limit.
    pub max_per_core: Option<u32>,
    /// Least entries, where `max_per_core` is set.
    pub min: u32,
    /// Idle time of an established TCP connection.
    pub tcp_established: Option<Duration>,
    /// Idle time in CLOSE_WAIT.
    pub tcp_close_wait: Option<Duration>,
    /// Whether packets outside the window are let through.
    pub tcp_be_liberal: bool,
    /// Idle time of a UDP flow without answers.
    pub udp: Option<Duration>,
    /// Idle time of a UDP flow with answers.
    pub udp_stream: Option<Duration>,
}

/// Fields that exist and are not read, each with the value that asks for nothing.
const UNREAD: [Unread; 9] = [
    ("bindAddressHardFail", "false"),
    ("enableProfiling", "false"),
    ("showHiddenMetricsForVersion", ""),
    ("ipvs", ""),
    ("winkernel", ""),
    ("windowsRunAsService", "false"),
    ("oomScoreAdj", "-999"),
    ("configSyncPeriod", "15m0s"),
    ("portRange", ""),
];

/// Reads the top object of a `KubeProxyConfiguration`.
pub fn read(mut fields: Fields, f: &mut Findings) -> Proxy {
    let all = &mut fields;
    let mut connection = all.object(f, "clientConnection");
    let kubeconfig = connection.filled(f, "kubeconfig").map(PathBuf::from);
    let api_qps = (number(&mut connection, f, "qps").unwrap_or(5.0), connection.count(f, "burst").unwrap_or(10));
    connection.finish(f, &[("acceptContentTypes", ""), ("contentType", "application/vnd.kubernetes.protobuf")]);
    if let Some(mode @ ("iptables" | "ipvs")) = all.one_of(f, "mode", &["nftables", "iptables", "ipvs"]) {
        f.warnings.push(all.problem("mode", format!("{mode} is not offered; Services are programmed with nftables")));
    }
    let mut nftables = all.object(f, "nftables");
    let mut iptables = all.object(f, "iptables");
    let masquerade_all = [nftables.boolean(f, "masqueradeAll"), iptables.boolean(f, "masqueradeAll")];
    let sync_period = nftables.duration(f, "syncPeriod").unwrap_or(Duration::from_secs(30));
    // kube-proxy waits 1 s by default, because its transactions are large; here a change costs its own size.
    let min_sync_period = nftables.duration(f, "minSyncPeriod").unwrap_or(Duration::ZERO);
    if min_sync_period > sync_period {
        f.errors.push(nftables.problem("minSyncPeriod", "is longer than syncPeriod; expected at most that"));
    }
    // The mark is not needed: masquerading is decided by a map in the same table.
    nftables.raw("masqueradeBit");
    nftables.finish(f, &[]);
    // With mode nftables these have no effect in kube-proxy either.
    for name in ["masqueradeBit", "syncPeriod", "minSyncPeriod"] {
        iptables.raw(name);
    }
    iptables.finish(f, &[("localhostNodePorts", "true")]);
    let bind_address = all.address(f, "bindAddress");
    let (any, local) = match bind_address {
        Some(IpAddr::V6(_)) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::LOCALHOST)),
        Some(IpAddr::V4(_)) | None => (IpAddr::from([0, 0, 0, 0]), IpAddr::from([127, 0, 0, 1])),
    };
    let proxy = Proxy {
        kubeconfig,
        hostname_override: all.string(f, "hostnameOverride").unwrap_or_default(),
        healthz: bind(all, f, "healthzBindAddress", any, 10256),
        metrics: bind(all, f, "metricsBindAddress", local, 10249),
        masquerade_all: masquerade_all.contains(&Some(true)),
        sync_period,
        min_sync_period,
        local_mode: local_mode(all, f),
        cluster_cidrs: cluster_cidrs(all, f),
        node_port_addresses: node_port_addresses(all, f),
        bind_address: bind_address.filter(|address| !address.is_unspecified()),
        conntrack: conntrack(all, f),
        api_qps,
        feature_gates: all.switches(f, "featureGates").unwrap_or_default(),
        logging: logging(all, f),
        given: serde_json::Value::Null,
    };
    fields.finish(f, &UNREAD);
    proxy
}

fn number(fields: &mut Fields, f: &mut Findings, name: &str) -> Option<f64> {
    let value = fields.raw(name)?;
    let found = value.as_f64().filter(|n| *n >= 0.0);
    if found.is_none() {
        f.errors.push(fields.problem(name, format!("{value} is not allowed; expected a number from 0")));
    }
    found.filter(|n| *n > 0.0)
}

fn conntrack(all: &mut Fields, f: &mut Findings) -> Conntrack {
    let mut conntrack = all.object(f, "conntrack");
    let hour = Duration::from_secs(3600);
    let none_if_zero = |duration: Duration| Some(duration).filter(|d| !d.is_zero());
    let mut count = |name: &str, default: u32| {
        let found = conntrack.integer(f, name, 0, i64::from(i32::MAX));
        found.and_then(|n| u32::try_from(n).ok()).unwrap_or(default)
    };
    let (max_per_core, min) = (count("maxPerCore", 32 * 1024), count("min", 128 * 1024));
    let settings = Conntrack {
        max_per_core: Some(max_per_core).filter(|n| *n > 0),
        min,
        tcp_established: none_if_zero(conntrack.any_duration(f, "tcpEstablishedTimeout").unwrap_or(hour * 24)),
        tcp_close_wait: none_if_zero(conntrack.any_duration(f, "tcpCloseWaitTimeout").unwrap_or(hour)),
        tcp_be_liberal: conntrack.boolean(f, "tcpBeLiberal").unwrap_or(false),
        udp: conntrack.duration(f, "udpTimeout"),
        udp_stream: conntrack.duration(f, "udpStreamTimeout"),
    };
    conntrack.finish(f, &[]);
    settings
}

/// Whether a text is an address with a prefix length that fits its family.
pub fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let bits = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.parse::<u8>().is_ok_and(|length| length <= bits)
}

/// What is wrong with a list of at most one range of each family.
pub fn check_cidrs(cidrs: &[String]) -> Result<(), String> {
    let expected = "expected CIDRs such as 10.244.0.0/16, at most one of each family, separated by a comma";
    if let Some(wrong) = cidrs.iter().find(|cidr| !is_cidr(cidr)) {
        return Err(format!("\"{wrong}\" is not allowed; {expected}"));
    }
    let v6 = cidrs.iter().filter(|cidr| cidr.contains(':')).count();
    if v6 > 1 || cidrs.len() - v6 > 1 {
        return Err(format!("\"{}\" is not allowed; {expected}", cidrs.join(",")));
    }
    Ok(())
}

fn cluster_cidrs(all: &mut Fields, f: &mut Findings) -> Vec<String> {
    let cidrs = split(&all.string(f, "clusterCIDR").unwrap_or_default());
    if let Err(text) = check_cidrs(&cidrs) {
        f.errors.push(all.problem("clusterCIDR", text));
    }
    cidrs
}

/// Words that stand for addresses in `nodePortAddresses`.
const NODE_PORT_KEYWORDS: [&str; 3] = ["primary", "localhost", "all"];

fn node_port_addresses(all: &mut Fields, f: &mut Findings) -> Vec<String> {
    let list = all.strings(f, "nodePortAddresses").unwrap_or_default();
    for (index, item) in list.iter().enumerate() {
        let is_keyword = NODE_PORT_KEYWORDS.contains(&item.as_str());
        if !is_keyword && !is_cidr(item) {
            let text = format!("\"{item}\" is not allowed; expected CIDRs, or the words primary, localhost or all");
            f.errors.push(all.problem("nodePortAddresses", text));
        }
        if is_keyword && list.iter().take(index).any(|former| former == item) {
            f.errors.push(all.problem("nodePortAddresses", format!("\"{item}\" is written twice; expected once")));
        }
    }
    list
}

/// Parts of a comma-separated list.
pub fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// `ADDRESS`, `ADDRESS:PORT`, or empty for the default address.
fn bind(all: &mut Fields, f: &mut Findings, name: &str, default: IpAddr, port: u16) -> Option<SocketAddr> {
    let Some(text) = all.filled(f, name) else { return Some(SocketAddr::new(default, port)) };
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let parsed = text.parse::<SocketAddr>().ok().or_else(|| Some(SocketAddr::new(bare.parse().ok()?, port)));
    if parsed.is_none() {
        f.errors.push(all.problem(name, format!("\"{text}\" is not allowed; expected ADDRESS or ADDRESS:PORT")));
    }
    parsed.filter(|a| a.port() != 0)
}

fn local_mode(all: &mut Fields, f: &mut Findings) -> LocalMode {
    let words = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];
    let mode = all.one_of(f, "detectLocalMode", &words);
    let mut detect = all.object(f, "detectLocal");
    let bridge = detect.string(f, "bridgeInterface").unwrap_or_default();
    let prefix = detect.string(f, "interfaceNamePrefix").unwrap_or_default();
    detect.finish(f, &[]);
    let mut needed = |name: &str, value: &str| {
        if value.is_empty() {
            let text = format!("needs detectLocal.{name}; set it, or choose another mode");
            f.errors.push(all.problem("detectLocalMode", text));
        }
    };
    match mode {
        Some("NodeCIDR") => LocalMode::NodeCidr,
        Some("BridgeInterface") => {
            needed("bridgeInterface", &bridge);
            LocalMode::BridgeInterface(bridge)
        }
        Some("InterfaceNamePrefix") => {
            needed("interfaceNamePrefix", &prefix);
            LocalMode::InterfaceNamePrefix(prefix)
        }
        _ => LocalMode::ClusterCidr,
    }
}
