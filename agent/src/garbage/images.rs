//! Which images are removed. Pure.
//!
//! Two rules: an image that nobody has used for `imageMaximumGCAge` goes, and when the images' file system is
//! `imageGCHighThresholdPercent` full, the longest unused go until it would be at `imageGCLowThresholdPercent`. An image that
//! came within `imageMinimumGCAge` stays for the second rule: its pod may be about to start. When an image was used last is known
//! since the agent started, as under kubelet: the runtime does not tell.

use std::collections::{BTreeMap, BTreeSet};

use crate::cri::Nanos;
use crate::cri::listing::ListedImage;
use crate::pod::images::reference::Reference;

#[cfg(test)]
mod tests;

/// `imageGC...` and `image...GCAge` of the configuration, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Percent of use from which images are removed; 100 is never.
    pub high: u8,
    /// Percent of use down to which they are removed; less than `high`.
    pub low: u8,
    /// How long an image stays after it came.
    pub min_age: Nanos,
    /// How long an image stays after its last use; 0 is for ever.
    pub max_age: Nanos,
}

impl Policy {
    /// Whether there is anything to do at all.
    pub fn is_on(&self) -> bool {
        self.high < 100 || self.max_age > 0
    }
}

/// What is remembered of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// A name for people.
    pub name: String,
    /// When it was seen first.
    pub first_seen: Nanos,
    /// When it was seen in use last; 0 is never.
    pub last_used: Nanos,
    /// Bytes.
    pub size: u64,
    /// Why it is not to be removed at all.
    pub held: Option<Hold>,
}

/// Why an image is not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A container has it, or a pod of this node names it.
    InUse,
    /// The runtime has pinned it, or makes sandboxes from it.
    Pinned,
}

/// Images on the node, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(pub BTreeMap<String, Record>);

/// Names by which images are in use, as specs and the runtime write them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Adds a name as a spec or the runtime has it, and the full names that it stands for.
    pub fn add(&mut self, name: &str) {
        if name.is_empty() {
            return;
        }
        if let Ok(reference) = Reference::parse(name) {
            let repository = reference.repository();
            match (&reference.tag, &reference.digest) {
                (None, None) => drop(self.0.insert(format!("{repository}:latest"))),
                (tag, digest) => {
                    self.0.extend(tag.iter().map(|tag| format!("{repository}:{tag}")));
                    self.0.extend(digest.iter().map(|digest| format!("{repository}@{digest}")));
                }
            }
        }
        self.0.insert(name.to_owned());
    }

    /// Whether one of an image's names or its id is among them. Runtimes give ids with and without their algorithm.
    pub fn has(&self, image: &ListedImage) -> bool {
        let bare = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
        let ids = [image.id.as_str(), bare].into_iter().filter(|id| !id.is_empty());
        ids.chain(image.tags.iter().chain(&image.digests).map(String::as_str)).any(|name| self.0.contains(name))
    }
}

impl Records {
    /// Takes in what is on the node now. Images that are gone are forgotten.
    pub fn observe(&mut self, images: &[ListedImage], used: &Names, pinned: &Names, now: Nanos) {
        let mut before = std::mem::take(&mut self.0);
        for image in images.iter().filter(|image| !image.id.is_empty()) {
            let known = before.remove(&image.id);
            let first_seen = known.as_ref().map_or(now, |record| record.first_seen);
            let is_used = used.has(image);
            let last_used = if is_used { now } else { known.map_or(0, |record| record.last_used) };
            let held = match (is_used, image.is_pinned || pinned.has(image)) {
                (true, _) => Some(Hold::InUse),
                (false, true) => Some(Hold::Pinned),
                (false, false) => None,
            };
            let name = image.tags.first().or(image.digests.first()).unwrap_or(&image.id).clone();
            self.0.insert(image.id.clone(), Record { name, first_seen, last_used, size: image.size, held });
        }
    }

    /// Images that may go, the longest unused first, then those that came first.
    fn unused(&self) -> Vec<(&String, &Record)> {
        let mut unused: Vec<_> = self.0.iter().filter(|(_, record)| record.held.is_none()).collect();
        unused.sort_by_key(|(id, record)| (record.last_used, record.first_seen, *id));
        unused
    }
}

/// Why an image goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was not used for `imageMaximumGCAge`.
    Age,
    /// The file system is too full, or somebody wants room.
    Space,
}

impl Why {
    /// `reason` of `kubelet_image_garbage_collected_total`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Space => "space",
        }
    }
}

/// An image that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its id.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was used last; 0 is never since the agent started.
    pub last_used: Nanos,
    /// Why.
    pub why: Why,
}

fn removal((id, record): (&String, &Record), why: Why) -> Removal {
    let (name, size, last_used) = (record.name.clone(), record.size, record.last_used);
    Removal { id: id.clone(), name, size, last_used, why }
}

/// Images that were not used for too long. An agent that has not run for that long does not know.
pub fn aged(records: &Records, policy: &Policy, began: Nanos, now: Nanos) -> Vec<Removal> {
    if policy.max_age == 0 || now - began <= policy.max_age {
        return Vec::new();
    }
    let is_aged = |record: &Record| now - record.last_used > policy.max_age;
    records.unused().into_iter().filter(|(_, record)| is_aged(record)).map(|image| removal(image, Why::Age)).collect()
}

/// The file system of images, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Size.
    pub capacity: u64,
    /// Left for us.
    pub available: u64,
}

impl Disk {
    /// Percent in use, as kubelet counts: what is not left for us. `None` for a file system without a size.
    pub fn percent(&self) -> Option<u64> {
        let available = self.available.min(self.capacity);
        let free = (u128::from(available) * 100).checked_div(u128::from(self.capacity))?;
        u64::try_from(free).ok().map(|free| 100 - free)
    }

    /// Bytes to free, when it is over the high threshold.
    pub fn excess(&self, policy: &Policy) -> Option<u64> {
        let percent = self.percent()?;
        (percent >= u64::from(policy.high)).then(|| {
            let wanted = u128::from(self.capacity) * (100 - u128::from(policy.low)) / 100;
            u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(self.available)
        })
    }
}

/// Images to remove until `goal` bytes are free, in the order in which they are tried; whoever carries it out stops when the
/// goal is reached, because one that cannot be removed is made up for by the next.
pub fn candidates(records: &Records, policy: &Policy, now: Nanos) -> Vec<Removal> {
    let may_go = |record: &Record| record.last_used < now && now - record.first_seen >= policy.min_age;
    records.unused().into_iter().filter(|(_, record)| may_go(record)).map(|image| removal(image, Why::Space)).collect()
}

/// As many of the candidates as `goal` takes, should each be removed. At least one, when there is one.
pub fn until(goal: u64, candidates: Vec<Removal>) -> Vec<Removal> {
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for candidate in candidates {
        freed = freed.saturating_add(candidate.size);
        chosen.push(candidate);
        if freed >= goal {
            break;
        }
    }
    chosen
}

/// Text of `FreeDiskSpaceFailed`.
pub fn too_little(percent: u64, capacity: u64, freed: u64) -> String {
    format!(
        "Insufficient free disk space on the node's image filesystem ({percent}% of {} used). Failed to free sufficient space by \
         deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active images, logs, \
         volumes, or other data.",
        size(capacity)
    )
}

/// Bytes as kubelet writes them: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}
