use std::convert::Infallible;

use proptest::prelude::*;

use super::*;
use crate::service::Protocol;
use crate::service::index::{Claim, Rank};

fn backend(n: u8) -> Backend {
    Backend { address: [10, 244, 0, n].into(), port: 80 }
}

fn front(port: u16) -> Front {
    Front { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port }
}

fn to(numbers: &[u8]) -> Way {
    Way::To(numbers.iter().map(|n| backend(*n)).collect())
}

fn desired(port: u16, program: Program) -> Desired {
    Desired::from([(front(port), Claim { program, rank: Rank::ClusterIp })])
}

proptest! {
    #[test]
    fn exactly_the_refused_items_are_sorted_out(count in 0usize..200, bad in prop::collection::btree_set(0usize..200, 0..12)) {
        let items: Vec<usize> = (0..count).collect();
        let takes = |some: &[usize]| Ok::<bool, Infallible>(!some.iter().any(|item| bad.contains(item)));
        let Ok((taken, refused)) = sort_out(&items, takes);
        prop_assert_eq!(refused, items.iter().copied().filter(|item| bad.contains(item)).collect::<Vec<_>>());
        prop_assert_eq!(taken, items.into_iter().filter(|item| !bad.contains(item)).collect::<Vec<_>>());
    }

    #[test]
    fn where_there_is_room_for_some_only_as_many_are_taken(count in 0usize..100, room in 0usize..100) {
        let items: Vec<usize> = (0..count).collect();
        let Ok((taken, refused)) = sort_out(&items, |some| Ok::<bool, Infallible>(some.len() <= room));
        prop_assert_eq!(taken.len(), count.min(room));
        prop_assert_eq!(refused.len(), count - count.min(room));
    }

    #[test]
    fn what_is_left_of_a_program_has_none_of_the_parts_and_all_others(all in prop::collection::btree_set(0u8..12, 0..8), local in prop::option::of(prop::collection::btree_set(0u8..12, 0..4)), bad in prop::collection::btree_set(0u8..12, 0..12)) {
        let way = |numbers: &BTreeSet<u8>| if numbers.is_empty() { Way::Reject } else { to(&numbers.iter().copied().collect::<Vec<_>>()) };
        let program = Program { all: way(&all), local: local.as_ref().map(way), ..Program::default() };
        let parts: BTreeSet<Part> = bad.iter().map(|n| Part::Backend(backend(*n))).collect();
        let expected: BTreeSet<Part> = program.parts().difference(&parts).copied().collect();
        let rest = program.without(&parts);
        prop_assert_eq!(rest.parts(), expected);
        for way in [Some(&rest.all), rest.local.as_ref()].into_iter().flatten() {
            prop_assert!(!matches!(way, Way::To(backends) if backends.is_empty()));
        }
    }
}

#[test]
fn too_many_refusals_are_not_looked_for_one_by_one() {
    let items: Vec<usize> = (0..10_000).collect();
    let mut tries = 0;
    let Ok((taken, refused)) = sort_out(&items, |_| {
        tries += 1;
        Ok::<bool, Infallible>(false)
    });
    assert_eq!((taken.len(), refused.len(), tries), (0, 10_000, TRIES));
}

#[test]
fn a_refused_part_is_left_out_until_it_is_tried_again_and_waits_longer_each_time() {
    let start = Instant::now();
    let mut refusals = Refusals::default();
    let parts = BTreeSet::from([Part::Backend(backend(2))]);
    let seen = |refusals: &Refusals| {
        let mut desired = desired(80, Program { all: to(&[1, 2]), ..Program::default() });
        refusals.leave_out(&mut desired);
        desired[&front(80)].program.all.count()
    };
    let mut now = start;
    for delay in [1, 2, 4] {
        refusals.note(front(80), Refused::Parts(parts.clone()), "No space left on device", now);
        assert_eq!(seen(&refusals), 1);
        now += Duration::from_secs(delay);
        assert_eq!(refusals.next_trial(), Some(now));
        assert!(refusals.try_again(now - Duration::from_millis(1)).is_empty());
        assert_eq!(refusals.try_again(now), [front(80)]);
        assert_eq!(seen(&refusals), 2, "on trial it is asked for");
    }
    assert_eq!(refusals.taken(), [front(80)]);
    assert!(refusals.is_empty());
    refusals.note(front(80), Refused::Whole, "Cannot allocate memory", now);
    assert_eq!(refusals.next_trial(), Some(now + DELAY), "what was taken in between begins anew");
}

#[test]
fn nobody_gets_in_where_all_sources_were_refused() {
    let source = Cidr::parse("192.0.2.0/24").unwrap();
    let program = Program { all: to(&[1]), sources: Some([source].into()), ..Program::default() };
    let rest = program.without(&BTreeSet::from([Part::Source(source)]));
    assert_eq!(rest.sources.as_deref(), Some([].as_slice()), "not the same as no limit");
}

#[test]
fn a_front_that_is_refused_as_a_whole_is_not_there_at_all() {
    let mut refusals = Refusals::default();
    refusals.note(front(80), Refused::Whole, "Cannot allocate memory", Instant::now());
    let mut all = desired(80, Program::default());
    all.extend(desired(81, Program::default()));
    refusals.leave_out(&mut all);
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), [front(81)]);
}
