//! Names that are unique on this machine and tell which process owns them.

use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// `nlt-PID-N`: the name of a namespace, a directory below the temporary directory, or a cgroup.
pub fn unique() -> String {
    format!("nlt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An interface name of at most 15 bytes (`IFNAMSIZ` less the final zero), unique like [`unique`].
pub fn interface(prefix: &str) -> String {
    format!("{prefix}{:x}{:x}", std::process::id() & 0x3f_ffff, NEXT.fetch_add(1, Ordering::Relaxed) & 0xfff)
}
