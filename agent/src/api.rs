//! The edge to the API server: one client, watches, and everything that is written.
//!
//! ```text
//!  kubeconfig ─► client ─┬─► watch ─────► WatchSink (services, slices, own node)
//!                        ├─► source::api ► desired pods
//!                        ├─► objects ───► ConfigMaps, Secrets, trust bundles, tokens, certificates of own pods
//!                        ├─► status_writer ◄── newest status of each pod
//!                        ├─► events ◄──────── event::Recorder
//!                        └─► node::{register, lease, heartbeat}
//! ```
//! Nothing here decides what a pod or a Service should be; that is the business of the domains. Everything here keeps
//! working through an API server that is away, slow or refusing: the callers see a state, never an exit.

pub mod bootstrap;
pub mod client;
pub mod credentials;
pub mod events;
pub mod kubeconfig;
pub mod objects;
mod pod_certificates;
pub mod service_envs;
pub mod status_patch;
pub mod status_writer;
pub mod tls;
mod tokens;
mod trust_bundles;
pub mod watch;
