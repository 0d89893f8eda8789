use super::*;
use crate::service::{Egress, Protocol};

fn backend(n: u8) -> Backend {
    Backend { address: [10, 244, 0, n].into(), port: 8080 }
}

fn front() -> Front {
    Front { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port: 80 }
}

fn network(text: &str) -> Cidr {
    Cidr::parse(text).unwrap()
}

fn maps(elements: &[Element]) -> Maps {
    let mut maps = Maps::default();
    elements.iter().for_each(|element| maps.add(element));
    maps.cluster_ips.insert(front().address);
    maps
}

fn packet(source: &str) -> Packet {
    Packet { entry: Entry::Interface("eth0".into()), source: source.parse().unwrap(), to: front(), remembered: None }
}

fn endpoints(walk: &Walk) -> Vec<(u8, u32, End)> {
    let Outcome::To(choices) = &walk.outcome else { return Vec::new() };
    let number = |backend: &Backend| (1..9).find(|n| self::backend(*n) == *backend).unwrap();
    choices.iter().map(|choice| (number(&choice.backend), choice.slots, choice.end)).collect()
}

const SENT: End = End::Sent { masquerade: true };
const KEPT: End = End::Sent { masquerade: false };

#[test]
fn an_empty_slot_falls_to_the_first_one_and_without_that_nothing_is_called_served() {
    use Element::{Endpoint, Service};
    let pods = Settings { local: Local::Networks(vec![network("10.244.0.0/16")]), ..Settings::default() };
    let service = Service(View::All, front(), Verdict::Pick(3, false));
    let slot = |slot: u32, n: u8| Endpoint(View::All, front(), slot, backend(n));
    for (what, elements, expected) in [
        ("full", vec![service, slot(0, 1), slot(1, 2), slot(2, 3)], vec![(1, 1, KEPT), (2, 1, KEPT), (3, 1, KEPT)]),
        ("a slot beyond the count", vec![service, slot(0, 1), slot(7, 2)], vec![(1, 3, KEPT)]),
        ("the last is empty", vec![service, slot(0, 1), slot(1, 2)], vec![(1, 2, KEPT), (2, 1, KEPT)]),
        ("the first is empty", vec![service, slot(1, 2), slot(2, 3)], vec![]),
    ] {
        let maps = maps(&elements);
        let rules = Rules { maps: &maps, settings: &pods, own: &[] };
        let walk = rules.walk(&packet("10.244.0.9"));
        assert_eq!(endpoints(&walk), expected, "{what}");
        assert_eq!(walk.is_turned_away(), expected.is_empty(), "{what}: the address is a ClusterIP");
    }
}

#[test]
fn hits_tell_the_whole_way_in_order() {
    use Element::{Affinity, Allowed, Endpoint, Firewalled, Masquerade, Service};
    let maps = maps(&[
        Firewalled(front()),
        Allowed(front(), network("192.0.2.0/24")),
        Service(View::Local, front(), Verdict::Pick(1, true)),
        Endpoint(View::Local, front(), 0, backend(1)),
        Affinity(front(), 60),
        Masquerade(front()),
    ]);
    let settings = Settings::default();
    let rules = Rules { maps: &maps, settings: &settings, own: &[] };
    let text = |hits: &[Hit]| hits.iter().map(Hit::to_string).collect::<Vec<_>>();
    let walk = rules.walk(&packet("192.0.2.1"));
    assert_eq!(endpoints(&walk), [(1, 1, SENT)]);
    assert_eq!(
        text(&walk.hits),
        [
            "firewalled: 10.96.0.1 . Tcp . 80",
            "allowed: 10.96.0.1 . Tcp . 80 . 192.0.2.0/24",
            "local-services: 10.96.0.1 . Tcp . 80 : one of 1, the client's last one first",
        ]
    );
    let Outcome::To(choices) = &walk.outcome else { panic!("{walk:?}") };
    assert_eq!(
        text(&choices[0].hits),
        [
            "local-endpoints: 10.96.0.1 . Tcp . 80 . 0 : 10.244.0.1 . 8080",
            "affinities: 10.96.0.1 . Tcp . 80 : remember for 60 s",
            "masquerading: 10.96.0.1 . Tcp . 80",
        ]
    );
    let remembered = Packet { remembered: Some(backend(2)), ..packet("192.0.2.1") };
    assert_eq!(endpoints(&rules.walk(&remembered)), [(2, 1, SENT)], "whatever the slots say");
    let walk = rules.walk(&packet("198.51.100.1"));
    assert_eq!(walk.outcome, Outcome::Untranslated(End::Dropped));
    assert_eq!(text(&walk.hits), ["firewalled: 10.96.0.1 . Tcp . 80"]);
    let process = Packet { entry: Entry::Process, ..packet("192.0.2.1") };
    assert_eq!(rules.walk(&process).outcome, Outcome::Untranslated(End::Rejected), "it has no view of its own");
}

#[test]
fn what_pods_send_out_is_masked_and_what_stays_on_the_node_is_not() {
    let egress = Egress { pods: vec![network("10.244.0.0/24")], inside: vec![network("10.244.0.0/16")] };
    let settings = Settings {
        egress: Some(egress),
        local: Local::InterfacePrefix("pod".into()),
        service_cidrs: vec![network("10.96.0.0/16")],
        ..Settings::default()
    };
    let maps = maps(&[]);
    let own = ["10.0.0.5".parse().unwrap()];
    let rules = Rules { maps: &maps, settings: &settings, own: &own };
    for (to, expected) in [
        ("192.0.2.1", SENT),
        ("10.244.7.1", KEPT),
        ("224.0.0.1", KEPT),
        ("10.0.0.5", KEPT),
        ("10.96.0.1", End::Rejected),
        ("10.96.0.2", End::Dropped),
    ] {
        let to = Front { address: to.parse().unwrap(), ..front() };
        let walk = rules.walk(&Packet { to, ..packet("10.244.0.9") });
        assert_eq!(walk.outcome, Outcome::Untranslated(expected), "{to:?}");
        let Outcome::Untranslated(end) = rules.walk(&Packet { to, ..packet("10.244.9.9") }).outcome else { panic!() };
        assert_ne!(end, SENT, "{to:?}: a pod of another node is masked there");
    }
}
