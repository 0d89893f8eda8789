//! Unit tier: the pod half of the agent (manager, workers, prober, journal) against a runtime that is ill.
//!
//! Everything is the agent's own but volumes, cgroups and where statuses go. After each fault the same is asked: is every
//! healthy pod as it was, was nobody else held up, was the trouble named, and does all converge once it is over?

mod attacks;
mod calls;
mod garbage;
mod lies;
mod order;
mod preempt;
mod rig;
mod schedule;
mod troubles;
