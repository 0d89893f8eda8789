//! Faults: what goes wrong with which call, and when.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Status};

use super::holes::Lack;
use super::shared::{Rpc, lock};

/// When in a call a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was done yet.
    Before,
    /// RunPodSandbox, CreateContainer, PullImage: the name is reserved, the thing is not there yet.
    During,
    /// Everything is done; only the answer suffers.
    After,
}

#[derive(Clone, Debug)]
enum Kind {
    Delay(Duration),
    Fail(Code, String),
    Hang(Gate),
    Lack(Lack),
}

/// Something that goes wrong with a call.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Kind,
    stage: Stage,
    /// How many more calls it strikes; `None` is all of them.
    left: Option<u32>,
    about: Option<String>,
}

impl Fault {
    fn of(kind: Kind) -> Self {
        Self { kind, stage: Stage::Before, left: None, about: None }
    }

    /// The call takes longer.
    pub fn delay(time: Duration) -> Self {
        Self::of(Kind::Delay(time))
    }

    /// The call fails.
    pub fn fail(code: Code, message: &str) -> Self {
        Self::of(Kind::Fail(code, message.to_owned()))
    }

    /// The call does not return until the gate is released.
    pub fn hang(gate: &Gate) -> Self {
        Self::of(Kind::Hang(gate.clone()))
    }

    /// The call is done, and its answer lacks something.
    pub fn lack(lack: Lack) -> Self {
        Self::of(Kind::Lack(lack)).at(Stage::After)
    }

    /// Strikes at another stage than [`Stage::Before`].
    #[must_use]
    pub fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    /// Strikes this often and is gone then.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { left: Some(times), ..self }
    }

    /// Strikes once.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Strikes calls about this id, pod name, container name or image only.
    #[must_use]
    pub fn about(self, name: &str) -> Self {
        Self { about: Some(name.to_owned()), ..self }
    }
}

/// Holds calls until it is released.
#[derive(Clone, Debug)]
pub struct Gate {
    state: Arc<watch::Sender<GateState>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(GateState::default())) }
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everything pass from now on.
    pub fn release(&self) {
        self.state.send_modify(|state| state.open = true);
    }

    /// Returns when `calls` calls hang here, or the gate was released.
    pub async fn reached_by(&self, calls: usize) {
        // The sender is `self`, so waiting cannot fail.
        let _ = self.state.subscribe().wait_for(|state| state.open || state.waiting >= calls).await;
    }

    async fn pass(&self) {
        self.state.send_modify(|state| state.waiting += 1);
        let _ = self.state.subscribe().wait_for(|state| state.open).await;
        self.state.send_modify(|state| state.waiting -= 1);
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<BTreeMap<Rpc, Vec<Fault>>>);

impl Faults {
    pub(super) fn inject(&self, rpc: Rpc, fault: Fault) {
        lock(&self.0).entry(rpc).or_default().push(fault);
    }

    pub(super) fn heal(&self, rpc: Rpc) {
        lock(&self.0).remove(&rpc);
    }

    /// Lets all matching faults happen, in order, until one fails the call. Answers what the answer is to lack.
    pub(super) async fn strike(&self, rpc: Rpc, stage: Stage, about: &[String]) -> Result<Vec<Lack>, Status> {
        let mut lacks = Vec::new();
        for kind in self.due(rpc, stage, about) {
            match kind {
                Kind::Delay(time) => tokio::time::sleep(time).await,
                Kind::Fail(code, message) => return Err(Status::new(code, message)),
                Kind::Hang(gate) => gate.pass().await,
                Kind::Lack(lack) => lacks.push(lack),
            }
        }
        Ok(lacks)
    }

    /// Takes one strike from each matching fault, up to and including the first failure.
    fn due(&self, rpc: Rpc, stage: Stage, about: &[String]) -> Vec<Kind> {
        let mut all = lock(&self.0);
        let Some(faults) = all.get_mut(&rpc) else { return Vec::new() };
        let mut due = Vec::new();
        for fault in faults.iter_mut() {
            let hits = fault.about.as_ref().is_none_or(|name| about.contains(name));
            if fault.stage != stage || !hits || fault.left == Some(0) {
                continue;
            }
            fault.left = fault.left.map(|left| left - 1);
            due.push(fault.kind.clone());
            if matches!(fault.kind, Kind::Fail(..)) {
                break;
            }
        }
        faults.retain(|fault| fault.left != Some(0));
        due
    }
}
