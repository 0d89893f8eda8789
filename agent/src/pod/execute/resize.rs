//! Putting a resize into effect.

use super::{Context, Output, failure};
use crate::pod::action::Failure;
use crate::pod::allocation::ResourceInfo;
use crate::pod::resize::steps::{self, Running, Shrinking, Step};
use crate::pod::spec::{self, Role};

const REASON: &str = "ResizeError";

fn failed(message: String) -> Failure {
    Failure { reason: REASON, message, container: None }
}

/// Brings the pod's cgroup and its running containers to what was allocated, and records each step when it is done.
pub(super) async fn resize(context: &Context) -> Result<Output, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let Some(actuated) = shared.actuated.get(&context.uid) else { return Ok(Output::Resized(Vec::new())) };
    let mut actuated = ResourceInfo::clone(&actuated);
    let allocated = ResourceInfo::of(pod);
    let current = shared.facilities.pod_cgroup(pod).await.map_err(failed)?;
    let desired = shared.facilities.pod_values(pod);
    let shrinking = steps::shrinking(pod, &actuated, &context.running, current, &desired);
    check(context, &shrinking, current.memory_usage).await?;
    let mut knows_sandboxes = true;
    for step in steps::steps(pod, &actuated, &context.running, current, &desired) {
        match step {
            Step::Pod(values) => {
                if knows_sandboxes {
                    knows_sandboxes = tell_sandbox(context).await?;
                }
                shared.facilities.write_pod_cgroup(pod, values).await.map_err(failed)?;
            }
            Step::Container { container, spec, resource } => {
                let resources = shared.facilities.container_resources(pod, &spec);
                let updated = shared.runtime.update_container(&container.id, resources).await;
                updated.map_err(|error| failure(REASON, &error))?;
                actuated.take(&container.name, resource, &allocated);
                context.record(&actuated);
            }
            Step::PodLevel(resource) => {
                actuated.take_pod_level(resource, &allocated);
                context.record(&actuated);
            }
        }
    }
    // What does not run is started with what it was allocated.
    let absent = spec::roles(pod)
        .filter(|(name, role)| *role != Role::Ephemeral && context.running.iter().all(|running| running.name != *name));
    for (name, _) in absent {
        actuated.take_container(name, &allocated);
    }
    context.record(&actuated);
    look(context).await
}

/// The runtime may refuse, and then nothing is changed. Answers whether it knows the call.
async fn tell_sandbox(context: &Context) -> Result<bool, Failure> {
    let Some(sandbox) = &context.sandbox else { return Ok(false) };
    let (resources, overhead) = context.shared.facilities.sandbox_resources(&context.pod);
    let told = context.shared.runtime.update_sandbox(&sandbox.id, overhead, resources).await;
    told.map_err(|error| {
        let id = &sandbox.id;
        failed(format!("updatePodSandboxResources failed for sanboxID \"{id}\": {}", error.text()))
    })
}

/// Refuses a limit that is exceeded already: the kernel would refuse it, too, or kill.
async fn check(context: &Context, shrinking: &Shrinking, pod_usage: u64) -> Result<(), Failure> {
    let mut usages = Vec::new();
    for (Running { id, .. }, _) in &shrinking.containers {
        usages.push(context.shared.runtime.memory_usage(id).await.ok().flatten());
    }
    match steps::refusal(shrinking, pod_usage, &usages) {
        Some(message) => Err(failed(message)),
        None => Ok(()),
    }
}

/// What the runtime says of the containers now.
async fn look(context: &Context) -> Result<Output, Failure> {
    let mut views = Vec::new();
    for container in &context.running {
        let Some(sandbox) = &context.sandbox else { continue };
        match context.shared.runtime.container_status(&container.id, sandbox.id.as_str()).await {
            Ok(view) if view.is_running() => views.push(view),
            // One that ended meanwhile is seen by its event.
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(failure(REASON, &error)),
        }
    }
    Ok(Output::Resized(views))
}
