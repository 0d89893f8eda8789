//! What other tasks hold of the programmer: they tell it what they saw, and ask it how it does.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::explain::Programming;
use super::host_ports::HostPort;
use super::index::known::Known;
use super::index::{HealthChecks, Index};
use super::metrics::{Gauges, Metrics};
use super::walk::maps::Held;
use super::{Settings, kernel, notice, slim};
use crate::event::Recorder;
use crate::ids::ObjectKey;
use crate::nft::socket::Kernel;
use crate::watch::{WatchEvent, WatchSink};

/// What the thread was told since it last looked.
#[derive(Default)]
pub(super) struct Wake {
    pub(super) changed: bool,
    pub(super) audit: bool,
    /// Settings of rules are others now.
    pub(super) restructure: bool,
    pub(super) stop: bool,
    /// Number of the newest change.
    pub(super) newest: u64,
    /// When the oldest of these changes was told.
    pub(super) since: Option<Instant>,
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
    /// Fronts of which the kernel refuses something.
    pub refused: usize,
}

/// What the thread and its handles share.
pub(super) struct Shared {
    pub(super) index: Mutex<Index>,
    pub(super) settings: Mutex<Settings>,
    pub(super) wake: Mutex<Wake>,
    pub(super) condvar: Condvar,
    pub(super) status: Mutex<Status>,
    pub(super) metrics: Mutex<Metrics>,
    /// Number of the newest change that is in the kernel.
    pub(super) done: Mutex<u64>,
    pub(super) is_done: Condvar,
    health: watch::Sender<HealthChecks>,
    recorder: Recorder,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // State behind these locks is valid after any statement; a poisoned lock is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds of Unix time, as metrics have them.
pub(super) fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

impl Shared {
    pub(super) fn new(settings: &Settings, recorder: Recorder) -> Self {
        Self {
            index: Mutex::new(Index::new(settings)),
            settings: Mutex::new(settings.clone()),
            wake: Mutex::default(),
            condvar: Condvar::new(),
            status: Mutex::default(),
            metrics: Mutex::default(),
            done: Mutex::default(),
            is_done: Condvar::new(),
            health: watch::Sender::new(HealthChecks::new()),
            recorder,
        }
    }

    pub(super) fn notify(&self, tell: impl FnOnce(&mut Wake)) {
        tell(&mut lock(&self.wake));
        self.condvar.notify_one();
    }

    fn changed(&self) {
        self.notify(|wake| {
            wake.changed = true;
            wake.newest += 1;
            wake.since.get_or_insert_with(Instant::now);
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

impl ServiceHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { _stop: Arc::new(StopOnDrop(shared.clone())), shared }
    }

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

    /// Changes what rules say of networks. The rules are written anew; elements, and so connections, stay.
    pub fn reconfigure(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut lock(&self.shared.settings));
        self.shared.notify(|wake| wake.restructure = true);
        self.shared.changed();
    }

    /// The hostPorts of a pod of this node; none when it is gone.
    pub fn set_host_ports(&self, pod: &ObjectKey, ports: Vec<HostPort>) {
        let is_news = lock(&self.shared.index).set_host_ports(pod, ports);
        if is_news {
            self.shared.changed();
        }
    }

    /// All pods of this node have told their hostPorts once: what a former agent left of others goes.
    pub fn host_ports_synced(&self) {
        lock(&self.shared.index).host_ports_synced();
        self.shared.changed();
    }

    /// Metrics in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let without_local = lock(&self.shared.index).without_local_endpoints();
        let Status { size, refused, .. } = self.status();
        let gauges = Gauges { without_local, size, refused };
        let metrics = lock(&self.shared.metrics).clone();
        metrics.render(&gauges)
    }

    /// Other addresses for hostPorts that name none.
    pub fn set_host_addresses(&self, addresses: Vec<IpAddr>) {
        let is_news = lock(&self.shared.index).set_host_addresses(addresses);
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

    /// Looks at a Service from both sides: what the index wants, and what the kernel holds. It blocks for as long as a dump of
    /// our sets takes, and up to some seconds where changes come one after the other, so that they do not look like drift.
    pub fn look(&self, service: &ObjectKey) -> io::Result<Sight> {
        let mut kernel = Kernel::open()?;
        for is_last in [false, false, true] {
            // Before the lists are complete nothing is programmed, however long one waits.
            if lock(&self.shared.index).has_synced() {
                self.programmed(Duration::from_secs(2));
            }
            let before = lock(&self.shared.wake).newest;
            let known = lock(&self.shared.index).known(service);
            let settings = lock(&self.shared.settings).clone();
            let fronts: BTreeSet<_> = known.fronts.iter().flatten().map(|(front, _)| *front).collect();
            let held = kernel::held(&mut kernel, &settings, &fronts)?;
            let newest = lock(&self.shared.wake).newest;
            let is_pending = known.is_synced && *lock(&self.shared.done) < newest;
            if is_last || !known.is_synced || (newest == before && !is_pending) {
                let programming = Programming { is_pending, error: self.status().error };
                return Ok(Sight { known, settings, held, programming });
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// How it does.
    pub fn status(&self) -> Status {
        lock(&self.shared.status).clone()
    }
}

/// A Service as index and kernel have it.
#[derive(Clone, Debug)]
pub struct Sight {
    /// What the index knows.
    pub known: Known,
    /// Settings that are in rules.
    pub settings: Settings,
    /// What the kernel holds.
    pub held: Held,
    /// How the programmer does.
    pub programming: Programming,
}

/// Keeps the programmer alive, like every handle.
struct Sink(ServiceHandle);

impl Sink {
    /// Lets an event into the index, counts it, and tells whoever follows from it.
    fn take<K>(
        &self,
        event: WatchEvent<K>,
        enter: impl FnOnce(&mut Index, WatchEvent<K>),
        count: impl FnOnce(&mut Metrics) -> &mut (u64, u64),
    ) {
        let is_complete = is_complete(&event);
        let (checks, ignored) = {
            let mut index = lock(&self.0.shared.index);
            enter(&mut index, event);
            (if is_complete { index.take_health_checks() } else { None }, index.take_ignored())
        };
        ignored.into_iter().for_each(|ignored| notice::ignored(&self.0.shared.recorder, ignored));
        {
            let mut metrics = lock(&self.0.shared.metrics);
            metrics.last_queued = unix_now();
            let (total, pending) = count(&mut metrics);
            (*total, *pending) = (*total + 1, *pending + 1);
        }
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
        self.take(event, Index::service_event, |metrics| &mut metrics.service_changes);
    }
}

impl WatchSink<slim::EndpointSlice> for Sink {
    fn handle(&mut self, event: WatchEvent<slim::EndpointSlice>) {
        self.take(event, Index::slice_event, |metrics| &mut metrics.endpoint_changes);
    }
}
