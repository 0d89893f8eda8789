//! Exec probes: a command in the container, through the runtime.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::worker::Answer;
use super::{Outcome, Tools};
use crate::ids::ContainerId;

/// More of a command's output than this is not kept.
const OUTPUT_LIMIT: usize = 10 * 1024;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Exit code; 0 is success.
    pub exit_code: i32,
    /// Output and error output.
    pub output: Vec<u8>,
}

/// Why a command did not end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It ran longer than it was allowed to.
    #[error("command timed out")]
    TimedOut,
    /// The runtime could not run it. This says nothing about the container.
    #[error("{0}")]
    Failed(String),
}

/// Runs a command in a container within a time.
pub type ExecFn =
    Arc<dyn Fn(ContainerId, Vec<String>, Duration) -> BoxFuture<'static, Result<ExecOutcome, ExecError>> + Send + Sync>;

pub(super) async fn probe(tools: &Tools, id: &ContainerId, command: &[String], timeout: Duration) -> Answer {
    // The wait for a slot is our own load, so the time begins after it.
    let Ok(_slot) = tools.exec_slots.acquire().await else { return Answer::inconclusive("the agent is stopping") };
    match (tools.exec)(id.clone(), command.to_vec(), timeout).await {
        Ok(outcome) => {
            let end = outcome.output.len().min(OUTPUT_LIMIT);
            let text = String::from_utf8_lossy(&outcome.output[..end]).into_owned();
            let verdict = if outcome.exit_code == 0 { Outcome::Success } else { Outcome::Failure };
            Answer { outcome: verdict, text, warning: false }
        }
        Err(ExecError::TimedOut) => Answer::failure(format!(
            "command timed out: {:?} timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        Err(ExecError::Failed(text)) => Answer::inconclusive(text),
    }
}
