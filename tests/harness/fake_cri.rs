//! A container runtime in memory: a gRPC server on a unix socket that answers CRI as containerd does.
//!
//! Tests of the agent use it where they need what a real runtime does not do on request: a call that hangs, an answer that
//! is lost, an event that never comes, a list with holes, a runtime that goes away. `tests/contract` runs the same cases
//! against this fake and against containerd, so that it cannot drift from what it stands for.
//!
//! ```text
//!   agent ──gRPC──► socket.rs ──► runtime_service.rs / image_service.rs
//!                                        │ each call: faults (before, during, after), recorded in calls()
//!                                        ▼
//!                                 sandboxes.rs, containers.rs ──► model.rs (plain data) ──► events.rs ──► streams
//!                                        │ StartContainer                ▲ exit
//!                                        └────────► process.rs ──────────┘ writes the CRI log
//! ```
//!
//! What a container does is a [`Script`]: carried in its command (so that the same command runs under a real shell), set for
//! an image, or the default (runs until SIGTERM). All waiting is tokio time, so a test with paused time does not wait.
//! Processes belong to the fake and not to its server: they go on while the runtime is [stopped](FakeCri::stop).
//!
//! It does not run programs, mount, or make namespaces; exec, attach and port-forward streams are refused as
//! unimplemented, and so are the RPCs that containerd refuses.

mod containers;
mod events;
mod faults;
mod holes;
mod image_service;
mod log;
mod model;
mod process;
mod runtime_service;
mod sandboxes;
mod script;
mod shared;
mod socket;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nodelet_proto::cri;

pub use events::EventFault;
pub use faults::{Fault, Gate, Stage};
pub use holes::Lack;
pub use log::LogLine;
pub use script::{OnTerm, Script};
pub use shared::{Call, Rpc};

use process::ProcessSignal;
use shared::Shared;

/// What the fake says about itself. Change it while it runs with [`FakeCri::configure`].
#[derive(Clone, Debug)]
pub struct Options {
    /// `runtime_version` of Version.
    pub version: String,
    /// Whether GetContainerEvents exists; containerd has it from 1.7.
    pub has_events: bool,
    /// The answer of RuntimeConfig; `None` refuses the call as containerd 1.x does.
    pub cgroup_driver: Option<cri::CgroupDriver>,
    /// The NetworkReady condition; `Some` holds the message of a network that is not ready.
    pub network_failure: Option<String>,
    /// Whether a pull of an image that was never added succeeds.
    pub any_image_can_be_pulled: bool,
    /// Images that the registry gives only to these users: image as it is pulled, user and password.
    pub private_images: Vec<(String, String, String)>,
}

impl Default for Options {
    /// A healthy containerd 2.x.
    fn default() -> Self {
        Self {
            version: "v2.4.2".to_owned(),
            has_events: true,
            cgroup_driver: Some(cri::CgroupDriver::Cgroupfs),
            network_failure: None,
            any_image_can_be_pulled: true,
            private_images: Vec::new(),
        }
    }
}

/// What a runtime remembers when it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Everything; containers went on meanwhile.
    Kept,
    /// Nothing: no sandbox, container or image (a wiped state directory after a reboot).
    Lost,
}

/// The fake and the handle by which a test steers it. The server stops when this is dropped.
#[derive(Debug)]
pub struct FakeCri {
    shared: Arc<Shared>,
    path: PathBuf,
    server: Option<socket::Server>,
}

impl FakeCri {
    /// Listens on `path`, which must not exist yet, with [`Options::default`].
    pub async fn start(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::start_with(path, Options::default()).await
    }

    /// Listens on `path` with the given answers.
    pub async fn start_with(path: impl AsRef<Path>, options: Options) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options));
        let path = path.as_ref().to_path_buf();
        let server = Some(socket::Server::start(&path, Arc::clone(&shared))?);
        Ok(Self { shared, path, server })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket as `--container-runtime-endpoint` wants it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// Cuts every connection and removes the socket. Containers go on.
    pub fn stop(&mut self) {
        if self.server.take().is_some() {
            // Missing is fine: a test may have removed it to see what the agent does.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Listens again after [`stop`](Self::stop), or stops and listens.
    pub fn restart(&mut self, memory: Memory) -> io::Result<()> {
        self.stop();
        if memory == Memory::Lost {
            self.shared.update(model::Model::forget_everything);
        }
        self.server = Some(socket::Server::start(&self.path, Arc::clone(&self.shared))?);
        Ok(())
    }

    /// Changes what the fake says about itself.
    pub fn configure(&self, change: impl FnOnce(&mut Options)) {
        change(&mut shared::lock(&self.shared.options));
    }

    /// Makes calls of `rpc` go wrong. Faults of one RPC are tried in the order of injection.
    pub fn inject(&self, rpc: Rpc, fault: Fault) {
        self.shared.faults.inject(rpc, fault);
    }

    /// Removes all faults of `rpc`. Calls that hang go on hanging until their gate is released.
    pub fn heal(&self, rpc: Rpc) {
        self.shared.faults.heal(rpc);
    }

    /// Leaves these sandboxes, containers or images out of every list: a partial answer.
    pub fn hide_from_lists(&self, ids: impl IntoIterator<Item = String>) {
        shared::lock(&self.shared.hidden).extend(ids);
    }

    /// Lists are complete again.
    pub fn show_all_in_lists(&self) {
        shared::lock(&self.shared.hidden).clear();
    }

    /// Makes the next events go wrong.
    pub fn disturb_events(&self, fault: EventFault) {
        self.shared.events.disturb(fault);
    }

    /// Ends every open event stream with an error, as a restarting runtime does.
    pub fn break_event_streams(&self) {
        self.shared.events.break_streams();
    }

    /// Containers of `image` behave so, unless their command carries a script.
    pub fn script_for_image(&self, image: &str, script: Script) {
        let name = model::normalized(image);
        self.shared.update(|model| model.scripts.insert(name, script));
    }

    /// What ExecSync answers for commands that carry no script: the function gets container id and command.
    pub fn answer_exec(&self, answer: impl Fn(&str, &[String]) -> Script + Send + Sync + 'static) {
        *shared::lock(&self.shared.exec) = Arc::new(answer);
    }

    /// Puts an image into the store, as if pulled or imported.
    pub fn add_image(&self, name: &str) {
        self.shared.update(|model| model.add_image(name));
    }

    /// The user that an image names from the next time on that it is pulled or added.
    pub fn set_image_user(&self, name: &str, uid: Option<i64>, username: &str) {
        let name = model::normalized(name);
        self.shared.update(|model| model.image_users.insert(name, (uid, username.to_owned())));
    }

    /// Lets the first process of a running container end by itself. False when it does not run.
    pub fn exit(&self, container: &str, code: i32) -> bool {
        self.signal(container, ProcessSignal::Exit { code, reason: None })
    }

    /// Lets the kernel kill a running container for its memory: exit code 137, reason OOMKilled.
    pub fn oom_kill(&self, container: &str) -> bool {
        self.signal(container, ProcessSignal::Exit { code: 137, reason: Some("OOMKilled") })
    }

    /// Lets a running container write one line.
    pub fn print(&self, container: &str, line: LogLine) -> bool {
        self.signal(container, ProcessSignal::Print(line))
    }

    /// Lets the sandbox's own process die: the sandbox is not ready, its containers go on.
    pub fn kill_sandbox(&self, sandbox: &str) -> bool {
        sandboxes::lose(&self.shared, sandbox)
    }

    /// Every sandbox is ready and without an address from now on, as after a restart that lost the network's results.
    pub fn forget_addresses(&self) {
        self.shared.update(|model| model.sandboxes.values_mut().for_each(|sandbox| sandbox.ip.clear()));
    }

    fn signal(&self, container: &str, signal: ProcessSignal) -> bool {
        self.shared.read(|model| model.container(container).is_ok_and(|found| found.signal(signal)))
    }

    /// All sandboxes, as PodSandboxStatus would tell them.
    pub fn sandboxes(&self) -> Vec<cri::PodSandboxStatus> {
        self.shared.read(|model| model.sandboxes.values().map(model::Sandbox::status).collect())
    }

    /// All containers, as ContainerStatus would tell them.
    pub fn containers(&self) -> Vec<cri::ContainerStatus> {
        self.shared.read(|model| model.containers.values().map(model::Container::status).collect())
    }

    /// The configurations that all containers were made with.
    pub fn container_configs(&self) -> Vec<cri::ContainerConfig> {
        self.shared.read(|model| model.containers.values().map(|container| container.config.clone()).collect())
    }

    /// Every call since the start (or [`forget_calls`](Self::forget_calls)), in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        shared::lock(&self.shared.calls).clone()
    }

    /// How often `rpc` was called.
    pub fn count(&self, rpc: Rpc) -> usize {
        shared::lock(&self.shared.calls).iter().filter(|call| call.rpc == rpc).count()
    }

    /// Starts the record of calls anew.
    pub fn forget_calls(&self) {
        shared::lock(&self.shared.calls).clear();
    }

    /// Waits until `found` says yes to the state of the fake, at most `within`. Wakes on changes; does not poll.
    pub async fn wait_until(&self, within: Duration, found: impl Fn(&Self) -> bool) -> bool {
        let mut changes = self.shared.changes();
        let waiting = async {
            while !found(self) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, waiting).await.is_ok() && found(self)
    }
}

impl Drop for FakeCri {
    fn drop(&mut self) {
        self.stop();
    }
}
