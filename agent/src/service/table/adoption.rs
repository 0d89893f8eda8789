//! Reading what the kernel holds: into programs, or into a number that tells whether it is what it should be. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{Stray, Tables};
use crate::nft::Family;
use crate::nft::decode::Raw;
use crate::service::Front;
use crate::service::element::{digest, read_address};
use crate::service::program::Element;
use crate::service::structure::{Numbered, SetName};

/// A number for all elements of our sets, whatever their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    elements: u64,
    addresses: u64,
    /// Elements that are none of ours.
    strange: u64,
}

impl Sum {
    pub(super) fn of_elements(elements: u64) -> Self {
        Self { elements, ..Self::default() }
    }

    pub(super) fn add_address(&mut self, set: SetName, address: IpAddr) {
        self.addresses = self.addresses.wrapping_add(digest(&(set, address)));
    }

    /// Adds an element of a dump.
    pub fn add(&mut self, family: Family, set: SetName, raw: &Raw<'_>) {
        match what(family, set, raw) {
            Some(What::Element(element)) => self.elements = self.elements.wrapping_add(digest(&element)),
            Some(What::Address(address)) => self.add_address(set, address),
            None => self.strange += 1,
        }
    }
}

enum What {
    Element(Element),
    Address(IpAddr),
}

/// What an element of a dump is; `None` when it is nothing that we write.
fn what(family: Family, set: SetName, raw: &Raw<'_>) -> Option<What> {
    match set {
        SetName::ClusterIps => read_address(family, raw.key).map(|(address, _)| What::Address(address)),
        SetName::Hairpin => {
            let (address, rest) = read_address(family, raw.key)?;
            let (same, _) = read_address(family, rest)?;
            (address == same).then_some(What::Address(address))
        }
        _ => Element::read(family, set, raw).map(What::Element),
    }
}

/// Reading what the kernel holds, in two passes: the second one only when something does not fit.
#[derive(Debug, Default)]
pub struct Adoption {
    tables: Tables,
    sums: HashMap<Front, u64>,
    misfits: HashSet<Front>,
    is_strange: bool,
}

impl Adoption {
    /// Takes note of a chain.
    pub fn chain(&mut self, family: Family, name: &str) {
        self.tables.chains.extend(Numbered::parse(name).map(|chain| (family, chain)));
    }

    /// First pass: an element.
    pub fn element(&mut self, family: Family, set: SetName, raw: &Raw<'_>) {
        match what(family, set, raw) {
            Some(What::Element(element)) => {
                let front = *element.front();
                self.tables.fronts.entry(front).or_default().program.take_in(&element);
                let sum = self.sums.entry(front).or_default();
                *sum = sum.wrapping_add(digest(&element));
            }
            Some(What::Address(address)) => self.tables.addresses(set).adopt(address),
            None => self.is_strange = true,
        }
    }

    /// Ends the first pass; answers whether a second one is needed.
    pub fn needs_second_pass(&mut self) -> bool {
        for (front, sum) in std::mem::take(&mut self.sums) {
            let Some(installed) = self.tables.fronts.get(&front) else { continue };
            let elements = installed.program.elements(&front);
            if elements.iter().map(digest).fold(0, u64::wrapping_add) == sum {
                self.tables.sum = self.tables.sum.wrapping_add(sum);
                self.tables.endpoints += installed.program.all.count();
            } else {
                self.tables.fronts.swap_remove(&front);
                self.misfits.insert(front);
            }
        }
        self.is_strange || !self.misfits.is_empty()
    }

    /// Second pass: an element.
    pub fn element_again(&mut self, family: Family, set: SetName, raw: &Raw<'_>) {
        let is_stray = match what(family, set, raw) {
            Some(What::Element(element)) => self.misfits.contains(element.front()),
            Some(What::Address(_)) => false,
            None => true,
        };
        if is_stray {
            let (key, end) = (raw.key.to_vec(), raw.end.map(<[u8]>::to_vec));
            self.tables.strays.push(Stray { family, set, key, end });
        }
    }

    /// What was read.
    pub fn finish(self) -> Tables {
        self.tables
    }
}
