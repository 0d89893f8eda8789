//! Verbs in every order, deaths, and many at once.

use std::collections::BTreeSet;
use std::path::Path;

use harness::netns::Netns;
use serde_json::json;

use crate::bench::{Bench, addresses};

#[test]
fn add_twice_is_an_error_that_leaves_the_first_attachment_alone() {
    let bench = Bench::new();
    let (pod, result) = bench.pod("a");
    let message = bench.call("ADD", "a", &pod.path(), &bench.conf()).error(102);
    assert!(message.contains("eth0 exists already"), "{message}");
    // The same interface for another container: also none of the first one's things may go.
    bench.call("ADD", "b", &pod.path(), &bench.conf()).error(102);
    bench.call("CHECK", "a", &pod.path(), &bench.conf_with(&result)).ok();
    assert_eq!(bench.leased().len(), 2);
}

#[test]
fn del_succeeds_twice_and_after_everything_is_gone() {
    let bench = Bench::new();
    let (pod, _) = bench.pod("a");
    bench.del("a", &pod.path());
    assert!(pod.ip("link show eth0").is_err(), "the interface is gone from the pod");
    bench.assert_clean("after DEL");
    bench.del("a", &pod.path());

    let (pod, _) = bench.pod("b");
    let path = pod.path();
    drop(pod);
    bench.del("b", &path);
    bench.assert_clean("after DEL without namespace");

    let (_pod, _) = bench.pod("c");
    bench.del("c", Path::new(""));
    bench.assert_clean("after DEL with empty CNI_NETNS");

    let (pod, _) = bench.pod("d");
    std::fs::remove_dir_all(bench.dir.path().join("pods")).unwrap();
    bench.del("d", &pod.path());
    bench.assert_clean("after DEL without leases");
    bench.del("never-added", Path::new("/run/netns/never-made"));
}

#[test]
fn a_plugin_killed_after_any_step_leaves_nothing_that_del_does_not_remove() {
    let bench = Bench::new();
    let mut step = 0;
    loop {
        let pod = Netns::new().unwrap();
        let killed = bench.add_killed_after(step, "a", &pod.path());
        assert_eq!(bench.leased().len(), 2, "the lease is written before the kernel is touched");
        bench.del("a", &pod.path());
        bench.assert_clean(&format!("after death at step {step}"));
        assert!(pod.ip("link show eth0").is_err());
        if killed.is_none() {
            break;
        }
        step += 1;
    }
    assert!(step > 20, "only {step} steps: is the plugin a debug build?");
}

#[test]
fn a_plugin_killed_before_it_made_the_interface_can_be_called_again_and_gets_the_same_addresses() {
    let bench = Bench::new();
    let pod = Netns::new().unwrap();
    bench.add_killed_after(0, "a", &pod.path()).unwrap();
    let mut leased = bench.leased();
    let result = bench.call("ADD", "a", &pod.path(), &bench.conf()).ok();
    let mut given: Vec<_> = addresses(&result).iter().map(ToString::to_string).collect();
    leased.sort();
    given.sort();
    assert_eq!(leased, given);
}

#[test]
fn an_add_that_fails_half_way_takes_everything_back() {
    let bench = Bench::new();
    let pod = Netns::new().unwrap();
    let mut conf = bench.conf();
    // The kernel refuses an MTU below 68 for the pair; a MAC of another form fails before it.
    conf["mtu"] = 20.into();
    let message = bench.call("ADD", "a", &pod.path(), &conf).error(100);
    assert!(message.contains("create veth pair"), "{message}");
    bench.assert_clean("after a refused MTU");
    // IPv6 needs an MTU of 1280: the pair exists when the first IPv6 step fails.
    conf["mtu"] = 1000.into();
    bench.call("ADD", "a", &pod.path(), &conf).error(100);
    bench.assert_clean("after an MTU that IPv6 refuses");
    assert!(pod.ip("link show eth0").is_err());
}

#[test]
fn fifty_at_once_get_fifty_different_addresses_and_all_can_be_deleted_at_once() {
    let bench = Bench::new();
    let pods: Vec<_> = (0..50).map(|_| Netns::new().unwrap()).collect();
    let conf = bench.conf();
    let all = |verb: &str| {
        let start = |(number, pod): (usize, &Netns)| bench.start(verb, &format!("c{number}"), &pod.path(), &conf);
        let children: Vec<_> = pods.iter().enumerate().map(start).collect();
        children.into_iter().map(|child| Bench::finish(child).ok()).collect::<Vec<_>>()
    };
    let results = all("ADD");
    let distinct: BTreeSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(distinct.len(), 100, "one of each family for each");
    let leased: BTreeSet<_> = bench.leased().iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(distinct, leased);
    let (first, last) = (crate::bench::listen(&pods[0], 8080), &pods[49]);
    for address in addresses(&results[0]) {
        crate::bench::connect(last, address, 8080, &first);
    }
    all("DEL");
    bench.assert_clean("after 50 DELs");
}

#[test]
fn a_full_range_is_code_101_and_status_50_until_an_address_is_free() {
    let bench = Bench::new();
    let mut conf = bench.conf();
    conf["podCIDRs"] = json!(["10.244.1.0/30"]);
    let (one, two) = (Netns::new().unwrap(), Netns::new().unwrap());
    bench.call("STATUS", "", Path::new(""), &conf).ok();
    bench.call("ADD", "one", &one.path(), &conf).ok();
    let message = bench.call("ADD", "two", &two.path(), &conf).error(101);
    assert_eq!(message, "no free address in 10.244.1.0/30: all 1 are leased");
    assert!(two.ip("link show eth0").is_err());
    bench.call("STATUS", "", Path::new(""), &conf).error(50);
    bench.call("DEL", "one", &one.path(), &conf).ok();
    bench.call("STATUS", "", Path::new(""), &conf).ok();
    bench.call("ADD", "two", &two.path(), &conf).ok();
}

#[test]
fn check_finds_each_thing_that_is_missing_or_different() {
    for (on_node, change, expected) in [
        (false, "link set eth0 down", "interface eth0 is down"),
        (false, "link set eth0 address 02:00:00:00:00:99", "has MAC 02:00:00:00:00:99"),
        (false, "link set eth0 mtu 1400", "has MTU 1400, expected 1500"),
        (false, "addr del 10.244.1.2/32 dev eth0", "address 10.244.1.2/32 is missing"),
        (false, "addr del fd00:10:244:1::2/128 dev eth0", "address fd00:10:244:1::2/128 is missing"),
        (false, "route del default", "route to 0.0.0.0/0 is missing"),
        (false, "-6 route del default", "route to ::/0 is missing"),
        (false, "link del eth0", "interface eth0 is missing in the container"),
        (true, "route del 10.244.1.2/32", "the node routes 10.244.1.2 to nowhere"),
        (true, "-6 route del fd00:10:244:1::2/128", "the node routes fd00:10:244:1::2 to nowhere"),
    ] {
        let bench = Bench::new();
        let (pod, result) = bench.pod("a");
        let conf = bench.conf_with(&result);
        bench.call("CHECK", "a", &pod.path(), &conf).ok();
        if on_node { &bench.node } else { &pod }.ip(change).unwrap();
        let message = bench.call("CHECK", "a", &pod.path(), &conf).error(103);
        assert!(message.contains(expected), "{change}: {message}");
    }
    let bench = Bench::new();
    let (pod, result) = bench.pod("a");
    std::fs::remove_file(bench.dir.path().join("pods/leases.json")).unwrap();
    let message = bench.call("CHECK", "a", &pod.path(), &bench.conf_with(&result)).error(103);
    assert!(message.contains("is not leased to this container"), "{message}");
    bench.call("CHECK", "a", &pod.path(), &bench.conf()).error(7);
}

#[test]
fn gc_removes_exactly_the_attachments_that_are_not_listed() {
    let bench = Bench::new();
    let (a, a_result) = bench.pod("a");
    let (b, _) = bench.pod("b");
    let (c, _) = bench.pod("c");
    drop(c);
    let mut conf = bench.conf();
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    conf["gcGraceSeconds"] = 3600.into();
    bench.call("GC", "", Path::new(""), &conf).ok();
    assert_eq!(bench.leased().len(), 6, "young leases are spared");
    conf["gcGraceSeconds"] = 0.into();
    bench.call("GC", "", Path::new(""), &conf).ok();
    assert_eq!(bench.leased().len(), 2);
    assert!(b.ip("link show eth0").is_err(), "the stale pod lost its interface");
    bench.call("CHECK", "a", &a.path(), &bench.conf_with(&a_result)).ok();
}

#[test]
fn a_torn_lease_file_gives_no_running_pods_address_away() {
    let bench = Bench::new();
    let (a, a_result) = bench.pod("a");
    std::fs::write(bench.dir.path().join("pods/leases.json"), "nodelet-leases 1 00").unwrap();
    let (_b, b_result) = bench.pod("b");
    for address in addresses(&b_result) {
        assert!(!addresses(&a_result).contains(&address));
    }
    bench.call("CHECK", "a", &a.path(), &bench.conf_with(&a_result)).ok();
    bench.del("a", &a.path());
    bench.del("b", Path::new(""));
    bench.assert_clean("after recovery and DEL");
}
