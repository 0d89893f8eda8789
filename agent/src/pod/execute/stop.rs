//! Stopping containers and removing what a pod leaves.

use std::time::Duration;

use tokio::time::Instant;

use super::{Context, Output, container, failure, hooks, message};
use crate::event::EventType;
use crate::ids::ContainerId;
use crate::logs::kept;
use crate::pod::action::{Failure, KillReason};
use crate::pod::sandbox_config::log_directory_name;
use crate::pod::shared::{Settings, now};
use crate::pod::spec;

/// Least time that a container has after its preStop hook, however long that took.
const MIN_GRACE_SECONDS: i64 = 2;

/// A stop of one container.
pub(super) struct Stop<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// Its name.
    pub name: &'a str,
    /// Seconds between TERM and KILL, hook included.
    pub grace_seconds: i64,
    /// Why.
    pub reason: &'a KillReason,
}

/// Tells that a container is to stop and runs its preStop hook; answers the seconds that it took.
pub(super) async fn announce(context: &Context, stop: &Stop<'_>) -> i64 {
    let (shared, pod) = (&context.shared, &context.pod);
    let is_init = spec::spec(pod).init_containers.iter().flatten().any(|c| c.name == stop.name);
    shared.event(pod, Some(stop.name), EventType::Normal, "Killing", stop.reason.text(stop.name, is_init));
    if matches!(stop.reason, KillReason::PodTerminating) {
        shared.sink.left(&context.uid).await;
    }
    pre_stop(context, stop.id, stop.name, stop.grace_seconds).await
}

/// Announces a stop if that has not been done, and stops a container within its grace period.
pub(super) async fn kill(context: &Context, stop: &Stop<'_>, is_announced: bool) -> Result<Output, Failure> {
    let shared = &context.shared;
    let (id, name) = (stop.id, stop.name);
    let hook_seconds = if is_announced { 0 } else { announce(context, stop).await };
    let grace = after_hook(stop.grace_seconds, hook_seconds);
    shared.runtime.stop_container(id, grace).await.map_err(|e| failure("FailedKillPod", &e))?;
    let sandbox = context.stopping.as_ref().map_or("", |c| c.sandbox.as_str());
    match shared.runtime.container_status(id, sandbox).await {
        // The answer to the stop is no proof; without one it is tried again, after a pause.
        Ok(view) if view.may_run() => Err(Failure {
            reason: "FailedKillPod",
            message: format!("container {name} still runs after the runtime has stopped it"),
            container: None,
        }),
        Ok(view) => Ok(Output::Container(Box::new(message::with_message(view).await))),
        Err(error) if error.is_not_found() => Ok(Output::ContainerRemoved(id.clone())),
        Err(error) => Err(failure("FailedKillPod", &error)),
    }
}

/// Seconds between TERM and KILL when the preStop hook has taken so many of the grace period. As under kubelet every container
/// gets its moment, whatever the grace period and the hook.
fn after_hook(grace_seconds: i64, hook_seconds: i64) -> i64 {
    (grace_seconds - hook_seconds).max(MIN_GRACE_SECONDS)
}

/// Runs the preStop hook, at most for the grace period; answers the seconds that it took.
async fn pre_stop(context: &Context, id: &ContainerId, name: &str, grace_seconds: i64) -> i64 {
    let Some(found) = spec::find(&context.pod, name) else { return 0 };
    let Some(hook) = found.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()) else { return 0 };
    if grace_seconds <= 0 {
        return 0;
    }
    let began = Instant::now();
    let limit = Duration::from_secs(grace_seconds.unsigned_abs());
    let outcome = tokio::time::timeout(limit, hooks::run(context, &found.container, &hook, id)).await;
    let pod = spec::key(&context.pod);
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::info!(%pod, container = name, %error, "preStop hook failed");
            // What the hook has printed may be secret, and more people read events than pods.
            let text = "PreStopHook failed".to_owned();
            context.shared.event(&context.pod, Some(name), EventType::Warning, "FailedPreStopHook", text);
        }
        Err(_) => {
            tracing::info!(%pod, container = name, grace_seconds, "preStop hook did not end within the grace period")
        }
    }
    i64::try_from(began.elapsed().as_secs()).unwrap_or(i64::MAX)
}

/// Removes a dead container and its log files, of which each attempt has its own.
pub(super) async fn remove_container(context: &Context, id: ContainerId) -> Result<Output, Failure> {
    context.shared.runtime.remove_container(&id).await.map_err(|e| failure("FailedSync", &e))?;
    if let Some(view) = &context.stopping {
        container::unlink_log(context, &view.name, &id).await;
        if !view.log_path.is_empty() {
            let _ = tokio::fs::remove_file(&view.log_path).await;
        }
    }
    Ok(Output::ContainerRemoved(id))
}

/// Removes a dead container whose log stays, with its link: the pod starts over.
pub(super) async fn forget_container(context: &Context, id: ContainerId) -> Result<Output, Failure> {
    context.shared.runtime.remove_container(&id).await.map_err(|e| failure("FailedSync", &e))?;
    Ok(Output::ContainerRemoved(id))
}

/// Removes volumes, then the cgroup.
pub(super) async fn release(context: &Context) -> Result<Output, Failure> {
    let failed = |message: String| Failure { reason: "FailedKillPod", message, container: None };
    let (shared, pod) = (&context.shared, &context.pod);
    let volumes = shared.facilities.remove_volumes(&context.uid).await;
    // The cgroup goes also when a volume does not: they have nothing to do with each other.
    let cgroup = shared.facilities.remove_cgroup(pod).await;
    volumes.map_err(failed)?;
    cgroup.map_err(failed)?;
    shared.objects.unregister(&context.uid);
    Ok(Output::Done)
}

/// Removes the pod's log directory and the links to its logs.
pub(super) async fn remove_logs(context: &Context) -> Result<Output, Failure> {
    let removed = remove_log_directory(&context.shared.settings, &log_directory_name(&context.pod)).await;
    removed.map(|()| Output::Done).map_err(|message| Failure { reason: "FailedSync", message, container: None })
}

/// Takes a pod's log directory away by its name, `NAMESPACE_NAME_UID`, and the links to its logs. The last logs are kept for a
/// while. Idempotent.
pub async fn remove_log_directory(settings: &Settings, name: &str) -> Result<(), String> {
    let directory = settings.log_dir.join(name);
    let (links, keep) = (settings.container_links.clone(), settings.kept_logs.clone());
    let mut parts = name.split('_');
    let (namespace, pod) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let prefix = format!("{pod}_{namespace}_");
    let removed = tokio::task::spawn_blocking(move || {
        if let Some(links) = links {
            remove_links(&links, &prefix, &directory);
        }
        kept::execute::put(&directory, &keep, &kept::LIMITS, now())
            .map_err(|error| format!("remove log directory {}: {error}", directory.display()))
    });
    removed.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Removes links that point into `directory`; a pod of the same name may have links of its own.
fn remove_links(links: &std::path::Path, prefix: &str, directory: &std::path::Path) {
    for entry in std::fs::read_dir(links).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(prefix)
            && std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(directory));
        if ours {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_has_two_seconds_after_term_whatever_its_grace_and_hook() {
        let table = [((30, 0), 30), ((30, 12), 18), ((30, 30), 2), ((1, 0), 2), ((0, 0), 2), ((5, 60), 2)];
        for ((grace, hook), left) in table {
            assert_eq!(after_hook(grace, hook), left, "{grace} s with a hook of {hook} s");
        }
    }
}
