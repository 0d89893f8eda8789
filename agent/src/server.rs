//! The kubelet API on port 10250: logs, streams, usage and metrics, for the API server, metrics-server and Prometheus.
//!
//! ```text
//!  TCP ─► gate ─► TLS (cert) ─► HTTP/1.1 or 2 ─► who is it (certificate, else token: review)
//!                                               ─► may it (route::access: review) ─► route::find ─► handle
//! ```
//! Every request is authenticated and authorized by its path and method before the path is looked up and before any of its
//! body is read; bodies are not read at all. What is served, and what it needs, is the table in [`route`]. There are no redirects, no
//! listing of files, and no route without a check but those of `readOnlyPort`, which is served only where the configuration
//! asks for it.
//!
//! Limits: connections and requests, in all and by identity ([`gate`]); head size and time; streams and windows of HTTP/2; an
//! idle stream ends after `streamingConnectionIdleTimeout`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub mod answer;
pub mod cadvisor;
pub mod cert;
mod checkpoint;
mod container_logs;
pub mod exposition;
pub mod gate;
pub mod handle;
mod healthz;
pub mod own;
pub mod review;
pub mod route;
mod streams;
pub mod summary;
mod system_logs;
pub mod tunnel;
pub mod usage;
pub mod volumes;

use cert::Acceptor;
use gate::{Gate, Ticket};
use handle::Api;
use review::User;

/// Time for the TLS handshake and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time to end what was begun on a connection that is closed for being idle.
const FAREWELL: Duration = Duration::from_secs(5);
/// Bytes of a request's head: a command of `exec` is in its URL.
const HEAD: usize = 64 * 1024;
/// kubelet's default is 250; Go's client opens another connection when it needs more.
const STREAMS_PER_CONNECTION: u32 = 32;
/// What a client may send before it is read. Nothing is read of bodies, so it is the least that the protocol allows.
const WINDOW: u32 = 65_535;
/// Streams that were reset before they were answered (CVE-2023-44487): more end the connection.
const RESETS: usize = 20;
const BIND_RETRY: Duration = Duration::from_secs(5);

/// What is served on a port.
pub enum Door {
    /// 10250: TLS, and everybody is checked.
    Checked(Arc<Acceptor>),
    /// `readOnlyPort`: plain HTTP, and everybody may read.
    Open,
}

/// Serves until shutdown. An address that cannot be bound is reported and tried again: pods must not wait for a port.
pub async fn serve(address: SocketAddr, door: Door, api: Arc<Api>, shutdown: CancellationToken) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(
                %error, %address,
                "kubelet API cannot be served; free the address or change address and port in the configuration; trying again"
            ),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(BIND_RETRY) => {}
        }
    };
    serve_on(listener, door, api, shutdown).await;
}

/// Serves on a bound socket until shutdown.
pub async fn serve_on(listener: TcpListener, door: Door, api: Arc<Api>, shutdown: CancellationToken) {
    let (gate, door) = (Arc::new(Gate::default()), Arc::new(door));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "kubelet API: accept");
                // Out of files: the next accept would fail at once, too.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (ticket, door, api, shutdown) = (gate.enter(), door.clone(), api.clone(), shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = ticket.driven_out() => tracing::debug!("kubelet API: closed for newer connections"),
                () = connection(stream, &door, api, &ticket) => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, door: &Door, api: Arc<Api>, ticket: &Arc<Ticket>) {
    let peer = stream.peer_addr().ok();
    // A keystroke in a stream is one small packet.
    let _ = stream.set_nodelay(true);
    let result = match door {
        Door::Open => http(stream, Caller::Anybody, api, ticket).await,
        Door::Checked(acceptor) => {
            let Some(config) = acceptor.config() else {
                return tracing::debug!(?peer, "kubelet API: no serving certificate yet");
            };
            let tls = tokio_rustls::TlsAcceptor::from(config);
            let stream = match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, ?peer, "kubelet API: TLS handshake"),
                Err(_) => return tracing::debug!(?peer, "kubelet API: no TLS handshake in time"),
            };
            let chain = stream.get_ref().1.peer_certificates();
            let user: Option<User> = chain.and_then(|chain| cert::user_of(chain.first()?));
            http(stream, Caller::Certified(user), api, ticket).await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, ?peer, "kubelet API: connection");
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub enum Caller {
    /// Whom the certificate names; nobody without one, and then a token may tell.
    Certified(Option<User>),
    /// Everybody may ask: `readOnlyPort`.
    Anybody,
}

async fn http<S>(stream: S, caller: Caller, api: Arc<Api>, ticket: &Arc<Ticket>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let of_requests = ticket.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, caller, ticket) = (api.clone(), caller.clone(), of_requests.clone());
        async move { Ok::<_, std::convert::Infallible>(api.answer(request, caller, &ticket).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_pending_accept_reset_streams(RESETS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buf_size(HEAD)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX));
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let told = |error: Box<dyn std::error::Error + Send + Sync>| error.to_string();
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(told),
        () = ticket.idle() => connection.as_mut().graceful_shutdown(),
    }
    match tokio::time::timeout(FAREWELL, connection).await {
        Ok(ended) => ended.map_err(told),
        Err(_) => Err("it did not end when asked to".to_owned()),
    }
}

#[cfg(test)]
mod tests;
