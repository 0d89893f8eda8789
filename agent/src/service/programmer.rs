//! The programmer: the one thread that writes our tables.
//!
//! ```text
//!  sinks ──dirty──► [ wake ] ──► structure there? ──no──► write it, adopt what is there
//!                      │                 │ yes
//!                      │                 ▼
//!                      │        update dirty Services ─► batch ─► commit ──ok──► conntrack
//!  listener ──audit────┘                                           └─refused─► forget, adopt again, find out what
//!                                                                              is refused, and do without it
//! ```
//!
//! A change is committed as soon as it is seen; changes that come while a commit is under way go together into the next.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;

use super::handle::{ServiceHandle, Shared, Status, Wake, lock, unix_now};
use super::isolate::{self, Found};
use super::structure::TABLE;
use super::table::Tables;
use super::{Front, Settings, affinity, conntrack, kernel, notice, sysctls, takeover};
use crate::event::Recorder;
use crate::ids::ObjectKey;
use crate::memory;
use crate::nft::batch::Batch;
use crate::nft::listener::Listener;
use crate::nft::socket::Kernel;
use crate::nft::{Family, NftError};

/// The full comparison with the kernel, should an event have been lost.
const AUDIT: Duration = Duration::from_secs(600);
/// Services in one transaction. The kernel holds a lock meanwhile, and the batch is the largest buffer of the agent.
const CHUNK: usize = 1000;
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Starts the programmer in the network namespace of the calling thread. What people should know of their Services
/// goes to `recorder`.
pub fn spawn(settings: Settings, recorder: Recorder) -> io::Result<ServiceHandle> {
    let shared = Arc::new(Shared::new(&settings, recorder.clone()));
    let kernel = Kernel::open()?;
    let listener = Listener::open(kernel.port()?)?;
    let programmer = Programmer {
        settings,
        shared: shared.clone(),
        kernel,
        tables: None,
        batch: Batch::new(),
        refusals: 0,
        recorder,
        unreconciled: BTreeSet::new(),
        unforgotten: BTreeSet::new(),
        is_first: true,
        triggers: Vec::new(),
        started: Timestamp::now(),
    };
    std::thread::Builder::new().name("services".into()).spawn(move || programmer.run())?;
    let heard = Arc::downgrade(&shared);
    std::thread::Builder::new().name("nft-events".into()).spawn(move || {
        // Ends with the process: the wait cannot be interrupted, and holds nothing.
        while listener.wait(TABLE).is_ok() {
            let Some(shared) = heard.upgrade() else { return };
            shared.notify(|wake| wake.audit = true);
        }
    })?;
    Ok(ServiceHandle::new(shared))
}

struct Programmer {
    settings: Settings,
    shared: Arc<Shared>,
    kernel: Kernel,
    /// What the kernel holds; `None` until it was adopted, and again after an error.
    tables: Option<Tables>,
    batch: Batch,
    /// How often in a row the kernel has refused a batch.
    refusals: u32,
    /// Tells people about their Services.
    recorder: Recorder,
    /// Fronts whose flows are to be compared with conntrack.
    unreconciled: BTreeSet<Front>,
    /// Fronts whose clients are to be compared with what is remembered of them.
    unforgotten: BTreeSet<Front>,
    /// Whether nothing was programmed yet.
    is_first: bool,
    /// When pods changed whose endpoints are not programmed yet, and whether those are IPv6.
    triggers: Vec<(Timestamp, bool)>,
    /// What changed before that is not counted as our delay.
    started: Timestamp,
}

impl Programmer {
    fn run(mut self) {
        let mut retry: Option<Duration> = None;
        let mut next_audit = Instant::now() + AUDIT;
        loop {
            let trial = lock(&self.shared.index).refusals().next_trial();
            let next_look = trial.map_or(next_audit, |trial| trial.min(next_audit));
            let deadline = retry.map_or(next_look, |delay| Instant::now() + delay);
            let wake = self.wait(deadline, retry.is_some());
            if wake.stop {
                return;
            }
            let audit = wake.audit || Instant::now() >= next_audit;
            if audit {
                next_audit = Instant::now() + AUDIT;
            }
            if wake.restructure {
                self.restructure();
            }
            match self.turn(audit) {
                Ok(is_done) => {
                    retry = None;
                    self.refusals = 0;
                    if is_done {
                        if let Some(since) = wake.since {
                            lock(&self.shared.metrics).programming.observe_time(since.elapsed());
                        }
                        *lock(&self.shared.done) = wake.newest;
                        self.shared.is_done.notify_all();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot program Services; trying again");
                    lock(&self.shared.status).error = Some(error.to_string());
                    lock(&self.shared.metrics).failures += 1;
                    self.tables = None;
                    self.batch.clear();
                    self.refusals += u32::from(matches!(error, NftError::Refused { .. }));
                    retry = Some(retry.map_or(Duration::from_millis(10), |d| (d * 2).min(RETRY_MAX)));
                }
            }
        }
    }

    /// Waits for something to do; a retry waits out its delay whatever comes.
    fn wait(&self, deadline: Instant, is_retry: bool) -> Wake {
        let mut wake = lock(&self.shared.wake);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || wake.stop || (!is_retry && (wake.changed || wake.audit)) {
                let newest = wake.newest;
                return std::mem::replace(&mut *wake, Wake { newest, ..Wake::default() });
            }
            wake = self.shared.condvar.wait_timeout(wake, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The settings of rules are others: writes all rules anew with the next commit. Elements stay.
    fn restructure(&mut self) {
        self.settings = lock(&self.shared.settings).clone();
        if let Some(tables) = &self.tables {
            kernel::restructure(&self.settings, tables, &mut self.batch);
        }
    }

    /// Answers whether the kernel has everything; it has not before both lists are complete.
    fn turn(&mut self, audit: bool) -> Result<bool, NftError> {
        let began = Instant::now();
        if !lock(&self.shared.index).has_synced() {
            // Until both lists are complete nothing may be removed, and half a Service must not be shown.
            return Ok(false);
        }
        if audit {
            self.audit()?;
        }
        lock(&self.shared.status).waiting_since.get_or_insert_with(SystemTime::now);
        let (mut tables, is_fresh) = match self.tables.take() {
            Some(tables) => (tables, false),
            None => (self.adopt()?, true),
        };
        // What the kernel refuses may be among it: then that is found out before anything is committed.
        let is_doubtful = lock(&self.shared.index).retry_refused(began) || self.refusals > 0;
        self.program(&mut tables, is_fresh, is_doubtful)?;
        self.forget(&tables, is_fresh)?;
        self.reconcile(&mut tables, is_fresh);
        let (size, refused) = (tables.size(), lock(&self.shared.index).refusals().len());
        self.tables = Some(tables);
        self.take_over(audit);
        {
            let mut status = lock(&self.shared.status);
            let last_commit = Some(SystemTime::now());
            let Status { comparisons, repairs, .. } = *status;
            *status = Status { last_commit, waiting_since: None, error: None, comparisons, repairs, size, refused };
        }
        self.count(is_fresh, began.elapsed());
        if is_fresh {
            // The lists have gone by, and all that was made of them is written.
            memory::give_back();
        }
        Ok(true)
    }

    /// Compares the kernel with the model, and forgets what is believed of it where they differ.
    fn audit(&mut self) -> Result<(), NftError> {
        lock(&self.shared.status).comparisons += 1;
        lock(&self.shared.metrics).comparisons += 1;
        if let Some(tables) = &self.tables
            && !kernel::is_intact(&mut self.kernel, &self.settings, tables)?
        {
            tracing::warn!("our nftables rules were changed by somebody else; repairing them");
            lock(&self.shared.status).repairs += 1;
            lock(&self.shared.metrics).drift += 1;
            self.tables = None;
        }
        Ok(())
    }

    /// Now that our rules stand: removes those of a kube-proxy, and tells connection tracking how long to remember. Both
    /// are looked at again with every audit, because whoever wrote them may still run.
    fn take_over(&mut self, audit: bool) {
        if !self.is_first && !audit {
            return;
        }
        if let Err(error) = takeover::take_over(&mut self.kernel, &mut self.batch) {
            self.batch.clear();
            lock(&self.shared.metrics).cleanup_failures += 1;
            tracing::error!(%error, "cannot remove the nftables tables of kube-proxy; remove them with `kube-proxy --cleanup`");
        }
        if self.is_first
            && let Some(wanted) = &self.settings.conntrack
        {
            sysctls::apply(wanted, Path::new("/"));
        }
        self.is_first = false;
    }

    fn count(&mut self, is_fresh: bool, took: Duration) {
        let now = Timestamp::now();
        let mut metrics = lock(&self.shared.metrics);
        metrics.last_sync = unix_now();
        (metrics.endpoint_changes.1, metrics.service_changes.1) = (0, 0);
        if is_fresh { &mut metrics.full_sync } else { &mut metrics.partial_sync }.observe_time(took);
        for (at, v6) in self.triggers.drain(..).filter(|(at, _)| *at > self.started) {
            metrics.network_programming[usize::from(v6)].observe(now.duration_since(at).as_secs_f64().max(0.0));
        }
    }

    /// What the kernel holds. Tables that it has refused to change twice are replaced as a whole, in one transaction.
    fn adopt(&mut self) -> Result<Tables, NftError> {
        if self.refusals < 2 {
            return Ok(kernel::adopt(&mut self.kernel, &self.settings, &mut self.batch)?);
        }
        kernel::replace(&self.settings, &mut self.batch);
        Ok(Tables::new())
    }

    /// Brings the kernel to what the index says.
    fn program(&mut self, tables: &mut Tables, is_fresh: bool, is_doubtful: bool) -> Result<(), NftError> {
        let mut pending = {
            let mut index = lock(&self.shared.index);
            let dirty = index.take_dirty();
            self.triggers.append(&mut index.take_triggers());
            if is_fresh { dirty.into_iter().chain(index.keys()).collect() } else { dirty }
        };
        // A table that is replaced must not be seen without its Services.
        let chunk = if self.refusals < 2 { CHUNK } else { usize::MAX };
        loop {
            tables.step(&lock(&self.shared.index), &mut pending, chunk);
            if is_doubtful {
                self.leave_out(tables, &mut pending)?;
            }
            self.tell_conflicts(tables);
            let elements = tables.write(&mut self.batch);
            if elements > 0 {
                lock(&self.shared.metrics).batch_elements.observe(elements as f64);
            }
            self.unforgotten.append(&mut tables.forgetting);
            // After a refusal, which the end of such an entry may have caused, they are forgotten afterwards.
            if self.refusals == 0 {
                affinity::forget(&mut self.kernel, &mut self.batch, &self.unforgotten, (&self.settings.local, tables))?;
            }
            self.commit()?;
            if pending.is_empty() {
                break;
            }
        }
        for front in lock(&self.shared.index).all_taken() {
            tracing::info!(%front, "the kernel takes what it refused before");
        }
        Ok(())
    }

    /// Finds out what the kernel would refuse of the changes that are noted, and takes it out of them.
    fn leave_out(&mut self, tables: &mut Tables, pending: &mut BTreeSet<ObjectKey>) -> Result<(), NftError> {
        let found = isolate::isolate(&mut self.kernel, &self.batch, tables)?;
        let mut index = lock(&self.shared.index);
        for Found { front, refused, error } in found {
            notice::refused(&self.recorder, tables.owner(&front), &front, &refused, &error);
            index.refuse(front, refused, &error.to_string(), Instant::now());
        }
        for key in index.take_dirty() {
            pending.extend(tables.update(&index, &key));
        }
        Ok(())
    }

    fn tell_conflicts(&self, tables: &mut Tables) {
        tables.conflicts.drain(..).for_each(|conflict| notice::conflict(&self.recorder, &conflict));
    }

    fn commit(&mut self) -> Result<(), NftError> {
        let (messages, bytes, began) = (self.batch.len(), self.batch.size(), Instant::now());
        self.kernel.commit(&mut self.batch)?;
        self.batch.clear();
        if messages > 0 {
            lock(&self.shared.metrics).batch_bytes.observe(bytes as f64);
            tracing::debug!(messages, bytes, took = ?began.elapsed(), "Services committed");
        }
        Ok(())
    }

    /// Clients that connected to an endpoint while it was taken away are forgotten now. An entry that ends by itself
    /// between reading and deleting makes the kernel refuse the deletion; then it is read again.
    fn forget(&mut self, tables: &Tables, is_fresh: bool) -> Result<(), NftError> {
        if is_fresh {
            self.unforgotten.extend(tables.sticky_fronts());
        }
        for _ in 0..8 {
            let of = (&self.settings.local, tables);
            if affinity::forget(&mut self.kernel, &mut self.batch, &self.unforgotten, of)? == 0 {
                self.unforgotten.clear();
                return Ok(());
            }
            match self.commit() {
                Err(NftError::Refused { .. }) => self.batch.clear(),
                other => other?,
            }
        }
        tracing::warn!("clients with session affinity are remembered for endpoints that are gone; trying again later");
        Ok(())
    }

    fn reconcile(&mut self, tables: &mut Tables, is_fresh: bool) {
        self.unreconciled.append(&mut tables.touched);
        if is_fresh {
            self.unreconciled.extend(tables.fronts());
        }
        if self.unreconciled.is_empty() {
            return;
        }
        for (at, of) in [Family::V4, Family::V6].into_iter().enumerate() {
            let began = Instant::now();
            match conntrack::reconcile(of, &self.unreconciled, |front| tables.program(front)) {
                Ok(None) => {}
                Ok(Some(deleted)) => {
                    let mut metrics = lock(&self.shared.metrics);
                    metrics.conntrack[at].observe_time(began.elapsed());
                    metrics.flows_deleted[at] += deleted;
                    if deleted > 0 {
                        tracing::info!(deleted, "stale flows deleted");
                    }
                }
                // The rules are right; the flows of these fronts are looked at again with the next change or audit.
                Err(error) => return tracing::warn!(%error, "cannot compare flows with Services; trying again later"),
            }
        }
        self.unreconciled.clear();
    }
}

/// Removes our tables.
pub fn cleanup() -> Result<(), NftError> {
    let mut kernel = Kernel::open()?;
    let mut batch = Batch::new();
    for family in [Family::V4, Family::V6] {
        kernel::delete(&mut batch, family);
    }
    kernel.commit(&mut batch)
}
