//! The kubelet API on port 10250: logs, streams, usage and metrics, for the API server, metrics-server and Prometheus.
//!
//! ```text
//!  TCP ─► TLS (cert) ─► HTTP/1.1 or 2 ─► who is it (certificate, else token: review)
//!                                        ─► may it (route::access: review) ─► route::find ─► handle
//! ```
//! Every request is authenticated and authorized by its path and method before the path is looked up and before any of its
//! body is read; bodies are not read at all. What is served, and what it needs, is the table in [`route`]. There are no redirects, no
//! listing of files, and no route without a check but none: also `/healthz` needs its caller to be allowed.
//!
//! Limits: connections, header size and time, streams of HTTP/2; an idle stream ends after `streamingConnectionIdleTimeout`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub mod cert;
pub mod exposition;
pub mod handle;
pub mod own;
pub mod review;
pub mod route;
pub mod summary;
pub mod tunnel;
pub mod usage;

use cert::Acceptor;
use handle::Api;
use review::User;

/// Connections at once. An API server holds few; a flood must not take the agent's files and memory.
const CONNECTIONS: usize = 1024;
/// Time for the TLS handshake and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD: usize = 64 * 1024;
const STREAMS_PER_CONNECTION: u32 = 100;
const BIND_RETRY: Duration = Duration::from_secs(5);

/// Serves until shutdown. An address that cannot be bound is reported and tried again: pods must not wait for a port.
pub async fn serve(address: SocketAddr, acceptor: Arc<Acceptor>, api: Arc<Api>, shutdown: CancellationToken) {
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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accept(&listener, &slots) => accepted,
        };
        let Some((stream, permit)) = stream else { continue };
        let (acceptor, api, shutdown) = (acceptor.clone(), api.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(stream, &acceptor, api) => {}
            }
        });
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let permit = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "kubelet API: accept");
            // Out of files: the next accept would fail at once, too.
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, acceptor: &Acceptor, api: Arc<Api>) {
    let peer = stream.peer_addr().ok();
    // A keystroke in a stream is one small packet.
    let _ = stream.set_nodelay(true);
    let tls = tokio_rustls::TlsAcceptor::from(acceptor.config());
    let stream = match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, ?peer, "kubelet API: TLS handshake"),
        Err(_) => return tracing::debug!(?peer, "kubelet API: no TLS handshake in time"),
    };
    let user: Option<User> = stream.get_ref().1.peer_certificates().and_then(|chain| cert::user_of(chain.first()?));
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(api.answer(request, user).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX));
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%error, ?peer, "kubelet API: connection");
    }
}
