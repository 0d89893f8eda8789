//! Settings of the kernel's connection tracking (`conntrack` of the `KubeProxyConfiguration`).
//!
//! [`plan`] is pure. Two values are only ever raised, as in kube-proxy: `nf_conntrack_max` and the number of hash buckets
//! that fits it, because somebody may have had reasons for more. The other ones are set to what is configured. What cannot
//! be written is logged and harms nothing else; kube-proxy ends then, and leaves the node without Services.
//!
//! What it does not do: it never touches `route_localnet`, which would let neighbours reach the node's loopback
//! (CVE-2020-8558). In a network namespace that is not the machine's own, `nf_conntrack_max` cannot be written; then the
//! buckets, which all namespaces share, are left alone, too.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::config::proxy::Conntrack;

/// `nf_conntrack_max` by cores ends here, as in kube-proxy: an entry is about 320 bytes.
const MAX_BY_CORES: u64 = 1 << 20;
const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "sys/module/nf_conntrack/parameters/hashsize";
/// The kernel takes seconds as 32-bit numbers.
const LONGEST: u64 = i32::MAX as u64;

/// A value to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Path below `/`.
    pub path: &'static str,
    /// The value.
    pub value: u64,
}

/// What is to be written on a machine of so many cores. `read` answers a value as it is, `None` when it cannot be read.
pub fn plan(wanted: &Conntrack, cores: u32, read: impl Fn(&str) -> Option<u64>) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some(per_core) = wanted.max_per_core {
        let scaled = u64::from(per_core) * u64::from(cores);
        let max = if scaled > MAX_BY_CORES { MAX_BY_CORES } else { scaled.max(u64::from(wanted.min)) };
        for (path, least) in [(MAX, max), (BUCKETS, max / 4)] {
            if least > 0 && read(path).is_none_or(|now| now < least) {
                writes.push(Write { path, value: least });
            }
        }
    }
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs().min(LONGEST)).filter(|seconds| *seconds > 0);
    for (path, value) in [
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", seconds(wanted.tcp_established)),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", seconds(wanted.tcp_close_wait)),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", wanted.tcp_be_liberal.then_some(1)),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", seconds(wanted.udp)),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", seconds(wanted.udp_stream)),
    ] {
        if let Some(value) = value.filter(|value| read(path) != Some(*value)) {
            writes.push(Write { path, value });
        }
    }
    writes
}

/// Sets what is configured, in the network namespace of the calling thread. `root` is `/`.
pub fn apply(wanted: &Conntrack, root: &Path) {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok()?.trim().parse().ok();
    let cores = std::fs::read_to_string(root.join("sys/devices/system/cpu/online")).ok();
    let cores = cores.and_then(|text| crate::node::facts::count_cpus(&text)).unwrap_or(1);
    // The kernel takes the bit away outside of the machine's own namespace.
    let is_machine = std::fs::metadata(root.join(MAX)).is_ok_and(|meta| meta.permissions().mode() & 0o200 != 0);
    for Write { path, value } in plan(wanted, cores, read) {
        let file = root.join(path);
        if !is_machine && matches!(path, MAX | BUCKETS) {
            tracing::warn!(path = %file.display(), value, "not set from this network namespace; set it on the machine");
            continue;
        }
        match write(&file, value) {
            Ok(()) => tracing::info!(path = %file.display(), value, "connection tracking"),
            Err(error) => {
                tracing::error!(path = %file.display(), value, %error, "cannot set connection tracking; Services work, with the kernel's value")
            }
        }
    }
}

fn write(path: &Path, value: u64) -> io::Result<()> {
    // Without O_CREAT: what the kernel has not is not made.
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const DEFAULTS: Conntrack = Conntrack {
        max_per_core: Some(32768),
        min: 131_072,
        tcp_established: Some(Duration::from_secs(86400)),
        tcp_close_wait: Some(Duration::from_secs(3600)),
        tcp_be_liberal: false,
        udp: None,
        udp_stream: None,
    };

    /// What is written, by the last part of each path.
    fn written(wanted: &Conntrack, cores: u32, now: &[(&str, u64)]) -> BTreeMap<&'static str, u64> {
        let read = |path: &str| now.iter().find(|(name, _)| path.ends_with(name)).map(|(_, value)| *value);
        let last = |path: &'static str| path.rsplit('/').next().unwrap();
        plan(wanted, cores, read).into_iter().map(|write| (last(write.path), write.value)).collect()
    }

    #[test]
    fn the_limit_is_raised_to_cores_or_least_and_never_lowered() {
        let only_max = Conntrack { tcp_established: None, tcp_close_wait: None, ..DEFAULTS };
        for (what, cores, max, buckets, expected) in [
            ("the least", 2, 65536, 16384, vec![("hashsize", 32768), ("nf_conntrack_max", 131_072)]),
            ("by cores", 8, 65536, 65536, vec![("nf_conntrack_max", 262_144)]),
            ("not beyond a million", 128, 65536, 16384, vec![("hashsize", 262_144), ("nf_conntrack_max", 1_048_576)]),
            ("more is there", 2, 500_000, 125_000, vec![]),
            ("too few buckets for what is there", 2, 500_000, 1024, vec![("hashsize", 32768)]),
        ] {
            let now = [("nf_conntrack_max", max), ("hashsize", buckets)];
            assert_eq!(written(&only_max, cores, &now), expected.into_iter().collect(), "{what}");
        }
        let unlimited = Conntrack { max_per_core: None, ..only_max };
        assert_eq!(written(&unlimited, 8, &[("nf_conntrack_max", 1)]), BTreeMap::new());
    }

    #[test]
    fn times_are_written_where_they_differ_and_are_configured() {
        let large = [("nf_conntrack_max", 1 << 30), ("hashsize", 1 << 30)];
        let now = |more: &[(&'static str, u64)]| [&large[..], more].concat();
        let established = "nf_conntrack_tcp_timeout_established";
        let expected = BTreeMap::from([(established, 86400), ("nf_conntrack_tcp_timeout_close_wait", 3600)]);
        assert_eq!(written(&DEFAULTS, 2, &now(&[(established, 432_000), ("tcp_timeout_close_wait", 60)])), expected);
        assert_eq!(
            written(&DEFAULTS, 2, &now(&[(established, 86400), ("tcp_timeout_close_wait", 3600)])),
            BTreeMap::new()
        );
        let all = Conntrack {
            tcp_established: None,
            tcp_close_wait: None,
            tcp_be_liberal: true,
            udp: Some(Duration::from_secs(20)),
            udp_stream: Some(Duration::from_secs(u64::MAX)),
            ..DEFAULTS
        };
        let expected = BTreeMap::from([
            ("nf_conntrack_tcp_be_liberal", 1),
            ("nf_conntrack_udp_timeout", 20),
            ("nf_conntrack_udp_timeout_stream", LONGEST),
        ]);
        assert_eq!(written(&all, 2, &now(&[])), expected);
    }

    #[test]
    fn what_cannot_be_written_keeps_nothing_else_from_being_written() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let get = |path: &str| std::fs::read_to_string(root.path().join(path)).unwrap();
        let close_wait = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
        put(MAX, "1");
        put(BUCKETS, "1");
        put(close_wait, "60");
        std::fs::set_permissions(root.path().join(MAX), std::fs::Permissions::from_mode(0o444)).unwrap();
        // `nf_conntrack_tcp_timeout_established` is not there at all.
        apply(&DEFAULTS, root.path());
        assert_eq!((get(MAX), get(BUCKETS), get(close_wait)), ("1".into(), "1".into(), "3600".into()));
        assert!(!root.path().join("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established").exists());
    }
}
