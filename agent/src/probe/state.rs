//! When a probe runs and what its answers mean. Pure; `now` is an argument.
//!
//! ```text
//!            gate opens (startup probe succeeded, or there is none)
//!  Gated ───────────────────────────────► Waiting { at } ──begin──► Running { since } ──finish──► Waiting { at }
//!                                                                        │
//!               startup decided, or liveness failed                      └──────────────────────► Held
//! ```
//! `Held` ends with the container: what comes next is decided by whoever reads the result.

use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, ProbeResult, ProbeSpec};

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The container answered as it should.
    Success,
    /// It did not.
    Failure,
    /// Nothing was learnt about the container.
    Inconclusive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Gated,
    Waiting { at: Instant },
    Running { since: Instant },
    Held,
}

/// The state of one probe of one container.
#[derive(Debug)]
pub struct Machine {
    spec: ProbeSpec,
    first_at: Instant,
    phase: Phase,
    result: ProbeResult,
    /// Equal decisive outcomes in a row.
    run: (bool, u32),
}

impl Machine {
    /// A probe of a container that was started at `started_at`. `open` says that no startup probe holds it back, `seed` is
    /// a result from before a restart of the agent, and `jitter` delays the first attempt.
    pub fn new(
        spec: ProbeSpec,
        started_at: Instant,
        open: bool,
        seed: Option<ProbeResult>,
        jitter: Duration,
        now: Instant,
    ) -> Self {
        let initial = match spec.kind {
            Kind::Startup => ProbeResult::Unknown,
            Kind::Liveness => ProbeResult::Success,
            Kind::Readiness => ProbeResult::Failure,
        };
        let result = seed.filter(|s| *s != ProbeResult::Unknown).unwrap_or(initial);
        let first_at = (started_at + spec.initial_delay).max(now) + jitter;
        let phase = match spec.kind {
            Kind::Startup if result == ProbeResult::Unknown => Phase::Waiting { at: first_at },
            Kind::Startup => Phase::Held,
            Kind::Liveness if result == ProbeResult::Failure => Phase::Held,
            Kind::Liveness | Kind::Readiness if open => Phase::Waiting { at: first_at },
            Kind::Liveness | Kind::Readiness => Phase::Gated,
        };
        Self { spec, first_at, phase, result, run: (false, 0) }
    }

    /// The published result.
    pub fn result(&self) -> ProbeResult {
        self.result
    }

    /// When the next attempt is due; `None` while it waits for something else than time.
    pub fn wake_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { at } => Some(at),
            Phase::Gated | Phase::Running { .. } | Phase::Held => None,
        }
    }

    /// Is it waiting for the startup probe?
    pub fn is_gated(&self) -> bool {
        self.phase == Phase::Gated
    }

    /// Will it never run again for this container?
    pub fn is_held(&self) -> bool {
        self.phase == Phase::Held
    }

    /// The startup probe succeeded: probe at once.
    pub fn open_gate(&mut self, now: Instant) {
        if self.phase == Phase::Gated {
            self.phase = Phase::Waiting { at: self.first_at.max(now) };
        }
    }

    /// Begins an attempt if one is due.
    pub fn begin(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Waiting { at } if at <= now => {
                self.phase = Phase::Running { since: now };
                true
            }
            _ => false,
        }
    }

    /// Ends the attempt; answers whether the published result changed.
    ///
    /// Attempts are `periodSeconds` apart from begin to begin; one that takes longer is followed at once.
    pub fn finish(&mut self, outcome: Outcome, now: Instant) -> bool {
        let Phase::Running { since } = self.phase else { return false };
        self.phase = Phase::Waiting { at: (since + self.spec.period).max(now) };
        let good = match outcome {
            Outcome::Inconclusive => return false,
            Outcome::Success => true,
            Outcome::Failure => false,
        };
        self.run = if self.run.1 > 0 && self.run.0 == good { (good, self.run.1.saturating_add(1)) } else { (good, 1) };
        let (threshold, decided) = if good {
            (self.spec.success_threshold, ProbeResult::Success)
        } else {
            (self.spec.failure_threshold, ProbeResult::Failure)
        };
        if self.run.1 < threshold {
            return false;
        }
        let changed = self.result != decided;
        self.result = decided;
        let held = match self.spec.kind {
            Kind::Startup => true,
            // The container is to be restarted; an exec into a container that is being stopped only confuses the runtime.
            Kind::Liveness => !good,
            Kind::Readiness => false,
        };
        if held {
            self.phase = Phase::Held;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::super::Handler;
    use super::*;

    fn spec(kind: Kind, success: u32, failure: u32) -> ProbeSpec {
        ProbeSpec {
            kind,
            handler: Handler::Tcp { host: None, port: 1 },
            initial_delay: Duration::from_secs(2),
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: success,
            failure_threshold: failure,
        }
    }

    fn machine(kind: Kind, success: u32, failure: u32, now: Instant) -> Machine {
        Machine::new(spec(kind, success, failure), now, true, None, Duration::ZERO, now)
    }

    fn attempt(m: &mut Machine, outcome: Outcome) -> bool {
        let at = m.wake_at().unwrap();
        assert!(m.begin(at));
        m.finish(outcome, at + Duration::from_millis(5))
    }

    #[test]
    fn results_begin_as_kubelets_do() {
        let now = Instant::now();
        let table = [
            (Kind::Startup, ProbeResult::Unknown),
            (Kind::Liveness, ProbeResult::Success),
            (Kind::Readiness, ProbeResult::Failure),
        ];
        for (kind, result) in table {
            assert_eq!(machine(kind, 1, 3, now).result(), result);
        }
    }

    #[test]
    fn the_first_attempt_comes_after_the_initial_delay_and_then_each_period() {
        let now = Instant::now();
        let mut m = machine(Kind::Readiness, 1, 3, now);
        assert_eq!(m.wake_at(), Some(now + Duration::from_secs(2)));
        assert!(!m.begin(now + Duration::from_secs(1)), "not before its time");
        assert!(attempt(&mut m, Outcome::Success));
        assert_eq!(m.wake_at(), Some(now + Duration::from_secs(12)));
        let late = now + Duration::from_secs(12);
        assert!(m.begin(late));
        m.finish(Outcome::Success, late + Duration::from_secs(25));
        assert_eq!(m.wake_at(), Some(late + Duration::from_secs(25)), "an overlong attempt is followed at once");
    }

    #[test]
    fn a_container_that_has_run_long_is_probed_at_once_and_an_adopted_one_with_jitter() {
        let now = Instant::now() + Duration::from_secs(3600);
        let started = now - Duration::from_secs(100);
        let m = Machine::new(spec(Kind::Liveness, 1, 3), started, true, None, Duration::ZERO, now);
        assert_eq!(m.wake_at(), Some(now));
        let jitter = Duration::from_secs(7);
        let m = Machine::new(spec(Kind::Readiness, 1, 3), started, true, Some(ProbeResult::Success), jitter, now);
        assert_eq!((m.wake_at(), m.result()), (Some(now + jitter), ProbeResult::Success));
    }

    #[test]
    fn liveness_fails_only_after_its_threshold_and_then_stops() {
        let mut m = machine(Kind::Liveness, 1, 3, Instant::now());
        assert!(!attempt(&mut m, Outcome::Failure));
        assert!(!attempt(&mut m, Outcome::Failure));
        assert!(!attempt(&mut m, Outcome::Success), "a success in between begins anew");
        assert!(!attempt(&mut m, Outcome::Failure));
        assert!(!attempt(&mut m, Outcome::Failure));
        assert_eq!(m.result(), ProbeResult::Success);
        assert!(attempt(&mut m, Outcome::Failure));
        assert_eq!((m.result(), m.is_held(), m.wake_at()), (ProbeResult::Failure, true, None));
    }

    #[test]
    fn an_inconclusive_attempt_neither_counts_nor_resets() {
        let mut m = machine(Kind::Readiness, 1, 2, Instant::now());
        assert!(attempt(&mut m, Outcome::Success));
        assert!(!attempt(&mut m, Outcome::Failure));
        assert!(!attempt(&mut m, Outcome::Inconclusive));
        assert!(attempt(&mut m, Outcome::Failure));
    }

    #[test]
    fn the_startup_probe_holds_the_others_and_stops_when_decided() {
        let now = Instant::now();
        let mut live = Machine::new(spec(Kind::Liveness, 1, 1), now, false, None, Duration::ZERO, now);
        assert!(live.is_gated() && live.wake_at().is_none());
        let mut startup = machine(Kind::Startup, 1, 30, now);
        for _ in 0..29 {
            assert!(!attempt(&mut startup, Outcome::Failure));
        }
        assert!(attempt(&mut startup, Outcome::Success));
        assert!(startup.is_held());
        let later = now + Duration::from_secs(300);
        live.open_gate(later);
        assert_eq!(live.wake_at(), Some(later), "the others begin at once");
    }

    proptest::proptest! {
        /// The published result equals what a reader of the whole history would say.
        #[test]
        fn the_result_follows_the_last_decisive_run(
            history in proptest::collection::vec(0u8..3, 0..60), success in 1u32..4, failure in 1u32..4
        ) {
            let mut m = machine(Kind::Readiness, success, failure, Instant::now());
            let mut decisive = Vec::new();
            let mut expected = ProbeResult::Failure;
            for step in history {
                let outcome = [Outcome::Success, Outcome::Failure, Outcome::Inconclusive][usize::from(step)];
                let before = m.result();
                let changed = attempt(&mut m, outcome);
                if outcome != Outcome::Inconclusive {
                    decisive.push(outcome);
                }
                let run = decisive.iter().rev().take_while(|o| Some(*o) == decisive.last()).count() as u32;
                match decisive.last() {
                    Some(Outcome::Success) if run >= success => expected = ProbeResult::Success,
                    Some(Outcome::Failure) if run >= failure => expected = ProbeResult::Failure,
                    _ => {}
                }
                proptest::prop_assert_eq!(m.result(), expected);
                proptest::prop_assert_eq!(changed, before != m.result());
                proptest::prop_assert!(m.wake_at().is_some(), "readiness never stops");
            }
        }
    }
}
