//! Node tier: the agent alone, with real containerd, runc, CNI and nftables, in a namespace of its own. Needs root.
// The futures of tonic's calls are large and live in a test's own task: boxing them one by one would only hide the steps.
#![allow(clippy::large_futures)]

mod alone;
mod disk;
mod ending;
mod garbage;
mod harness_itself;
mod images;
mod kills;
mod leftovers;
mod limits;
mod logs;
mod look;
mod restarts;
mod static_pods;
mod users;
