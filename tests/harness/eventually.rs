//! Waiting for a condition with a deadline; the failure says what was seen last.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::anyhow;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(50);

/// How long to wait on this machine for what takes at most `usual` on a developer's: `NODELET_TEST_SLOWNESS` times as long,
/// a whole number. Emulated machines set it (`tests/scripts/old-kernels.sh`).
pub fn patience(usual: Duration) -> Duration {
    let factor = std::env::var("NODELET_TEST_SLOWNESS").ok();
    usual * factor.map_or(1, |text| text.parse().expect("NODELET_TEST_SLOWNESS is a whole number"))
}

/// Asks `check` until it answers `Ok` and gives that value; after [`patience`] with `limit` fails with `what` and the last error.
pub async fn eventually<T, E: Display, F: AsyncFnMut() -> Result<T, E>>(
    limit: Duration,
    what: &str,
    mut check: F,
) -> anyhow::Result<T> {
    let limit = patience(limit);
    let start = Instant::now();
    loop {
        let error = match check().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if start.elapsed() >= limit {
            return Err(anyhow!("waited {limit:?} for {what}; last seen: {error:#}"));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Fails when `check` fails at any time within `span`: for things that must not happen.
pub async fn always<E: Display, F: AsyncFnMut() -> Result<(), E>>(
    span: Duration,
    what: &str,
    mut check: F,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(error) = check().await {
            return Err(anyhow!("{what} did not hold after {:?}: {error:#}", start.elapsed()));
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}
