//! Figures of volumes, measured when somebody asks.
//!
//! ```text
//!  Never ──asked──► Running ──done──► Rests until ──asked──► Running
//! ```
//! Each pod has one such state for what is walked and one for what is asked: files by the million and a file server that does
//! not answer hold up their own pod's figures and nothing else. An answer waits [`PATIENCE`] for what was begun for it and then
//! takes what was known before; nothing is measured while nobody asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::ids::PodUid;
use crate::pod::spec;
use crate::volume::Volumes;
use crate::volume::stats::{Counts, PodFigures, VolumeFigures, Way};

/// How long an answer waits for a measurement.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pods that are walked at a time: one that is large leaves the other place free.
const WALKS: usize = 2;
/// Pods whose file systems are asked at a time. One that does not answer within [`PATIENCE`] gives up its place.
const ASKS: usize = 4;
/// A file system is asked again after so long: that costs nothing.
const ASKED_AGAIN: Duration = Duration::from_secs(10);
/// A walk is followed by a rest of so many times what it took, as in `eviction::measure`.
const REST: u32 = 9;
/// Longest rest for a long walk.
const LONGEST: Duration = Duration::from_secs(300);

/// Measures the volumes of a pod.
pub trait Measures: Send + Sync + 'static {
    /// The figures of these volumes. It may take any time.
    fn figures(&self, uid: PodUid, asked: Vec<(String, Way)>) -> BoxFuture<'static, Result<PodFigures, String>>;
    /// How many volumes these pods want and have.
    fn counts(&self, pods: &[Pod]) -> Counts;
}

impl Measures for Volumes {
    fn figures(&self, uid: PodUid, asked: Vec<(String, Way)>) -> BoxFuture<'static, Result<PodFigures, String>> {
        let this = self.clone();
        Box::pin(async move { Volumes::figures(&this, &uid, asked).await.map_err(|error| error.to_string()) })
    }

    fn counts(&self, pods: &[Pod]) -> Counts {
        Volumes::counts(self, pods)
    }
}

/// What is known of the volumes of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDisk {
    /// By name, with when it was measured.
    pub volumes: BTreeMap<String, (Timestamp, VolumeFigures)>,
    /// Bytes of the hosts file.
    pub hosts: Option<u64>,
}

/// By UID.
pub type Disks = HashMap<PodUid, PodDisk>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Work {
    #[default]
    Never,
    Running {
        since: Instant,
    },
    Rests {
        until: Instant,
    },
}

impl Work {
    fn is_due(self, now: Instant) -> bool {
        match self {
            Self::Never => true,
            Self::Running { .. } => false,
            Self::Rests { until } => until <= now,
        }
    }

    /// Whether an answer waits for it: what takes longer is not waited for again.
    fn is_awaited(self, now: Instant) -> bool {
        matches!(self, Self::Running { since } if now < since + PATIENCE)
    }
}

/// One way of measuring one pod.
#[derive(Debug, Default)]
struct Slot {
    work: Work,
    known: Option<(Timestamp, PodFigures)>,
}

/// Measures the volumes of pods, within bounds. Cheap to clone.
#[derive(Clone)]
pub struct VolumeMeter {
    inner: Arc<Inner>,
}

struct Inner {
    source: Arc<dyn Measures>,
    /// Least time between two walks of a pod; `None` where nothing is measured.
    period: Option<Duration>,
    slots: Mutex<HashMap<(PodUid, Way), Slot>>,
    walks: Semaphore,
    asks: Semaphore,
    /// Grows with each measurement that ends.
    ended: watch::Sender<u64>,
}

impl VolumeMeter {
    /// A meter; `period` is `volumeStatsAggPeriod`, `None` where it is negative.
    pub fn new(source: Arc<dyn Measures>, period: Option<Duration>) -> Self {
        let (walks, asks) = (Semaphore::new(WALKS), Semaphore::new(ASKS));
        let inner = Inner { source, period, slots: Mutex::default(), walks, asks, ended: watch::Sender::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// How many volumes these pods want and have.
    pub fn counts(&self, pods: &[Pod]) -> Counts {
        self.inner.source.counts(pods)
    }

    /// What is known of volumes that are measured in one of these ways, brought up to date as far as that is quick. `pods` are
    /// all of the node: others are forgotten.
    pub async fn measure(&self, pods: &[Pod], ways: &[Way]) -> Disks {
        if self.inner.period.is_none() {
            return Disks::new();
        }
        self.inner
            .slots()
            .retain(|(uid, _), _| pods.iter().any(|pod| pod.metadata.uid.as_deref() == Some(uid.as_str())));
        for (pod, way) in pods.iter().flat_map(|pod| ways.iter().map(move |way| (pod, *way))) {
            self.begin(pod, way);
        }
        let mut ended = self.inner.ended.subscribe();
        let deadline = Instant::now() + PATIENCE;
        while self.is_waiting(ways) {
            // The sender lives as long as this meter.
            if tokio::time::timeout_at(deadline, ended.changed()).await.is_err() {
                break;
            }
        }
        self.known(ways)
    }

    /// Begins a measurement that is due.
    fn begin(&self, pod: &Pod, way: Way) {
        let volumes = spec::spec(pod).volumes.iter().flatten().filter(|volume| Way::of(volume) == Some(way));
        let asked: Vec<(String, Way)> = volumes.map(|volume| (volume.name.clone(), way)).collect();
        // A pod without volumes has a hosts file, which is looked at with what is walked.
        if asked.is_empty() && way == Way::Ask {
            return;
        }
        let (key, now) = ((spec::uid(pod), way), Instant::now());
        let mut slots = self.inner.slots();
        let slot = slots.entry(key.clone()).or_default();
        if !slot.work.is_due(now) {
            return;
        }
        slot.work = Work::Running { since: now };
        drop(slots);
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.run(key, asked).await });
    }

    fn is_waiting(&self, ways: &[Way]) -> bool {
        let now = Instant::now();
        self.inner.slots().iter().any(|((_, way), slot)| ways.contains(way) && slot.work.is_awaited(now))
    }

    fn known(&self, ways: &[Way]) -> Disks {
        let mut all = Disks::new();
        for ((uid, _), slot) in self.inner.slots().iter().filter(|((_, way), _)| ways.contains(way)) {
            let Some((time, found)) = &slot.known else { continue };
            let disk = all.entry(uid.clone()).or_default();
            disk.volumes.extend(found.volumes.iter().map(|(name, figures)| (name.clone(), (*time, *figures))));
            disk.hosts = disk.hosts.or(found.hosts);
        }
        all
    }
}

impl Inner {
    async fn run(&self, key: (PodUid, Way), asked: Vec<(String, Way)>) {
        let places = if key.1 == Way::Walk { &self.walks } else { &self.asks };
        let mut place = places.acquire().await.ok();
        let began = Instant::now();
        let mut work = self.source.figures(key.0.clone(), asked);
        let measured = match tokio::time::timeout(PATIENCE, work.as_mut()).await {
            Ok(measured) => measured,
            Err(_) => {
                if key.1 == Way::Ask {
                    place = None;
                }
                work.await
            }
        };
        drop(place);
        let now = Instant::now();
        let rest = match key.1 {
            Way::Walk => ((now - began) * REST).min(LONGEST).max(self.period.unwrap_or(LONGEST)),
            Way::Ask => ASKED_AGAIN,
        };
        if let Err(error) = &measured {
            tracing::debug!(pod = key.0.as_str(), error, "volumes are not measured");
        }
        // Without a slot the pod went meanwhile.
        if let Some(slot) = self.slots().get_mut(&key) {
            slot.work = Work::Rests { until: now + rest };
            slot.known = measured.ok().map(|found| (Timestamp::now(), found)).or(slot.known.take());
        }
        self.ended.send_modify(|count| *count += 1);
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<(PodUid, Way), Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    /// Answers for pods, but for those that hang; counts questions.
    #[derive(Default)]
    struct Fake {
        hangs: Vec<&'static str>,
        asked: AtomicUsize,
        takes: Duration,
    }

    impl Measures for Fake {
        fn figures(&self, uid: PodUid, asked: Vec<(String, Way)>) -> BoxFuture<'static, Result<PodFigures, String>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (hangs, takes) = (self.hangs.contains(&uid.as_str()), self.takes);
            Box::pin(async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(takes).await;
                let figures = VolumeFigures { used: 7, ..VolumeFigures::default() };
                Ok(PodFigures { volumes: asked.into_iter().map(|(name, _)| (name, figures)).collect(), hosts: Some(1) })
            })
        }

        fn counts(&self, _: &[Pod]) -> Counts {
            Counts::default()
        }
    }

    fn pod(uid: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": uid, "uid": uid },
            "spec": { "containers": [], "volumes": [
                { "name": "own", "emptyDir": {} },
                { "name": "claimed", "persistentVolumeClaim": { "claimName": "c" } },
                { "name": "host", "hostPath": { "path": "/" } }] },
        }))
        .unwrap()
    }

    fn meter(fake: &Arc<Fake>) -> VolumeMeter {
        VolumeMeter::new(fake.clone(), Some(Duration::from_secs(60)))
    }

    const BOTH: [Way; 2] = [Way::Walk, Way::Ask];

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_often_is_measured_once_a_period() {
        let fake = Arc::new(Fake { takes: Duration::from_millis(10), ..Fake::default() });
        let (meter, pods) = (meter(&fake), [pod("a"), pod("b")]);
        for _ in 0..100 {
            let found = meter.measure(&pods, &BOTH).await;
            let names: Vec<_> = found[&PodUid::new("a")].volumes.keys().map(String::as_str).collect();
            assert_eq!((found.len(), names), (2, vec!["claimed", "own"]));
        }
        assert_eq!(fake.asked.load(Ordering::Relaxed), 4);
        tokio::time::advance(ASKED_AGAIN).await;
        meter.measure(&pods, &BOTH).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 6, "file systems are asked more often than files are counted");
        tokio::time::advance(Duration::from_secs(60)).await;
        meter.measure(&pods, &[Way::Walk]).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 8, "only in the ways that were asked for");
        assert!(meter.measure(&pods[..1], &BOTH).await.len() == 1, "a pod that went is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_hang_hold_up_one_answer_and_no_other_pod() {
        let fake = Arc::new(Fake { hangs: vec!["a", "b", "c", "d", "e"], ..Fake::default() });
        let (meter, pods) = (meter(&fake), ["a", "b", "c", "d", "e", "f"].map(pod));
        let ask = async || {
            let began = Instant::now();
            let found = meter.measure(&pods, &[Way::Ask]).await;
            (began.elapsed(), found.keys().any(|uid| uid.as_str() == "f"))
        };
        assert!(ask().await.0 <= PATIENCE);
        // Those that hung gave up their places.
        tokio::time::advance(PATIENCE * 3).await;
        tokio::task::yield_now().await;
        let (took, is_there) = ask().await;
        assert!(is_there && took.is_zero(), "{took:?}");
        assert_eq!(fake.asked.load(Ordering::Relaxed), 6, "one that hangs is not begun again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_walk_is_answered_with_what_was_known_and_rests_for_longer() {
        let fake = Arc::new(Fake { takes: Duration::from_secs(20), ..Fake::default() });
        let (meter, pods) = (meter(&fake), [pod("a")]);
        let began = Instant::now();
        assert!(meter.measure(&pods, &[Way::Walk]).await.is_empty());
        assert_eq!(began.elapsed(), PATIENCE);
        tokio::time::sleep(Duration::from_secs(20)).await;
        for _ in 0..2 {
            assert_eq!(meter.measure(&pods, &[Way::Walk]).await.len(), 1);
            tokio::time::advance(Duration::from_secs(80)).await;
        }
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1, "nine times what it took");
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(meter.measure(&pods, &[Way::Walk]).await.len(), 1, "the old figures meanwhile");
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_negative_period_switches_it_off() {
        let fake = Arc::new(Fake::default());
        let meter = VolumeMeter::new(fake.clone(), None);
        assert!(meter.measure(&[pod("a")], &BOTH).await.is_empty());
        assert_eq!(fake.asked.load(Ordering::Relaxed), 0);
    }
}
