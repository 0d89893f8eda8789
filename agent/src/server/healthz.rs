//! `/healthz` with its parts, and the pages for people: `/statusz`, `/flagz`. Pure but for the figures of the checks.
//!
//! Sources: `apiserver/pkg/server/healthz`, `statusz`, `flagz` of Kubernetes 1.37.

use std::fmt::Write as _;

use http::{Response, StatusCode};

use super::answer::{Body, plain};
use super::route::Check;
use crate::metrics::METRICS;

/// The manager's loop turns at least at each full check, every six minutes at most.
const LATEST: i64 = 15 * 60;

/// Why a check fails, if so. `entered` is when the loop of pods was last entered; both in seconds since the epoch.
fn failure(check: Check, entered: i64, now: i64) -> Option<String> {
    match check {
        Check::Ping | Check::Log => None,
        Check::SyncLoop if entered == 0 || now - entered <= LATEST => None,
        Check::SyncLoop => Some(format!("sync Loop took longer than expected: {} s", now - entered)),
    }
}

/// Answers for these checks.
pub(super) fn healthz(checks: &[Check], query: &[(String, String)], now: i64) -> Response<Body> {
    let entered = METRICS.health.sync_loop.get();
    let is_excluded = |check: &Check| query.iter().any(|(name, value)| name == "exclude" && value == check.name());
    let (mut list, mut is_ok) = (String::new(), true);
    for check in checks {
        if is_excluded(check) {
            let _ = writeln!(list, "[+]{} excluded: ok", check.name());
            continue;
        }
        let failed = failure(*check, entered, now);
        METRICS.health.observe(check.name(), failed.is_none());
        match failed {
            None => drop(writeln!(list, "[+]{} ok", check.name())),
            Some(reason) => {
                tracing::warn!(check = check.name(), reason, "health check failed");
                is_ok = false;
                let _ = writeln!(list, "[-]{} failed: reason withheld", check.name());
            }
        }
    }
    let is_verbose = query.iter().any(|(name, _)| name == "verbose");
    match (is_ok, is_verbose) {
        (true, false) => plain(StatusCode::OK, "ok"),
        (true, true) => plain(StatusCode::OK, list + "healthz check passed\n"),
        (false, _) => plain(StatusCode::INTERNAL_SERVER_ERROR, list + "healthz check failed\n"),
    }
}

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees \
                       and is for debugging purposes only.";

/// `/statusz`. `started` and `now` in seconds since the epoch.
pub(super) fn statusz(started: i64, now: i64, version: &str) -> String {
    let up = (now - started).max(0);
    let since = jiff::Timestamp::from_second(started).unwrap_or_default();
    format!(
        "\nkubelet statusz\n{WARNING}\n\nStarted: {since}\nUp: {} hr {:02} min {:02} sec\nBinary version: {version}\n",
        up / 3600,
        up / 60 % 60,
        up % 60
    )
}

/// `/flagz`: the flags of a command line, sorted.
pub(super) fn flagz(arguments: impl Iterator<Item = String>) -> String {
    let (mut flags, mut pending): (Vec<String>, Option<String>) = (Vec::new(), None);
    for word in arguments {
        match (word.strip_prefix("--"), pending.take()) {
            (Some(flag), last) => {
                flags.extend(last.map(|flag| format!("{flag}=true")));
                if flag.contains('=') { flags.push(flag.to_owned()) } else { pending = Some(flag.to_owned()) }
            }
            (None, Some(flag)) => flags.push(format!("{flag}={word}")),
            (None, None) => {}
        }
    }
    flags.extend(pending.map(|flag| format!("{flag}=true")));
    flags.sort();
    format!("\nkubelet flagz\n{WARNING}\n\n{}\n", flags.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_unhealthy() {
        assert_eq!(failure(Check::SyncLoop, 0, 10_000), None, "it has not begun");
        assert_eq!(failure(Check::SyncLoop, 10_000, 10_000 + LATEST), None);
        assert!(failure(Check::SyncLoop, 10_000, 10_001 + LATEST).is_some());
        assert_eq!(failure(Check::Ping, 10_000, i64::MAX), None);
    }

    #[test]
    fn flags_are_shown_with_their_values() {
        let words = ["run", "--config", "/c", "-v", "2", "--node-ip=10.0.0.1", "--quiet"].map(str::to_owned);
        let page = flagz(words.into_iter());
        assert!(page.ends_with("\n\nconfig=/c\nnode-ip=10.0.0.1\nquiet=true\n"), "{page}");
    }
}
