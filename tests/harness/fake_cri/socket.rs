//! The unix socket and its connections, which can all be cut at once.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream;
use nodelet_proto::cri::image_service_server::ImageServiceServer;
use nodelet_proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::image_service::ImageFacade;
use super::runtime_service::RuntimeFacade;
use super::shared::Shared;

/// Listens until it is dropped; then no connection lives on, as when the runtime's process is gone.
#[derive(Debug)]
pub(super) struct Server {
    _cut: DropGuard,
}

impl Server {
    pub(super) fn start(path: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let token = CancellationToken::new();
        let connections = stream::unfold((listener, token.clone()), |(listener, token)| async move {
            let accepted = tokio::select! {
                // Nothing is accepted and lost: the listener goes away with this branch.
                () = token.cancelled() => return None,
                accepted = listener.accept() => accepted,
            };
            let connection = accepted.map(|(stream, _)| Connection::new(stream, token.clone()));
            Some((connection, (listener, token)))
        });
        let router = tonic::transport::Server::builder()
            .add_service(RuntimeServiceServer::new(RuntimeFacade(Arc::clone(&shared))))
            .add_service(ImageServiceServer::new(ImageFacade(shared)));
        tokio::spawn(router.serve_with_incoming(connections));
        Ok(Self { _cut: token.drop_guard() })
    }
}

/// A connection that fails once its token is cancelled.
struct Connection {
    stream: UnixStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn new(stream: UnixStream, token: CancellationToken) -> Self {
        Self { stream, cut: Box::pin(token.cancelled_owned()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
