//! The control socket: how `nodelet get`, `logs`, `describe`, `gc` and `explain` ask a running agent.
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
use futures_util::future::BoxFuture;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::event::ring::Record;
use crate::garbage::Ask;
use crate::ids::{ObjectKey, PodUid};
use crate::logs;
use crate::service::explain::{self, ask::Target};

/// Name of the socket in the state directory.
pub const SOCKET: &str = "control.sock";

/// What the socket shows.
pub trait View: Send + Sync + 'static {
    /// Pods with their current statuses.
    fn pods(&self) -> Vec<Pod>;
    /// One pod with its current status.
    fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        let is_it = |pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        self.pods().into_iter().find(is_it)
    }
    /// Services as the API writes them.
    fn services(&self) -> Vec<Value>;
    /// EndpointSlices as the API writes them.
    fn endpoint_slices(&self) -> Vec<Value>;
    /// Events of a pod.
    fn events(&self, uid: &PodUid) -> Vec<Record>;
    /// What is wrong with the node as a whole, for people who look at anything of it.
    fn troubles(&self) -> Vec<String> {
        Vec::new()
    }
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

/// Where requests of `nodelet gc` go; `None` where no pods run.
pub type Garbage = Option<mpsc::Sender<Ask>>;

/// Explains Services.
pub trait Explain: Send + Sync + 'static {
    /// What there is to say, or why there is nothing.
    fn service(&self, ask: explain::Ask) -> BoxFuture<'_, Result<explain::Report, String>>;
}

/// Who answers what.
pub struct Answers {
    /// Lists, logs and events.
    pub view: Arc<dyn View>,
    /// Requests of `nodelet gc`.
    pub garbage: Garbage,
    /// Those of `nodelet explain service`; `None` where no Services are programmed.
    pub services: Option<Arc<dyn Explain>>,
}

/// Serves the socket until shutdown.
pub async fn serve(listener: UnixListener, answers: Answers, shutdown: CancellationToken) {
    let Answers { view, garbage, services } = answers;
    let app = router(view)
        .merge(Router::new().route("/garbage", get(look).post(collect)).with_state(garbage))
        .merge(Router::new().route("/explain/service", get(explain_service)).with_state(services));
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
        .route("/troubles", get(troubles))
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

async fn troubles(State(view): Shared) -> Response {
    axum::Json(view.troubles()).into_response()
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
struct GarbageQuery {
    /// Bytes of unused images to remove whatever the thresholds say.
    free: Option<u64>,
}

async fn look(State(garbage): State<Garbage>, Query(query): Query<GarbageQuery>) -> Response {
    ask_for_garbage(garbage, true, query.free).await
}

async fn collect(State(garbage): State<Garbage>, Query(query): Query<GarbageQuery>) -> Response {
    ask_for_garbage(garbage, false, query.free).await
}

async fn ask_for_garbage(garbage: Garbage, dry_run: bool, free: Option<u64>) -> Response {
    let Some(garbage) = garbage else { return refuse("this agent runs no pods, so it removes nothing".to_owned()) };
    let (reply, report) = oneshot::channel();
    let sent = garbage.send(Ask { dry_run, free, reply }).await.is_ok();
    match report.await {
        Ok(report) if sent => axum::Json(report).into_response(),
        Ok(_) | Err(_) => refuse("the agent is stopping".to_owned()),
    }
}

#[derive(Deserialize)]
struct ExplainQuery {
    namespace: String,
    name: String,
    port: Option<String>,
    protocol: Option<String>,
    from: Option<String>,
}

impl ExplainQuery {
    fn ask(self) -> Result<explain::Ask, String> {
        let port = self.port.map_or_else(String::new, |port| format!(":{port}"));
        let target: Target = format!("{}/{}{port}", self.namespace, self.name).parse()?;
        Ok(explain::Ask {
            service: ObjectKey::new(self.namespace, target.name),
            port: target.port,
            protocol: self.protocol.as_deref().map(explain::ask::protocol).transpose()?,
            from: self.from.map(|from| from.parse()).transpose()?.unwrap_or_default(),
        })
    }
}

async fn explain_service(
    State(services): State<Option<Arc<dyn Explain>>>,
    Query(query): Query<ExplainQuery>,
) -> Response {
    let Some(services) = services else {
        return refuse(
            "this agent programs no Services: it runs with --only pods, or alone without --manifests".to_owned(),
        );
    };
    let explained = match query.ask() {
        Ok(ask) => services.service(ask).await,
        Err(text) => Err(text),
    };
    explained.map_or_else(refuse, |report| axum::Json(report).into_response())
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
    let Place { path, written } = match place_of_log(view.as_ref(), (&namespace, &name), &query) {
        Ok(place) => place,
        Err(text) => return refuse(text),
    };
    let since = query.since.and_then(|seconds| Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok());
    let options = logs::Options {
        tail: query.tail,
        timestamps: query.timestamps,
        follow: query.follow,
        since,
        limit: query.limit,
    };
    let (tx, rx) = mpsc::channel(4);
    let ended = move || match &written {
        Some((container, attempt)) => {
            view.pod(&namespace, &name).is_none_or(|pod| !logs::choose::runs(&pod, container, *attempt))
        }
        None => true,
    };
    tokio::spawn(logs::read(path, options, ended, tx));
    let stream = stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|chunk| (chunk, rx)) });
    Body::from_stream(stream).into_response()
}

/// A log file.
struct Place {
    path: PathBuf,
    /// The container and attempt that write to it; nobody does where the pod is gone.
    written: Option<(String, u32)>,
}

/// The file of a pod's container, or what was kept of a pod that is gone.
fn place_of_log(view: &dyn View, (namespace, name): (&str, &str), query: &LogQuery) -> Result<Place, String> {
    let container = query.container.as_deref();
    let Some(pod) = view.pod(namespace, name) else {
        let keep = logs::kept::execute::place(&view.log_dir());
        let found = logs::kept::execute::find(&keep, namespace, name, container, query.previous);
        return match found {
            Some(path) => Ok(Place { path, written: None }),
            None => Err(format!("pod {namespace}/{name} not found on this node")),
        };
    };
    let chosen = logs::choose::choose(&pod, container, query.previous).map_err(|refusal| refusal.to_string())?;
    let logs::choose::Chosen { container, attempt } = chosen;
    let directory = view.log_dir().join(crate::pod::sandbox_config::log_directory_name(&pod));
    let path = directory.join(crate::pod::container_config::log_path(&container, attempt));
    Ok(Place { path, written: Some((container, attempt)) })
}

fn refuse(text: String) -> Response {
    (StatusCode::NOT_FOUND, text + "\n").into_response()
}

#[cfg(test)]
mod tests;
