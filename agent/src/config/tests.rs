//! Configuration files as people write them, right and wrong.

use std::path::Path;
use std::time::Duration;

use super::*;

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn joined(dir: &Path, config: &str) -> Flags {
    Flags {
        config: Some(write(dir, "config.yaml", config)),
        kubeconfig: Some("/etc/kubernetes/kubelet.conf".into()),
        hostname_override: Some("Node-1".into()),
        ..Flags::default()
    }
}

const KUBEADM: &str = include_str!("testdata/kubeadm-kubelet.yaml");
const KUBEADM_PROXY: &str = include_str!("testdata/kubeadm-kube-proxy.yaml");

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn the_file_that_kubeadm_writes_is_taken_and_its_zeros_are_kubelets_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let (config, warnings) = load(&joined(dir.path(), KUBEADM)).unwrap();
    let kubelet = &config.kubelet;
    assert_eq!(config.node_name, "node-1");
    assert_eq!(kubelet.cgroup_driver, kubelet::CgroupDriver::Systemd);
    assert_eq!(kubelet.cluster_dns, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
    assert_eq!(kubelet.static_pod_path, Some("/etc/kubernetes/manifests".into()));
    assert_eq!(kubelet.runtime_endpoint, PathBuf::from("/run/containerd/containerd.sock"));
    assert_eq!((kubelet.max_pods, kubelet.healthz_port), (110, 10248));
    let seconds = [kubelet.status_update, kubelet.status_report, kubelet.runtime_timeout].map(|d| d.as_secs());
    assert_eq!(seconds, [10, 300, 120]);
    assert_eq!(kubelet.server.client_ca_file, Some("/etc/kubernetes/pki/ca.crt".into()));
    assert_eq!(kubelet.server.token_webhook, Some(Duration::from_secs(120)));
    assert_eq!(kubelet.server.stream_idle, Duration::from_secs(4 * 3600));
    assert_eq!(kubelet.enforce, [kubelet::Enforce::Pods]);
    // What asks for something that does not exist yet is named; zeros are not.
    assert!(warnings.is_empty(), "{warnings:#?}");
}

#[test]
fn kubeadms_file_for_kube_proxy_is_taken_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let flags = Flags {
        proxy_config: Some(write(dir.path(), "config.conf", KUBEADM_PROXY)),
        only: Some(Only::Services),
        hostname_override: Some("n".into()),
        ..Flags::default()
    };
    let (config, warnings) = load(&flags).unwrap();
    assert_eq!(texts(&warnings), [""; 0]);
    let proxy = &config.proxy;
    assert_eq!(proxy.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(proxy.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    assert_eq!(
        (proxy.sync_period, proxy.cluster_cidrs.as_slice()),
        (Duration::from_secs(30), &["10.244.0.0/16".to_owned()][..])
    );
    assert_eq!(proxy.conntrack.max_per_core, Some(32_768));
    assert_eq!(proxy.conntrack.tcp_established, Some(Duration::from_secs(86_400)));
    assert_eq!((proxy.conntrack.udp, proxy.bind_address), (None, None));
}

#[test]
fn a_problem_is_named_with_the_drop_in_or_flag_that_caused_it_and_the_line_of_the_nested_field() {
    let dir = tempfile::tempdir().unwrap();
    let drop_ins = dir.path().join("conf.d");
    std::fs::create_dir(&drop_ins).unwrap();
    write(&drop_ins, "10.conf", "# first line\nauthorization:\n  webhook:\n    cacheAuthorizedTTL: often\n");
    let mut flags = joined(dir.path(), "authorization:\n  mode: Never\nclusterDNS:\n- 10.0.0.1\n- dns\n");
    flags.config_dir = Some(drop_ins);
    flags.fields = [("max-pods", "many"), ("eviction-hard", "memory.free<1Gi"), ("healthz-port", "0")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
        .to_vec();
    let all = texts(&load(&flags).unwrap_err());
    let has = |needles: &[&str]| all.iter().any(|line| needles.iter().all(|n| line.contains(n)));
    assert!(has(&["10.conf:4: authorization.webhook.cacheAuthorizedTTL: \"often\""]), "{all:#?}");
    assert!(has(&["config.yaml:2: authorization.mode: \"Never\"", "one of Webhook, AlwaysAllow"]), "{all:#?}");
    assert!(has(&["config.yaml:5: clusterDNS[1]: \"dns\"", "IP addresses"]), "{all:#?}");
    assert!(has(&["--max-pods: maxPods: \"many\" is not allowed; expected a number"]), "{all:#?}");
    assert!(has(&["--eviction-hard: evictionHard: \"memory.free\" is not a signal"]), "{all:#?}");
    assert_eq!(all.len(), 5, "{all:#?}");
}

#[test]
fn flags_win_over_files_and_those_without_an_effect_warn() {
    let dir = tempfile::tempdir().unwrap();
    let mut flags = joined(dir.path(), "maxPods: 5\nclusterDNS: [10.0.0.1]\nkubeReserved: {cpu: 1}\n");
    flags.fields = [
        ("max-pods", "20"),
        ("cluster-dns", "10.0.0.2,10.0.0.3"),
        ("kube-reserved", "memory=1Gi"),
        ("eviction-hard", "memory.available<1Gi,nodefs.available<5%"),
        ("fail-swap-on", "false"),
        ("pod-infra-container-image", "registry.k8s.io/pause:3.10"),
        ("cluster-cidr", "10.0.0.0/8"),
        ("feature-gates", "A=true,B=false"),
    ]
    .map(|(name, text)| (name.to_owned(), text.to_owned()))
    .to_vec();
    flags.cloud_provider = Some("external".into());
    let (config, warnings) = load(&flags).unwrap();
    let kubelet = &config.kubelet;
    assert_eq!((kubelet.max_pods, kubelet.cluster_dns.len(), kubelet.fail_swap_on), (20, 2, Some(false)));
    let reserved: Vec<String> = kubelet.reserved.total().iter().map(|(n, q)| format!("{n}={q}")).collect();
    assert_eq!(reserved, ["cpu=1", "memory=1Gi"]);
    assert_eq!(kubelet.eviction_hard.len(), 2);
    assert_eq!(kubelet.taints[0].key, "node.cloudprovider.kubernetes.io/uninitialized");
    assert!(config.has_cloud_controller);
    assert_eq!(config.proxy.cluster_cidrs, ["10.0.0.0/8"]);
    assert_eq!(
        texts(&warnings),
        [
            "--pod-infra-container-image: pod-infra-container-image: \"registry.k8s.io/pause:3.10\" has no effect; \
             remove the flag",
            "configuration: featureGates: A, B: nodelet has no feature gates; these have no effect",
        ]
    );
}

#[test]
fn kube_proxys_flags_give_way_to_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let flags = |file: bool| Flags {
        proxy_config: file.then(|| write(dir.path(), "p.yaml", "kind: KubeProxyConfiguration\n")),
        kubeconfig: Some("/k".into()),
        only: Some(Only::Services),
        hostname_override: Some("n".into()),
        fields: vec![("healthz-bind-address".into(), "[::1]:1".into()), ("proxy-mode".into(), "nftables".into())],
        ..Flags::default()
    };
    let (config, warnings) = load(&flags(false)).unwrap();
    assert_eq!((config.proxy.healthz, warnings.len()), (Some("[::1]:1".parse().unwrap()), 0));
    let (config, warnings) = load(&flags(true)).unwrap();
    assert_eq!(config.proxy.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert!(warnings.iter().all(|w| w.text.contains("ignored, because a KubeProxyConfiguration file is given")));
    assert_eq!(warnings.len(), 2);
}

#[test]
fn fields_that_depend_on_each_other_are_checked_together() {
    let dir = tempfile::tempdir().unwrap();
    let text = "enforceNodeAllocatable: [pods, kube-reserved]\nserializeImagePulls: true\nmaxParallelImagePulls: 3\n\
                shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 20s\ntlsCertFile: /c\n";
    let all = texts(&load(&joined(dir.path(), text)).unwrap_err());
    for (line, needle) in
        [(1, "needs kubeReservedCgroup"), (3, "serializeImagePulls"), (5, "longer than"), (6, "tlsPrivateKeyFile")]
    {
        let place = format!("config.yaml:{line}:");
        assert!(all.iter().any(|l| l.contains(&place) && l.contains(needle)), "{needle} in {all:#?}");
    }
    assert_eq!(all.len(), 4, "{all:#?}");
}

#[test]
fn a_file_of_another_kind_or_with_broken_yaml_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = texts(&load(&joined(dir.path(), "kind: KubeProxyConfiguration\n")).unwrap_err());
    assert!(
        wrong[0]
            .ends_with("config.yaml:1: kind: \"KubeProxyConfiguration\" is not allowed; expected KubeletConfiguration"),
        "{wrong:?}"
    );
    let broken = texts(&load(&joined(dir.path(), "maxPods: 1\n  port: [\n")).unwrap_err());
    assert!(broken[0].contains("is not YAML") && broken[0].contains('2'), "{broken:?}");
}

#[test]
fn all_wrong_values_are_named_with_file_line_field_value_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let text = "kind: KubeletConfiguration\nmaxPods: lots\ncgroupDriver: cgroups\nclusterDNS: [10.0.0.256]\nsyncFrequency: 1m\ncpuCFSQuotaPeriod: 5 minutes\n";
    let errors = load(&joined(dir.path(), text)).unwrap_err();
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let has = |needles: &[&str]| all.iter().any(|line| needles.iter().all(|n| line.contains(n)));
    assert!(has(&["config.yaml:2: maxPods: \"lots\" is not allowed; expected an integer from 0"]), "{all:#?}");
    assert!(has(&[":3: cgroupDriver", "\"cgroups\"", "one of cgroupfs, systemd"]), "{all:#?}");
    assert!(has(&[":4: clusterDNS", "list of IP addresses"]), "{all:#?}");
    assert!(has(&[":6: cpuCFSQuotaPeriod", "5 minutes", "1m30s"]), "{all:#?}");
    assert_eq!(all.len(), 4, "{all:#?}");
}

#[test]
fn an_unknown_field_warns_by_name_and_suggests_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let (_, warnings) = load(&joined(dir.path(), "maxPod: 5\n")).unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .to_string()
            .ends_with("config.yaml:1: maxPod: unknown field, it has no effect; did you mean maxPods?"),
        "{}",
        warnings[0]
    );
}

#[test]
fn drop_ins_merge_maps_and_replace_lists_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let drop_ins = dir.path().join("conf.d");
    std::fs::create_dir(&drop_ins).unwrap();
    write(&drop_ins, "20.conf", "maxPods: 20\nclusterDNS: [10.0.0.2]\n");
    write(&drop_ins, "10.conf", "maxPods: 10\nkubeReserved: {cpu: 100m}\n");
    write(&drop_ins, "30.txt", "maxPods: 30\n");
    let mut flags = joined(dir.path(), "maxPods: 5\nkubeReserved: {memory: 1Gi}\nclusterDNS: [10.0.0.1]\n");
    flags.config_dir = Some(drop_ins);
    let (config, _) = load(&flags).unwrap();
    assert_eq!(config.kubelet.max_pods, 20);
    assert_eq!(config.kubelet.cluster_dns, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
    let names: Vec<String> = config.kubelet.reserved.total().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["cpu", "memory"]);
}

#[test]
fn a_node_needs_a_control_plane_or_a_directory_but_not_both() {
    let neither = load(&Flags { hostname_override: Some("n".into()), ..Flags::default() }).unwrap_err();
    assert!(neither[0].to_string().contains("--manifests DIR or a staticPodPath to run alone"), "{}", neither[0]);
    let both = Flags {
        kubeconfig: Some("/k".into()),
        manifests: Some("/m".into()),
        hostname_override: Some("n".into()),
        ..Flags::default()
    };
    assert!(load(&both).unwrap_err()[0].to_string().contains("staticPodPath"));
}

#[test]
fn kube_proxys_own_file_gives_kubeconfig_name_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let text = "kind: KubeProxyConfiguration\nclientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}\nhostnameOverride: Edge\nmode: iptables\nclusterCIDR: 10.244.0.0/16,fd00::/48\nmetricsBindAddress: 0.0.0.0:10249\n";
    let flags =
        Flags { proxy_config: Some(write(dir.path(), "p.yaml", text)), only: Some(Only::Services), ..Flags::default() };
    let (config, warnings) = load(&flags).unwrap();
    assert_eq!(config.node_name, "edge");
    assert!(matches!(&config.mode, Mode::Joined { kubeconfig, .. } if kubeconfig.ends_with("kubeconfig.conf")));
    assert_eq!(config.proxy.cluster_cidrs, ["10.244.0.0/16", "fd00::/48"]);
    assert!(warnings.iter().any(|w| w.field == "mode" && w.text.contains("nftables")));
}

#[test]
fn tls_names_are_checked_and_ports_that_everybody_may_read_are_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let loaded = |text: &str| load(&joined(dir.path(), &format!("{head}{text}")));
    let old = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, TLS_RSA_WITH_AES_128_CBC_SHA, TLS_AES_128_GCM_SHA256";
    let text = format!(
        "tlsMinVersion: VersionTLS13\ntlsCipherSuites: [{old}]\nreadOnlyPort: 10255\nenableDebuggingHandlers: false\n\
         enableSystemLogHandler: true\n"
    );
    let (config, warnings) = loaded(&text).unwrap();
    let server = &config.kubelet.server;
    assert_eq!(server.tls.min_version, kubelet::TlsVersion::V13);
    assert_eq!(server.tls.cipher_suites, Some(vec!["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]));
    assert_eq!((server.read_only_port, server.debugging, server.system_logs), (Some(10255), false, true));
    let warnings = texts(&warnings);
    for field in ["readOnlyPort", "tlsCipherSuites: TLS_RSA_WITH_AES_128_CBC_SHA"] {
        assert!(warnings.iter().any(|warning| warning.contains(field)), "{field} in {warnings:#?}");
    }
    let (config, warnings) = loaded("tlsCurvePreferences: [29, 4588, 23]").unwrap();
    assert_eq!(config.kubelet.server.tls.groups, Some(vec![29, 23]));
    assert!(texts(&warnings)[0].contains("4588 are not offered"), "{warnings:#?}");
    for (text, named) in [
        ("tlsCurvePreferences: [29, 29]", "29 is there twice"),
        ("tlsCurvePreferences: [7]", "7 is no group"),
        ("tlsCurvePreferences: [4588]", "none of these"),
        ("tlsCurvePreferences: [70000]", "from 1 to 65535"),
        ("tlsMinVersion: VersionTLS14", "VersionTLS14"),
        ("tlsCipherSuites: [TLS_NOTHING]", "TLS_NOTHING"),
        ("tlsCipherSuites: [TLS_RSA_WITH_AES_128_CBC_SHA]", "only weak suites"),
    ] {
        let errors = texts(&loaded(text).err().unwrap());
        assert!(errors.iter().any(|error| error.contains(named)), "{named} in {errors:#?}");
    }
}

#[test]
fn a_negative_period_of_volume_figures_switches_them_off_and_zero_is_the_default() {
    let dir = tempfile::tempdir().unwrap();
    for (text, period) in [("0s", Some(60)), ("30s", Some(30)), ("-1m", None)] {
        let (config, warnings) = load(&joined(dir.path(), &format!("volumeStatsAggPeriod: {text}\n"))).unwrap();
        let expected = period.map(std::time::Duration::from_secs);
        assert_eq!((config.kubelet.volume_stats_period, warnings.len()), (expected, 0), "{text}");
    }
    assert!(load(&joined(dir.path(), "volumeStatsAggPeriod: -often\n")).is_err());
}

#[test]
fn thresholds_and_ages_of_images_are_read_and_have_to_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let read =
        |text: &str| load(&joined(dir.path(), text)).map(|(config, warnings)| (config.kubelet.image_garbage, warnings));
    let (garbage, warnings) = read("maxPods: 5\n").unwrap();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let expected = kubelet::ImageGarbage { high: 85, low: 80, min_age: minutes(2), max_age: Duration::ZERO };
    assert_eq!((garbage, texts(&warnings).len()), (expected, 0));
    let text = "imageGCHighThresholdPercent: 70\nimageGCLowThresholdPercent: 0\nimageMinimumGCAge: 1m\nimageMaximumGCAge: 2h\n";
    let expected = kubelet::ImageGarbage { high: 70, low: 0, min_age: minutes(1), max_age: minutes(120) };
    assert_eq!(read(text).unwrap().0, expected);
    for (text, problem) in [
        ("imageGCHighThresholdPercent: 101\n", "config.yaml:1: imageGCHighThresholdPercent: 101 is not allowed"),
        (
            "imageGCHighThresholdPercent: 80\n",
            "config.yaml:1: imageGCHighThresholdPercent: imageGCLowThresholdPercent is 80",
        ),
        (
            "imageGCLowThresholdPercent: 90\n",
            "config.yaml:1: imageGCLowThresholdPercent: imageGCLowThresholdPercent is 90",
        ),
        ("imageMaximumGCAge: 2m\n", "config.yaml:1: imageMaximumGCAge: is not longer than imageMinimumGCAge"),
    ] {
        let all = texts(&read(text).unwrap_err());
        assert!(all.len() == 1 && all[0].contains(problem), "{all:#?}");
    }
}
