//! Generated histories against a virtual kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use objects::{Objects, service, slice, slim};
use proptest::prelude::*;
use virtual_kernel::Kernel;

use super::index::Index;
use super::program::{Program, Way};
use super::refusal::Refused;
use super::table::Tables;
use super::{Backend, Front, Protocol, Settings};
use crate::ids::ObjectKey;
use crate::nft::batch::Batch;
use crate::watch::WatchEvent;

mod between;
mod objects;
mod virtual_kernel;

#[derive(Clone, Debug)]
enum Step {
    PutService(u8, u16),
    DeleteService(u8),
    PutSlice(u8, u8, u16),
    DeleteSlice(u8),
    /// Watches end; what happens until the next list is not told.
    Disconnect(Watches),
    Relist(Watches),
    /// A list that ends in the middle.
    BrokenList(Watches),
    /// The node has its first, its second, or both addresses.
    Addresses(u8),
    Commit,
    /// The agent dies after so many batches and starts again.
    Restart(u8),
    /// Somebody deletes an element of our table.
    Tamper(u16),
    /// The kernel refuses a front, or one part of it.
    Refuse(u16, bool),
    /// Time passes, and all that was refused is tried again.
    Retry,
}

/// That of Services, that of slices.
type Watches = [bool; 2];
const BOTH: Watches = [true; 2];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..4, any::<u16>()).prop_map(|(n, form)| Step::PutService(n, form)),
        1 => (0u8..4).prop_map(Step::DeleteService),
        6 => (0u8..5, 0u8..4, any::<u16>()).prop_map(|(n, of, form)| Step::PutSlice(n, of, form)),
        1 => (0u8..5).prop_map(Step::DeleteSlice),
        1 => any::<Watches>().prop_map(Step::Disconnect),
        1 => any::<Watches>().prop_map(Step::Relist),
        1 => any::<Watches>().prop_map(Step::BrokenList),
        1 => (1u8..4).prop_map(Step::Addresses),
        4 => Just(Step::Commit),
        1 => (0u8..4).prop_map(Step::Restart),
        1 => any::<u16>().prop_map(Step::Tamper),
        1 => any::<(u16, bool)>().prop_map(|(which, whole)| Step::Refuse(which, whole)),
        1 => Just(Step::Retry),
    ];
    prop::collection::vec(step, 0..40)
}

/// An agent with its API server and its kernel.
struct World {
    objects: Objects,
    index: Index,
    tables: Option<Tables>,
    kernel: Kernel,
    settings: Settings,
    connected: Watches,
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
        let mut world = Self::with(objects, settings());
        world.relist(BOTH, true);
        world.commit();
        world.steady = true;
        world
    }

    fn with(objects: Objects, settings: Settings) -> Self {
        let (index, kernel) = (Index::new(&settings), Kernel::default());
        Self { objects, index, tables: None, kernel, settings, connected: [false; 2], steady: false }
    }

    fn relist(&mut self, watches: Watches, to_the_end: bool) {
        let half = |count: usize| if to_the_end { count } else { count / 2 };
        if watches[0] {
            self.index.service_event(WatchEvent::Restart);
            for object in self.objects.services.values().take(half(self.objects.services.len())) {
                self.index.service_event(WatchEvent::InitApply(slim(object)));
            }
            self.connected[0] = to_the_end;
        }
        if watches[1] {
            self.index.slice_event(WatchEvent::Restart);
            for object in self.objects.slices.values().take(half(self.objects.slices.len())) {
                self.index.slice_event(WatchEvent::InitApply(slim(object)));
            }
            self.connected[1] = to_the_end;
        }
        if to_the_end && watches[0] {
            self.index.service_event(WatchEvent::InitDone);
        }
        if to_the_end && watches[1] {
            self.index.slice_event(WatchEvent::InitDone);
        }
    }

    /// What the programmer does when it is woken, in chunks as small as can be.
    fn commit(&mut self) {
        if self.commit_batches(usize::MAX) && self.index.has_synced() {
            let tables = self.tables.as_ref().expect("something was programmed");
            assert_eq!(self.kernel.sum(), tables.sum(), "the model's sum is that of the kernel");
            self.index.all_taken();
        }
    }

    /// Answers whether that was all.
    fn commit_batches(&mut self, limit: usize) -> bool {
        if !self.index.has_synced() {
            return true;
        }
        let is_fresh = self.tables.is_none();
        let mut tables = self.tables.take().unwrap_or_else(|| self.kernel.adopt());
        let mut pending = self.index.take_dirty();
        if is_fresh {
            pending.extend(self.index.keys());
        }
        let mut batch = Batch::new();
        for _ in 0..limit {
            tables.step(&self.index, &mut pending, 1);
            tables.write(&mut batch);
            self.kernel.commit(&mut batch);
            self.check_steady();
            if pending.is_empty() {
                self.tables = Some(tables);
                return true;
            }
        }
        false
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
        assert_eq!(program.all, Way::To([1, 2, 3].map(backend).into_iter().collect()));
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::PutService(n, form) => {
                let object = service(n, form);
                if self.connected[0] {
                    self.index.service_event(WatchEvent::Apply(slim(&object)));
                }
                self.objects.services.insert(n, object);
            }
            Step::DeleteService(n) => {
                if let Some(object) = self.objects.services.remove(&n).filter(|_| self.connected[0]) {
                    self.index.service_event(WatchEvent::Delete(slim(&object)));
                }
            }
            Step::PutSlice(n, of, form) => {
                let object = slice(n, of, form);
                if self.connected[1] {
                    self.index.slice_event(WatchEvent::Apply(slim(&object)));
                }
                self.objects.slices.insert(n, object);
            }
            Step::DeleteSlice(n) => {
                if let Some(object) = self.objects.slices.remove(&n).filter(|_| self.connected[1]) {
                    self.index.slice_event(WatchEvent::Delete(slim(&object)));
                }
            }
            Step::Disconnect(watches) => {
                self.connected.iter_mut().zip(watches).for_each(|(connected, ends)| *connected &= !ends);
            }
            Step::Relist(watches) => self.relist(watches, true),
            Step::BrokenList(watches) => self.relist(watches, false),
            Step::Addresses(bits) => {
                let all = settings().node_addresses.into_iter().enumerate();
                let some: Vec<IpAddr> = all.filter(|(n, _)| bits >> n & 1 == 1).map(|(_, address)| address).collect();
                self.settings.node_addresses.clone_from(&some);
                self.index.set_node_addresses(some);
            }
            Step::Commit => self.commit(),
            Step::Restart(batches) => {
                self.commit_batches(batches.into());
                (self.index, self.tables, self.connected) = (Index::new(&self.settings), None, [false; 2]);
            }
            Step::Tamper(which) => self.tamper(usize::from(which)),
            Step::Refuse(which, whole) => self.refuse(usize::from(which), whole),
            Step::Retry => self.retry(),
        }
    }

    /// The kernel refuses something of a front from now on; that is taken away, and nothing else.
    fn refuse(&mut self, which: usize, is_whole: bool) {
        let Some(tables) = &self.tables else { return };
        let steady = IpAddr::from([10, 96, 0, STEADY + 1]);
        let mut fronts: Vec<Front> = tables.fronts().filter(|front| front.address != steady).collect();
        fronts.sort();
        let Some(front) = which.checked_rem(fronts.len()).map(|at| fronts[at]) else { return };
        let parts = tables.program(&front).expect("it is installed").parts();
        let refused = match parts.first() {
            Some(part) if !is_whole => Refused::Parts([*part].into()),
            Some(_) | None => Refused::Whole,
        };
        self.index.refuse(front, refused.clone(), "no room", Instant::now());
        self.commit();
        let left = self.kernel.adopt().program(&front).map(Program::parts);
        match refused {
            Refused::Whole => assert_eq!(left, None),
            Refused::Parts(parts) => assert!(left.is_none_or(|left| left.is_disjoint(&parts))),
        }
    }

    fn retry(&mut self) {
        self.index.retry_refused(Instant::now() + Duration::from_secs(3600));
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
fn fresh(objects: &Objects, settings: &Settings) -> Kernel {
    let mut world = World::with(objects.clone(), settings.clone());
    world.relist(BOTH, true);
    world.commit();
    world.kernel
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_history_ends_in_the_ruleset_of_a_fresh_list(steps in steps()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.take(step));
        world.retry();
        world.relist(BOTH, true);
        world.commit();
        prop_assert_eq!(world.kernel.meaning(), fresh(&world.objects, &world.settings).meaning());
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
            let wanted = Way::To([Backend { address: [10, 244, 0, n + 1].into(), port: 8080 }].into_iter().collect());
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
    assert_eq!(world.kernel.meaning(), fresh(&world.objects, &world.settings).meaning());
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

/// The endpoints of a front in the kernel, of Services that have one each, of their number.
fn served(world: &World, address: IpAddr) -> Option<Way> {
    let front = Front { address, protocol: Protocol::Tcp, port: 80 };
    world.kernel.adopt().program(&front).map(|program| program.all.clone())
}

fn endpoint_of(n: u8) -> Option<Way> {
    Some(Way::To([Backend { address: [10, 244, 0, n + 1].into(), port: 8080 }].into_iter().collect()))
}

fn with_services(services: &[(u8, u16)]) -> World {
    let mut world = World::new();
    for (n, form) in services {
        world.take(Step::PutService(*n, *form));
        world.take(Step::PutSlice(*n, *n, 1 << (2 * *n)));
    }
    world.commit();
    world
}

#[test]
fn after_a_restart_nobody_has_the_cluster_ip_of_another_service_for_a_moment() {
    let mut world = with_services(&[(2, 0)]);
    let address: IpAddr = [10, 96, 0, 3].into();
    world.take(Step::Restart(0));
    // While the agent is away somebody claims it as an external address, and is looked at first.
    world.take(Step::PutService(1, 0b11_0000));
    world.take(Step::PutSlice(1, 1, 1 << 2));
    for batches in 1..4 {
        world.relist(BOTH, true);
        world.commit_batches(batches);
        assert_eq!(served(&world, address), endpoint_of(2), "after {batches} batches");
        world.take(Step::Restart(0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// An explanation names the Service that an address is lost to: each front belongs to the one that has no rival there.
    #[test]
    fn who_has_a_front_is_who_has_no_rival_for_it(forms in prop::collection::vec(any::<u16>(), 2..5)) {
        let numbered = || (0u8..).zip(&forms);
        let services = numbered().map(|(n, form)| (n, service(n, *form))).collect();
        let slices = numbered().map(|(n, _)| (n, slice(n, n, 0b01_10 << n))).collect();
        let mut world = World::with(Objects { services, slices }, settings());
        world.relist(BOTH, true);
        world.commit();
        let tables = world.tables.as_ref().unwrap();
        let mut owned = 0;
        for (key, known) in world.index.keys().iter().map(|key| (key, world.index.known(key))) {
            for (front, claim) in known.desired.iter().filter(|(front, _)| !known.rivals.contains_key(front)) {
                let installed = tables.program(front);
                prop_assert_eq!(Some(&claim.program.clone().arranged(installed)), installed, "{} at {:?}", key, front);
                owned += 1;
            }
        }
        prop_assert_eq!(owned, tables.fronts().count(), "each has one owner");
    }
}
