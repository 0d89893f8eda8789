//! What the sandbox calls do.

use std::sync::Arc;
use std::time::Duration;

use nodelet_proto::cri::{self, ContainerEventType, PodSandboxState};
use tonic::Status;

use super::containers;
use super::events;
use super::faults::Stage;
use super::model::{Sandbox, selects};
use super::shared::{Rpc, Shared, lock};

pub(super) async fn run(
    shared: Arc<Shared>,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Status> {
    let config = request.config.unwrap_or_default();
    let Some(metadata) = config.metadata.clone() else {
        return Err(Status::unknown("sandbox config must include metadata"));
    };
    let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
    let id = shared.update(|model| {
        let id = model.new_id();
        model.reserve("sandbox", &name, &id).map(|()| id)
    })?;
    let made = async {
        shared.faults.strike(Rpc::RunPodSandbox, Stage::During, &[metadata.name]).await?;
        match &lock(&shared.options).network_failure {
            Some(message) if !Sandbox::uses_host_network(&config) => {
                Err(Status::unknown(format!("failed to setup network for sandbox \"{id}\": {message}")))
            }
            _ => Ok(()),
        }
    };
    if let Err(error) = made.await {
        shared.update(|model| model.release(&name));
        return Err(error);
    }
    let now = shared.now();
    shared.update(|model| {
        let ip = if Sandbox::uses_host_network(&config) { String::new() } else { model.take_address() };
        let (state, handler) = (PodSandboxState::SandboxReady, request.runtime_handler);
        let sandbox = Sandbox { id: id.clone(), name, config, handler, state, created_at: now, ip };
        model.sandboxes.insert(id.clone(), sandbox);
    });
    announce(&shared, &id, ContainerEventType::ContainerCreatedEvent);
    announce(&shared, &id, ContainerEventType::ContainerStartedEvent);
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
}

/// Kills the containers, then the sandbox. A sandbox that is gone was stopped.
pub(super) async fn stop(shared: Arc<Shared>, id: String) -> Result<cri::StopPodSandboxResponse, Status> {
    let Some(id) = known(&shared, &id) else { return Ok(cri::StopPodSandboxResponse {}) };
    for container in container_ids(&shared, &id) {
        containers::stop(&shared, &container, Duration::ZERO).await;
    }
    lose(&shared, &id);
    shared.update(|model| {
        let Some(sandbox) = model.sandboxes.get_mut(&id) else { return };
        let ip = std::mem::take(&mut sandbox.ip);
        model.free_address(&ip);
    });
    Ok(cri::StopPodSandboxResponse {})
}

/// The sandbox's process ends. True when it was ready.
pub(super) fn lose(shared: &Shared, id: &str) -> bool {
    let was_ready = shared.update(|model| match model.sandboxes.get_mut(id) {
        Some(sandbox) if sandbox.state == PodSandboxState::SandboxReady => {
            sandbox.state = PodSandboxState::SandboxNotready;
            true
        }
        _ => false,
    });
    if was_ready {
        announce(shared, id, ContainerEventType::ContainerStoppedEvent);
    }
    was_ready
}

pub(super) async fn remove(shared: Arc<Shared>, id: String) -> Result<cri::RemovePodSandboxResponse, Status> {
    let Some(id) = known(&shared, &id) else { return Ok(cri::RemovePodSandboxResponse {}) };
    stop(Arc::clone(&shared), id.clone()).await?;
    for container in container_ids(&shared, &id) {
        containers::remove(Arc::clone(&shared), container).await?;
    }
    let now = shared.now();
    let event = shared.update(|model| {
        let sandbox = model.sandboxes.remove(&id)?;
        model.release(&sandbox.name);
        let mut event = events::event(model, &id, &id, ContainerEventType::ContainerDeletedEvent, now);
        event.pod_sandbox_status = Some(sandbox.status());
        Some(event)
    });
    if let Some(event) = event {
        shared.events.publish(event);
    }
    Ok(cri::RemovePodSandboxResponse {})
}

pub(super) fn list(shared: &Shared, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    let filter = filter.unwrap_or_default();
    let hidden = lock(&shared.hidden).clone();
    shared.read(|model| {
        let wanted = model.sandbox(&filter.id).map_or(filter.id.clone(), |found| found.id.clone());
        let chosen = model.sandboxes.values().filter(|sandbox| {
            !hidden.contains(&sandbox.id)
                && (wanted.is_empty() || sandbox.id == wanted)
                && filter.state.as_ref().is_none_or(|state| state.state == sandbox.state as i32)
                && selects(&filter.label_selector, &sandbox.config.labels)
        });
        chosen.map(Sandbox::listed).collect()
    })
}

fn known(shared: &Shared, id: &str) -> Option<String> {
    shared.read(|model| model.sandbox(id).ok().map(|sandbox| sandbox.id.clone()))
}

fn container_ids(shared: &Shared, sandbox: &str) -> Vec<String> {
    shared.read(|model| model.containers_of(sandbox).map(|container| container.id.clone()).collect())
}

fn announce(shared: &Shared, id: &str, kind: ContainerEventType) {
    let now = shared.now();
    let event = shared.read(|model| events::event(model, id, id, kind, now));
    shared.events.publish(event);
}
