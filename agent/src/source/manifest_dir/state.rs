//! What the manifest directory says, as a pure function of what was read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use sha2::{Digest, Sha256};

use crate::ids::{NodeName, ObjectKey, PodUid};
use crate::source::decode::{self, Decoded, Object};
use crate::watch::WatchEvent;

/// What one pass found out about one file.
#[derive(Clone, PartialEq, Eq)]
pub enum FileRead {
    /// It has not changed since the last pass.
    Same,
    /// Its content.
    Content {
        /// The bytes now.
        bytes: Vec<u8>,
        /// On first sight only: the content that was good when the agent ran last.
        last_good: Option<Vec<u8>>,
    },
    /// It is there but cannot be read.
    Failed(String),
}

/// All manifest files of the directory, by file name. A file that is not named here is gone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// The files.
    pub files: BTreeMap<String, FileRead>,
}

/// Something that people should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Used, but perhaps not as meant.
    Warning(String),
    /// Not used.
    Refused(String),
}

/// The difference that one pass makes, in the order in which it is to be told.
#[derive(Debug, Default)]
pub struct Changes {
    /// Pods that are no longer wanted, or that a changed spec replaces.
    pub removed_pods: Vec<PodUid>,
    /// New and changed pods.
    pub pods: Vec<Arc<Pod>>,
    /// Services: `Apply` and `Delete` only.
    pub services: Vec<WatchEvent<Service>>,
    /// EndpointSlices: `Apply` and `Delete` only.
    pub slices: Vec<WatchEvent<EndpointSlice>>,
    /// What to say, once.
    pub notes: Vec<Note>,
    /// Files with new good content, to be copied.
    pub good_files: Vec<(String, Vec<u8>)>,
    /// Files that are gone.
    pub gone_files: Vec<String>,
}

type Hash = [u8; 32];

/// One file: what it last said that could be used, and what was last tried.
#[derive(Default)]
struct ManifestFile {
    objects: Vec<Arc<Object>>,
    /// Hash of the content that was tried last, or of the reading error; says everything once.
    tried: Option<Hash>,
    problem: Option<String>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Id(&'static str, ObjectKey);

/// The directory as it was last understood.
pub struct State {
    node_name: NodeName,
    files: BTreeMap<String, ManifestFile>,
    objects: BTreeMap<Id, Arc<Object>>,
    /// Duplicates that were already reported.
    duplicates: BTreeSet<String>,
}

impl State {
    /// An empty directory.
    pub fn new(node_name: NodeName) -> Self {
        Self { node_name, files: BTreeMap::new(), objects: BTreeMap::new(), duplicates: BTreeSet::new() }
    }

    /// Takes in one pass and says what changed.
    pub fn apply(&mut self, scan: Scan) -> Changes {
        let mut changes = Changes::default();
        self.files.retain(|name, _| {
            let keep = scan.files.contains_key(name);
            if !keep {
                changes.gone_files.push(name.clone());
            }
            keep
        });
        for (name, read) in scan.files {
            self.file(name, read, &mut changes);
        }
        let next = self.index(&mut changes);
        let previous = std::mem::replace(&mut self.objects, next);
        self.diff(&previous, &mut changes);
        changes
    }

    fn file(&mut self, name: String, read: FileRead, changes: &mut Changes) {
        let file = self.files.entry(name.clone()).or_default();
        let stays = |file: &ManifestFile| match file.objects.len() {
            0 => "; nothing of this file is used".to_owned(),
            1 => "; its last good state (1 object) stays".to_owned(),
            n => format!("; its last good state ({n} objects) stays"),
        };
        match read {
            FileRead::Same => {}
            FileRead::Failed(error) => {
                if file.tried.replace(hash(&[b"error", error.as_bytes()])) != file.tried {
                    let text = format!("{name}: {error}{}", stays(file));
                    file.problem = Some(text.clone());
                    changes.notes.push(Note::Refused(text));
                }
            }
            FileRead::Content { bytes, last_good } => {
                let content = hash(&[b"content", &bytes]);
                if file.tried == Some(content) {
                    return;
                }
                file.tried = Some(content);
                match decode::decode_bytes(&name, &bytes) {
                    Ok(decoded) => {
                        changes.notes.extend(decoded.warnings.iter().map(|w| Note::Warning(w.to_string())));
                        file.objects = prepare(decoded, &self.node_name);
                        file.problem = None;
                        changes.good_files.push((name, bytes));
                    }
                    Err(errors) => {
                        if let Some(Ok(decoded)) = last_good.map(|old| decode::decode_bytes(&name, &old)) {
                            file.objects = prepare(decoded, &self.node_name);
                        }
                        let text = format!("{errors}{}", stays(file));
                        file.problem = Some(text.clone());
                        changes.notes.push(Note::Refused(text));
                    }
                }
            }
        }
    }

    /// All objects; of duplicates the first, by file name and then by place in the file.
    fn index(&mut self, changes: &mut Changes) -> BTreeMap<Id, Arc<Object>> {
        let mut index: BTreeMap<Id, (Arc<Object>, &str)> = BTreeMap::new();
        let mut duplicates = BTreeSet::new();
        for (name, file) in &self.files {
            for object in &file.objects {
                let id = Id(object.kind(), object.key());
                match index.get(&id) {
                    Some((_, first)) => {
                        let text =
                            format!("{name}: {} {} is already defined in {first}; this one is not used", id.0, id.1);
                        if !self.duplicates.contains(&text) {
                            changes.notes.push(Note::Refused(text.clone()));
                        }
                        duplicates.insert(text);
                    }
                    None => {
                        index.insert(id, (object.clone(), name));
                    }
                }
            }
        }
        self.duplicates = duplicates;
        index.into_iter().map(|(id, (object, _))| (id, object)).collect()
    }

    fn diff(&self, previous: &BTreeMap<Id, Arc<Object>>, changes: &mut Changes) {
        for (id, old) in previous {
            let new = self.objects.get(id);
            match &**old {
                Object::Pod(old) => {
                    let same = new.is_some_and(|new| new.metadata().uid == old.metadata.uid);
                    if !same {
                        changes.removed_pods.extend(uid(old));
                    }
                }
                Object::Service(old) if new.is_none() => changes.services.push(WatchEvent::Delete((**old).clone())),
                Object::EndpointSlice(old) if new.is_none() => changes.slices.push(WatchEvent::Delete((**old).clone())),
                Object::Service(_) | Object::EndpointSlice(_) | Object::ConfigMap(_) | Object::Secret(_) => {}
            }
        }
        for (id, new) in &self.objects {
            if previous.get(id).is_some_and(|old| Arc::ptr_eq(old, new) || old == new) {
                continue;
            }
            match &**new {
                Object::Pod(pod) => changes.pods.push(Arc::new((**pod).clone())),
                Object::Service(service) => changes.services.push(WatchEvent::Apply((**service).clone())),
                Object::EndpointSlice(slice) => changes.slices.push(WatchEvent::Apply((**slice).clone())),
                // Read by key from the state as a whole.
                Object::ConfigMap(_) | Object::Secret(_) => {}
            }
        }
    }

    /// UIDs of all wanted pods.
    pub fn pod_uids(&self) -> BTreeSet<PodUid> {
        self.objects
            .values()
            .filter_map(|object| match &**object {
                Object::Pod(pod) => uid(pod),
                _ => None,
            })
            .collect()
    }

    /// All ConfigMaps.
    pub fn config_maps(&self) -> BTreeMap<ObjectKey, Arc<ConfigMap>> {
        let map = |(id, object): (&Id, &Arc<Object>)| match &**object {
            Object::ConfigMap(map) => Some((id.1.clone(), Arc::new((**map).clone()))),
            _ => None,
        };
        self.objects.iter().filter_map(map).collect()
    }

    /// All Secrets.
    pub fn secrets(&self) -> BTreeMap<ObjectKey, Arc<Secret>> {
        let map = |(id, object): (&Id, &Arc<Object>)| match &**object {
            Object::Secret(secret) => Some((id.1.clone(), Arc::new((**secret).clone()))),
            _ => None,
        };
        self.objects.iter().filter_map(map).collect()
    }

    /// What is wrong with files now, for people who ask.
    pub fn problems(&self) -> Vec<String> {
        self.files.values().filter_map(|f| f.problem.clone()).chain(self.duplicates.iter().cloned()).collect()
    }
}

fn uid(pod: &Pod) -> Option<PodUid> {
    pod.metadata.uid.as_deref().map(PodUid::new)
}

/// What the API server and the scheduler would have added: UID and node.
fn prepare(decoded: Decoded, node: &NodeName) -> Vec<Arc<Object>> {
    let prepared = decoded.objects.into_iter().map(|located| {
        let mut object = located.object;
        let key = object.key();
        match &mut object {
            Object::Pod(pod) => {
                if let Some(spec) = &mut pod.spec {
                    // Alone there is one node, whatever the manifest says; it is no part of the identity.
                    spec.node_name = None;
                    pod.metadata.uid = Some(pod_uid(&key, spec));
                    spec.node_name = Some(node.to_string());
                }
            }
            Object::Service(service) => service.metadata.uid = Some(object_uid("Service", &key)),
            Object::EndpointSlice(slice) => slice.metadata.uid = Some(object_uid("EndpointSlice", &key)),
            Object::ConfigMap(_) | Object::Secret(_) => {}
        }
        Arc::new(object)
    });
    prepared.collect()
}

fn pod_uid(key: &ObjectKey, spec: &k8s_openapi::api::core::v1::PodSpec) -> String {
    let spec = serde_json::to_vec(spec).expect("a pod spec has only text keys, so it has a JSON form");
    uuid(hash(&[b"Pod", key.namespace.as_bytes(), key.name.as_bytes(), &spec]))
}

fn object_uid(kind: &str, key: &ObjectKey) -> String {
    uuid(hash(&[kind.as_bytes(), key.namespace.as_bytes(), key.name.as_bytes()]))
}

/// A hash of parts that cannot run into each other.
fn hash(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// The first 128 bits in the form of a UUID; version 8 is "custom" (RFC 9562).
fn uuid(hash: Hash) -> String {
    let mut b = [0; 16];
    b.copy_from_slice(&hash[..16]);
    b[6] = (b[6] & 0x0f) | 0x80;
    b[8] = (b[8] & 0x3f) | 0x80;
    let n = u128::from_be_bytes(b);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        (n >> 96) as u32,
        (n >> 80) as u16,
        (n >> 64) as u16,
        (n >> 48) as u16,
        n & 0xffff_ffff_ffff
    )
}
