//! Lifecycle hooks: postStart and preStop handlers.
//!
//! As under kubelet any answer to an HTTP hook is a success, and one that expects TLS is asked again without it when the server
//! speaks plain HTTP. Source: `pkg/kubelet/lifecycle/handlers.go` of k8s.io/kubernetes v1.37.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler};

use super::Context;
use crate::event::EventType;
use crate::ids::ContainerId;
use crate::metrics::METRICS;
use crate::pod::spec;
use crate::probe::{NO_TLS, Page, fetch, resolve_port};

/// kubelet's, which servers of hooks may look for.
const USER_AGENT: &str = "kube-lifecycle/1.37";

/// Longest that a hook without a limit of its own may take; StopContainer and the start both wait for it.
const LIMIT: Duration = Duration::from_secs(3600);

/// Runs a handler; the error is kubelet's text for it, with what the hook has printed.
pub(super) async fn run(
    context: &Context,
    container: &Container,
    handler: &LifecycleHandler,
    id: &ContainerId,
) -> Result<(), String> {
    let key = spec::key(&context.pod);
    let place = format!("Container \"{}\" in Pod \"{}_{}({})\"", container.name, key.name, key.namespace, context.uid);
    if let Some(action) = &handler.exec {
        return exec(context, action, id).await.map_err(|(error, output)| {
            let command = action.command.as_deref().unwrap_or_default().join(" ");
            format!("Exec lifecycle hook ([{command}]) for {place} failed - error: {error}, message: {output:?}")
        });
    }
    if let Some(action) = &handler.http_get {
        let path = action.path.as_deref().unwrap_or_default();
        return http_get(context, container, action)
            .await
            .map_err(|error| format!("HTTP lifecycle hook ({path}) for {place} failed - error: {error}"));
    }
    if let Some(sleep) = &handler.sleep {
        let asleep = Asleep;
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        std::mem::forget(asleep);
        return Ok(());
    }
    // The API keeps tcpSocket for compatibility and documents that such hooks fail.
    Err("Cannot run handler: invalid handler: expected one of exec, httpGet, sleep".to_owned())
}

/// A sleep that has not come to its end. Who gives up waiting drops it.
struct Asleep;

impl Drop for Asleep {
    fn drop(&mut self) {
        METRICS.pods.sleeps_cut_short.increment();
    }
}

/// Runs a command; the error has what the command printed beside it.
async fn exec(context: &Context, action: &ExecAction, id: &ContainerId) -> Result<(), (String, String)> {
    let command = action.command.clone().unwrap_or_default();
    let done = context.shared.runtime.exec(id, command.clone(), LIMIT).await;
    let done = done.map_err(|error| (error.text(), String::new()))?;
    if done.exit_code == 0 {
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let error = format!("command '{}' exited with {}: {}", command.join(" "), done.exit_code, text(&done.stderr));
    Err((error, text(&[done.stdout, done.stderr].concat())))
}

async fn http_get(context: &Context, container: &Container, action: &HTTPGetAction) -> Result<(), String> {
    let host = match action.host.as_deref().filter(|host| !host.is_empty()) {
        Some(host) => host.to_owned(),
        None => {
            context.pod_ips.first().cloned().ok_or("failed to find networking container: the pod has no address")?
        }
    };
    let mut headers: Vec<(String, String)> =
        action.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone())).collect();
    let is_https = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let port = resolve_port(&action.port, container)?;
    let page = |scheme| Page { scheme, host: host.clone(), port, path: action.path.as_deref().unwrap_or_default() };
    match fetch(page(if is_https { "https" } else { "http" }), &headers, USER_AGENT).await {
        Err(error) if is_https && error.contains(NO_TLS) => {
            headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
            fetch(page("http"), &headers, USER_AGENT).await.map_err(|_| error)?;
            let text =
                format!("request to HTTPS lifecycle hook {host}:{port} got HTTP response, retry with HTTP succeeded");
            context.shared.event(&context.pod, None, EventType::Warning, "LifecycleHTTPFallback", text);
            Ok(())
        }
        other => other,
    }
}
