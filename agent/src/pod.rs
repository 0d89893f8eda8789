//! Pods: from what is desired to containers that run.
//!
//! ```text
//!  sources ──► manager ──► worker (one task a pod) ──► plan ──► operations ──► CRI, volumes, cgroups, objects
//!                 ▲            ▲        │                           │
//!  runtime events ┘            │        └──► status ──► status sink │
//!  probe results ──────────────┘◄──────────── outcomes ─────────────┘
//! ```
//!
//! A worker turns in one loop: snapshot, [`plan`], start operations, publish [`status`] when it differs, wait for whatever
//! comes next. Decisions are in the pure files ([`plan`], [`status`], [`lifecycle`], [`memory`] and the builders);
//! effects are in [`execute`] and [`worker`].

pub mod action;
pub mod admit;
pub mod allocation;
pub mod container_config;
pub mod dead;
pub mod dns;
pub mod env;
pub mod execute;
pub mod expand;
pub mod expected;
pub mod facilities;
pub mod figures;
pub mod hosts;
pub mod images;
pub mod journal;
pub mod leftovers;
pub mod lifecycle;
pub mod manager;
pub mod memory;
pub mod mounts;
pub mod plan;
pub mod preempt;
pub mod resize;
pub mod sandbox_config;
pub mod security;
pub mod shared;
pub mod spec;
pub mod start_slot;
pub mod status;
pub mod view;
pub mod worker;
