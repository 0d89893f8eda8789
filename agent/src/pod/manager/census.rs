//! What others ask the manager: which pods it knows, and to look at everything now.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::Manager;
use crate::ids::PodUid;
use crate::pod::memory::Eviction;
use crate::pod::worker::Message;

/// What the manager knows of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its source wants it.
    Stays,
    /// It is being stopped and removed.
    Leaves,
}

/// All pods that have a worker.
pub type Census = BTreeMap<PodUid, Standing>;

/// A question or request.
#[derive(Debug)]
pub enum Question {
    /// Which pods there are; `None` until every source has delivered, because until then a pod that is missing says nothing.
    Census(oneshot::Sender<Option<Census>>),
    /// The full check, which otherwise comes every five minutes.
    Check,
    /// A pod is to be evicted. Does nothing when it is being stopped already.
    Evict(PodUid, Eviction),
}

impl Manager {
    pub(super) fn answer(&mut self, question: Question) {
        match question {
            Question::Census(reply) => {
                let standing = |wanted| if wanted { Standing::Stays } else { Standing::Leaves };
                let pods = self.workers.iter().map(|(uid, handle)| (uid.clone(), standing(handle.wanted)));
                let pods = pods.chain(self.arriving.keys().map(|uid| (uid.clone(), Standing::Stays)));
                // Whoever does not wait any more needs no answer.
                let _ = reply.send(self.awaited.is_empty().then(|| pods.collect()));
            }
            Question::Check => self.check(),
            Question::Evict(uid, eviction) => self.evict(&uid, eviction),
        }
    }

    /// Has every worker look at its pod, and looks for what nobody knows.
    pub(super) fn check(&mut self) {
        self.tell_all(&Message::Resync);
        self.find_orphans();
        self.decide_arrivals();
        self.decide_resizes();
    }
}
