//! Finding out which changes the kernel refuses, by asking it: nothing changes meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::Front;
use super::program::Program;
use super::refusal::{Part, Refused, sort_out};
use super::table::{Changes, Tables};
use crate::nft::NftError;
use crate::nft::batch::Batch;
use crate::nft::socket::Kernel;

/// Of so many refused fronts the parts are looked at; of more the whole front is left out, until it is tried again.
const IN_DETAIL: usize = 32;

/// What is refused of a front, and why.
pub struct Found {
    /// The front.
    pub front: Front,
    /// What of it.
    pub refused: Refused,
    /// The kernel's answer.
    pub error: io::Error,
}

struct Trial<'a> {
    kernel: &'a mut Kernel,
    /// What goes before the elements: the structure, where it is new.
    prelude: &'a Batch,
    tables: &'a Tables,
    /// The last answer that was a refusal.
    error: Option<io::Error>,
}

/// Asks which of the changes that are noted and not written yet the kernel would refuse after `prelude`. An error when
/// it refuses the prelude itself.
pub fn isolate(kernel: &mut Kernel, prelude: &Batch, tables: &Tables) -> Result<Vec<Found>, NftError> {
    let mut trial = Trial { kernel, prelude, tables, error: None };
    let changes = tables.changes();
    if !trial.takes(&Changes::default())? {
        return Err(NftError::Refused { sequence: 0, source: trial.answer() });
    }
    let fronts: Vec<Front> = changes.keys().copied().collect();
    let sum = |fronts: &[Front]| {
        let mut sum = Changes::default();
        fronts.iter().filter_map(|front| changes.get(front)).for_each(|of| sum.extend(of));
        sum
    };
    let (taken, refused) = sort_out(&fronts, |some| trial.takes(&sum(some)))?;
    let mut taken = sum(&taken);
    let mut found = Vec::new();
    for (at, front) in refused.into_iter().enumerate() {
        // One that is to go cannot be left out: it is read from the kernel again before the next try.
        let Some(program) = tables.program(&front) else { continue };
        let refused = if at < IN_DETAIL { trial.parts(&front, program, &changes, &mut taken)? } else { Refused::Whole };
        found.push(Found { front, refused, error: trial.answer() });
    }
    Ok(found)
}

impl Trial<'_> {
    fn takes(&mut self, changes: &Changes) -> Result<bool, NftError> {
        let mut batch = self.prelude.clone();
        self.tables.write_strays(&mut batch);
        self.tables.write_changes(&mut batch, changes);
        match self.kernel.check(&mut batch) {
            Ok(()) => Ok(true),
            Err(NftError::Refused { source, .. }) => {
                self.error = Some(source);
                Ok(false)
            }
            Err(other) => Err(other),
        }
    }

    fn answer(&self) -> io::Error {
        let code = self.error.as_ref().and_then(io::Error::raw_os_error);
        code.map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error)
    }

    /// What of a refused front is to blame. What is left of it joins what is taken.
    fn parts(
        &mut self,
        front: &Front,
        program: &Program,
        changes: &BTreeMap<Front, Changes>,
        taken: &mut Changes,
    ) -> Result<Refused, NftError> {
        let so_far = changes.get(front).cloned().unwrap_or_default();
        let parts: Vec<Part> = program.parts().into_iter().collect();
        let tables = self.tables;
        let with = |some: &[Part], taken: &Changes| {
            let left_out: BTreeSet<Part> = parts.iter().filter(|part| !some.contains(part)).copied().collect();
            let mut all = taken.clone();
            all.extend(&tables.changes_to(front, &program.clone().without(&left_out), &so_far));
            all
        };
        if !self.takes(&with(&[], taken))? {
            return Ok(Refused::Whole);
        }
        let (kept, refused) = sort_out(&parts, |some| self.takes(&with(some, taken)))?;
        *taken = with(&kept, taken);
        Ok(Refused::Parts(refused.into_iter().collect()))
    }
}
