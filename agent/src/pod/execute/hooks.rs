//! Lifecycle hooks: postStart and preStop handlers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Context;
use crate::api::tls::{self, Trust};
use crate::ids::ContainerId;

/// kubelet's, which servers of hooks may look for.
const USER_AGENT: &str = "kube-lifecycle/1.37";

/// Longest that a hook without a limit of its own may take; StopContainer and the start both wait for it.
const LIMIT: Duration = Duration::from_secs(3600);

/// Runs a handler; the error is the text for the event.
pub(super) async fn run(
    context: &Context,
    container: &Container,
    handler: &LifecycleHandler,
    id: &ContainerId,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let result = context.shared.runtime.exec(id, command.clone(), LIMIT).await.map_err(|e| e.text())?;
        return match result.exit_code {
            0 => Ok(()),
            code => {
                let output = String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned();
                Err(format!("command '{}' exited with {code}: {output}", command.join(" ")))
            }
        };
    }
    if let Some(http) = &handler.http_get {
        return http_get(context, container, http).await;
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    // tcpSocket is deprecated and has no effect here, as under kubelet.
    Ok(())
}

/// A named or numbered port of a container.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).or_else(|| name.parse().ok())
        }
    };
    number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| format!("no such port: {port:?}"))
}

async fn http_get(context: &Context, container: &Container, action: &HTTPGetAction) -> Result<(), String> {
    let host = match action.host.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => context.pod_ips.first().cloned().ok_or("the pod has no address")?,
    };
    let port = port(container, &action.port)?;
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let is_https = action.scheme.as_deref() == Some("HTTPS");
    let scheme = if is_https { "https" } else { "http" };
    let fail = |error: String| format!("{scheme}://{authority}{path}: {error}");
    let mut request = Request::get(&path).header("host", &authority).header("user-agent", USER_AGENT);
    for header in action.http_headers.iter().flatten() {
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(Empty::new()).map_err(|error| fail(error.to_string()))?;
    let connect = TcpStream::connect((host.as_str(), port));
    let stream = connect.await.map_err(|error| fail(error.to_string()))?;
    let status = if is_https {
        ask(encrypted(&host, stream).await.map_err(fail)?, request).await
    } else {
        ask(stream, request).await
    };
    let status = status.map_err(|error| fail(error.to_string()))?;
    if status.is_client_error() || status.is_server_error() { Err(fail(status.to_string())) } else { Ok(()) }
}

/// TLS with whatever certificate the container has: nobody gives containers one for the pod's address.
async fn encrypted(host: &str, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host:?} is no host name"))?;
    let config = tls::client_config(Trust::Anybody, Arc::default()).map_err(|error| error.to_string())?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| format!("tls: {error}"))
}

async fn ask<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<StatusCode, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    // Read to its end or to a limit, so that the server is not cut off while it writes a short answer.
    let _ = http_body_util::Limited::new(answer.into_body(), 10 * 1024).collect().await;
    driver.abort();
    Ok(status)
}
