use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::ask::Sender;
use super::report::{EndpointReport, Reason};
use super::*;
use crate::service::index::Index;
use crate::service::select::Zones;
use crate::service::table::Tables;
use crate::service::walk::Maps;
use crate::service::walk::maps::RulesFound;
use crate::service::{Backend, Cidr, Local, Protocol, slim};
use crate::watch::WatchEvent;

mod packets;

/// A node with objects, whose kernel holds what it should.
struct World {
    settings: Settings,
    objects: Vec<Value>,
    zone: Option<&'static str>,
    leaving: Vec<IpAddr>,
    pods: Vec<LocalPod>,
}

fn typed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"))
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ask(name: &str, from: &str) -> Ask {
    let from = if from.is_empty() { Sender::Anybody } else { from.parse().unwrap() };
    Ask { service: key(name), port: None, protocol: None, from }
}

/// A Service with port 80, `spec` over it.
fn service(name: &str, cluster_ip: &str, spec: &Value) -> Value {
    let mut object = json!({
        "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
                 "selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    object
}

fn slice(of: &str, endpoints: &[Value]) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": format!("{of}-x"), "namespace": "default", "labels": {"kubernetes.io/service-name": of}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// An endpoint with an address that ends so, `more` over it.
fn endpoint(n: u8, node: &str, more: &Value) -> Value {
    let mut endpoint = json!({
        "addresses": [format!("10.244.0.{n}")], "nodeName": node, "conditions": {"ready": true},
        "targetRef": {"kind": "Pod", "name": format!("pod-{n}")},
    });
    for (field, value) in more.as_object().unwrap() {
        endpoint[field] = value.clone();
    }
    endpoint
}

fn plain(n: u8, node: &str) -> Value {
    endpoint(n, node, &json!({}))
}

fn unready(n: u8) -> Value {
    endpoint(n, "here", &json!({"conditions": {"ready": false}}))
}

const TERMINATING: [bool; 3] = [false, true, true];

fn conditions([ready, serving, terminating]: [bool; 3]) -> Value {
    json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
}

impl World {
    fn new(objects: &[Value]) -> Self {
        let settings = Settings {
            node_name: "here".into(),
            node_addresses: vec![address("10.0.0.5")],
            local: Local::Networks(vec![Cidr::parse("10.244.0.0/16").unwrap()]),
            ..Settings::default()
        };
        let (zone, leaving, pods) = Default::default();
        Self { settings, objects: objects.to_vec(), zone, leaving, pods }
    }

    /// What the watches have said of the objects.
    fn index(&self) -> Index {
        let mut index = Index::new(&self.settings);
        index.set_zone(self.zone);
        for object in &self.objects {
            match object["kind"].as_str() {
                Some("Service") => index.service_event(WatchEvent::Apply(typed::<slim::Service>(object))),
                _ => index.slice_event(WatchEvent::Apply(typed(object))),
            }
        }
        index.service_event(WatchEvent::InitDone);
        index.slice_event(WatchEvent::InitDone);
        index.pod_stops(&self.leaving);
        index
    }

    fn facts(&self, name: &str) -> Facts {
        self.facts_of(&self.index(), name)
    }

    fn facts_of(&self, index: &Index, name: &str) -> Facts {
        let is_it = |object: &&Value| object["kind"] == "Service" && object["metadata"]["name"] == name;
        let is_its = |object: &&Value| object["metadata"]["labels"]["kubernetes.io/service-name"] == name;
        let mut tables = Tables::new();
        tables.step(index, &mut index.keys(), usize::MAX);
        let rules = [RulesFound::Ours; 2];
        Facts {
            known: index.known(&key(name)),
            objects: Ok(Objects {
                service: self.objects.iter().find(is_it).map(typed),
                slices: self.objects.iter().filter(is_its).map(typed).collect(),
            }),
            held: Held { maps: Maps::of(&tables), rules, ..Held::default() },
            settings: self.settings.clone(),
            own: [address("127.0.0.1"), address("10.0.0.5")].into(),
            pods: self.pods.clone(),
            programming: Programming::default(),
        }
    }

    fn explain(&self, name: &str) -> Report {
        report(&self.facts(name), &ask(name, "")).unwrap()
    }
}

/// Results of all packets.
fn results(report: &Report) -> Vec<(&str, bool, &str)> {
    let fronts = report.ports.iter().flat_map(|port| &port.fronts);
    let packets = fronts.flat_map(|front| &front.packets);
    packets.map(|packet| (packet.from.as_str(), packet.passes, packet.result.as_str())).collect()
}

fn endpoints(report: &Report) -> Vec<&EndpointReport> {
    report.ports.iter().flat_map(|port| &port.endpoints).collect()
}

/// What is wrong is this, each beginning so, and nothing else.
fn assert_wrong(report: &Report, expected: &[&str]) {
    let is_same = report.wrong.len() == expected.len()
        && report.wrong.iter().zip(expected).all(|(found, expected)| found.starts_with(expected));
    assert!(is_same, "expected {expected:#?}, found {:#?}", report.wrong);
}

#[test]
fn the_text_goes_from_the_service_over_endpoints_and_kernel_to_the_answer() {
    let spec = json!({
        "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}],
    });
    let all = [plain(5, "here"), endpoint(7, "there", &json!({"zone": "b"})), unready(8)];
    let world = World::new(&[service("web", "10.96.0.10", &spec), slice("web", &all)]);
    let expected = "\
Service default/web (NodePort), on node here
  internalTrafficPolicy Cluster, externalTrafficPolicy Local, no session affinity

Port 80/TCP (http)
  10.244.0.5:8080  pod pod-5  node here (this one)  ready      IN: ready
  10.244.0.7:8080  pod pod-7  node there, zone b    ready      IN: ready; from outside OUT: it is on node there, and externalTrafficPolicy is Local
  10.244.0.8:8080  pod pod-8  node here (this one)  not ready  OUT: it is not ready
  ClusterIP 10.96.0.10:80/TCP
    wanted   to one of 2 endpoints: 10.244.0.5:8080, 10.244.0.7:8080
    kernel   services: one of 2
             endpoints: slot 0 is 10.244.0.5:8080
             endpoints: slot 1 is 10.244.0.7:8080
             cluster-ips: 10.96.0.10
    passes   from a pod of this node: goes to one of 2 endpoints: 10.244.0.5:8080, 10.244.0.7:8080; the endpoint sees its source as it is
             by services: one of 2
  NodePort 10.0.0.5:30080/TCP
    wanted   from pods and this node: to one of 2 endpoints: 10.244.0.5:8080, 10.244.0.7:8080
             from outside: to 10.244.0.5:8080
    kernel   services: one of 2
             local-services: one of 1
             endpoints: slot 0 is 10.244.0.5:8080
             endpoints: slot 1 is 10.244.0.7:8080
             local-endpoints: slot 0 is 10.244.0.5:8080
    passes   from a pod of this node: goes to one of 2 endpoints: 10.244.0.5:8080, 10.244.0.7:8080; the endpoint sees its source as it is
             by services: one of 2
    passes   from outside: goes to 10.244.0.5:8080; the endpoint sees its source as it is
             by local-services: one of 1

Traffic passes.
";
    let report = world.explain("web");
    assert_eq!(text::text(&report), expected);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(serde_json::from_value::<Report>(json.clone()).unwrap(), report);
    assert_eq!(json["ports"][0]["endpoints"][1]["outside"]["reason"], "elsewhere");
}

#[test]
fn every_endpoint_is_listed_with_the_reason_for_which_it_is_in_or_out() {
    let hinted = |n, zone: &str| endpoint(n, "there", &json!({"hints": {"forZones": [{"name": zone}]}}));
    let bad = |address: &str| endpoint(9, "there", &json!({"addresses": [address]}));
    let local = json!({"internalTrafficPolicy": "Local"});
    for (what, spec, all, expected) in [
        ("ready and not", json!({}), vec![plain(1, "here"), unready(2)], vec![Reason::Ready, Reason::NotReady]),
        (
            "terminating ones while one is ready",
            json!({}),
            vec![
                plain(1, "here"),
                endpoint(2, "here", &conditions(TERMINATING)),
                endpoint(3, "here", &conditions([false, false, true])),
            ],
            vec![Reason::Ready, Reason::Terminating, Reason::NotReady],
        ),
        (
            "terminating ones alone",
            json!({}),
            vec![endpoint(2, "here", &conditions(TERMINATING))],
            vec![Reason::NothingElse],
        ),
        (
            "those of other nodes",
            local,
            vec![plain(1, "here"), plain(2, "there")],
            vec![Reason::Ready, Reason::Elsewhere],
        ),
        (
            "those of other zones",
            json!({}),
            vec![hinted(1, "a"), hinted(2, "b")],
            vec![Reason::Ready, Reason::OtherZone],
        ),
        (
            "those for other nodes",
            json!({}),
            vec![
                endpoint(1, "here", &json!({"hints": {"forNodes": [{"name": "here"}]}})),
                endpoint(2, "there", &json!({"hints": {"forNodes": [{"name": "there"}]}})),
            ],
            vec![Reason::Ready, Reason::OtherNode],
        ),
        (
            "addresses of no use, and one that is listed twice",
            json!({}),
            vec![
                plain(1, "here"),
                plain(1, "here"),
                bad("127.0.0.1"),
                bad("169.254.0.1"),
                bad("224.0.0.1"),
                bad("fd00::1"),
                bad("x"),
            ],
            [&[Reason::Ready, Reason::Duplicate][..], &[Reason::BadAddress; 5]].concat(),
        ),
        (
            "a pod that stops",
            json!({}),
            vec![plain(77, "here"), plain(2, "there")],
            vec![Reason::Terminating, Reason::Ready],
        ),
    ] {
        let mut world = World::new(&[service("web", "10.96.0.10", &spec), slice("web", &all)]);
        world.zone = Some("a");
        world.leaving = vec![address("10.244.0.77")];
        let report = world.explain("web");
        let found: Vec<Reason> = endpoints(&report).iter().map(|endpoint| endpoint.inside.reason).collect();
        assert_eq!(found, expected, "{what}: {report:#?}");
        // What is said is what is done.
        let said = endpoints(&report).into_iter().filter(|endpoint| endpoint.inside.is_in());
        let said: BTreeSet<_> = said.map(|e| Backend { address: address(&e.address), port: e.port.unwrap() }).collect();
        let done = world.facts("web").known.desired.into_values().next().unwrap().program;
        assert_eq!(said, done.all.backends().collect(), "{what}");
        assert_wrong(
            &report,
            if what == "terminating ones alone" { &["port 80/TCP is served by pods that terminate only"] } else { &[] },
        );
    }
}

#[test]
fn a_service_that_rules_do_not_serve_is_named_for_what_it_is() {
    let labelled = |label: &str| {
        let mut object = service("web", "10.96.0.10", &json!({}));
        object["metadata"]["labels"] = json!({ label: "x" });
        object
    };
    for (object, expected) in [
        (service("web", "None", &json!({})), "it is headless (clusterIP is None"),
        (service("web", "", &json!({"type": "ExternalName"})), "it is of type ExternalName"),
        (labelled("service.kubernetes.io/service-proxy-name"), "its label service.kubernetes.io/service-proxy-name"),
        (labelled("service.kubernetes.io/headless"), "its label service.kubernetes.io/headless"),
    ] {
        let report = World::new(&[object]).explain("web");
        assert_wrong(&report, &[&format!("this Service is not served by rules: {expected}")]);
        assert!(!report.passes && report.ports.is_empty(), "{report:?}");
    }
}

#[test]
fn where_endpoints_should_come_from_is_said_when_there_are_none() {
    let no_selector = service("web", "10.96.0.10", &json!({"selector": {}}));
    let with_selector = service("web", "10.96.0.10", &json!({}));
    let other_port = |name: &str| {
        let mut slice = slice("web", &[plain(1, "here")]);
        slice["ports"][0]["name"] = name.into();
        slice
    };
    let mut no_number = slice("web", &[plain(1, "here")]);
    no_number["ports"][0].as_object_mut().unwrap().remove("port");
    let mut names = slice("web", &[endpoint(1, "here", &json!({"addresses": ["a.example"]}))]);
    names["addressType"] = "FQDN".into();
    for (objects, expected) in [
        (
            vec![no_selector],
            vec![
                "the Service has no selector and no EndpointSlice; somebody has to write one with the label kubernetes.io/service-name=web",
            ],
        ),
        (
            vec![with_selector.clone()],
            vec![
                "the Service has no endpoints: no EndpointSlice names it, so no running pod has the labels app=web, or",
            ],
        ),
        (
            vec![with_selector.clone(), slice("web", &[])],
            vec!["the Service has no endpoints: no running pod has the labels app=web"],
        ),
        (
            vec![with_selector.clone(), other_port("web")],
            vec![
                "port 80/TCP has no endpoint, although there are some: its slice has not a port http for TCP: it has only web (8080/TCP); ",
            ],
        ),
        (
            vec![with_selector.clone(), no_number],
            vec![
                "port 80/TCP has no endpoint, although there are some: its slice has a port http for TCP, but no number for it; ",
            ],
        ),
        (
            vec![with_selector, names],
            vec![
                "EndpointSlice web-x is of no use: its slice has addresses of type FQDN, which no rule can serve",
                "port 80/TCP has no endpoint, although there are some: its slice has addresses of type FQDN",
            ],
        ),
    ] {
        let report = World::new(&objects).explain("web");
        assert_wrong(&report, &expected);
        assert!(!report.passes);
    }
}

#[test]
fn questions_without_an_answer_say_what_was_expected() {
    let spec = json!({"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]});
    let world = World::new(&[service("web", "10.96.0.10", &spec), slice("web", &[plain(1, "here")])]);
    let facts = world.facts("web");
    let refusal = |ask: &Ask| report(&facts, ask).unwrap_err().to_string();
    let port = |port, protocol| Ask { port: Some(port), protocol, ..ask("web", "") };
    assert_eq!(
        refusal(&port(PortAsked::Number(81), None)),
        "Service default/web has no port 81; it has 80/TCP (http), 53/UDP (dns)"
    );
    assert!(refusal(&port(PortAsked::Name("http".into()), Some(Protocol::Udp))).contains("no port http/UDP"));
    assert_eq!(report(&facts, &port(PortAsked::Name("dns".into()), None)).unwrap().ports.len(), 1);
    assert_eq!(
        refusal(&ask("web", "pod/x/y")),
        "there is no pod x/y on this node; give the address of a pod elsewhere: --from IP"
    );
    assert_eq!(
        refusal(&ask("web", "fd00::1")),
        "Service default/web has no address of the family of fd00::1, so nothing from there can reach it"
    );
    let mut facts = facts.clone();
    facts.pods.push(LocalPod { key: key("new"), addresses: Vec::new(), host_network: false });
    let refused = report(&facts, &ask("web", "pod/new")).unwrap_err().to_string();
    assert_eq!(refused, "pod default/new has no address yet, so nothing comes from it");
    let mut facts = world.facts("other");
    let refusal = |facts: &Facts| report(facts, &ask("other", "")).unwrap_err().to_string();
    assert!(refusal(&facts).starts_with("there is no Service default/other"));
    facts.objects = Err("timeout".into());
    assert!(refusal(&facts).ends_with("nobody can say whether there is one: timeout"));
}

#[test]
fn without_the_api_server_it_says_what_the_agent_keeps() {
    let objects =
        [service("web", "10.96.0.10", &json!({})), slice("web", &[plain(1, "here"), plain(2, "there"), unready(3)])];
    let mut facts = World::new(&objects).facts("web");
    facts.objects = Err("no route to host".into());
    let report = report(&facts, &ask("web", "")).unwrap();
    let place = |endpoint: &EndpointReport| (endpoint.node.clone(), endpoint.inside.is_in());
    let places: Vec<_> = endpoints(&report).into_iter().map(place).collect();
    assert_eq!(places, [(Some("here".into()), true), (None, true), (Some("here".into()), false)]);
    assert!(report.passes && report.notes[0].starts_with("the objects could not be read (no route to host)"));
}

#[test]
fn what_the_agent_has_not_seen_yet_is_said() {
    let objects = [service("web", "10.96.0.10", &json!({})), slice("web", &[plain(1, "here")])];
    let facts = World::new(&objects).facts("web");
    let explained = |change: &dyn Fn(&mut Objects)| {
        let mut facts = facts.clone();
        change(facts.objects.as_mut().unwrap());
        report(&facts, &ask("web", "")).unwrap()
    };
    let newer = slice("web", &[plain(1, "here"), plain(2, "here")]);
    let report = explained(&|objects| objects.slices = vec![typed(&newer)]);
    assert_wrong(&report, &["EndpointSlice web-x is not the same here as in the API"]);
    let newer = service("web", "10.96.0.10", &json!({"sessionAffinity": "ClientIP"}));
    let report = explained(&|objects| objects.service = Some(typed(&newer)));
    assert_wrong(&report, &["the Service is not the same here as in the API"]);
    let report = explained(&|objects| objects.service = None);
    assert_wrong(&report, &["the API has no such Service any more"]);
    let mut facts = facts.clone();
    (facts.known.service, facts.known.zones) = (None, Zones::default());
    assert_wrong(&super::report(&facts, &ask("web", "")).unwrap(), &["this agent has not seen the Service yet"]);
}

#[test]
fn addresses_that_are_not_served_are_named() {
    let spec = json!({"externalIPs": ["127.0.0.1", "198.51.100.9", "192.0.2.7", "fd00::7"]});
    let mut world = World::new(&[service("web", "10.96.0.10", &spec), slice("web", &[plain(1, "here")])]);
    world.settings.external_ip_ranges = Some(vec![Cidr::parse("192.0.2.0/24").unwrap()]);
    assert_wrong(
        &world.explain("web"),
        &[
            "left out: externalIP 127.0.0.1 is a loopback address; externalIP 198.51.100.9 is in none of the ranges that this node's configuration allows; ",
        ],
    );
    let node_port = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    world.objects[0] = service("web", "10.96.0.10", &node_port);
    world.settings.node_addresses.clear();
    assert_wrong(&world.explain("web"), &["the Service has NodePorts, but no address of this node serves them"]);
    let both = json!({"clusterIPs": ["10.96.0.10", "fd00:10::1"]});
    world.objects[0] = service("web", "10.96.0.10", &both);
    assert_wrong(&world.explain("web"), &["port 80/TCP has IPv6 addresses, but no endpoint has one"]);
}
