//! `registryPullQPS` and `registryBurst`: a bucket of tokens. Pure.

use std::time::Duration;

/// A limit of pulls over time. A rate of 0 is no limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    /// When `tokens` was counted, since an arbitrary beginning.
    at: Duration,
}

impl Bucket {
    /// A full bucket.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second), burst, tokens: burst, at: Duration::ZERO }
    }

    /// Takes a token; answers how long to wait until it is there. Who takes one has it: later callers wait longer.
    pub fn take(&mut self, now: Duration) -> Duration {
        if self.per_second == 0.0 {
            return Duration::ZERO;
        }
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now.max(self.at);
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst) - 1.0;
        Duration::from_secs_f64((-self.tokens / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_burst_pulls_start_at_the_rate() {
        let mut bucket = Bucket::new(5, 3);
        let waits: Vec<u128> = (0..6).map(|_| bucket.take(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 200, 400, 600]);
        // Three were taken in advance; the second that follows pays for them and gives two more.
        let waits: Vec<u128> = (0..3).map(|_| bucket.take(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(waits, [0, 0, 200]);
    }

    #[test]
    fn time_fills_the_bucket_no_further_than_the_burst_and_a_rate_of_zero_is_no_limit() {
        let mut bucket = Bucket::new(5, 2);
        let late = Duration::from_secs(1000);
        assert_eq!([(); 3].map(|()| bucket.take(late).as_millis()), [0, 0, 200]);
        let mut open = Bucket::new(0, 1);
        assert!((0..100).all(|_| open.take(Duration::ZERO).is_zero()));
    }
}
