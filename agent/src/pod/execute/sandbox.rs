//! Creating a pod sandbox.

use std::time::Instant;

use super::{Context, Extra, Output, failure};
use crate::event::EventType;
use crate::metrics::METRICS;
use crate::metrics::cells::{DEFAULT, Histogram};
use crate::pod::action::Failure;
use crate::pod::facilities::IdRange;
use crate::pod::sandbox_config::{Inputs, log_directory_name, sandbox_config};
use crate::pod::start_slot::StartSlot;
use crate::pod::{dns, hosts, security, spec};
use nodelet_proto::cri;

fn refuse(message: String) -> Failure {
    Failure { reason: "FailedCreatePodSandBox", message, container: None }
}

/// The configuration of the pod's sandbox; container creation repeats it to the runtime.
pub(super) async fn config(
    context: &Context,
    attempt: u32,
    cgroup_parent: String,
) -> Result<cri::PodSandboxConfig, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let settings = &shared.settings;
    let host_resolver = read_resolv_conf(context).await?;
    let resolver = dns::resolver(pod, &settings.dns, &host_resolver);
    if context.sandbox.is_none() {
        for (reason, message) in resolver.warnings {
            shared.event(pod, None, EventType::Warning, reason, message);
        }
    }
    let hostname = hosts::hostname(pod, &settings.dns.cluster_domain).map_err(refuse)?;
    let (resources, overhead) = shared.facilities.sandbox_resources(pod);
    let users = users(context).await.map_err(refuse)?;
    let inputs = Inputs {
        attempt,
        hostname,
        dns: resolver.config,
        log_directory: settings.log_dir.join(log_directory_name(pod)).to_string_lossy().into_owned(),
        cgroup_parent,
        resources,
        overhead,
        users,
        port_mappings: settings.port_mappings,
    };
    sandbox_config(pod, inputs).map_err(|error| refuse(error.to_string()))
}

/// The ids of a pod with its own user namespace; it has them from the first start to its end.
pub(super) async fn users(context: &Context) -> Result<Option<IdRange>, String> {
    if !security::has_own_users(&context.pod) {
        return Ok(None);
    }
    context.shared.facilities.user_namespace(&context.uid).await.map(Some)
}

/// The runtime handler of the pod's RuntimeClass; empty is the default.
pub(super) async fn handler(context: &Context) -> Result<String, String> {
    match spec::spec(&context.pod).runtime_class_name.as_deref().filter(|class| !class.is_empty()) {
        Some(class) => context.shared.objects.runtime_handler(class).await.map_err(|error| error.to_string()),
        None => Ok(String::new()),
    }
}

async fn read_resolv_conf(context: &Context) -> Result<dns::HostResolver, Failure> {
    let path = &context.shared.settings.resolv_conf;
    if path.as_os_str().is_empty() {
        return Ok(dns::HostResolver::disabled(&context.shared.host_ips.load()));
    }
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Ok(dns::parse_resolv_conf(&text)),
        Err(error) => Err(refuse(format!("cannot read resolvConf {}: {error}", path.display()))),
    }
}

/// Creates the pod's cgroup and log directory, and runs a sandbox.
pub(super) async fn create(context: &Context, attempt: u32) -> (Result<Output, Failure>, Extra) {
    let slots = context.shared.start_slots.clone();
    let Ok(slot) = slots.acquire_owned().await else {
        return (Err(refuse("the agent is stopping".into())), Extra::Nothing);
    };
    METRICS.pods.started.increment();
    let slot = StartSlot::hold(slot);
    let result = run(context, attempt).await;
    if let Err(failed) = &result {
        METRICS.pods.start_errors.increment();
        let text = format!("Failed to create pod sandbox: {}", failed.message);
        context.shared.event(&context.pod, None, EventType::Warning, "FailedCreatePodSandBox", text);
        return (result, Extra::Nothing);
    }
    (result, Extra::Slot(slot))
}

async fn run(context: &Context, attempt: u32) -> Result<Output, Failure> {
    let (shared, pod) = (&context.shared, &context.pod);
    let handler = handler(context).await.map_err(refuse)?;
    security::check_runtime(pod, &handler, shared.facilities.runtime_features(&handler))
        .map_err(|error| refuse(error.to_string()))?;
    let cgroup_parent = shared.facilities.ensure_cgroup(pod).await.map_err(refuse)?;
    let config = config(context, attempt, cgroup_parent).await?;
    tokio::fs::create_dir_all(&config.log_directory)
        .await
        .map_err(|error| refuse(format!("create log directory {}: {error}", config.log_directory)))?;
    let began = Instant::now();
    let result = shared.runtime.run_sandbox(config, handler.clone()).await;
    let make = || Histogram::new(&DEFAULT);
    METRICS.sandbox_duration.with([&handler], make, |duration| duration.observe(began.elapsed()));
    if result.is_err() {
        METRICS.sandbox_errors.increment([&handler]);
    }
    let id = match result {
        Ok(id) => id,
        Err(error) => return adopt(context, attempt, failure("FailedCreatePodSandBox", &error)).await,
    };
    let view = shared.runtime.sandbox_status(&id).await.map_err(|e| failure("FailedPodSandBoxStatus", &e))?;
    if !spec::host_network(pod) && view.ips.is_empty() {
        tracing::warn!(pod = %spec::key(pod), sandbox = %id, "the sandbox has no address");
    }
    Ok(Output::Sandbox(view))
}

/// A create that timed out, or whose answer was lost with an earlier agent, may have made the sandbox after all; its
/// name then stays reserved. It is found by its attempt number and used.
async fn adopt(context: &Context, attempt: u32, failed: Failure) -> Result<Output, Failure> {
    let Ok(runtime) = context.shared.runtime.inspect_pod(&context.uid, &context.known).await else {
        return Err(failed);
    };
    match runtime.sandboxes.into_iter().find(|s| s.attempt == attempt && s.ready) {
        Some(sandbox) => Ok(Output::Sandbox(sandbox)),
        None => Err(failed),
    }
}
