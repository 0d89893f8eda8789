//! What the kernel refuses costs that alone, and is tried again.

use std::collections::BTreeSet;
use std::time::Duration;

use nodelet::service::ServiceHandle;

use crate::rig::{FAMILIES, Rig, at, cluster_ips, service, until};
use crate::traffic::tcp;

/// A node whose IPv4 endpoints do not all find room, with one Service.
fn with_room_for(endpoints: usize) -> Rig {
    let mut rig = Rig::started(3);
    rig.stop();
    let listing = rig.listing("ip");
    let map = listing.split("map endpoints {").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
    // The same map, but with a size: so a kernel refuses for as long as it likes, and nothing else is different. While
    // there is no Service no rule uses it.
    rig.node.sh("nft delete map ip nodelet endpoints").unwrap();
    rig.node
        .sh(&format!("nft -f - <<'END'\ntable ip nodelet {{\nmap endpoints {{ {map}\nsize {endpoints}\n}}\n}}\nEND"))
        .unwrap();
    let mut objects = vec![service("web", 1, 0)];
    objects.extend(rig.slices("web", &[0]));
    rig.start(&objects);
    rig
}

/// Who answers on a port of a Service in so many attempts.
fn answering(rig: &Rig, number: u8, family: usize) -> BTreeSet<String> {
    let to = at(&cluster_ips(number)[family], 80);
    (0..40).map(|_| tcp(&rig.node, to).unwrap().who).collect()
}

fn names(pods: &[usize]) -> BTreeSet<String> {
    pods.iter().map(|pod| format!("pod{pod}")).collect()
}

fn refused(handle: &ServiceHandle) -> usize {
    handle.status().refused
}

#[test]
fn endpoints_for_which_there_is_no_room_are_left_out_until_there_is() {
    // Two of them are taken by the first Service, for TCP and UDP.
    let mut rig = with_room_for(6);
    rig.apply(&[service("more", 2, 0)]);
    rig.apply(&rig.slices("more", &[0, 1, 2]));
    assert_eq!(refused(rig.handle()), 1, "of UDP two of three have no room");
    assert_eq!(answering(&rig, 2, 0), names(&[0, 1, 2]), "TCP had room");
    let udp = format!("nft list map ip nodelet endpoints | grep -o '{} . udp . 53 . [^,}}]*'", cluster_ips(2)[0]);
    assert_eq!(rig.node.sh(&udp).unwrap().lines().count(), 1);
    let udp6 = format!("nft list map ip6 nodelet endpoints | grep -o '{} . udp . 53 . [^,}}]*'", cluster_ips(2)[1]);
    assert_eq!(rig.node.sh(&udp6).unwrap().lines().count(), 3, "the other family has room");
    let events = rig.events();
    // On a slow machine it has been tried again by now, and told again.
    let [(reason, of, message), ..] = &events[..] else { panic!("nothing was told") };
    assert_eq!((*reason, of.as_str()), ("RefusedByKernel", "default/more"));
    for part in ["endpoints 10.244.1.", "of 10.96.0.2:53 UDP", "trying again"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    // Other Services go on.
    rig.apply(&rig.slices("web", &[1]));
    for family in FAMILIES {
        assert_eq!(answering(&rig, 1, family), names(&[1]));
    }
    let whole = rig.node.sh("nft list map ip nodelet endpoints | grep -c ' : 10'");
    assert!(whole.is_ok(), "the table was not replaced: its map still has a size");
    assert!(rig.listing("ip").contains("size 6"));
    rig.delete(&[service("web", 1, 0)]);
    until(Duration::from_secs(20), "the room that was left is taken", || {
        let left = refused(rig.handle());
        if left == 0 { Ok(()) } else { Err(format!("{left} refused")) }
    });
    assert_eq!(rig.node.sh(&udp).unwrap().lines().count(), 3);
}

#[test]
fn a_restart_under_a_kernel_that_refuses_serves_what_it_can_at_once() {
    let mut rig = with_room_for(2);
    rig.stop();
    let mut objects = vec![service("web", 1, 0), service("more", 2, 0)];
    objects.extend(rig.slices("web", &[0]));
    objects.extend(rig.slices("more", &[1]));
    rig.start(&objects);
    assert_eq!(answering(&rig, 1, 0), names(&[0]), "what was there stays");
    assert_eq!(answering(&rig, 2, 1), names(&[1]), "what has room comes");
    // Without an endpoint that the kernel takes it is refused, and not left to whoever the packets go to.
    let to = at(&cluster_ips(2)[0], 80);
    let error = tcp(&rig.node, to).unwrap_err();
    assert!(format!("{error:?}").contains("refused"), "{error:?}");
    assert_eq!(refused(rig.handle()), 2);
}
