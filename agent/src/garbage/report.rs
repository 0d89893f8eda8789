//! What `nodelet gc` is told: what goes, why, and what became of it. Plain data, as JSON on the control socket.

use serde::{Deserialize, Serialize};

use crate::cri::Nanos;

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An image.
    Image,
    /// A container of the runtime.
    Container,
    /// A sandbox of the runtime.
    Sandbox,
    /// Directory of volumes, or cgroup, of a pod.
    PodFiles,
    /// A pod's directory of logs.
    Logs,
    /// Logs that were kept of a pod that is gone.
    KeptLogs,
}

impl Kind {
    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Container => "container",
            Self::Sandbox => "sandbox",
            Self::PodFiles => "pod-files",
            Self::Logs => "logs",
            Self::KeptLogs => "kept-logs",
        }
    }
}

/// What became of an item.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Only shown.
    #[default]
    Planned,
    /// It is gone.
    Removed,
    /// It is still there; the text says why.
    Failed(String),
}

impl Report {
    /// Whether all was looked at, and nothing is there that was to go.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && !self.items.iter().any(|item| matches!(item.outcome, Outcome::Failed(_)))
    }
}

/// One thing of no use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// What it is.
    pub kind: Kind,
    /// Its name: of an image or a directory, or the runtime's id.
    pub name: String,
    /// `NAMESPACE/NAME` of its pod, where that is known.
    pub pod: Option<String>,
    /// Bytes, where that is known.
    pub bytes: Option<u64>,
    /// Why it is of no use.
    pub why: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether it was only looked.
    pub dry_run: bool,
    /// When.
    pub at: Nanos,
    /// What goes, in the order in which it goes.
    pub items: Vec<Item>,
    /// What is worth knowing besides: thresholds, and what keeps images that nobody uses.
    pub notes: Vec<String>,
    /// What could not be looked at or done.
    pub problems: Vec<String>,
}
