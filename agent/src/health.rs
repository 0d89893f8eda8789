//! Plain HTTP health and metrics servers, at the addresses where kubelet and kube-proxy have them.
//!
//! | address | who asks | answers |
//! |---|---|---|
//! | 127.0.0.1:10248 `/healthz` | kubeadm, systemd watch scripts | `ok` while the process serves |
//! | 0.0.0.0:10256 `/healthz`, `/livez` | cloud load balancers | JSON, 200 or 503 by [`ProxyProgress`] |
//! | `healthCheckNodePort` of Services | load balancers | JSON, 200 or 503 by the endpoints here ([`checks`]) |
//! | 127.0.0.1:10249 `/healthz`, `/proxyMode`, `/metrics`, `/configz` | operators, Prometheus | `ok`, `nftables`, text format, JSON |
//!
//! 10256 is unhealthy while a change of Services waits for longer than twice the sync period, and `/healthz` also while the
//! node is about to go away (KEP-3836): then load balancers stop sending new connections here, while `/livez` does not
//! restart anything because of it.
//!
//! What it does not do: decide whether the pod half is well. The kubelet API on 10250 has checks of its own.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

pub mod checks;
pub mod process;

/// Taint of the cluster autoscaler on a node that it is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// How long to wait before an address that is in use is tried again; kubelet and kube-proxy wait as long.
const BIND_RETRY: Duration = Duration::from_secs(5);

/// What the Service half tells about itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProxyProgress {
    state: Arc<Mutex<Progress>>,
    /// A change may wait for so long: twice the sync period.
    timeout: Duration,
    /// Answers of `/healthz` and of `/livez`, those of 200 first.
    answers: Arc<[[AtomicU64; 2]; 2]>,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    last_updated: Option<Timestamp>,
    /// Since when the oldest change waits.
    pending_since: Option<Timestamp>,
    eligible: bool,
}

impl ProxyProgress {
    /// Nothing done and nothing waiting. The node is taken for eligible until [`Self::node_seen`] says otherwise,
    /// because a node that runs alone has no Node object.
    pub fn new(sync_period: Duration) -> Self {
        let state = Progress { last_updated: None, pending_since: None, eligible: true };
        Self { state: Arc::new(Mutex::new(state)), timeout: sync_period * 2, answers: Arc::default() }
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// When rules were last committed, and since when a change waits to be.
    pub fn observed(&self, last_updated: Option<Timestamp>, pending_since: Option<Timestamp>) {
        self.change(|state| (state.last_updated, state.pending_since) = (last_updated, pending_since));
    }

    /// The Node object as the API server has it; `None` when it is deleted.
    pub fn node_seen(&self, node: Option<&Node>) {
        self.change(|state| state.eligible = node.is_some_and(is_eligible));
    }

    /// The answer to a load balancer, which is counted.
    fn answer(&self, probe: Probe, now: Timestamp) -> (StatusCode, Value) {
        let (status, body) = self.report(probe, now);
        let of_probe = &self.answers[usize::from(probe == Probe::Live)];
        of_probe[usize::from(status != StatusCode::OK)].fetch_add(1, Ordering::Relaxed);
        (status, body)
    }

    /// How often it was asked for, in Prometheus' text format with kube-proxy's names.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        for (probe, counts) in ["healthz", "livez"].into_iter().zip(self.answers.iter()) {
            let name = format!("kubeproxy_proxy_{probe}_total");
            let _ = write!(text, "# HELP {name} Cumulative proxy {probe} HTTP status\n# TYPE {name} counter\n");
            for (code, count) in [200, 503].into_iter().zip(counts) {
                let _ = writeln!(text, "{name}{{code=\"{code}\"}} {}", count.load(Ordering::Relaxed));
            }
        }
        text
    }

    /// Whether no change waits for too long.
    pub fn is_healthy(&self) -> bool {
        self.report(Probe::Live, Timestamp::now()).0 == StatusCode::OK
    }

    fn report(&self, probe: Probe, now: Timestamp) -> (StatusCode, Value) {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        report(state, self.timeout, probe, now)
    }
}

/// Whether load balancers may send traffic to this node.
pub fn is_eligible(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_none() && !taints.into_iter().any(|taint| taint.key == TO_BE_DELETED)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// `/healthz`
    Ready,
    /// `/livez`
    Live,
}

/// kube-proxy's answer, field by field.
fn report(state: Progress, timeout: Duration, probe: Probe, now: Timestamp) -> (StatusCode, Value) {
    let waited = state.pending_since.map_or(Duration::ZERO, |since| now.duration_since(since).unsigned_abs());
    // Before the first commit there is nothing to be late with.
    let healthy = state.last_updated.is_none() || state.pending_since.is_none() || waited < timeout;
    let good = match probe {
        Probe::Ready => healthy && state.eligible,
        Probe::Live => healthy,
    };
    // Go prints a time that was never set as the first of January of the year 1, and clients parse it.
    let written = state.last_updated.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string());
    let last = if good { now.to_string() } else { written.clone() };
    let mut body = json!({"lastUpdated": last, "currentTime": now.to_string(), "healthy": healthy});
    if state.last_updated.is_some() {
        // One commit is for both.
        let each = json!({"lastUpdated": written, "healthy": healthy});
        body["status"] = json!({"IPv4": each, "IPv6": each});
    }
    if probe == Probe::Ready {
        body["nodeEligible"] = state.eligible.into();
    }
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

/// Routes of 10248.
pub fn kubelet_routes() -> Router {
    Router::new().route("/healthz", get(ok))
}

/// Routes of 10256. `look` brings the progress up to date before each answer.
pub fn proxy_routes(progress: ProxyProgress, look: impl Fn(&ProxyProgress) + Send + Sync + 'static) -> Router {
    let look = Arc::new(look);
    let answer = move |probe| {
        let (progress, look) = (progress.clone(), look.clone());
        move || async move {
            look(&progress);
            json_answer(progress.answer(probe, Timestamp::now()))
        }
    };
    Router::new().route("/healthz", get(answer(Probe::Ready))).route("/livez", get(answer(Probe::Live)))
}

/// Routes of 10249. `more` is appended to the process metrics, in Prometheus' text format; `configz` is the configuration.
pub fn metrics_routes(more: impl Fn() -> String + Send + Sync + 'static, configz: Value) -> Router {
    let more = Arc::new(more);
    let metrics = move || {
        let more = more.clone();
        async move {
            let text = format!("{}{}", process::metrics(), more());
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
        }
    };
    Router::new()
        .route("/healthz", get(ok))
        .route("/proxyMode", get(async || plain("nftables")))
        .route("/configz", get(async move || json_answer((StatusCode::OK, configz))))
        .route("/metrics", get(metrics))
}

async fn ok() -> Response {
    plain("ok")
}

fn plain(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], text)
        .into_response()
}

fn json_answer((status, body): (StatusCode, Value)) -> Response {
    (status, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], axum::Json(body)).into_response()
}

/// Serves `routes` until shutdown. An address that cannot be bound is reported and tried again, because a health port that
/// another program holds must not stop the pods and Services of the node.
pub async fn serve(name: &'static str, address: SocketAddr, routes: Router, shutdown: CancellationToken) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return serve_on(listener, routes, shutdown).await,
            Err(error) => tracing::warn!(
                %error, %address,
                "{name} cannot be served; free the address or change it in the configuration; trying again"
            ),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(BIND_RETRY) => {}
        }
    }
}

/// Listens on an address; `::` does not take IPv4 along, so that `0.0.0.0` can be listened on beside it.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    // Connections of a listener that was just closed must not keep the next one away.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Serves `routes` on a bound socket until shutdown; open connections are dropped then.
pub async fn serve_on(listener: TcpListener, routes: Router, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        served = async { axum::serve(listener, routes).await } => {
            if let Err(error) = served {
                tracing::warn!(%error, "health server ended");
            }
        }
    }
}

#[cfg(test)]
mod tests;
