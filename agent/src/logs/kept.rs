//! The last logs of pods that are gone, for whoever asks why a pod was killed after the API server has forgotten it.
//!
//! When a pod's log directory would be removed it is moved to [`DIRECTORY`] beside the directory of logs, so that no log shipper
//! takes it for a new one, and one that still reads loses nothing. What rotation made is left out. Kept is what fits all of
//! [`Limits`]; the oldest go first, and all of it goes before anything else does when the disk is short.
//! `nodelet logs` finds them by namespace and name. What to keep and to show is decided here, purely; [`execute`] does it.
//!
//! It does not keep logs across file systems: a directory that cannot be renamed is removed.

use crate::cri::Nanos;

pub mod execute;

/// Name of the directory beside that of pod logs.
pub const DIRECTORY: &str = "nodelet-deleted-pods";

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pods.
    pub pods: usize,
    /// Most bytes of all pods.
    pub bytes: u64,
    /// Longest time.
    pub age: Nanos,
}

/// An hour of 50 pods and 100 MiB: about the logs that ten noisy pods may have (`containerLogMaxSize` is 10 MiB).
pub const LIMITS: Limits = Limits { pods: 50, bytes: 100 << 20, age: 3600 * 1_000_000_000 };

/// Logs of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// `NAMESPACE_NAME_UID`.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
    /// When the pod went.
    pub since: Nanos,
}

/// Why logs are no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// They are older than [`Limits::age`].
    Age,
    /// There are newer ones of [`Limits::pods`] pods.
    Pods,
    /// With all newer ones they are more than [`Limits::bytes`].
    Bytes,
}

/// What is to go, the oldest first.
pub fn excess(mut all: Vec<Kept>, limits: &Limits, now: Nanos) -> Vec<(Kept, Excess)> {
    all.sort_by(|a, b| b.since.cmp(&a.since).then_with(|| b.name.cmp(&a.name)));
    let mut bytes = 0u64;
    let judged = all.into_iter().enumerate().filter_map(|(newer, kept)| {
        bytes = bytes.saturating_add(kept.bytes);
        let why = if now - kept.since > limits.age {
            Some(Excess::Age)
        } else if newer >= limits.pods {
            Some(Excess::Pods)
        } else {
            (bytes > limits.bytes).then_some(Excess::Bytes)
        };
        why.map(|why| (kept, why))
    });
    let mut going: Vec<_> = judged.collect();
    going.reverse();
    going
}

/// Whether a file of a container's log directory is worth keeping: the log of an attempt, not what was rotated away.
pub fn is_log(file: &str) -> bool {
    attempt(file).is_some()
}

/// The attempt whose log `N.log` is.
fn attempt(file: &str) -> Option<u32> {
    file.strip_suffix(".log")?.parse().ok()
}

/// The newest of `pods` that has this namespace and name.
pub fn find<'a>(pods: &'a [Kept], namespace: &str, name: &str) -> Option<&'a Kept> {
    let prefix = format!("{namespace}_{name}_");
    pods.iter().filter(|kept| kept.name.starts_with(&prefix)).max_by_key(|kept| kept.since)
}

/// The newest log of a container, or the one before it.
pub fn pick(files: &[String], previous: bool) -> Option<&str> {
    let mut logs: Vec<(u32, &str)> = files.iter().filter_map(|file| Some((attempt(file)?, file.as_str()))).collect();
    logs.sort_unstable();
    logs.iter().rev().nth(usize::from(previous)).map(|(_, file)| *file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(name: &str, bytes: u64, since: Nanos) -> Kept {
        Kept { name: name.to_owned(), bytes, since }
    }

    #[test]
    fn the_oldest_go_first_and_each_limit_counts() {
        let all = vec![kept("a_x_1", 10, 5), kept("a_x_2", 10, 9), kept("a_x_3", 10, 7), kept("a_x_4", 10, 1)];
        let limits = Limits { pods: 2, bytes: 100, age: 6 };
        let going: Vec<_> = excess(all.clone(), &limits, 10).into_iter().map(|(kept, why)| (kept.since, why)).collect();
        assert_eq!(going, [(1, Excess::Age), (5, Excess::Pods)]);
        let limits = Limits { pods: 9, bytes: 15, age: 100 };
        let going: Vec<_> = excess(all, &limits, 10).into_iter().map(|(kept, why)| (kept.since, why)).collect();
        assert_eq!(going, [(1, Excess::Bytes), (5, Excess::Bytes), (7, Excess::Bytes)]);
    }

    proptest! {
        #[test]
        fn what_stays_is_within_every_limit(sizes in prop::collection::vec((0u64..100, 0i64..100), 0..40), pods in 0usize..10, bytes in 0u64..500, age in 0i64..100) {
            let all: Vec<_> = sizes.iter().enumerate().map(|(n, (size, at))| kept(&format!("n_p_{n}"), *size, *at)).collect();
            let limits = Limits { pods, bytes, age };
            let going = excess(all.clone(), &limits, 100);
            let stays: Vec<_> = all.iter().filter(|kept| !going.iter().any(|(gone, _)| gone == *kept)).collect();
            prop_assert!(stays.len() <= pods);
            prop_assert!(stays.iter().map(|kept| kept.bytes).sum::<u64>() <= bytes);
            prop_assert!(stays.iter().all(|kept| 100 - kept.since <= age));
        }
    }

    #[test]
    fn a_pod_is_found_by_its_name_and_the_newest_of_a_name_wins() {
        let all = [kept("a_web_1", 1, 3), kept("a_web_2", 1, 8), kept("a_web-2_3", 1, 9), kept("b_web_4", 1, 9)];
        assert_eq!(find(&all, "a", "web").map(|kept| kept.name.as_str()), Some("a_web_2"));
        assert_eq!(find(&all, "c", "web"), None);
    }

    #[test]
    fn attempts_are_numbers() {
        let files = ["9.log", "10.log", "10.log.20250101-000000", "x.log"].map(str::to_owned);
        assert_eq!((pick(&files, false), pick(&files, true)), (Some("10.log"), Some("9.log")));
        assert_eq!(pick(&files[..1], true), None);
    }
}
