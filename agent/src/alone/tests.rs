use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ids::{ObjectKey, PodUid};
use crate::objects::Objects;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn service(name: &str, spec: Value) -> Service {
    let mut object = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"type": "ClusterIP", "selector": {"app": name}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}]}});
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

fn all(list: Vec<Service>) -> BTreeMap<ObjectKey, Service> {
    list.into_iter().map(|s| (key(s.metadata.name.as_deref().unwrap()), s)).collect()
}

fn ranges(cidrs: &[&str]) -> Ranges {
    Ranges::new(cidrs.iter().map(|c| c.parse().unwrap()).collect())
}

fn ip(assigned: &Assigned, name: &str) -> String {
    assigned.services[&key(name)].spec.as_ref().unwrap().cluster_ip.clone().unwrap()
}

#[test]
fn ranges_are_read_and_wrong_ones_are_explained() {
    let good: ServiceCidr = "10.96.3.4/16".parse().unwrap();
    assert_eq!(good.to_string(), "10.96.0.0/16");
    for (address, inside) in
        [("10.96.0.0", false), ("10.96.0.1", true), ("10.96.255.254", true), ("10.96.255.255", false)]
    {
        assert_eq!(good.contains(address.parse().unwrap()), inside, "{address}");
    }
    assert!(!good.contains("10.97.0.1".parse().unwrap()) && !good.contains("fd00::1".parse().unwrap()));
    for bad in ["10.96.0.0", "10.96.0.0/31", "10.96.0.0/33", "10.96.0/16", "fd00::/127", ""] {
        let error = bad.parse::<ServiceCidr>().unwrap_err();
        assert!(error.to_string().starts_with("expected a range such as 10.96.0.0/16"), "{error}");
    }
}

#[test]
fn addresses_are_kept_whatever_else_comes_and_goes() {
    let range = ranges(&["10.96.0.0/29"]);
    let first = assign(&all(vec![service("b", json!({}))]), &Remembered::default(), &range);
    let had = ip(&first, "b");
    // Newcomers, one of which asks for exactly this address.
    let services = all(vec![service("a", json!({"clusterIP": had})), service("b", json!({})), service("c", json!({}))]);
    let second = assign(&services, &first.remembered, &range);
    assert_eq!(ip(&second, "b"), had);
    assert!(!second.services.contains_key(&key("a")));
    assert_eq!(second.problems[0].reason, "ClusterIPAlreadyAllocated");
    assert_eq!(
        second.problems[0].message,
        format!("clusterIP {had} is used by Service default/b; choose another, or leave it out")
    );
}

#[test]
fn the_same_manifests_get_the_same_addresses_without_any_memory() {
    let services = all((0..20).map(|i| service(&format!("s{i}"), json!({"type": "NodePort"}))).collect());
    let range = ranges(&["10.96.0.0/16"]);
    let one = assign(&services, &Remembered::default(), &range);
    let two = assign(&services, &Remembered::default(), &range);
    assert_eq!(one.remembered, two.remembered);
    assert_eq!(one.remembered.services.len(), 20);
}

#[test]
fn wishes_outside_the_ranges_are_refused_with_what_to_do() {
    let range = ranges(&["10.96.0.0/16"]);
    let table = [
        (
            json!({"clusterIP": "10.1.0.1"}),
            "ClusterIPOutOfRange",
            "clusterIP 10.1.0.1 is not in the Service range 10.96.0.0/16",
        ),
        (json!({"ipFamilies": ["IPv6"]}), "ClusterIPNotValid", "this node has no IPv6 Service range"),
        (json!({"ipFamilyPolicy": "RequireDualStack"}), "ClusterIPNotValid", "RequireDualStack needs"),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "PortOutOfRange",
            "nodePort 80 is not in 30000 to 32767",
        ),
    ];
    for (spec, reason, message) in table {
        let assigned = assign(&all(vec![service("a", spec)]), &Remembered::default(), &range);
        assert!(assigned.services.is_empty());
        assert_eq!(assigned.problems[0].reason, reason);
        assert!(assigned.problems[0].message.contains(message), "{}", assigned.problems[0].message);
    }
}

#[test]
fn headless_and_external_services_get_no_address_and_dual_stack_two() {
    let range = ranges(&["10.96.0.0/16", "fd00::/112"]);
    let services = all(vec![
        service("headless", json!({"clusterIP": "None"})),
        service("external", json!({"type": "ExternalName", "externalName": "x.example"})),
        service("dual", json!({"ipFamilyPolicy": "PreferDualStack"})),
        service("six", json!({"ipFamilies": ["IPv6"]})),
    ]);
    let assigned = assign(&services, &Remembered::default(), &range);
    assert!(assigned.problems.is_empty(), "{:?}", assigned.problems);
    assert_eq!(ip(&assigned, "headless"), "None");
    assert_eq!(assigned.services[&key("external")].spec.as_ref().unwrap().cluster_ip, None);
    let dual = assigned.services[&key("dual")].spec.clone().unwrap();
    assert_eq!(dual.ip_families.unwrap(), ["IPv4", "IPv6"]);
    assert!(dual.cluster_ips.unwrap()[1].starts_with("fd00::"));
    assert!(ip(&assigned, "six").starts_with("fd00::"));
}

#[test]
fn a_full_range_is_said_and_nobody_else_is_harmed() {
    let range = ranges(&["10.96.0.0/30"]);
    let services = all((0..3).map(|i| service(&format!("s{i}"), json!({}))).collect());
    let assigned = assign(&services, &Remembered::default(), &range);
    assert_eq!((assigned.services.len(), assigned.problems.len()), (2, 1));
    assert_eq!(assigned.problems[0].reason, "ServiceCIDRFull");
}

#[test]
fn a_mistake_in_a_port_does_not_cost_the_address() {
    let range = ranges(&["10.96.0.0/16"]);
    let good = assign(&all(vec![service("a", json!({"type": "NodePort"}))]), &Remembered::default(), &range);
    let wrong = service("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 1}]}));
    let bad = assign(&all(vec![wrong]), &good.remembered, &range);
    assert!(bad.services.is_empty());
    let again = assign(&all(vec![service("a", json!({"type": "NodePort"}))]), &bad.remembered, &range);
    assert_eq!(ip(&again, "a"), ip(&good, "a"));
}

proptest! {
    /// Over any history: nothing is given twice, all is in range, and who stays keeps what it has.
    #[test]
    fn allocations_are_unique_in_range_and_stable(
        steps in prop::collection::vec(prop::collection::btree_map(0u8..12, (0u8..3, prop::option::of(1u8..14)), 0..10), 1..6)
    ) {
        let range = ranges(&["10.96.0.0/28"]);
        let mut memory = Remembered::default();
        let mut before: BTreeMap<String, (Value, String, i32)> = BTreeMap::new();
        for step in steps {
            let services = all(step.iter().map(|(n, (kind, wish))| {
                let mut spec = json!({"type": if *kind == 0 { "ClusterIP" } else { "NodePort" }});
                if let Some(wish) = wish {
                    spec["clusterIP"] = json!(format!("10.96.0.{wish}"));
                }
                service(&format!("s{n}"), spec)
            }).collect());
            let out = assign(&services, &memory, &range);
            prop_assert_eq!(out.services.len() + out.problems.len(), services.len());
            let mut ips = BTreeSet::new();
            let mut ports = BTreeSet::new();
            let mut now = BTreeMap::new();
            for (key, service) in &out.services {
                let spec = service.spec.as_ref().unwrap();
                let text = spec.cluster_ip.clone().unwrap();
                let address: IpAddr = text.parse().unwrap();
                prop_assert!("10.96.0.0/28".parse::<ServiceCidr>().unwrap().contains(address));
                prop_assert!(ips.insert(address), "{} given twice", address);
                let port = spec.ports.as_ref().unwrap()[0].node_port.unwrap_or(0);
                if port != 0 {
                    prop_assert!((30_000..=32_767).contains(&port) && ports.insert(port));
                }
                let declared = serde_json::to_value(&services[key]).unwrap();
                if let Some((old, ip, old_port)) = before.get(&key.to_string()) && *old == declared {
                    prop_assert_eq!((ip, *old_port), (&text, port));
                }
                now.insert(key.to_string(), (declared, text, port));
            }
            // Running it again changes nothing.
            let again = assign(&services, &out.remembered, &range);
            prop_assert_eq!(&again.remembered, &out.remembered);
            memory = out.remembered;
            before = now;
        }
    }
}

fn pod(name: &str, labels: Value, ips: &[&str], ready: bool) -> PodObserved {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": labels},
        "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8000 + name.len()}]}]}
    }))
    .unwrap();
    let status: PodStatus = serde_json::from_value(json!({
        "phase": "Running",
        "podIP": ips.first(),
        "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]
    }))
    .unwrap();
    PodObserved {
        uid: PodUid::new(format!("uid-{name}")),
        pod: Arc::new(pod),
        status: Arc::new(status),
        terminating: false,
    }
}

/// `(slice, port, [address ready serving terminating])`
fn shape(slices: &[EndpointSlice]) -> Vec<String> {
    let slice = |s: &EndpointSlice| {
        let ports = s.ports.iter().flatten().map(|p| p.port.unwrap().to_string()).collect::<Vec<_>>().join(",");
        let endpoints = s.endpoints.iter().flatten().map(|e| {
            let c = e.conditions.as_ref().unwrap();
            let flag = |f: Option<bool>, t: &str| if f == Some(true) { t.to_owned() } else { "-".to_owned() };
            format!("{}{}{}{}", e.addresses[0], flag(c.ready, " r"), flag(c.serving, "s"), flag(c.terminating, "t"))
        });
        format!("{} {ports}: {}", s.metadata.name.as_deref().unwrap(), endpoints.collect::<Vec<_>>().join(" | "))
    };
    slices.iter().map(slice).collect()
}

#[test]
fn endpoints_follow_selector_readiness_termination_and_families() {
    let app = json!({"app": "web", "extra": "1"});
    let mut stopping = pod("c", app.clone(), &["10.0.0.3"], true);
    stopping.terminating = true;
    let mut done = pod("d", app.clone(), &["10.0.0.4"], false);
    Arc::make_mut(&mut done.status).phase = Some("Succeeded".to_owned());
    let pods = [
        pod("a", app.clone(), &["10.0.0.1", "fd00::1"], true),
        pod("b", app.clone(), &["10.0.0.2"], false),
        stopping,
        done,
        pod("e", json!({"app": "other"}), &["10.0.0.5"], true),
        pod("f", app, &[], true),
    ];
    let node = NodeName::new("n");
    let table: [(Value, Vec<&str>); 5] = [
        (json!({"ipFamilies": ["IPv4"]}), vec!["web-ipv4 8080: 10.0.0.1 rs- | 10.0.0.2--- | 10.0.0.3-st"]),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            vec!["web-ipv4 8080: 10.0.0.1 rs- | 10.0.0.2--- | 10.0.0.3-st", "web-ipv6 8080: fd00::1 rs-"],
        ),
        (
            json!({"ipFamilies": ["IPv4"], "publishNotReadyAddresses": true}),
            vec!["web-ipv4 8080: 10.0.0.1 rs- | 10.0.0.2 rs- | 10.0.0.3 rst"],
        ),
        (json!({"selector": null}), vec![]),
        (json!({"type": "ExternalName"}), vec![]),
    ];
    for (spec, expected) in table {
        let found = slices(&service("web", spec.clone()), pods.iter(), &node);
        assert_eq!(shape(&found), expected, "{spec}");
    }
}

#[test]
fn pods_with_different_numbers_for_a_named_port_get_slices_of_their_own() {
    let pods = [
        pod("a", json!({"app": "web"}), &["10.0.0.1"], true),
        pod("bb", json!({"app": "web"}), &["10.0.0.2"], true),
        pod("c", json!({"app": "web"}), &["10.0.0.3"], true),
    ];
    let web = service("web", json!({"ipFamilies": ["IPv4"], "ports": [{"port": 80, "targetPort": "http"}]}));
    let found = slices(&web, pods.iter(), &NodeName::new("n"));
    assert_eq!(shape(&found), ["web-ipv4 8001: 10.0.0.1 rs- | 10.0.0.3 rs-", "web-ipv4-1 8002: 10.0.0.2 rs-"]);
    let labels = found[0].metadata.labels.as_ref().unwrap();
    assert_eq!(labels["kubernetes.io/service-name"], "web");
    let endpoint = &found[0].endpoints.as_ref().unwrap()[0];
    assert_eq!(endpoint.target_ref.as_ref().unwrap().name.as_deref(), Some("a"));
    assert_eq!(endpoint.node_name.as_deref(), Some("n"));
}

fn listed(services: Vec<Service>) -> Vec<ServiceUpdate> {
    let begin = [ServiceUpdate::Slice(WatchEvent::Restart), ServiceUpdate::Service(WatchEvent::Restart)];
    let middle = services.into_iter().map(|s| ServiceUpdate::Service(WatchEvent::InitApply(s)));
    let end = [ServiceUpdate::Slice(WatchEvent::InitDone), ServiceUpdate::Service(WatchEvent::InitDone)];
    begin.into_iter().chain(middle).chain(end).collect()
}

#[test]
fn nothing_is_told_before_pods_are_known_and_then_a_status_is_one_small_update() {
    let mut model = Model::new(ranges(&["10.96.0.0/16"]), Remembered::default(), NodeName::new("n"));
    for update in listed(vec![service("web", json!({})), service("other", json!({}))]) {
        model.service(update);
    }
    model.pod(PodUpdate::Status(pod("a", json!({"app": "web"}), &["10.0.0.1"], true)));
    let early = model.take();
    assert!(early.services.is_empty() && early.slices.is_empty(), "rules of running pods must not be taken down");
    assert!(early.remembered.is_some(), "addresses are kept before they are told");

    model.pod(PodUpdate::Synced);
    let first = model.take();
    let inits = first.services.iter().filter(|e| matches!(e, WatchEvent::InitApply(_))).count();
    assert_eq!((inits, first.slices.len()), (2, 3));
    assert!(matches!(first.slices.as_slice(), [WatchEvent::Restart, WatchEvent::InitApply(_), WatchEvent::InitDone]));

    model.pod(PodUpdate::Status(pod("a", json!({"app": "web"}), &["10.0.0.1"], false)));
    let change = model.take();
    assert!(change.services.is_empty());
    match change.slices.as_slice() {
        [WatchEvent::Apply(slice)] => assert_eq!(shape(std::slice::from_ref(slice)), ["web-ipv4 8080: 10.0.0.1---"]),
        other => panic!("{other:?}"),
    }
    model.pod(PodUpdate::Status(pod("a", json!({"app": "web"}), &["10.0.0.1"], false)));
    assert!(model.take().slices.is_empty(), "the same status again is no change");

    model.pod(PodUpdate::Gone(PodUid::new("uid-a")));
    assert!(matches!(model.take().slices.as_slice(), [WatchEvent::Delete(_)]));
}

#[test]
fn once_terminating_a_pod_stays_so() {
    let mut model = Model::new(ranges(&["10.96.0.0/16"]), Remembered::default(), NodeName::new("n"));
    listed(vec![service("web", json!({}))]).into_iter().for_each(|u| model.service(u));
    model.pod(PodUpdate::Synced);
    let mut stopping = pod("a", json!({"app": "web"}), &["10.0.0.1"], true);
    stopping.terminating = true;
    model.pod(PodUpdate::Status(stopping));
    model.pod(PodUpdate::Status(pod("a", json!({"app": "web"}), &["10.0.0.1"], true)));
    model.take();
    assert_eq!(shape(&model.snapshot().slices), ["web-ipv4 8080: 10.0.0.1-st"]);
}

#[test]
fn a_label_change_moves_a_pod_between_services() {
    let mut model = Model::new(ranges(&["10.96.0.0/16"]), Remembered::default(), NodeName::new("n"));
    listed(vec![service("web", json!({})), service("new", json!({}))]).into_iter().for_each(|u| model.service(u));
    model.pod(PodUpdate::Synced);
    model.pod(PodUpdate::Status(pod("a", json!({"app": "web"}), &["10.0.0.1"], true)));
    model.take();
    model.pod(PodUpdate::Status(pod("a", json!({"app": "new"}), &["10.0.0.1"], true)));
    model.take();
    assert_eq!(shape(&model.snapshot().slices), ["new-ipv4 8080: 10.0.0.1 rs-"]);
}

struct Log<K>(Arc<Mutex<Vec<WatchEvent<K>>>>);

impl<K: Send + 'static> WatchSink<K> for Log<K> {
    fn handle(&mut self, event: WatchEvent<K>) {
        self.0.lock().unwrap().push(event);
    }
}

#[tokio::test]
async fn addresses_survive_a_restart_and_a_corrupt_file_is_set_aside() {
    let dir = tempfile::TempDir::new().unwrap();
    let state_file = dir.path().join("state/alone.json");
    let run = async |services: Vec<Service>| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (changed, _changed) = mpsc::unbounded_channel();
        let objects = Arc::new(AloneObjects::new(changed));
        let outputs = Outputs {
            services: Box::new(JsonSink::<_, Value>::new(Log(log.clone()))),
            slices: Box::new(Log(Arc::default())),
            objects: objects.clone(),
            recorder: Recorder::new().0,
        };
        let cidr = "10.96.0.0/16".parse().unwrap();
        let settings =
            Settings { service_cidrs: vec![cidr], state_file: state_file.clone(), node_name: NodeName::new("n") };
        let alone = Alone::new(settings, outputs);
        let view = alone.view();
        let (manifests_tx, manifests) = mpsc::unbounded_channel();
        let (pods_tx, pods) = PodUpdates::new();
        listed(services).into_iter().for_each(|u| manifests_tx.send(u).unwrap());
        pods_tx.synced();
        let stop = CancellationToken::new();
        let task = tokio::spawn(alone.run(manifests, pods, stop.clone()));
        let env = objects.services("default").await.unwrap();
        stop.cancel();
        task.await.unwrap();
        let told = log.lock().unwrap().iter().filter(|e| matches!(e, WatchEvent::InitApply(_))).count();
        assert_eq!(told, env.len());
        assert_eq!(view.get().services.len(), env.len());
        env.into_iter().map(|s| (s.name, s.cluster_ip)).collect::<BTreeMap<_, _>>()
    };
    let first = run(vec![service("x", json!({"clusterIP": "10.96.7.7"}))]).await;
    assert_eq!(first["x"], "10.96.7.7");
    // The wish is gone from the manifest, the address stays.
    let second = run(vec![service("x", json!({}))]).await;
    assert_eq!(second, first);
    std::fs::write(&state_file, "{ not json").unwrap();
    let third = run(vec![service("x", json!({}))]).await;
    assert_ne!(third, first);
    let names = std::fs::read_dir(state_file.parent().unwrap()).unwrap();
    let names = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    assert!(names.iter().any(|n| n.starts_with("alone.json.corrupt-")), "{names:?}");
    assert_eq!(run(vec![service("x", json!({}))]).await, third);
}
