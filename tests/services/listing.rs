//! What `nft` makes of our table: administrators must be able to read it, and `nft` must mean the same by it.

use std::collections::BTreeMap;

use harness::netns::Netns;
use serde_json::json;

use crate::rig::{Rig, service};

/// A Service of every kind, so that every set and every kind of chain is in use.
fn everything(rig: &mut Rig) {
    let mut sticky = service("sticky", 2, 30081);
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    sticky["spec"]["externalTrafficPolicy"] = "Local".into();
    let mut limited = service("limited", 3, 30082);
    limited["spec"]["type"] = "LoadBalancer".into();
    limited["spec"]["loadBalancerSourceRanges"] = json!(["10.89.0.0/24", "fd89::/64", "192.0.2.7/32"]);
    limited["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "2001:db8:1::1"}]}});
    rig.apply(&[service("web", 1, 30080), sticky, limited, service("nobody", 4, 30083)]);
    for name in ["web", "sticky", "limited"] {
        rig.apply(&rig.slices(name, &[0, 1]));
    }
}

#[test]
fn nft_lists_our_tables_without_complaint() {
    let mut rig = Rig::started(2);
    everything(&mut rig);
    for family in ["ip", "ip6"] {
        for command in ["nft", "nft -a", "nft -s", "nft -n"] {
            let script = format!("{command} list table {family} nodelet 2>&1 >/dev/null");
            assert_eq!(rig.node.sh(&script).unwrap(), "", "{command} complains of {family}");
        }
        let listing = rig.listing(family);
        for word in
            ["masquerade fully-random", "reject with tcp reset", "dnat", "numgen random mod 2", "vmap @services"]
        {
            assert!(listing.contains(word), "no {word:?} in\n{listing}");
        }
        for raw in ["unknown", "@nh", "@th", "@ll"] {
            assert!(!listing.contains(raw), "{raw:?} in\n{listing}");
        }
    }
    rig.node.sh("nft list ruleset >/dev/null && nft -j list ruleset >/dev/null").unwrap();
}

/// Expressions of all rules by chain, as `nft` shows what is in the kernel.
fn expressions(netns: &Netns, family: &str, table: &str) -> BTreeMap<String, Vec<String>> {
    let listing = netns.sh(&format!("nft --debug=netlink list table {family} {table}")).unwrap();
    let head = format!("{family} {table} ");
    let mut chains = BTreeMap::<String, Vec<String>>::new();
    let mut chain = String::new();
    for line in listing.lines() {
        if let Some(rest) = line.strip_prefix(&head) {
            chain = rest.split(' ').next().unwrap().to_owned();
        } else if line.trim_start().starts_with('[') {
            chains.entry(chain.clone()).or_default().push(line.trim().to_owned());
        }
    }
    chains
}

const GOLDEN: &str = include_str!("../data/services/rules.nft");

#[test]
fn our_rules_are_those_that_nft_makes_of_the_same_text() {
    let mut rig = Rig::started(2);
    everything(&mut rig);
    let other = Netns::new().unwrap();
    for (family, pods) in [("ip", "10.244.0.0/16"), ("ip6", "fd00:10:244::/48")] {
        let text = GOLDEN.replace("IP ", &format!("{family} ")).replace("PODS", pods);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        other.sh(&format!("nft -f {}", file.path().display())).unwrap();
        let (golden, mut ours) = (expressions(&other, family, "golden"), expressions(&rig.node, family, "nodelet"));
        assert!(golden.len() > 8, "{golden:?}");
        for (chain, mut expected) in golden {
            // nft swaps the bytes of the protocol for a set of ranges, of which there is one: the kernel does nothing.
            expected.retain(|line| {
                line != "[ byteorder reg 9 = hton(reg 9, 2, 1) ]" && !line.contains("hton(reg 2, 2, 1)")
            });
            assert_eq!(ours.remove(&chain), Some(expected), "chain {chain} of {family}");
        }
        // What nft cannot read: its own words for the parts are the golden ones.
        let rest: Vec<&String> = ours.keys().collect();
        assert_eq!(rest, ["nat-input", "nat-postrouting", "remember-10800"]);
    }
    let remember = &expressions(&rig.node, "ip", "nodelet")["remember-10800"];
    assert_eq!(
        remember[..],
        [
            "[ ct load dst_ip => reg 1 , dir original ]",
            "[ meta load l4proto => reg 9 ]",
            "[ ct load proto_dst => reg 10 , dir original ]",
            "[ payload load 4b @ network header + 12 => reg 11 ]",
            "[ payload load 4b @ network header + 16 => reg 2 ]",
            "[ payload load 2b @ transport header + 2 => reg 13 ]",
            "[ dynset update reg_key 1 set affinity sreg_data 2 timeout 10800000ms ]",
        ]
    );
}
