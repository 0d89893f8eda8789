//! The control socket: how `nodelet get`, `logs` and `describe` ask a running agent.
//!
//! HTTP over a Unix socket in the state directory. The socket is root's alone (mode 0600 in a directory of mode 0700, and
//! the peer's user id is checked), because logs and specs may hold secrets. A socket that an earlier agent left is
//! replaced; a second agent on the same state directory is refused through a lock that dies with its holder.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::event::ring::Record;
use crate::ids::PodUid;
use crate::logs;

/// Name of the socket in the state directory.
pub const SOCKET: &str = "control.sock";

/// What the socket shows.
pub trait View: Send + Sync + 'static {
    /// Pods with their current statuses.
    fn pods(&self) -> Vec<Pod>;
    /// Services as the API writes them.
    fn services(&self) -> Vec<Value>;
    /// EndpointSlices as the API writes them.
    fn endpoint_slices(&self) -> Vec<Value>;
    /// Events of a pod.
    fn events(&self, uid: &PodUid) -> Vec<Record>;
    /// Directory of pod logs.
    fn log_dir(&self) -> PathBuf;
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The state directory cannot be used.
    #[error("state directory {path}: {source}")]
    Directory {
        /// The directory, socket or lock.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Another agent is at work.
    #[error("another nodelet runs with state directory {0}; stop it, or give this one its own --state-dir")]
    Locked(PathBuf),
}

/// The state directory, held by this process alone.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl StateDir {
    /// Makes the directory and takes its lock.
    pub fn acquire(path: &Path) -> Result<Self, ControlError> {
        let fail = |source| ControlError::Directory { path: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail)?;
        // A directory that was there before is not ours to close: it may be shared. The peer check still refuses others.
        let mode = std::fs::metadata(path).map_err(fail)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "state directory is open to others (mode {:o}); expected 700", mode & 0o777);
        }
        let lock = File::create(path.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(ControlError::Locked(path.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => Err(fail(error)),
        }
    }

    /// Binds the control socket.
    pub fn bind(&self) -> Result<UnixListener, ControlError> {
        let path = self.path.join(SOCKET);
        let fail = |source| ControlError::Directory { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(fail)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
        Ok(listener)
    }
}

/// Serves the socket until shutdown.
pub async fn serve(listener: UnixListener, view: Arc<dyn View>, shutdown: CancellationToken) {
    let app = router(view);
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "control socket");
                    continue;
                }
            },
        };
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
            tracing::warn!("refused a control connection that is not root's");
            continue;
        }
        let service = hyper_util::service::TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let io = hyper_util::rt::TokioIo::new(stream);
            if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await {
                tracing::debug!(%error, "control connection");
            }
        });
    }
}

fn router(view: Arc<dyn View>) -> Router {
    Router::new()
        .route("/pods", get(pods))
        .route("/services", get(services))
        .route("/endpointslices", get(endpoint_slices))
        .route("/events/{uid}", get(events))
        .route("/logs/{namespace}/{pod}", get(pod_logs))
        .with_state(view)
}

type Shared = State<Arc<dyn View>>;

fn list(kind: &str, version: &str, items: Value) -> Response {
    axum::Json(json!({ "kind": kind, "apiVersion": version, "metadata": {}, "items": items })).into_response()
}

async fn pods(State(view): Shared) -> Response {
    let items: Vec<Value> = view.pods().iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect();
    list("PodList", "v1", Value::Array(items))
}

async fn services(State(view): Shared) -> Response {
    list("ServiceList", "v1", Value::Array(view.services()))
}

async fn endpoint_slices(State(view): Shared) -> Response {
    list("EndpointSliceList", "discovery.k8s.io/v1", Value::Array(view.endpoint_slices()))
}

async fn events(State(view): Shared, UrlPath(uid): UrlPath<String>) -> Response {
    axum::Json(view.events(&PodUid::new(uid))).into_response()
}

#[derive(Deserialize)]
struct LogQuery {
    container: Option<String>,
    #[serde(default)]
    follow: bool,
    tail: Option<usize>,
    /// Only lines of the last so many seconds.
    since: Option<i64>,
    /// Only so many bytes.
    limit: Option<u64>,
    #[serde(default)]
    timestamps: bool,
    #[serde(default)]
    previous: bool,
}

async fn pod_logs(
    State(view): Shared,
    UrlPath((namespace, name)): UrlPath<(String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    let pod = view.pods().into_iter().find(|pod| {
        pod.metadata.namespace.as_deref() == Some(&namespace) && pod.metadata.name.as_deref() == Some(&name)
    });
    let Some(pod) = pod else { return refuse(format!("pod {namespace}/{name} not found on this node")) };
    let (container, attempt) = match choose_log(&pod, &query) {
        Ok(chosen) => chosen,
        Err(text) => return refuse(text),
    };
    let directory = view.log_dir().join(crate::pod::sandbox_config::log_directory_name(&pod));
    let path = directory.join(crate::pod::container_config::log_path(&container, attempt));
    let since = query.since.and_then(|seconds| Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok());
    let options = logs::Options {
        tail: query.tail,
        timestamps: query.timestamps,
        follow: query.follow,
        since,
        limit: query.limit,
    };
    let (tx, rx) = mpsc::channel(4);
    let ended = {
        let (view, namespace, name) = (view.clone(), namespace.clone(), name.clone());
        move || !runs(view.as_ref(), &namespace, &name, &container, attempt)
    };
    tokio::spawn(logs::read(path, options, ended, tx));
    let stream = stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|chunk| (chunk, rx)) });
    Body::from_stream(stream).into_response()
}

fn refuse(text: String) -> Response {
    (StatusCode::NOT_FOUND, text + "\n").into_response()
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &k8s_openapi::api::core::v1::ContainerStatus> {
    let status = pod.status.as_ref();
    status.into_iter().flat_map(|s| {
        let app = s.container_statuses.iter().flatten();
        let init = s.init_container_statuses.iter().flatten();
        app.chain(init).chain(s.ephemeral_container_statuses.iter().flatten())
    })
}

/// The container and attempt whose log is wanted.
fn choose_log(pod: &Pod, query: &LogQuery) -> Result<(String, u32), String> {
    let names: Vec<&str> = crate::pod::spec::roles(pod).map(|(name, _)| name).collect();
    let first = pod.spec.as_ref().and_then(|s| s.containers.first()).map(|c| c.name.as_str());
    let name = query.container.as_deref().or(first).unwrap_or_default();
    if !names.contains(&name) {
        return Err(format!("container {name} is not in the pod; it has {}", names.join(", ")));
    }
    let not_found = || Err(format!("previous terminated container \"{name}\" not found"));
    let Some(status) = statuses(pod).find(|s| s.name == name) else {
        return if query.previous { not_found() } else { Ok((name.to_owned(), 0)) };
    };
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.clone().unwrap_or_default();
    let has_ended_before = status.last_state.as_ref().is_some_and(|last| last.terminated.is_some());
    // While a container waits for its next start, the last attempt is at once the newest log and the previous one.
    match (query.previous, state.running.is_some() || state.terminated.is_some(), has_ended_before) {
        (false, true, _) | (_, false, true) => Ok((name.to_owned(), attempt)),
        (true, true, true) => attempt.checked_sub(1).map_or_else(not_found, |before| Ok((name.to_owned(), before))),
        (true, _, false) => not_found(),
        (false, false, false) => {
            let why = state.waiting.and_then(|waiting| waiting.reason).unwrap_or_else(|| "ContainerCreating".into());
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            Err(format!("container \"{name}\" in pod \"{pod}\" is waiting to start: {why}"))
        }
    }
}

fn runs(view: &dyn View, namespace: &str, name: &str, container: &str, attempt: u32) -> bool {
    view.pods().iter().any(|pod| {
        let this = pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name);
        this && statuses(pod).any(|s| {
            let same = s.name == container && u32::try_from(s.restart_count) == Ok(attempt);
            same && s.state.as_ref().is_some_and(|state| state.running.is_some())
        })
    })
}

#[cfg(test)]
mod tests;
