//! `nodelet explain service` beside real connections: what it says of a packet is what happens to it.

use std::io;

use harness::netns::Netns;
use nodelet::ids::ObjectKey;
use nodelet::nft::socket::Kernel;
use nodelet::service::ServiceHandle;
use nodelet::service::explain::{Ask, Facts, Objects, Programming, Report, ask::Sender, report};
use nodelet::service::handle::Sight;
use nodelet::service::kernel;
use serde_json::Value;

use crate::rig::{POD_PORT, Rig, at, cluster_ips, service};
use crate::traffic::outcome;

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

fn look(rig: &Rig, name: &str) -> Sight {
    let handle = rig.handle().clone();
    rig.node.within(move || handle.look(&key(name))).unwrap().unwrap()
}

/// What is said of a Service, given it and its slices.
fn explained(sight: Sight, name: &str, objects: &[&Value], from: Sender) -> Report {
    let typed = |value: &&Value| serde_json::from_value((*value).clone()).unwrap();
    let slices = objects.iter().filter(|object| object["kind"] == "EndpointSlice");
    let service = objects.iter().find(|object| object["kind"] == "Service");
    let objects = Objects {
        service: service.map(|service| serde_json::from_value((*service).clone()).unwrap()),
        slices: slices.map(typed).collect(),
    };
    let Sight { known, settings, held, programming } = sight;
    let own = settings.node_addresses.clone();
    let facts = Facts { known, objects: Ok(objects), held, settings, own, pods: Vec::new(), programming };
    report(&facts, &Ask { service: key(name), port: None, protocol: None, from }).unwrap()
}

/// The same, asked from an address.
fn explain(sight: Sight, name: &str, objects: &[Value], from: &str) -> Report {
    explained(sight, name, &objects.iter().collect::<Vec<_>>(), from.parse().unwrap())
}

/// Where the kernel of a node differs from what is wanted, over all of these Services, and how many addresses were compared.
pub(crate) fn differences(netns: &Netns, handle: &ServiceHandle, objects: &[Value]) -> (Vec<String>, usize) {
    let (mut found, mut fronts) = (Vec::new(), 0);
    for service in objects.iter().filter(|object| object["kind"] == "Service") {
        let name = service["metadata"]["name"].as_str().unwrap();
        let is_its = |object: &&Value| object["metadata"]["labels"]["kubernetes.io/service-name"] == name;
        let its: Vec<&Value> = objects.iter().filter(is_its).chain([service]).collect();
        let sight = netns.within(|| handle.look(&key(name))).unwrap().unwrap();
        let report = explained(sight, name, &its, Sender::Anybody);
        let differs =
            ["the kernel lacks", "the kernel has", "of the table", "no table", "not the same here", "not seen"];
        let wrong = report.wrong.iter().filter(|text| differs.iter().any(|part| text.contains(part)));
        found.extend(wrong.map(|text| format!("{name}: {text}")));
        fronts += report.ports.iter().map(|port| port.fronts.len()).sum::<usize>();
    }
    (found, fronts)
}

fn has(texts: &[String], part: &str) -> bool {
    texts.iter().any(|text| text.contains(part))
}

#[test]
fn an_element_that_is_missing_from_the_kernel_is_named_and_the_packet_meets_what_is_said() {
    let mut rig = Rig::started(2);
    let mut objects = vec![service("web", 1, 0)];
    objects.extend(rig.slices("web", &[0]));
    rig.apply(&objects);
    let (to, from) = (at(&cluster_ips(1)[0], 80), rig.pods[1].addresses[0].clone());
    let pod = format!("{}:{POD_PORT}", rig.pods[0].addresses[0]);
    let whole = explain(look(&rig, "web"), "web", &objects, &from);
    assert_eq!(whole.wrong, Vec::<String>::new());
    assert!(whole.passes && whole.ports[0].fronts[0].packets[0].result.starts_with(&format!("goes to {pod}")));
    assert_eq!(outcome(&rig.pods[1].netns, to), "pod0");

    // Nobody is there who would repair it.
    let sight = look(&rig, "web");
    rig.stop();
    rig.node.sh(&format!("nft 'delete element ip nodelet services {{ {} . tcp . 80 }}'", to.ip())).unwrap();
    let (settings, fronts) = (sight.settings.clone(), sight.known.desired.keys().copied().collect());
    let read = move || -> io::Result<_> { kernel::held(&mut Kernel::open()?, &settings, &fronts) };
    let held = rig.node.within(read).unwrap().unwrap();
    let torn = explain(Sight { held, programming: Programming::default(), ..sight }, "web", &objects, &from);
    assert!(has(&torn.wrong, &format!("ClusterIP {to}: the kernel lacks services: one of 1")), "{torn:#?}");
    assert!(torn.ports[0].fronts[0].packets[0].result.starts_with("refused with a TCP reset"), "{torn:#?}");
    assert!(!torn.passes);
    assert_eq!(outcome(&rig.pods[1].netns, to), "refused");
}

#[test]
fn a_client_that_the_kernel_remembers_is_said_to_go_where_it_went() {
    let mut rig = Rig::started(3);
    let mut sticky = service("web", 1, 0);
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    let mut objects = vec![sticky];
    objects.extend(rig.slices("web", &[0, 1]));
    rig.apply(&objects);
    let to = at(&cluster_ips(1)[0], 80);
    let went = outcome(&rig.pods[2].netns, to);
    let number: usize = went.strip_prefix("pod").unwrap().parse().unwrap();
    let report = explain(look(&rig, "web"), "web", &objects, &rig.pods[2].addresses[0]);
    let expected =
        format!("goes to {}:{POD_PORT}, the endpoint that this client had last", rig.pods[number].addresses[0]);
    let packet = &report.ports[0].fronts[0].packets[0];
    assert!(packet.result.starts_with(&expected), "{report:#?}");
    assert!(has(&report.notes, "1 client is remembered now"), "{:?}", report.notes);
}

#[test]
fn rules_that_somebody_changed_are_no_basis_for_a_promise() {
    let mut rig = Rig::started(1);
    let mut objects = vec![service("web", 1, 0)];
    objects.extend(rig.slices("web", &[0]));
    rig.apply(&objects);
    let sight = look(&rig, "web");
    rig.stop();
    for (change, expected) in [
        ("flush chain ip nodelet pick", "chains or rules of the table ip nodelet are not those of this agent"),
        ("delete table ip6 nodelet", "the kernel has no table ip6 nodelet"),
    ] {
        rig.node.sh(&format!("nft {change}")).unwrap();
        let (settings, fronts) = (sight.settings.clone(), sight.known.desired.keys().copied().collect());
        let read = move || -> io::Result<_> { kernel::held(&mut Kernel::open()?, &settings, &fronts) };
        let held = rig.node.within(read).unwrap().unwrap();
        let report = explain(Sight { held, ..sight.clone() }, "web", &objects, "10.244.1.99");
        assert!(has(&report.wrong, expected) && !report.passes, "{change}: {report:#?}");
    }
}
