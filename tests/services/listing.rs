//! What `nft` makes of our table: administrators must be able to read it, and `nft` must mean the same by it.

use std::collections::BTreeMap;

use harness::netns::Netns;
use nodelet::service::{Cidr, Egress, Local};
use serde_json::{Value, json};

use crate::rig::{FAMILIES, Rig, at, cluster_ips, service};
use crate::traffic::tcp;

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

/// The `nft` programs that must list our tables: the installed one, and those that `make test-nft-versions` names.
fn programs() -> Vec<String> {
    let more = std::env::var("NODELET_NFT_PROGRAMS").unwrap_or_default();
    let more = more.split(':').filter(|program| !program.is_empty());
    std::iter::once("nft").chain(more).map(str::to_owned).collect()
}

/// What a program finds wrong with a table of ours, or we with what it prints.
fn complaints(node: &Netns, program: &str, family: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for options in ["", "-a", "-s", "-n"] {
        // On its error stream or by its exit code; a crash has the latter only.
        let script = format!("{program} {options} list table {family} nodelet 2>&1 >/dev/null || echo exit code $?");
        let said = node.sh(&script).unwrap();
        if !said.is_empty() {
            found.push(format!("{options} list table {family}: {}", said.trim_end()));
        }
    }
    // Up to 1.0.6 they have no JSON of their own for `update @affinity`, warn, and write the text instead; 0.9.8 warns in the
    // middle of the JSON.
    let json = format!("{program} -j list table {family} nodelet 2>/dev/null");
    match node.sh(&json).map(|json| json.lines().filter(|line| !line.starts_with("warning: ")).collect::<String>()) {
        Ok(json) => {
            found.extend(serde_json::from_str::<Value>(&json).err().map(|error| format!("-j: {error}: {json}")))
        }
        Err(error) => found.push(format!("-j list table {family}: {error:#}")),
    }
    let listing = node.sh(&format!("{program} list table {family} nodelet || true")).unwrap();
    let missing = words.iter().filter(|word| !listing.contains(**word));
    found.extend(missing.map(|word| format!("no {word:?} of {family} in\n{listing}")));
    let raw = ["unknown", "@nh", "@th", "@ll"].into_iter().filter(|raw| listing.contains(raw));
    found.extend(raw.map(|raw| format!("{raw:?} of {family} in\n{listing}")));
    found
}

#[test]
fn nft_lists_our_tables_without_complaint() {
    let mut rig = Rig::started(2);
    everything(&mut rig);
    // A client that is remembered.
    for family in FAMILIES {
        tcp(&rig.pods[0].netns, at(&cluster_ips(2)[family], 80)).unwrap();
    }
    let services =
        ["masquerade fully-random", "reject with tcp reset", "dnat", "numgen random mod 2", "vmap @services"];
    let mut complaints_of = BTreeMap::<String, Vec<String>>::new();
    let mut ask_all = |rig: &Rig, words: &[&str]| {
        for program in programs() {
            let of = complaints_of.entry(program.clone()).or_default();
            of.extend(["ip", "ip6"].iter().flat_map(|family| complaints(&rig.node, &program, family, words)));
        }
    };
    ask_all(&rig, &services);
    let cidrs = |texts: [&str; 2]| texts.map(|text| Cidr::parse(text).unwrap()).to_vec();
    let pods = || cidrs(["10.244.0.0/16", "fd00:10:244::/48"]);
    rig.handle().reconfigure(|settings| {
        settings.local = Local::InterfacePrefix("cali".to_owned());
        settings.egress = Some(Egress { pods: pods(), inside: pods() });
        settings.service_cidrs = cidrs(["10.96.0.0/12", "fd00:10:96::/108"]);
    });
    rig.settle();
    ask_all(&rig, &[&services[..], &["iifname", "cali*", "goto egress", "ct status"]].concat());
    rig.node.sh("nft list ruleset >/dev/null && nft -j list ruleset >/dev/null").unwrap();
    for (program, complaints) in &complaints_of {
        let version = rig.node.sh(&format!("{program} --version")).unwrap();
        let verdict = if complaints.is_empty() { "ok".to_owned() } else { complaints.join("\n") };
        eprintln!("{}: {verdict}", version.trim_end());
    }
    assert!(complaints_of.values().all(Vec::is_empty), "complaints: {complaints_of:#?}");
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
