//! Which dead containers and idle sandboxes nobody needs any more. Pure.
//!
//! Of each container the newest dead ones stay, because people ask for their logs and exits; a pod's newest sandbox stays,
//! because its number and network are what the next one follows. Workers remove by this at once; `garbage` shows by the same
//! what is left at a moment. Source: `kuberuntime_gc.go` of Kubernetes v1.37, with a minimum age of 0.

use std::cmp::Reverse;

use crate::cri::listing::{ListedContainer, ListedSandbox};
use crate::cri::{ContainerView, Nanos};

/// How many dead containers of a name stay: kubelet's default of `maximum-dead-containers-per-container`.
pub const KEPT: usize = 1;

/// How many dead containers of a name stay, given the flag. At least one, or nobody would know that a container has run;
/// negative is no limit.
pub fn kept(flag: Option<i64>) -> usize {
    match flag {
        None => KEPT,
        Some(count) => usize::try_from(count).map_or(usize::MAX, |count| count.max(KEPT)),
    }
}

/// What is looked at of a container.
#[derive(Clone, Copy, Debug)]
pub struct Corpse<'a> {
    /// Name in the pod.
    pub name: &'a str,
    /// Whether it has ended.
    pub is_dead: bool,
    /// When it was made, and its attempt: clocks may step.
    pub made: (Nanos, u32),
}

impl<'a> From<&'a ContainerView> for Corpse<'a> {
    fn from(view: &'a ContainerView) -> Self {
        Self { name: &view.name, is_dead: view.is_exited(), made: (view.created_at, view.attempt) }
    }
}

impl<'a> From<&'a ListedContainer> for Corpse<'a> {
    fn from(listed: &'a ListedContainer) -> Self {
        Self { name: &listed.name, is_dead: listed.is_exited, made: (listed.created_at, listed.attempt) }
    }
}

/// Dead containers of one pod beyond the `keep` newest of each name, the oldest first.
pub fn surplus<'a, T>(containers: impl IntoIterator<Item = &'a T>, keep: usize) -> Vec<&'a T>
where
    Corpse<'a>: From<&'a T>,
{
    let all = containers.into_iter().map(|container| (Corpse::from(container), container));
    let mut dead: Vec<_> = all.filter(|(corpse, _)| corpse.is_dead).collect();
    dead.sort_by_key(|(corpse, _)| (corpse.name, Reverse(corpse.made)));
    let mut surplus = Vec::new();
    for same in dead.chunk_by(|a, b| a.0.name == b.0.name) {
        surplus.extend(same.iter().skip(keep).map(|(corpse, container)| (corpse.made, *container)));
    }
    surplus.sort_by_key(|(made, _)| *made);
    surplus.into_iter().map(|(_, container)| container).collect()
}

/// What is looked at of a sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Shell {
    /// Whether it could run something.
    pub is_ready: bool,
    /// Whether no container is in it.
    pub is_empty: bool,
    /// When it was made, and its attempt.
    pub made: (Nanos, u32),
}

/// Sandboxes of one pod without containers that a newer one has taken the place of.
pub fn idle<'a, T>(sandboxes: &'a [T], look: impl Fn(&'a T) -> Shell) -> Vec<&'a T> {
    let Some(newest) = sandboxes.iter().max_by_key(|sandbox| look(sandbox).made) else { return Vec::new() };
    let is_idle = |shell: Shell| shell.is_empty && (!shell.is_ready || look(newest).is_ready);
    sandboxes.iter().filter(|sandbox| !std::ptr::eq(*sandbox, newest) && is_idle(look(sandbox))).collect()
}

/// A listed sandbox beside all containers of the list.
pub fn listed(sandbox: &ListedSandbox, containers: &[ListedContainer]) -> Shell {
    Shell {
        is_ready: sandbox.ready,
        is_empty: containers.iter().all(|container| container.sandbox != sandbox.id),
        made: (sandbox.created_at, sandbox.attempt),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{ContainerId, SandboxId};

    fn container(name: &str, attempt: u32, is_exited: bool) -> ListedContainer {
        ListedContainer {
            id: ContainerId::new(format!("{name}-{attempt}")),
            sandbox: SandboxId::new("s"),
            pod: None,
            name: name.to_owned(),
            is_exited,
            created_at: 1,
            attempt,
            images: Vec::new(),
        }
    }

    #[test]
    fn the_newest_dead_container_of_each_name_stays_and_what_runs_does_not_count() {
        let all = [
            container("a", 0, true),
            container("a", 2, false),
            container("a", 1, true),
            container("b", 0, true),
            container("c", 1, false),
            container("c", 0, false),
        ];
        let ids = |keep| surplus(&all, keep).iter().map(|c| c.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(1), ["a-0"]);
        assert_eq!(ids(0), ["a-0", "b-0", "a-1"]);
        assert!(ids(usize::MAX).is_empty());
    }

    #[test]
    fn a_flag_of_nothing_keeps_one_and_a_negative_one_all() {
        assert_eq!([None, Some(0), Some(1), Some(5), Some(-1)].map(kept), [1, 1, 1, 5, usize::MAX]);
    }

    #[test]
    fn an_idle_sandbox_goes_once_a_newer_one_has_taken_its_place() {
        let shell = |is_ready, is_empty, attempt| Shell { is_ready, is_empty, made: (1, attempt) };
        let of = |all: &[Shell]| idle(all, |shell| *shell).iter().map(|shell| shell.made.1).collect::<Vec<_>>();
        assert_eq!(of(&[shell(false, true, 0), shell(true, false, 1)]), [0]);
        assert_eq!(of(&[shell(false, false, 0), shell(true, false, 1)]), [0; 0], "a dead container is in it");
        assert_eq!(of(&[shell(false, true, 0), shell(false, true, 1)]), [0]);
        assert_eq!(
            of(&[shell(true, true, 0), shell(false, true, 1)]),
            [0; 0],
            "the older one may be the one that works"
        );
        assert_eq!(of(&[shell(false, true, 0)]), [0; 0]);
    }

    proptest! {
        #[test]
        fn of_every_name_as_many_stay_as_there_may_and_none_that_goes_is_newer(
            made in prop::collection::vec((0usize..3, any::<bool>(), 0i64..5), 0..30), keep in 0usize..4,
        ) {
            let names = ["a", "b", "c"];
            let all: Vec<_> = made.iter().enumerate().map(|(n, (name, is_exited, created_at))| ListedContainer {
                created_at: *created_at, ..container(names[*name], u32::try_from(n).unwrap(), *is_exited)
            }).collect();
            let going = surplus(&all, keep);
            for name in names {
                let dead: Vec<_> = all.iter().filter(|c| c.name == name && c.is_exited).collect();
                let (gone, stays): (Vec<&ListedContainer>, Vec<&ListedContainer>) = dead.iter().partition(|c| going.contains(c));
                prop_assert_eq!(stays.len(), dead.len().min(keep));
                for old in &gone {
                    prop_assert!(stays.iter().all(|new| (new.created_at, new.attempt) > (old.created_at, old.attempt)));
                }
            }
            prop_assert!(going.iter().all(|c| c.is_exited));
        }
    }
}
