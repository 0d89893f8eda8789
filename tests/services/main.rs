//! Kernel tier: the service programmer, driven as the agent drives it, and real connections through what it programs.
//!
//! "The node" is a namespace of its own with pods around it, so nothing here touches the machine's rules. Needs root.

// Helpers of tests are not in `#[test]` functions, where clippy.toml allows it: a broken precondition ends the test either way.
#![allow(clippy::unwrap_used)]

mod connections;
mod explain;
mod flow_table;
mod flows;
mod host_ports;
mod hostile;
mod listing;
mod networks;
mod policies;
mod refusals;
mod repair;
mod restart;
mod rig;
mod takeover;
mod traffic;
