//! The parts of a `KubeletConfiguration` that are more than one field each. Pure.

use std::path::PathBuf;
use std::time::Duration;

use super::{Authorization, Enforce, ImageGarbage, Kubelet, LogRotation, Logging, Server, TlsOptions, TlsVersion};
use crate::config::fields::{Fields, Findings};
use crate::pod::images::records::{Allowlist, Policy};
use crate::quantity::Quantity;

/// Signals of eviction and kubelet's hard thresholds for them; an empty threshold is none by default.
/// Source: "Node-pressure Eviction" of the Kubernetes documentation.
const SIGNALS: [(&str, &str); 8] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
    ("containerfs.available", ""),
    ("containerfs.inodesFree", ""),
    ("pid.available", ""),
];

/// `imagePullCredentialsVerificationPolicy` and `preloadedImagesVerificationAllowlist` (KEP-2535).
pub(super) fn pull_verification(all: &mut Fields, f: &mut Findings) -> Policy {
    const POLICY: &str = "imagePullCredentialsVerificationPolicy";
    const LIST: &str = "preloadedImagesVerificationAllowlist";
    const WORDS: [&str; 4] =
        ["NeverVerifyPreloadedImages", "NeverVerifyAllowlistedImages", "NeverVerify", "AlwaysVerify"];
    let word = all.one_of(f, POLICY, &WORDS).unwrap_or(WORDS[0]);
    let patterns = all.strings(f, LIST).unwrap_or_default();
    let list = Allowlist::parse(&patterns).unwrap_or_else(|text| {
        f.errors.push(all.problem(LIST, text));
        Allowlist::default()
    });
    if word != WORDS[1] && !patterns.is_empty() {
        f.errors.push(all.problem(LIST, format!("is not allowed with {POLICY}: {word}; expected {}", WORDS[1])));
    }
    match word {
        "NeverVerify" => Policy::NeverVerify,
        "AlwaysVerify" => Policy::AlwaysVerify,
        "NeverVerifyAllowlistedImages" => Policy::NeverVerifyAllowlistedImages(list),
        _ => Policy::NeverVerifyPreloadedImages,
    }
}

/// `evictionHard`: what the file says replaces the defaults, unless `mergeDefaultEvictionSettings` asks to keep the rest.
pub(super) fn eviction(all: &mut Fields, f: &mut Findings) -> Vec<(String, String)> {
    let is_merged = all.boolean(f, "mergeDefaultEvictionSettings").unwrap_or(false);
    let defaults = SIGNALS.iter().filter(|(_, value)| !value.is_empty());
    let defaults = defaults.map(|(signal, value)| ((*signal).to_owned(), (*value).to_owned()));
    let Some(mut written) = all.string_map(f, "evictionHard") else { return defaults.collect() };
    let known: Vec<&str> = SIGNALS.iter().map(|(signal, _)| *signal).collect();
    for (signal, value) in &written {
        if !known.contains(&signal.as_str()) && signal != "allocatableMemory.available" {
            let text = format!("\"{signal}\" is not a signal; expected one of {}", known.join(", "));
            f.errors.push(all.problem("evictionHard", text));
        } else if !is_threshold(value) {
            let text =
                format!("{signal}: \"{value}\" is not allowed; expected a quantity such as 100Mi, or 0% to 100%");
            f.errors.push(all.problem("evictionHard", text));
        }
    }
    if is_merged {
        let missing: Vec<_> = defaults.filter(|(signal, _)| !written.iter().any(|(name, _)| name == signal)).collect();
        written.extend(missing);
    }
    written
}

fn is_threshold(text: &str) -> bool {
    match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().is_ok_and(|p| (0.0..=100.0).contains(&p)),
        None => Quantity::parse(text).is_ok_and(|q| q >= Quantity::from_millis(0)),
    }
}

/// `enforceNodeAllocatable`; `none` and an empty list enforce nothing.
pub(super) fn enforce(all: &mut Fields, f: &mut Findings) -> Vec<Enforce> {
    const NAME: &str = "enforceNodeAllocatable";
    let allowed = [
        "none",
        "pods",
        "system-reserved",
        "system-reserved-compressible",
        "kube-reserved",
        "kube-reserved-compressible",
    ];
    let Some(words) = all.words(f, NAME, &allowed) else { return vec![Enforce::Pods] };
    if words.contains(&"none") && words.len() > 1 {
        f.errors.push(all.problem(NAME, "\"none\" is not allowed together with others; expected it alone"));
    }
    for group in ["system-reserved", "kube-reserved"] {
        if words.contains(&group) && words.iter().any(|w| *w == format!("{group}-compressible")) {
            let text = format!("{group} and {group}-compressible are not allowed together; expected one of them");
            f.errors.push(all.problem(NAME, text));
        }
    }
    let group = |word| match word {
        "pods" => Some(Enforce::Pods),
        "system-reserved" => Some(Enforce::SystemReserved),
        "system-reserved-compressible" => Some(Enforce::SystemReservedCompressible),
        "kube-reserved" => Some(Enforce::KubeReserved),
        "kube-reserved-compressible" => Some(Enforce::KubeReservedCompressible),
        _ => None,
    };
    words.into_iter().filter_map(group).collect()
}

/// What depends on more than one field.
pub(super) fn cross_check(kubelet: &Kubelet, all: &Fields, f: &mut Findings) {
    const NAME: &str = "enforceNodeAllocatable";
    for group in &kubelet.enforce {
        let (word, field, cgroup) = match group {
            Enforce::Pods => continue,
            Enforce::SystemReserved | Enforce::SystemReservedCompressible => {
                ("system-reserved", "systemReservedCgroup", &kubelet.system_reserved_cgroup)
            }
            Enforce::KubeReserved | Enforce::KubeReservedCompressible => {
                ("kube-reserved", "kubeReservedCgroup", &kubelet.kube_reserved_cgroup)
            }
        };
        if cgroup.is_empty() {
            let text = format!("{word} needs {field}; set it to the cgroup of these processes, or leave {word} out");
            f.errors.push(all.problem(NAME, text));
        }
    }
    if !kubelet.cgroups_per_qos && !kubelet.enforce.is_empty() {
        let text = "needs cgroupsPerQOS: true; set that, or set this to [none]";
        f.errors.push(all.problem(NAME, text));
    }
    let (total, critical) = kubelet.shutdown_grace;
    if critical > total {
        let text = "is longer than shutdownGracePeriod, of which it is a part; expected at most that";
        f.errors.push(all.problem("shutdownGracePeriodCriticalPods", text));
    }
    if kubelet.server.cert_file.is_some() != kubelet.server.key_file.is_some() {
        f.errors
            .push(all.problem("tlsCertFile", "is of use only together with tlsPrivateKeyFile; expected both or none"));
    }
}

/// TLS, `authentication` and `authorization`.
pub(super) fn server(all: &mut Fields, f: &mut Findings) -> Server {
    let mut authentication = all.object(f, "authentication");
    let mut x509 = authentication.object(f, "x509");
    let client_ca_file = x509.filled(f, "clientCAFile").map(PathBuf::from);
    x509.finish(f, &[]);
    let mut anonymous = authentication.object(f, "anonymous");
    let is_anonymous = anonymous.boolean(f, "enabled").unwrap_or(false);
    anonymous.finish(f, &[]);
    let mut webhook = authentication.object(f, "webhook");
    let token_webhook = webhook.boolean(f, "enabled").unwrap_or(true);
    let ttl = webhook.duration(f, "cacheTTL").unwrap_or(Duration::from_secs(120));
    webhook.finish(f, &[]);
    authentication.finish(f, &[]);
    let mut authorization = all.object(f, "authorization");
    let mode = authorization.one_of(f, "mode", &["Webhook", "AlwaysAllow"]);
    let mut webhook = authorization.object(f, "webhook");
    let allowed = webhook.duration(f, "cacheAuthorizedTTL").unwrap_or(Duration::from_secs(300));
    let denied = webhook.duration(f, "cacheUnauthorizedTTL").unwrap_or(Duration::from_secs(30));
    webhook.finish(f, &[]);
    authorization.finish(f, &[]);
    let system_logs = all.boolean(f, "enableSystemLogHandler").unwrap_or(false);
    let read_only_port = all.port(f, "readOnlyPort").filter(|port| *port != 0);
    if read_only_port.is_some() {
        let text = "lets everybody who reaches the node read pods and figures; leave it out, and ask port 10250";
        f.warnings.push(all.problem("readOnlyPort", text));
    }
    Server {
        tls: tls_options(all, f),
        system_logs,
        read_only_port,
        debugging: all.boolean(f, "enableDebuggingHandlers").unwrap_or(true),
        enabled: all.boolean(f, "enableServer").unwrap_or(true),
        cert_file: all.filled(f, "tlsCertFile").map(PathBuf::from),
        key_file: all.filled(f, "tlsPrivateKeyFile").map(PathBuf::from),
        bootstrap_cert: all.boolean(f, "serverTLSBootstrap").unwrap_or(false),
        client_ca_file,
        anonymous: is_anonymous,
        token_webhook: token_webhook.then_some(ttl),
        authorization: match mode {
            Some("AlwaysAllow") => Authorization::AlwaysAllow,
            _ => Authorization::Webhook { allowed, denied },
        },
        stream_idle: all.duration(f, "streamingConnectionIdleTimeout").unwrap_or(Duration::from_secs(4 * 3600)),
    }
}

/// Rotation of container logs. A negative size switches it off, as in kubelet.
pub(super) fn log_rotation(all: &mut Fields, f: &mut Findings) -> Option<LogRotation> {
    let size = all.signed_bytes(f, "containerLogMaxSize").unwrap_or(10 * 1024 * 1024);
    let count = |number: i64| usize::try_from(number).unwrap_or(usize::MAX);
    let max_files = count(all.integer(f, "containerLogMaxFiles", 2, i64::from(i32::MAX)).unwrap_or(5));
    let workers = count(all.integer(f, "containerLogMaxWorkers", 1, i64::from(i32::MAX)).unwrap_or(1));
    let (shortest, longest) = (Duration::from_secs(3), Duration::from_secs(86_400));
    let interval = all.duration_in(f, "containerLogMonitorInterval", shortest, longest);
    let interval = interval.unwrap_or(Duration::from_secs(10));
    let max_size = u64::try_from(size).ok()?;
    Some(LogRotation { max_size, max_files, workers, interval })
}

/// `volumeStatsAggPeriod`; a negative one switches figures of volumes off.
pub(super) fn volume_stats(all: &mut Fields, f: &mut Findings) -> Option<Duration> {
    const NAME: &str = "volumeStatsAggPeriod";
    if all.is_negative(NAME) {
        all.raw(NAME);
        return None;
    }
    Some(all.duration(f, NAME).unwrap_or(Duration::from_secs(60)))
}

/// When images are removed.
pub(super) fn image_garbage(all: &mut Fields, f: &mut Findings) -> ImageGarbage {
    const HIGH: &str = "imageGCHighThresholdPercent";
    const LOW: &str = "imageGCLowThresholdPercent";
    const MAX: &str = "imageMaximumGCAge";
    let mut percent = |name: &str, default| {
        all.integer(f, name, 0, 100).and_then(|percent| u8::try_from(percent).ok()).unwrap_or(default)
    };
    let (high, low) = (percent(HIGH, 85), percent(LOW, 80));
    if low >= high {
        let name = if all.was_written(LOW) { LOW } else { HIGH };
        let text =
            format!("{LOW} is {low} and {HIGH} is {high}; expected the low threshold to be less than the high one");
        f.errors.push(all.problem(name, text));
    }
    let min_age = all.duration(f, "imageMinimumGCAge").unwrap_or(Duration::from_secs(120));
    let max_age = all.duration(f, MAX).unwrap_or_default();
    if !max_age.is_zero() && max_age <= min_age {
        f.errors
            .push(all.problem(MAX, "is not longer than imageMinimumGCAge; expected more than that, or 0s for never"));
    }
    ImageGarbage { high, low, min_age, max_age }
}

/// Suites of TLS 1.2 that rustls has, by the names of Go.
const SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
/// Suites of TLS 1.3, which are always on.
const SUITES_13: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
/// Suites that kubelet takes and rustls has not: without forward secrecy, or without authenticated encryption.
const WEAK_SUITES: [&str; 15] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];

/// Groups of key exchange that rustls has: P-256, P-384, X25519. The numbers are those of TLS (RFC 8446, 4.2.7), as Go has them.
const GROUPS: [u16; 3] = [23, 24, 29];
/// Groups that kubelet takes and rustls has not: P-521, and ML-KEM with P-256, X25519 and P-384.
const OTHER_GROUPS: [u16; 4] = [25, 4587, 4588, 4589];

/// `tlsCurvePreferences`. The order means nothing, as with Go.
fn groups(all: &mut Fields, f: &mut Findings) -> Option<Vec<u16>> {
    const NAME: &str = "tlsCurvePreferences";
    let given = all.short_numbers(f, NAME).filter(|given| !given.is_empty())?;
    let allowed = "expected some of 23 (P-256), 24 (P-384), 29 (X25519), each once";
    for (index, group) in given.iter().enumerate() {
        if given[..index].contains(group) {
            f.errors.push(all.problem(NAME, format!("{group} is there twice; {allowed}")));
        } else if !GROUPS.contains(group) && !OTHER_GROUPS.contains(group) {
            f.errors.push(all.problem(NAME, format!("{group} is no group of TLS that is known; {allowed}")));
        }
    }
    let (known, others): (Vec<u16>, Vec<u16>) = given.into_iter().partition(|group| GROUPS.contains(group));
    if known.is_empty() {
        f.errors.push(all.problem(NAME, format!("nodelet has none of these; {allowed}")));
    } else if !others.is_empty() {
        let others: Vec<String> = others.iter().map(u16::to_string).collect();
        f.warnings.push(all.problem(NAME, format!("{} are not offered; nodelet has 23, 24 and 29", others.join(", "))));
    }
    Some(known)
}

/// `tlsMinVersion` and `tlsCipherSuites`. Unknown names are refused; weak ones that kubelet takes are left out with a warning.
fn tls_options(all: &mut Fields, f: &mut Findings) -> TlsOptions {
    const SUITES_FIELD: &str = "tlsCipherSuites";
    let versions = ["VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"];
    let version = all.one_of(f, "tlsMinVersion", &versions);
    if let Some(old @ ("VersionTLS10" | "VersionTLS11")) = version {
        let text = format!("{old} is older than what nodelet speaks; VersionTLS12 is the lowest");
        f.warnings.push(all.problem("tlsMinVersion", text));
    }
    let min_version = if version == Some("VersionTLS13") { TlsVersion::V13 } else { TlsVersion::V12 };
    let groups = groups(all, f);
    // The older names of two suites.
    let old = ["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"];
    let known: Vec<&'static str> = SUITES.into_iter().chain(SUITES_13).chain(WEAK_SUITES).chain(old).collect();
    let Some(names) = all.words(f, SUITES_FIELD, &known).filter(|names| !names.is_empty()) else {
        return TlsOptions { min_version, cipher_suites: None, groups };
    };
    let weak: Vec<&str> = names.iter().copied().filter(|name| WEAK_SUITES.contains(name)).collect();
    if !weak.is_empty() {
        let text = format!("{} are not offered; nodelet has no weak suites", weak.join(", "));
        f.warnings.push(all.problem(SUITES_FIELD, text));
    }
    let suites: Vec<&'static str> = SUITES
        .into_iter()
        .filter(|suite| names.iter().any(|name| suite == name || (old.contains(name) && suite.starts_with(name))))
        .collect();
    if weak.len() == names.len() {
        let text = format!("only weak suites are named; expected at least one of {}", SUITES.join(", "));
        f.errors.push(all.problem(SUITES_FIELD, text));
    }
    TlsOptions { min_version, cipher_suites: Some(suites), groups }
}

/// `shutdownGracePeriod` and its part for critical pods; zero switches the feature off.
pub(super) fn shutdown(all: &mut Fields, f: &mut Findings) -> (Duration, Duration) {
    let mut period = |name: &str| {
        let found = all.any_duration(f, name).unwrap_or_default();
        if !found.is_zero() && found < Duration::from_secs(1) {
            f.errors.push(all.problem(name, "is shorter than a second; expected 0s, or 1s and more"));
        }
        found
    };
    (period("shutdownGracePeriod"), period("shutdownGracePeriodCriticalPods"))
}

/// `logging` of both component configurations.
pub(in crate::config) fn logging(all: &mut Fields, f: &mut Findings) -> Logging {
    let mut logging = all.object(f, "logging");
    let json = logging.one_of(f, "format", &["text", "json"]) == Some("json");
    let verbosity = logging.integer(f, "verbosity", 0, i64::from(u8::MAX)).unwrap_or(0);
    // Lines are written at once, so there is nothing to flush.
    logging.raw("flushFrequency");
    logging.raw("options");
    logging.finish(f, &[("vmodule", "")]);
    Logging { json, verbosity: u8::try_from(verbosity).unwrap_or(u8::MAX) }
}
