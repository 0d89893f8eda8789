//! The real control plane in the namespace of a [`Lan`], and a client for it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::containerd::tail;
use crate::netns::{Lan, Netns};
use crate::{eventually::eventually, names, programs};

/// A running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    process: Child,
    directory: PathBuf,
    lan: Arc<Lan>,
    forward: Forward,
}

impl ControlPlane {
    /// The range of ClusterIPs.
    pub const SERVICE_CIDR: &'static str = "10.96.0.0/16";
    /// The range that nodes' pod ranges (a /24 each) come from.
    pub const CLUSTER_CIDR: &'static str = "10.244.0.0/16";

    /// Starts it with a kubeconfig for each of `nodes`, and waits until a pod can be created (about 10 s).
    pub async fn start(nodes: &[&str]) -> anyhow::Result<Self> {
        let binary = programs::built("controlplane")?;
        let lan = Arc::new(Lan::new()?);
        let directory = std::env::temp_dir().join(names::unique());
        fs::create_dir_all(&directory)?;
        let (out, err) = (directory.join("stdout"), directory.join("stderr"));
        let mut command = Command::new(binary);
        command
            .args(["--bind", Lan::ADDRESS, "--service-cidr", Self::SERVICE_CIDR, "--cluster-cidr", Self::CLUSTER_CIDR])
            .arg("--dir")
            .arg(directory.join("data"))
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        for node in nodes {
            command.args(["--node", node]);
        }
        let process = lan.netns().enter(&mut command).spawn()?;
        let forward = Forward::start(lan.clone(), SocketAddr::new(Lan::ADDRESS.parse()?, 6443))?;
        let mut made = Self { process, directory, lan, forward };
        let ready = eventually(Duration::from_secs(120), "the control plane", async || {
            if let Some(status) = made.process.try_wait()? {
                return Ok(Err(status));
            }
            ensure!(fs::read_to_string(&out)?.contains("ready"), "it has not said ready yet");
            anyhow::Ok(Ok(()))
        })
        .await
        .with_context(|| tail(&err, 10))?;
        if let Err(status) = ready {
            anyhow::bail!("the control plane ended with {status}:\n{}", tail(&err, 10));
        }
        Ok(made)
    }

    /// The network that it is on.
    pub fn lan(&self) -> &Lan {
        &self.lan
    }

    /// The kubeconfig of a node, for use on the [`Lan`].
    pub fn node_kubeconfig(&self, node: &str) -> PathBuf {
        self.file(&format!("node-{node}.kubeconfig"))
    }

    /// The kubeconfig with all rights, for use on the [`Lan`].
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.file("admin.kubeconfig")
    }

    /// `kubectl WORDS` with all rights, as a command that runs on the [`Lan`].
    pub fn kubectl(&self, words: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(programs::built("kubectl")?);
        command.arg("--kubeconfig").arg(self.admin_kubeconfig()).args(words);
        // Its caches of discovery and its preferences are none of the machine's.
        command.env("HOME", &self.directory);
        self.lan.netns().enter(&mut command);
        Ok(command)
    }

    /// The kubeconfig of system:kube-proxy.
    pub fn proxy_kubeconfig(&self) -> PathBuf {
        self.file("kube-proxy.kubeconfig")
    }

    /// The kubeconfig with a bootstrap token.
    pub fn bootstrap_kubeconfig(&self) -> PathBuf {
        self.file("bootstrap.kubeconfig")
    }

    /// The CA that signed all certificates.
    pub fn ca(&self) -> PathBuf {
        self.file("ca.crt")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join("data").join(name)
    }

    /// A client with all rights, usable outside of the namespace.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        self.client_of(&self.admin_kubeconfig()).await
    }

    /// A client with the rights of a kubeconfig, usable outside of the namespace.
    pub async fn client_of(&self, kubeconfig: &Path) -> anyhow::Result<kube::Client> {
        let mut kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(format!("https://{}", self.forward.address));
        }
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Stops the processes as a lost control plane does: connections break, nothing answers. They can be continued.
    pub fn pause(&self, pause: bool) -> anyhow::Result<()> {
        let signal = if pause { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        Ok(rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal)?)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Its data are worthless after the test: no time for an orderly end.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A port of the host's loopback that leads to an address inside a namespace: clients in the test process need no setns.
#[derive(Debug)]
struct Forward {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Forward {
    fn start(lan: Arc<Lan>, to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                // A refused connection ends the client's, which is what it would see inside.
                let _ = join(client, lan.netns(), to);
            }
        });
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

/// Copies both ways on threads that end with the connection.
fn join(client: TcpStream, netns: &Netns, to: SocketAddr) -> anyhow::Result<()> {
    let server = netns.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))??;
    for (mut from, mut into) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut into);
            let _ = into.shutdown(std::net::Shutdown::Both);
        });
    }
    Ok(())
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes accept.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
