//! An agent that ends and starts again: rules stay, and only what changed meanwhile is written.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use harness::eventually::patience;
use harness::netns::Netns;
use serde_json::Value;

use crate::rig::{NODE, Rig, at, cluster_ips, service};
use crate::traffic::{tcp, tcp_here};

/// `nft monitor` in a namespace: what was committed between two marks.
struct Monitor {
    child: Child,
    lines: mpsc::Receiver<String>,
    marks: u32,
}

impl Monitor {
    fn start(netns: &Netns) -> Self {
        let mut command = Command::new("nft");
        let mut child = netns.enter(command.arg("monitor").stdout(Stdio::piped())).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut monitor = Self { child, lines, marks: 0 };
        // It hears nothing before it has begun to listen.
        while monitor.until_mark(netns, Duration::from_millis(100)).is_none() {}
        monitor
    }

    /// Makes a mark in the ruleset and gives what was committed before it and after the last one.
    fn until_mark(&mut self, netns: &Netns, patience: Duration) -> Option<Vec<String>> {
        self.marks += 1;
        let mark = format!("mark{}", self.marks);
        netns.sh(&format!("nft add table ip {mark}")).unwrap();
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(patience) {
                Ok(line) if line.ends_with(&mark) => return Some(seen),
                Ok(line) if line.contains("nodelet") => seen.push(line),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    fn seen(&mut self, netns: &Netns) -> Vec<String> {
        self.until_mark(netns, patience(Duration::from_secs(10))).expect("nft monitor tells of the mark")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn objects(rig: &Rig, names: &[&str]) -> Vec<Value> {
    let mut objects = Vec::new();
    for (number, name) in (1..).zip(names) {
        let mut of = service(name, number, 30080 + u16::from(number));
        if *name == "sticky" {
            of["spec"]["sessionAffinity"] = "ClientIP".into();
            of["spec"]["externalTrafficPolicy"] = "Local".into();
        }
        objects.push(of);
        objects.extend(rig.slices(name, if *name == "empty" { &[] } else { &[0, 1] }));
    }
    objects
}

#[test]
fn a_restart_without_changes_commits_nothing() {
    let mut rig = Rig::new(2);
    let objects = objects(&rig, &["web", "sticky", "empty"]);
    rig.start(&objects);
    rig.stop();
    let mut monitor = Monitor::start(&rig.node);
    rig.start(&objects);
    assert_eq!(monitor.seen(&rig.node), Vec::<String>::new());
}

#[test]
fn only_the_difference_is_committed_after_a_restart() {
    let mut rig = Rig::new(3);
    rig.start(&objects(&rig, &["web", "sticky", "empty"]));
    rig.stop();
    let mut monitor = Monitor::start(&rig.node);
    let mut changed = objects(&rig, &["web", "sticky"]);
    changed.extend(rig.slices("web", &[0, 2]));
    rig.start(&changed);
    let seen = monitor.seen(&rig.node).join("\n");
    for (n, family) in [(0, "ip"), (1, "ip6")] {
        let (old, new) = (&rig.pods[1].addresses[n], &rig.pods[2].addresses[n]);
        assert!(seen.contains(&format!("delete element {family} nodelet no-endpoints")), "{seen}");
        assert!(seen.contains(new.as_str()), "{seen}");
        let kept = &rig.pods[0].addresses[n];
        assert!(!seen.contains(&format!(": {kept} ")), "the endpoint that stays is not written again:\n{seen}");
        assert!(!seen.contains(&format!("add rule {family}")) && !seen.contains("add chain"), "{seen}");
        assert!(seen.contains(old.as_str()) || seen.contains("endpoints"), "{seen}");
    }
    let web = at(&cluster_ips(1)[0], 80);
    let who = || (0..40).map(|_| tcp(&rig.node, web).unwrap().who).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(who(), ["pod0", "pod2"].map(str::to_owned).into());
}

#[test]
fn traffic_through_a_service_meets_no_gap_while_agents_come_and_go() {
    let mut rig = Rig::new(2);
    let objects = objects(&rig, &["web", "sticky", "empty"]);
    rig.start(&objects);
    let (stop, asked, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let (node, outside) = (rig.node.handle(), rig.lan.netns().handle());
    std::thread::scope(|scope| {
        let ask = |from: std::fs::File, to| {
            let (stop, asked, failed) = (&stop, &asked, &failed);
            scope.spawn(move || {
                harness::netns::enter(&from).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = tcp_here(to) {
                        eprintln!("{to}: {error}");
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        };
        ask(node, at(&cluster_ips(1)[0], 80));
        ask(outside, at(NODE[1], 30081));
        // On a slow machine few connections are made in four rounds.
        for round in 0..40 {
            if round >= 4 && asked.load(Ordering::Relaxed) > 50 {
                break;
            }
            rig.stop();
            // Every other agent is stopped while it waits for the lists to end, and has to have removed nothing.
            if round % 2 == 0 {
                rig.spawn();
                rig.half_a_list(&objects);
                rig.stop();
            }
            rig.start(&objects);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(asked.into_inner() > 50);
    assert_eq!(failed.into_inner(), 0);
}

#[test]
fn a_front_of_which_somebody_deleted_a_part_is_made_whole_at_start() {
    let mut rig = Rig::new(2);
    let objects = objects(&rig, &["web", "sticky", "empty"]);
    rig.start(&objects);
    rig.stop();
    let ip = &cluster_ips(1)[0];
    rig.node.sh(&format!("nft delete element ip nodelet endpoints '{{ {ip} . tcp . 80 . 0 }}'")).unwrap();
    rig.node.sh(&format!("nft delete element ip nodelet services '{{ {ip} . udp . 53 }}'")).unwrap();
    rig.node.sh("nft flush chain ip6 nodelet pick; nft add chain ip nodelet stranger").unwrap();
    rig.start(&objects);
    for family in crate::rig::FAMILIES {
        for n in [1, 2] {
            let ip = &cluster_ips(n)[family];
            (0..10).for_each(|_| drop(tcp(&rig.node, at(ip, 80)).unwrap()));
            crate::traffic::udp(&rig.node, at(ip, 53)).unwrap();
        }
    }
    assert!(!rig.listing("ip").contains("stranger"));
}
