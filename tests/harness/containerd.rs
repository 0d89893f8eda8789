//! A node's containerd, 1.6 (Debian) or 2.x, inside the node's namespace: own root, state, socket, runc state and CNI
//! directories. Dropping it stops daemon and shims and unmounts what they mounted.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::cgroups::kill;
use crate::cri_client::CriClient;
use crate::netns::Netns;
use crate::programs;

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Debian's 1.6: no CRI events, no `RuntimeConfig`.
    V1_6,
    /// 2.4.2, built from its Go module.
    V2,
    /// The same with a newer runc than Debian's, built from its Go module: users of a pod's own need runc 1.2.
    V2WithUsers,
}

/// Which CNI chain pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cni {
    /// containernetworking's bridge, host-local and portmap.
    Bridge,
    /// The project's plugin.
    Nodelet,
    /// The project's plugin by the configuration that the agent writes where there is none.
    ByAgent,
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    version: Version,
    base: PathBuf,
    daemon: Option<Child>,
}

impl Containerd {
    /// Starts it with everything below `base` (short: a socket path ends after 107 bytes), and imports the test images.
    pub async fn start(version: Version, cni: Cni, pod_cidr: &str, netns: &Netns, base: &Path) -> anyhow::Result<Self> {
        let mut made = Self { version, base: base.to_path_buf(), daemon: None };
        fs::create_dir_all(base)?;
        fs::write(base.join("config.toml"), configuration(version, base)?)?;
        write_cni(cni, pod_cidr, base)?;
        made.spawn(netns)?;
        let mut client = CriClient::connect_within(made.socket(), Duration::from_secs(30))
            .await
            .with_context(|| format!("containerd says:\n{}", made.log_tail()))?;
        made.import(&programs::images()?)?;
        let images = ["localhost/pause:1", "localhost/busybox:1", "localhost/echo:v1", "localhost/echo:v3"];
        for image in images {
            // The CRI plugin learns of an image through an event.
            crate::eventually::eventually(Duration::from_secs(20), "the CRI plugin to see an image", async || {
                match client.has_image(image).await {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(anyhow::anyhow!("{image} is not there")),
                    Err(error) => Err(error),
                }
            })
            .await?;
        }
        Ok(made)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.base.join("containerd.sock")
    }

    /// A connection to it.
    pub async fn client(&self) -> anyhow::Result<CriClient> {
        CriClient::connect_within(self.socket(), Duration::from_secs(10)).await
    }

    /// The directory of CNI configurations.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.base.join("cni/conf")
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Kills the daemon (shims and containers go on) and starts it again.
    pub async fn restart(&mut self, netns: &Netns) -> anyhow::Result<()> {
        self.kill9();
        self.spawn(netns)?;
        self.client().await.map(drop)
    }

    /// Kills the daemon; shims and containers go on.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Ended already is what was wanted.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// Imports an archive into the namespace of CRI.
    pub fn import(&self, archive: &Path) -> anyhow::Result<()> {
        let mut ctr = match self.version {
            Version::V1_6 => Command::new("ctr"),
            Version::V2 | Version::V2WithUsers => Command::new(programs::built("v2/ctr")?),
        };
        ctr.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io", "images", "import"]);
        if self.version != Version::V1_6 {
            // The transfer service of 2.x looks for unpack platforms that this configuration leaves out.
            ctr.arg("--local");
        }
        let done = ctr.arg(archive).output().context("ctr")?;
        ensure!(done.status.success(), "ctr images import: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.base.join("containerd.log"), 15)
    }

    fn spawn(&mut self, netns: &Netns) -> anyhow::Result<()> {
        let binary = match self.version {
            Version::V1_6 => PathBuf::from("/usr/bin/containerd"),
            Version::V2 | Version::V2WithUsers => programs::built("v2/containerd")?,
        };
        let log = File::options().create(true).append(true).open(self.base.join("containerd.log"))?;
        // containerd looks for its shim on PATH; the one beside it is of the same version.
        let beside = binary.parent().unwrap_or(Path::new("/usr/bin")).display();
        let mut command = Command::new(&binary);
        command
            .arg("--config")
            .arg(self.base.join("config.toml"))
            .env("PATH", format!("{beside}:{}", std::env::var("PATH").unwrap_or_default()))
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let daemon = netns.enter(&mut command).spawn().with_context(|| format!("{}", binary.display()))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Process ids of shims.
    fn shims(&self) -> Vec<i32> {
        let socket = self.socket().display().to_string();
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            if command.contains("containerd-shim") && command.split('\0').any(|word| word == socket) {
                found.extend(process.file_name().to_string_lossy().parse::<i32>());
            }
        }
        found
    }

    /// Sockets of shims, which are outside of our directory: all that the node's network namespace knows.
    fn shim_sockets(&self, shims: &[i32]) -> Vec<PathBuf> {
        let pids = self.pid().map(|pid| pid.to_string()).into_iter().chain(shims.iter().map(ToString::to_string));
        let known = pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/net/unix")).ok()).next();
        let known = known.unwrap_or_default();
        let paths = known.lines().filter_map(|line| line.split_whitespace().nth(7));
        paths.filter(|path| path.starts_with("/run/containerd/s/")).map(PathBuf::from).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let shims = self.shims();
        let sockets = self.shim_sockets(&shims);
        self.kill9();
        // The daemon may have started one in the meantime.
        shims.into_iter().chain(self.shims()).for_each(kill);
        for path in sockets.into_iter().chain(cni_results(&self.base.display().to_string())) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What containerd's libcni remembers of pods below a directory. The place cannot be configured, and only a DEL that
/// succeeds empties it.
pub(crate) fn cni_results(directory: &str) -> Vec<PathBuf> {
    let files = fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten().map(|file| file.path());
    files.filter(|file| fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("{directory}/")))).collect()
}

/// Unmounts everything below a directory, the latest first.
pub(crate) fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<&str> = points.filter(|at| Path::new(at).starts_with(directory)).collect();
    for at in below.into_iter().rev() {
        let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
    }
}

/// The last lines of a file.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `restrict_oom_score_adj`: without CAP_SYS_RESOURCE a sandbox cannot have the score that CRI asks for.
/// `netns_mounts_under_state_dir`: so that all that belongs to a node is below its directory.
fn configuration(version: Version, base: &Path) -> anyhow::Result<String> {
    let base = base.display();
    let common = "restrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n";
    let (number, runtime, bin, head) = match version {
        Version::V1_6 => {
            let cri = "io.containerd.grpc.v1.cri";
            (
                2,
                cri,
                format!("bin_dir = \"{base}/cni/bin\""),
                format!("[plugins.\"{cri}\"]\nsandbox_image = \"localhost/pause:1\"\n{common}"),
            )
        }
        Version::V2 | Version::V2WithUsers => {
            let (cri, images) = ("io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images");
            let pinned = format!("[plugins.\"{images}\".pinned_images]\nsandbox = \"localhost/pause:1\"\n");
            let bin = format!("bin_dirs = [\"{base}/cni/bin\"]");
            (3, cri, bin, format!("{pinned}[plugins.\"{cri}\"]\n{common}"))
        }
    };
    let runc = match version {
        Version::V1_6 | Version::V2 => String::new(),
        Version::V2WithUsers => format!("BinaryName = \"{}\"\n", programs::built("runc/runc")?.display()),
    };
    Ok(format!(
        "version = {number}\nroot = \"{base}/root\"\nstate = \"{base}/state\"\n\
         disabled_plugins = [\"io.containerd.nri.v1.nri\"]\n\
         [grpc]\naddress = \"{base}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{base}/opt\"\n{head}\
         [plugins.\"{runtime}\".cni]\n{bin}\nconf_dir = \"{base}/cni/conf\"\n\
         [plugins.\"{runtime}\".containerd]\ndefault_runtime_name = \"runc\"\n\
         [plugins.\"{runtime}\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"{runtime}\".containerd.runtimes.runc.options]\nRoot = \"{base}/runc\"\nSystemdCgroup = false\n{runc}"
    ))
}

/// Fills the CNI directories.
fn write_cni(cni: Cni, pod_cidr: &str, base: &Path) -> anyhow::Result<()> {
    let (bin, conf) = (base.join("cni/bin"), base.join("cni/conf"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&conf)?;
    if cni == Cni::ByAgent {
        // Nothing but our own: containerd runs a plugin of this name for every sandbox.
        link(&programs::workspace_binary("nodelet-cni")?, &bin.join("loopback"))?;
    } else {
        for plugin in ["bridge", "host-local", "portmap", "loopback"] {
            link(&programs::built(&format!("cni/{plugin}"))?, &bin.join(plugin))?;
        }
    }
    if cni != Cni::Bridge {
        link(&programs::workspace_binary("nodelet-cni")?, &bin.join("nodelet-cni"))?;
    }
    match cni {
        Cni::ByAgent => Ok(()),
        Cni::Nodelet => {
            let list = serde_json::json!({
                "cniVersion": "1.0.0",
                "name": "pods",
                "plugins": [{ "type": "nodelet-cni", "podCIDRs": [pod_cidr], "dataDir": base.join("cni/data") }],
            });
            Ok(fs::write(conf.join("10-pods.conflist"), serde_json::to_string_pretty(&list)?)?)
        }
        Cni::Bridge => {
            let list = serde_json::json!({
                "cniVersion": "1.0.0",
                "name": "pods",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cni0",
                        "isGateway": true,
                        "hairpinMode": true,
                        "ipam": {
                            "type": "host-local",
                            "dataDir": base.join("cni/data"),
                            "ranges": [[{ "subnet": pod_cidr }]],
                            "routes": [{ "dst": "0.0.0.0/0" }],
                        },
                    },
                    { "type": "portmap", "capabilities": { "portMappings": true }, "backend": "nftables" },
                ],
            });
            Ok(fs::write(conf.join("10-pods.conflist"), serde_json::to_string_pretty(&list)?)?)
        }
    }
}

fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    std::os::unix::fs::symlink(to, at).with_context(|| format!("link {}", at.display()))
}
