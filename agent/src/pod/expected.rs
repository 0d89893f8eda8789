//! Exits that were announced and not yet seen. Pure.
//!
//! containerd publishes a task's exit before its CRI plugin has taken note of it, so that a look right after the event may
//! still see the container running. The look is repeated after 5, 10, 20 ms ... up to ten times (5 s in all). A container
//! may also end while its own start is still being answered: then the answer is waited for, and looked behind.

use std::collections::BTreeMap;

use crate::cri::{Nanos, PodRuntime};

const TRIES: u32 = 10;
const FIRST_PAUSE: Nanos = 5_000_000;

/// Ids of containers and sandboxes that must have ended.
#[derive(Debug, Default)]
pub struct ExpectedExits {
    ids: BTreeMap<String, Tried>,
}

#[derive(Debug, Default)]
struct Tried {
    times: u32,
    again_at: Nanos,
}

/// What is known of an id.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Running,
    Ended,
    Nothing,
}

fn known(runtime: &PodRuntime, id: &str) -> Known {
    let container = runtime.containers.iter().find(|c| c.id.as_str() == id).map(|c| c.is_exited());
    let sandbox = runtime.sandboxes.iter().find(|s| s.id.as_str() == id).map(|s| !s.ready);
    match container.or(sandbox) {
        Some(true) => Known::Ended,
        Some(false) => Known::Running,
        None => Known::Nothing,
    }
}

impl ExpectedExits {
    /// The runtime has announced this exit.
    pub fn announce(&mut self, id: String) {
        self.ids.insert(id, Tried::default());
    }

    /// Forgets what has been seen or looked for long enough; answers whether to look now. `is_starting`: an operation is
    /// in flight that may bring an id that is not known yet.
    pub fn is_due(&mut self, runtime: &PodRuntime, is_starting: bool, now: Nanos) -> bool {
        self.ids.retain(|id, tried| match known(runtime, id) {
            Known::Ended => false,
            Known::Running => tried.times < TRIES,
            Known::Nothing => is_starting || tried.times == 0,
        });
        self.ids.iter().any(|(id, tried)| {
            let waits_for_start = is_starting && known(runtime, id) == Known::Nothing;
            !waits_for_start && tried.again_at <= now
        })
    }

    /// A look begins; it counts for every id that it can show.
    pub fn looked(&mut self, runtime: &PodRuntime, is_starting: bool, now: Nanos) {
        for (id, tried) in &mut self.ids {
            if !(is_starting && known(runtime, id) == Known::Nothing) {
                tried.again_at = now + (FIRST_PAUSE << tried.times);
                tried.times += 1;
            }
        }
    }

    /// When to look again.
    pub fn next(&self, now: Nanos) -> Option<Nanos> {
        self.ids.values().map(|tried| tried.again_at).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::{ContainerState, ContainerView};

    fn runtime(state: Option<ContainerState>) -> PodRuntime {
        let view = |state| ContainerView {
            id: "c".into(),
            name: "first".into(),
            sandbox: "s".into(),
            attempt: 0,
            state,
            created_at: 0,
            image: String::new(),
            image_ref: String::new(),
            hash: None,
            termination_message: None,
            message_falls_back_to_logs: false,
            log_path: String::new(),
            user: None,
            stop_signal: None,
            resources: None,
        };
        PodRuntime { containers: state.into_iter().map(view).collect(), ..PodRuntime::default() }
    }

    fn running() -> PodRuntime {
        runtime(Some(ContainerState::Running { started_at: 1 }))
    }

    fn ended() -> PodRuntime {
        let (reason, message) = (String::new(), String::new());
        runtime(Some(ContainerState::Exited { started_at: 1, finished_at: 2, exit_code: 0, reason, message }))
    }

    #[test]
    fn an_exit_announced_while_its_start_is_being_answered_is_not_forgotten() {
        let mut expected = ExpectedExits::default();
        expected.announce("c".into());
        // Other things make the worker look in the meantime.
        assert!(!expected.is_due(&runtime(None), true, 10), "there is nothing to see yet");
        expected.looked(&runtime(None), true, 10);
        assert!(!expected.is_due(&runtime(None), true, 20));
        // The start is answered with a view that is older than the exit.
        assert!(expected.is_due(&running(), false, 30));
        expected.looked(&running(), false, 30);
        assert_eq!(expected.next(30), Some(30 + FIRST_PAUSE));
        assert!(!expected.is_due(&ended(), false, 40));
        assert_eq!(expected.next(40), None, "seen");
    }

    #[test]
    fn looks_for_an_exit_that_the_runtime_never_admits_come_to_an_end() {
        let mut expected = ExpectedExits::default();
        expected.announce("c".into());
        let (mut now, mut looks) = (0, 0);
        while expected.is_due(&running(), false, now) {
            expected.looked(&running(), false, now);
            looks += 1;
            now = expected.next(now).unwrap();
        }
        assert_eq!(looks, TRIES);
        assert!((5_000_000_000..6_000_000_000).contains(&now), "{now}");
    }

    #[test]
    fn an_id_that_nobody_brings_is_looked_for_once() {
        let mut expected = ExpectedExits::default();
        expected.announce("c".into());
        assert!(expected.is_due(&runtime(None), false, 0));
        expected.looked(&runtime(None), false, 0);
        assert!(!expected.is_due(&runtime(None), false, Nanos::MAX));
    }
}
