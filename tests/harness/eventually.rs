//! Waiting for a condition with a deadline; the failure says what was seen last.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::anyhow;

/// How often a condition is looked at.
const EVERY: Duration = Duration::from_millis(50);

/// Asks `check` until it answers `Ok` and gives that value; after `limit` fails with `what` and the last error.
pub async fn eventually<T, E: Display, F: AsyncFnMut() -> Result<T, E>>(
    limit: Duration,
    what: &str,
    mut check: F,
) -> anyhow::Result<T> {
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
