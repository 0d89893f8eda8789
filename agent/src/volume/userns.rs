//! Id ranges of pods with a user namespace of their own (`hostUsers: false`, KEP-127). Pure.
//!
//! Each such pod has 65536 ids of the node that no other pod has, so that one that breaks out of its container is nobody
//! anywhere else. The range is written to `pods/UID/userns` in kubelet's format and read back by the next agent; a pod
//! keeps it for life, because its files belong to these ids. Where the file of a pod cannot be read, its range is not
//! known, and no new range is given out until that pod is gone: two pods with one range would be able to reach each other.
//! Not done: ranges of the user `kubelet` in `/etc/subuid` (kubelet runs `getsubids`), `userNamespaces.idsPerPod`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::PodUid;

/// Ids of a pod; `userNamespaces.idsPerPod` has this default.
const LENGTH: u32 = 65_536;
/// Ranges of a 32-bit id space. The first one has the node's own users and is never given out.
const RANGES: u32 = u32::MAX / LENGTH;

/// Ids of the node that a pod's ids 0 and up stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// What root of the pod is on the node.
    pub first: u32,
    /// How many.
    pub length: u32,
}

/// Who has which range.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// First id by pod.
    used: BTreeMap<PodUid, u32>,
    /// Pods whose file cannot be read.
    unknown: BTreeSet<PodUid>,
}

impl Ranges {
    /// The pod's range; the lowest free one if it has none.
    pub(super) fn take(&mut self, uid: &PodUid) -> Result<IdRange, String> {
        if let Some(first) = self.used.get(uid) {
            return Ok(IdRange { first: *first, length: LENGTH });
        }
        if let Some(unknown) = self.unknown.iter().next() {
            return Err(format!(
                "the user namespace of pod {:?} cannot be read, so no other can be given out; delete that pod",
                unknown.as_str()
            ));
        }
        let taken: BTreeSet<u32> = self.used.values().copied().collect();
        let free = (1..=RANGES).map(|index| index * LENGTH).find(|first| !taken.contains(first));
        let first = free.ok_or("could not find an empty slot to allocate a user namespace")?;
        self.used.insert(uid.clone(), first);
        Ok(IdRange { first, length: LENGTH })
    }

    /// Takes over what a file says of a pod.
    pub(super) fn record(&mut self, uid: &PodUid, range: IdRange) -> Result<(), String> {
        let IdRange { first, length } = range;
        if length != LENGTH {
            return Err(format!("wrong user namespace length {length}"));
        }
        if first == 0 || !first.is_multiple_of(LENGTH) {
            return Err(format!("wrong user namespace offset specified {first}"));
        }
        match self.used.get(uid) {
            Some(known) if *known == first => Ok(()),
            Some(_) => Err(format!("different user namespace range already used by pod {:?}", uid.as_str())),
            None if self.used.values().any(|taken| *taken == first) => {
                Err(format!("range picked for pod {:?} already taken", uid.as_str()))
            }
            None => {
                self.used.insert(uid.clone(), first);
                Ok(())
            }
        }
    }

    /// The pod has a range that is not known.
    pub(super) fn is_unknown(&mut self, uid: &PodUid) {
        self.unknown.insert(uid.clone());
    }

    /// The pod is gone.
    pub(super) fn release(&mut self, uid: &PodUid) {
        self.used.remove(uid);
        self.unknown.remove(uid);
    }
}

/// kubelet's file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

/// The file's text for a range.
pub(super) fn encode(range: IdRange) -> String {
    let mapping = Mapping { host_id: range.first, container_id: 0, length: range.length };
    let mappings = Mappings { uid_mappings: vec![mapping], gid_mappings: vec![mapping] };
    serde_json::to_string(&mappings).expect("numbers have a JSON form")
}

/// Reads the file.
pub(super) fn decode(text: &[u8]) -> Result<IdRange, String> {
    let found: Mappings =
        serde_json::from_slice(text).map_err(|error| format!("invalid user namespace mappings file: {error}"))?;
    let ([uids], [gids]) = (found.uid_mappings.as_slice(), found.gid_mappings.as_slice()) else {
        return Err("invalid user namespace configuration: expected one mapping of UIDs and one of GIDs".to_owned());
    };
    if uids != gids {
        return Err("invalid user namespace configuration: GID and UID mapping should be identical".to_owned());
    }
    if uids.container_id != 0 {
        return Err("invalid user namespace configuration: UID 0 must be mapped".to_owned());
    }
    Ok(IdRange { first: uids.host_id, length: uids.length })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> PodUid {
        PodUid::new(text)
    }

    #[test]
    fn no_two_pods_share_ids_and_nobody_has_the_nodes() {
        let mut ranges = Ranges::default();
        let all: BTreeSet<u32> =
            (0..300).map(|n| ranges.take(&uid(&format!("p{n}"))).unwrap()).map(|range| range.first).collect();
        assert_eq!(all.len(), 300);
        assert!(all.iter().all(|first| *first >= LENGTH && first.is_multiple_of(LENGTH)));
        assert_eq!(ranges.take(&uid("p7")).unwrap(), ranges.take(&uid("p7")).unwrap(), "a pod keeps its range");
        let freed = ranges.take(&uid("p7")).unwrap();
        ranges.release(&uid("p7"));
        assert_eq!(ranges.take(&uid("new")).unwrap(), freed);
    }

    #[test]
    fn the_last_range_ends_with_the_id_space() {
        let used = (1..RANGES).map(|n| (uid(&n.to_string()), n * LENGTH)).collect();
        let mut ranges = Ranges { used, ..Ranges::default() };
        let last = ranges.take(&uid("last")).unwrap();
        assert_eq!(last.first.checked_add(last.length - 1), Some(u32::MAX));
        assert!(ranges.take(&uid("one more")).is_err());
    }

    #[test]
    fn what_is_on_disk_is_taken_over_or_refused_by_name() {
        let mut ranges = Ranges::default();
        let range = |first, length| IdRange { first, length };
        ranges.record(&uid("a"), range(65_536, LENGTH)).unwrap();
        ranges.record(&uid("a"), range(65_536, LENGTH)).expect("twice is once");
        for (pod, found, text) in [
            ("b", range(65_536, LENGTH), "already taken"),
            ("a", range(131_072, LENGTH), "different user namespace range"),
            ("b", range(131_072, 1000), "wrong user namespace length 1000"),
            ("b", range(70_000, LENGTH), "wrong user namespace offset specified 70000"),
            ("b", range(0, LENGTH), "wrong user namespace offset specified 0"),
        ] {
            let error = ranges.record(&uid(pod), found).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert_eq!(ranges.take(&uid("b")).unwrap().first, 131_072);
    }

    #[test]
    fn while_a_range_is_unknown_no_new_one_is_given_out() {
        let mut ranges = Ranges::default();
        let known = ranges.take(&uid("a")).unwrap();
        ranges.is_unknown(&uid("torn"));
        assert!(ranges.take(&uid("b")).unwrap_err().contains("torn"));
        assert_eq!(ranges.take(&uid("a")), Ok(known));
        ranges.release(&uid("torn"));
        ranges.take(&uid("b")).unwrap();
    }

    #[test]
    fn the_file_is_kubelets() {
        let range = IdRange { first: 131_072, length: LENGTH };
        let text = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;
        assert_eq!(encode(range), text);
        assert_eq!(decode(text.as_bytes()), Ok(range));
        for bad in [
            "",
            "{}",
            r#"{"uidMappings":[],"gidMappings":[]}"#,
            r#"{"uidMappings":[{"hostId":1,"containerId":0,"length":2}],"gidMappings":[{"hostId":3,"containerId":0,"length":2}]}"#,
            r#"{"uidMappings":[{"hostId":1,"containerId":1,"length":2}],"gidMappings":[{"hostId":1,"containerId":1,"length":2}]}"#,
        ] {
            assert!(decode(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
