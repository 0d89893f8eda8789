//! hostPorts of pods on the project's own network: served like Services, by the same table.

use std::time::Duration;

use nodelet::service::host_ports::{self, HostPort};
use nodelet::service::{Backend, Protocol};

use crate::rig::{FAMILIES, NODE, POD_PORT, Rig, at, cluster_ips, service, until};
use crate::traffic::{outcome, tcp, udp};

const HOST_PORT: u16 = 8443;

/// The hostPort of a pod at both of its addresses.
fn ports(rig: &Rig, pod: usize, protocol: Protocol, address: Option<&str>) -> Vec<HostPort> {
    let of = |family: usize| HostPort {
        address: address.map(|text| text.parse().unwrap()),
        protocol,
        port: HOST_PORT,
        pod: Backend { address: rig.address(pod, family), port: POD_PORT },
    };
    FAMILIES.map(of).to_vec()
}

fn serve(rig: &Rig, pod: usize, ports: Vec<HostPort>) {
    rig.handle().set_host_ports(&host_ports::key("default", "web", &format!("uid-{pod}")), ports);
    rig.settle();
}

fn with_addresses(rig: &Rig) {
    rig.handle().set_host_addresses(NODE.map(|ip| ip.parse().unwrap()).to_vec());
}

#[test]
fn a_host_port_is_reached_from_everywhere_and_keeps_the_client() {
    let rig = Rig::started(2);
    with_addresses(&rig);
    serve(&rig, 0, [ports(&rig, 0, Protocol::Tcp, None), ports(&rig, 0, Protocol::Udp, None)].concat());
    for family in FAMILIES {
        let to = at(NODE[family], HOST_PORT);
        for from in [rig.lan.netns(), &rig.node, &rig.pods[0].netns, &rig.pods[1].netns] {
            assert_eq!(outcome(from, to), "pod0");
            assert_eq!(udp(from, to).unwrap().who, "pod0");
        }
        assert_eq!(tcp(rig.lan.netns(), to).unwrap().peer.to_string(), crate::rig::OUTSIDE[family]);
    }
    serve(&rig, 0, Vec::new());
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)), "refused");
}

#[test]
fn the_same_port_at_two_addresses_is_two_pods_and_a_node_port_goes_before_both() {
    let mut rig = Rig::started(3);
    with_addresses(&rig);
    rig.node.ip("addr add 10.89.0.12/24 dev eth0").unwrap();
    serve(&rig, 0, ports(&rig, 0, Protocol::Tcp, Some(NODE[0])));
    serve(&rig, 1, ports(&rig, 1, Protocol::Tcp, Some("10.89.0.12")));
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)), "pod0");
    assert_eq!(outcome(rig.lan.netns(), at("10.89.0.12", HOST_PORT)), "pod1");
    rig.apply(&[service("web", 1, HOST_PORT)]);
    rig.apply(&rig.slices("web", &[2]));
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)), "pod2");
    rig.delete(&[service("web", 1, HOST_PORT)]);
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)), "pod0", "the one that waited");
}

#[test]
fn the_next_pod_of_a_name_takes_over_when_the_former_is_gone() {
    let rig = Rig::started(2);
    with_addresses(&rig);
    serve(&rig, 0, ports(&rig, 0, Protocol::Tcp, None));
    serve(&rig, 1, ports(&rig, 1, Protocol::Tcp, None));
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)), "pod0");
    serve(&rig, 0, Vec::new());
    assert_eq!(outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)), "pod1");
}

#[test]
fn host_ports_outlive_a_restart_until_their_pods_are_known_and_hold_up_no_service() {
    let mut rig = Rig::new(2);
    rig.settings.awaits_host_ports = true;
    rig.start(&[]);
    with_addresses(&rig);
    serve(&rig, 0, ports(&rig, 0, Protocol::Tcp, None));
    let to = at(NODE[0], HOST_PORT);
    assert_eq!(outcome(rig.lan.netns(), to), "pod0");
    rig.stop();
    let mut objects = vec![service("web", 1, 0)];
    objects.extend(rig.slices("web", &[1]));
    rig.start(&objects);
    assert_eq!(outcome(&rig.node, at(&cluster_ips(1)[0], 80)), "pod1", "Services are served at once");
    assert_eq!(outcome(rig.lan.netns(), to), "pod0", "nobody has said yet that the pod is gone");
    rig.handle().host_ports_synced();
    rig.settle();
    assert_eq!(outcome(rig.lan.netns(), to), "refused");
}

#[test]
fn a_flushed_ruleset_brings_host_ports_back() {
    let rig = Rig::started(1);
    with_addresses(&rig);
    serve(&rig, 0, ports(&rig, 0, Protocol::Tcp, None));
    rig.node.sh("nft flush ruleset").unwrap();
    until(Duration::from_secs(5), "the hostPort to be back", || {
        match outcome(rig.lan.netns(), at(NODE[0], HOST_PORT)) {
            who if who == "pod0" => Ok(()),
            other => Err(other),
        }
    });
}
