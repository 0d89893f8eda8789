//! Configuration: kubelet's and kube-proxy's own files and flags, checked once.
//!
//! ```text
//!  --config ─► drop-ins of --config-dir ─► flags of fields ─► Kubelet ┐
//!  --proxy-config ─────────────────────► flags of fields ─► Proxy   ├─► Config
//!  flags without a field (--kubeconfig, --manifests, ...) ──────────┘
//! ```
//!
//! The files are trees whose values know where they were written; what is later in a line wins.
//! Nothing downstream parses or defaults again. All wrong values are reported together; a field that has no effect
//! warns once, by name.

use std::net::IpAddr;
use std::path::PathBuf;

pub mod credential_providers;
pub mod dropins;
pub mod duration;
pub mod effective;
pub mod fields;
pub mod flags;
pub mod kubelet;
pub mod proxy;
#[cfg(test)]
mod tests;
pub mod tree;

pub use kubelet::Kubelet;
pub use proxy::Proxy;

use fields::{Fields, Findings, Problem};

use crate::pod::images::provider::Provider;

/// The Kubernetes level that is implemented, and ours as build metadata. Schedulers and suites compare the first part.
pub const KUBELET_VERSION: &str = concat!("v1.37.2+nodelet.", env!("CARGO_PKG_VERSION"));

/// Which half of the work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Both.
    Both,
    /// kubelet's.
    Pods,
    /// kube-proxy's.
    Services,
}

/// Where desired state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A directory of manifests, without a control plane.
    Alone {
        /// The directory; without it the static pods are all there is.
        manifests: Option<PathBuf>,
        /// Range of ClusterIPs.
        service_cidrs: Vec<String>,
        /// Ranges of pod addresses for the project's own CNI plugin.
        pod_cidrs: Vec<String>,
    },
    /// A control plane.
    Joined {
        /// kubeconfig.
        kubeconfig: PathBuf,
        /// Kubeconfig to ask for a client certificate with, when there is none.
        bootstrap: Option<PathBuf>,
    },
}

/// Flags as given, before they are checked against files.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--config-dir`.
    pub config_dir: Option<PathBuf>,
    /// `--proxy-config`.
    pub proxy_config: Option<PathBuf>,
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--bootstrap-kubeconfig`.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// `--root-dir`.
    pub root_dir: Option<PathBuf>,
    /// `--cert-dir`.
    pub cert_dir: Option<PathBuf>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--image-credential-provider-config`.
    pub credential_provider_config: Option<PathBuf>,
    /// `--image-credential-provider-bin-dir`.
    pub credential_provider_bin_dir: Option<PathBuf>,
    /// `--hostname-override`.
    pub hostname_override: Option<String>,
    /// `--node-ip`, one or two separated by a comma.
    pub node_ip: Option<String>,
    /// `--node-labels`, `key=value` separated by commas.
    pub node_labels: Option<String>,
    /// `--register-with-taints`, `key=value:effect` separated by commas.
    pub register_with_taints: Option<String>,
    /// `--container-runtime-endpoint`.
    pub runtime_endpoint: Option<String>,
    /// `--manifests`.
    pub manifests: Option<PathBuf>,
    /// `--service-cidr`.
    pub service_cidr: Option<String>,
    /// `--pod-cidr`.
    pub pod_cidr: Option<String>,
    /// `--cni-conf-dir`.
    pub cni_conf_dir: Option<PathBuf>,
    /// `--only`.
    pub only: Option<Only>,
    /// `--cloud-provider`.
    pub cloud_provider: Option<String>,
    /// `--maximum-dead-containers-per-container`.
    pub dead_containers: Option<i64>,
    /// Flags that are fields of a file, as [`flags`] lists them: name and text, in the order given.
    pub fields: Vec<(String, String)>,
}

/// The checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where desired state comes from.
    pub mode: Mode,
    /// Which half of the work is done.
    pub only: Only,
    /// Name of the node.
    pub node_name: String,
    /// Addresses of the node from `--node-ip`; empty means they are found out.
    pub node_ips: Vec<IpAddr>,
    /// Whether a cloud controller fills in addresses, zone and provider ID. The node then registers with the taint that
    /// keeps pods away until it has (KEP-2392); that taint is in `kubelet.taints`.
    pub has_cloud_controller: bool,
    /// Dead containers of a name that are kept, where the flag says; negative for all.
    pub dead_containers: Option<i64>,
    /// Labels that the node registers with.
    pub node_labels: Vec<(String, String)>,
    /// Where the runtime looks for network configurations; one for the project's own plugin is written there when there
    /// is none. `None` leaves the network to others.
    pub cni_conf_dir: Option<PathBuf>,
    /// kubelet's directory, `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// Directory of certificates.
    pub cert_dir: PathBuf,
    /// nodelet's own directory, `/var/lib/nodelet`.
    pub state_dir: PathBuf,
    /// Directory of credential providers, and the providers.
    pub credential_providers: (PathBuf, Vec<Provider>),
    /// From the `KubeletConfiguration`.
    pub kubelet: Kubelet,
    /// The same as it was given: file, drop-ins and flags, merged. [`effective`] shows it.
    pub kubelet_given: serde_json::Value,
    /// From the `KubeProxyConfiguration`.
    pub proxy: Proxy,
}

/// Reads and checks everything. `Err` carries all wrong values.
pub fn load(flags: &Flags) -> Result<(Config, Vec<Problem>), Vec<Problem>> {
    let mut findings = Findings::default();
    let only_services = flags.only == Some(Only::Services);
    let mut kubelet_tree = dropins::kubelet(flags.config.as_deref(), flags.config_dir.as_deref(), &mut findings);
    let mut proxy_tree = dropins::proxy(flags.proxy_config.as_deref(), &mut findings);
    let has_file = flags.proxy_config.is_some();
    flags::overlay(&flags.fields, only_services, has_file, &mut kubelet_tree, &mut proxy_tree, &mut findings);
    let kubelet_given = kubelet_tree.value();
    let mut kubelet = kubelet::read(Fields::new(kubelet_tree, &mut findings), &mut findings);
    let proxy_given = proxy_tree.value();
    let proxy = proxy::read(Fields::new(proxy_tree, &mut findings), &mut findings);
    let proxy = Proxy { given: proxy_given, ..proxy };
    warn_of_gates(&kubelet.feature_gates, &proxy.feature_gates, &mut findings);
    if let Some(endpoint) = &flags.runtime_endpoint {
        match kubelet::socket(endpoint) {
            Some(socket) => kubelet.runtime_endpoint = socket,
            None => findings.errors.push(flag("--container-runtime-endpoint", endpoint, "unix:///path/of/socket")),
        }
    }
    apply_taints(flags, &mut kubelet, &mut findings);
    let has_cloud_controller = cloud_controller(flags, &mut kubelet, &mut findings);
    let node_name = node_name(flags, &proxy, &mut findings);
    let state_dir = flags.state_dir.clone().unwrap_or_else(|| "/var/lib/nodelet".into());
    let config = Config {
        mode: mode(flags, &kubelet, &proxy, &mut findings),
        only: flags.only.unwrap_or(Only::Both),
        node_name,
        node_ips: addresses(flags, &mut findings),
        has_cloud_controller,
        dead_containers: flags.dead_containers,
        node_labels: labels(flags, &mut findings),
        root_dir: flags.root_dir.clone().unwrap_or_else(|| "/var/lib/kubelet".into()),
        cert_dir: flags.cert_dir.clone().unwrap_or_else(|| "/var/lib/kubelet/pki".into()),
        state_dir,
        credential_providers: credential_providers::read(
            flags.credential_provider_config.as_deref(),
            flags.credential_provider_bin_dir.as_deref(),
            &mut findings,
        ),
        cni_conf_dir: match &flags.cni_conf_dir {
            Some(dir) => Some(dir.clone()).filter(|dir| !dir.as_os_str().is_empty()),
            None => Some("/etc/cni/net.d".into()),
        },
        kubelet,
        kubelet_given,
        proxy,
    };
    if findings.errors.is_empty() { Ok((config, findings.warnings)) } else { Err(findings.errors) }
}

fn flag(name: &str, value: &str, expected: &str) -> Problem {
    Problem {
        file: "flags".into(),
        line: None,
        field: name.into(),
        text: format!("\"{value}\" is not allowed; expected {expected}"),
    }
}

/// The gates that change something.
const GATES: [&str; 1] = ["MemoryQoS"];

/// Other gates change nothing: nodelet has what is generally available, and says so once for all that are written.
fn warn_of_gates(kubelet: &[(String, bool)], proxy: &[(String, bool)], findings: &mut Findings) {
    let names = kubelet.iter().chain(proxy).map(|(name, _)| name.as_str()).filter(|name| !GATES.contains(name));
    let names: std::collections::BTreeSet<&str> = names.collect();
    if !names.is_empty() {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        findings.warnings.push(Problem {
            file: "configuration".into(),
            line: None,
            field: "featureGates".into(),
            text: format!("{names}: nodelet has no feature gates; these have no effect"),
        });
    }
}

/// `--cloud-provider`: only `external` is left of it.
fn cloud_controller(flags: &Flags, kubelet: &mut Kubelet, findings: &mut Findings) -> bool {
    match flags.cloud_provider.as_deref() {
        None | Some("") => false,
        Some("external") => {
            kubelet.taints.push(kubelet::Taint {
                key: "node.cloudprovider.kubernetes.io/uninitialized".into(),
                value: "true".into(),
                effect: "NoSchedule".into(),
            });
            true
        }
        Some(other) => {
            findings.errors.push(flag("--cloud-provider", other, "external, or nothing"));
            false
        }
    }
}

fn mode(flags: &Flags, kubelet: &Kubelet, proxy: &Proxy, findings: &mut Findings) -> Mode {
    let kubeconfig = flags.kubeconfig.clone().or_else(|| match flags.only {
        Some(Only::Services) => proxy.kubeconfig.clone(),
        _ => None,
    });
    let has_static_pods = kubelet.static_pod_path.is_some() && flags.only != Some(Only::Services);
    match (&flags.manifests, kubeconfig) {
        (manifests, None) if manifests.is_some() || has_static_pods => Mode::Alone {
            manifests: manifests.clone(),
            service_cidrs: cidrs("--service-cidr", flags.service_cidr.as_deref(), "10.96.0.0/16", findings),
            pod_cidrs: cidrs("--pod-cidr", flags.pod_cidr.as_deref(), "10.244.0.0/24", findings),
        },
        (None, Some(kubeconfig)) => Mode::Joined { kubeconfig, bootstrap: flags.bootstrap_kubeconfig.clone() },
        (_, None) => {
            findings.errors.push(flag(
                "--kubeconfig",
                "",
                "--kubeconfig FILE to join a cluster, or --manifests DIR or a staticPodPath to run alone",
            ));
            Mode::Joined { kubeconfig: PathBuf::new(), bootstrap: None }
        }
        (Some(manifests), Some(_)) => {
            let found = manifests.display().to_string();
            findings.errors.push(flag(
                "--manifests",
                &found,
                "either --manifests or --kubeconfig; static pods of a joined node go to staticPodPath",
            ));
            Mode::Joined { kubeconfig: PathBuf::new(), bootstrap: None }
        }
    }
}

fn cidrs(name: &str, given: Option<&str>, default: &str, findings: &mut Findings) -> Vec<String> {
    let cidrs = proxy::split(given.filter(|text| !text.is_empty()).unwrap_or(default));
    if proxy::check_cidrs(&cidrs).is_err() {
        findings.errors.push(flag(name, &cidrs.join(","), "one CIDR, or one of each family separated by a comma"));
    }
    cidrs
}

fn node_name(flags: &Flags, proxy: &Proxy, findings: &mut Findings) -> String {
    let overridden = flags.hostname_override.clone().or_else(|| match flags.only {
        Some(Only::Services) => Some(proxy.hostname_override.clone()),
        _ => None,
    });
    let name = match overridden.filter(|name| !name.is_empty()) {
        Some(name) => name,
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let name = name.trim().to_lowercase();
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        });
    if !valid {
        findings.errors.push(flag("--hostname-override", &name, "a DNS name (lower-case letters, digits, - and .)"));
    }
    name
}

fn addresses(flags: &Flags, findings: &mut Findings) -> Vec<IpAddr> {
    let texts = proxy::split(flags.node_ip.as_deref().unwrap_or_default());
    let parsed: Vec<IpAddr> = texts.iter().filter_map(|t| t.parse().ok()).collect();
    let same_family = parsed.len() == 2 && parsed[0].is_ipv4() == parsed[1].is_ipv4();
    if parsed.len() != texts.len() || parsed.len() > 2 || same_family {
        let expected = "one IP address, or one IPv4 and one IPv6 address separated by a comma";
        findings.errors.push(flag("--node-ip", &texts.join(","), expected));
    }
    parsed
}

fn labels(flags: &Flags, findings: &mut Findings) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for part in proxy::split(flags.node_labels.as_deref().unwrap_or_default()) {
        match part.split_once('=') {
            Some((key, value)) if !key.is_empty() => labels.push((key.to_owned(), value.to_owned())),
            _ => findings.errors.push(flag("--node-labels", &part, "key=value, separated by commas")),
        }
    }
    labels
}

fn apply_taints(flags: &Flags, kubelet: &mut Kubelet, findings: &mut Findings) {
    for part in proxy::split(flags.register_with_taints.as_deref().unwrap_or_default()) {
        let taint = part.rsplit_once(':').map(|(left, effect)| {
            let (key, value) = left.split_once('=').unwrap_or((left, ""));
            kubelet::Taint { key: key.into(), value: value.into(), effect: effect.into() }
        });
        match taint.map(|t| kubelet::check_taint(&t).map(|()| t)) {
            Some(Ok(taint)) => kubelet.taints.push(taint),
            Some(Err(text)) => findings.errors.push(flag("--register-with-taints", &part, &text)),
            None => {
                findings.errors.push(flag("--register-with-taints", &part, "key=value:effect, separated by commas"))
            }
        }
    }
}
