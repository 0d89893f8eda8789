//! How many connections and requests there may be, and who has to go when there are too many.
//!
//! ```text
//!  accepted ─► unproven (64; the newest drives out the oldest) ──a request that is allowed──► proven (256; 192 an identity)
//! ```
//! A connection costs memory from its first byte on, and anybody can open one. Until one of its requests was authenticated
//! *and* authorized it is unproven: a handshake that nobody finishes, a request that trickles, a caller without rights. Of these
//! there are few, and each new one ends the oldest: a flood drives out itself, while an API server needs milliseconds to be
//! through. Proven connections are limited by identity, so that one scraper that leaks cannot lock out the others.
//!
//! The same counts hold for requests in work: connections carry many streams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Connections, and requests in work, of callers that are not known yet. About 60 KiB each: 4 MiB.
pub const UNPROVEN: usize = 64;
/// Connections, and requests in work, of callers that are allowed something.
pub const PROVEN: usize = 256;
/// Of these, of one identity.
pub const PER_IDENTITY: usize = 192;
/// A connection that nothing is asked on is closed: kubelet's `IdleTimeout`.
const IDLE: Duration = Duration::from_secs(90);
/// The same before anything was allowed on it.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Counts {
    /// Connections that are not proven, the oldest first.
    unproven: VecDeque<(u64, CancellationToken)>,
    connections: ByIdentity,
    requests: ByIdentity,
    /// Requests whose caller is being looked up.
    asking: usize,
}

/// Things in use, by who uses them.
#[derive(Debug, Default)]
struct ByIdentity {
    total: usize,
    by: HashMap<String, usize>,
}

impl ByIdentity {
    fn take(&mut self, name: &str) -> Result<(), Full> {
        let own = self.by.get(name).copied().unwrap_or(0);
        if self.total >= PROVEN || own >= PER_IDENTITY {
            return Err(Full);
        }
        self.total += 1;
        self.by.insert(name.to_owned(), own + 1);
        Ok(())
    }

    fn give_back(&mut self, name: &str) {
        self.total = self.total.saturating_sub(1);
        match self.by.get_mut(name) {
            Some(own) if *own > 1 => *own -= 1,
            Some(_) => drop(self.by.remove(name)),
            None => {}
        }
    }
}

/// There are as many as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The counts of one server.
#[derive(Debug, Default)]
pub struct Gate {
    counts: Mutex<Counts>,
    next: AtomicU64,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole after each statement.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was accepted. The oldest unproven one goes when there are too many.
    pub fn enter(self: &Arc<Self>) -> Arc<Ticket> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let gone = CancellationToken::new();
        let mut counts = self.lock();
        counts.unproven.push_back((id, gone.clone()));
        if counts.unproven.len() > UNPROVEN
            && let Some((_, oldest)) = counts.unproven.pop_front()
        {
            oldest.cancel();
        }
        drop(counts);
        let (began, proven) = (Instant::now(), Mutex::default());
        let (busy, last) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Ticket { gate: self.clone(), id, gone, began, proven, busy, last })
    }
}

/// A connection's right to be there; dropped with the connection and the last stream that came of it.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    id: u64,
    gone: CancellationToken,
    began: Instant,
    /// Whose it is, once something was allowed on it.
    proven: Mutex<Option<String>>,
    busy: AtomicUsize,
    /// When the last request ended, in milliseconds since it began.
    last: AtomicU64,
}

impl Ticket {
    fn owner(&self) -> MutexGuard<'_, Option<String>> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request whose caller has to be looked up.
    pub fn ask(self: &Arc<Self>) -> Result<Asking, Full> {
        let mut counts = self.gate.lock();
        if counts.asking >= UNPROVEN {
            return Err(Full);
        }
        counts.asking += 1;
        self.busy.fetch_add(1, Ordering::Relaxed);
        Ok(Asking(self.clone()))
    }

    /// A request that is allowed: the connection is proven from now on.
    pub fn admit(self: &Arc<Self>, identity: &str) -> Result<Admitted, Full> {
        let mut owner = self.owner();
        let mut counts = self.gate.lock();
        if owner.is_none() {
            counts.connections.take(identity)?;
            counts.unproven.retain(|(id, _)| *id != self.id);
            *owner = Some(identity.to_owned());
        }
        counts.requests.take(identity)?;
        self.busy.fetch_add(1, Ordering::Relaxed);
        Ok(Admitted { ticket: self.clone(), identity: identity.to_owned() })
    }

    fn end_request(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends when the connection has to go for others.
    pub async fn driven_out(&self) {
        self.gone.cancelled().await;
    }

    /// Ends when nothing was asked for too long.
    pub async fn idle(&self) {
        loop {
            let limit = if self.owner().is_some() { IDLE } else { PATIENCE };
            let quiet = self.began.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)));
            match limit.checked_sub(quiet) {
                _ if self.busy.load(Ordering::Relaxed) > 0 => tokio::time::sleep(limit).await,
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Some(_) | None => return,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let owner = self.owner().take();
        let mut counts = self.gate.lock();
        match owner {
            Some(name) => counts.connections.give_back(&name),
            None => counts.unproven.retain(|(id, _)| *id != self.id),
        }
    }
}

/// A request whose caller is being looked up.
#[derive(Debug)]
pub struct Asking(Arc<Ticket>);

impl Drop for Asking {
    fn drop(&mut self) {
        let mut counts = self.0.gate.lock();
        counts.asking = counts.asking.saturating_sub(1);
        drop(counts);
        self.0.end_request();
    }
}

/// A request in work; dropped when its answer, or the stream that it became, is over.
#[derive(Debug)]
pub struct Admitted {
    ticket: Arc<Ticket>,
    identity: String,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.ticket.gate.lock().requests.give_back(&self.identity);
        self.ticket.end_request();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_driven_out(ticket: &Ticket) -> bool {
        ticket.gone.is_cancelled()
    }

    #[test]
    fn a_flood_of_strangers_drives_out_itself_and_nobody_who_is_known() {
        let gate = Arc::new(Gate::default());
        let known = gate.enter();
        let request = known.admit("apiserver").unwrap();
        let flood: Vec<_> = (0..10 * UNPROVEN).map(|_| gate.enter()).collect();
        assert!(!is_driven_out(&known));
        let left = flood.iter().filter(|ticket| !is_driven_out(ticket)).count();
        assert_eq!(left, UNPROVEN);
        assert!(flood[..9 * UNPROVEN].iter().all(|ticket| is_driven_out(ticket)), "the oldest go first");
        let late = gate.enter();
        assert!(late.admit("apiserver").is_ok(), "who comes during a flood and is allowed is let in");
        drop((flood, request, known, late));
        let counts = gate.lock();
        assert!(counts.unproven.is_empty() && counts.connections.total == 0 && counts.requests.total == 0);
        assert!(counts.connections.by.is_empty() && counts.requests.by.is_empty(), "names do not stay");
    }

    #[test]
    fn one_identity_cannot_lock_out_the_others() {
        let gate = Arc::new(Gate::default());
        let greedy: Vec<_> = (0..PROVEN).map(|_| gate.enter()).collect();
        let admitted: Vec<_> = greedy.iter().map(|ticket| ticket.admit("scraper")).collect();
        assert_eq!(admitted.iter().filter(|admission| admission.is_ok()).count(), PER_IDENTITY);
        let other = gate.enter();
        assert!(other.admit("apiserver").is_ok());
    }

    #[test]
    fn streams_of_one_connection_are_counted_too() {
        let gate = Arc::new(Gate::default());
        let ticket = gate.enter();
        let all: Vec<_> = (0..2 * PER_IDENTITY).map(|_| ticket.admit("one")).collect();
        assert_eq!(all.iter().filter(|admission| admission.is_ok()).count(), PER_IDENTITY);
        let asking: Vec<_> = (0..2 * UNPROVEN).map(|_| ticket.ask()).collect();
        assert_eq!(asking.iter().filter(|asking| asking.is_ok()).count(), UNPROVEN);
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_was_allowed_is_closed_soon() {
        let gate = Arc::new(Gate::default());
        let mut ticket = gate.enter();
        Arc::get_mut(&mut ticket).unwrap().began = Instant::now() - PATIENCE;
        ticket.idle().await;
        let admitted = ticket.admit("known").unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), ticket.idle()).await.is_err(), "it is at work");
        drop(admitted);
        assert!(tokio::time::timeout(Duration::from_millis(20), ticket.idle()).await.is_err(), "it has just been");
    }
}
