//! What figures are counted in: atomics in static memory. Recording takes no lock and allocates nothing; only [`Labelled`],
//! for labels that are not known beforehand, has a lock, and is not used on frequent paths.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Prometheus' default bounds, in seconds.
pub const DEFAULT: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Zero.
    pub const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds; negative to subtract.
    pub fn add(&self, value: i64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Observations by size. The sum is kept in billionths, so that it needs no lock.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    buckets: [AtomicU64; N],
    above: AtomicU64,
    billionths: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// No observations yet; `bounds` ascend.
    pub const fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            buckets: [const { AtomicU64::new(0) }; N],
            above: AtomicU64::new(0),
            billionths: AtomicU64::new(0),
        }
    }

    /// One observation of a time, in seconds.
    pub fn observe(&self, time: Duration) {
        self.record(time.as_secs_f64(), u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// One observation of a number that is not negative.
    pub fn observe_count(&self, number: u32) {
        self.record(f64::from(number), u64::from(number) * 1_000_000_000);
    }

    fn record(&self, value: f64, billionths: u64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound);
        bucket.map_or(&self.above, |index| &self.buckets[index]).fetch_add(1, Ordering::Relaxed);
        self.billionths.fetch_add(billionths, Ordering::Relaxed);
    }

    /// Bounds with the number of observations up to each, the number of all, and their sum.
    pub fn read(&self) -> ([(f64, u64); N], u64, f64) {
        let mut total = 0;
        let mut upto = [(0.0, 0); N];
        for (at, (bound, bucket)) in upto.iter_mut().zip(self.bounds.iter().zip(&self.buckets)) {
            total += bucket.load(Ordering::Relaxed);
            *at = (*bound, total);
        }
        total += self.above.load(Ordering::Relaxed);
        (upto, total, self.billionths.load(Ordering::Relaxed) as f64 / 1e9)
    }
}

/// Cells by labels that are not known beforehand: reasons, exit codes, handlers.
#[derive(Debug)]
pub struct Labelled<T, const L: usize> {
    cells: Mutex<Vec<([String; L], T)>>,
}

/// Most combinations of labels in one family; those that come later are counted together, as `other`. A tenant chooses exit
/// codes, and may not choose our memory.
const MOST: usize = 128;

impl<T, const L: usize> Default for Labelled<T, L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const L: usize> Labelled<T, L> {
    /// Empty.
    pub const fn new() -> Self {
        Self { cells: Mutex::new(Vec::new()) }
    }

    /// Acts on the cell of these labels; `make` makes it when it is the first time.
    pub fn with(&self, labels: [&str; L], make: impl FnOnce() -> T, act: impl FnOnce(&T)) {
        // The list is whole after each statement.
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |cells: &[([String; L], T)], labels: [&str; L]| {
            cells.iter().position(|(known, _)| known.iter().map(String::as_str).eq(labels))
        };
        let labels = if cells.len() < MOST || find(&cells, labels).is_some() { labels } else { ["other"; L] };
        let index = find(&cells, labels).unwrap_or_else(|| {
            cells.push((labels.map(str::to_owned), make()));
            cells.len() - 1
        });
        act(&cells[index].1);
    }

    /// Calls `each` with every cell.
    pub fn each(&self, mut each: impl FnMut([&str; L], &T)) {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        for (labels, cell) in cells.iter() {
            each(std::array::from_fn(|index| labels[index].as_str()), cell);
        }
    }
}

impl<const L: usize> Labelled<Counter, L> {
    /// Counts one.
    pub fn increment(&self, labels: [&str; L]) {
        self.with(labels, Counter::new, Counter::increment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_counts_in_its_bucket_and_all_above() {
        static BOUNDS: [f64; 2] = [0.5, 1.0];
        let histogram = Histogram::new(&BOUNDS);
        for millis in [100, 500, 700, 3000] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!(histogram.read(), ([(0.5, 2), (1.0, 3)], 4, 4.3));
    }

    #[test]
    fn labels_that_a_tenant_chooses_are_bounded() {
        let codes: Labelled<Counter, 1> = Labelled::new();
        for code in 0..1000 {
            codes.increment([&code.to_string()]);
        }
        codes.increment(["5"]);
        let mut seen = Vec::new();
        codes.each(|[code], count| seen.push((code.to_owned(), count.get())));
        assert_eq!(seen.len(), MOST + 1);
        assert!(seen.contains(&("other".into(), 1000 - MOST as u64)), "{seen:?}");
        assert!(seen.contains(&("5".into(), 2)), "what is known goes on being counted by itself");
    }
}
