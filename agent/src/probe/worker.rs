//! The task of one probe: waits for its turn, runs it, folds the answer into the machine, tells what changed.

use std::future::{Future, pending};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::figures::Figures;
use super::{Handler, Kind, Machine, Outcome, ProbeResult, ProbeSpec, Results, Tools, exec, grpc, http, tcp};
use crate::event::{Event, EventType, Subject};
use crate::ids::{ContainerId, PodUid};

/// What one attempt brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    /// For the event.
    pub(super) text: String,
    /// A success that people should look at.
    pub(super) warning: bool,
}

impl Answer {
    pub(super) fn success(text: String) -> Self {
        Self { outcome: Outcome::Success, text, warning: false }
    }

    pub(super) fn failure(text: String) -> Self {
        Self { outcome: Outcome::Failure, text, warning: false }
    }

    pub(super) fn inconclusive(text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Inconclusive, text: text.into(), warning: false }
    }
}

/// Our own timers fire this much late only when the process or the machine is overloaded.
const OWN_DELAY: Duration = Duration::from_millis(500);

/// Runs an attempt for at most `timeout`. If the timer itself came late, the time was ours and not the container's, and the
/// answer might be waiting unread: that is inconclusive.
pub(super) async fn within(
    timeout: Duration,
    attempt: impl Future<Output = Answer>,
    late: impl FnOnce() -> Answer,
) -> Answer {
    let deadline = Instant::now() + timeout;
    match tokio::time::timeout_at(deadline, attempt).await {
        Ok(answer) => answer,
        Err(_) if Instant::now() > deadline + OWN_DELAY => {
            Answer::inconclusive("the node was too busy to probe in time")
        }
        Err(_) => late(),
    }
}

pub(super) fn set(results: &Results, kind: Kind, result: ProbeResult) {
    results.lock().unwrap_or_else(PoisonError::into_inner)[kind.index()] = result;
}

pub(super) fn get(results: &Results, kind: Kind) -> ProbeResult {
    results.lock().unwrap_or_else(PoisonError::into_inner)[kind.index()]
}

pub(super) struct Worker {
    pub(super) tools: Arc<Tools>,
    pub(super) changed: mpsc::UnboundedSender<PodUid>,
    pub(super) uid: PodUid,
    pub(super) subject: Subject,
    pub(super) container: ContainerId,
    pub(super) results: Results,
    /// True once the startup probe succeeded; shared by the probes of the container.
    pub(super) gate: Arc<watch::Sender<bool>>,
    pub(super) ip: watch::Receiver<Option<String>>,
    pub(super) probe: ProbeSpec,
    pub(super) figures: Arc<Figures>,
}

impl Worker {
    /// Runs until the probe has nothing more to say about this container. Ended earlier by aborting the task.
    pub(super) async fn run(mut self, mut machine: Machine) {
        let mut gate = self.gate.subscribe();
        loop {
            if machine.is_held() {
                return;
            }
            if machine.is_gated() {
                if gate.wait_for(|open| *open).await.is_err() {
                    return;
                }
                machine.open_gate(Instant::now());
            }
            match machine.wake_at() {
                Some(at) => tokio::time::sleep_until(at).await,
                None => pending().await,
            }
            if !machine.begin(Instant::now()) {
                continue;
            }
            let began = Instant::now();
            let answer = Box::pin(self.attempt()).await;
            self.figures.observe(answer.outcome, began.elapsed());
            self.report(&answer);
            if machine.finish(answer.outcome, Instant::now()) {
                set(&self.results, self.probe.kind, machine.result());
                if self.probe.kind == Kind::Startup && machine.result() == ProbeResult::Success {
                    self.gate.send_replace(true);
                }
                // Nobody listens only while the agent stops.
                let _ = self.changed.send(self.uid.clone());
            }
        }
    }

    async fn attempt(&mut self) -> Answer {
        let timeout = self.probe.timeout;
        let target = |host: &Option<String>| host.clone().or_else(|| self.ip.borrow().clone());
        let no_address = || Answer::inconclusive("the pod has no address yet");
        match &self.probe.handler {
            Handler::Exec { command } => exec::probe(&self.tools, &self.container, command, timeout).await,
            Handler::Http { scheme, host, port, path, headers } => match target(host) {
                Some(host) => {
                    let page = http::Page { scheme, host, port: *port, path };
                    http::probe(&self.tools, page, headers, timeout).await
                }
                None => no_address(),
            },
            Handler::Tcp { host, port } => match target(host) {
                Some(host) => tcp::probe(&host, *port, timeout).await,
                None => no_address(),
            },
            Handler::Grpc { port, service } => match target(&None) {
                Some(host) => grpc::probe(&self.tools, &host, *port, service, timeout).await,
                None => no_address(),
            },
            Handler::Broken(text) => Answer::inconclusive(text.clone()),
        }
    }

    /// Events in kubelet's words.
    fn report(&self, answer: &Answer) {
        let word = self.probe.kind.word();
        let (reason, message) = match answer.outcome {
            Outcome::Success if answer.warning => ("ProbeWarning", format!("{word} probe warning: {}", answer.text)),
            Outcome::Success => return,
            Outcome::Failure => ("Unhealthy", format!("{word} probe failed: {}", answer.text)),
            Outcome::Inconclusive => {
                ("Unhealthy", format!("{word} probe errored and resulted in unknown state: {}", answer.text))
            }
        };
        let event = Event { subject: self.subject.clone(), kind: EventType::Warning, reason, message };
        self.tools.recorder.emit(event);
    }
}
