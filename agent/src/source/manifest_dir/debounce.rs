//! When may a changed file be read? Pure; `now` is an argument.
//!
//! A prefix of a YAML file is often a good YAML file, so a half-written manifest must not be applied. And an editor that
//! saves by "move the old file away, write a new one" must not stop the pod in between.
//!
//! | what was seen last | the file is read |
//! |---|---|
//! | closed after writing, or moved in | 10 ms later (one save is often several of these) |
//! | created | 200 ms later (a link has no close; a writer will be seen writing) |
//! | written to | when closed, or when nothing was written for 1 s |
//! | deleted or moved away | 100 ms later, if it is still gone |

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What happened to one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// Its content is complete.
    Complete,
    /// It appeared, perhaps to be written.
    Created,
    /// Somebody writes to it.
    Writing,
    /// It is no longer there.
    Gone,
}

impl Touch {
    fn delay(self) -> Duration {
        Duration::from_millis(match self {
            Self::Complete => 10,
            Self::Created => 200,
            Self::Writing => 1000,
            Self::Gone => 100,
        })
    }
}

/// What one pass over the directory does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Read these whatever their time stamps say.
    pub(super) changed: BTreeSet<String>,
    /// Leave these as they are: a writer is busy, or a replacement is on its way.
    pub(super) busy: BTreeSet<String>,
}

/// Files that changed and are not read yet.
#[derive(Debug, Default)]
pub(super) struct Debounce {
    files: BTreeMap<String, Instant>,
    all: Option<Instant>,
}

impl Debounce {
    /// Notes an event of `name`; the latest event decides.
    pub(super) fn touch(&mut self, name: &str, touch: Touch, now: Instant) {
        self.files.insert(name.to_owned(), now + touch.delay());
    }

    /// Asks for a full pass soon.
    pub(super) fn everything(&mut self, now: Instant) {
        self.all.get_or_insert(now + Touch::Complete.delay());
    }

    /// When [`Debounce::take`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.files.values().copied().chain(self.all).min()
    }

    /// Takes out what is due.
    pub(super) fn take(&mut self, now: Instant) -> Work {
        self.all = self.all.filter(|due| *due > now);
        let (ready, busy) =
            std::mem::take(&mut self.files).into_iter().partition::<BTreeMap<_, _>, _>(|(_, d)| *d <= now);
        let work = Work { changed: ready.into_keys().collect(), busy: busy.keys().cloned().collect() };
        self.files = busy;
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_file_is_not_read_while_it_is_being_written() {
        let (mut d, t) = (Debounce::default(), Instant::now());
        d.touch("a.yaml", Touch::Created, t);
        for i in 1..30 {
            d.touch("a.yaml", Touch::Writing, t + ms(i * 50));
            let work = d.take(t + ms(i * 50 + 49));
            assert!(work.changed.is_empty() && work.busy.contains("a.yaml"));
        }
        d.touch("a.yaml", Touch::Complete, t + ms(1500));
        assert_eq!(d.due(), Some(t + ms(1510)));
        assert!(d.take(t + ms(1510)).changed.contains("a.yaml"));
        assert_eq!(d.due(), None);
    }

    #[test]
    fn a_file_that_an_editor_replaces_is_never_seen_missing() {
        let (mut d, t) = (Debounce::default(), Instant::now());
        d.touch("a.yaml", Touch::Gone, t);
        assert!(d.take(t + ms(50)).busy.contains("a.yaml"));
        d.touch("a.yaml", Touch::Created, t + ms(60));
        d.touch("a.yaml", Touch::Writing, t + ms(61));
        assert!(d.take(t + ms(150)).busy.contains("a.yaml"));
        d.touch("a.yaml", Touch::Complete, t + ms(160));
        assert!(d.take(t + ms(170)).changed.contains("a.yaml"));
    }

    #[test]
    fn one_busy_file_does_not_hold_back_another() {
        let (mut d, t) = (Debounce::default(), Instant::now());
        d.touch("slow.yaml", Touch::Writing, t);
        d.touch("b.yaml", Touch::Complete, t);
        let work = d.take(t + ms(10));
        assert_eq!(work.changed.iter().collect::<Vec<_>>(), ["b.yaml"]);
        assert_eq!(work.busy.iter().collect::<Vec<_>>(), ["slow.yaml"]);
        assert_eq!(d.due(), Some(t + ms(1000)));
    }

    #[test]
    fn a_full_pass_is_done_once() {
        let (mut d, t) = (Debounce::default(), Instant::now());
        d.everything(t);
        d.everything(t + ms(5));
        assert_eq!(d.due(), Some(t + ms(10)));
        d.take(t + ms(10));
        assert_eq!(d.due(), None);
    }
}
