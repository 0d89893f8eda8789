//! What packets do after ADD.

use std::net::IpAddr;

use crate::bench::{Bench, addresses, connect, listen};

#[test]
fn node_and_pods_reach_each_other_in_both_families_and_see_true_sources() {
    let bench = Bench::new();
    let (a, a_result) = bench.pod("a");
    let (b, b_result) = bench.pod("b");
    let (on_a, on_b, on_node) = (listen(&a, 8080), listen(&b, 8080), listen(&bench.node, 8080));
    for (index, a_address) in addresses(&a_result).into_iter().enumerate() {
        let b_address = addresses(&b_result)[index];
        let gateway: IpAddr = ["10.244.1.1", "fd00:10:244:1::1"][index].parse().unwrap();
        assert_eq!(connect(&a, b_address, 8080, &on_b), a_address, "pod to pod");
        assert_eq!(connect(&b, a_address, 8080, &on_a), b_address, "pod to pod, back");
        assert_eq!(connect(&bench.node, a_address, 8080, &on_a), gateway, "node to pod");
        assert_eq!(connect(&a, gateway, 8080, &on_node), a_address, "pod to node");
        assert_eq!(connect(&a, a_address, 8080, &on_a), a_address, "pod to itself");
    }
}

#[test]
fn ipv6_works_at_once_without_duplicate_address_detection() {
    let bench = Bench::new();
    let (pod, result) = bench.pod("a");
    // Duplicate address detection would hold the addresses for at least a second. The link-local one, which nobody
    // uses, is settled by a kernel worker a moment later.
    for (netns, interface) in [(&pod, "eth0"), (&bench.node, result["interfaces"][0]["name"].as_str().unwrap())] {
        let tentative = netns.ip(&format!("-6 addr show dev {interface} scope global tentative")).unwrap();
        assert_eq!(tentative.trim(), "", "on {interface}");
    }
    let listener = listen(&pod, 8080);
    connect(&bench.node, addresses(&result)[1], 8080, &listener);
}

#[test]
fn services_by_dnat_work_to_another_pod_and_back_to_the_same_pod() {
    let bench = Bench::new();
    let (a, a_result) = bench.pod("a");
    let (b, b_result) = bench.pod("b");
    let (on_a, on_b) = (listen(&a, 8080), listen(&b, 8080));
    for (index, (family, service)) in [("ip", "10.96.0.1"), ("ip6", "fd00:10:96::1")].into_iter().enumerate() {
        let (to_a, to_b) = (addresses(&a_result)[index], addresses(&b_result)[index]);
        let (to_a_text, to_b_text) = match index {
            0 => (format!("{to_a}:8080"), format!("{to_b}:8080")),
            _ => (format!("[{to_a}]:8080"), format!("[{to_b}]:8080")),
        };
        let rules = format!(
            "nft add table {family} services
             nft add chain {family} services pre '{{ type nat hook prerouting priority dstnat; }}'
             nft add chain {family} services post '{{ type nat hook postrouting priority srcnat; }}'
             nft add rule {family} services pre {family} daddr {service} tcp dport 80 dnat to {to_b_text}
             nft add rule {family} services pre {family} daddr {service} tcp dport 81 dnat to {to_a_text}
             nft add rule {family} services post ct status dnat {family} saddr {to_a} {family} daddr {to_a} masquerade"
        );
        bench.node.sh(&rules).unwrap();
        let service: IpAddr = service.parse().unwrap();
        assert_eq!(connect(&a, service, 80, &on_b), to_a, "the answer of a neighbour passes the node's DNAT");
        let gateway: IpAddr = ["10.244.1.1", "fd00:10:244:1::1"][index].parse().unwrap();
        assert_eq!(connect(&a, service, 81, &on_a), gateway, "hairpin comes back masqueraded");
    }
}

#[test]
fn a_pod_cannot_send_with_the_address_of_another() {
    let bench = Bench::new();
    let (a, _) = bench.pod("a");
    let (b, b_result) = bench.pod("b");
    let stolen = addresses(&b_result)[0];
    b.ip("link set eth0 down").unwrap();
    a.ip(&format!("addr add {stolen}/32 dev eth0")).unwrap();
    let send = || std::net::UdpSocket::bind((stolen, 0))?.send_to(b"x", ("10.244.1.1", 9));
    a.within(send).unwrap().unwrap();
    let reverse_path_drops = bench.node.sh("grep -h ^TcpExt: /proc/net/netstat").unwrap();
    let lines: Vec<Vec<&str>> = reverse_path_drops.lines().map(|line| line.split_whitespace().collect()).collect();
    let column = lines[0].iter().position(|name| *name == "IPReversePathFilter").unwrap();
    assert_eq!(lines[1][column], "1", "the node's reverse path filter dropped the packet");
}

#[test]
fn the_mtu_is_that_of_the_uplink_unless_the_configuration_says_otherwise() {
    let bench = Bench::new();
    bench.node.ip("link add up0 type veth peer name up1").unwrap();
    for step in ["link set up0 mtu 1380 up", "link set up1 up", "addr add 10.9.0.2/24 dev up0"] {
        bench.node.ip(step).unwrap();
    }
    bench.node.ip("route add default via 10.9.0.1").unwrap();
    let (pod, result) = bench.pod("a");
    assert_eq!(result["interfaces"][1]["mtu"], 1380);
    assert!(pod.ip("link show eth0").unwrap().contains("mtu 1380"));
    let other = harness::netns::Netns::new().unwrap();
    let mut conf = bench.conf();
    conf["mtu"] = 1300.into();
    let result = bench.call("ADD", "b", &other.path(), &conf).ok();
    assert_eq!(result["interfaces"][0]["mtu"], 1300);
}
