//! The table of flows: what connections find, written down by hand, and found virtually and with real sockets.
//!
//! Neither can lie: the virtual packet walks the elements that the programmer wants, the real one goes through what the
//! kernel was told of them, and both must find what the table says. Three nodes, each with a programmer of its own.

mod model;
mod real;
mod table;
mod topology;

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::Model;
use nodelet::service::Backend;
use real::Real;
use serde_json::Value;
use table::{Answer, Flow, Scenario};
use topology::{Outcome, POD_PORTS};

fn objects(scenarios: &[Scenario]) -> Vec<Value> {
    scenarios.iter().flat_map(Scenario::objects).collect()
}

/// Addresses that the table leaves to who is outside.
fn left_to_others(flows: &[Flow]) -> BTreeSet<IpAddr> {
    let is_left = |flow: &&Flow| flow.answer == Answer::Each(vec!["balancer".to_owned()]);
    flows.iter().filter(is_left).map(|flow| flow.to.ip()).collect()
}

fn fail_with(wrong: &[String], all: usize) {
    assert!(wrong.is_empty(), "{} of {all} flows differ from the table:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn virtual_packets_find_what_the_table_of_flows_says() {
    let scenarios = table::scenarios();
    let flows = table::flows(&scenarios);
    assert!(flows.len() >= 300, "{} flows", flows.len());
    let model = Model::new(&objects(&scenarios), left_to_others(&flows));
    let mut wrong = Vec::new();
    for flow in &flows {
        let (expected, found) = (topology::expected(flow), model.outcomes(flow, None));
        if found != expected {
            wrong.push(format!("{}: expected {expected:?}, found {found:?}", flow.name));
        }
        let Answer::One(names) = &flow.answer else { continue };
        // A client that was at one of them before finds that one.
        for name in names {
            let address = topology::address_of(name, usize::from(flow.to.is_ipv6()));
            let found = model.outcomes(flow, Some(Backend { address, port: POD_PORTS[0] }));
            let is_right = |outcome: &Outcome| matches!(outcome, Outcome::Answered { who, .. } if who == name);
            if found.len() != 1 || !found.iter().all(is_right) || !found.is_subset(&expected) {
                wrong.push(format!("{}: with {name} remembered found {found:?}", flow.name));
            }
        }
    }
    fail_with(&wrong, flows.len());
}

#[test]
fn real_connections_find_what_the_table_of_flows_says() {
    let scenarios = table::scenarios();
    let flows = table::flows(&scenarios);
    let real = Real::new(&objects(&scenarios), &left_to_others(&flows));
    let mut wrong = Vec::new();
    for (flow, found) in flows.iter().zip(real.outcomes(&flows)) {
        let expected = topology::expected(flow);
        let is_right = match &flow.answer {
            Answer::One(_) => found.len() == 1 && found.is_subset(&expected),
            Answer::Each(_) | Answer::Refused | Answer::Dropped => found == expected,
        };
        if !is_right {
            wrong.push(format!("{}: expected {expected:?}, found {found:?}", flow.name));
        }
    }
    fail_with(&wrong, flows.len());
    let (different, compared) = real.differences(&objects(&scenarios));
    assert!(different.is_empty(), "as `explain` sees it:\n{}", different.join("\n"));
    assert!(compared >= 200, "{compared} addresses were compared");
}
