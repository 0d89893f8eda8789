//! What connections find: endpoints, refusals, and the source that endpoints see.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use harness::eventually::patience;
use serde_json::json;

use crate::rig::{FAMILIES, GATEWAY, NODE, OUTSIDE, POD_PORT, Rig, at, cluster_ips, service, slice};
use crate::traffic::{tcp, udp};

const NODE_PORT: u16 = 30080;

#[test]
fn cluster_ip_and_node_port_reach_the_endpoint_from_pod_node_and_outside() {
    let mut rig = Rig::started(2);
    rig.apply(&[service("web", 1, NODE_PORT)]);
    rig.apply(&rig.slices("web", &[0]));
    let outside = rig.lan.netns();
    for family in FAMILIES {
        let ip = &cluster_ips(1)[family];
        for (place, from) in [("pod", &rig.pods[1].netns), ("node", &rig.node), ("outside", outside)] {
            for (port, answer) in [(80, tcp(from, at(ip, 80))), (53, udp(from, at(ip, 53)))] {
                assert_eq!(answer.unwrap_or_else(|e| panic!("{ip}:{port} from {place}: {e}")).who, "pod0");
            }
            let node = at(NODE[family], NODE_PORT);
            for answer in [tcp(from, node), udp(from, node)] {
                assert_eq!(answer.unwrap_or_else(|e| panic!("{node} from {place}: {e}")).who, "pod0");
            }
        }
    }
}

#[test]
fn connections_are_spread_over_all_endpoints_of_several_slices() {
    let mut rig = Rig::started(3);
    rig.apply(&[service("web", 1, 0)]);
    rig.apply(&rig.slices("web", &[0, 1]));
    let more = json!({"addresses": [rig.pods[2].addresses[0]], "nodeName": "node-b"});
    let twice = json!({"addresses": [rig.pods[1].addresses[0]], "nodeName": "node-a"});
    let mut second = slice("web", 0, vec![more, twice]);
    second["metadata"]["name"] = "web-second".into();
    rig.apply(&[second]);
    let answers = (0..300).map(|_| tcp(&rig.node, at(&cluster_ips(1)[0], 80)).unwrap().who);
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    answers.for_each(|who| *counts.entry(who).or_default() += 1);
    assert_eq!(counts.len(), 3, "{counts:?}");
    // With 300 draws out of three, fewer than 50 of one has a chance below 1e-10; a duplicate would take half.
    assert!(counts.values().all(|count| (50..150).contains(count)), "{counts:?}");
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let mut rig = Rig::started(1);
    rig.apply(&[service("web", 1, NODE_PORT)]);
    for family in FAMILIES {
        let ip = &cluster_ips(1)[family];
        for (place, from) in [("pod", &rig.pods[0].netns), ("node", &rig.node), ("outside", rig.lan.netns())] {
            for to in [at(ip, 80), at(NODE[family], NODE_PORT)] {
                let began = Instant::now();
                let error = tcp(from, to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP to {to} from {place}");
                assert!(
                    began.elapsed() < patience(Duration::from_millis(500)),
                    "{to} from {place} took {:?}",
                    began.elapsed()
                );
            }
            for to in [at(ip, 53), at(NODE[family], NODE_PORT)] {
                let error = udp(from, to).unwrap_err();
                // A datagram of the node itself is refused before it leaves: sending it fails with EPERM.
                let refused = matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied);
                assert!(refused, "UDP to {to} from {place}: {error}");
            }
        }
    }
}

#[test]
fn a_port_that_a_cluster_ip_does_not_have_is_refused() {
    let mut rig = Rig::started(1);
    rig.apply(&[service("web", 1, 0)]);
    rig.apply(&rig.slices("web", &[0]));
    for family in FAMILIES {
        for from in [&rig.pods[0].netns, &rig.node] {
            let error = tcp(from, at(&cluster_ips(1)[family], 81)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    }
}

#[test]
fn the_first_endpoint_ends_the_refusal_and_the_last_one_going_begins_it() {
    let mut rig = Rig::started(1);
    let to = at(&cluster_ips(1)[0], 80);
    rig.apply(&[service("web", 1, 0)]);
    assert_eq!(tcp(&rig.node, to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    rig.apply(&rig.slices("web", &[0]));
    assert_eq!(tcp(&rig.node, to).unwrap().who, "pod0");
    rig.apply(&rig.slices("web", &[]));
    assert_eq!(tcp(&rig.node, to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn ready_endpoints_are_used_and_serving_terminating_ones_only_when_none_is_ready() {
    let mut rig = Rig::started(3);
    rig.apply(&[service("web", 1, 0)]);
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let draining = json!({"ready": false, "serving": true, "terminating": true});
    let not_ready = json!({"ready": false, "serving": false, "terminating": false});
    let gone = json!({"ready": false, "serving": false, "terminating": true});
    let unknown = json!({});
    let who = |rig: &Rig| -> BTreeSet<String> {
        let ask = |_| tcp(&rig.node, at(&cluster_ips(1)[0], 80)).map_or_else(|e| e.kind().to_string(), |a| a.who);
        (0..30).map(ask).collect()
    };
    for (what, conditions, expected) in [
        ("ready wins", [&ready, &draining, &not_ready], vec!["pod0"]),
        ("draining when none is ready", [&not_ready, &draining, &gone], vec!["pod1"]),
        ("all drain", [&draining, &draining, &gone], vec!["pod0", "pod1"]),
        ("nobody", [&not_ready, &gone, &not_ready], vec!["connection refused"]),
        ("unset means ready", [&unknown, &draining, &unknown], vec!["pod0", "pod2"]),
    ] {
        let pods: Vec<_> = conditions.into_iter().cloned().enumerate().collect();
        rig.apply(&rig.slices_with("web", &pods));
        assert_eq!(who(&rig), expected.into_iter().map(str::to_owned).collect(), "{what}");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut rig = Rig::started(1);
    rig.apply(&[service("web", 1, NODE_PORT)]);
    rig.apply(&rig.slices("web", &[0]));
    for family in FAMILIES {
        let from = &rig.pods[0].netns;
        let ip = &cluster_ips(1)[family];
        for answer in [tcp(from, at(ip, 80)), udp(from, at(ip, 53)), tcp(from, at(NODE[family], NODE_PORT))] {
            let answer = answer.unwrap();
            assert_eq!(answer.who, "pod0");
            assert_eq!(answer.peer.to_string(), GATEWAY[family], "the answer must come back through the node");
        }
    }
}

#[test]
fn sources_are_kept_within_the_cluster_and_masqueraded_from_outside() {
    let mut rig = Rig::started(2);
    rig.apply(&[service("web", 1, NODE_PORT)]);
    rig.apply(&rig.slices("web", &[0]));
    for family in FAMILIES {
        let ip = &cluster_ips(1)[family];
        let (pod, node, outside) = (&rig.pods[1].netns, &rig.node, rig.lan.netns());
        let peer = |from, to| tcp(from, to).unwrap().peer;
        assert_eq!(peer(pod, at(ip, 80)), rig.address(1, family), "pod to ClusterIP");
        let gateway: std::net::IpAddr = GATEWAY[family].parse().unwrap();
        assert_eq!(peer(outside, at(ip, 80)), gateway, "outside to ClusterIP");
        assert_eq!(peer(outside, at(NODE[family], NODE_PORT)), gateway, "outside to NodePort");
        assert_eq!(peer(pod, at(NODE[family], NODE_PORT)), gateway, "pod to NodePort");
        assert_eq!(peer(node, at(ip, 80)), gateway, "node to ClusterIP");
        assert_eq!(udp(pod, at(ip, 53)).unwrap().peer, rig.address(1, family), "UDP, pod to ClusterIP");
    }
}

#[test]
fn what_is_not_for_a_service_passes_untouched() {
    let mut rig = Rig::started(2);
    rig.apply(&[service("web", 1, NODE_PORT)]);
    rig.apply(&rig.slices("web", &[0]));
    for family in FAMILIES {
        let to = at(&rig.pods[0].addresses[family], POD_PORT);
        assert_eq!(tcp(&rig.pods[1].netns, to).unwrap().peer, rig.address(1, family));
    }
    // DNAT that is not ours keeps the client's address: nobody asked us to masquerade it.
    let target = &rig.pods[0].addresses[0];
    let rules = format!(
        "nft add table ip foreign
         nft add chain ip foreign pre '{{ type nat hook prerouting priority dstnat - 1; }}'
         nft add rule ip foreign pre ip daddr {} tcp dport 9999 dnat to {target}:{POD_PORT}",
        NODE[0]
    );
    rig.node.sh(&rules).unwrap();
    let seen = tcp(rig.lan.netns(), at(NODE[0], 9999)).unwrap().peer;
    assert_eq!(seen.to_string(), OUTSIDE[0]);
}
