//! Kernel tier: the plugin binary between network namespaces, and the client with containernetworking's plugins.
//!
//! "The node" is a namespace of its own, so nothing here touches the machine's interfaces, routes or rules. Needs root,
//! and `cargo build -p nodelet-cni` before (a debug build: it can kill itself between two steps).

// Helpers of tests are not in `#[test]` functions, where clippy.toml allows it: a broken precondition ends the test either way.
#![allow(clippy::unwrap_used)]

mod bench;
mod datapath;
mod fixtures;
mod foreign;
mod lifecycle;
