//! Our tables as the kernel has them: read at start, compared after somebody else's commit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::element::read_affinity;
use super::program::Element;
use super::structure::{self, SETS, SetName, TABLE};
use super::table::{Adoption, Sum, Tables};
use super::walk::maps::{Held, RulesFound};
use super::{Front, Settings};
use crate::nft::batch::{Batch, Message};
use crate::nft::decode::Raw;
use crate::nft::socket::{Dump, Kernel, again};
use crate::nft::{Family, decode, expr};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Bodies of expression lists by chain, in the order of the rules.
type Rules = BTreeMap<String, Vec<Vec<u8>>>;

/// Reads what the kernel holds, and writes the structure into `batch` where it is not what it should be.
pub fn adopt(kernel: &mut Kernel, settings: &Settings, batch: &mut Batch) -> io::Result<Tables> {
    let (tables, chains) = again(|| read(kernel))?;
    for (family, chains) in chains {
        if !has_structure(kernel, family, settings, &chains)? {
            structure::write(batch, family, settings, chains.iter().map(String::as_str));
        }
    }
    Ok(tables)
}

type Chains = Vec<(Family, BTreeSet<String>)>;

fn read(kernel: &mut Kernel) -> io::Result<(Tables, Chains)> {
    let mut adoption = Adoption::default();
    let mut all = Chains::new();
    let mut occupied = Vec::new();
    for family in FAMILIES {
        let chains = chains(kernel, family)?;
        chains.iter().for_each(|name| adoption.chain(family, name));
        let is_empty = chains.is_empty();
        all.push((family, chains));
        if is_empty {
            continue;
        }
        occupied.push(family);
        for set in SETS.into_iter().filter(|set| set.is_ours()) {
            kernel.elements(family, TABLE, set.name(), |raw| adoption.element(family, set, raw))?;
        }
    }
    if adoption.needs_second_pass() {
        for family in occupied {
            for set in SETS.into_iter().filter(|set| set.is_ours()) {
                kernel.elements(family, TABLE, set.name(), |raw| adoption.element_again(family, set, raw))?;
            }
        }
    }
    Ok((adoption.finish(), all))
}

/// Reads what the kernel holds of some fronts. It changes nothing, so it needs no turn of the programmer.
pub fn held(kernel: &mut Kernel, settings: &Settings, fronts: &BTreeSet<Front>) -> io::Result<Held> {
    let mut rules = [RulesFound::Missing; 2];
    for (family, rules) in FAMILIES.into_iter().zip(&mut rules) {
        let chains = chains(kernel, family)?;
        *rules = match (chains.is_empty(), has_structure(kernel, family, settings, &chains)?) {
            (true, _) => RulesFound::Missing,
            (false, true) => RulesFound::Ours,
            (false, false) => RulesFound::Changed,
        };
    }
    let held = again(|| {
        let mut held = Held { rules, ..Held::default() };
        for (family, set) in FAMILIES.into_iter().flat_map(|family| SETS.map(|set| (family, set))) {
            kernel.elements(family, TABLE, set.name(), |raw| take_held(&mut held, (family, set), raw, fronts))?;
        }
        Ok(held)
    })?;
    Ok(held)
}

fn take_held(held: &mut Held, (family, set): (Family, SetName), raw: &Raw<'_>, fronts: &BTreeSet<Front>) {
    match set {
        SetName::Affinity => {
            let client = read_affinity(family, raw).filter(|(front, ..)| fronts.contains(front));
            held.remembered.extend(client.map(|(front, client, backend)| ((front, client), backend)));
        }
        // A packet may be refused at the endpoint that it was sent to.
        SetName::ClusterIps | SetName::Hairpin | SetName::NoEndpoints => drop(held.maps.read(family, set, raw)),
        _ => {
            let element = Element::read(family, set, raw).filter(|element| fronts.contains(element.front()));
            element.iter().for_each(|element| held.maps.add(element));
        }
    }
}

/// Writes the structure of other settings into tables that are there; elements stay.
pub fn restructure(settings: &Settings, tables: &Tables, batch: &mut Batch) {
    for family in FAMILIES {
        let chains = tables.chain_names(family);
        structure::write(batch, family, settings, chains.iter().map(String::as_str));
    }
}

/// Writes the removal of our tables and the structure anew: for tables that cannot be brought to what they should be.
pub fn replace(settings: &Settings, batch: &mut Batch) {
    for family in FAMILIES {
        delete(batch, family);
        structure::write(batch, family, settings, std::iter::empty());
    }
}

/// Writes the removal of a table that may not be there.
pub fn delete(batch: &mut Batch, family: Family) {
    // Adding first makes deleting right also when there is no table.
    expr::add_table(batch, family, TABLE);
    expr::delete_table(batch, family, TABLE);
}

/// Whether sets, chains, rules and elements are those that were committed.
pub fn is_intact(kernel: &mut Kernel, settings: &Settings, tables: &Tables) -> io::Result<bool> {
    for family in FAMILIES {
        let chains = chains(kernel, family)?;
        if !has_structure(kernel, family, settings, &chains)? {
            return Ok(false);
        }
    }
    Ok(again(|| read_sum(kernel))? == tables.sum())
}

fn read_sum(kernel: &mut Kernel) -> io::Result<Sum> {
    let mut sum = Sum::default();
    for family in FAMILIES {
        for set in SETS.into_iter().filter(|set| set.is_ours()) {
            kernel.elements(family, TABLE, set.name(), |raw| sum.add(family, set, raw))?;
        }
    }
    Ok(sum)
}

fn chains(kernel: &mut Kernel, family: Family) -> io::Result<BTreeSet<String>> {
    let bodies = kernel.dump(family, Dump::Chains, |body, chains: &mut BTreeSet<String>| {
        if decode::string(body, 1) == Some(TABLE)
            && let Some(name) = decode::string(body, 3)
        {
            chains.insert(name.to_owned());
        }
    })?;
    Ok(bodies)
}

/// Whether the table has all of our chains with our rules and no others.
fn has_structure(
    kernel: &mut Kernel,
    family: Family,
    settings: &Settings,
    chains: &BTreeSet<String>,
) -> io::Result<bool> {
    if chains.iter().any(|name| !structure::is_known_chain(name)) {
        return Ok(false);
    }
    let mut batch = Batch::new();
    structure::write(&mut batch, family, settings, chains.iter().map(String::as_str));
    let mut expected = Rules::new();
    for body in batch.messages(Message::NewRule) {
        take_rule(body, &mut expected);
    }
    let found = kernel.dump(family, Dump::Rules(TABLE), take_rule)?;
    let same = |ours: &[Vec<u8>], theirs: &[Vec<u8>]| {
        ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(ours, theirs)| decode::contains(theirs, ours))
    };
    Ok(expected.len() == found.len()
        && expected.iter().all(|(chain, rules)| found.get(chain).is_some_and(|found| same(rules, found))))
}

fn take_rule(body: &[u8], rules: &mut Rules) {
    if decode::string(body, 1) == Some(TABLE)
        && let (Some(chain), Some(expressions)) = (decode::string(body, 2), decode::attribute(body, 4))
    {
        rules.entry(chain.to_owned()).or_default().push(expressions.to_vec());
    }
}
