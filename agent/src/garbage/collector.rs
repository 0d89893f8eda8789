//! The task: a round every five minutes, and one whenever somebody asks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::images::{self, Disk, Hold, Names, Policy, Records, Removal, Why};
use super::pods::{self, View};
use super::report::{Item, Kind, Outcome, Report};
use crate::cri::Nanos;
use crate::cri::listing::ListedImage;
use crate::event::{Event, EventType, Subject};
use crate::logs::kept;
use crate::metrics::METRICS;
use crate::pod::leftovers;
use crate::pod::manager::census::{Census, Question};
use crate::pod::shared::Shared;

/// kubelet's `ImageGCPeriod`.
const PERIOD: Duration = Duration::from_secs(300);
/// How long a removal by the workers is waited for before it is called unfinished, and how often that is looked at.
const SETTLE: (u32, Duration) = (10, Duration::from_millis(500));

/// Tells which images pods name.
pub trait Uses: Send + Sync + 'static {
    /// Names of the images of all pods that are not at their end, as their specs write them.
    fn image_names(&self) -> BTreeSet<String>;
    /// Whether every source has delivered its pods and each has published a status.
    fn is_complete(&self) -> watch::Receiver<bool>;
}

/// A request of `nodelet gc`.
#[derive(Debug)]
pub struct Ask {
    /// Only look.
    pub dry_run: bool,
    /// Bytes of unused images to remove whatever the thresholds say.
    pub free: Option<u64>,
    /// Who waits.
    pub reply: oneshot::Sender<Report>,
}

/// What it works with.
pub struct Collector {
    /// Runtime, settings, events.
    pub shared: Arc<Shared>,
    /// Thresholds and ages of images.
    pub policy: Policy,
    /// Images that pods name.
    pub uses: Arc<dyn Uses>,
    /// The manager.
    pub questions: mpsc::Sender<Question>,
    /// Size of the file system that a directory is on; tests have disks of their own.
    pub disk: fn(&std::path::Path) -> std::io::Result<Disk>,
}

/// The size of the file system that a directory is on.
pub fn disk(path: &std::path::Path) -> std::io::Result<Disk> {
    let found = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Disk { capacity: bytes(found.f_blocks), available: bytes(found.f_bavail) })
}

/// What is remembered between rounds.
struct State {
    records: Records,
    began: Nanos,
    /// The last round of images failed. One failure alone is no event.
    has_failed: bool,
}

/// Images that can go at this moment.
struct Seen {
    images: Vec<ListedImage>,
    listed: SystemTime,
    at: Nanos,
}

/// Why a round of images did not do all that it was to do.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Runtime(#[from] crate::cri::CriError),
    #[error("cannot measure the image filesystem {path}: {source}")]
    Disk { path: String, source: std::io::Error },
    #[error("invalid capacity 0 on image filesystem")]
    NoCapacity,
    #[error("{0}")]
    TooLittle(String),
    #[error("wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {errors}")]
    Space { wanted: u64, freed: u64, errors: String },
    #[error("wanted to free images older than {age}, encountered errors in image deletion: {errors}")]
    Age { age: String, errors: String },
}

impl Collector {
    /// Runs until shutdown.
    pub async fn run(self, mut asks: mpsc::Receiver<Ask>, shutdown: CancellationToken) {
        let mut complete = self.uses.is_complete();
        let mut state = State { records: Records::default(), began: (self.shared.clock)(), has_failed: false };
        // No round before every source has delivered: until then no image is known to be of no use.
        let mut next: Option<Instant> = None;
        loop {
            tokio::select! {
                // Cancel-safe: channel receives, waiting for a value, a sleep until a time.
                () = shutdown.cancelled() => return,
                Some(ask) = asks.recv() => {
                    let report = self.answer(&mut state, &ask).await;
                    // Whoever does not wait any more needs no answer.
                    let _ = ask.reply.send(report);
                }
                () = becomes_true(&mut complete), if next.is_none() => next = Some(Instant::now()),
                () = until(next), if next.is_some() => {
                    next = Some(Instant::now() + PERIOD);
                    self.round(&mut state).await;
                }
            }
        }
    }

    async fn round(&self, state: &mut State) {
        let (keep, now) = (self.shared.settings.kept_logs.clone(), (self.shared.clock)());
        let tidied = tokio::task::spawn_blocking(move || kept::execute::tidy(&keep, &kept::LIMITS, now)).await;
        if let Err(error) = tidied {
            tracing::error!(%error, "tidying kept logs panicked");
        }
        if !self.policy.is_on() {
            return;
        }
        let mut report = Report::default();
        match self.images(state, false, None, &mut report).await {
            Ok(()) => state.has_failed = false,
            Err(trouble) => {
                tracing::warn!(%trouble, again = state.has_failed, "image garbage collection failed");
                if std::mem::replace(&mut state.has_failed, true) {
                    self.tell("ImageGCFailed", trouble.to_string());
                }
            }
        }
    }

    /// What `nodelet gc` asks for. One thing that cannot be looked at does not hide the others.
    async fn answer(&self, state: &mut State, ask: &Ask) -> Report {
        let mut report = Report { dry_run: ask.dry_run, at: (self.shared.clock)(), ..Report::default() };
        let census = self.census().await;
        let is_complete = *self.uses.is_complete().borrow();
        let (Some(census), true) = (census, is_complete) else {
            let text = "not every source of pods has delivered yet; nothing can be called unused";
            report.problems.push(text.to_owned());
            return report;
        };
        if let Err(trouble) = self.images(state, ask.dry_run, ask.free, &mut report).await {
            report.problems.push(trouble.to_string());
        }
        match self.left(census).await {
            Ok(items) if ask.dry_run => report.items.extend(items),
            Ok(items) => report.items.extend(self.clear(items).await),
            Err(text) => report.problems.push(text),
        }
        report
    }

    async fn census(&self) -> Option<Census> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Census(reply)).await.ok()?;
        answer.await.ok().flatten()
    }

    /// What pods left.
    async fn left(&self, pods: Census) -> Result<Vec<Item>, String> {
        let listing = self.shared.runtime.list_all().await.map_err(|error| error.to_string())?;
        let (places, logs) = leftovers::look(&self.shared).await?;
        let keep = self.shared.settings.kept_logs.clone();
        let kept = tokio::task::spawn_blocking(move || kept::execute::list(&keep)).await.unwrap_or_default();
        let view = View { listing, pods, places, logs, kept };
        Ok(pods::plan(&view, self.shared.settings.dead_containers, (self.shared.clock)()))
    }

    /// Has workers and manager do what they do every five minutes, and tells what is still there after a while.
    async fn clear(&self, planned: Vec<Item>) -> Vec<Item> {
        let (keep, now) = (self.shared.settings.kept_logs.clone(), (self.shared.clock)());
        let tidied = tokio::task::spawn_blocking(move || kept::execute::tidy(&keep, &kept::LIMITS, now)).await;
        if planned.is_empty() || tidied.is_err() || self.questions.send(Question::Check).await.is_err() {
            return planned;
        }
        let mut left: Option<Vec<Item>> = None;
        for _ in 0..SETTLE.0 {
            if left.as_ref().is_some_and(Vec::is_empty) {
                break;
            }
            tokio::time::sleep(SETTLE.1).await;
            let Some(census) = self.census().await else { break };
            left = self.left(census).await.ok().or(left);
        }
        let is_left = |item: &Item| {
            left.as_ref()
                .is_none_or(|left| left.iter().any(|found| (found.kind, &found.name) == (item.kind, &item.name)))
        };
        let judged = planned.into_iter().map(|item| match is_left(&item) {
            true => Item { outcome: Outcome::Failed("still there; the agent's log says why".to_owned()), ..item },
            false => Item { outcome: Outcome::Removed, ..item },
        });
        judged.collect()
    }

    /// Removes the images that are to go, or only tells which. `free` is asked for by people, and counts beside the thresholds.
    async fn images(
        &self,
        state: &mut State,
        dry_run: bool,
        free: Option<u64>,
        report: &mut Report,
    ) -> Result<(), Trouble> {
        let seen = self.observe(state).await?;
        let aged = images::aged(&state.records, &self.policy, state.began, seen.at);
        let mut freed_by_age = 0;
        if dry_run {
            freed_by_age = aged.iter().map(|removal| removal.size).sum();
            report.items.extend(aged.iter().map(|removal| item(removal, seen.at, Outcome::Planned)));
        } else {
            let (_, errors) = self.remove(state, &seen, aged, u64::MAX, report).await;
            if !errors.is_empty() {
                let age = crate::config::duration::format(Duration::from_nanos(self.policy.max_age.unsigned_abs()));
                return Err(Trouble::Age { age, errors: aggregate(&errors) });
            }
        }
        let mut disk = self.measure().await?;
        disk.available = disk.available.saturating_add(freed_by_age);
        let Some(percent) = disk.percent() else {
            self.tell("InvalidDiskCapacity", Trouble::NoCapacity.to_string());
            return Err(Trouble::NoCapacity);
        };
        report.notes.extend(notes(&state.records, &self.policy, percent));
        let excess = if self.policy.high < 100 { disk.excess(&self.policy) } else { None };
        let Some(goal) = excess.max(free) else { return Ok(()) };
        let aged: BTreeSet<String> = report.items.iter().map(|item| item.name.clone()).collect();
        let candidates = images::candidates(&state.records, &self.policy, seen.at);
        let candidates: Vec<Removal> = candidates.into_iter().filter(|removal| !aged.contains(&removal.name)).collect();
        if dry_run {
            let chosen = images::until(goal, candidates);
            report.items.extend(chosen.iter().map(|removal| item(removal, seen.at, Outcome::Planned)));
            return Ok(());
        }
        tracing::info!(percent, goal, unused = candidates.len(), "removing unused images");
        let (freed, errors) = self.remove(state, &seen, candidates, goal, report).await;
        if !errors.is_empty() {
            return Err(Trouble::Space { wanted: goal, freed, errors: aggregate(&errors) });
        }
        self.forget_records(state, &seen).await;
        if freed < excess.unwrap_or(0) {
            let text = images::too_little(percent, disk.capacity, freed);
            self.tell("FreeDiskSpaceFailed", text.clone());
            return Err(Trouble::TooLittle(text));
        }
        Ok(())
    }

    /// Takes in which images there are and which are in use.
    async fn observe(&self, state: &mut State) -> Result<Seen, Trouble> {
        let listed = SystemTime::now();
        let runtime = &self.shared.runtime;
        let (images, containers) = tokio::try_join!(runtime.list_all_images(), runtime.list_all_containers())?;
        let mut used = Names::default();
        containers.iter().flat_map(|container| &container.images).for_each(|name| used.add(name));
        self.uses.image_names().iter().for_each(|name| used.add(name));
        let at = (self.shared.clock)();
        state.records.observe(&images, &used, &Names::default(), at);
        // The runtime's configuration is long; it is asked for only where something could go by mistake.
        if state.records.0.values().any(|record| record.held.is_none()) {
            let mut pinned = Names::default();
            runtime.sandbox_image().await?.iter().for_each(|name| pinned.add(name));
            state.records.observe(&images, &used, &pinned, at);
        }
        Ok(Seen { images, listed, at })
    }

    async fn measure(&self) -> Result<Disk, Trouble> {
        let path = self.shared.runtime.image_directory().await?;
        let (measure, shown) = (self.disk, path.display().to_string());
        let found = tokio::task::spawn_blocking(move || measure(&path)).await;
        let found = found.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        found.map_err(|source| Trouble::Disk { path: shown, source })
    }

    /// Removes images until so many bytes are free; answers how many are, and what failed. An image that a pod has come to
    /// need meanwhile stays.
    async fn remove(
        &self,
        state: &mut State,
        seen: &Seen,
        removals: Vec<Removal>,
        goal: u64,
        report: &mut Report,
    ) -> (u64, Vec<String>) {
        let (mut freed, mut errors) = (0u64, Vec::new());
        for removal in removals {
            let mut wanted = Names::default();
            self.uses.image_names().iter().for_each(|name| wanted.add(name));
            if seen.images.iter().any(|image| image.id == removal.id && wanted.has(image)) {
                continue;
            }
            tracing::info!(image = %removal.name, id = %removal.id, bytes = removal.size, why = removal.why.label(), "removing an image");
            let outcome = match self.shared.runtime.remove_image(&removal.id).await {
                Ok(()) => {
                    METRICS.garbage.images.increment([removal.why.label()]);
                    state.records.0.remove(&removal.id);
                    freed = freed.saturating_add(removal.size);
                    Outcome::Removed
                }
                Err(error) => {
                    errors.push(error.to_string());
                    Outcome::Failed(error.to_string())
                }
            };
            report.items.push(item(&removal, seen.at, outcome));
            if freed >= goal {
                break;
            }
        }
        (freed, errors)
    }

    /// Records of pulls go with their images.
    async fn forget_records(&self, state: &State, seen: &Seen) {
        let ids: Vec<String> = state.records.0.keys().cloned().collect();
        let (shared, listed) = (self.shared.clone(), seen.listed);
        let pruned = tokio::task::spawn_blocking(move || shared.images.forget_others(&ids, listed)).await;
        if let Err(error) = pruned {
            tracing::error!(%error, "pruning records of image pulls panicked");
        }
    }

    fn tell(&self, reason: &'static str, message: String) {
        self.shared.recorder.emit(Event { subject: Subject::Node, kind: EventType::Warning, reason, message });
    }
}

fn becomes_true(complete: &mut watch::Receiver<bool>) -> BoxFuture<'_, ()> {
    Box::pin(async move {
        if complete.wait_for(|is| *is).await.is_err() {
            // Whoever would tell is gone: the agent stops.
            std::future::pending().await
        }
    })
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Errors as Go's `errors.NewAggregate` joins them.
fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn item(removal: &Removal, now: Nanos, outcome: Outcome) -> Item {
    let seconds = |nanos: Nanos| Duration::from_secs(u64::try_from(nanos / 1_000_000_000).unwrap_or(0));
    let unused = match removal.last_used {
        0 => "not used since the agent started".to_owned(),
        at => format!("not used for {}", crate::config::duration::format(seconds(now - at))),
    };
    let why = match removal.why {
        Why::Age => format!("{unused}, which is longer than imageMaximumGCAge"),
        Why::Space => format!("{unused}; room is needed"),
    };
    let (name, bytes) = (removal.name.clone(), Some(removal.size));
    Item { kind: Kind::Image, name, pod: None, bytes, why, outcome }
}

/// What explains a plan: how full the disk is, when images go, and how many are kept for what reason.
fn notes(records: &Records, policy: &Policy, percent: u64) -> Vec<String> {
    let count = |held| records.0.values().filter(|record| record.held == held).count();
    let rule = match policy.high {
        100 => "unused images are not removed for room (imageGCHighThresholdPercent: 100)".to_owned(),
        high => format!("unused images go at {high} %, down to {} %", policy.low),
    };
    vec![
        format!("the file system of images is {percent} % full; {rule}"),
        format!(
            "images: {} in use, {} pinned, {} unused",
            count(Some(Hold::InUse)),
            count(Some(Hold::Pinned)),
            count(None)
        ),
    ]
}
