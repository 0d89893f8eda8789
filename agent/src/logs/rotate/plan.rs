//! When a log is looked at again, and what a rotation does to which file. Pure.

use jiff::civil::DateTime;

use crate::cri::Nanos;

const SECOND: Nanos = 1_000_000_000;
/// A look costs a system call; closer than this to the limit nothing is gained by more of them.
const SHORTEST: Nanos = SECOND / 10;
/// A new log is looked at a second time soon, to learn how fast it grows.
const SECOND_LOOK: Nanos = SECOND;
/// Rotated files have a second in their name, so there is one at most a second.
const BETWEEN_ROTATIONS: Nanos = SECOND;
/// How a rotated file is named: Go's `20060102-150405`.
const STAMP: &str = "%Y%m%d-%H%M%S";

/// Sizes and times of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `containerLogMaxSize` in bytes.
    pub max_size: u64,
    /// `containerLogMaxFiles`: files of a container, the one that is written included; at least 2.
    pub max_files: usize,
    /// `containerLogMonitorInterval` in nanoseconds: the longest time between two looks.
    pub interval: Nanos,
}

/// How a log grows. Times are of a clock that never steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes at the last look.
    pub size: u64,
    /// When that was.
    pub at: Nanos,
    /// Bytes a second; of the last looks the fastest, halved with each one, so that a burst is remembered for a while.
    pub rate: u64,
    /// When it was rotated last.
    pub rotated_at: Option<Nanos>,
    /// When to look again.
    pub due: Nanos,
    /// Whether it is to be rotated now.
    pub is_over: bool,
}

/// Takes in the size of a log.
pub fn look(before: Option<&Growth>, size: u64, now: Nanos, policy: &Policy) -> Growth {
    let rotated_at = before.and_then(|before| before.rotated_at);
    let rate = before.map_or(0, |before| {
        // A log that became smaller was begun anew by somebody.
        let written = if size >= before.size { size - before.size } else { size };
        let elapsed = u128::try_from(now - before.at).unwrap_or(0).max(1);
        let measured = u128::from(written) * SECOND.unsigned_abs() as u128 / elapsed;
        u64::try_from(measured).unwrap_or(u64::MAX).max(before.rate / 2)
    });
    let may_rotate_at = rotated_at.map_or(now, |at| at + BETWEEN_ROTATIONS);
    let is_full = size >= policy.max_size;
    let delay = match before {
        None => SECOND_LOOK.min(policy.interval),
        Some(_) => delay(size, rate, policy),
    };
    let due = if is_full { may_rotate_at.max(now + SHORTEST) } else { now + delay };
    Growth { size, at: now, rate, rotated_at, due, is_over: is_full && may_rotate_at <= now }
}

/// What is known of the new log after a rotation: it is written as fast as the one before. How fast that was is not known
/// of a log that was over the limit when it was seen first; it is learned as with every new log.
pub fn rotated(before: Option<&Growth>, now: Nanos, policy: &Policy) -> Growth {
    let rate = before.map_or(0, |before| before.rate);
    let delay = if rate == 0 { SECOND_LOOK.min(policy.interval) } else { delay(0, rate, policy) };
    Growth { size: 0, at: now, rate, rotated_at: Some(now), due: now + delay, is_over: false }
}

/// Half of the time until the limit is reached.
fn delay(size: u64, rate: u64, policy: &Policy) -> Nanos {
    let left = u128::from(policy.max_size.saturating_sub(size));
    let half = (left * SECOND.unsigned_abs() as u128).checked_div(u128::from(rate) * 2);
    let half = half.and_then(|half| Nanos::try_from(half).ok()).unwrap_or(policy.interval);
    half.clamp(SHORTEST.min(policy.interval), policy.interval)
}

/// What a rotation does, by file name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Files to remove first, the oldest first: what an interrupted compression left, and more than may be kept.
    pub remove: Vec<String>,
    /// The new name of the log.
    pub rotated: String,
    /// Files to compress afterwards.
    pub compress: Vec<String>,
}

/// Plans the rotation of `log` in a directory with these `names`. `now` is the node's local time, which is what kubelet
/// writes. `compressing` says that a temporary file may be in use.
pub fn files(names: &[String], log: &str, now: DateTime, policy: &Policy, compressing: bool) -> Files {
    let prefix = format!("{log}.");
    let mut rotated: Vec<&String> = names.iter().filter(|name| name.starts_with(&prefix)).collect();
    rotated.sort();
    let has = |name: &str| names.iter().any(|other| other == name);
    let (kept, unused): (Vec<&String>, Vec<&String>) = rotated.into_iter().partition(|name| {
        let is_temporary = name.ends_with(".tmp");
        !is_temporary && (name.ends_with(".gz") || !has(&format!("{name}.gz")))
    });
    let unused = unused.into_iter().filter(|name| !(compressing && name.ends_with(".tmp")));
    // The log itself and what it is renamed to are two.
    let excess = kept.len().saturating_sub(policy.max_files.saturating_sub(2));
    let (old, rest) = kept.split_at(excess);
    Files {
        remove: unused.chain(old.iter().copied()).cloned().collect(),
        rotated: format!("{prefix}{}", stamp(rest.last().or(old.last()), &prefix, now)),
        compress: rest.iter().filter(|name| !name.ends_with(".gz")).map(|name| (*name).clone()).collect(),
    }
}

/// The time for a name. Later than the newest there is, also when the local clock was set back: nothing is overwritten, and names
/// stay in the order of time.
fn stamp(newest: Option<&&String>, prefix: &str, now: DateTime) -> String {
    let newest = newest.and_then(|name| name.strip_prefix(prefix)).map(|text| text.trim_end_matches(".gz"));
    let newest = newest.and_then(|text| DateTime::strptime(STAMP, text).ok());
    let after = newest.and_then(|newest| newest.checked_add(jiff::Span::new().seconds(1)).ok());
    after.map_or(now, |after| after.max(now)).strftime(STAMP).to_string()
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy { max_size: 10 << 20, max_files: 5, interval: 10 * SECOND };

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_log_that_does_not_grow_is_looked_at_once_an_interval() {
        let first = look(None, 100, 0, &POLICY);
        assert_eq!((first.due, first.is_over), (SECOND, false));
        let second = look(Some(&first), 100, SECOND, &POLICY);
        assert_eq!(second.due, 11 * SECOND);
        let third = look(Some(&second), 100, 11 * SECOND, &POLICY);
        assert_eq!(third.due, 21 * SECOND);
    }

    #[test]
    fn a_log_that_is_over_the_limit_when_it_is_seen_first_is_looked_at_soon_after_its_rotation() {
        let first = look(None, 30 << 20, 0, &POLICY);
        assert!(first.is_over);
        assert_eq!(rotated(Some(&first), SECOND, &POLICY).due, 2 * SECOND);
    }

    #[test]
    fn the_next_look_comes_after_half_of_the_time_to_the_limit() {
        let first = look(None, 0, 0, &POLICY);
        let second = look(Some(&first), 2 << 20, SECOND, &POLICY);
        assert_eq!((second.rate, second.due), (2 << 20, SECOND + 2 * SECOND), "8 MiB are left, 4 s at this rate");
        assert!(look(Some(&second), 10 << 20, 5 * SECOND, &POLICY).is_over);
    }

    #[test]
    fn there_is_one_rotation_at_most_a_second() {
        let first = look(None, 1 << 30, 0, &POLICY);
        assert!(first.is_over);
        let after = rotated(Some(&first), 0, &POLICY);
        let full = look(Some(&after), 1 << 30, SECOND / 2, &POLICY);
        assert_eq!((full.is_over, full.due), (false, SECOND));
        assert!(look(Some(&full), 1 << 30, SECOND, &POLICY).is_over);
    }

    proptest! {
        /// A writer of any steady speed, from the moment that its speed is known: no log becomes larger than the limit and
        /// what is written between two of the shortest looks, or within the second between two rotations.
        #[test]
        fn a_steady_writer_never_gets_far_beyond_the_limit(rate in 1u64..500 << 20, start in 0u64..10 << 20) {
            let (mut growth, mut now, mut begun) = (look(None, start, 0, &POLICY), 0, 0);
            let mut base = start;
            let written = |now: Nanos, begun: Nanos| u64::try_from(i128::from(now - begun) * i128::from(rate) / i128::from(SECOND)).unwrap();
            let (mut largest, mut looks) = (0, 0u32);
            while now < 300 * SECOND {
                now = growth.due;
                looks += 1;
                let size = base + written(now, begun);
                growth = look(Some(&growth), size, now, &POLICY);
                if growth.is_over {
                    if looks > 1 {
                        largest = largest.max(size);
                    }
                    growth = rotated(Some(&growth), now, &POLICY);
                    (base, begun) = (0, now);
                }
            }
            prop_assert!(largest <= POLICY.max_size + rate + rate / 5, "{largest} at {rate}/s");
            // At the most ten looks a second, and for a slow writer hardly more than kubelet's.
            prop_assert!(looks <= 3000);
            if rate < 10 << 10 {
                prop_assert!(looks <= 60, "{looks} looks in 300 s at {rate}/s");
            }
        }

        /// However often a log is rotated and whatever is left behind, no more files than configured stay, and none is overwritten.
        #[test]
        fn no_more_files_than_configured_stay(max_files in 2usize..6, steps in prop::collection::vec((0i64..3, any::<bool>()), 1..30)) {
            let policy = Policy { max_files, ..POLICY };
            let mut directory = names(&["0.log", "0.log.20250101-000000.tmp"]);
            let mut clock = date(2025, 1, 1).at(0, 0, 0, 0);
            for (seconds, compressed) in steps {
                clock = clock.checked_add(jiff::Span::new().seconds(seconds)).unwrap();
                let plan = files(&directory, "0.log", clock, &policy, false);
                directory.retain(|name| !plan.remove.contains(name));
                prop_assert!(!directory.contains(&plan.rotated));
                prop_assert!(directory.iter().all(|name| name == "0.log" || name.as_str() < plan.rotated.as_str()));
                directory.push(plan.rotated);
                for file in plan.compress.iter().filter(|_| compressed) {
                    directory.retain(|name| name != file);
                    directory.push(format!("{file}.gz"));
                }
                prop_assert!(directory.len() <= max_files, "{directory:?}");
            }
        }
    }

    #[test]
    fn the_oldest_go_the_others_are_compressed_and_the_newest_stays_as_it_is() {
        let there = names(&[
            "0.log",
            "0.log.20250101-000001.gz",
            "0.log.20250101-000002.gz",
            "0.log.20250101-000003.gz",
            "0.log.20250101-000004",
            "0.log.20250101-000004.tmp",
            "1.log",
            "1.log.20250101-000001",
        ]);
        let plan = files(&there, "0.log", date(2025, 1, 2).at(3, 4, 5, 0), &POLICY, false);
        assert_eq!(plan.remove, names(&["0.log.20250101-000004.tmp", "0.log.20250101-000001.gz"]));
        assert_eq!(plan.rotated, "0.log.20250102-030405");
        assert_eq!(plan.compress, names(&["0.log.20250101-000004"]));
        let busy = files(&there, "0.log", date(2025, 1, 2).at(3, 4, 5, 0), &POLICY, true);
        assert_eq!(busy.remove, names(&["0.log.20250101-000001.gz"]), "the temporary file is being written");
    }

    #[test]
    fn a_file_that_is_compressed_already_is_not_kept_twice() {
        let there = names(&["0.log", "0.log.20250101-000004", "0.log.20250101-000004.gz"]);
        let plan = files(&there, "0.log", date(2025, 1, 1).at(0, 0, 2, 0), &POLICY, false);
        assert_eq!(plan.remove, names(&["0.log.20250101-000004"]));
        assert_eq!(plan.rotated, "0.log.20250101-000005", "the clock was set back");
    }
}
