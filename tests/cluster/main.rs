//! Control-plane tier: the agent joined to a real API server, with the real controllers and scheduler. Needs root.
// The futures of tonic's calls are large and live in a test's own task: boxing them one by one would only hide the steps.
#![allow(clippy::large_futures)]

mod acceptance;
mod api;
mod attacks;
mod certificates;
mod harness_itself;
mod joining;
mod kills;
mod network;
mod outage;
mod preempt;
mod projections;
mod resize;
mod resources;
mod restart;
mod rig;
mod rollout;
mod secrets;
mod seen;
mod server;
mod static_pods;
mod volumes;
