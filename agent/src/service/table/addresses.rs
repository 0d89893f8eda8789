//! Sets of addresses that many fronts or endpoints share. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

/// A set of addresses that many fronts or endpoints share.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    pub(super) wanted: HashMap<IpAddr, u32>,
    pub(super) installed: HashSet<IpAddr>,
    touched: BTreeSet<IpAddr>,
}

impl Addresses {
    pub(super) fn want(&mut self, address: IpAddr) {
        *self.wanted.entry(address).or_default() += 1;
        self.touched.insert(address);
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        if let Some(count) = self.wanted.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.wanted.remove(&address);
            }
        }
        self.touched.insert(address);
    }

    pub(super) fn adopt(&mut self, address: IpAddr) {
        self.installed.insert(address);
        self.touched.insert(address);
    }

    /// What is to be removed and what is to be added, which is then taken as done. What was adopted and is not wanted yet
    /// stays until everything was looked at.
    pub(super) fn settle(&mut self, keep: bool) -> (Vec<IpAddr>, Vec<IpAddr>) {
        let (mut add, mut remove, mut later) = (Vec::new(), Vec::new(), BTreeSet::new());
        for address in std::mem::take(&mut self.touched) {
            match (self.wanted.contains_key(&address), self.installed.contains(&address)) {
                (true, false) => add.push(address),
                (false, true) if keep => drop(later.insert(address)),
                (false, true) => remove.push(address),
                (true, true) | (false, false) => {}
            }
        }
        self.touched = later;
        self.installed.extend(add.iter().copied());
        for address in &remove {
            self.installed.remove(address);
        }
        (remove, add)
    }
}
