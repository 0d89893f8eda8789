//! What rules say of networks: ranges of ClusterIPs, what pods send out of the cluster, which traffic is the pods' own.
//! All of it changes while the agent runs.

use std::net::IpAddr;

use nodelet::service::{Cidr, Egress, Local};

use crate::rig::{FAMILIES, GATEWAY, NODE, OUTSIDE, POD_PORT, Rig, at, cluster_ips, service};
use crate::traffic::{self, outcome, tcp};

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| Cidr::parse(text).unwrap()).collect()
}

#[test]
fn a_cluster_ip_of_no_service_is_dropped_once_the_ranges_are_known() {
    let mut rig = Rig::started(1);
    // Whoever has a route for the range answers instead.
    rig.lan.netns().ip("addr add 10.96.0.9/32 dev lo").unwrap();
    rig.lan.netns().ip("-6 addr add fd00:10:96::9/128 dev lo nodad").unwrap();
    rig.node.ip(&format!("route add 10.96.0.0/16 via {}", OUTSIDE[0])).unwrap();
    traffic::serve(rig.lan.netns(), "stranger", 80);
    rig.apply(&[service("web", 1, 0)]);
    rig.apply(&rig.slices("web", &[0]));
    for family in FAMILIES {
        assert_eq!(outcome(&rig.node, at(&cluster_ips(9)[family], 80)), "stranger");
    }
    rig.handle().reconfigure(|settings| settings.service_cidrs = cidrs(&["10.96.0.0/16", "fd00:10:96::/108"]));
    rig.settle();
    for family in FAMILIES {
        for from in [&rig.node, &rig.pods[0].netns] {
            assert_eq!(outcome(from, at(&cluster_ips(9)[family], 80)), "dropped");
            assert_eq!(outcome(from, at(&cluster_ips(1)[family], 80)), "pod0");
            assert_eq!(outcome(from, at(&cluster_ips(1)[family], 81)), "refused", "a port that the Service has not");
        }
    }
    rig.node.sh("nft flush chain ip nodelet unserved").unwrap();
    crate::rig::until(std::time::Duration::from_secs(5), "the repair", || {
        match rig.listing("ip").contains("ip daddr 10.96.0.0/16 drop") {
            true => Ok(()),
            false => Err(rig.listing("ip")),
        }
    });
    rig.handle().reconfigure(|settings| settings.service_cidrs.clear());
    rig.settle();
    assert_eq!(outcome(&rig.node, at(&cluster_ips(9)[0], 80)), "stranger");
}

#[test]
fn what_pods_send_out_of_the_cluster_has_the_nodes_address_and_nothing_else_has() {
    let mut rig = Rig::started(2);
    for (family, network) in [("-4", "10.244.0.0/16"), ("-6", "fd00:10:244::/48")] {
        let via = NODE[usize::from(family == "-6")];
        rig.lan.netns().ip(&format!("{family} route add {network} via {via}")).unwrap();
    }
    traffic::serve(rig.lan.netns(), "outside", POD_PORT);
    rig.apply(&[service("web", 1, 0)]);
    rig.apply(&rig.slices("web", &[1]));
    let peer = |rig: &Rig, to: &str, port: u16| tcp(&rig.pods[0].netns, at(to, port)).unwrap().peer;
    let node = |family: usize| NODE[family].parse::<IpAddr>().unwrap();
    for family in FAMILIES {
        assert_eq!(peer(&rig, OUTSIDE[family], POD_PORT), rig.address(0, family), "left to the network plugin");
    }
    let pods = cidrs(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let inside = cidrs(&["10.244.0.0/16", "fd00:10:244::/48"]);
    rig.handle().reconfigure(|settings| settings.egress = Some(Egress { pods, inside }));
    rig.settle();
    for family in FAMILIES {
        assert_eq!(peer(&rig, OUTSIDE[family], POD_PORT), node(family));
        let pod = rig.pods[1].addresses[family].clone();
        assert_eq!(peer(&rig, &pod, POD_PORT), rig.address(0, family), "from pod to pod");
        assert_eq!(peer(&rig, &cluster_ips(1)[family], 80), rig.address(0, family), "through a Service");
        let from_node = tcp(&rig.node, at(&pod, POD_PORT)).unwrap().peer;
        assert_eq!(from_node, GATEWAY[family].parse::<IpAddr>().unwrap(), "from the node");
    }
    // An endpoint that is no pod, behind a Service.
    let outside = |family: usize| {
        let endpoint = serde_json::json!({"addresses": [OUTSIDE[family]], "nodeName": "other"});
        crate::rig::slice("out", family, vec![endpoint])
    };
    rig.apply(&[service("out", 2, 0)]);
    rig.apply(&FAMILIES.map(outside));
    for family in FAMILIES {
        assert_eq!(peer(&rig, &cluster_ips(2)[family], 80), node(family));
    }
    for family in ["ip", "ip6"] {
        assert!(rig.listing(family).contains("chain egress"));
    }
}

#[test]
fn each_way_to_tell_pods_from_others_masquerades_the_others_only() {
    let mut rig = Rig::started(2);
    rig.apply(&[service("web", 1, 0)]);
    rig.apply(&rig.slices("web", &[0]));
    let port = rig.node.sh("ip -o link show type veth | cut -d' ' -f2 | cut -d@ -f1 | grep -v eth0").unwrap();
    let ports: Vec<&str> = port.split_whitespace().collect();
    let prefix: String = ports[0].chars().zip(ports[1].chars()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect();
    assert!(!prefix.is_empty() && !"eth0".starts_with(&prefix), "{ports:?}");
    let nodes_own = cidrs(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let clusters = cidrs(&["10.244.0.0/16", "fd00:10:244::/48"]);
    for (what, local, all, outside_is_kept, pod_is_kept) in [
        ("ClusterCIDR", Local::Networks(clusters), false, false, true),
        ("NodeCIDR", Local::Networks(nodes_own), false, false, true),
        ("NodeCIDR before the Node has one", Local::Networks(Vec::new()), false, true, true),
        ("BridgeInterface", Local::Interface(ports[1].to_owned()), false, false, true),
        ("InterfaceNamePrefix", Local::InterfacePrefix(prefix), false, false, true),
        ("masqueradeAll", Local::Networks(Vec::new()), true, false, false),
    ] {
        rig.handle().reconfigure(|settings| (settings.local, settings.masquerade_all) = (local, all));
        rig.settle();
        for family in FAMILIES {
            let to = at(&cluster_ips(1)[family], 80);
            let kept = tcp(rig.lan.netns(), to).unwrap().peer == OUTSIDE[family].parse::<IpAddr>().unwrap();
            assert_eq!(kept, outside_is_kept, "{what}: from outside");
            let kept = tcp(&rig.pods[1].netns, to).unwrap().peer == rig.address(1, family);
            assert_eq!(kept, pod_is_kept, "{what}: from a pod");
        }
    }
}
