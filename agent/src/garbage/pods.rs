//! What pods left in the runtime and on disk, over the node as a whole. Pure.
//!
//! It shows what the workers and the manager would remove, by their own functions. What belongs to no pod at all, because
//! somebody made it with other tools, is nobody's business here.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{Item, Kind, Outcome};
use crate::cri::listing::Listing;
use crate::cri::{Nanos, PodIdentity};
use crate::ids::PodUid;
use crate::logs::kept::{self, Excess, Kept};
use crate::pod::dead;
use crate::pod::leftovers;
use crate::pod::manager::census::Standing;

/// The node at a moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What the runtime has.
    pub listing: Listing,
    /// Pods that have a worker.
    pub pods: BTreeMap<PodUid, Standing>,
    /// Pods that have a directory or a cgroup.
    pub places: BTreeSet<PodUid>,
    /// Log directories.
    pub logs: Vec<String>,
    /// Logs of pods that are gone.
    pub kept: Vec<Kept>,
}

/// Everything that is of no use, each with the reason.
pub fn plan(view: &View, keep_dead: usize, now: Nanos) -> Vec<Item> {
    let mut items = runtime(view, keep_dead);
    let found = leftovers::plan(view.places.clone(), view.logs.clone(), |uid| view.pods.contains_key(uid));
    for (uid, found) in found {
        let why = "no pod of this node has this UID";
        if found.has_places {
            items.push(item(Kind::PodFiles, uid.as_str(), None, why.to_owned()));
        }
        items.extend(found.logs.iter().map(|name| item(Kind::Logs, name, None, why.to_owned())));
    }
    for (old, excess) in kept::excess(view.kept.clone(), &kept::LIMITS, now) {
        let why = match excess {
            Excess::Age => "kept for an hour",
            Excess::Pods => "there are newer ones of 50 pods",
            Excess::Bytes => "there are newer ones of 100 MiB",
        };
        items.push(Item { bytes: Some(old.bytes), ..item(Kind::KeptLogs, &old.name, None, why.to_owned()) });
    }
    items
}

fn item(kind: Kind, name: &str, pod: Option<&PodIdentity>, why: String) -> Item {
    let pod = pod.map(|pod| format!("{}/{}", pod.namespace, pod.name));
    Item { kind, name: name.to_owned(), pod, bytes: None, why, outcome: Outcome::Planned }
}

fn runtime(view: &View, keep_dead: usize) -> Vec<Item> {
    let Listing { sandboxes, containers } = &view.listing;
    let owners = sandboxes.iter().map(|s| &s.pod).chain(containers.iter().map(|c| &c.pod)).flatten();
    let owners: BTreeMap<&PodUid, &PodIdentity> = owners.map(|pod| (&pod.uid, pod)).collect();
    let mut items = Vec::new();
    for (uid, pod) in owners {
        let is_its = |of: &Option<PodIdentity>| of.as_ref().is_some_and(|of| of.uid == *uid);
        let own_containers = || containers.iter().filter(|container| is_its(&container.pod));
        let own_sandboxes: Vec<_> = sandboxes.iter().filter(|sandbox| is_its(&sandbox.pod)).cloned().collect();
        match view.pods.get(uid) {
            Some(Standing::Stays) => {
                for container in dead::surplus(own_containers(), keep_dead) {
                    let why = format!("{} newer dead containers of {} are kept", keep_dead, container.name);
                    items.push(item(Kind::Container, container.id.as_str(), Some(pod), why));
                }
                for sandbox in dead::idle(&own_sandboxes, |sandbox| dead::listed(sandbox, containers)) {
                    let why = "a newer sandbox has taken its place".to_owned();
                    items.push(item(Kind::Sandbox, sandbox.id.as_str(), Some(pod), why));
                }
            }
            standing => {
                let why = match standing {
                    Some(_) => "its pod is being removed",
                    None => "no pod of this node has this UID",
                };
                let dead = own_containers().filter(|container| standing.is_none() || container.is_exited);
                items.extend(dead.map(|c| item(Kind::Container, c.id.as_str(), Some(pod), why.to_owned())));
                let dead = own_sandboxes.iter().filter(|sandbox| standing.is_none() || !sandbox.ready);
                items.extend(dead.map(|s| item(Kind::Sandbox, s.id.as_str(), Some(pod), why.to_owned())));
            }
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::listing::{ListedContainer, ListedSandbox};
    use crate::ids::{ContainerId, SandboxId};

    fn pod(uid: &str) -> Option<PodIdentity> {
        Some(PodIdentity { uid: PodUid::new(uid), namespace: "default".into(), name: format!("pod-{uid}") })
    }

    fn sandbox(uid: &str, attempt: u32, ready: bool) -> ListedSandbox {
        let id = SandboxId::new(format!("s-{uid}-{attempt}"));
        ListedSandbox { id, pod: pod(uid), ready, created_at: 1, attempt }
    }

    fn container(uid: &str, sandbox: u32, attempt: u32, is_exited: bool) -> ListedContainer {
        ListedContainer {
            id: ContainerId::new(format!("c-{uid}-{attempt}")),
            sandbox: SandboxId::new(format!("s-{uid}-{sandbox}")),
            pod: pod(uid),
            name: "app".into(),
            is_exited,
            created_at: 1,
            attempt,
            images: Vec::new(),
        }
    }

    fn shown(items: &[Item]) -> Vec<(&'static str, &str)> {
        items.iter().map(|item| (item.kind.word(), item.name.as_str())).collect()
    }

    #[test]
    fn of_a_pod_that_stays_only_old_and_dead_things_go() {
        let view = View {
            listing: Listing {
                sandboxes: vec![sandbox("a", 0, false), sandbox("a", 1, false), sandbox("a", 2, true)],
                containers: vec![container("a", 1, 0, true), container("a", 1, 1, true), container("a", 2, 2, false)],
            },
            pods: [(PodUid::new("a"), Standing::Stays)].into(),
            places: [PodUid::new("a")].into(),
            logs: vec!["default_pod-a_a".into()],
            kept: Vec::new(),
        };
        assert_eq!(shown(&plan(&view, 1, 0)), [("container", "c-a-0"), ("sandbox", "s-a-0")]);
        assert_eq!(shown(&plan(&view, 2, 0)), [("sandbox", "s-a-0")]);
    }

    #[test]
    fn of_a_pod_that_nobody_knows_all_goes_and_of_one_that_leaves_what_is_dead() {
        let listing = Listing {
            sandboxes: vec![sandbox("gone", 0, true), sandbox("leaving", 0, true), sandbox("leaving", 1, false)],
            containers: vec![
                container("gone", 0, 0, false),
                container("leaving", 0, 0, false),
                container("leaving", 0, 1, true),
            ],
        };
        let view = View {
            listing,
            pods: [(PodUid::new("leaving"), Standing::Leaves)].into(),
            places: ["gone", "leaving", "old"].map(PodUid::new).into(),
            logs: vec!["default_old_old".into(), "somebody-elses".into()],
            kept: Vec::new(),
        };
        let expected = [
            ("container", "c-gone-0"),
            ("sandbox", "s-gone-0"),
            ("container", "c-leaving-1"),
            ("sandbox", "s-leaving-1"),
            ("pod-files", "gone"),
            ("pod-files", "old"),
            ("logs", "default_old_old"),
        ];
        assert_eq!(shown(&plan(&view, 1, 0)), expected);
    }

    #[test]
    fn what_no_kubelet_made_is_left_alone() {
        let listing = Listing {
            sandboxes: vec![ListedSandbox { pod: None, ..sandbox("x", 0, false) }],
            containers: vec![ListedContainer { pod: None, ..container("x", 0, 0, true) }],
        };
        assert!(plan(&View { listing, ..View::default() }, 1, 0).is_empty());
    }
}
