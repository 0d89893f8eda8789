#![allow(unsafe_code)]
//! Network namespaces of tests.
//!
//! `ip netns exec` is not used: it mounts a new /sys, which hides the cgroup hierarchies. Processes enter with setns
//! between fork and exec, closures on a thread of their own.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::names;

/// A named network namespace with loopback up; dropping deletes it, unless it is somebody else's.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
    is_ours: bool,
}

impl Netns {
    /// Makes one.
    pub fn new() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "network namespaces need root: run this suite as root");
        let name = names::unique();
        run(&["ip", "netns", "add", &name])?;
        let handle = File::open(format!("/run/netns/{name}")).context("ip netns add made no namespace file")?;
        let netns = Self { name, handle, is_ours: true };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// That of a process, such as a container's; it has no name below `/run/netns`.
    pub fn of_process(pid: u32) -> anyhow::Result<Self> {
        let handle = File::open(format!("/proc/{pid}/ns/net")).with_context(|| format!("process {pid}"))?;
        Ok(Self { name: format!("of process {pid}"), handle, is_ours: false })
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// Runs `ip` with words of `arguments` inside.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        self.output(Command::new("ip").args(arguments.split_whitespace()))
    }

    /// Runs a shell command line inside and gives its standard output.
    pub fn sh(&self, script: &str) -> anyhow::Result<String> {
        self.output(Command::new("sh").arg("-ec").arg(script))
    }

    /// Runs a command inside and gives its standard output; fails when it does.
    pub fn output(&self, command: &mut Command) -> anyhow::Result<String> {
        let done = self.enter(command).output().with_context(|| format!("{command:?}"))?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{command:?} in {}: {}: {error}", self.name, done.status);
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Makes a command start inside.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let handle = self.handle();
        // SAFETY: between fork and exec the closure makes one system call, setns, on a descriptor that it owns; it does
        // not allocate and takes no lock.
        unsafe {
            command.pre_exec(move || {
                move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(())
            })
        }
    }

    /// A handle that a thread can enter by with [`enter`].
    pub fn handle(&self) -> File {
        match self.handle.try_clone() {
            Ok(handle) => handle,
            Err(error) => panic!("no file descriptor left for {}: {error}", self.name),
        }
    }

    /// Runs a closure inside, on a thread of its own. Sockets that it makes stay in the namespace after it returns.
    pub fn within<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))?;
                anyhow::Ok(closure())
            });
            thread.join().map_err(|_| anyhow::anyhow!("the closure within {} panicked", self.name))?
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        if let Err(error) = run(&["ip", "netns", "delete", &self.name]) {
            eprintln!("namespace {} stays: {error:#}", self.name);
        }
    }
}

/// Moves the calling thread into a namespace, for the rest of its life.
pub fn enter(handle: &File) -> anyhow::Result<()> {
    Ok(move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn run(words: &[&str]) -> anyhow::Result<()> {
    let done = Command::new(words[0]).args(&words[1..]).output().with_context(|| words.join(" "))?;
    ensure!(done.status.success(), "{}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// One network that nodes and a control plane share: a namespace with a bridge, 10.89.0.1/24 and fd89::1/64 in it.
#[derive(Debug)]
pub struct Lan {
    netns: Arc<Netns>,
}

impl Lan {
    /// The address that the control plane gets.
    pub const ADDRESS: &'static str = "10.89.0.1";

    /// Makes it.
    pub fn new() -> anyhow::Result<Self> {
        let netns = Netns::new()?;
        for step in [
            "link add lan0 type bridge",
            "addr add 10.89.0.1/24 dev lan0",
            "addr add fd89::1/64 dev lan0 nodad",
            "link set lan0 up",
            // Programs look for a default route to learn which address is theirs; nothing is reachable behind it.
            "route add default via 10.89.0.254",
        ] {
            netns.ip(step)?;
        }
        Ok(Self { netns: Arc::new(netns) })
    }

    /// The same, for who outlives a borrow.
    pub fn shared_netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The namespace with the bridge: traffic from here comes from outside of all nodes.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Connects a namespace as `eth0` with host number `host`: 10.89.0.HOST and `fd89::HOST`.
    pub fn attach(&self, node: &Netns, host: u8) -> anyhow::Result<String> {
        let port = names::interface("v");
        self.netns.ip(&format!("link add {port} type veth peer name eth0 netns {}", node.name()))?;
        self.netns.ip(&format!("link set {port} master lan0 up"))?;
        node.ip(&format!("addr add 10.89.0.{host}/24 dev eth0"))?;
        node.ip(&format!("addr add fd89::{host}/64 dev eth0 nodad"))?;
        node.ip("link set eth0 up")?;
        node.ip("route add default via 10.89.0.1")?;
        Ok(format!("10.89.0.{host}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_on_one_lan_reach_each_other() {
        let lan = Lan::new().unwrap();
        let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
        lan.attach(&a, 11).unwrap();
        let address = lan.attach(&b, 12).unwrap();
        let listener = b.within(|| std::net::TcpListener::bind((address.as_str(), 80))).unwrap().unwrap();
        let client = a.within(|| std::net::TcpStream::connect((address.as_str(), 80))).unwrap().unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        assert_eq!(peer.ip().to_string(), "10.89.0.11");
    }
}
