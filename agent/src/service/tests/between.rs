//! From one state of a cluster to another: `apply(diff(a, b), a) = b`, and what packets find on the way, batch by batch.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;

use super::objects::{Objects, name, service, slice, slim};
use super::virtual_kernel::Kernel;
use super::{fresh, settings};
use crate::ids::ObjectKey;
use crate::nft::batch::Batch;
use crate::service::index::{Index, Rank};
use crate::service::table::Tables;
use crate::service::walk::{End, Entry, Maps, Outcome, Packet, Rules};
use crate::service::{Backend, Cidr, Front, Local, Settings};
use crate::watch::WatchEvent;

/// A Service in one of its forms, and the forms of two slices; none where it is not there.
type Forms = (Option<u16>, Option<u16>, Option<u16>);

/// Two states: forms of each Service in the first one, and others in the second one where it changes.
fn two() -> impl Strategy<Value = Vec<(Forms, Option<Forms>)>> {
    let form = || prop::option::weighted(0.8, any::<u16>());
    let forms = move || (form(), form(), form());
    prop::collection::vec((forms(), prop::option::weighted(0.6, forms())), 1..6)
}

fn objects(all: impl Iterator<Item = Forms>) -> Objects {
    let mut objects = Objects::default();
    for (number, (of, first, second)) in (0..).zip(all) {
        objects.services.extend(of.map(|form| (number, service(number, form))));
        objects.slices.extend(first.map(|form| (2 * number, slice(2 * number, number, form))));
        objects.slices.extend(second.map(|form| (2 * number + 1, slice(2 * number + 1, number, form))));
    }
    objects
}

fn list(index: &mut Index, objects: &Objects) {
    index.service_event(WatchEvent::Restart);
    index.slice_event(WatchEvent::Restart);
    objects.services.values().for_each(|object| index.service_event(WatchEvent::InitApply(slim(object))));
    objects.slices.values().for_each(|object| index.slice_event(WatchEvent::InitApply(slim(object))));
    index.service_event(WatchEvent::InitDone);
    index.slice_event(WatchEvent::InitDone);
}

/// Programs everything that is pending, so many Services in a batch, and looks at the kernel after each.
fn program(kernel: &mut Kernel, tables: &mut Tables, index: &mut Index, chunk: usize, mut look: impl FnMut(&Kernel)) {
    let (mut pending, mut batch) = (index.take_dirty(), Batch::new());
    loop {
        tables.step(index, &mut pending, chunk);
        tables.write(&mut batch);
        kernel.commit(&mut batch);
        look(kernel);
        if pending.is_empty() {
            return;
        }
    }
}

/// Who has each front.
fn owners(index: &Index) -> BTreeMap<Front, ObjectKey> {
    let mut owners: BTreeMap<Front, (Rank, ObjectKey)> = BTreeMap::new();
    for key in index.keys() {
        for (front, claim) in index.desired(&key) {
            let right = (claim.rank, key.clone());
            let owner = owners.entry(front).or_insert_with(|| right.clone());
            *owner = right.min(owner.clone());
        }
    }
    owners.into_iter().map(|(front, (_, key))| (front, key)).collect()
}

/// Where a connection may go; none where all or some of it is turned away.
fn ends(outcome: Outcome) -> Option<BTreeSet<(Backend, bool)>> {
    let Outcome::To(choices) = outcome else { return None };
    let sent = |end: End| match end {
        End::Sent { masquerade } => Some(masquerade),
        End::Rejected | End::Dropped => None,
    };
    choices.into_iter().map(|choice| Some((choice.backend, sent(choice.end)?))).collect()
}

/// A process, a pod that serves, another pod, somebody in the allowed ranges, and somebody else.
fn packets(front: &Front) -> Vec<Packet> {
    let sources = match front.address {
        IpAddr::V4(_) => ["10.89.0.1", "10.244.0.1", "10.244.9.9", "192.0.2.7", "203.0.113.7"],
        IpAddr::V6(_) => ["fd89::1", "fd01::1", "fd01::99", "2001:db8::7", "2001:db8:9::7"],
    };
    let entry = |number: usize| if number == 0 { Entry::Process } else { Entry::Interface("eth0".into()) };
    let packet = |(number, source): (usize, &str)| Packet {
        entry: entry(number),
        source: source.parse().unwrap(),
        to: *front,
        remembered: None,
    };
    sources.into_iter().enumerate().map(packet).collect()
}

fn walk(maps: &Maps, packet: &Packet) -> Option<BTreeSet<(Backend, bool)>> {
    let cidrs = |texts: [&str; 2]| texts.map(|text| Cidr::parse(text).unwrap()).to_vec();
    let settings = Settings {
        local: Local::Networks(cidrs(["10.244.0.0/16", "fd01::/64"])),
        service_cidrs: cidrs(["10.96.0.0/16", "fd00::/64"]),
        ..settings()
    };
    let own = settings.node_addresses.clone();
    ends(Rules { maps, settings: &settings, own: &own }.walk(packet).outcome)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_state_on_the_way_turns_away_who_uses_an_unchanged_service(two in two(), restart in any::<bool>(), chunk in 1usize..4) {
        let unchanged: BTreeSet<ObjectKey> = (0..).zip(&two).filter(|(_, (_, other))| other.is_none()).map(|(n, _)| ObjectKey::new("default", name(n))).collect();
        let (a, b) = (objects(two.iter().map(|(a, _)| *a)), objects(two.iter().map(|(a, b)| b.unwrap_or(*a))));
        let (mut index, mut kernel, mut tables) = (Index::new(&settings()), Kernel::default(), Tables::new());
        list(&mut index, &a);
        program(&mut kernel, &mut tables, &mut index, usize::MAX, |_| ());
        let (before, maps) = (owners(&index), kernel.maps());
        prop_assert_eq!(&maps, &Maps::of(&tables), "the kernel holds what the model says");
        if restart {
            (index, tables) = (Index::new(&settings()), kernel.adopt());
        }
        list(&mut index, &b);
        let after = owners(&index);
        let is_kept = |(front, owner): &(Front, ObjectKey)| unchanged.contains(owner) && after.get(front) == Some(owner);
        let kept = before.into_iter().filter(is_kept).flat_map(|(front, _)| packets(&front));
        let kept: Vec<_> = kept.filter_map(|packet| Some((walk(&maps, &packet)?, packet))).collect();
        let mut seen = Vec::new();
        program(&mut kernel, &mut tables, &mut index, chunk, |kernel| seen.push(kernel.maps()));
        for (number, maps) in seen.iter().enumerate() {
            for (wanted, packet) in &kept {
                let found = walk(maps, packet);
                let endpoints = |ends: &BTreeSet<(Backend, bool)>| ends.iter().map(|(to, _)| *to).collect::<Vec<_>>();
                prop_assert_eq!(found.as_ref().map(endpoints), Some(endpoints(wanted)), "batch {} of {}: {:?}", number, seen.len(), packet);
                // Slices of other Services may say that the pod is elsewhere, and then it is not masked for itself.
                let is_itself = wanted.iter().any(|(to, _)| to.address == packet.source);
                if !is_itself && walk(&seen[seen.len() - 1], packet).as_ref() == Some(wanted) {
                    prop_assert_eq!(found.as_ref(), Some(wanted), "batch {} of {}: {:?}", number, seen.len(), packet);
                }
            }
        }
        prop_assert_eq!(kernel.maps(), Maps::of(&tables), "a with the difference is b");
        prop_assert_eq!(kernel.meaning(), fresh(&b, &settings()).meaning(), "and that is what a fresh agent makes of b");
    }
}
