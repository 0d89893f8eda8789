//! The programmer: the one thread that writes our tables.
//!
//! ```text
//!  sinks ──dirty──► [ wake ] ──► structure there? ──no──► write it, adopt what is there
//!                      │                 │ yes
//!                      │                 ▼
//!                      │        update dirty Services ─► batch ─► commit ──ok──► conntrack
//!  listener ──audit────┘                                           └─refused─► forget, adopt again, retry with back-off
//! ```
//!
//! A change is committed as soon as it is seen; changes that come while a commit is under way go together into the next.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::index::{HealthChecks, Index};
use super::structure::TABLE;
use super::table::Tables;
use super::{Front, Settings, affinity, conntrack, kernel, slim};
use crate::ids::ObjectKey;
use crate::nft::batch::Batch;
use crate::nft::listener::Listener;
use crate::nft::socket::Kernel;
use crate::nft::{Family, NftError};
use crate::watch::{WatchEvent, WatchSink};

/// The full comparison with the kernel, should an event have been lost.
const AUDIT: Duration = Duration::from_secs(600);
/// Services in one transaction. The kernel holds a lock meanwhile, and the batch is the largest buffer of the agent.
const CHUNK: usize = 1000;
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the thread was told since it last looked.
#[derive(Default)]
struct Wake {
    changed: bool,
    audit: bool,
    stop: bool,
    /// Number of the newest change.
    newest: u64,
}

/// How the programmer does.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// When the last commit was made.
    pub last_commit: Option<SystemTime>,
    /// Since when changes wait to be committed.
    pub waiting_since: Option<SystemTime>,
    /// The last error, until a commit succeeds.
    pub error: Option<String>,
    /// How often the kernel's rules were compared with what they should be.
    pub comparisons: u64,
    /// How often they had to be repaired.
    pub repairs: u64,
    /// Installed fronts and endpoints.
    pub size: (usize, usize),
}

struct Shared {
    index: Mutex<Index>,
    wake: Mutex<Wake>,
    condvar: Condvar,
    status: Mutex<Status>,
    /// Number of the newest change that is in the kernel.
    done: Mutex<u64>,
    is_done: Condvar,
    health: watch::Sender<HealthChecks>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // State behind these locks is valid after any statement; a poisoned lock is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn notify(&self, tell: impl FnOnce(&mut Wake)) {
        tell(&mut lock(&self.wake));
        self.condvar.notify_one();
    }

    fn changed(&self) {
        self.notify(|wake| {
            wake.changed = true;
            wake.newest += 1;
        });
    }
}

/// Handle of the programmer. Dropping the last one stops the thread; rules stay.
#[derive(Clone)]
pub struct ServiceHandle {
    shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.notify(|wake| wake.stop = true);
    }
}

/// Starts the programmer in the network namespace of the calling thread.
pub fn spawn(settings: Settings) -> io::Result<ServiceHandle> {
    let shared = Arc::new(Shared {
        index: Mutex::new(Index::new(&settings)),
        wake: Mutex::default(),
        condvar: Condvar::new(),
        status: Mutex::default(),
        done: Mutex::default(),
        is_done: Condvar::new(),
        health: watch::Sender::new(HealthChecks::new()),
    });
    let kernel = Kernel::open()?;
    let listener = Listener::open(kernel.port()?)?;
    let programmer = Programmer {
        settings,
        shared: shared.clone(),
        kernel,
        tables: None,
        batch: Batch::new(),
        refusals: 0,
        unreconciled: BTreeSet::new(),
        unforgotten: BTreeSet::new(),
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
    Ok(ServiceHandle { _stop: Arc::new(StopOnDrop(shared.clone())), shared })
}

impl ServiceHandle {
    /// Consumer of the Service watch.
    pub fn service_sink(&self) -> impl WatchSink<slim::Service> + use<> {
        Sink(self.clone())
    }

    /// Consumer of the EndpointSlice watch.
    pub fn slice_sink(&self) -> impl WatchSink<slim::EndpointSlice> + use<> {
        Sink(self.clone())
    }

    /// Other addresses for NodePorts.
    pub fn set_node_addresses(&self, addresses: Vec<IpAddr>) {
        let is_news = lock(&self.shared.index).set_node_addresses(addresses);
        if is_news {
            self.shared.changed();
        }
    }

    /// Services with a health check port, as they come and go.
    pub fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.shared.health.subscribe()
    }

    /// How many ready endpoints of a family a Service has on this node.
    pub fn local_endpoints(&self, service: &ObjectKey, v6: bool) -> usize {
        lock(&self.shared.index).local_endpoints(service, v6)
    }

    /// The zone of this node, for endpoints that are meant for zones.
    pub fn set_zone(&self, zone: Option<&str>) {
        lock(&self.shared.index).set_zone(zone);
        self.shared.changed();
    }

    /// Waits until every change that was told before this call is in the kernel; `false` when that takes longer than `limit`.
    pub fn programmed(&self, limit: Duration) -> bool {
        let newest = lock(&self.shared.wake).newest;
        let waited = self.shared.is_done.wait_timeout_while(lock(&self.shared.done), limit, |done| *done < newest);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// A pod of this node begins to stop: its endpoints leave the rules before the API server says so.
    pub fn pod_stops(&self, addresses: &[IpAddr]) {
        lock(&self.shared.index).pod_stops(addresses);
        self.shared.changed();
    }

    /// Nothing of a pod that stopped is left.
    pub fn pod_is_gone(&self, addresses: &[IpAddr]) {
        lock(&self.shared.index).pod_is_gone(addresses);
    }

    /// A pod of this node that is not stopping has these addresses.
    pub fn pod_has(&self, addresses: &[IpAddr]) {
        // Every status of every pod comes by here; hardly any is of interest.
        let is_news = lock(&self.shared.index).pod_has(addresses);
        if is_news {
            self.shared.changed();
        }
    }

    /// How it does.
    pub fn status(&self) -> Status {
        lock(&self.shared.status).clone()
    }
}

/// Keeps the programmer alive, like every handle.
struct Sink(ServiceHandle);

impl Sink {
    fn changed(&self, is_complete: bool, checks: Option<HealthChecks>) {
        if let Some(checks) = checks {
            self.0.shared.health.send_replace(checks);
        }
        // Objects of a list that still runs are not worth a commit each.
        if is_complete {
            self.0.shared.changed();
        }
    }
}

/// Whether an event ends a change (and does not stand within a list).
fn is_complete<K>(event: &WatchEvent<K>) -> bool {
    matches!(event, WatchEvent::Apply(_) | WatchEvent::Delete(_) | WatchEvent::InitDone)
}

impl WatchSink<slim::Service> for Sink {
    fn handle(&mut self, event: WatchEvent<slim::Service>) {
        let complete = is_complete(&event);
        let checks = {
            let mut index = lock(&self.0.shared.index);
            index.service_event(event);
            if complete { index.take_health_checks() } else { None }
        };
        self.changed(complete, checks);
    }
}

impl WatchSink<slim::EndpointSlice> for Sink {
    fn handle(&mut self, event: WatchEvent<slim::EndpointSlice>) {
        let complete = is_complete(&event);
        let checks = {
            let mut index = lock(&self.0.shared.index);
            index.slice_event(event);
            if complete { index.take_health_checks() } else { None }
        };
        self.changed(complete, checks);
    }
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
    /// Fronts whose flows are to be compared with conntrack.
    unreconciled: BTreeSet<Front>,
    /// Fronts whose clients are to be compared with what is remembered of them.
    unforgotten: BTreeSet<Front>,
}

impl Programmer {
    fn run(mut self) {
        let mut retry: Option<Duration> = None;
        let mut next_audit = Instant::now() + AUDIT;
        loop {
            let deadline = retry.map_or(next_audit, |delay| Instant::now() + delay);
            let wake = self.wait(deadline, retry.is_some());
            if wake.stop {
                return;
            }
            let audit = wake.audit || Instant::now() >= next_audit;
            if audit {
                next_audit = Instant::now() + AUDIT;
            }
            match self.turn(audit) {
                Ok(is_done) => {
                    retry = None;
                    self.refusals = 0;
                    if is_done {
                        *lock(&self.shared.done) = wake.newest;
                        self.shared.is_done.notify_all();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot program Services; trying again");
                    lock(&self.shared.status).error = Some(error.to_string());
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

    /// Answers whether the kernel has everything; it has not before both lists are complete.
    fn turn(&mut self, audit: bool) -> Result<bool, NftError> {
        if !lock(&self.shared.index).has_synced() {
            // Until both lists are complete nothing may be removed, and half a Service must not be shown.
            return Ok(false);
        }
        lock(&self.shared.status).comparisons += u64::from(audit);
        if audit
            && let Some(tables) = &self.tables
            && !kernel::is_intact(&mut self.kernel, &self.settings, tables)?
        {
            tracing::warn!("our nftables rules were changed by somebody else; repairing them");
            lock(&self.shared.status).repairs += 1;
            self.tables = None;
        }
        lock(&self.shared.status).waiting_since.get_or_insert_with(SystemTime::now);
        let (mut tables, is_fresh) = match self.tables.take() {
            Some(tables) => (tables, false),
            None => (self.adopt()?, true),
        };
        self.program(&mut tables, is_fresh)?;
        self.forget(&tables, is_fresh)?;
        self.reconcile(&mut tables, is_fresh);
        let size = tables.size();
        self.tables = Some(tables);
        let mut status = lock(&self.shared.status);
        let last_commit = Some(SystemTime::now());
        let Status { comparisons, repairs, .. } = *status;
        *status = Status { last_commit, waiting_since: None, error: None, comparisons, repairs, size };
        Ok(true)
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
    fn program(&mut self, tables: &mut Tables, is_fresh: bool) -> Result<(), NftError> {
        let mut pending = {
            let mut index = lock(&self.shared.index);
            let dirty = index.take_dirty();
            if is_fresh { dirty.into_iter().chain(index.keys()).collect() } else { dirty }
        };
        // A table that is replaced must not be seen without its Services.
        let chunk = if self.refusals < 2 { CHUNK } else { usize::MAX };
        loop {
            tables.step(&lock(&self.shared.index), &mut pending, chunk, is_fresh);
            tables.write(&mut self.batch);
            self.unforgotten.append(&mut tables.forgetting);
            // After a refusal, which the end of such an entry may have caused, they are forgotten afterwards.
            if self.refusals == 0 {
                affinity::forget(&mut self.kernel, &mut self.batch, &self.unforgotten, (&self.settings.local, tables))?;
            }
            self.commit()?;
            if pending.is_empty() {
                return Ok(());
            }
        }
    }

    fn commit(&mut self) -> Result<(), NftError> {
        let (messages, bytes, began) = (self.batch.len(), self.batch.size(), Instant::now());
        self.kernel.commit(&mut self.batch)?;
        self.batch.clear();
        if messages > 0 {
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
        match conntrack::reconcile(&self.unreconciled, |front| tables.backends(front)) {
            Ok(deleted) => {
                self.unreconciled.clear();
                if deleted > 0 {
                    tracing::info!(deleted, "stale flows deleted");
                }
            }
            // The rules are right; the flows of these fronts are looked at again with the next change or audit.
            Err(error) => tracing::warn!(%error, "cannot compare flows with Services; trying again later"),
        }
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
