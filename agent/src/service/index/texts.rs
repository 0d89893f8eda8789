//! Names that many objects have, each once. Pure.

use std::collections::HashSet;
use std::sync::Arc;

/// Fewer are never looked through for those that nobody has any more.
const FEW: usize = 64;

/// Names of namespaces and ports. Namespaces come and go for as long as an agent runs: whenever there are twice as many as
/// were in use, those that only this has are dropped, which is a constant amount of work for each new one.
#[derive(Debug, Default)]
pub(super) struct Texts {
    all: HashSet<Arc<str>>,
    in_use: usize,
}

impl Texts {
    /// The text that all others have, too.
    pub(super) fn one(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(known) = self.all.get(&text) {
            return known.clone();
        }
        if self.all.len() >= FEW.max(2 * self.in_use) {
            self.all.retain(|text| Arc::strong_count(text) > 1);
            self.in_use = self.all.len();
        }
        self.all.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_those_of_nobody_are_dropped() {
        let mut texts = Texts::default();
        let kept = texts.one("kept".into());
        for n in 0..10 * FEW {
            texts.one(format!("namespace-{n}").into());
        }
        assert!(Arc::ptr_eq(&kept, &texts.one("kept".into())));
        assert!(texts.all.len() <= FEW, "{}", texts.all.len());
        let many: Vec<_> = (0..10 * FEW).map(|n| texts.one(format!("used-{n}").into())).collect();
        assert!(many.iter().all(|text| Arc::ptr_eq(text, &texts.one((**text).into()))), "nothing in use is dropped");
    }
}
