//! UDP flows that conntrack remembers: those to endpoints that are gone are deleted, all others are left alone.

use serde_json::json;

use crate::rig::{FAMILIES, POD_PORT, Rig, at, cluster_ips, service};
use crate::traffic::UdpClient;

/// The entry of a client, as conntrack prints it, without what changes by itself.
fn entry(rig: &Rig, family: usize, client: &UdpClient) -> Option<String> {
    let port = format!("sport={} ", client.port());
    let flows = rig.flows(family);
    let line = flows.lines().find(|line| line.contains(&port))?;
    Some(line.split_whitespace().filter(|word| word.contains('=')).collect::<Vec<_>>().join(" "))
}

#[test]
fn a_client_that_keeps_sending_moves_to_the_new_endpoint_and_others_keep_their_flows() {
    let mut rig = Rig::started(3);
    rig.apply(&[service("dns", 1, 30053), service("other", 2, 0)]);
    rig.apply(&rig.slices("dns", &[0]));
    rig.apply(&rig.slices("other", &[2]));
    for family in FAMILIES {
        let from = &rig.pods[1].netns;
        let client = UdpClient::new(from, at(&cluster_ips(1)[family], 53)).unwrap();
        let by_node_port = UdpClient::new(from, at(crate::rig::NODE[family], 30053)).unwrap();
        let other = UdpClient::new(from, at(&cluster_ips(2)[family], 53)).unwrap();
        let direct = UdpClient::new(from, at(&rig.pods[0].addresses[family], POD_PORT)).unwrap();
        for client in [&client, &by_node_port, &direct] {
            assert_eq!(client.ask().unwrap().who, "pod0");
        }
        assert_eq!(other.ask().unwrap().who, "pod2");
        let before = [&other, &direct].map(|client| entry(&rig, family, client).unwrap());
        rig.apply(&rig.slices("dns", &[2]));
        assert_eq!(client.ask().unwrap().who, "pod2", "the same socket, the next datagram");
        assert_eq!(by_node_port.ask().unwrap().who, "pod2");
        let after = [&other, &direct].map(|client| entry(&rig, family, client).unwrap());
        assert_eq!(before, after);
        rig.apply(&rig.slices("dns", &[0]));
    }
}

#[test]
fn scaling_to_zero_and_deleting_end_flows_and_a_new_service_takes_over_what_went_nowhere() {
    for family in FAMILIES {
        let mut rig = Rig::started(2);
        let to = at(&cluster_ips(1)[family], 53);
        let client = UdpClient::new(&rig.pods[1].netns, to).unwrap();
        // Nobody has the address: the datagram goes out by the default route, and conntrack remembers it as it was.
        client.ask().unwrap_err();
        assert!(entry(&rig, family, &client).is_some());
        rig.apply(&rig.slices("dns", &[0]));
        rig.apply(&[service("dns", 1, 0)]);
        assert_eq!(client.ask().unwrap().who, "pod0", "a Service that came later");
        rig.apply(&rig.slices("dns", &[]));
        assert_eq!(entry(&rig, family, &client), None, "no endpoint is left");
        client.ask().unwrap_err();
        rig.apply(&rig.slices("dns", &[0]));
        assert_eq!(client.ask().unwrap().who, "pod0", "from none to one");
        rig.delete(&[service("dns", 1, 0)]);
        assert_eq!(entry(&rig, family, &client), None, "the Service is gone");
    }
}

#[test]
fn a_restart_keeps_valid_flows_and_ends_those_that_went_stale_meanwhile() {
    let mut rig = Rig::new(3);
    let mut objects = vec![service("same", 1, 0), service("changed", 2, 0), service("removed", 3, 0)];
    for name in ["same", "changed", "removed"] {
        objects.extend(rig.slices(name, &[0]));
    }
    rig.start(&objects);
    let from = &rig.pods[1].netns;
    let clients = [1, 2, 3].map(|n| UdpClient::new(from, at(&cluster_ips(n)[0], 53)).unwrap());
    clients.iter().for_each(|client| assert_eq!(client.ask().unwrap().who, "pod0"));
    let before = entry(&rig, 0, &clients[0]).unwrap();
    rig.stop();
    let mut objects = vec![service("same", 1, 0), service("changed", 2, 0)];
    objects.extend(rig.slices("same", &[0]));
    objects.extend(rig.slices("changed", &[2]));
    rig.start(&objects);
    assert_eq!(entry(&rig, 0, &clients[0]).as_ref(), Some(&before));
    assert_eq!(clients[1].ask().unwrap().who, "pod2");
    assert_eq!(entry(&rig, 0, &clients[2]), None);
}

#[test]
fn a_changed_port_moves_the_flow() {
    let mut rig = Rig::started(2);
    rig.apply(&[service("dns", 1, 0)]);
    let mut slices = rig.slices("dns", &[0]);
    for slice in &mut slices {
        slice["ports"] = json!([{"name": "dns", "port": 9, "protocol": "UDP"}]);
    }
    rig.apply(&slices);
    let client = UdpClient::new(&rig.pods[1].netns, at(&cluster_ips(1)[0], 53)).unwrap();
    client.ask().unwrap_err();
    rig.apply(&rig.slices("dns", &[0]));
    assert_eq!(client.ask().unwrap().who, "pod0");
}
