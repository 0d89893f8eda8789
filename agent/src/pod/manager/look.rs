//! Looks at the runtime as a whole: which pod an id belongs to, and which pods nobody wants.
//!
//! One look at a time. What is asked for while one is under way is answered by the next, because the list may have been
//! made before. [`Looking`] is pure.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cri::RuntimePods;
use crate::cri::events::ChangeKind;
use crate::metrics::METRICS;
use crate::pod::leftovers::{self, Left};
use crate::pod::shared::Shared;

/// Events that wait for a look; more than this many are dropped, and found by the next full check.
const MOST_EVENTS: usize = 1024;
/// Pause after a look that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// What a look has shown.
pub(super) struct Seen {
    /// All pods of the runtime; `None` when it could not be asked.
    pub(super) pods: Option<RuntimePods>,
    /// What pods left on the node, where that was asked for.
    pub(super) left: Option<Result<Left, String>>,
}

impl Seen {
    /// Nothing.
    pub(super) fn failed() -> Self {
        Self { pods: None, left: None }
    }
}

/// Whether orphans are looked for, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    orphans: bool,
}

/// Looks. What cannot be listed is not looked for elsewhere: a pod that is not seen is not gone.
pub(super) async fn look(shared: Arc<Shared>, wanted: Wanted) -> Seen {
    let began = Instant::now();
    let listed = shared.runtime.list_pods().await;
    METRICS.relist.duration.observe(began.elapsed());
    match listed {
        Ok(pods) if wanted.orphans => Seen { pods: Some(pods), left: Some(leftovers::look(&shared).await) },
        Ok(pods) => Seen { pods: Some(pods), left: None },
        Err(error) => {
            tracing::warn!(%error, "cannot list the runtime's pods; trying again in five seconds");
            tokio::time::sleep(PAUSE).await;
            Seen::failed()
        }
    }
}

/// Which looks are wanted and under way.
#[derive(Debug, Default)]
pub(super) struct Looking {
    under_way: Option<Wanted>,
    orphans: bool,
    /// Events whose pod is not known: for the look under way, and for the one after it.
    waiting: Vec<(String, ChangeKind)>,
    next: Vec<(String, ChangeKind)>,
}

impl Looking {
    /// Asks for the pod of an event.
    pub(super) fn place(&mut self, id: String, kind: ChangeKind) {
        if self.next.len() < MOST_EVENTS {
            self.next.push((id, kind));
        }
    }

    /// Asks for orphans.
    pub(super) fn want_orphans(&mut self) {
        self.orphans = true;
    }

    /// The look to begin now, if one is wanted and none is under way.
    pub(super) fn begin(&mut self) -> Option<Wanted> {
        if self.under_way.is_some() || (self.next.is_empty() && !self.orphans) {
            return None;
        }
        self.waiting = std::mem::take(&mut self.next);
        self.under_way = Some(Wanted { orphans: std::mem::take(&mut self.orphans) });
        self.under_way
    }

    /// The look has ended; these events wanted it.
    pub(super) fn end(&mut self) -> Vec<(String, ChangeKind)> {
        self.under_way = None;
        std::mem::take(&mut self.waiting)
    }

    /// The look has shown nothing: whoever wanted it still does.
    pub(super) fn fail(&mut self) {
        self.orphans |= self.under_way.take().is_some_and(|wanted| wanted.orphans);
        self.waiting.append(&mut self.next);
        self.waiting.truncate(MOST_EVENTS);
        self.next = std::mem::take(&mut self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_during_a_look_is_answered_by_the_next_one() {
        let mut looking = Looking::default();
        assert_eq!(looking.begin(), None);
        looking.place("a".into(), ChangeKind::Stopped);
        assert_eq!(looking.begin(), Some(Wanted { orphans: false }));
        looking.place("b".into(), ChangeKind::Stopped);
        looking.want_orphans();
        assert_eq!(looking.begin(), None, "one at a time");
        assert_eq!(looking.end(), [("a".to_owned(), ChangeKind::Stopped)]);
        assert_eq!(looking.begin(), Some(Wanted { orphans: true }));
        assert_eq!(looking.end(), [("b".to_owned(), ChangeKind::Stopped)]);
        assert_eq!(looking.begin(), None);
    }

    #[test]
    fn a_look_that_failed_is_repeated_for_everybody_who_wanted_it() {
        let mut looking = Looking::default();
        looking.want_orphans();
        looking.place("a".into(), ChangeKind::Stopped);
        looking.begin();
        looking.place("b".into(), ChangeKind::Stopped);
        looking.fail();
        assert_eq!(looking.begin(), Some(Wanted { orphans: true }));
        assert_eq!(looking.end().len(), 2);
    }

    #[test]
    fn a_flood_of_foreign_events_is_bounded() {
        let mut looking = Looking::default();
        (0..10 * MOST_EVENTS).for_each(|n| looking.place(n.to_string(), ChangeKind::Stopped));
        looking.begin();
        assert_eq!(looking.end().len(), MOST_EVENTS);
    }
}
