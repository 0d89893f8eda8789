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

use super::index::Index;
use super::table::{self, TABLE, Tables};
use super::{Settings, conntrack, slim};
use crate::nft::batch::Batch;
use crate::nft::listener::Listener;
use crate::nft::socket::{Dump, Kernel};
use crate::nft::{Family, NftError, expr};
use crate::watch::{WatchEvent, WatchSink};

/// The full comparison with the kernel, should an event have been lost.
const AUDIT: Duration = Duration::from_secs(600);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// What the thread was told since it last looked.
#[derive(Default)]
struct Wake {
    changed: bool,
    audit: bool,
    stop: bool,
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
    /// How often the kernel's rules had to be repaired.
    pub repairs: u64,
    /// Installed fronts and endpoints.
    pub size: (usize, usize),
}

struct Shared {
    index: Mutex<Index>,
    wake: Mutex<Wake>,
    condvar: Condvar,
    status: Mutex<Status>,
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
    });
    let kernel = Kernel::open()?;
    let listener = Listener::open()?;
    let programmer = Programmer { settings, shared: shared.clone(), kernel, tables: None, batch: Batch::new() };
    std::thread::Builder::new().name("services".into()).spawn(move || programmer.run())?;
    let heard = Arc::downgrade(&shared);
    std::thread::Builder::new().name("nft-events".into()).spawn(move || {
        let own = std::process::id();
        // Ends with the process: the wait cannot be interrupted, and holds nothing.
        while let Ok(pid) = listener.wait() {
            let Some(shared) = heard.upgrade() else { return };
            if pid != own {
                shared.notify(|wake| wake.audit = true);
            }
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
        lock(&self.shared.index).set_node_addresses(addresses);
        self.shared.notify(|wake| wake.changed = true);
    }

    /// How it does.
    pub fn status(&self) -> Status {
        lock(&self.shared.status).clone()
    }
}

/// Keeps the programmer alive, like every handle.
struct Sink(ServiceHandle);

impl Sink {
    fn changed(&self, is_complete: bool) {
        // Objects of a list that still runs are not worth a commit each.
        if is_complete {
            self.0.shared.notify(|wake| wake.changed = true);
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
        lock(&self.0.shared.index).service_event(event);
        self.changed(complete);
    }
}

impl WatchSink<slim::EndpointSlice> for Sink {
    fn handle(&mut self, event: WatchEvent<slim::EndpointSlice>) {
        let complete = is_complete(&event);
        lock(&self.0.shared.index).slice_event(event);
        self.changed(complete);
    }
}

struct Programmer {
    settings: Settings,
    shared: Arc<Shared>,
    kernel: Kernel,
    /// What the kernel holds; `None` until it was adopted, and again after an error.
    tables: Option<Tables>,
    batch: Batch,
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
                Ok(()) => retry = None,
                Err(error) => {
                    tracing::error!(%error, "cannot program Services; trying again");
                    lock(&self.shared.status).error = Some(error.to_string());
                    self.tables = None;
                    retry = Some(retry.map_or(Duration::from_millis(100), |d| (d * 2).min(RETRY_MAX)));
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
                return std::mem::take(&mut *wake);
            }
            wake = self.shared.condvar.wait_timeout(wake, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn turn(&mut self, audit: bool) -> Result<(), NftError> {
        if !lock(&self.shared.index).has_synced() {
            // Until both lists are complete nothing may be removed, and half a Service must not be shown.
            return Ok(());
        }
        if audit && self.tables.is_some() && !self.is_intact()? {
            tracing::warn!("our nftables rules were changed by somebody else; repairing them");
            lock(&self.shared.status).repairs += 1;
            self.tables = None;
        }
        lock(&self.shared.status).waiting_since.get_or_insert_with(SystemTime::now);
        let fresh = self.tables.is_none();
        if fresh {
            self.adopt()?;
        }
        let Some(tables) = &mut self.tables else { return Ok(()) };
        let began = Instant::now();
        {
            let mut index = lock(&self.shared.index);
            let dirty =
                if fresh { index.take_dirty().into_iter().chain(index.keys()).collect() } else { index.take_dirty() };
            for key in &dirty {
                tables.update(&index, key);
            }
        }
        if fresh {
            tables.drop_unowned();
        }
        tables.write(&mut self.batch);
        let (messages, bytes) = (self.batch.len(), self.batch.size());
        let committed = self.kernel.commit(&mut self.batch);
        self.batch.clear();
        committed?;
        if messages > 0 {
            tracing::debug!(messages, bytes, took = ?began.elapsed(), "Services committed");
        }
        let touched = std::mem::take(&mut tables.udp_touched);
        let touched = if fresh { tables.udp_fronts() } else { touched };
        let size = tables.size();
        if !touched.is_empty() {
            // A failure costs stale flows until the next change; the rules themselves are right.
            match conntrack::reconcile(&touched, |front| tables.backends(front)) {
                Ok(0) => {}
                Ok(deleted) => tracing::info!(deleted, "stale UDP flows deleted"),
                Err(error) => tracing::warn!(%error, "cannot reconcile UDP flows"),
            }
        }
        let mut status = lock(&self.shared.status);
        *status = Status {
            last_commit: Some(SystemTime::now()),
            waiting_since: None,
            error: None,
            repairs: status.repairs,
            size,
        };
        Ok(())
    }

    fn chains(&mut self, family: Family) -> io::Result<BTreeSet<String>> {
        let mut chains = BTreeSet::new();
        self.kernel.dump(family, Dump::Chains, |body| {
            if crate::nft::decode::string(body, 1) == Some(TABLE)
                && let Some(name) = crate::nft::decode::string(body, 3)
            {
                chains.insert(name.to_owned());
            }
        })?;
        Ok(chains)
    }

    /// Reads what is in the kernel, and writes the structure where it is not what it should be.
    fn adopt(&mut self) -> Result<(), NftError> {
        let mut tables = Tables::new();
        for family in [Family::V4, Family::V6] {
            let chains = self.chains(family)?;
            if !chains.contains(&table::schema(family, &self.settings)) {
                table::write_structure(&mut self.batch, family, &self.settings, &chains);
            }
            chains.iter().for_each(|name| tables.adopt_chain(family, name));
            if chains.is_empty() {
                continue;
            }
            for set in SETS {
                self.kernel.dump(family, Dump::Elements(TABLE, set), |body| {
                    for (key, data) in crate::nft::decode::elements(body) {
                        tables.adopt(family, set, key, data);
                    }
                })?;
            }
        }
        self.tables = Some(tables);
        Ok(())
    }

    /// Whether chains and element counts are what was committed. Cheap enough for every foreign commit: elements are
    /// only counted.
    fn is_intact(&mut self) -> io::Result<bool> {
        let Some((fronts, endpoints)) = self.tables.as_ref().map(Tables::size) else { return Ok(true) };
        let (mut found_fronts, mut found_endpoints) = (0, 0);
        for family in [Family::V4, Family::V6] {
            let chains = self.chains(family)?;
            if !chains.contains(&table::schema(family, &self.settings)) || !chains.contains("nat-prerouting") {
                return Ok(false);
            }
            for set in [table::SERVICES, table::NO_ENDPOINTS, table::ENDPOINTS] {
                let mut count = 0;
                self.kernel.dump(family, Dump::Elements(TABLE, set), |body| {
                    count += crate::nft::decode::elements(body).count();
                })?;
                if set == table::ENDPOINTS {
                    found_endpoints += count;
                } else {
                    found_fronts += count;
                }
            }
        }
        Ok((found_fronts, found_endpoints) == (fronts, endpoints))
    }
}

const SETS: [&str; 6] =
    [table::SERVICES, table::ENDPOINTS, table::NO_ENDPOINTS, table::CLUSTER_IPS, table::EXTERNAL_IPS, table::HAIRPIN];

/// Removes our tables.
pub fn cleanup() -> Result<(), NftError> {
    let mut kernel = Kernel::open()?;
    let mut batch = Batch::new();
    for family in [Family::V4, Family::V6] {
        // Adding first makes deleting right also when there is no table.
        expr::add_table(&mut batch, family, TABLE);
        expr::delete_table(&mut batch, family, TABLE);
    }
    kernel.commit(&mut batch)
}
