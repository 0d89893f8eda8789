//! Network namespaces and their sysctls: the file that enters a container's namespace.
//!
//! `/proc/sys/net` shows the namespace of the calling thread, and a netlink socket belongs to the namespace that it was
//! opened in. The plugin has one thread, so entering is `setns` on it; [`Namespaces`] goes back when it is dropped.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::plan::Side;

/// The node's namespace and a container's, and which of them this thread is in.
#[derive(Debug)]
pub(crate) struct Namespaces {
    host: File,
    pod: File,
    current: Side,
}

impl Namespaces {
    /// Opens both; the thread is in the node's, where the specification has the runtime start a plugin.
    ///
    /// # Errors
    /// `NotFound` when the container's namespace is gone; `InvalidInput` when the path is no namespace or is the node's
    /// own: a pair with both ends there would take the node's interface names.
    pub(crate) fn open(pod: &Path) -> io::Result<Self> {
        let host = File::open("/proc/thread-self/ns/net")?;
        let pod = open_netns(pod)?;
        let identity = |file: &File| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
        if identity(&host)? == identity(&pod)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is the node's own network namespace"));
        }
        Ok(Self { host, pod, current: Side::Host })
    }

    /// The container's namespace for `IFLA_NET_NS_FD`.
    pub(crate) fn pod_fd(&self) -> RawFd {
        self.pod.as_raw_fd()
    }

    /// Makes `side` the namespace of this thread.
    pub(crate) fn enter(&mut self, side: Side) -> io::Result<()> {
        if self.current != side {
            let target = match side {
                Side::Host => &self.host,
                Side::Pod => &self.pod,
            };
            move_into_link_name_space(target.as_fd(), Some(LinkNameSpaceType::Network))?;
            self.current = side;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // Returning to a namespace whose descriptor is open fails only without CAP_SYS_ADMIN, which entering needed too.
        let _ = self.enter(Side::Host);
    }
}

/// Opens a namespace file and makes sure that it is one: a path left over after `umount` is an empty regular file, which
/// means that the namespace is gone (`NotFound`).
fn open_netns(path: &Path) -> io::Result<File> {
    /// `NSFS_MAGIC` of linux/magic.h.
    const NSFS: i64 = 0x6e73_6673;
    let file = File::open(path)?;
    if rustix::fs::fstatfs(&file)?.f_type == NSFS {
        return Ok(file);
    }
    match file.metadata()? {
        meta if meta.is_file() && meta.len() == 0 => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the namespace is no longer mounted there"))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "this file is no network namespace")),
    }
}

/// Reads `/proc/sys/net/PATH` of the current namespace.
pub(crate) fn read_sysctl(path: &str) -> io::Result<String> {
    fs::read_to_string(Path::new("/proc/sys/net").join(path)).map(|value| value.trim_end().to_owned())
}

/// Writes `/proc/sys/net/PATH` of the current namespace unless it has the value: a write of `forwarding` walks every
/// interface under the RTNL lock even when nothing changes.
pub(crate) fn write_sysctl(path: &str, value: &str) -> io::Result<()> {
    if read_sysctl(path)? == value {
        return Ok(());
    }
    if path == "ipv6/conf/all/forwarding" {
        keep_router_advertisements()?;
    }
    fs::write(Path::new("/proc/sys/net").join(path), value)
}

/// A forwarding node ignores router advertisements unless `accept_ra` is 2 (kernel `ip-sysctl.rst`): an uplink that has
/// its default route from one would lose it with the first dual-stack pod.
fn keep_router_advertisements() -> io::Result<()> {
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let path = entry?.path().join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|value| value.trim_end() == "1") {
            fs::write(&path, "2")?;
        }
    }
    Ok(())
}
