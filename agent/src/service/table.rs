//! What our tables in the kernel hold, and the smallest batch that changes it. Pure but for the batch that it writes into.
//!
//! Every front has one [`Program`], and every program stands for a set of elements; a change is the difference of two such
//! sets. What a former agent left is read back into programs. What cannot be one (somebody deleted half of it, say) is
//! removed element by element in the transaction that programs the front anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use addresses::Addresses;
pub use adoption::{Adoption, Sum};
use indexmap::IndexMap;

use super::element::{digest, family, octets};
use super::index::{Claim, Index, Rank};
use super::program::{Element, Program};
use super::structure::{Numbered, SetName, TABLE};
use super::{Front, Protocol};
use crate::ids::ObjectKey;
use crate::nft::Family;
use crate::nft::batch::{Batch, Message};
use crate::nft::expr::{self, elements};

mod addresses;
mod adoption;

#[derive(Clone, Debug, Default)]
struct Installed {
    /// The Service that it belongs to; none right after adoption.
    owner: Option<ObjectKey>,
    rank: Rank,
    program: Program,
}

/// What a Service has.
#[derive(Debug, Default)]
struct Owned {
    /// Its fronts in order, and whether each is a ClusterIP. No map: a leaf of one takes 300 bytes, and most have one front.
    fronts: Vec<(Front, bool)>,
    /// Fronts that it should have and another Service has.
    waits: BTreeSet<Front>,
    local: Box<[IpAddr]>,
}

impl Owned {
    /// It has a front no more; answers whether that was a ClusterIP.
    fn lose(&mut self, front: &Front) -> bool {
        let found = self.fronts.binary_search_by_key(front, |(front, _)| *front);
        found.is_ok_and(|at| self.fronts.remove(at).1)
    }
}

/// Two Services claim the same address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The address and port.
    pub front: Front,
    /// Who is served there.
    pub winner: ObjectKey,
    /// Who is not.
    pub loser: ObjectKey,
}

/// Elements that come and go.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// To be deleted.
    pub removed: BTreeSet<Element>,
    /// To be added.
    pub added: BTreeSet<Element>,
}

impl Changes {
    /// Takes in others, too.
    pub fn extend(&mut self, others: &Self) {
        self.removed.extend(&others.removed);
        self.added.extend(&others.added);
    }
}

/// An element that does not fit, as it is to be deleted.
#[derive(Debug)]
struct Stray {
    family: Family,
    set: SetName,
    key: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// What our tables in the kernel hold.
#[derive(Debug, Default)]
pub struct Tables {
    // No hash maps, as in the index.
    fronts: IndexMap<Front, Installed>,
    owned: IndexMap<ObjectKey, Owned>,
    waiting: BTreeMap<Front, BTreeSet<ObjectKey>>,
    chains: BTreeSet<(Family, Numbered)>,
    cluster_ips: Addresses,
    hairpin: Addresses,
    changes: Changes,
    strays: Vec<Stray>,
    /// Who claims a front of which is not known yet whose it was, by right.
    held: BTreeSet<(Rank, ObjectKey)>,
    /// With how little right such a front may be taken by now.
    taking: Rank,
    /// Number of endpoints of all fronts.
    endpoints: usize,
    /// Sum of the digests of all elements of fronts.
    sum: u64,
    /// Whether all Services were looked at since the adoption.
    is_complete: bool,
    /// Services that newly wait for a front, which another one has.
    pub conflicts: Vec<Conflict>,
    /// Fronts of UDP and SCTP whose endpoints changed; conntrack is asked about them.
    pub touched: BTreeSet<Front>,
    /// Fronts with session affinity whose endpoints changed; some clients may be remembered in vain.
    pub forgetting: BTreeSet<Front>,
}

impl Tables {
    /// Nothing is installed.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many fronts and endpoints are installed.
    pub fn size(&self) -> (usize, usize) {
        (self.fronts.len(), self.endpoints)
    }

    /// What a front comes to.
    pub fn program(&self, front: &Front) -> Option<&Program> {
        self.fronts.get(front).map(|installed| &installed.program)
    }

    /// The Service that is served at a front.
    pub fn owner(&self, front: &Front) -> Option<&ObjectKey> {
        self.fronts.get(front)?.owner.as_ref()
    }

    /// All fronts.
    pub fn fronts(&self) -> impl Iterator<Item = Front> {
        self.fronts.keys().copied()
    }

    /// Every front with what it comes to.
    pub fn programs(&self) -> impl Iterator<Item = (&Front, &Program)> {
        self.fronts.iter().map(|(front, installed)| (front, &installed.program))
    }

    /// The addresses that a set of addresses should hold.
    pub fn wanted_addresses(&self, set: SetName) -> impl Iterator<Item = IpAddr> {
        let addresses = if set == SetName::Hairpin { &self.hairpin } else { &self.cluster_ips };
        addresses.wanted.keys().copied()
    }

    /// Brings so many of the pending Services to what the index says. When none is left and everybody who may own a front
    /// was heard, what belongs to nobody goes, too.
    pub fn step(&mut self, index: &Index, pending: &mut BTreeSet<ObjectKey>, chunk: usize) {
        for _ in 0..chunk {
            let Some(key) = pending.pop_first() else { break };
            pending.extend(self.update(index, &key));
            if pending.is_empty() {
                pending.append(&mut self.release_held());
            }
        }
        if pending.is_empty() && !self.is_complete && index.knows_all_owners() {
            self.complete();
        }
    }

    /// Right after an adoption nobody knows whose a front is, and who has it may be looked at later than somebody who claims
    /// it with less right: such claims are heard when all others were, so that nothing is taken away for a moment.
    fn is_held(&mut self, front: &Front, claim: &Claim, key: &ObjectKey) -> bool {
        let is_granted = claim.rank <= Rank::NodePort;
        let Some(installed) = self.fronts.get(front).filter(|f| f.owner.is_none()) else { return false };
        let is_same = || claim.program.clone().arranged(Some(&installed.program)) == installed.program;
        let is_held = !is_granted && claim.rank > self.taking && !is_same();
        if is_held {
            self.held.insert((claim.rank, key.clone()));
        }
        is_held
    }

    /// Those who are heard next.
    fn release_held(&mut self) -> BTreeSet<ObjectKey> {
        let Some((rank, _)) = self.held.first() else { return BTreeSet::new() };
        self.taking = *rank;
        let (now, later) = std::mem::take(&mut self.held).into_iter().partition(|(rank, _)| *rank == self.taking);
        self.held = later;
        let now: BTreeSet<(Rank, ObjectKey)> = now;
        now.into_iter().map(|(_, key)| key).collect()
    }

    /// Names of the chains that stand for numbers.
    pub fn chain_names(&self, of: Family) -> Vec<String> {
        self.chains.iter().filter(|(family, _)| *family == of).map(|(_, chain)| chain.name()).collect()
    }

    /// All fronts with session affinity.
    pub fn sticky_fronts(&self) -> impl Iterator<Item = Front> {
        self.fronts.iter().filter(|(_, f)| f.program.affinity.is_some()).map(|(front, _)| *front)
    }

    /// Brings one Service to what the index says. Answers Services whose fronts may have become free.
    pub fn update(&mut self, index: &Index, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let desired = index.desired(key);
        let old = self.owned.swap_remove(key).unwrap_or_default();
        let mut freed = BTreeSet::new();
        for (front, is_cluster_ip) in &old.fronts {
            if *is_cluster_ip {
                self.cluster_ips.release(front.address);
            }
            match desired.get(front) {
                None => {
                    self.remove(front);
                    freed.extend(self.waiting.remove(front).unwrap_or_default());
                }
                // It may have less right to the front now than somebody who waits for it.
                Some(claim) if self.fronts.get(front).is_some_and(|installed| installed.rank < claim.rank) => {
                    freed.extend(self.waiting.get(front).cloned().unwrap_or_default());
                }
                Some(_) => {}
            }
        }
        for front in &old.waits {
            self.stop_waiting(front, key);
        }
        old.local.iter().for_each(|address| self.hairpin.release(*address));
        let local = index.local_addresses(key).into_iter().collect();
        let mut owned = Owned { local, fronts: Vec::with_capacity(desired.len()), ..Owned::default() };
        owned.local.iter().for_each(|address| self.hairpin.want(*address));
        for (front, claim) in desired {
            let is_cluster_ip = claim.rank == Rank::ClusterIp;
            if self.claim(&front, claim, (key, &old.waits)) {
                // In order, because `desired` is.
                owned.fronts.push((front, is_cluster_ip));
                if is_cluster_ip {
                    self.cluster_ips.want(front.address);
                }
            } else {
                owned.waits.insert(front);
            }
        }
        if !owned.fronts.is_empty() || !owned.local.is_empty() || !owned.waits.is_empty() {
            self.owned.insert(key.clone(), owned);
        }
        freed.remove(key);
        freed
    }

    fn stop_waiting(&mut self, front: &Front, key: &ObjectKey) {
        if let Some(waiting) = self.waiting.get_mut(front) {
            waiting.remove(key);
            if waiting.is_empty() {
                self.waiting.remove(front);
            }
        }
    }

    /// Gives a front to a Service, unless another one has more right to it. Who that is does not depend on who came
    /// first, so that a restart changes nothing.
    fn claim(&mut self, front: &Front, claim: Claim, (key, waited): (&ObjectKey, &BTreeSet<Front>)) -> bool {
        let installed = self.fronts.get(front);
        let other = installed.and_then(|f| f.owner.clone().map(|owner| (f.rank, owner)));
        if let Some((rank, other)) = other.filter(|(_, other)| other != key) {
            let is_ours = (claim.rank, key) < (rank, &other);
            let (winner, loser) = if is_ours { (key, &other) } else { (&other, key) };
            if is_ours || !waited.contains(front) {
                self.conflicts.push(Conflict { front: *front, winner: winner.clone(), loser: loser.clone() });
            }
            self.waiting.entry(*front).or_default().insert(loser.clone());
            if !is_ours {
                return false;
            }
            if let Some(owned) = self.owned.get_mut(&other) {
                if owned.lose(front) {
                    self.cluster_ips.release(front.address);
                }
                owned.waits.insert(*front);
            }
        }
        if self.is_held(front, &claim, key) {
            return false;
        }
        self.set(front, claim, key);
        true
    }

    /// All Services were looked at: removes what was adopted and belongs to none.
    pub fn complete(&mut self) {
        self.is_complete = true;
        let unowned: Vec<Front> =
            self.fronts.iter().filter(|(_, f)| f.owner.is_none()).map(|(front, _)| *front).collect();
        unowned.iter().for_each(|front| self.remove(front));
    }

    fn remove(&mut self, front: &Front) {
        if let Some(installed) = self.fronts.swap_remove(front) {
            self.change(front, Some(&installed.program), None);
        }
    }

    fn set(&mut self, front: &Front, claim: Claim, owner: &ObjectKey) {
        let old = self.fronts.swap_remove(front);
        let old = old.as_ref().map(|installed| &installed.program);
        let program = claim.program.arranged(old);
        if old != Some(&program) {
            self.change(front, old, Some(&program));
        }
        self.fronts.insert(*front, Installed { owner: Some(owner.clone()), rank: claim.rank, program });
    }

    /// Notes the difference of two programs.
    fn change(&mut self, front: &Front, old: Option<&Program>, new: Option<&Program>) {
        let of = |program: Option<&Program>| program.map(|program| program.elements(front)).unwrap_or_default();
        let (before, after) = (of(old), of(new));
        let count = |program: Option<&Program>| program.map_or(0, |program| program.all.count());
        self.endpoints = self.endpoints + count(new) - count(old);
        for element in before.difference(&after) {
            self.sum = self.sum.wrapping_sub(digest(element));
            if !self.changes.added.remove(element) {
                self.changes.removed.insert(*element);
            }
        }
        for element in after.difference(&before) {
            self.sum = self.sum.wrapping_add(digest(element));
            if !self.changes.removed.remove(element) {
                self.changes.added.insert(*element);
            }
        }
        let ways = |program: Option<&Program>| program.map(|p| (p.all.clone(), p.local.clone()));
        if front.protocol != Protocol::Tcp && ways(old) != ways(new) {
            self.touched.insert(*front);
        }
        if old.is_some_and(|program| program.affinity.is_some()) && ways(old) != ways(new) {
            self.forgetting.insert(*front);
        }
    }

    /// Writes all changes since the last call; answers how many elements of fronts that are.
    pub fn write(&mut self, batch: &mut Batch) -> usize {
        self.write_strays(batch);
        self.strays.clear();
        let changes = std::mem::take(&mut self.changes);
        let chains = self.write_changes(batch, &changes);
        self.chains.extend(chains);
        for set in [SetName::ClusterIps, SetName::Hairpin] {
            let keep = !self.is_complete;
            let (remove, add) = self.addresses(set).settle(keep);
            write_addresses(batch, Message::DelElements, set, &remove);
            write_addresses(batch, Message::NewElements, set, &add);
        }
        changes.removed.len() + changes.added.len()
    }

    /// Writes the removal of what does not fit.
    pub fn write_strays(&self, batch: &mut Batch) {
        for stray in &self.strays {
            let of = (stray.family, TABLE, stray.set.name());
            elements(batch, Message::DelElements, of, [stray], |b, stray| {
                expr::value(b, 1, &stray.key);
                if let Some(end) = &stray.end {
                    expr::value(b, 10, end);
                }
            });
        }
    }

    /// Writes some changes of elements of fronts; answers the chains that they need and that were not there.
    pub fn write_changes(&self, batch: &mut Batch, changes: &Changes) -> BTreeSet<(Family, Numbered)> {
        let mut chains = BTreeSet::new();
        for element in &changes.added {
            let of = family(element.front().address);
            if let Some(chain) = element.chain()
                && !self.chains.contains(&(of, chain))
                && chains.insert((of, chain))
            {
                chain.write(batch, of);
            }
        }
        write_runs(batch, Message::DelElements, &changes.removed, Element::write_key);
        write_runs(batch, Message::NewElements, &changes.added, Element::write);
        chains
    }

    /// The changes of elements since the last [`Tables::write`], by front.
    pub fn changes(&self) -> BTreeMap<Front, Changes> {
        let mut all = BTreeMap::<Front, Changes>::new();
        for element in &self.changes.removed {
            all.entry(*element.front()).or_default().removed.insert(*element);
        }
        for element in &self.changes.added {
            all.entry(*element.front()).or_default().added.insert(*element);
        }
        all
    }

    /// From what the kernel has of a front to a program, when these are its changes so far.
    pub fn changes_to(&self, front: &Front, program: &Program, so_far: &Changes) -> Changes {
        let noted = self.program(front).map(|program| program.elements(front)).unwrap_or_default();
        let kept = noted.difference(&so_far.added);
        let before: BTreeSet<Element> = kept.chain(&so_far.removed).copied().collect();
        let after = program.elements(front);
        Changes {
            removed: before.difference(&after).copied().collect(),
            added: after.difference(&before).copied().collect(),
        }
    }

    fn addresses(&mut self, set: SetName) -> &mut Addresses {
        if set == SetName::Hairpin { &mut self.hairpin } else { &mut self.cluster_ips }
    }

    /// What the elements of the kernel must sum up to.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::of_elements(self.sum);
        let addresses = [(SetName::ClusterIps, &self.cluster_ips), (SetName::Hairpin, &self.hairpin)];
        for (set, addresses) in addresses {
            addresses.installed.iter().for_each(|address| sum.add_address(set, *address));
        }
        sum
    }
}

/// Messages for elements, one run of elements of the same set and family after the other.
fn write_runs(batch: &mut Batch, message: Message, all: &BTreeSet<Element>, write: impl Fn(&Element, &mut Batch)) {
    let place = |element: &Element| (element.set(), family(element.front().address));
    let mut rest = all.iter().peekable();
    while let Some((set, of)) = rest.peek().map(|element| place(element)) {
        let run = std::iter::from_fn(|| rest.next_if(|element| place(element) == (set, of)));
        elements(batch, message, (of, TABLE, set.name()), run, |b, element| write(element, b));
    }
}

fn write_addresses(batch: &mut Batch, message: Message, set: SetName, addresses: &[IpAddr]) {
    for of in [Family::V4, Family::V6] {
        let addresses = addresses.iter().filter(|address| family(**address) == of);
        elements(batch, message, (of, TABLE, set.name()), addresses, |b, address| {
            let mut key = Vec::new();
            octets(**address, &mut key);
            if set == SetName::Hairpin {
                octets(**address, &mut key);
            }
            expr::value(b, 1, &key);
        });
    }
}
