//! kubelet's and kube-proxy's own flags that are fields of their files as well. Pure.
//!
//! `kubeadm-flags.env` files and unit drop-ins of many years carry them, so all are accepted. A flag is put into the tree
//! of its file: it is then checked like the field, wins over it, and is named in every problem. kube-proxy ignores such
//! flags when it is given a file; so does nodelet, and says so.
//! Source: `cmd/kubelet/app/options` and `cmd/kube-proxy/app` of Kubernetes v1.37, and the release notes of what is gone.

use serde_json::{Map, Value, json};

use super::fields::{Findings, Problem};
use super::tree::{Node, Origin};

/// How the text of a flag becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As it is.
    Text,
    /// `true`, `false`, or nothing for `true`.
    Switch,
    /// A number.
    Number,
    /// Values separated by commas.
    List,
    /// `name=value` separated by commas; `<` stands for `=` in eviction thresholds.
    Pairs,
    /// `name=true` separated by commas.
    Switches,
    /// No longer has an effect in kubelet or kube-proxy, or never has one here; takes a value.
    Gone,
    /// The same for a flag that may stand alone.
    GoneSwitch,
}

/// A flag: name, path of the field, shape.
pub type Row = (&'static str, &'static str, Shape);

use Shape::{Gone, GoneSwitch, List, Number, Pairs, Switch, Switches, Text};

/// Flags of the kubelet.
pub const KUBELET: &[Row] = &[
    ("enable-server", "enableServer", Switch),
    ("pod-manifest-path", "staticPodPath", Text),
    ("sync-frequency", "syncFrequency", Text),
    ("file-check-frequency", "fileCheckFrequency", Text),
    ("http-check-frequency", "httpCheckFrequency", Text),
    ("manifest-url", "staticPodURL", Text),
    ("manifest-url-header", "staticPodURLHeader", Text),
    ("address", "address", Text),
    ("port", "port", Number),
    ("read-only-port", "readOnlyPort", Number),
    ("fail-cgroupv1", "failCgroupV1", Switch),
    ("image-service-endpoint", "imageServiceEndpoint", Text),
    ("anonymous-auth", "authentication.anonymous.enabled", Switch),
    ("authentication-token-webhook", "authentication.webhook.enabled", Switch),
    ("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Text),
    ("client-ca-file", "authentication.x509.clientCAFile", Text),
    ("authorization-mode", "authorization.mode", Text),
    ("authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL", Text),
    ("authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL", Text),
    ("tls-cert-file", "tlsCertFile", Text),
    ("tls-private-key-file", "tlsPrivateKeyFile", Text),
    ("rotate-server-certificates", "serverTLSBootstrap", Switch),
    ("tls-cipher-suites", "tlsCipherSuites", List),
    ("tls-min-version", "tlsMinVersion", Text),
    ("rotate-certificates", "rotateCertificates", Switch),
    ("registry-qps", "registryPullQPS", Number),
    ("registry-burst", "registryBurst", Number),
    ("event-qps", "eventRecordQPS", Number),
    ("event-burst", "eventBurst", Number),
    ("enable-debugging-handlers", "enableDebuggingHandlers", Switch),
    ("contention-profiling", "enableContentionProfiling", Switch),
    ("healthz-port", "healthzPort", Number),
    ("healthz-bind-address", "healthzBindAddress", Text),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("cluster-domain", "clusterDomain", Text),
    ("volume-plugin-dir", "volumePluginDir", Text),
    ("cluster-dns", "clusterDNS", List),
    ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Text),
    ("node-status-update-frequency", "nodeStatusUpdateFrequency", Text),
    ("minimum-image-ttl-duration", "imageMinimumGCAge", Text),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
    ("volume-stats-agg-period", "volumeStatsAggPeriod", Text),
    ("feature-gates", "featureGates", Switches),
    ("kubelet-cgroups", "kubeletCgroups", Text),
    ("system-cgroups", "systemCgroups", Text),
    ("provider-id", "providerID", Text),
    ("cgroups-per-qos", "cgroupsPerQOS", Switch),
    ("cgroup-driver", "cgroupDriver", Text),
    ("cgroup-root", "cgroupRoot", Text),
    ("cpu-manager-policy", "cpuManagerPolicy", Text),
    ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Pairs),
    ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Text),
    ("qos-reserved", "qosReserved", Pairs),
    ("topology-manager-policy", "topologyManagerPolicy", Text),
    ("topology-manager-scope", "topologyManagerScope", Text),
    ("topology-manager-policy-options", "topologyManagerPolicyOptions", Pairs),
    ("runtime-request-timeout", "runtimeRequestTimeout", Text),
    ("hairpin-mode", "hairpinMode", Text),
    ("max-pods", "maxPods", Number),
    ("pod-max-pids", "podPidsLimit", Number),
    ("resolv-conf", "resolvConf", Text),
    ("runonce", "runOnce", Switch),
    ("cpu-cfs-quota", "cpuCFSQuota", Switch),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Text),
    ("enable-controller-attach-detach", "enableControllerAttachDetach", Switch),
    ("make-iptables-util-chains", "makeIPTablesUtilChains", Switch),
    ("iptables-drop-bit", "iptablesDropBit", Number),
    ("iptables-masquerade-bit", "iptablesMasqueradeBit", Number),
    ("container-log-max-size", "containerLogMaxSize", Text),
    ("container-log-max-files", "containerLogMaxFiles", Number),
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
    ("node-status-max-images", "nodeStatusMaxImages", Number),
    ("kernel-memcg-notification", "kernelMemcgNotification", Switch),
    ("local-storage-capacity-isolation", "localStorageCapacityIsolation", Switch),
    ("max-open-files", "maxOpenFiles", Number),
    ("kube-api-content-type", "contentType", Text),
    ("kube-api-qps", "kubeAPIQPS", Number),
    ("kube-api-burst", "kubeAPIBurst", Number),
    ("serialize-image-pulls", "serializeImagePulls", Switch),
    ("eviction-hard", "evictionHard", Pairs),
    ("eviction-soft", "evictionSoft", Pairs),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod", Pairs),
    ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Text),
    ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Number),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim", Pairs),
    ("pods-per-core", "podsPerCore", Number),
    ("protect-kernel-defaults", "protectKernelDefaults", Switch),
    ("reserved-cpus", "reservedSystemCPUs", Text),
    ("reserved-memory", "reservedMemory", Text),
    ("system-reserved", "systemReserved", Pairs),
    ("kube-reserved", "kubeReserved", Pairs),
    ("enforce-node-allocatable", "enforceNodeAllocatable", List),
    ("system-reserved-cgroup", "systemReservedCgroup", Text),
    ("kube-reserved-cgroup", "kubeReservedCgroup", Text),
    ("memory-manager-policy", "memoryManagerPolicy", Text),
    ("register-node", "registerNode", Switch),
    ("seccomp-default", "seccompDefault", Switch),
    ("fail-swap-on", "failSwapOn", Switch),
    ("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Text),
    ("logging-format", "logging.format", Text),
    ("vmodule", "logging.vmodule", Text),
    ("log-flush-frequency", "", Gone),
    ("log-json-info-buffer-size", "", Gone),
    ("log-json-split-stream", "", GoneSwitch),
    ("log-text-info-buffer-size", "", Gone),
    ("log-text-split-stream", "", GoneSwitch),
    ("logtostderr", "", GoneSwitch),
    ("alsologtostderr", "", GoneSwitch),
    ("stderrthreshold", "", Gone),
    ("log-dir", "", Gone),
    ("log-file", "", Gone),
    ("runtime-cgroups", "", Gone),
    ("lock-file", "", Gone),
    ("exit-on-lock-contention", "", GoneSwitch),
    ("minimum-container-ttl-duration", "", Gone),
    ("maximum-dead-containers", "", Gone),
    ("experimental-mounter-path", "", Gone),
    ("experimental-allocatable-ignore-eviction", "", GoneSwitch),
    ("node-status-report-frequency", "nodeStatusReportFrequency", Text),
    ("pod-infra-container-image", "", Gone),
    ("container-runtime", "", Gone),
    ("network-plugin", "", Gone),
    ("cni-bin-dir", "", Gone),
    ("cloud-config", "", Gone),
    ("allow-privileged", "", GoneSwitch),
    ("cadvisor-port", "", Gone),
    ("dynamic-config-dir", "", Gone),
    ("keep-terminated-pod-volumes", "", GoneSwitch),
    ("azure-container-registry-config", "", Gone),
    ("docker-endpoint", "", Gone),
    ("non-masquerade-cidr", "", Gone),
    ("require-kubeconfig", "", GoneSwitch),
    ("master-service-namespace", "", Gone),
];

/// Flags of kube-proxy.
pub const PROXY: &[Row] = &[
    ("feature-gates", "featureGates", Switches),
    ("kube-api-content-type", "clientConnection.contentType", Text),
    ("kube-api-burst", "clientConnection.burst", Number),
    ("kube-api-qps", "clientConnection.qps", Number),
    ("bind-address", "bindAddress", Text),
    ("healthz-bind-address", "healthzBindAddress", Text),
    ("metrics-bind-address", "metricsBindAddress", Text),
    ("bind-address-hard-fail", "bindAddressHardFail", Switch),
    ("profiling", "enableProfiling", Switch),
    ("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Text),
    ("proxy-mode", "mode", Text),
    ("iptables-masquerade-bit", "iptables.masqueradeBit", Number),
    ("masquerade-all", "nftables.masqueradeAll", Switch),
    ("iptables-localhost-nodeports", "iptables.localhostNodePorts", Switch),
    ("iptables-sync-period", "nftables.syncPeriod", Text),
    ("iptables-min-sync-period", "nftables.minSyncPeriod", Text),
    ("ipvs-sync-period", "ipvs.syncPeriod", Text),
    ("ipvs-min-sync-period", "ipvs.minSyncPeriod", Text),
    ("ipvs-scheduler", "ipvs.scheduler", Text),
    ("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", List),
    ("ipvs-strict-arp", "ipvs.strictARP", Switch),
    ("ipvs-tcp-timeout", "ipvs.tcpTimeout", Text),
    ("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", Text),
    ("ipvs-udp-timeout", "ipvs.udpTimeout", Text),
    ("detect-local-mode", "detectLocalMode", Text),
    ("pod-bridge-interface", "detectLocal.bridgeInterface", Text),
    ("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", Text),
    ("cluster-cidr", "clusterCIDR", Text),
    ("nodeport-addresses", "nodePortAddresses", List),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("conntrack-max-per-core", "conntrack.maxPerCore", Number),
    ("conntrack-min", "conntrack.min", Number),
    ("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", Text),
    ("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", Text),
    ("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", Switch),
    ("conntrack-udp-timeout", "conntrack.udpTimeout", Text),
    ("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", Text),
    ("config-sync-period", "configSyncPeriod", Text),
    ("logging-format", "logging.format", Text),
    ("vmodule", "logging.vmodule", Text),
    ("master", "", Gone),
    ("write-config-to", "", Gone),
    ("init-only", "", GoneSwitch),
    ("healthz-port", "", Gone),
    ("metrics-port", "", Gone),
    ("log-flush-frequency", "", Gone),
];

/// Which file a flag belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// `KubeletConfiguration`.
    Kubelet,
    /// `KubeProxyConfiguration`.
    Proxy,
}

/// The row of a flag. Names that both programs have are kube-proxy's where only its half runs.
pub fn row(name: &str, only_services: bool) -> Option<(Owner, Row)> {
    let find = |rows: &[Row]| rows.iter().find(|(flag, ..)| *flag == name).copied();
    let kubelet = find(KUBELET).map(|row| (Owner::Kubelet, row));
    let proxy = find(PROXY).map(|row| (Owner::Proxy, row));
    if only_services { proxy.or(kubelet) } else { kubelet.or(proxy) }
}

/// Whether a flag may stand without a value.
pub fn is_switch(name: &str) -> bool {
    [KUBELET, PROXY]
        .iter()
        .flat_map(|rows| rows.iter())
        .any(|(flag, _, shape)| *flag == name && matches!(shape, Switch | GoneSwitch))
}

/// Puts flags into the trees of their files.
pub fn overlay(
    given: &[(String, String)],
    only_services: bool,
    has_proxy_file: bool,
    kubelet: &mut Node,
    proxy: &mut Node,
    findings: &mut Findings,
) {
    for (name, text) in given {
        let Some((owner, (flag, path, shape))) = row(name, only_services) else { continue };
        let origin = Origin { source: format!("--{flag}").into(), line: None };
        if matches!(shape, Gone | GoneSwitch) {
            findings.warnings.push(Problem::at(&origin, flag, format!("\"{text}\" has no effect; remove the flag")));
            continue;
        }
        if owner == Owner::Proxy && has_proxy_file {
            let why = format!("ignored, because a KubeProxyConfiguration file is given; set {path} there");
            findings.warnings.push(Problem::at(&origin, flag, why));
            continue;
        }
        match value(shape, text) {
            Ok(value) => {
                let node = Node::of_flag(flag, value);
                match owner {
                    Owner::Kubelet => kubelet.set(path, node),
                    Owner::Proxy => proxy.set(path, node),
                }
            }
            Err(expected) => {
                let why = format!("\"{text}\" is not allowed; expected {expected}");
                findings.errors.push(Problem::at(&origin, path, why));
            }
        }
    }
}

fn value(shape: Shape, text: &str) -> Result<Value, &'static str> {
    let items = || text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let pairs = |expected, convert: &dyn Fn(&str) -> Option<Value>| {
        let mut map = Map::new();
        for item in items() {
            let (key, value) = item.split_once(['=', '<']).ok_or(expected)?;
            map.insert(key.to_owned(), convert(value).ok_or(expected)?);
        }
        Ok(Value::Object(map))
    };
    match shape {
        Text => Ok(text.into()),
        Switch => text.parse::<bool>().map(Value::from).map_err(|_| "true or false"),
        Number => text
            .parse::<i64>()
            .map(Value::from)
            .ok()
            .or_else(|| Some(Value::from(text.parse::<f64>().ok().filter(|n| n.is_finite())?)))
            .ok_or("a number"),
        List => Ok(json!(items().collect::<Vec<_>>())),
        Pairs => pairs("name=value, separated by commas", &|value| Some(value.into())),
        Switches => pairs("name=true or name=false, separated by commas", &|v| v.parse::<bool>().ok().map(Value::from)),
        Gone | GoneSwitch => Ok(Value::Null),
    }
}
