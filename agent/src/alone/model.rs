//! Manifests and pods joined: what is to be programmed, and what of it was not told yet. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::allocate::{Problem, Ranges, Remembered, assign};
use super::endpoints::{selects, slices};
use super::observed::{PodObserved, PodUpdate};
use super::{Out, Snapshot};
use crate::ids::{NodeName, ObjectKey, PodUid};
use crate::source::manifest_dir::ServiceUpdate;
use crate::watch::WatchEvent;

/// The state of [`super::Alone`].
pub struct Model {
    ranges: Ranges,
    node: NodeName,
    memory: Remembered,
    /// As the manifests say.
    declared: BTreeMap<ObjectKey, Service>,
    manual: BTreeMap<ObjectKey, EndpointSlice>,
    pods: BTreeMap<PodUid, PodObserved>,
    /// With addresses, as last computed.
    services: BTreeMap<ObjectKey, Service>,
    /// Computed slices by Service.
    endpoints: BTreeMap<ObjectKey, Vec<EndpointSlice>>,
    problems: BTreeSet<Problem>,
    manifests_read: bool,
    pods_synced: bool,
    services_dirty: bool,
    /// Services whose endpoints may have changed.
    dirty: BTreeSet<ObjectKey>,
    told: Told,
}

/// What the sinks know.
#[derive(Default)]
struct Told {
    listed: bool,
    services: BTreeMap<ObjectKey, Service>,
    slices: BTreeMap<ObjectKey, EndpointSlice>,
}

impl Model {
    /// Nothing known but what was allocated before.
    pub fn new(ranges: Ranges, memory: Remembered, node: NodeName) -> Self {
        Self {
            ranges,
            node,
            memory,
            declared: BTreeMap::new(),
            manual: BTreeMap::new(),
            pods: BTreeMap::new(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            problems: BTreeSet::new(),
            manifests_read: false,
            pods_synced: false,
            services_dirty: false,
            dirty: BTreeSet::new(),
            told: Told::default(),
        }
    }

    /// Have all pods of the start been told?
    pub fn pods_synced(&self) -> bool {
        self.pods_synced
    }

    /// News of the manifest directory.
    pub fn service(&mut self, update: ServiceUpdate) {
        match update {
            ServiceUpdate::Service(WatchEvent::Restart) => self.declared.clear(),
            ServiceUpdate::Service(WatchEvent::InitDone) => {
                self.manifests_read = true;
                self.services_dirty = true;
            }
            ServiceUpdate::Service(WatchEvent::InitApply(service) | WatchEvent::Apply(service)) => {
                self.declared.insert(key(&service.metadata), service);
                self.services_dirty = true;
            }
            ServiceUpdate::Service(WatchEvent::Delete(service)) => {
                self.declared.remove(&key(&service.metadata));
                self.services_dirty = true;
            }
            ServiceUpdate::Slice(WatchEvent::Restart) => self.manual.clear(),
            ServiceUpdate::Slice(WatchEvent::InitDone) => {}
            ServiceUpdate::Slice(WatchEvent::InitApply(slice) | WatchEvent::Apply(slice)) => {
                self.manual.insert(key(&slice.metadata), slice);
            }
            ServiceUpdate::Slice(WatchEvent::Delete(slice)) => {
                self.manual.remove(&key(&slice.metadata));
            }
        }
    }

    /// News of a pod.
    pub fn pod(&mut self, update: PodUpdate) {
        match update {
            PodUpdate::Status(mut observed) => {
                let old = self.pods.remove(&observed.uid);
                observed.terminating |= old.as_ref().is_some_and(|o| o.terminating);
                self.touch(old.iter().chain([&observed]).collect());
                self.pods.insert(observed.uid.clone(), observed);
            }
            PodUpdate::Gone(uid) => {
                let old = self.pods.remove(&uid);
                self.touch(old.iter().collect());
            }
            PodUpdate::Synced => self.pods_synced = true,
        }
    }

    fn touch(&mut self, pods: Vec<&PodObserved>) {
        let chosen = self.services.iter().filter(|(_, service)| pods.iter().any(|p| selects(service, &p.pod)));
        self.dirty.extend(chosen.map(|(key, _)| key.clone()));
    }

    /// What has to be told since the last call. Nothing before both the manifests and the pods are known.
    pub fn take(&mut self) -> Out {
        let mut out = Out::default();
        if !self.manifests_read {
            return out;
        }
        if std::mem::take(&mut self.services_dirty) {
            self.allocate(&mut out);
        }
        for key in std::mem::take(&mut self.dirty) {
            match self.services.get(&key) {
                Some(service) => {
                    let slices = slices(service, self.pods.values(), &self.node);
                    self.endpoints.insert(key, slices);
                }
                None => {
                    self.endpoints.remove(&key);
                }
            }
        }
        if self.pods_synced {
            self.tell(&mut out);
        }
        out
    }

    fn allocate(&mut self, out: &mut Out) {
        let assigned = assign(&self.declared, &self.memory, &self.ranges);
        if assigned.remembered != self.memory {
            self.memory = assigned.remembered.clone();
            out.remembered = Some(assigned.remembered);
        }
        let problems: BTreeSet<Problem> = assigned.problems.into_iter().collect();
        out.problems = problems.difference(&self.problems).cloned().collect();
        self.problems = problems;
        let old = std::mem::replace(&mut self.services, assigned.services);
        let all = old.keys().chain(self.services.keys());
        self.dirty.extend(all.filter(|key| old.get(*key) != self.services.get(*key)).cloned());
    }

    fn tell(&mut self, out: &mut Out) {
        let mut wanted = self.manual.clone();
        for slice in self.endpoints.values().flatten() {
            // A slice of the manifests that has the name of a computed one is what its author wants.
            wanted.entry(key(&slice.metadata)).or_insert_with(|| slice.clone());
        }
        let first = !std::mem::replace(&mut self.told.listed, true);
        out.services = difference(first, &mut self.told.services, self.services.clone());
        out.slices = difference(first, &mut self.told.slices, wanted);
    }

    /// Everything that was told.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            services: self.told.services.values().cloned().collect(),
            slices: self.told.slices.values().cloned().collect(),
        }
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> ObjectKey {
    ObjectKey::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
}

/// The events that lead from `told` to `wanted`; removals come first, so that an address that moves is free.
fn difference<K: Clone + PartialEq>(
    first: bool,
    told: &mut BTreeMap<ObjectKey, K>,
    wanted: BTreeMap<ObjectKey, K>,
) -> Vec<WatchEvent<K>> {
    let mut events = Vec::new();
    if first {
        events.push(WatchEvent::Restart);
        events.extend(wanted.values().cloned().map(WatchEvent::InitApply));
        events.push(WatchEvent::InitDone);
    } else {
        let gone = told.iter().filter(|(key, _)| !wanted.contains_key(*key));
        events.extend(gone.map(|(_, old)| WatchEvent::Delete(old.clone())));
        let changed = wanted.iter().filter(|(key, new)| told.get(*key) != Some(*new));
        events.extend(changed.map(|(_, new)| WatchEvent::Apply(new.clone())));
    }
    *told = wanted;
    events
}
