//! The `KubeletConfiguration` in effect, as `/configz` shows it: every field with kubelet's default unless the file, a
//! drop-in or a flag says otherwise, and as it really is where nodelet does otherwise. Pure.
//!
//! A field that is not read has no effect, so what is written there is not shown; it has its default. Names, kinds and values:
//! `k8s.io/kubelet/config/v1beta1` v0.37 and `pkg/kubelet/apis/config/v1beta1` of Kubernetes 1.37.

use serde_json::{Map, Value, json};

use super::{Config, Mode, duration, kubelet};
use crate::cgroup::Driver;
use crate::config::kubelet::Taint;

/// What is known only once the agent runs.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The runtime's cgroup driver, where it says one, else the configured.
    pub driver: Driver,
    /// Most open files of this process; the largest number for no limit.
    pub max_open_files: i64,
}

/// How a field's absence is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Zero and empty stand for the default, and are left out where that is nothing.
    Plain,
    /// A duration; zero stands for the default, and is shown.
    Time,
    /// Only null is no value.
    Pointer,
    /// The same for a duration.
    PointerTime,
}

use Kind::{Plain, Pointer, PointerTime, Time};

/// Fields with their defaults as JSON; `null` for none.
const FIELDS: [(&str, Kind, &str); 112] = [
    ("enableServer", Pointer, "true"),
    ("staticPodPath", Plain, "null"),
    ("podLogsDir", Plain, "\"/var/log/pods\""),
    ("syncFrequency", Time, "\"1m0s\""),
    ("fileCheckFrequency", Time, "\"20s\""),
    ("httpCheckFrequency", Time, "\"20s\""),
    ("staticPodURL", Plain, "null"),
    ("staticPodURLHeader", Plain, "null"),
    ("address", Plain, "\"0.0.0.0\""),
    ("port", Plain, "10250"),
    ("readOnlyPort", Plain, "null"),
    ("tlsCertFile", Plain, "null"),
    ("tlsPrivateKeyFile", Plain, "null"),
    ("tlsCipherSuites", Plain, "null"),
    ("tlsCurvePreferences", Plain, "null"),
    ("tlsMinVersion", Plain, "null"),
    ("rotateCertificates", Plain, "null"),
    ("serverTLSBootstrap", Plain, "null"),
    (
        "authentication",
        Plain,
        r#"{"x509": {}, "webhook": {"enabled": true, "cacheTTL": "2m0s"}, "anonymous": {"enabled": false}}"#,
    ),
    (
        "authorization",
        Plain,
        r#"{"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}}"#,
    ),
    ("registryPullQPS", Pointer, "5"),
    ("registryBurst", Plain, "10"),
    ("imagePullCredentialsVerificationPolicy", Plain, "\"NeverVerifyPreloadedImages\""),
    ("preloadedImagesVerificationAllowlist", Plain, "null"),
    ("eventRecordQPS", Pointer, "50"),
    ("eventBurst", Plain, "100"),
    ("enableDebuggingHandlers", Pointer, "true"),
    ("enableContentionProfiling", Plain, "null"),
    ("healthzPort", Pointer, "10248"),
    ("healthzBindAddress", Plain, "\"127.0.0.1\""),
    ("oomScoreAdj", Pointer, "-999"),
    ("clusterDomain", Plain, "null"),
    ("clusterDNS", Plain, "null"),
    ("streamingConnectionIdleTimeout", Time, "\"4h0m0s\""),
    ("nodeStatusUpdateFrequency", Time, "\"10s\""),
    ("nodeStatusReportFrequency", Time, "\"5m0s\""),
    ("nodeLeaseDurationSeconds", Plain, "40"),
    ("imageMinimumGCAge", Time, "\"2m0s\""),
    ("imageMaximumGCAge", Time, "\"0s\""),
    ("imageGCHighThresholdPercent", Pointer, "85"),
    ("imageGCLowThresholdPercent", Pointer, "80"),
    ("volumeStatsAggPeriod", Time, "\"1m0s\""),
    ("kubeletCgroups", Plain, "null"),
    ("systemCgroups", Plain, "null"),
    ("cgroupRoot", Plain, "null"),
    ("cgroupsPerQOS", Pointer, "true"),
    ("cgroupDriver", Plain, "\"cgroupfs\""),
    ("cpuManagerPolicy", Plain, "\"none\""),
    ("singleProcessOOMKill", Pointer, "null"),
    ("cpuManagerPolicyOptions", Plain, "null"),
    ("cpuManagerReconcilePeriod", Time, "\"10s\""),
    ("memoryManagerPolicy", Plain, "\"None\""),
    ("topologyManagerPolicy", Plain, "\"none\""),
    ("topologyManagerScope", Plain, "\"container\""),
    ("topologyManagerPolicyOptions", Plain, "null"),
    ("qosReserved", Plain, "null"),
    ("runtimeRequestTimeout", Time, "\"2m0s\""),
    ("hairpinMode", Plain, "\"promiscuous-bridge\""),
    ("maxPods", Plain, "110"),
    ("podCIDR", Plain, "null"),
    ("podPidsLimit", Pointer, "-1"),
    ("resolvConf", Pointer, "\"/etc/resolv.conf\""),
    ("runOnce", Plain, "null"),
    ("cpuCFSQuota", Pointer, "true"),
    ("cpuCFSQuotaPeriod", PointerTime, "\"100ms\""),
    ("nodeStatusMaxImages", Pointer, "50"),
    ("maxOpenFiles", Plain, "1000000"),
    ("contentType", Plain, "\"application/vnd.kubernetes.protobuf\""),
    ("kubeAPIQPS", Pointer, "50"),
    ("kubeAPIBurst", Plain, "100"),
    ("serializeImagePulls", Pointer, "true"),
    ("maxParallelImagePulls", Pointer, "null"),
    ("evictionHard", Plain, "null"),
    ("evictionSoft", Plain, "null"),
    ("evictionSoftGracePeriod", Plain, "null"),
    ("evictionPressureTransitionPeriod", Time, "\"5m0s\""),
    ("evictionMaxPodGracePeriod", Plain, "null"),
    ("evictionMinimumReclaim", Plain, "null"),
    ("mergeDefaultEvictionSettings", Pointer, "false"),
    ("podsPerCore", Plain, "null"),
    ("enableControllerAttachDetach", Pointer, "true"),
    ("protectKernelDefaults", Plain, "null"),
    ("makeIPTablesUtilChains", Pointer, "true"),
    ("iptablesMasqueradeBit", Pointer, "14"),
    ("iptablesDropBit", Pointer, "15"),
    ("featureGates", Plain, "null"),
    ("failSwapOn", Pointer, "true"),
    ("memorySwap", Plain, "{}"),
    ("containerLogMaxSize", Plain, "\"10Mi\""),
    ("containerLogMaxFiles", Pointer, "5"),
    ("containerLogMaxWorkers", Pointer, "1"),
    ("containerLogMonitorInterval", PointerTime, "\"10s\""),
    ("configMapAndSecretChangeDetectionStrategy", Plain, "\"Watch\""),
    ("systemReserved", Plain, "null"),
    ("kubeReserved", Plain, "null"),
    ("reservedSystemCPUs", Plain, "null"),
    ("showHiddenMetricsForVersion", Plain, "null"),
    ("systemReservedCgroup", Plain, "null"),
    ("kubeReservedCgroup", Plain, "null"),
    ("enforceNodeAllocatable", Pointer, "[\"pods\"]"),
    ("allowedUnsafeSysctls", Plain, "null"),
    ("defaultPodSysctls", Plain, "null"),
    ("volumePluginDir", Plain, "\"/usr/libexec/kubernetes/kubelet-plugins/volume/exec/\""),
    ("providerID", Plain, "null"),
    ("kernelMemcgNotification", Plain, "null"),
    (
        "logging",
        Plain,
        r#"{"format": "text", "flushFrequency": "5s", "verbosity": 0, "options": {"text": {"infoBufferSize": "0"}, "json": {"infoBufferSize": "0"}}}"#,
    ),
    ("enableSystemLogHandler", Pointer, "true"),
    ("enableSystemLogQuery", Pointer, "null"),
    ("shutdownGracePeriod", Time, "\"0s\""),
    ("shutdownGracePeriodCriticalPods", Time, "\"0s\""),
    ("shutdownGracePeriodByPodPriority", Plain, "null"),
    ("crashLoopBackOff", Plain, "{\"maxContainerRestartPeriod\": \"5m0s\"}"),
];

/// The rest of the fields.
const MORE: [(&str, Kind, &str); 14] = [
    ("reservedMemory", Plain, "null"),
    ("enableProfilingHandler", Pointer, "true"),
    ("enableDebugFlagsHandler", Pointer, "true"),
    ("seccompDefault", Pointer, "false"),
    ("memoryThrottlingFactor", Pointer, "null"),
    ("memoryReservationPolicy", Plain, "\"None\""),
    ("registerWithTaints", Plain, "null"),
    ("registerNode", Pointer, "true"),
    ("tracing", Pointer, "null"),
    ("localStorageCapacityIsolation", Pointer, "true"),
    ("containerRuntimeEndpoint", Plain, "\"unix:///run/containerd/containerd.sock\""),
    ("imageServiceEndpoint", Plain, "null"),
    ("failCgroupV1", Pointer, "true"),
    ("userNamespaces", Pointer, "null"),
];

/// The configuration in effect.
pub fn effective(config: &Config, found: Found) -> Value {
    let mut all = Map::new();
    for (name, kind, default) in FIELDS.iter().chain(&MORE) {
        let given = config.kubelet_given.get(*name).filter(|_| !kubelet::is_unread(name));
        // The table is checked by a test.
        let default = serde_json::from_str(default).unwrap_or(Value::Null);
        let value = filled(*kind, given, default);
        if !value.is_null() {
            all.insert((*name).to_owned(), value);
        }
    }
    for (name, value) in as_it_is(config, found) {
        match value {
            Value::Null => all.remove(name),
            value => all.insert(name.to_owned(), value),
        };
    }
    if let Some(logging) = all.get_mut("logging") {
        logging["format"] = json!(if config.kubelet.logging.json { "json" } else { "text" });
        logging["verbosity"] = json!(config.kubelet.logging.verbosity);
        // Lines are written at once.
        logging["flushFrequency"] = json!("0s");
    }
    all.insert("kind".to_owned(), "KubeletConfiguration".into());
    all.insert("apiVersion".to_owned(), "kubelet.config.k8s.io/v1beta1".into());
    Value::Object(all)
}

/// What was given, or the default.
fn filled(kind: Kind, given: Option<&Value>, default: Value) -> Value {
    let Some(given) = given.filter(|given| !given.is_null()) else { return default };
    match (kind, given, default) {
        (Plain, Value::Object(given), Value::Object(default)) => Value::Object(merged(given, default)),
        (Plain, given, default) if is_zero(given) => default,
        (Time | PointerTime, given, default) => match time(given) {
            Some(zero) if kind == Time && zero == "0s" => default,
            Some(text) => text.into(),
            // A negative one has a meaning of its own.
            None => given.clone(),
        },
        (_, given, _) => given.clone(),
    }
}

/// Fields of an object that has defaults of its own; zeros in it stand for them, but a switch is a switch.
fn merged(given: &Map<String, Value>, mut default: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in given {
        let known = default.remove(name).unwrap_or(Value::Null);
        let value = match (value, known) {
            (Value::Object(value), Value::Object(known)) => Value::Object(merged(value, known)),
            (Value::Bool(_), _) => value.clone(),
            (value, known) if is_zero(value) => known,
            (value, _) => time(value).map_or_else(|| value.clone(), Value::from),
        };
        if !value.is_null() {
            default.insert(name.clone(), value);
        }
    }
    default
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(switch) => !switch,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// A duration as Go prints it.
fn time(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) if number.as_i64() == Some(0) => Some("0s".to_owned()),
        // A bare number is none, but for zero.
        Value::String(text) if text.ends_with(['s', 'm', 'h']) => duration::parse(text).map(duration::format),
        _ => None,
    }
}

/// What nodelet has otherwise than kubelet would have it, or from flags; null for what is not there.
fn as_it_is(config: &Config, found: Found) -> [(&'static str, Value); 20] {
    let kubelet = &config.kubelet;
    let pulls = kubelet.parallel_pulls;
    let is_strict = matches!(config.mode, Mode::Joined { .. });
    let hard: Map<String, Value> =
        kubelet.eviction_hard.iter().map(|(signal, value)| (signal.clone(), value.clone().into())).collect();
    [
        ("serializeImagePulls", json!(pulls == 1)),
        ("maxParallelImagePulls", if pulls == 1 { Value::Null } else { json!(pulls) }),
        // The full check, beside events.
        ("syncFrequency", json!("5m0s")),
        ("resolvConf", json!(kubelet.resolv_conf)),
        ("nodeStatusReportFrequency", json!(duration::format(kubelet.status_report))),
        ("containerRuntimeEndpoint", json!(format!("unix://{}", kubelet.runtime_endpoint.display()))),
        ("cgroupDriver", json!(if found.driver == Driver::Systemd { "systemd" } else { "cgroupfs" })),
        ("maxOpenFiles", json!(found.max_open_files)),
        ("contentType", json!("application/json")),
        ("evictionHard", Value::Object(hard)),
        ("failSwapOn", json!(kubelet.fail_swap_on.unwrap_or(is_strict))),
        ("failCgroupV1", json!(kubelet.fail_cgroup_v1.unwrap_or(is_strict))),
        ("enableSystemLogHandler", json!(kubelet.server.system_logs)),
        // Not served.
        ("enableProfilingHandler", json!(false)),
        ("enableDebugFlagsHandler", json!(false)),
        // Everything is nftables, in tables of its own.
        ("makeIPTablesUtilChains", json!(false)),
        ("iptablesMasqueradeBit", Value::Null),
        ("iptablesDropBit", Value::Null),
        ("podPidsLimit", json!(kubelet.pod_pids_limit)),
        ("registerWithTaints", taints(&kubelet.taints)),
    ]
}

fn taints(all: &[Taint]) -> Value {
    if all.is_empty() {
        return Value::Null;
    }
    let one = |taint: &Taint| {
        let mut out = json!({ "key": taint.key, "effect": taint.effect });
        if !taint.value.is_empty() {
            out["value"] = json!(taint.value);
        }
        out
    };
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, load};

    fn shown(file: &str, fields: &[(&str, &str)]) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        std::fs::write(&path, format!("{head}{file}")).unwrap();
        let fields = fields.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let flags = Flags { config: Some(path), kubeconfig: Some("/k".into()), fields, ..Flags::default() };
        let (config, _) = load(&flags).unwrap();
        effective(&config, Found { driver: Driver::Systemd, max_open_files: 4096 })
    }

    #[test]
    fn the_table_has_every_field_once_with_json_for_its_default() {
        let all: Vec<_> = FIELDS.iter().chain(&MORE).collect();
        let names: std::collections::BTreeSet<_> = all.iter().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), all.len());
        for (name, _, default) in all {
            assert!(serde_json::from_str::<Value>(default).is_ok(), "{name}: {default}");
        }
    }

    #[test]
    fn defaults_are_kubelets_and_zeros_of_kubeadm_stand_for_them() {
        let (plain, zeros) = (
            shown("", &[]),
            shown(
                "syncFrequency: 0s\nruntimeRequestTimeout: 0s\nmaxPods: 0\nclusterDomain: ''\nimageMinimumGCAge: 0s\n\
                 authentication: {webhook: {cacheTTL: 0s}}\nlogging: {flushFrequency: 0, verbosity: 0}\nmemorySwap: {}\n",
                &[],
            ),
        );
        for found in [&plain, &zeros] {
            for (name, value) in [
                ("maxPods", json!(110)),
                ("runtimeRequestTimeout", json!("2m0s")),
                ("imageMinimumGCAge", json!("2m0s")),
                ("imageMaximumGCAge", json!("0s")),
                ("streamingConnectionIdleTimeout", json!("4h0m0s")),
                ("cpuCFSQuotaPeriod", json!("100ms")),
                ("enforceNodeAllocatable", json!(["pods"])),
                ("volumeStatsAggPeriod", json!("1m0s")),
                ("memorySwap", json!({})),
                ("crashLoopBackOff", json!({ "maxContainerRestartPeriod": "5m0s" })),
                ("containerRuntimeEndpoint", json!("unix:///run/containerd/containerd.sock")),
                ("failSwapOn", json!(true)),
                ("kind", json!("KubeletConfiguration")),
            ] {
                assert_eq!(found[name], value, "{name}");
            }
            assert_eq!(found["authentication"]["webhook"], json!({ "enabled": true, "cacheTTL": "2m0s" }));
            assert_eq!(found["evictionHard"]["memory.available"], "100Mi");
            assert!(found.get("clusterDomain").is_none() && found.get("staticPodPath").is_none());
        }
    }

    #[test]
    fn what_is_given_is_shown_as_kubelet_writes_it() {
        let file = "registryPullQPS: 0\nstreamingConnectionIdleTimeout: 90s\nmaxPods: 7\nseccompDefault: true\n\
                    authentication: {anonymous: {enabled: true}, x509: {clientCAFile: /ca}}\nevictionHard: {memory.available: 5%}\n\
                    serverTLSBootstrap: true\nvolumeStatsAggPeriod: -1m\n";
        let found = shown(file, &[("max-pods", "8")]);
        assert_eq!((&found["registryPullQPS"], &found["maxPods"]), (&json!(0), &json!(8)), "a flag wins");
        assert_eq!(found["streamingConnectionIdleTimeout"], "1m30s");
        assert_eq!(found["authentication"]["anonymous"]["enabled"], true);
        assert_eq!(found["authentication"]["x509"], json!({ "clientCAFile": "/ca" }));
        assert_eq!(found["authentication"]["webhook"]["enabled"], true);
        assert_eq!(found["evictionHard"], json!({ "memory.available": "5%" }));
        assert_eq!((&found["serverTLSBootstrap"], &found["volumeStatsAggPeriod"]), (&json!(true), &json!("-1m")));
    }

    #[test]
    fn what_has_no_effect_is_not_shown_and_what_is_otherwise_is_shown_as_it_is() {
        let found = shown("cpuManagerPolicy: static\nmaxOpenFiles: 5\nlogging: {format: json, verbosity: 3}\n", &[]);
        assert_eq!((&found["cpuManagerPolicy"], &found["maxOpenFiles"]), (&json!("none"), &json!(4096)));
        assert_eq!((&found["serializeImagePulls"], &found["maxParallelImagePulls"]), (&json!(false), &json!(4)));
        assert_eq!((&found["cgroupDriver"], &found["enableSystemLogHandler"]), (&json!("systemd"), &json!(false)));
        assert_eq!((&found["logging"]["format"], &found["logging"]["verbosity"]), (&json!("json"), &json!(3)));
    }
}
