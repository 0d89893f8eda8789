//! The HTTP client for the API server: `kube` on our own hyper and rustls service.
//!
//! Why not kube's own stack: it cannot replace a client certificate, does not notice a dead peer, and opens an
//! HTTP/1.1 connection for each watch. Here all requests share one HTTP/2 connection. Pings every 10 s with 5 s to
//! answer, and TCP_USER_TIMEOUT of 15 s for data that was sent, notice a dead API server within 20 s.
//!
//! kube-apiserver lets a client have 100 streams on one connection (CVE-2023-44487); hyper would queue the 101st behind
//! watches that never end, and with it the lease. So streams are counted, and a further connection ([`Lane`]) is
//! opened when the first has 80. Requests that are not watches take the first lane with room.
//!
//! Rotation: the slot gets the new certificate and all lanes are dropped. Streams that run end by themselves (watches
//! last five minutes); new requests handshake anew.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{AUTHORIZATION, HeaderValue, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ClientBuilder};
use rustls::pki_types::ServerName;
use tower::BoxError;

use super::credentials::{CredentialError, Credentials};
use super::kubeconfig::{Kubeconfig, KubeconfigError, PemSource};
use super::tls::{self, CertSlot, TlsError, Trust};
use crate::metrics::{METRICS, rest};

/// Time for a request other than a watch, from the first byte sent to the last byte received.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams per connection, below the 100 that kube-apiserver allows.
const STREAMS_PER_LANE: usize = 80;
/// Flow-control windows: hyper's 2 MiB and 5 MiB would let one slow reader buffer that much.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// Certificates that it names.
    #[error("kubeconfig {path}: {source}")]
    Tls {
        /// The kubeconfig.
        path: String,
        /// What is wrong.
        source: TlsError,
    },
    /// Credentials that it names.
    #[error("kubeconfig {path}: {source}")]
    Credentials {
        /// The kubeconfig.
        path: String,
        /// What is wrong.
        source: CredentialError,
    },
}

/// A request that ran out of time.
#[derive(Debug, thiserror::Error)]
#[error("no complete answer from the API server within {}s", .0.as_secs())]
pub struct DeadlineExceeded(Duration);

type Hyper = HyperClient<HttpsConnector<HttpConnector>, Body>;

/// One pooled connection and the streams on it.
struct Lane {
    client: Hyper,
    streams: AtomicUsize,
}

struct Shared {
    server: Uri,
    user_agent: HeaderValue,
    connector: HttpsConnector<HttpConnector>,
    credentials: Credentials,
    lanes: Mutex<Vec<Arc<Lane>>>,
    figures: &'static rest::Host,
}

/// The client and the handles to steer it.
#[derive(Clone)]
pub struct ApiClient {
    kube: kube::Client,
    shared: Arc<Shared>,
}

impl ApiClient {
    /// A client for a kubeconfig. Nothing is sent yet. Must be called inside a tokio runtime.
    pub fn new(config: &Kubeconfig, version: &str) -> Result<Self, ClientError> {
        let path = config.path.display().to_string();
        let slot = Arc::new(CertSlot::default());
        let connector =
            connector(config, slot.clone()).map_err(|source| ClientError::Tls { path: path.clone(), source })?;
        let credentials = Credentials::new(config, slot).map_err(|source| ClientError::Credentials { path, source })?;
        let user_agent = HeaderValue::from_str(&format!("nodelet/{version}"))
            .unwrap_or_else(|_| HeaderValue::from_static("nodelet"));
        let host = config.server.authority().map_or("", |authority| authority.as_str());
        let shared = Arc::new(Shared {
            figures: METRICS.rest.host(host),
            server: config.server.clone(),
            user_agent,
            connector,
            credentials,
            lanes: Mutex::default(),
        });
        let kube = ClientBuilder::new(Transport { shared: shared.clone() }, config.namespace.clone()).build();
        Ok(Self { kube, shared })
    }

    /// Reads a kubeconfig file and makes a client for it.
    pub fn from_file(path: &std::path::Path, version: &str) -> Result<Self, ClientError> {
        Self::new(&super::kubeconfig::load(path)?, version)
    }

    /// The kube client.
    pub fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    /// The URL of the API server, for messages.
    pub fn server(&self) -> &Uri {
        &self.shared.server
    }

    /// Reads certificate files again and drops pooled connections, so that the next request uses the new certificate.
    pub fn reload_identity(&self) -> Result<(), CredentialError> {
        self.shared.credentials.reload_certificate()?;
        self.reconnect();
        Ok(())
    }

    /// Drops pooled connections: after a rotation, or when the lease fails although the connection looks alive.
    pub fn reconnect(&self) {
        self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn connector(config: &Kubeconfig, slot: Arc<CertSlot>) -> Result<HttpsConnector<HttpConnector>, TlsError> {
    let ca = config
        .ca
        .as_ref()
        .map(PemSource::read)
        .transpose()
        .map_err(|error| TlsError::Material { what: "certificate authority", reason: error.to_string() })?;
    let trust = match (&ca, config.insecure) {
        (_, true) => Trust::Anybody,
        (Some(pem), false) => Trust::Authorities(pem),
        // A plain HTTP server needs no authorities, and the system may have none.
        (None, false) if config.server.scheme_str() == Some("http") => Trust::Anybody,
        (None, false) => Trust::System,
    };
    let tls = tls::client_config(trust, slot)?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    http.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match &config.server_name {
        Some(name) => {
            let name = ServerName::try_from(name.clone()).map_err(|error| TlsError::Material {
                what: "tls-server-name of the cluster",
                reason: format!("{name:?} is neither a DNS name nor an address: {error}"),
            })?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(name))
        }
        None => builder,
    };
    Ok(builder.enable_http1().enable_http2().wrap_connector(http))
}

impl Shared {
    fn lane(&self) -> StreamGuard {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let lane = match lanes.iter().find(|lane| lane.streams.load(Ordering::Relaxed) < STREAMS_PER_LANE) {
            Some(lane) => lane.clone(),
            None => {
                let lane = Arc::new(Lane { client: self.hyper(), streams: AtomicUsize::new(0) });
                lanes.push(lane.clone());
                lane
            }
        };
        lane.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(lane)
    }

    fn hyper(&self) -> Hyper {
        HyperClient::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_keep_alive_while_idle(true)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .build(self.connector.clone())
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<GuardedBody>, BoxError> {
        let (method, began) = (request.method().clone(), Instant::now());
        let answer = self.send_uncounted(request).await;
        self.figures.observe(&method, answer.as_ref().ok().map(Response::status), began.elapsed());
        answer
    }

    async fn send_uncounted(&self, mut request: Request<Body>) -> Result<Response<GuardedBody>, BoxError> {
        let watch = is_watch(request.uri());
        *request.uri_mut() = absolute(&self.server, request.uri())?;
        request.headers_mut().insert(USER_AGENT, self.user_agent.clone());
        if let Some(value) = self.credentials.header().await? {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let guard = self.lane();
        let deadline = Box::pin(tokio::time::sleep(REQUEST_DEADLINE));
        let sent = guard.0.client.request(request);
        let response = tokio::time::timeout_at(deadline.deadline(), sent)
            .await
            .map_err(|_| DeadlineExceeded(REQUEST_DEADLINE))??;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.credentials.invalidate().await;
        }
        let deadline = (!watch).then_some(deadline);
        Ok(response.map(|body| GuardedBody { body, deadline, _guard: guard }))
    }
}

/// Watches are recognised by their query; only they may last longer than a deadline.
fn is_watch(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "watch=true" || pair == "watch=1"))
}

/// kube gives a path; the server's URL may have a path of its own (Rancher and other front ends).
fn absolute(server: &Uri, request: &Uri) -> Result<Uri, http::Error> {
    let prefix = server.path().trim_end_matches('/');
    let path = request.path_and_query().map_or("/", |path| path.as_str());
    let mut parts = http::uri::Parts::default();
    parts.scheme = server.scheme().cloned();
    parts.authority = server.authority().cloned();
    parts.path_and_query = Some(format!("{prefix}{path}").parse()?);
    Ok(Uri::from_parts(parts)?)
}

struct StreamGuard(Arc<Lane>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response body that counts as a stream of its lane until it is dropped, and fails at its deadline.
struct GuardedBody {
    body: Incoming,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
    _guard: StreamGuard,
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match self.deadline.as_mut().map(|deadline| deadline.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Poll::Ready(Some(Err(DeadlineExceeded(REQUEST_DEADLINE).into()))),
            Some(Poll::Pending) | None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The tower service that kube drives.
#[derive(Clone)]
struct Transport {
    shared: Arc<Shared>,
}

impl tower::Service<Request<Body>> for Transport {
    type Response = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.shared.clone();
        Box::pin(async move { Ok(shared.send(request).await?.map(GuardedBody::boxed_unsync)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("uri")
    }

    #[test]
    fn a_path_of_the_server_is_kept_in_front() {
        let joined = |server, path| absolute(&uri(server), &uri(path)).expect("uri").to_string();
        assert_eq!(joined("https://h:6443", "/api/v1/pods?watch=true"), "https://h:6443/api/v1/pods?watch=true");
        assert_eq!(joined("https://h/k8s/c-1/", "/api/v1/pods"), "https://h/k8s/c-1/api/v1/pods");
    }

    #[test]
    fn only_watches_have_no_deadline() {
        assert!(is_watch(&uri("/api/v1/pods?&watch=true&timeoutSeconds=290")));
        assert!(!is_watch(&uri("/api/v1/pods?fieldSelector=watch")));
        assert!(!is_watch(&uri("/api/v1/pods")));
    }

    #[tokio::test]
    async fn a_new_connection_is_taken_before_streams_would_queue() {
        let text = "current-context: c\ncontexts: [{name: c, context: {cluster: k}}]\n\
                    clusters: [{name: k, cluster: {server: 'http://127.0.0.1:1'}}]\n";
        let config = super::super::kubeconfig::parse(std::path::Path::new("/x"), text).expect("kubeconfig");
        let client = ApiClient::new(&config, "0").expect("client");
        let lanes = || client.shared.lanes.lock().expect("lock").len();
        let mut guards: Vec<_> = (0..STREAMS_PER_LANE).map(|_| client.shared.lane()).collect();
        assert_eq!(lanes(), 1);
        guards.push(client.shared.lane());
        assert_eq!(lanes(), 2);
        guards.remove(0);
        guards.push(client.shared.lane());
        assert_eq!(lanes(), 2, "a stream that ended makes room");
    }

    /// Class H: an answer that sends the agent elsewhere takes no credentials there.
    #[tokio::test]
    async fn a_redirect_is_an_error_and_nobody_elsewhere_is_asked() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
        let (server, elsewhere) = (bind().await.expect("bind"), bind().await.expect("bind"));
        let (address, there) = (server.local_addr().expect("address"), elsewhere.local_addr().expect("address"));
        let answering = tokio::spawn(async move {
            for status in [301, 302, 303, 307, 308] {
                let (mut stream, _) = server.accept().await.expect("accept");
                let mut head = [0; 4096];
                let read = stream.read(&mut head).await.expect("read");
                let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
                assert!(head.contains("authorization: bearer secret"), "it has credentials to lose: {head}");
                let answer = format!(
                    "HTTP/1.1 {status} Moved\r\nLocation: http://{there}/api\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.expect("write");
            }
        });
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             users: [{{name: u, user: {{token: secret}}}}]\nclusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n"
        );
        let config = super::super::kubeconfig::parse(std::path::Path::new("/x"), &text).expect("kubeconfig");
        let client = ApiClient::new(&config, "0").expect("client").kube();
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, "default");
        for _ in 0..5 {
            pods.get("p").await.expect_err("a redirect is no pod");
        }
        answering.await.expect("all five were asked for");
        let asked = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
        assert!(asked.is_err(), "somebody came: {asked:?}");
    }
}
