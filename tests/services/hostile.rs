//! Objects that no API server should admit, next to one that it should.

use serde_json::{Value, json};

use crate::rig::{FAMILIES, NODE, NODE_NAME, POD_PORT, Rig, at, cluster_ips, service, slice};
use crate::traffic::tcp;

/// A slice with one endpoint for each of these addresses.
fn endpoints(service: &str, family: usize, addresses: &[&str]) -> Value {
    let endpoint =
        |address: &&str| json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": NODE_NAME});
    slice(service, family, addresses.iter().map(endpoint).collect())
}

/// Everything of a Service that can be wrong in itself; what of it is told.
fn wrong_services(rig: &Rig) -> Vec<(Value, &'static str)> {
    let mut all = Vec::new();
    let mut add = |number: u8, change: &dyn Fn(&mut Value), told: &'static str| {
        let mut wrong = service(&format!("wrong{number}"), number, 0);
        change(&mut wrong);
        all.push((wrong, told));
    };
    let good = cluster_ips(1);
    add(20, &|s| s["spec"]["ports"][1]["port"] = 0.into(), "port 0");
    add(21, &|s| s["spec"]["ports"][1]["port"] = 70_000.into(), "port 70000");
    add(22, &|s| s["spec"]["ports"][1]["protocol"] = "IPIP".into(), "\"IPIP\"");
    add(
        23,
        &|s| s["spec"]["externalIPs"] = json!(["127.0.0.1", "169.254.169.254", "224.0.0.1", "not one"]),
        "169.254.169.254 is",
    );
    add(24, &|s| s["spec"]["externalIPs"] = json!([good[0], NODE[0]]), "10.96.0.1:80 TCP is served for default/web");
    add(25, &|s| s["spec"]["ports"][0]["nodePort"] = 30080.into(), "30080 TCP is served for default/web");
    add(
        26,
        &|s| {
            s["spec"]["type"] = "LoadBalancer".into();
            s["spec"]["loadBalancerSourceRanges"] = json!([" 192.0.2.0/24 ", "192.0.2.0", "10.0.0.0/33"]);
            s["status"] = json!({"loadBalancer": {"ingress": [{"ip": "0.0.0.0"}, {"ip": "198.51.100.77"}]}});
        },
        "\"10.0.0.0/33\" is not a network",
    );
    add(27, &|s| s["spec"]["clusterIPs"] = json!(["10.96.0.27"]), "is of a family that the Service does not have");
    all[7].0["spec"]["clusterIP"] = "10.96.0.27".into();
    all[7].0["spec"]["externalIPs"] = json!(["2001:db8::27"]);
    assert!(!rig.pods.is_empty());
    all
}

#[test]
fn bad_objects_are_told_of_once_and_cost_no_other_service() {
    let mut rig = Rig::started(1);
    rig.apply(&[service("web", 1, 30080)]);
    rig.apply(&rig.slices("web", &[0]));
    assert_eq!(rig.events(), []);
    for (wrong, told) in wrong_services(&rig) {
        for round in 0..2 {
            rig.apply(std::slice::from_ref(&wrong));
            let events = rig.events();
            let text = events.iter().map(|(_, of, message)| format!("{of}: {message}\n")).collect::<String>();
            assert_eq!(text.contains(told), round == 0, "round {round}: {told:?} in {text}");
        }
    }
    // Of what is wrong in part the rest is served, and what is right of a Service is not lost with it.
    for number in [20u8, 21, 22, 23, 24] {
        let name = format!("wrong{number}");
        rig.apply(&rig.slices(&name, &[0]));
        for family in FAMILIES {
            assert_eq!(tcp(&rig.node, at(&cluster_ips(number)[family], 80)).unwrap().who, "pod0", "{name}");
        }
    }
    for family in FAMILIES {
        assert_eq!(tcp(&rig.node, at(&cluster_ips(1)[family], 80)).unwrap().who, "pod0");
        assert_eq!(tcp(rig.lan.netns(), at(NODE[family], 30080)).unwrap().who, "pod0");
    }
}

#[test]
fn endpoints_that_would_reach_the_node_or_nobody_are_left_out() {
    let mut rig = Rig::started(2);
    rig.apply(&[service("web", 1, 0)]);
    let bad = ["127.0.0.1", "169.254.1.1", "224.0.0.5", "255.255.255.255", "0.0.0.0", "fd00::1", "ten", ""];
    let good = rig.pods[0].addresses[0].clone();
    // Zeros in front mean nothing; the same address twice is one endpoint.
    let zeros = good.split('.').map(|octet| format!("{octet:0>3}")).collect::<Vec<_>>().join(".");
    let mut all = bad.to_vec();
    all.extend([good.as_str(), zeros.as_str(), good.as_str()]);
    rig.apply(&[endpoints("web", 0, &all)]);
    let listed = rig.node.sh("nft list map ip nodelet endpoints").unwrap();
    let found: Vec<&str> = listed.lines().filter(|line| line.contains("tcp . 80")).collect();
    assert_eq!(found.len(), 1, "{listed}");
    assert!(found[0].contains(&format!("{good} . {POD_PORT}")), "{listed}");
    let events = rig.events();
    let [(reason, of, message)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((*reason, of.as_str()), ("InvalidEndpointSlice", "default/web"));
    for part in [
        "EndpointSlice web-IPv4",
        "127.0.0.1 is a loopback address",
        "169.254.1.1 is an address of one link",
        "and 3 more",
    ] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    // A change of the healthy endpoints does not tell it again.
    all.push(&rig.pods[1].addresses[0]);
    let both = endpoints("web", 0, &all);
    rig.apply(&[both]);
    assert_eq!(rig.events(), []);
}

#[test]
fn ten_thousand_ports_are_served_like_one() {
    let mut rig = Rig::started(1);
    let mut many = service("many", 1, 0);
    let mut slices = rig.slices("many", &[0]);
    // An API server takes so many of a Service; a slice has a hundred of them at most.
    many["spec"]["ports"] =
        (1..=10_000u16).map(|n| json!({"name": format!("p{n}"), "port": n, "protocol": "TCP"})).collect();
    slices[0]["ports"] =
        (1..=10_000u16).map(|n| json!({"name": format!("p{n}"), "port": POD_PORT, "protocol": "TCP"})).collect();
    rig.apply(&[many, slices.remove(0), service("web", 2, 0)]);
    rig.apply(&rig.slices("web", &[0]));
    for port in [1, 5000, 10_000] {
        assert_eq!(tcp(&rig.node, at(&cluster_ips(1)[0], port)).unwrap().who, "pod0");
    }
    assert_eq!(tcp(&rig.node, at(&cluster_ips(2)[0], 80)).unwrap().who, "pod0");
    assert_eq!(rig.events(), []);
}
