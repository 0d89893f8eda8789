//! What pods add up to: the values above them that follow which pods there are.
//!
//! The class Burstable has CPU shares by the requests of its pods, so that a class full of pods gets more than an empty one;
//! with protected memory, `kubepods` and Burstable have the sums of what is protected below. Each change is written once.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::memory_qos::{self, MemoryQos, Sums};
use super::plan::{self, CgroupVersion, Request, Values};
use super::resources::QosClass;
use super::{CgroupError, Inner};
use crate::ids::PodUid;

/// What each pod requests, and what was last written for it.
#[derive(Default)]
pub(super) struct Classes {
    requests: BTreeMap<PodUid, Request>,
    written: Option<Above>,
}

/// What the cgroups above pods have because of them.
#[derive(Debug, PartialEq)]
struct Above {
    burstable: Values,
    kubepods: Values,
}

fn above(
    requests: &BTreeMap<PodUid, Request>,
    qos: MemoryQos,
    version: CgroupVersion,
    huge_page_sizes: &[i64],
) -> Above {
    let burstable = requests.values().filter(|request| request.class == QosClass::Burstable);
    let milli = burstable.fold(0i64, |sum, request| sum.saturating_add(request.milli_cpu));
    let mut burstable = plan::qos_values(QosClass::Burstable, milli, huge_page_sizes);
    let mut kubepods = Values::default();
    if version == CgroupVersion::V2 {
        let sums = Sums::of(requests.values());
        burstable.unified = memory_qos::of_burstable(sums, qos);
        kubepods.unified = memory_qos::of_kubepods(sums, qos);
    }
    Above { burstable, kubepods }
}

impl Inner {
    /// Counts a pod. Waiters on the lock find the sum already written, so a burst of pods costs few writes.
    pub(super) fn count(&self, uid: &PodUid, request: Request) -> Result<(), CgroupError> {
        if request.class == QosClass::BestEffort {
            return Ok(());
        }
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        classes.requests.insert(uid.clone(), request);
        self.write(&mut classes)
    }

    /// Counts a pod no longer.
    pub(super) fn discount(&self, uid: &PodUid) -> Result<(), CgroupError> {
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        match classes.requests.remove(uid) {
            Some(_) => self.write(&mut classes),
            None => Ok(()),
        }
    }

    /// Writes the sums, whatever was written before.
    pub(super) fn write_classes(&self) -> Result<(), CgroupError> {
        let mut classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        classes.written = None;
        self.write(&mut classes)
    }

    fn write(&self, classes: &mut Classes) -> Result<(), CgroupError> {
        let qos = self.settings.memory_qos;
        let new = above(&classes.requests, qos, self.version(), &self.huge_page_sizes);
        let old = classes.written.take();
        // From the top down: a class is protected only as far as what is above it.
        if old.as_ref().map(|old| &old.kubepods) != Some(&new.kubepods) {
            self.apply(self.tree.kubepods(), &new.kubepods)?;
        }
        if old.as_ref().map(|old| &old.burstable) != Some(&new.burstable) {
            self.apply(&self.tree.qos(QosClass::Burstable), &new.burstable)?;
        }
        if qos.is_tiered() {
            let sums = Sums::of(classes.requests.values());
            crate::metrics::METRICS.memory_qos.set(sums.guaranteed, sums.burstable);
        }
        classes.written = Some(new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> BTreeMap<PodUid, Request> {
        let request = |class, milli_cpu, memory| Request { class, milli_cpu, memory };
        let pods = [
            ("g", request(QosClass::Guaranteed, 1000, 100)),
            ("b1", request(QosClass::Burstable, 125, 20)),
            ("b2", request(QosClass::Burstable, 125, 3)),
        ];
        pods.into_iter().map(|(uid, request)| (PodUid::new(uid), request)).collect()
    }

    #[test]
    fn shares_are_those_of_burstable_pods_in_both_versions() {
        let qos = MemoryQos::On { is_tiered: false, throttling: None };
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            let above = above(&requests(), qos, version, &[2 << 20]);
            assert_eq!(above.burstable.cpu_shares, Some(256), "{version:?}");
            assert_eq!(above.burstable.huge_pages, [(2 << 20, 1 << 62)].into(), "{version:?}");
            assert_eq!((above.kubepods.cpu_shares, above.kubepods.memory), (None, None), "those are the node's");
        }
    }

    #[test]
    fn memory_is_protected_on_v2_only() {
        let qos = MemoryQos::On { is_tiered: true, throttling: None };
        let on = |version| above(&requests(), qos, version, &[]);
        assert_eq!(on(CgroupVersion::V2).kubepods.unified["memory.min"], "123");
        assert_eq!(on(CgroupVersion::V2).burstable.unified["memory.low"], "23");
        assert!(
            on(CgroupVersion::V1).kubepods.unified.is_empty() && on(CgroupVersion::V1).burstable.unified.is_empty()
        );
    }
}
