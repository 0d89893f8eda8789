//! The test harness: what a suite needs to have a node, or several, and a control plane on this machine.
//!
//! ```text
//!   Lan (namespace with a bridge)
//!    ├── ControlPlane   etcd, API server, controllers, scheduler: one process in the Lan's namespace
//!    ├── Node           namespace · cgroups · directory · Containerd 1.6 or 2.x · Agent
//!    └── Node ...
//! ```
//!
//! Names of everything that is made start with `nlt-PID-`, so that suites run in parallel and `make clean-host` can
//! sweep what a crash left. Dropping removes: first the agent, then containers, containerd, cgroups, mounts, namespace.

pub mod agent;
pub mod cgroups;
pub mod containerd;
pub mod control_plane;
pub mod cri_client;
pub mod eventually;
pub mod fake_cri;
pub mod http;
pub mod leak_check;
pub mod names;
pub mod netns;
pub mod node;
pub mod programs;
pub mod random;
