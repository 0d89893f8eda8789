//! Generated histories against a virtual kernel, which takes batches as the real one does: as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::index::Index;
use super::program::{Program, Way};
use super::structure::{Numbered, SETS, SetName};
use super::table::{Adoption, Sum, Tables};
use super::{Backend, Front, Protocol, Settings};
use crate::ids::ObjectKey;
use crate::nft::Family;
use crate::nft::batch::Batch;
use crate::nft::decode::{self, ElementData, Raw};
use crate::watch::WatchEvent;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[derive(Clone, Debug, PartialEq)]
enum Data {
    None,
    Value(Vec<u8>),
    Chain(String),
    Drop,
}

/// By key: the end of a range, and what it maps to.
type Elements = BTreeMap<Vec<u8>, (Option<Vec<u8>>, Data)>;
/// Programs, and the elements that belong to no front.
type Meaning = (BTreeMap<Front, Program>, BTreeSet<(Family, SetName, Vec<u8>)>);

#[derive(Clone, Debug, Default)]
struct Kernel {
    sets: BTreeMap<(Family, SetName), Elements>,
    chains: BTreeSet<(Family, Numbered)>,
}

impl Kernel {
    /// Takes a batch; panics where the real one would refuse it.
    fn commit(&mut self, batch: &mut Batch) {
        for (kind, _, body) in decode::messages(batch.finish()) {
            let family = if body[0] == 2 { Family::V4 } else { Family::V6 };
            let body = &body[4..];
            match kind & 0xff {
                3 => {
                    let name = decode::string(body, 3).unwrap();
                    self.chains.extend(Numbered::parse(name).map(|chain| (family, chain)));
                }
                12 | 14 => {
                    let name = decode::string(body, 2).unwrap();
                    let set = SETS.into_iter().find(|set| set.name() == name).unwrap();
                    for raw in decode::elements(body) {
                        self.element(kind & 0xff == 12, family, set, &raw);
                    }
                }
                _ => {}
            }
        }
        batch.clear();
    }

    fn element(&mut self, is_new: bool, family: Family, set: SetName, raw: &Raw<'_>) {
        let elements = self.sets.entry((family, set)).or_default();
        if !is_new {
            assert!(elements.remove(raw.key).is_some(), "ENOENT: {set:?} has no {:?}", raw.key);
            return;
        }
        let data = match raw.data {
            ElementData::None => Data::None,
            ElementData::Value(value) => Data::Value(value.to_vec()),
            ElementData::Chain(name) => {
                let chain = Numbered::parse(name).unwrap();
                assert!(self.chains.contains(&(family, chain)), "ENOENT: no chain {name}");
                Data::Chain(name.to_owned())
            }
            ElementData::Drop => Data::Drop,
        };
        let old = elements.insert(raw.key.to_vec(), (raw.end.map(<[u8]>::to_vec), data));
        assert_eq!(old, None, "EEXIST in {set:?}");
    }

    fn dump(&self, mut each: impl FnMut(Family, SetName, &Raw<'_>)) {
        for (family, set) in FAMILIES.into_iter().flat_map(|family| SETS.map(|set| (family, set))) {
            for (key, (end, data)) in self.sets.get(&(family, set)).into_iter().flatten() {
                let data = match data {
                    Data::None => ElementData::None,
                    Data::Value(value) => ElementData::Value(value),
                    Data::Chain(name) => ElementData::Chain(name),
                    Data::Drop => ElementData::Drop,
                };
                each(family, set, &Raw { key, end: end.as_deref(), data });
            }
        }
    }

    fn adopt(&self) -> Tables {
        let mut adoption = Adoption::default();
        self.chains.iter().for_each(|(family, chain)| adoption.chain(*family, &chain.name()));
        self.dump(|family, set, raw| adoption.element(family, set, raw));
        if adoption.needs_second_pass() {
            self.dump(|family, set, raw| adoption.element_again(family, set, raw));
        }
        adoption.finish()
    }

    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        self.dump(|family, set, raw| sum.add(family, set, raw));
        sum
    }

    /// What it holds, with endpoints in no particular slots, and the elements of the shared sets.
    fn meaning(&self) -> Meaning {
        let tables = self.adopt();
        let sorted = |way: &Way| match way {
            Way::To(backends) => Way::To(backends.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()),
            Way::Reject => Way::Reject,
            Way::Drop => Way::Drop,
        };
        let programs = tables.programs().map(|(front, program)| {
            let mut sources = program.sources.clone();
            sources.iter_mut().for_each(|sources| sources.sort());
            let local = program.local.as_ref().map(sorted);
            (*front, Program { all: sorted(&program.all), local, sources, ..program.clone() })
        });
        let programs = programs.collect();
        let mut shared = BTreeSet::new();
        self.dump(|family, set, raw| {
            if matches!(set, SetName::ClusterIps | SetName::Hairpin) {
                shared.insert((family, set, raw.key.to_vec()));
            }
        });
        (programs, shared)
    }
}

/// What the API server has: Services and slices by number.
#[derive(Clone, Debug, Default)]
struct Objects {
    services: BTreeMap<u8, Value>,
    slices: BTreeMap<u8, Value>,
}

fn name(number: u8) -> String {
    format!("s{number}")
}

/// One of many forms of a Service. Some of them claim an address of another Service.
fn service(number: u8, form: u16) -> Value {
    let bit = |n: u16| form >> n & 1 == 1;
    let mut ips = vec![format!("10.96.0.{}", number + 1)];
    if bit(0) {
        ips.push(format!("fd00::{}", number + 1));
    }
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port, "nodePort": if bit(1) { 30000 + u16::from(number) } else { 0 }});
    let mut ports = vec![port("web", "TCP", 80)];
    if bit(2) {
        ports.push(port("dns", "UDP", 53));
    }
    let external = [vec![], vec!["198.51.100.9".to_owned()], vec!["10.96.0.1".to_owned()], vec!["fd00::9".to_owned()]];
    json!({
        "metadata": {"name": name(number), "namespace": "default"},
        "spec": {
            "type": if bit(3) { "LoadBalancer" } else { "ClusterIP" }, "clusterIP": ips[0], "clusterIPs": ips, "ports": ports,
            "externalIPs": external[usize::from(form >> 4 & 3)],
            "sessionAffinity": if bit(6) { "ClientIP" } else { "None" },
            "externalTrafficPolicy": if bit(7) { "Local" } else { "Cluster" },
            "internalTrafficPolicy": if bit(8) { "Local" } else { "Cluster" },
            "loadBalancerSourceRanges": if bit(9) { json!(["10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"]) } else { json!([]) },
        },
        "status": {"loadBalancer": {"ingress": if bit(3) { json!([{"ip": "198.51.100.9"}, {"ip": format!("198.51.100.{number}")}]) } else { json!([]) }}},
    })
}

/// A slice with up to six endpoints in two bits each: absent, ready here, ready elsewhere, draining here.
fn slice(number: u8, of: u8, form: u16) -> Value {
    let v6 = form >> 12 & 1 == 1;
    let endpoints = (0..6u8).filter_map(|n| {
        let address = if v6 { format!("fd01::{}", n + 1) } else { format!("10.244.0.{}", n + 1) };
        let (ready, node) = match form >> (2 * n) & 3 {
            0 => return None,
            1 => (true, "here"),
            2 => (true, "there"),
            _ => (false, "here"),
        };
        Some(json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready, "serving": true, "terminating": !ready}}))
    });
    json!({
        "metadata": {"name": format!("slice{number}"), "namespace": "default", "labels": {"kubernetes.io/service-name": name(of)}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
    })
}

fn slim<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    PutService(u8, u16),
    DeleteService(u8),
    PutSlice(u8, u8, u16),
    DeleteSlice(u8),
    /// The watch ends; what happens until the next list is not told.
    Disconnect,
    Relist,
    /// A list that ends in the middle.
    BrokenList,
    Commit,
    /// The agent dies and starts again.
    Restart,
    /// Somebody deletes an element of our table.
    Tamper(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..4, any::<u16>()).prop_map(|(n, form)| Step::PutService(n, form)),
        1 => (0u8..4).prop_map(Step::DeleteService),
        6 => (0u8..5, 0u8..4, any::<u16>()).prop_map(|(n, of, form)| Step::PutSlice(n, of, form)),
        1 => (0u8..5).prop_map(Step::DeleteSlice),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Relist),
        1 => Just(Step::BrokenList),
        4 => Just(Step::Commit),
        1 => Just(Step::Restart),
        1 => any::<u16>().prop_map(Step::Tamper),
    ];
    prop::collection::vec(step, 0..40)
}

/// An agent with its API server and its kernel.
struct World {
    objects: Objects,
    index: Index,
    tables: Option<Tables>,
    kernel: Kernel,
    connected: bool,
    /// A Service that never changes.
    steady: bool,
}

fn settings() -> Settings {
    let node_addresses = ["10.89.0.1", "fd89::1"].map(|text| text.parse::<IpAddr>().unwrap());
    Settings { node_name: "here".into(), node_addresses: node_addresses.into(), ..Settings::default() }
}

const STEADY: u8 = 100;

impl World {
    fn new() -> Self {
        let mut objects = Objects::default();
        objects.services.insert(STEADY, service(STEADY, 0b111));
        objects.slices.insert(STEADY, slice(STEADY, STEADY, 0b01_01_01));
        let (index, kernel) = (Index::new(&settings()), Kernel::default());
        let mut world = Self { objects, index, tables: None, kernel, connected: false, steady: false };
        world.relist(true);
        world.commit();
        world.steady = true;
        world
    }

    fn relist(&mut self, to_the_end: bool) {
        self.index.service_event(WatchEvent::Restart);
        self.index.slice_event(WatchEvent::Restart);
        let half = |count: usize| if to_the_end { count } else { count / 2 };
        for object in self.objects.services.values().take(half(self.objects.services.len())) {
            self.index.service_event(WatchEvent::InitApply(slim(object)));
        }
        for object in self.objects.slices.values().take(half(self.objects.slices.len())) {
            self.index.slice_event(WatchEvent::InitApply(slim(object)));
        }
        if to_the_end {
            self.index.service_event(WatchEvent::InitDone);
            self.index.slice_event(WatchEvent::InitDone);
        }
        self.connected = to_the_end;
    }

    /// What the programmer does when it is woken, in chunks as small as can be.
    fn commit(&mut self) {
        if !self.index.has_synced() {
            return;
        }
        let is_fresh = self.tables.is_none();
        let mut tables = self.tables.take().unwrap_or_else(|| self.kernel.adopt());
        let mut pending = self.index.take_dirty();
        if is_fresh {
            pending.extend(self.index.keys());
        }
        let mut batch = Batch::new();
        loop {
            tables.step(&self.index, &mut pending, 1);
            tables.write(&mut batch);
            self.kernel.commit(&mut batch);
            self.check_steady();
            if pending.is_empty() {
                break;
            }
        }
        assert_eq!(self.kernel.sum(), tables.sum(), "the model's sum is that of the kernel");
        self.tables = Some(tables);
    }

    /// Every connection to the steady Service finds one of its endpoints.
    fn check_steady(&self) {
        if !self.steady {
            return;
        }
        let tables = self.kernel.adopt();
        let front = Front { address: [10, 96, 0, STEADY + 1].into(), protocol: Protocol::Tcp, port: 80 };
        let backend = |n: u8| Backend { address: [10, 244, 0, n].into(), port: 8080 };
        let program = tables.program(&front).expect("the steady Service is served");
        assert_eq!(program.all, Way::To([1, 2, 3].map(backend).into()));
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::PutService(n, form) => {
                let object = service(n, form);
                if self.connected {
                    self.index.service_event(WatchEvent::Apply(slim(&object)));
                }
                self.objects.services.insert(n, object);
            }
            Step::DeleteService(n) => {
                if let Some(object) = self.objects.services.remove(&n).filter(|_| self.connected) {
                    self.index.service_event(WatchEvent::Delete(slim(&object)));
                }
            }
            Step::PutSlice(n, of, form) => {
                let object = slice(n, of, form);
                if self.connected {
                    self.index.slice_event(WatchEvent::Apply(slim(&object)));
                }
                self.objects.slices.insert(n, object);
            }
            Step::DeleteSlice(n) => {
                if let Some(object) = self.objects.slices.remove(&n).filter(|_| self.connected) {
                    self.index.slice_event(WatchEvent::Delete(slim(&object)));
                }
            }
            Step::Disconnect => self.connected = false,
            Step::Relist => self.relist(true),
            Step::BrokenList => self.relist(false),
            Step::Commit => self.commit(),
            Step::Restart => {
                (self.index, self.tables, self.connected) = (Index::new(&settings()), None, false);
            }
            Step::Tamper(which) => self.tamper(usize::from(which)),
        }
    }

    /// Deletes an element, which the programmer notices and repairs.
    fn tamper(&mut self, which: usize) {
        let count: usize = self.kernel.sets.values().map(BTreeMap::len).sum();
        let Some(mut at) = which.checked_rem(count) else { return };
        for elements in self.kernel.sets.values_mut() {
            if let Some(key) = elements.keys().nth(at).cloned() {
                elements.remove(&key);
                break;
            }
            at -= elements.len();
        }
        if let Some(tables) = self.tables.take() {
            assert_ne!(self.kernel.sum(), tables.sum(), "a missing element shows");
        }
        let steady = std::mem::take(&mut self.steady);
        self.commit();
        self.steady = steady && self.index.has_synced();
    }
}

/// What a fresh agent makes of these objects in an empty kernel.
fn fresh(objects: &Objects) -> Kernel {
    let (index, kernel) = (Index::new(&settings()), Kernel::default());
    let mut world = World { objects: objects.clone(), index, tables: None, kernel, connected: false, steady: false };
    world.relist(true);
    world.commit();
    world.kernel
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_history_ends_in_the_ruleset_of_a_fresh_list(steps in steps()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.take(step));
        world.relist(true);
        world.commit();
        prop_assert_eq!(world.kernel.meaning(), fresh(&world.objects).meaning());
    }

    #[test]
    fn a_restart_without_changes_commits_nothing(forms in prop::collection::vec((any::<u16>(), any::<u16>()), 1..4)) {
        let mut world = World::new();
        for (n, (service, slice)) in (0..).zip(forms) {
            world.take(Step::PutService(n, service));
            world.take(Step::PutSlice(n, n, slice));
        }
        world.commit();
        let mut tables = world.kernel.adopt();
        let mut pending = world.index.keys();
        tables.step(&world.index, &mut pending, usize::MAX);
        let mut batch = Batch::new();
        tables.write(&mut batch);
        prop_assert!(batch.is_empty());
    }
}

#[test]
fn a_front_that_two_services_claim_goes_to_the_one_with_more_right_whoever_comes_first() {
    // s0 has the ClusterIP 10.96.0.1, s1 claims it as an external address.
    for order in [[0, 1], [1, 0]] {
        let mut world = World::new();
        for n in order {
            world.take(Step::PutService(n, if n == 1 { 0b10_0000 } else { 0 }));
            world.take(Step::PutSlice(n, n, 1 << (2 * n)));
            world.commit();
        }
        let front = Front { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port: 80 };
        let serves = |world: &World, n: u8| {
            let wanted = Way::To([Backend { address: [10, 244, 0, n + 1].into(), port: 8080 }].into());
            assert_eq!(world.kernel.adopt().program(&front).map(|program| &program.all), Some(&wanted));
        };
        serves(&world, 0);
        world.take(Step::DeleteService(0));
        world.commit();
        serves(&world, 1);
        assert!(world.index.keys().contains(&ObjectKey::new("default", "s1")));
    }
}

/// It kept the address although the other, who waited for it, had more right to it by then.
#[test]
fn a_service_that_loses_its_right_to_a_front_gives_it_to_the_one_that_waits() {
    let mut world = World::new();
    // Both are load balancers at 198.51.100.9 and the first name wins; then s0 only claims it as an external address.
    world.take(Step::PutService(2, 0b1000));
    world.take(Step::PutService(0, 0b1000));
    world.take(Step::PutSlice(2, 2, 1));
    world.commit();
    world.take(Step::PutService(0, 0b1_0000));
    world.commit();
    assert_eq!(world.kernel.meaning(), fresh(&world.objects).meaning());
}

/// Its NodePort answered in the other family, too, when somebody had made a slice for it.
#[test]
fn a_service_of_one_family_has_nothing_in_the_other() {
    let mut world = World::new();
    // With NodePort and the external address fd00::9; the slice has an address of IPv6.
    world.take(Step::PutService(0, 0b11_0010));
    world.take(Step::PutSlice(0, 0, 1 << 12 | 1));
    world.commit();
    let tables = world.kernel.adopt();
    let front = |address: &str, port| Front { address: address.parse().unwrap(), protocol: Protocol::Tcp, port };
    assert!(tables.program(&front("10.89.0.1", 30000)).is_some(), "its own family");
    assert!(tables.program(&front("fd89::1", 30000)).is_none());
    assert!(tables.program(&front("fd00::9", 80)).is_none());
}
