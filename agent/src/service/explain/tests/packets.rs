//! What the kernel holds of a front, and what packets find there.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::service::host_ports::{self, HostPort};
use crate::service::program::{Element, View};
use crate::service::refusal::{Part, Refused};
use crate::service::{Front, Protocol};

#[test]
fn without_ready_endpoints_connections_are_refused() {
    let objects = [service("web", "10.96.0.10", &json!({})), slice("web", &[unready(1), unready(2)])];
    let report = World::new(&objects).explain("web");
    let refused = "refused with a TCP reset (\"connection refused\"): no endpoint serves";
    assert_eq!(results(&report), [("a pod of this node", false, refused)]);
    assert_wrong(&report, &["port 80/TCP: none of 2 endpoints serves: it is not ready (2)"]);
    assert!(!report.passes && text::text(&report).ends_with("Traffic does not pass.\n"));
    let udp = json!({"ports": [{"name": "http", "port": 53, "protocol": "UDP"}]});
    let report = World::new(&[service("web", "10.96.0.10", &udp)]).explain("web");
    assert_eq!(
        results(&report),
        [("a pod of this node", false, "refused with ICMP port unreachable: no endpoint serves")]
    );
}

#[test]
fn a_local_policy_without_endpoints_here_drops() {
    let external = json!({
        "type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000,
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    });
    let there = slice("web", &[plain(7, "there")]);
    let report = World::new(&[service("web", "10.96.0.10", &external), there.clone()]).explain("web");
    let passes = "goes to 10.244.0.7:8080; the endpoint sees its source as it is";
    let dropped = "dropped without an answer: no endpoint serves on this node, and externalTrafficPolicy is Local";
    assert_eq!(
        results(&report),
        [("a pod of this node", true, passes), ("a pod of this node", true, passes), ("outside", false, dropped)]
    );
    assert_wrong(
        &report,
        &[
            "port 80/TCP: externalTrafficPolicy is Local, and no endpoint that serves is on this node (1 elsewhere): what comes here from outside is dropped; load balancers learn that from the health check on port 32000",
        ],
    );
    let internal = json!({"internalTrafficPolicy": "Local"});
    let report = World::new(&[service("web", "10.96.0.10", &internal), there]).explain("web");
    let dropped = "dropped without an answer: no endpoint serves on this node, and internalTrafficPolicy is Local";
    assert_eq!(results(&report), [("a pod of this node", false, dropped)]);
    assert_wrong(&report, &["port 80/TCP: internalTrafficPolicy is Local"]);
}

#[test]
fn an_address_that_another_service_has_is_lost_to_it_by_name() {
    let external = |ip: &str| json!({"externalIPs": [ip]});
    let objects = [
        service("first", "10.96.0.1", &external("198.51.100.9")),
        slice("first", &[plain(1, "here")]),
        service("second", "10.96.0.2", &external("198.51.100.9")),
        slice("second", &[plain(2, "here")]),
    ];
    let world = World::new(&objects);
    let report = world.explain("second");
    assert_wrong(&report, &["external IP 198.51.100.9:80 belongs to Service default/first"]);
    let lost = "not for this Service but for Service default/first: goes to 10.244.0.1:8080; the endpoint sees an address of this node as its source, because externalTrafficPolicy is Cluster";
    assert_eq!(results(&report)[1..], [("a pod of this node", false, lost), ("outside", false, lost)]);
    assert!(!report.passes);
    let report = world.explain("first");
    assert_wrong(&report, &[]);
    assert!(report.passes);
}

fn front() -> Front {
    Front { address: address("10.96.0.10"), protocol: Protocol::Tcp, port: 80 }
}

fn empty(facts: &mut Facts, slot: u32) {
    facts.held.maps.endpoints.remove(&(View::All, front(), slot)).expect("a slot that is filled");
}

#[test]
fn what_the_kernel_lacks_or_has_too_much_is_named_and_packets_go_by_what_it_has() {
    let objects = [
        service("web", "10.96.0.10", &json!({})),
        slice("web", &[plain(1, "here"), plain(2, "here"), plain(3, "there")]),
    ];
    let facts = World::new(&objects).facts("web");
    let explained = |change: &dyn Fn(&mut Facts)| {
        let mut facts = facts.clone();
        change(&mut facts);
        report(&facts, &ask("web", "")).unwrap()
    };
    let report = explained(&|facts| facts.held.maps.services.clear());
    assert_wrong(&report, &["ClusterIP 10.96.0.10:80: the kernel lacks services: one of 3"]);
    assert_eq!(
        results(&report)[0].2,
        "refused with a TCP reset (\"connection refused\"): the kernel knows the ClusterIP, but not this port"
    );
    let report = explained(&|facts| empty(facts, 1));
    assert_wrong(&report, &["ClusterIP 10.96.0.10:80: the kernel lacks endpoints: slot 1 is 10.244.0.2:8080"]);
    assert_eq!(
        results(&report)[0],
        (
            "a pod of this node",
            true,
            "goes to one of 2 endpoints: 10.244.0.1:8080 (with 2 of 3 slots), 10.244.0.3:8080 (with 1 of 3 slots); the endpoint sees its source as it is"
        )
    );
    let report = explained(&|facts| empty(facts, 0));
    assert!(
        results(&report)[0].2.contains("at least sometimes: the kernel has no endpoint in the first slot")
            && !report.passes
    );
    let report = explained(&|facts| facts.held.maps.add(&Element::NoEndpoints(front())));
    assert_wrong(
        &report,
        &["ClusterIP 10.96.0.10:80: the kernel has, against what this agent wants, no-endpoints: refuse"],
    );
    let report = explained(&|facts| facts.held.maps = Maps::default());
    assert_eq!(results(&report)[0].2, "not taken for the Service: it goes on to 10.96.0.10 as it is");
    assert!(
        text::text(&report).contains("    kernel   nothing\n    lacks    cluster-ips: 10.96.0.10\n"),
        "{}",
        text::text(&report)
    );
    let report = explained(&|facts| facts.held.rules[0] = RulesFound::Changed);
    assert_wrong(&report, &["chains or rules of the table ip nodelet are not those of this agent"]);
    assert!(!report.passes, "who knows where packets go");
    let report =
        explained(&|facts| facts.programming = Programming { is_pending: true, error: Some("refused".into()) });
    assert_wrong(&report, &["the last commit failed: refused", "changes wait to be committed"]);
}

#[test]
fn endpoints_in_other_slots_are_no_drift() {
    let objects = [
        service("web", "10.96.0.10", &json!({})),
        slice("web", &[plain(1, "here"), plain(2, "here"), plain(3, "there")]),
    ];
    let mut facts = World::new(&objects).facts("web");
    let maps = &mut facts.held.maps;
    let slot = |slot: u32| (View::All, front(), slot);
    let (first, last) = (maps.endpoints[&slot(0)], maps.endpoints[&slot(2)]);
    maps.endpoints.extend([(slot(0), last), (slot(2), first)]);
    assert_wrong(&report(&facts, &ask("web", "")).unwrap(), &[]);
}

#[test]
fn the_sender_decides_what_it_finds_and_what_the_endpoint_sees() {
    let spec = json!({
        "type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "ports": [{"name": "http", "port": 80}],
    });
    let mut web = service("web", "10.96.0.10", &spec);
    web["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.1"}]);
    let mut world = World::new(&[web, slice("web", &[plain(1, "here"), plain(2, "there")])]);
    let pod = |name: &str, address: &str, host_network| LocalPod {
        key: key(name),
        addresses: vec![self::address(address)],
        host_network,
    };
    world.pods =
        vec![pod("own", "10.244.0.1", false), pod("client", "10.244.0.40", false), pod("host", "10.0.0.5", true)];
    let facts = world.facts("web");
    let all = "goes to one of 2 endpoints: 10.244.0.1:8080, 10.244.0.2:8080; the endpoint sees ";
    let not_allowed = "dropped without an answer: loadBalancerSourceRanges do not allow this source";
    let kept = format!("{all}its source as it is");
    let cluster = format!("{all}an address of this node as its source, because externalTrafficPolicy is Cluster");
    let other = format!("{all}an address of this node as its source, because it is not from a pod of this cluster");
    let hairpin =
        format!("{kept} (10.244.0.1:8080 sees an address of this node as its source, because it is the sender itself)");
    for (from, name, to_cluster_ip, to_load_balancer) in [
        ("pod/client", "pod default/client (10.244.0.40)", &kept, not_allowed),
        ("10.244.0.40", "pod default/client (10.244.0.40)", &kept, not_allowed),
        ("pod/default/own", "pod default/own (10.244.0.1)", &hairpin, not_allowed),
        ("pod/host", "pod default/host on the node's network (10.0.0.5)", &other, not_allowed),
        ("node", "a process of this node (10.0.0.5)", &other, not_allowed),
        ("10.244.9.9", "a pod of another node (10.244.9.9)", &kept, not_allowed),
        ("203.0.113.9", "outside (203.0.113.9)", &other, &cluster),
        ("192.0.2.9", "outside (192.0.2.9)", &other, not_allowed),
    ] {
        let report = report(&facts, &ask("web", from)).unwrap();
        let passes = to_load_balancer != not_allowed;
        assert_eq!(
            results(&report),
            [(name, true, to_cluster_ip.as_str()), (name, passes, to_load_balancer)],
            "{from}"
        );
        assert_eq!(report.passes, passes);
    }
    let report = report(&facts, &ask("web", "")).unwrap();
    let from: Vec<&str> = results(&report).into_iter().map(|(from, ..)| from).collect();
    assert_eq!(
        from,
        ["pod default/client (10.244.0.40)", "pod default/client (10.244.0.40)", "outside, from 203.0.113.0/24"]
    );
}

#[test]
fn a_client_that_is_remembered_goes_where_it_was() {
    let objects = [
        service("web", "10.96.0.10", &json!({"sessionAffinity": "ClientIP"})),
        slice("web", &[plain(1, "here"), plain(2, "here")]),
    ];
    let mut facts = World::new(&objects).facts("web");
    let last = Backend { address: address("10.244.0.2"), port: 8080 };
    facts.held.remembered.insert((front(), address("10.244.0.40")), last);
    let report = report(&facts, &ask("web", "10.244.0.40")).unwrap();
    assert_eq!(
        results(&report),
        [(
            "a pod of another node (10.244.0.40)",
            true,
            "goes to 10.244.0.2:8080, the endpoint that this client had last; the endpoint sees its source as it is"
        )]
    );
    assert_eq!(
        report.notes,
        [
            "session affinity keeps a client at its endpoint until 10800 s after its last connection; 1 client is remembered now"
        ]
    );
}

#[test]
fn who_else_has_an_address_may_be_a_pod() {
    let claims = service("web", "10.96.0.10", &json!({"externalIPs": ["10.0.0.5"]}));
    let world = World::new(&[claims, slice("web", &[plain(1, "here")])]);
    let mut index = world.index();
    let port = HostPort {
        address: None,
        protocol: Protocol::Tcp,
        port: 80,
        pod: Backend { address: address("10.244.0.9"), port: 80 },
    };
    index.set_host_addresses(vec![address("10.0.0.5")]);
    index.set_host_ports(&host_ports::key("shop", "edge", "uid"), vec![port]);
    let report = report(&world.facts_of(&index, "web"), &ask("web", "")).unwrap();
    assert_wrong(
        &report,
        &["external IP 10.0.0.5:80 belongs to the hostPort of pod shop/edge, which has more right to it"],
    );
    assert!(
        results(&report)[2]
            .2
            .starts_with("not for this Service but for the hostPort of pod shop/edge: goes to 10.244.0.9:80")
    );
    assert!(!report.passes);
}

#[test]
fn what_the_kernel_refuses_is_named_and_is_no_drift() {
    let world =
        World::new(&[service("web", "10.96.0.10", &json!({})), slice("web", &[plain(1, "here"), plain(2, "here")])]);
    let mut index = world.index();
    let part = Part::Backend(Backend { address: address("10.244.0.2"), port: 8080 });
    index.refuse(front(), Refused::Parts([part].into()), "No buffer space available", Instant::now());
    let report = report(&world.facts_of(&index, "web"), &ask("web", "")).unwrap();
    assert_wrong(
        &report,
        &[
            "the kernel refuses endpoints 10.244.0.2:8080 of 10.96.0.10:80 TCP (No buffer space available); it is asked again later",
        ],
    );
    assert!(
        report.passes && results(&report)[0].2.starts_with("goes to 10.244.0.1:8080;"),
        "the other one serves: {report:#?}"
    );
}
