//! What the container calls do.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use nodelet_proto::cri::{self, ContainerEventType, ContainerState, PodSandboxState};
use tokio::sync::mpsc;
use tonic::Status;

use super::events;
use super::faults::Stage;
use super::log::LogFile;
use super::model::{Container, Model, Run, normalized, selects};
use super::process::{self, ProcessSignal};
use super::script::Script;
use super::shared::{Rpc, Shared, lock};

pub(super) async fn create(
    shared: Arc<Shared>,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Status> {
    let config = request.config.unwrap_or_default();
    let Some(metadata) = config.metadata.clone() else {
        return Err(Status::unknown("container config must include metadata"));
    };
    let Some(pod) = request.sandbox_config.and_then(|sandbox| sandbox.metadata.map(|pod| (pod, sandbox.log_directory)))
    else {
        return Err(Status::unknown("pod sandbox config must include metadata"));
    };
    let (pod, log_directory) = pod;
    let name = format!("{}_{}_{}_{}_{}", metadata.name, pod.name, pod.namespace, pod.uid, metadata.attempt);
    let (sandbox, id) = shared.update(|model| {
        let sandbox = ready_sandbox(model, &request.pod_sandbox_id)?;
        let id = model.new_id();
        model.reserve("container", &name, &id).map(|()| (sandbox, id))
    })?;
    let reference = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    let made = async {
        shared.faults.strike(Rpc::CreateContainer, Stage::During, &[metadata.name, pod.name]).await?;
        shared.read(|model| model.image(&reference).map(|image| image.id.clone())).ok_or_else(|| {
            Status::not_found(format!("failed to resolve image \"{reference}\": image \"{reference}\": not found"))
        })
    };
    let image_id = match made.await {
        Ok(image_id) => image_id,
        Err(error) => {
            shared.update(|model| model.release(&name));
            return Err(error);
        }
    };
    let now = shared.now();
    shared.update(|model| {
        let script = script_of(model, &config, &reference);
        let log = Arc::new(Mutex::new(LogFile::at(&log_directory, &config.log_path)));
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let run = Run::Created;
        let made =
            Container { id: id.clone(), name, sandbox, config, image_id, created_at: now, run, resources, script, log };
        model.containers.insert(id.clone(), made);
    });
    announce(&shared, &id, ContainerEventType::ContainerCreatedEvent);
    Ok(cri::CreateContainerResponse { container_id: id })
}

fn ready_sandbox(model: &Model, id: &str) -> Result<String, Status> {
    let Ok(sandbox) = model.sandbox(id) else {
        return Err(Status::not_found(format!("failed to find sandbox id \"{id}\": not found")));
    };
    if sandbox.state != PodSandboxState::SandboxReady {
        return Err(Status::unknown(format!("sandbox container \"{id}\" is not running")));
    }
    Ok(sandbox.id.clone())
}

/// What the command carries, else what the image does, else the default.
fn script_of(model: &Model, config: &cri::ContainerConfig, image: &str) -> Script {
    let words: Vec<String> = config.command.iter().chain(&config.args).cloned().collect();
    Script::from_command(&words).or_else(|| model.scripts.get(&normalized(image)).cloned()).unwrap_or_default()
}

pub(super) async fn start(shared: Arc<Shared>, id: String) -> Result<cri::StartContainerResponse, Status> {
    let now = shared.now();
    let (signals_tx, signals_rx) = mpsc::unbounded_channel();
    let (id, script) = shared.update(|model| {
        let container = model.container(&id)?;
        let (id, sandbox) = (container.id.clone(), container.sandbox.clone());
        if container.state() != ContainerState::ContainerCreated {
            return Err(Status::unknown(format!(
                "failed to set starting state for container \"{id}\": container is in {} state",
                container.state().as_str_name()
            )));
        }
        ready_sandbox(model, &sandbox)?;
        let container = model.container_mut(&id).expect("it was found above, under the same lock");
        if let Err(error) = prepare(container) {
            let message = format!("failed to start containerd task \"{id}\": {error}");
            let reason = "StartError".to_owned();
            container.run =
                Run::Exited { started_at: 0, finished_at: now, code: 128, reason, message: message.clone() };
            return Err(Status::unknown(message));
        }
        container.run = Run::Running { started_at: now, process: signals_tx };
        Ok((id, container.script.clone()))
    })?;
    announce(&shared, &id, ContainerEventType::ContainerStartedEvent);
    tokio::spawn(process::run(Arc::clone(&shared), id, script, signals_rx));
    Ok(cri::StartContainerResponse {})
}

fn prepare(container: &Container) -> Result<(), String> {
    lock(&container.log).open().map_err(|error| format!("failed to create and open log file: {error}"))?;
    container.script.start_error.clone().map_or(Ok(()), Err)
}

/// SIGTERM, the grace, SIGKILL. Returns when the process has ended; containers that do not run are done already.
pub(super) async fn stop(shared: &Shared, id: &str, grace: Duration) {
    let kill_at_once = shared.read(|model| {
        let container = model.container(id).ok()?;
        Some(grace.is_zero() || container.config.stop_signal() == cri::Signal::Sigkill)
    });
    let Some(kill_at_once) = kill_at_once else { return };
    let ended = shared.until(|model| {
        let runs = model.container(id).is_ok_and(|found| found.state() == ContainerState::ContainerRunning);
        (!runs).then_some(())
    });
    tokio::pin!(ended);
    let signal = |signal| shared.read(|model| model.container(id).is_ok_and(|found| found.signal(signal)));
    if !kill_at_once {
        signal(ProcessSignal::Term);
        if tokio::time::timeout(grace, &mut ended).await.is_ok() {
            return;
        }
    }
    signal(ProcessSignal::Kill);
    ended.await;
}

/// Forgets a container, by force if it runs. One that is gone was removed.
pub(super) async fn remove(shared: Arc<Shared>, id: String) -> Result<cri::RemoveContainerResponse, Status> {
    let found = shared.read(|model| model.container(&id).ok().map(|found| found.id.clone()));
    let Some(id) = found else { return Ok(cri::RemoveContainerResponse {}) };
    stop(&shared, &id, Duration::ZERO).await;
    let now = shared.now();
    let event = shared.update(|model| {
        let container = model.containers.remove(&id)?;
        model.release(&container.name);
        Some(events::event(model, &id, &container.sandbox, ContainerEventType::ContainerDeletedEvent, now))
    });
    if let Some(event) = event {
        shared.events.publish(event);
    }
    Ok(cri::RemoveContainerResponse {})
}

pub(super) fn list(shared: &Shared, filter: Option<cri::ContainerFilter>) -> Vec<cri::Container> {
    let filter = filter.unwrap_or_default();
    let hidden = lock(&shared.hidden).clone();
    shared.read(|model| {
        let wanted = model.container(&filter.id).map_or(filter.id.clone(), |found| found.id.clone());
        let sandbox = filter.pod_sandbox_id.as_str();
        let sandbox = model.sandbox(sandbox).map_or(sandbox.to_owned(), |found| found.id.clone());
        let chosen = model.containers.values().filter(|container| {
            !hidden.contains(&container.id)
                && (wanted.is_empty() || container.id == wanted)
                && (sandbox.is_empty() || container.sandbox == sandbox)
                && filter.state.as_ref().is_none_or(|state| state.state == container.state() as i32)
                && selects(&filter.label_selector, &container.config.labels)
        });
        chosen.map(Container::listed).collect()
    })
}

pub(super) async fn exec(shared: Arc<Shared>, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, Status> {
    let id = shared.read(|model| {
        let container = model.container(&request.container_id)?;
        match container.state() {
            ContainerState::ContainerRunning => Ok(container.id.clone()),
            state => Err(Status::unknown(format!(
                "failed to exec in container: container is in {} state",
                state.as_str_name()
            ))),
        }
    })?;
    let answer = Arc::clone(&lock(&shared.exec));
    let script = Script::from_command(&request.cmd).unwrap_or_else(|| answer(&id, &request.cmd));
    if let Some(message) = script.start_error {
        return Err(Status::unknown(format!("failed to exec in container: failed to start exec: {message}")));
    }
    let ends = async {
        match script.run_ms {
            Some(time) => tokio::time::sleep(Duration::from_millis(time)).await,
            None => std::future::pending().await,
        }
    };
    if let Ok(timeout @ 1..) = u64::try_from(request.timeout) {
        let done = tokio::time::timeout(Duration::from_secs(timeout), ends).await;
        done.map_err(|_| {
            let text = format!("failed to exec in container: timeout {timeout}s exceeded: context deadline exceeded");
            Status::deadline_exceeded(text)
        })?;
    } else {
        ends.await;
    }
    let text = |lines: &[String]| lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>().into();
    let (stdout, stderr) = (text(&script.stdout), text(&script.stderr));
    Ok(cri::ExecSyncResponse { stdout, stderr, exit_code: script.exit_code })
}

fn announce(shared: &Shared, id: &str, kind: ContainerEventType) {
    let now = shared.now();
    let event = shared.read(|model| {
        let sandbox = model.container(id).ok()?.sandbox.clone();
        Some(events::event(model, id, &sandbox, kind, now))
    });
    if let Some(event) = event {
        shared.events.publish(event);
    }
}
