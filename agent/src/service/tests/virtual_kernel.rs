//! A virtual kernel, which takes batches as the real one does: as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::nft::Family;
use crate::nft::batch::Batch;
use crate::nft::decode::{self, ElementData, Raw};
use crate::service::Front;
use crate::service::program::{Program, Way};
use crate::service::structure::{Numbered, SETS, SetName};
use crate::service::table::{Adoption, Sum, Tables};
use crate::service::walk::Maps;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Data {
    None,
    Value(Vec<u8>),
    Chain(String),
    Drop,
}

/// By key: the end of a range, and what it maps to.
pub(super) type Elements = BTreeMap<Vec<u8>, (Option<Vec<u8>>, Data)>;
/// Programs, and the elements that belong to no front.
pub(super) type Meaning = (BTreeMap<Front, Program>, BTreeSet<(Family, SetName, Vec<u8>)>);

#[derive(Clone, Debug, Default)]
pub(super) struct Kernel {
    pub(super) sets: BTreeMap<(Family, SetName), Elements>,
    chains: BTreeSet<(Family, Numbered)>,
}

impl Kernel {
    /// Takes a batch; panics where the real one would refuse it.
    pub(super) fn commit(&mut self, batch: &mut Batch) {
        for (kind, _, body) in decode::messages(batch.finish()) {
            let family = if body[0] == 2 { Family::V4 } else { Family::V6 };
            let body = &body[4..];
            match kind & 0xff {
                3 => {
                    let name = decode::string(body, 3).unwrap();
                    self.chains.extend(Numbered::parse(name).map(|chain| (family, chain)));
                }
                12 | 14 => {
                    let name = decode::string(body, 2).unwrap();
                    let set = SETS.into_iter().find(|set| set.name() == name).unwrap();
                    for raw in decode::elements(body) {
                        self.element(kind & 0xff == 12, family, set, &raw);
                    }
                }
                _ => {}
            }
        }
        batch.clear();
    }

    fn element(&mut self, is_new: bool, family: Family, set: SetName, raw: &Raw<'_>) {
        let elements = self.sets.entry((family, set)).or_default();
        if !is_new {
            assert!(elements.remove(raw.key).is_some(), "ENOENT: {set:?} has no {:?}", raw.key);
            return;
        }
        let data = match raw.data {
            ElementData::None => Data::None,
            ElementData::Value(value) => Data::Value(value.to_vec()),
            ElementData::Chain(name) => {
                let chain = Numbered::parse(name).unwrap();
                assert!(self.chains.contains(&(family, chain)), "ENOENT: no chain {name}");
                Data::Chain(name.to_owned())
            }
            ElementData::Drop => Data::Drop,
        };
        let old = elements.insert(raw.key.to_vec(), (raw.end.map(<[u8]>::to_vec), data));
        assert_eq!(old, None, "EEXIST in {set:?}");
    }

    fn dump(&self, mut each: impl FnMut(Family, SetName, &Raw<'_>)) {
        for (family, set) in FAMILIES.into_iter().flat_map(|family| SETS.map(|set| (family, set))) {
            for (key, (end, data)) in self.sets.get(&(family, set)).into_iter().flatten() {
                let data = match data {
                    Data::None => ElementData::None,
                    Data::Value(value) => ElementData::Value(value),
                    Data::Chain(name) => ElementData::Chain(name),
                    Data::Drop => ElementData::Drop,
                };
                each(family, set, &Raw { key, end: end.as_deref(), data });
            }
        }
    }

    pub(super) fn adopt(&self) -> Tables {
        let mut adoption = Adoption::default();
        self.chains.iter().for_each(|(family, chain)| adoption.chain(*family, &chain.name()));
        self.dump(|family, set, raw| adoption.element(family, set, raw));
        if adoption.needs_second_pass() {
            self.dump(|family, set, raw| adoption.element_again(family, set, raw));
        }
        adoption.finish()
    }

    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        self.dump(|family, set, raw| sum.add(family, set, raw));
        sum
    }

    /// What a packet finds in it.
    pub(super) fn maps(&self) -> Maps {
        let mut maps = Maps::default();
        self.dump(|family, set, raw| assert!(maps.read(family, set, raw), "{set:?} has {raw:?}"));
        maps
    }

    /// What it holds, with endpoints in no particular slots, and the elements of the shared sets.
    pub(super) fn meaning(&self) -> Meaning {
        let tables = self.adopt();
        let sorted = |way: &Way| match way {
            Way::To(backends) => Way::To(backends.iter().collect::<BTreeSet<_>>().into_iter().collect()),
            Way::Reject => Way::Reject,
            Way::Drop => Way::Drop,
        };
        let programs = tables.programs().map(|(front, program)| {
            let mut sources = program.sources.clone();
            sources.iter_mut().for_each(|sources| sources.sort());
            let local = program.local.as_ref().map(sorted);
            (*front, Program { all: sorted(&program.all), local, sources, ..program.clone() })
        });
        let programs = programs.collect();
        let mut shared = BTreeSet::new();
        self.dump(|family, set, raw| {
            if matches!(set, SetName::ClusterIps | SetName::Hairpin) {
                shared.insert((family, set, raw.key.to_vec()));
            }
        });
        (programs, shared)
    }
}
