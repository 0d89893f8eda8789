//! Addresses of a Service: what the kernel is to do for each, and what it holds. Pure.

use std::collections::BTreeSet;

use super::report::FrontReport;
use super::{Ask, Facts, Refusal, packets, words};
use crate::service::index::Rank;
use crate::service::program::{Element, Program, View, Way};
use crate::service::walk::Maps;
use crate::service::walk::maps::{Held, RulesFound};
use crate::service::{Backend, Front};

impl Held {
    /// Whether packets may find something else than our rules.
    pub(super) fn has_foreign_rules(&self) -> bool {
        self.rules.iter().any(|rules| *rules != RulesFound::Ours)
    }
}

/// What there is to say of a front.
pub(super) fn report(facts: &Facts, ask: &Ask, (front, rank): &(Front, Rank)) -> Result<FrontReport, Refusal> {
    let (known, maps) = (&facts.known, &facts.held.maps);
    let program = known.desired.get(front).map(|claim| &claim.program);
    let lost_to = known.rivals.get(front);
    let mut kernel: Vec<String> = maps.of_front(front).iter().map(words::element).collect();
    let (mut missing, mut unexpected) = (Vec::new(), Vec::new());
    if *rank == Rank::ClusterIp {
        let word = format!("cluster-ips: {}", front.address);
        let list = if maps.cluster_ips.contains(&front.address) { &mut kernel } else { &mut missing };
        list.push(word);
    }
    // Where another Service has the address, the kernel holds what that one wants.
    if let Some(program) = program.filter(|_| lost_to.is_none()) {
        let (less, more) = drift(front, program, maps);
        missing.extend(less.iter().map(words::element));
        unexpected.extend(more.iter().map(words::element));
        let pairs = endpoints(program).filter(|backend| known.local.contains(&backend.address));
        let pairs: BTreeSet<_> = pairs.map(|backend| backend.address).collect();
        let absent = pairs.into_iter().filter(|address| !maps.hairpin.contains(address));
        missing.extend(absent.map(|address| format!("hairpin: {address} to itself")));
    }
    let mut packets = packets::reports(facts, ask, (front, *rank))?;
    if let Some(other) = lost_to {
        for packet in &mut packets {
            packet.passes = false;
            packet.result = format!("not for this Service but for {}: {}", words::owner(other), packet.result);
        }
    }
    Ok(FrontReport {
        kind: words::kind(*rank),
        address: front.address,
        port: front.port,
        wanted: program.map(|program| wanted(program, *rank)).unwrap_or_default(),
        kernel,
        missing,
        unexpected,
        lost_to: lost_to.map(words::owner),
        packets,
    })
}

fn endpoints(program: &Program) -> impl Iterator<Item = Backend> {
    program.all.backends().chain(program.local.iter().flat_map(Way::backends))
}

/// A program in words.
fn wanted(program: &Program, rank: Rank) -> Vec<String> {
    let way = |way: &Way| match way {
        Way::Reject => "refuse: nobody serves".to_owned(),
        Way::Drop => "drop: nobody serves on this node, but somebody does elsewhere".to_owned(),
        Way::To(backends) => {
            let all: Vec<String> = backends.iter().map(|backend| backend.to_string()).collect();
            let number = words::count(all.len(), "endpoint");
            if all.len() == 1 {
                format!("to {}", all.concat())
            } else {
                format!("to one of {number}: {}", words::few(&all))
            }
        }
    };
    let mut lines = Vec::new();
    match &program.local {
        Some(local) => {
            lines.push(format!("from pods and this node: {}", way(&program.all)));
            lines.push(format!("from outside: {}", way(local)));
        }
        None => lines.push(way(&program.all)),
    }
    if let Some(seconds) = program.affinity.filter(|_| endpoints(program).next().is_some()) {
        lines.push(format!("a client keeps its endpoint for {seconds} s"));
    }
    if program.masquerade {
        lines.push("with an address of this node as its source, so that answers come back this way".to_owned());
    }
    if let Some(sources) = &program.sources {
        lines.push(format!("only from {}", words::cidrs(sources)));
    }
    if rank == Rank::ClusterIp && program.all == Way::Reject {
        lines.push("other ports of this address are refused, too".to_owned());
    }
    lines
}

/// Elements that should be there and are not, and those that should not be and are. Which slot has which endpoint does not
/// matter, so the wanted ones are put where the kernel has them.
fn drift(front: &Front, program: &Program, maps: &Maps) -> (BTreeSet<Element>, BTreeSet<Element>) {
    let slots = |view: View| {
        // A slot that is empty in between is held by an endpoint that nobody wants.
        let nobody = Backend { address: std::net::Ipv4Addr::UNSPECIFIED.into(), port: 0 };
        let mut backends = Vec::new();
        for ((.., slot), backend) in maps.endpoints.range((view, *front, 0)..=(view, *front, u32::MAX)) {
            let slot = usize::try_from(*slot).unwrap_or(usize::MAX);
            // Slots beyond those of the program are of no use for it.
            if slot < program.way(view).map_or(0, Way::count) {
                backends.resize(slot, nobody);
                backends.push(*backend);
            }
        }
        Way::To(backends.into())
    };
    let found = Program { all: slots(View::All), local: Some(slots(View::Local)), ..Program::default() };
    let wanted = program.clone().arranged(Some(&found)).elements(front);
    let held = maps.of_front(front);
    (wanted.difference(&held).copied().collect(), held.difference(&wanted).copied().collect())
}
