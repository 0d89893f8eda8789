//! Desired pods from the API server: those whose `spec.nodeName` is this node.
//!
//! The watch selects them on the server. Managed fields are dropped (they are half of a pod's memory). Mirror pods are
//! the API server's picture of static pods and never become desired; they go to [`MirrorNote`]s, which
//! `source::static_pods` reads. Every pod is shown to an observer first, so that the status writer knows what the
//! server has.
//!
//! A relist sends `Upsert`s and then `Synced` with all UIDs. A pod that was replaced by one of the same name while the
//! watch was away is gone by that set, because pods are known by UID.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::mpsc;

use super::{SourceName, SourceUpdate};
use crate::api::watch::{WatchHandle, spawn_watch};
use crate::ids::{NodeName, ObjectKey, PodUid};
use crate::pod::spec::SOURCE_ANNOTATION;
use crate::watch::{WatchEvent, WatchSink};

/// Annotation of a mirror pod; its value is the hash of the static pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What the API server shows about mirror pods of this node.
#[derive(Clone, Debug)]
pub enum MirrorNote {
    /// A mirror exists.
    Upsert(Arc<Pod>),
    /// A mirror was deleted.
    Removed(ObjectKey, PodUid),
    /// All mirrors have been named; others are gone.
    Synced(BTreeSet<PodUid>),
}

/// Where the pods of the API server go.
pub struct Outlets {
    /// Desired pods.
    pub updates: mpsc::UnboundedSender<SourceUpdate>,
    /// Mirror pods.
    pub mirrors: mpsc::UnboundedSender<MirrorNote>,
    /// Sees every pod before anybody acts on it, mirrors included.
    pub observer: Box<dyn FnMut(&Pod) + Send>,
}

/// Starts the watch for the pods of a node.
pub fn spawn(client: kube::Client, node: &NodeName, outlets: Outlets) -> WatchHandle {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    spawn_watch(Api::<Pod>::all(client), config, PodSink::new(outlets))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Desired,
    Mirror,
}

/// Splits pods into desired ones and mirrors; see the module description.
pub struct PodSink {
    outlets: Outlets,
    listed: BTreeMap<PodUid, Kind>,
}

impl PodSink {
    /// A sink that has seen nothing.
    pub fn new(outlets: Outlets) -> Self {
        Self { outlets, listed: BTreeMap::new() }
    }

    fn upsert(&mut self, mut pod: Pod) -> Option<(PodUid, Kind)> {
        // The server always sets a UID; without one nothing on the node could be keyed.
        let uid = PodUid::new(pod.metadata.uid.as_deref()?);
        pod.metadata.managed_fields = None;
        (self.outlets.observer)(&pod);
        let kind = kind(&pod);
        if kind == Kind::Desired {
            // As kubelet does. It also keeps a pod of the API from passing for a static one.
            pod.metadata.annotations.get_or_insert_default().insert(SOURCE_ANNOTATION.to_owned(), "api".to_owned());
        }
        let pod = Arc::new(pod);
        // A receiver that is gone means that the agent is shutting down.
        match kind {
            Kind::Desired => drop(self.outlets.updates.send(SourceUpdate::Upsert(SourceName::Api, pod))),
            Kind::Mirror => drop(self.outlets.mirrors.send(MirrorNote::Upsert(pod))),
        }
        Some((uid, kind))
    }

    fn remove(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.as_deref().map(PodUid::new) else { return };
        match kind(pod) {
            Kind::Desired => drop(self.outlets.updates.send(SourceUpdate::Remove(SourceName::Api, uid))),
            Kind::Mirror => {
                let meta = &pod.metadata;
                let key = ObjectKey::new(
                    meta.namespace.as_deref().unwrap_or_default(),
                    meta.name.as_deref().unwrap_or_default(),
                );
                drop(self.outlets.mirrors.send(MirrorNote::Removed(key, uid)));
            }
        }
    }

    fn finish_list(&mut self) {
        let (mut desired, mut mirrors) = (BTreeSet::new(), BTreeSet::new());
        for (uid, kind) in std::mem::take(&mut self.listed) {
            match kind {
                Kind::Desired => desired.insert(uid),
                Kind::Mirror => mirrors.insert(uid),
            };
        }
        drop(self.outlets.mirrors.send(MirrorNote::Synced(mirrors)));
        drop(self.outlets.updates.send(SourceUpdate::Synced(SourceName::Api, desired)));
    }
}

fn kind(pod: &Pod) -> Kind {
    match pod.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(MIRROR_ANNOTATION)) {
        true => Kind::Mirror,
        false => Kind::Desired,
    }
}

impl WatchSink<Pod> for PodSink {
    fn handle(&mut self, event: WatchEvent<Pod>) {
        match event {
            WatchEvent::Restart => self.listed.clear(),
            WatchEvent::InitApply(pod) => {
                if let Some((uid, kind)) = self.upsert(pod) {
                    self.listed.insert(uid, kind);
                }
            }
            WatchEvent::InitDone => self.finish_list(),
            WatchEvent::Apply(pod) => drop(self.upsert(pod)),
            WatchEvent::Delete(pod) => self.remove(&pod),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str, mirror: bool) -> Pod {
        let annotations = if mirror {
            serde_json::json!({ MIRROR_ANNOTATION: "h" })
        } else {
            serde_json::json!({ SOURCE_ANNOTATION: "file" })
        };
        serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": "d", "name": name, "uid": uid, "annotations": annotations,
                "managedFields": [{ "manager": "x" }] },
        }))
        .expect("pod")
    }

    struct Fixture {
        sink: PodSink,
        updates: mpsc::UnboundedReceiver<SourceUpdate>,
        mirrors: mpsc::UnboundedReceiver<MirrorNote>,
    }

    fn fixture() -> Fixture {
        let (updates_tx, updates) = mpsc::unbounded_channel();
        let (mirrors_tx, mirrors) = mpsc::unbounded_channel();
        let outlets = Outlets { updates: updates_tx, mirrors: mirrors_tx, observer: Box::new(|_| {}) };
        Fixture { sink: PodSink::new(outlets), updates, mirrors }
    }

    fn lines(fixture: &mut Fixture) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(update) = fixture.updates.try_recv() {
            lines.push(match update {
                SourceUpdate::Upsert(_, pod) => {
                    assert!(pod.metadata.managed_fields.is_none());
                    assert!(!crate::pod::spec::is_static(&pod), "whatever its author wrote");
                    format!("upsert {}", pod.metadata.uid.as_deref().unwrap_or_default())
                }
                SourceUpdate::Remove(_, uid) => format!("remove {uid}"),
                SourceUpdate::Synced(_, uids) => format!("synced {uids:?}"),
            });
        }
        lines
    }

    #[test]
    fn a_relist_ends_with_exactly_the_pods_that_exist() {
        let mut fixture = fixture();
        fixture.sink.handle(WatchEvent::Restart);
        fixture.sink.handle(WatchEvent::InitApply(pod("a", "1", false)));
        // The connection breaks, and pod `a` is replaced by another of the same name meanwhile.
        fixture.sink.handle(WatchEvent::Restart);
        fixture.sink.handle(WatchEvent::InitApply(pod("a", "2", false)));
        fixture.sink.handle(WatchEvent::InitDone);
        fixture.sink.handle(WatchEvent::Delete(pod("a", "2", false)));
        assert_eq!(lines(&mut fixture), ["upsert 1", "upsert 2", r#"synced {"2"}"#, "remove 2"]);
    }

    #[test]
    fn mirror_pods_never_become_desired() {
        let mut fixture = fixture();
        fixture.sink.handle(WatchEvent::Restart);
        fixture.sink.handle(WatchEvent::InitApply(pod("m", "1", true)));
        fixture.sink.handle(WatchEvent::InitDone);
        fixture.sink.handle(WatchEvent::Delete(pod("m", "1", true)));
        assert_eq!(lines(&mut fixture), ["synced {}"]);
        assert!(matches!(fixture.mirrors.try_recv(), Ok(MirrorNote::Upsert(_))));
        assert!(matches!(fixture.mirrors.try_recv(), Ok(MirrorNote::Synced(uids)) if uids.len() == 1));
        assert!(matches!(fixture.mirrors.try_recv(), Ok(MirrorNote::Removed(_, uid)) if uid.as_str() == "1"));
    }
}
