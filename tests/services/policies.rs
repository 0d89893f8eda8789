//! Fields of Services that decide who is served by whom: flows over each of them, with real sockets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use harness::netns::Netns;
use serde_json::{Value, json};

use crate::rig::{FAMILIES, GATEWAY, NODE, OUTSIDE, Rig, at, cluster_ips, service, slice, until};
use crate::traffic::{self, outcome, tcp, udp};

const INGRESS: [&str; 2] = ["198.51.100.1", "2001:db8:1::1"];
const EXTERNAL: [&str; 2] = ["203.0.113.1", "2001:db8:2::1"];
const NODE_PORT: u16 = 30080;

/// All outcomes of a number of connections.
fn outcomes(from: &Netns, to: SocketAddr) -> BTreeSet<String> {
    (0..30).map(|_| outcome(from, to)).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A slice of a Service for a family: pods with the nodes that they are said to be on.
fn on_nodes(rig: &Rig, name: &str, pods: &[(usize, &str)]) -> Vec<Value> {
    let of = |family: usize| {
        let endpoint =
            |(pod, node): &(usize, &str)| json!({"addresses": [rig.pods[*pod].addresses[family]], "nodeName": node});
        slice(name, family, pods.iter().map(endpoint).collect())
    };
    FAMILIES.map(of).to_vec()
}

/// A load balancer with an address of each family, and external addresses.
fn balanced(name: &str, number: u8) -> Value {
    let mut service = service(name, number, NODE_PORT);
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["externalIPs"] = json!(EXTERNAL);
    service["status"] = json!({"loadBalancer": {"ingress": [{"ip": INGRESS[0], "ipMode": "VIP"}, {"ip": INGRESS[1]}]}});
    service
}

/// Sends what is for these addresses from outside to the node.
fn route_from_outside(rig: &Rig) {
    for (family, networks) in
        [("-4", ["198.51.100.0/24", "203.0.113.0/24"]), ("-6", ["2001:db8:1::/64", "2001:db8:2::/64"])]
    {
        let via = NODE[usize::from(family == "-6")];
        networks
            .iter()
            .for_each(|network| drop(rig.lan.netns().ip(&format!("{family} route add {network} via {via}")).unwrap()));
    }
}

#[test]
fn load_balancer_and_external_addresses_are_served_from_everywhere() {
    let mut rig = Rig::started(2);
    route_from_outside(&rig);
    rig.apply(&[balanced("web", 1)]);
    rig.apply(&rig.slices("web", &[0]));
    for family in FAMILIES {
        for address in [INGRESS[family], EXTERNAL[family]] {
            for from in [&rig.pods[0].netns, &rig.pods[1].netns, &rig.node, rig.lan.netns()] {
                let answer = tcp(from, at(address, 80)).unwrap();
                assert_eq!((answer.who.as_str(), answer.peer.to_string().as_str()), ("pod0", GATEWAY[family]));
                assert_eq!(udp(from, at(address, 53)).unwrap().who, "pod0");
            }
        }
    }
    rig.apply(&rig.slices("web", &[]));
    for address in [INGRESS[0], EXTERNAL[0]] {
        assert_eq!(outcome(rig.lan.netns(), at(address, 80)), "refused");
    }
}

#[test]
fn an_ingress_address_of_mode_proxy_and_one_of_no_load_balancer_are_left_to_others() {
    let mut rig = Rig::started(1);
    let mut proxied = balanced("web", 1);
    proxied["status"]["loadBalancer"]["ingress"] = json!([{"ip": INGRESS[0], "ipMode": "Proxy"}]);
    let mut former = balanced("former", 2);
    former["spec"]["type"] = "ClusterIP".into();
    former["spec"]["ports"] = json!([{"name": "web", "port": 80, "protocol": "TCP"}]);
    former["spec"]["externalIPs"] = json!([]);
    rig.apply(&[proxied, former]);
    rig.apply(&rig.slices("web", &[0]));
    rig.apply(&rig.slices("former", &[0]));
    for (family, address) in [("ip", INGRESS[0]), ("ip6", INGRESS[1])] {
        assert!(!rig.listing(family).contains(address));
    }
}

#[test]
fn source_ranges_limit_the_load_balancer_and_nothing_else() {
    let mut rig = Rig::started(2);
    route_from_outside(&rig);
    rig.apply(&rig.slices("web", &[0]));
    let outside = ["pod0", "dropped"];
    for (what, ranges, expected) in [
        ("none", vec![], outside[0]),
        ("all", vec!["0.0.0.0/0", "::/0"], outside[0]),
        ("its network, with spaces", vec![" 10.89.0.0/24 ", " fd89::/64"], outside[0]),
        ("a range within another", vec!["10.0.0.0/8", "10.89.0.0/24", "fd00::/8", "fd89::/64"], outside[0]),
        ("somebody else's", vec!["192.0.2.0/24", "2001:db8::/48"], outside[1]),
        ("its neighbour's", vec!["10.89.0.2/31", "fd89::2/127"], outside[1]),
    ] {
        let mut service = balanced("web", 1);
        service["spec"]["loadBalancerSourceRanges"] = json!(ranges);
        rig.apply(&[service]);
        for family in FAMILIES {
            let from = rig.lan.netns();
            assert_eq!(outcome(from, at(INGRESS[family], 80)), expected, "{what}");
            for (to, port) in [(EXTERNAL[family], 80), (NODE[family], NODE_PORT), (cluster_ips(1)[family].as_str(), 80)]
            {
                assert_eq!(outcome(from, at(to, port)), "pod0", "{what}: {to}");
            }
        }
    }
}

#[test]
fn external_traffic_policy_local_keeps_clients_and_uses_endpoints_here() {
    let mut rig = Rig::started(3);
    route_from_outside(&rig);
    let mut service = balanced("web", 1);
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    rig.apply(&[service]);
    rig.apply(&on_nodes(&rig, "web", &[(0, "node-a"), (1, "node-b")]));
    for family in FAMILIES {
        for (address, port) in [(NODE[family], NODE_PORT), (INGRESS[family], 80), (EXTERNAL[family], 80)] {
            let to = at(address, port);
            assert_eq!(outcomes(rig.lan.netns(), to), set(&["pod0"]), "{to} from outside");
            assert_eq!(tcp(rig.lan.netns(), to).unwrap().peer.to_string(), OUTSIDE[family]);
            assert_eq!(outcomes(&rig.pods[2].netns, to), set(&["pod0", "pod1"]), "{to} from a pod");
            assert_eq!(tcp(&rig.pods[2].netns, to).unwrap().peer, rig.address(2, family));
            assert_eq!(outcomes(&rig.node, to), set(&["pod0", "pod1"]), "{to} from the node");
        }
        let cluster = at(&cluster_ips(1)[family], 80);
        assert_eq!(outcomes(rig.lan.netns(), cluster), set(&["pod0", "pod1"]), "ClusterIPs have a policy of their own");
    }
    rig.apply(&on_nodes(&rig, "web", &[(1, "node-b")]));
    for family in FAMILIES {
        let to = at(NODE[family], NODE_PORT);
        assert_eq!(outcome(rig.lan.netns(), to), "dropped", "somebody serves elsewhere");
        assert_eq!(outcome(&rig.pods[2].netns, to), "pod1");
    }
    rig.apply(&on_nodes(&rig, "web", &[]));
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], NODE_PORT)), "refused", "nobody serves at all");
}

#[test]
fn internal_traffic_policy_local_uses_endpoints_here_for_the_cluster_ip_only() {
    let mut rig = Rig::started(3);
    let mut service = service("web", 1, NODE_PORT);
    service["spec"]["internalTrafficPolicy"] = "Local".into();
    rig.apply(&[service]);
    for (pods, internal, external) in [
        (&[(0, "node-a"), (1, "node-b")][..], &["pod0"][..], &["pod0", "pod1"][..]),
        (&[(1, "node-b")], &["dropped"], &["pod1"]),
        (&[], &["refused"], &["refused"]),
    ] {
        rig.apply(&on_nodes(&rig, "web", pods));
        for (index, ip) in cluster_ips(1).iter().enumerate() {
            for from in [&rig.pods[2].netns, &rig.node] {
                let tries = if internal == ["dropped"] { 1 } else { 30 };
                let found: BTreeSet<String> = (0..tries).map(|_| outcome(from, at(ip, 80))).collect();
                assert_eq!(found, set(internal), "{pods:?}");
            }
            assert_eq!(outcomes(&rig.pods[2].netns, at(NODE[index], NODE_PORT)), set(external), "{pods:?}");
        }
    }
}

#[test]
fn terminating_endpoints_here_serve_outside_clients_while_none_is_ready_here() {
    let mut rig = Rig::started(2);
    let mut service = service("web", 1, NODE_PORT);
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    let mut slices = on_nodes(&rig, "web", &[(0, "node-a"), (1, "node-b")]);
    for slice in &mut slices {
        slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    }
    rig.apply(&[service]);
    rig.apply(&slices);
    for family in FAMILIES {
        assert_eq!(outcomes(rig.lan.netns(), at(NODE[family], NODE_PORT)), set(&["pod0"]));
        assert_eq!(
            outcomes(&rig.node, at(&cluster_ips(1)[family], 80)),
            set(&["pod1"]),
            "ready ones elsewhere come first"
        );
    }
}

fn sticky(timeout: u32) -> Value {
    let mut service = service("web", 1, NODE_PORT);
    service["spec"]["sessionAffinity"] = "ClientIP".into();
    service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout}});
    service
}

#[test]
fn a_client_with_affinity_keeps_its_endpoint_until_that_is_gone() {
    let mut rig = Rig::started(4);
    rig.apply(&[sticky(10_800)]);
    rig.apply(&rig.slices("web", &[0, 1, 2]));
    for family in FAMILIES {
        let ip = cluster_ips(1)[family].clone();
        for (from, to) in [(3, at(&ip, 80)), (3, at(NODE[family], NODE_PORT))] {
            let from = &rig.pods[from].netns;
            let first = outcome(from, to);
            assert_eq!(outcomes(from, to), BTreeSet::from([first.clone()]), "{to}");
        }
        let client = crate::traffic::UdpClient::new(&rig.pods[3].netns, at(&ip, 53)).unwrap();
        let first = client.ask().unwrap().who;
        assert!((0..20).all(|_| udp(&rig.pods[3].netns, at(&ip, 53)).unwrap().who == first), "new UDP sockets");
        // Its endpoint goes: another one, and that from now on, also when the first comes back.
        let from = &rig.pods[3].netns;
        let first = outcome(from, at(&ip, 80));
        let rest: Vec<usize> = (0..3).filter(|n| format!("pod{n}") != first).collect();
        rig.apply(&rig.slices("web", &rest));
        let second = outcome(&rig.pods[3].netns, at(&ip, 80));
        assert_ne!(second, first);
        rig.apply(&rig.slices("web", &[0, 1, 2]));
        assert_eq!(outcomes(&rig.pods[3].netns, at(&ip, 80)), BTreeSet::from([second]));
    }
}

#[test]
fn other_clients_of_an_endpoint_that_stays_keep_it_while_others_go() {
    let mut rig = Rig::started(4);
    rig.apply(&[sticky(10_800)]);
    let to = at(&cluster_ips(1)[0], 80);
    rig.apply(&rig.slices("web", &[2]));
    let before = outcome(&rig.pods[3].netns, to);
    for pods in [&[0, 1, 2][..], &[1, 2], &[0, 2], &[2], &[0, 1, 2]] {
        rig.apply(&rig.slices("web", pods));
        assert_eq!(outcomes(&rig.pods[3].netns, to), BTreeSet::from([before.clone()]), "{pods:?}");
    }
}

#[test]
fn affinity_survives_a_restart_and_ends_with_its_timeout() {
    let mut rig = Rig::new(4);
    let mut objects = vec![sticky(2)];
    objects.extend(rig.slices("web", &[0, 1, 2]));
    rig.start(&objects);
    let to = at(&cluster_ips(1)[0], 80);
    let first = outcome(&rig.pods[3].netns, to);
    rig.stop();
    rig.start(&objects);
    // Every connection begins the time anew: over two timeouts nothing changes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let kept = harness::eventually::always(Duration::from_secs(4), "affinity", async || {
        let now = outcome(&rig.pods[3].netns, to);
        if now == first { Ok(()) } else { Err(now) }
    });
    runtime.block_on(kept).unwrap();
    until(Duration::from_secs(10), "the client to be forgotten", || {
        let map = rig.node.sh("nft list map ip nodelet affinity").unwrap();
        if map.contains("elements") { Err(map) } else { Ok(()) }
    });
    rig.apply(&[service("web", 1, NODE_PORT)]);
    assert_eq!(outcomes(&rig.pods[3].netns, to).len(), 3, "without affinity all serve");
}

#[test]
fn an_endpoint_in_the_network_of_the_node_is_remembered_too() {
    let mut rig = Rig::started(1);
    traffic::serve(&rig.node, "node", crate::rig::POD_PORT);
    rig.apply(&[sticky(10_800)]);
    let both = |family: usize| {
        let node = json!({"addresses": [NODE[family]], "nodeName": "node-a"});
        let pod = json!({"addresses": [rig.pods[0].addresses[family]], "nodeName": "node-a"});
        slice("web", family, vec![node, pod])
    };
    let slices = FAMILIES.map(both);
    rig.apply(&slices);
    for family in FAMILIES {
        let to = at(NODE[family], NODE_PORT);
        let first = outcome(rig.lan.netns(), to);
        assert_eq!(outcomes(rig.lan.netns(), to), BTreeSet::from([first]));
    }
}

#[test]
fn endpoints_for_our_zone_or_node_are_preferred() {
    let mut rig = Rig::started(3);
    rig.apply(&[service("web", 1, 0)]);
    let hinted = |hints: [Value; 3]| {
        let endpoint = |(pod, hints): (usize, Value)| json!({"addresses": [rig.pods[pod].addresses[0]], "hints": hints, "nodeName": "node-b"});
        slice("web", 0, hints.into_iter().enumerate().map(endpoint).collect())
    };
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let node = |name: &str| json!({"forNodes": [{"name": name}], "forZones": [{"name": "a"}]});
    let zones = hinted([zone("a"), zone("b"), zone("a")]);
    let nodes = hinted([node("node-b"), node("node-a"), node("node-b")]);
    let partly = hinted([zone("a"), Value::Null, zone("a")]);
    let to = at(&cluster_ips(1)[0], 80);
    rig.apply(&[zones]);
    assert_eq!(outcomes(&rig.node, to), set(&["pod0", "pod1", "pod2"]), "while our zone is unknown");
    rig.handle().set_zone(Some("a"));
    rig.settle();
    assert_eq!(outcomes(&rig.node, to), set(&["pod0", "pod2"]));
    rig.handle().set_zone(Some("c"));
    rig.settle();
    assert_eq!(outcomes(&rig.node, to), set(&["pod0", "pod1", "pod2"]), "nobody is for our zone");
    rig.handle().set_zone(Some("a"));
    rig.apply(&[partly]);
    assert_eq!(outcomes(&rig.node, to), set(&["pod0", "pod1", "pod2"]), "one has no hint");
    rig.apply(&[nodes]);
    assert_eq!(outcomes(&rig.node, to), set(&["pod1"]), "our node");
}

#[test]
fn node_ports_follow_the_addresses_of_the_node() {
    let mut rig = Rig::started(1);
    rig.node.ip("addr add 10.89.0.12/24 dev eth0").unwrap();
    rig.apply(&[service("web", 1, NODE_PORT)]);
    rig.apply(&rig.slices("web", &[0]));
    assert_eq!(outcome(rig.lan.netns(), at("10.89.0.12", NODE_PORT)), "refused");
    rig.handle().set_node_addresses(vec!["10.89.0.12".parse().unwrap()]);
    rig.settle();
    assert_eq!(outcome(rig.lan.netns(), at("10.89.0.12", NODE_PORT)), "pod0");
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], NODE_PORT)), "refused");
}

#[test]
fn what_an_api_server_would_not_admit_costs_nobody_else() {
    let mut rig = Rig::started(1);
    let mut bad = service("bad", 2, 0);
    bad["spec"]["clusterIPs"] = json!(["10.96.0.2", "127.0.0.1", "nonsense", "::1"]);
    bad["spec"]["externalIPs"] = json!(["127.0.0.53", "169.254.1.1", "224.0.0.1", "0.0.0.0", "fe80::1"]);
    bad["spec"]["ports"] = json!([{"name": "web", "port": 0}, {"name": "big", "port": 70000}, {"name": "odd", "port": 80, "protocol": "ICMP"}]);
    let wrong = ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "x"];
    let wrong = wrong.map(|address| json!({"addresses": [address]})).to_vec();
    let mut headless = service("headless", 3, 0);
    headless["spec"]["clusterIP"] = "None".into();
    headless["spec"]["clusterIPs"] = json!(["None"]);
    let mut others = service("others", 4, 0);
    others["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "somebody"});
    rig.apply(&[service("web", 1, 0), bad, headless, others]);
    rig.apply(&rig.slices("web", &[0]));
    rig.apply(&rig.slices("others", &[0]));
    rig.apply(&[slice("bad", 0, wrong.clone()), slice("bad", 1, wrong)]);
    assert_eq!(outcome(&rig.pods[0].netns, at(&cluster_ips(1)[0], 80)), "pod0");
    let listing = rig.listing("ip") + &rig.listing("ip6");
    for word in ["127.0.0", "169.254", "224.0.0.1", "fe80", "10.96.0.4"] {
        assert!(!listing.contains(word), "{word}");
    }
}
