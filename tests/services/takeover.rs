//! What a kube-proxy left, what is set beside the rules, and what is told of it all.

use std::time::Duration;

use nodelet::config::proxy::Conntrack;

use crate::rig::{Rig, at, cluster_ips, service};
use crate::traffic::tcp;

const THEIRS: &str = "
    add table ip kube-proxy; add table ip6 kube-proxy; add table ip nat
    add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }
    add chain ip kube-proxy nat-output { type nat hook output priority -100; }
    add rule ip kube-proxy nat-output ip daddr 10.96.0.1 tcp dport 80 dnat to 192.0.2.1:80
    add chain ip6 kube-proxy services
    add chain ip nat KUBE-SERVICES";

fn tables(rig: &Rig) -> Vec<String> {
    rig.node.sh("nft list tables").unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn kube_proxys_tables_go_when_ours_stand_and_not_before() {
    let mut rig = Rig::new(1);
    for command in THEIRS.lines().filter(|line| !line.trim().is_empty()) {
        rig.node.sh(&format!("nft '{command}'")).unwrap();
    }
    let mut objects = vec![service("web", 1, 0)];
    objects.extend(rig.slices("web", &[0]));
    rig.spawn();
    rig.half_a_list(&objects);
    assert!(!rig.handle().programmed(Duration::from_millis(300)), "half a list is not programmed");
    assert!(tables(&rig).contains(&"table ip kube-proxy".to_owned()));
    rig.relist(&objects);
    rig.settle();
    assert_eq!(tables(&rig), ["table ip nat", "table ip nodelet", "table ip6 nodelet"]);
    assert_eq!(tcp(&rig.node, at(&cluster_ips(1)[0], 80)).unwrap().who, "pod0");
    // An operator who wants to be rid of us, too.
    rig.stop();
    rig.node.within(nodelet::service::programmer::cleanup).unwrap().unwrap();
    assert_eq!(tables(&rig), ["table ip nat"]);
}

#[test]
fn connection_tracking_is_set_as_configured_and_route_localnet_never() {
    let mut rig = Rig::new(1);
    rig.settings.conntrack = Some(Conntrack {
        // The limit is the machine's own; it is not written from here.
        max_per_core: None,
        min: 0,
        tcp_established: Some(Duration::from_secs(7200)),
        tcp_close_wait: Some(Duration::from_secs(1800)),
        tcp_be_liberal: true,
        udp: Some(Duration::from_secs(21)),
        udp_stream: Some(Duration::from_secs(121)),
    });
    rig.start(&[]);
    let read = |name: &str| rig.node.sh(&format!("sysctl -n net.netfilter.nf_conntrack_{name}")).unwrap();
    for (name, value) in [
        ("tcp_timeout_established", "7200"),
        ("tcp_timeout_close_wait", "1800"),
        ("tcp_be_liberal", "1"),
        ("udp_timeout", "21"),
        ("udp_timeout_stream", "121"),
    ] {
        assert_eq!(read(name).trim(), value, "{name}");
    }
    let localnet = rig.node.sh("sysctl -n net.ipv4.conf.all.route_localnet net.ipv4.conf.eth0.route_localnet").unwrap();
    assert_eq!(localnet.split_whitespace().collect::<Vec<_>>(), ["0", "0"]);
}

#[test]
fn metrics_follow_what_is_programmed_and_what_others_change() {
    let mut rig = Rig::started(2);
    let mut local = service("local", 2, 0);
    local["spec"]["internalTrafficPolicy"] = "Local".into();
    rig.apply(&[service("web", 1, 0), local]);
    let mut slices = rig.slices("web", &[0]);
    let now = rig.node.sh("date -u +%Y-%m-%dT%H:%M:%S.%NZ").unwrap();
    slices[0]["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"] = now.trim().into();
    rig.apply(&slices);
    let elsewhere = serde_json::json!({"addresses": [rig.pods[1].addresses[0]], "nodeName": "other"});
    rig.apply(&[crate::rig::slice("local", 0, vec![elsewhere])]);
    let value = |rig: &Rig, name: &str| -> f64 {
        let text = rig.handle().metrics();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let network = "kubeproxy_network_programming_duration_seconds_count";
    assert_eq!(value(&rig, &format!("{network}{{ip_family=\"IPv4\"}}")), 1.0);
    assert_eq!(value(&rig, &format!("{network}{{ip_family=\"IPv6\"}}")), 0.0, "its slice does not say when");
    assert_eq!(value(&rig, "kubeproxy_sync_proxy_rules_service_changes_pending"), 0.0);
    assert!(value(&rig, "kubeproxy_sync_proxy_rules_endpoint_changes_total") >= 3.0);
    assert!(value(&rig, "nodelet_services_batch_elements_sum") > 4.0);
    assert!(value(&rig, "nodelet_services_batch_bytes_sum") > 1000.0);
    assert!(value(&rig, "nodelet_services_programming_duration_seconds_count") > 1.0);
    assert!(value(&rig, "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}") >= 1.0);
    let without = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    // One for each port.
    assert_eq!(value(&rig, &format!("{without}{{ip_family=\"IPv4\",traffic_policy=\"internal\"}}")), 2.0);
    assert_eq!(value(&rig, &format!("{without}{{ip_family=\"IPv6\",traffic_policy=\"internal\"}}")), 0.0);
    assert_eq!(value(&rig, "nodelet_services_drift_total"), 0.0);
    rig.node.sh("nft flush map ip nodelet services").unwrap();
    crate::rig::until(Duration::from_secs(5), "the drift to be counted", || {
        match value(&rig, "nodelet_services_drift_total") {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        }
    });
}
