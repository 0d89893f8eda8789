//! CNI for nodelet: the specification's types, nodelet's own plugin, and a client that runs any chain.
//!
//! ```text
//!  plugin (one short, single-threaded process)              client (inside the agent, tokio)
//!  stdin, env ─► protocol ─► verb ─► plan ─► netlink/netns   conflist dir ─► client::Config ─► chain ─► exec
//!                              └──► ipam ─► disk                                         └──► result cache
//! ```
//!
//! The plugin answers ADD, DEL, CHECK, STATUS, GC and VERSION of [the specification 1.1.0][spec] and still speaks
//! 0.3.1, 0.4.0 and 1.0.0. `protocol`, `cidr`, `ipam` (without `disk`) and `plan` are pure; `netlink` and `netns` are the
//! only files that touch the kernel.
//!
//! [spec]: https://github.com/containernetworking/cni/blob/v1.3.1/SPEC.md

pub mod cidr;
pub mod client;
pub mod conflist;
pub mod ipam;
pub mod plan;
pub mod plugin;
pub mod protocol;

mod add;
mod check;
mod del;
mod gc;
mod loopback;
mod netlink;
mod netns;
mod status;
