//! The ports of `healthCheckNodePort`: load balancers ask there whether this node has endpoints of a Service with
//! `externalTrafficPolicy: Local`.
//!
//! ```text
//!  index: Services with such a port ─┐
//!  addresses that serve NodePorts ───┴─► plan: close, open ─► one listener for each Service and address
//!                                                               └─ request ─► count of the index, health of the programmer
//! ```
//! The answer is kube-proxy's, byte for byte: 200 while this node has ready endpoints of the family that was asked and
//! Services are programmed in time, else 503. Endpoints that terminate do not count. The number is looked up when somebody
//! asks, so a change of endpoints costs nothing here.
//!
//! A port that another program holds is told by an event on the Service, as kube-proxy does, and tried again.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::ObjectKey;
use crate::service::index::HealthChecks;
use plan::{BIND_RETRY, Listener, State, plan, wanted};

pub mod plan;

/// What the answers are made of.
pub trait Source: Send + Sync + 'static {
    /// How many ready endpoints of a family a Service has on this node.
    fn local_endpoints(&self, service: &ObjectKey, v6: bool) -> usize;
    /// Whether Services are programmed in time.
    fn is_healthy(&self) -> bool;
}

/// What the ports are made of.
pub struct Inputs {
    /// Services with such a port.
    pub checks: watch::Receiver<HealthChecks>,
    /// Addresses to listen on; an unspecified one stands for all of its family.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
    /// What the answers are made of.
    pub source: Arc<dyn Source>,
    /// Where events go.
    pub recorder: Recorder,
    /// Name of the node, for events.
    pub node_name: String,
}

/// A listener that serves.
struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Keeps the ports open until shutdown.
pub async fn run(mut inputs: Inputs, shutdown: CancellationToken) {
    let mut states = BTreeMap::new();
    let mut serving = BTreeMap::new();
    loop {
        let wanted = wanted(&inputs.checks.borrow_and_update(), &inputs.addresses.borrow_and_update());
        let plan = plan(&wanted, &states, Instant::now());
        for listener in plan.close {
            states.remove(&listener);
            if let Some(Serving { stop, task }) = serving.remove(&listener) {
                stop.cancel();
                // The port is free only when the task has dropped it; whoever takes it next may be in `plan.open`.
                let _ = task.await;
            }
        }
        for listener in plan.open {
            open(&inputs, &shutdown, listener, &mut states, &mut serving);
        }
        let wake = states.values().filter_map(State::again).min();
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = inputs.checks.changed() => if changed.is_err() { return },
            changed = inputs.addresses.changed() => if changed.is_err() { return },
            () = sleep_until(wake) => {}
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn open(
    inputs: &Inputs,
    shutdown: &CancellationToken,
    listener: Listener,
    states: &mut BTreeMap<Listener, State>,
    serving: &mut BTreeMap<Listener, Serving>,
) {
    match super::listen(listener.address) {
        Ok(socket) => {
            let stop = shutdown.child_token();
            let routes = routes(inputs.source.clone(), listener.service.clone(), listener.address);
            let task = tokio::spawn(super::serve_on(socket, routes, stop.clone()));
            serving.insert(listener.clone(), Serving { stop, task });
            states.insert(listener, State::Open);
        }
        Err(error) => {
            let error = error.to_string();
            let is_news =
                !matches!(states.get(&listener), Some(State::Refused { error: known, .. }) if *known == error);
            if is_news {
                report(inputs, &listener, &error);
            }
            states.insert(listener, State::Refused { error, again: Instant::now() + BIND_RETRY });
        }
    }
}

/// kube-proxy's event, with its message.
fn report(inputs: &Inputs, listener: &Listener, error: &str) {
    let Listener { service, address } = listener;
    tracing::error!(%service, %address, error, "health check port of a Service cannot be served; trying again");
    inputs.recorder.emit(Event {
        subject: Subject::Service { key: service.clone() },
        kind: EventType::Warning,
        reason: "FailedToStartServiceHealthcheck",
        message: format!(
            "node {} failed to start healthcheck \"{service}\" on port {}: listen tcp {address}: {error}",
            inputs.node_name,
            address.port()
        ),
    });
}

fn routes(source: Arc<dyn Source>, service: ObjectKey, address: SocketAddr) -> Router {
    Router::new().fallback(move || {
        let count = source.local_endpoints(&service, address.is_ipv6());
        let answer = answer(&service, count, source.is_healthy());
        async move { answer }
    })
}

fn answer(service: &ObjectKey, count: usize, is_healthy: bool) -> Response {
    let status = if count > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::HeaderName::from_static("x-load-balancing-endpoint-weight"), count.to_string()),
    ];
    (status, headers, body(service, count, is_healthy)).into_response()
}

/// Names of Services and namespaces are DNS labels: nothing in them needs an escape.
fn body(service: &ObjectKey, count: usize, is_healthy: bool) -> String {
    let (namespace, name) = (&service.namespace, &service.name);
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
    )
}

#[cfg(test)]
mod tests;
