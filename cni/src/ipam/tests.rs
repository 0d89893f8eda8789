use std::collections::BTreeMap;
use std::fs;

use proptest::prelude::*;

use super::disk::DiskStore;
use super::fake::{FakeStore, Fault};
use super::*;
use crate::protocol::NetConf;

fn pool(extra: &str) -> Result<Pool, PoolError> {
    let json = format!(r#"{{"type":"nodelet-cni","cniVersion":"1.1.0","name":"pods",{extra}}}"#);
    Pool::from_conf(&serde_json::from_str::<NetConf>(&json).unwrap())
}

fn owner(number: usize) -> AttachmentId {
    AttachmentId { container_id: format!("c{number}"), ifname: "eth0".to_owned() }
}

fn add(store: &mut impl Store, pool: &Pool, number: usize) -> Result<Vec<String>, IpamError> {
    let reservation = reserve(store, pool, &owner(number), &[], 100, Vec::new)?;
    Ok(reservation.addresses.iter().map(|assigned| assigned.address.to_string()).collect())
}

#[test]
fn a_pod_gets_one_address_per_family_and_never_network_gateway_or_broadcast() {
    let pool = pool(r#""podCIDRs":["10.0.0.0/29","fd00::/64"]"#).unwrap();
    let mut store = FakeStore::default();
    for number in 0..5 {
        let expected = [format!("10.0.0.{}", number + 2), format!("fd00::{}", number + 2)];
        assert_eq!(add(&mut store, &pool, number).unwrap(), expected);
    }
    let error = add(&mut store, &pool, 5).unwrap_err();
    assert_eq!(error.to_string(), "no free address in 10.0.0.0/29: all 5 are leased");
}

#[test]
fn an_owner_that_reserves_again_gets_its_own_lease() {
    let pool = pool(r#""podCIDRs":["10.0.0.0/24"]"#).unwrap();
    let mut store = FakeStore::default();
    assert_eq!(add(&mut store, &pool, 1).unwrap(), add(&mut store, &pool, 1).unwrap());
    assert_eq!(reserve(&mut store, &pool, &owner(1), &[], 0, Vec::new).unwrap().origin, Origin::Found);
    assert_eq!(release(&mut store, &owner(1), 0, Vec::new).unwrap().len(), 1);
    assert_eq!(release(&mut store, &owner(1), 0, Vec::new).unwrap().len(), 0);
}

#[test]
fn a_freed_address_waits_until_the_range_was_walked() {
    let pool = pool(r#""podCIDRs":["10.0.0.0/29"]"#).unwrap();
    let mut store = FakeStore::default();
    let mut given = Vec::new();
    for number in 0..6 {
        given.extend(add(&mut store, &pool, number).unwrap());
        release(&mut store, &owner(number), 0, Vec::new).unwrap();
    }
    assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2"]);
}

#[test]
fn ranges_bound_what_is_given_and_a_set_falls_through_to_its_next_range() {
    let ranges = r#""ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.10","rangeEnd":"10.0.0.11",
        "gateway":"10.0.0.10"},{"subnet":"10.0.1.0/24"}]]"#;
    let pool = pool(ranges).unwrap();
    let mut store = FakeStore::default();
    assert_eq!(add(&mut store, &pool, 0).unwrap(), ["10.0.0.11"]);
    assert_eq!(add(&mut store, &pool, 1).unwrap(), ["10.0.1.2"]);
}

#[test]
fn wrong_ranges_name_the_field_and_the_value() {
    for (extra, expected) in [
        (r#""podCIDRs":[]"#, "neither podCIDRs nor ranges"),
        (r#""podCIDRs":["10.0.0.0/31"]"#, "10.0.0.0/31 is too small"),
        (r#""podCIDRs":["10.0.0.0/24","10.0.0.128/25"]"#, "10.0.0.128/25 overlaps"),
        (r#""ranges":[[]]"#, "a set of ranges is empty"),
        (r#""ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]"#, "different families"),
        (r#""ranges":[[{"subnet":"10.0.0.0/24","gateway":"10.0.1.1"}]]"#, "gateway 10.0.1.1 is not in subnet"),
        (r#""ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]"#, "above rangeEnd"),
    ] {
        let error = pool(extra).unwrap_err().to_string();
        assert!(error.contains(expected), "{extra}: {error}");
    }
}

#[test]
fn a_requested_address_is_given_only_when_free_and_inside() {
    let pool = pool(r#""podCIDRs":["10.0.0.0/24"]"#).unwrap();
    let mut store = FakeStore::default();
    let mut ask =
        |number, address: &str| reserve(&mut store, &pool, &owner(number), &[address.parse().unwrap()], 0, Vec::new);
    assert_eq!(ask(1, "10.0.0.77").unwrap().addresses[0].gateway.to_string(), "10.0.0.1");
    for (address, reason) in [("10.0.0.77", "leased already"), ("10.0.0.1", "reserved"), ("10.1.0.1", "in no range")] {
        assert!(ask(2, address).unwrap_err().to_string().contains(reason));
    }
}

#[test]
fn gc_takes_what_is_neither_valid_nor_young() {
    let pool = pool(r#""podCIDRs":["10.0.0.0/24"]"#).unwrap();
    let mut store = FakeStore::default();
    for number in 0..3 {
        reserve(&mut store, &pool, &owner(number), &[], 100 + number as u64 * 50, Vec::new).unwrap();
    }
    let stale = store.leases.take_stale(&[owner(0)], 210, 60);
    assert_eq!(stale.iter().map(|lease| lease.owner.clone().unwrap()).collect::<Vec<_>>(), [owner(1)]);
    assert!(store.leases.take_stale(&[], 10, 60).is_empty(), "a clock that was set back spares leases");
}

#[test]
fn leases_survive_reopening_and_a_second_opener_waits() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(r#""podCIDRs":["10.0.0.0/24"]"#).unwrap();
    let first = add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, 1).unwrap();
    assert_eq!(add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, 1).unwrap(), first);
    assert_ne!(add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, 2).unwrap(), first);
    let all: Vec<String> = std::thread::scope(|scope| {
        let add_one = |number| add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, number).unwrap();
        let threads: Vec<_> = (10..60).map(|number| scope.spawn(move || add_one(number))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), 50);
}

/// A full disk kept a pod's sandbox, because its address could not be given back; so the disk stayed full.
#[test]
fn giving_an_address_back_takes_no_room_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(r#""podCIDRs":["10.0.0.0/24"]"#).unwrap();
    let names = ["leases.json", "leases.new"];
    let sizes = || names.map(|name| fs::metadata(dir.path().join("pods").join(name)).unwrap().len());
    for number in 0..40 {
        add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, number).unwrap();
        let before = sizes();
        for turn in 0..2 {
            let mut store = DiskStore::open(dir.path(), "pods").unwrap();
            release(&mut store, &owner(number), 0, Vec::new).unwrap();
            assert_eq!(sizes(), before, "{turn}");
        }
        add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, number).unwrap();
    }
    assert_eq!(DiskStore::open(dir.path(), "pods").unwrap().load().unwrap().iter().count(), 40);
}

#[test]
fn a_torn_file_is_set_aside_and_rebuilt_from_the_routes_of_the_kernel() {
    let pool = pool(r#""podCIDRs":["10.0.0.0/24"]"#).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let given = add(&mut DiskStore::open(dir.path(), "pods").unwrap(), &pool, 1).unwrap();
    let path = dir.path().join("pods/leases.json");
    let whole = fs::read(&path).unwrap().trim_ascii_end().to_vec();
    let routes = || vec![(given[0].parse().unwrap(), host_ifname(&owner(1)))];
    for torn in [&whole[..whole.len() / 2], &[], &vec![0; whole.len()][..], &whole[..whole.len() - 1]] {
        fs::write(&path, torn).unwrap();
        let mut store = DiskStore::open(dir.path(), "pods").unwrap();
        // Another pod must not get the address of the first one, and the first one still finds and frees its own.
        let other = reserve(&mut store, &pool, &owner(2), &[], 0, routes).unwrap();
        assert_ne!(other.addresses[0].address.to_string(), given[0]);
        assert!(dir.path().join("pods/leases.damaged").exists());
        assert_eq!(release(&mut store, &owner(1), 0, Vec::new).unwrap(), [given[0].parse::<IpAddr>().unwrap()]);
        fs::remove_file(dir.path().join("pods/leases.damaged")).unwrap();
    }
}

#[derive(Debug, Clone)]
enum Op {
    Add(usize, Fault),
    Del(usize, Fault),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let fault = prop_oneof![4 => Just(Fault::None), 1 => Just(Fault::CrashBefore), 1 => Just(Fault::CrashAfter)];
    let op = (any::<bool>(), 0..12usize, fault);
    prop::collection::vec(op.prop_map(|(add, n, f)| if add { Op::Add(n, f) } else { Op::Del(n, f) }), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_of_adds_dels_and_crashes_gives_one_address_twice(ops in ops()) {
        let pool = pool(r#""podCIDRs":["10.0.0.0/28","fd00::/124"]"#).unwrap();
        let mut store = FakeStore::default();
        let mut held: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Add(number, fault) => {
                    store.fault = fault;
                    if let Ok(given) = add(&mut store, &pool, number) {
                        if let Some(before) = held.get(&number) {
                            prop_assert_eq!(before, &given);
                        }
                        held.insert(number, given);
                    }
                }
                Op::Del(number, fault) => {
                    store.fault = fault;
                    // A DEL that died may have released: its container must not count on the address any more.
                    let _ = release(&mut store, &owner(number), 0, Vec::new);
                    held.remove(&number);
                }
            }
            store.fault = Fault::None;
            let all: Vec<_> = held.values().flatten().collect();
            let distinct: std::collections::BTreeSet<_> = all.iter().collect();
            prop_assert_eq!(all.len(), distinct.len());
            let leased = store.leases.taken();
            prop_assert!(all.iter().all(|address| leased.contains(&address.parse().unwrap())));
            prop_assert_eq!(leased.len(), store.leases.iter().map(|lease| lease.addresses.len()).sum::<usize>());
        }
        // Nothing leaks: after a DEL of everyone the pool is whole.
        for number in 0..12 {
            release(&mut store, &owner(number), 0, Vec::new).unwrap();
        }
        prop_assert!(store.leases.taken().is_empty());
    }
}
