//! What the runtime knows: sandboxes, containers, images and reserved names, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use nodelet_proto::cri::{self, ContainerState, PodSandboxState};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;
use tonic::Status;

use super::log::LogFile;
use super::process::ProcessSignal;
use super::script::Script;

/// Labels and annotations as CRI has them.
type Strings = std::collections::HashMap<String, String>;

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) id: String,
    /// The name that it reserves.
    pub(super) name: String,
    pub(super) config: cri::PodSandboxConfig,
    pub(super) handler: String,
    pub(super) state: PodSandboxState,
    pub(super) created_at: i64,
    /// Empty with the host's network, and after the network was torn down.
    pub(super) ip: String,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) sandbox: String,
    pub(super) config: cri::ContainerConfig,
    pub(super) image_id: String,
    pub(super) created_at: i64,
    pub(super) run: Run,
    pub(super) resources: Option<cri::LinuxContainerResources>,
    pub(super) script: Script,
    pub(super) log: Arc<Mutex<LogFile>>,
}

/// Where a container is in its life.
#[derive(Debug)]
pub(super) enum Run {
    Created,
    Running { started_at: i64, process: UnboundedSender<ProcessSignal> },
    Exited { started_at: i64, finished_at: i64, code: i32, reason: String, message: String },
}

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) sandboxes: BTreeMap<String, Sandbox>,
    pub(super) containers: BTreeMap<String, Container>,
    /// Image by id.
    pub(super) images: BTreeMap<String, cri::Image>,
    /// Users of images, by normalized name; root where there is none.
    pub(super) image_users: BTreeMap<String, (Option<i64>, String)>,
    /// Behaviour of images, by normalized name.
    pub(super) scripts: BTreeMap<String, Script>,
    names: BTreeMap<String, String>,
    /// Hosts of 10.88.0.0/16 that sandboxes have.
    addresses: BTreeSet<u16>,
    made: u64,
}

impl Model {
    /// As after a wipe of the runtime's directories. Processes end, unseen.
    pub(super) fn forget_everything(&mut self) {
        // Numbering goes on, so that no id comes back.
        *self = Self { made: self.made, scripts: std::mem::take(&mut self.scripts), ..Self::default() };
    }

    /// An id like the runtime's: 64 hex digits, unlike every other from the first digit on.
    pub(super) fn new_id(&mut self) -> String {
        self.made += 1;
        hex(&self.made.to_be_bytes())
    }

    /// Takes a name for an id, or says who has it, in containerd's words.
    pub(super) fn reserve(&mut self, what: &str, name: &str, id: &str) -> Result<(), Status> {
        if let Some(owner) = self.names.get(name) {
            return Err(Status::unknown(format!(
                "failed to reserve {what} name \"{name}\": name \"{name}\" is reserved for \"{owner}\""
            )));
        }
        self.names.insert(name.to_owned(), id.to_owned());
        Ok(())
    }

    pub(super) fn release(&mut self, name: &str) {
        self.names.remove(name);
    }

    pub(super) fn take_address(&mut self) -> String {
        let free = (2..=u16::MAX).find(|host| !self.addresses.contains(host)).unwrap_or(u16::MAX);
        self.addresses.insert(free);
        format!("10.88.{}.{}", free >> 8, free & 0xff)
    }

    pub(super) fn free_address(&mut self, ip: &str) {
        let mut parts = ip.rsplit('.').filter_map(|part| part.parse::<u16>().ok());
        if let (Some(low), Some(high)) = (parts.next(), parts.next()) {
            self.addresses.remove(&(high << 8 | low));
        }
    }

    /// By id or by an unambiguous beginning of it.
    pub(super) fn sandbox(&self, id: &str) -> Result<&Sandbox, Status> {
        by_prefix(&self.sandboxes, id).ok_or_else(|| not_found("sandbox", id))
    }

    /// By id or by an unambiguous beginning of it.
    pub(super) fn container(&self, id: &str) -> Result<&Container, Status> {
        by_prefix(&self.containers, id).ok_or_else(|| not_found("container", id))
    }

    pub(super) fn container_mut(&mut self, id: &str) -> Option<&mut Container> {
        self.containers.get_mut(id)
    }

    pub(super) fn containers_of<'a>(&'a self, sandbox: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.values().filter(move |container| container.sandbox == sandbox)
    }

    pub(super) fn add_image(&mut self, name: &str) {
        let tag = normalized(name);
        let id = format!("sha256:{}", hex(tag.as_bytes()));
        let (uid, username) = self.image_users.get(&tag).cloned().unwrap_or((Some(0), String::new()));
        let image = cri::Image {
            id: id.clone(),
            repo_tags: vec![tag],
            size: 1 << 20,
            uid: uid.map(|value| cri::Int64Value { value }),
            username,
            ..Default::default()
        };
        self.images.insert(id, image);
    }

    /// By id, short or long name.
    pub(super) fn image(&self, reference: &str) -> Option<&cri::Image> {
        let name = normalized(reference);
        self.images.values().find(|image| {
            image.id == reference
                || image.id.strip_prefix("sha256:") == Some(reference)
                || image.repo_tags.contains(&name)
                || image.repo_digests.contains(&name)
        })
    }

    /// What to call the things that a call is about, so that faults can be aimed by name.
    pub(super) fn names_of(&self, id: &str) -> Vec<String> {
        let mut names = vec![id.to_owned()];
        if let Ok(container) = self.container(id) {
            names.extend(container.config.metadata.as_ref().map(|metadata| metadata.name.clone()));
            names.extend(self.sandbox(&container.sandbox).ok().map(Sandbox::pod_name));
        } else if let Ok(sandbox) = self.sandbox(id) {
            names.push(sandbox.pod_name());
        }
        names
    }
}

fn by_prefix<'a, T>(all: &'a BTreeMap<String, T>, id: &str) -> Option<&'a T> {
    if id.is_empty() {
        return None;
    }
    let mut found = all.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let first = found.next()?;
    (first.0 == id || found.next().is_none()).then_some(first.1)
}

fn not_found(what: &str, id: &str) -> Status {
    Status::not_found(format!("an error occurred when try to find {what} \"{id}\": not found"))
}

fn hex(seed: &[u8]) -> String {
    Sha256::digest(seed).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `busybox` is `docker.io/library/busybox:latest`, as containerd reads names.
pub(super) fn normalized(name: &str) -> String {
    if name.starts_with("sha256:") {
        return name.to_owned();
    }
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
        Some(_) => ("docker.io", name.to_owned()),
        None => ("docker.io", format!("library/{name}")),
    };
    let tagged = rest.contains('@') || rest.rsplit('/').next().is_some_and(|last| last.contains(':'));
    if tagged { format!("{host}/{rest}") } else { format!("{host}/{rest}:latest") }
}

/// Whether all wanted labels are there.
pub(super) fn selects(wanted: &Strings, labels: &Strings) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

impl Sandbox {
    pub(super) fn pod_name(&self) -> String {
        self.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default()
    }

    pub(super) fn uses_host_network(config: &cri::PodSandboxConfig) -> bool {
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = context.and_then(|context| context.namespace_options.as_ref());
        options.is_some_and(|options| options.network() == cri::NamespaceMode::Node)
    }

    pub(super) fn status(&self) -> cri::PodSandboxStatus {
        let context = self.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = context.and_then(|context| context.namespace_options.clone());
        cri::PodSandboxStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state as i32,
            created_at: self.created_at,
            network: Some(cri::PodSandboxNetworkStatus { ip: self.ip.clone(), additional_ips: Vec::new() }),
            linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options }) }),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }

    pub(super) fn listed(&self) -> cri::PodSandbox {
        cri::PodSandbox {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state as i32,
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            runtime_handler: self.handler.clone(),
        }
    }
}

impl Container {
    pub(super) fn state(&self) -> ContainerState {
        match self.run {
            Run::Created => ContainerState::ContainerCreated,
            Run::Running { .. } => ContainerState::ContainerRunning,
            Run::Exited { .. } => ContainerState::ContainerExited,
        }
    }

    /// Sends a signal to the process. False when there is none.
    pub(super) fn signal(&self, signal: ProcessSignal) -> bool {
        match &self.run {
            Run::Running { process, .. } => process.send(signal).is_ok(),
            Run::Created | Run::Exited { .. } => false,
        }
    }

    pub(super) fn status(&self) -> cri::ContainerStatus {
        let mut status = cri::ContainerStatus {
            id: self.id.clone(),
            metadata: self.config.metadata.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            image: self.config.image.clone(),
            image_ref: self.image_id.clone(),
            image_id: self.image_id.clone(),
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            mounts: self.config.mounts.clone(),
            log_path: super::shared::lock(&self.log).path(),
            resources: self
                .resources
                .clone()
                .map(|linux| cri::ContainerResources { linux: Some(linux), windows: None }),
            stop_signal: match self.config.stop_signal() {
                cri::Signal::RuntimeDefault => cri::Signal::Sigterm as i32,
                asked => asked as i32,
            },
            ..Default::default()
        };
        match &self.run {
            Run::Created => {}
            Run::Running { started_at, .. } => status.started_at = *started_at,
            Run::Exited { started_at, finished_at, code, reason, message } => {
                (status.started_at, status.finished_at, status.exit_code) = (*started_at, *finished_at, *code);
                (status.reason, status.message) = (reason.clone(), message.clone());
            }
        }
        status
    }

    pub(super) fn listed(&self) -> cri::Container {
        cri::Container {
            id: self.id.clone(),
            pod_sandbox_id: self.sandbox.clone(),
            metadata: self.config.metadata.clone(),
            image: self.config.image.clone(),
            image_ref: self.image_id.clone(),
            state: self.state() as i32,
            created_at: self.created_at,
            labels: self.config.labels.clone(),
            annotations: self.config.annotations.clone(),
            image_id: self.image_id.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_read_as_containerd_reads_them() {
        for (name, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("team/app:2", "docker.io/team/app:2"),
            ("localhost/pause:3", "localhost/pause:3"),
            ("registry.example:5000/a/b", "registry.example:5000/a/b:latest"),
        ] {
            assert_eq!(normalized(name), full);
        }
    }

    #[test]
    fn an_address_is_free_again_when_it_was_given_back() {
        let mut model = Model::default();
        let (first, second) = (model.take_address(), model.take_address());
        assert_eq!((first.as_str(), second.as_str()), ("10.88.0.2", "10.88.0.3"));
        model.free_address(&first);
        assert_eq!(model.take_address(), first);
    }
}
