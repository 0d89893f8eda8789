//! HTTP probes: a GET whose status is 200 to 399.
//!
//! HTTP/1.1 with a connection of its own. Certificates are not verified: a probe asks whether something answers, and nobody
//! gives containers a certificate for the pod's address. Redirects are followed while they stay on the host; one that leads
//! away ends the probe as a success with a warning.
//!
//! `host` may name any address, as under kubelet: whoever may create pods can make the node connect somewhere (kubernetes
//! issue 99425). Until the API takes the field away, the rule is that he learns no more than kubelet tells: the class of the
//! status, nothing of a failure's body, and no redirect leaves the host, so that an innocent `host` cannot become another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use super::Tools;
use super::tcp::{authority, connect};
use super::worker::{Answer, within};

/// More of a body than this is not read.
const BODY_LIMIT: usize = 10 * 1024;

/// As Go's client: ten requests, then an error.
const MAX_REQUESTS: usize = 10;

/// What a TLS handshake comes to when the server speaks plain HTTP; Go's words, which hooks look for.
pub(crate) const NO_TLS: &str = "server gave HTTP response to HTTPS client";

/// What to ask.
#[derive(Clone, Debug)]
pub(crate) struct Page<'a> {
    /// `http` or `https`.
    pub(crate) scheme: &'a str,
    /// Host.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// Path and query as the spec has them.
    pub(crate) path: &'a str,
}

/// One hop.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    https: bool,
    host: String,
    port: u16,
    path: PathAndQuery,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", authority(&self.host, self.port), self.path)
    }
}

impl Target {
    fn of(page: Page<'_>) -> Self {
        let path = path_and_query(page.path);
        Self { https: page.scheme == "https", host: page.host, port: page.port, path }
    }
}

pub(super) async fn probe(tools: &Tools, page: Page<'_>, declared: &[(String, String)], timeout: Duration) -> Answer {
    let target = Target::of(page);
    let headers = match headers(declared, &tools.user_agent) {
        Ok(headers) => headers,
        Err(text) => return Answer::inconclusive(text),
    };
    let url = target.to_string();
    let late = || {
        Answer::failure(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))
    };
    within(timeout, Box::pin(judge(tools, target, headers)), late).await
}

/// Asks for a page without a limit of time; any answer is a success.
pub(crate) async fn fetch(page: Page<'_>, declared: &[(String, String)], user_agent: &str) -> Result<(), String> {
    let answer = follow(&unverified_tls(), Target::of(page), headers(declared, user_agent)?).await?;
    // Read to its end or to a limit, so that the server is not cut off while it writes a short answer.
    let _ = read(answer.into_body()).await;
    Ok(())
}

async fn judge(tools: &Tools, target: Target, headers: HeaderMap) -> Answer {
    let response = match follow(&tools.tls, target, headers).await {
        Ok(response) => response,
        Err(text) => return Answer::failure(text),
    };
    let status = response.status();
    if !status.is_success() && !status.is_redirection() {
        // The body stays out of the message: it may hold what the operator of the node must not see.
        return Answer::failure(format!("HTTP probe failed with statuscode: {}", status.as_u16()));
    }
    finish(status.is_redirection(), response.into_body()).await
}

/// The answer at the end of all redirects that stay on the host.
async fn follow(
    tls: &TlsConnector,
    mut target: Target,
    mut headers: HeaderMap,
) -> Result<http::Response<Incoming>, String> {
    for _ in 0..MAX_REQUESTS {
        let response = get(tls, &target, &headers).await.map_err(|text| format!("Get \"{target}\": {text}"))?;
        let location = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
            .then(|| response.headers().get(LOCATION).and_then(|l| l.to_str().ok()))
            .flatten();
        let is_absolute = |location: &str| ["http://", "https://"].iter().any(|scheme| location.starts_with(scheme));
        let next = location.and_then(|location| Some((resolve(&target, location)?, is_absolute(location))));
        match next {
            Some((next, is_absolute)) if next.host == target.host => {
                // As Go's client: a declared Host is for the host that it was declared with.
                if is_absolute {
                    headers.remove(HOST);
                }
                target = next;
            }
            _ => return Ok(response),
        }
    }
    Err(format!("Get \"{target}\": stopped after {MAX_REQUESTS} redirects"))
}

async fn finish(redirect: bool, body: Incoming) -> Answer {
    let body = match read(body).await {
        Ok(body) => body,
        // It answered with a good status and then broke off; that decides nothing.
        Err(text) => return Answer::inconclusive(text),
    };
    if redirect {
        let text = format!("Probe terminated redirects, Response body: {body}");
        return Answer { warning: true, ..Answer::success(text) };
    }
    Answer::success(body)
}

async fn read(mut body: Incoming) -> Result<String, String> {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_LIMIT {
        match body.frame().await {
            None => break,
            Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
            Some(Err(error)) => return Err(format!("reading the response body: {error}")),
        }
    }
    bytes.truncate(BODY_LIMIT);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn get(tls: &TlsConnector, target: &Target, headers: &HeaderMap) -> Result<http::Response<Incoming>, String> {
    let stream = connect(&target.host, target.port).await?;
    if !target.https {
        return send(TokioIo::new(stream), target, headers).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|_| format!("{:?} is no host name", target.host))?;
    let stream = tls.connect(name, stream).await.map_err(|error| handshake_error(&error))?;
    send(TokioIo::new(stream), target, headers).await
}

fn handshake_error(error: &std::io::Error) -> String {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => format!("http: {NO_TLS}"),
        _ => format!("tls: {error}"),
    }
}

async fn send<S>(stream: S, target: &Target, headers: &HeaderMap) -> Result<http::Response<Incoming>, String>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| error.to_string())?;
    // Ends when the response is dropped, because nothing keeps the sender.
    tokio::spawn(connection);
    let mut request = http::Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = Uri::from(target.path.clone());
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let host = HeaderValue::try_from(authority(&target.host, target.port))
            .map_err(|_| format!("{:?} is no host name", target.host))?;
        request.headers_mut().insert(HOST, host);
    }
    request.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    let answer = sender.send_request(request).await;
    answer.map_err(|error| if error.is_incomplete_message() { "EOF".to_owned() } else { error.to_string() })
}

/// The declared headers; `User-Agent` and `Accept` have defaults, and an empty value of them means "do not send".
fn headers(declared: &[(String, String)], user_agent: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in declared {
        let key = HeaderName::try_from(name.as_str()).map_err(|_| format!("{name:?} is no header name"))?;
        let value =
            HeaderValue::try_from(value.as_str()).map_err(|_| format!("header {name}: the value is not text"))?;
        headers.append(key, value);
    }
    if !headers.contains_key(USER_AGENT) {
        let value = HeaderValue::try_from(user_agent).map_err(|_| "user agent is not text".to_owned())?;
        headers.insert(USER_AGENT, value);
    }
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    for name in [USER_AGENT, ACCEPT, HOST] {
        if headers.get(&name).is_some_and(HeaderValue::is_empty) {
            headers.remove(name);
        }
    }
    Ok(headers)
}

/// A path as users write it, with what a request line cannot hold percent-encoded.
fn path_and_query(path: &str) -> PathAndQuery {
    let mut text = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.split('#').next().unwrap_or_default().bytes() {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    PathAndQuery::try_from(text).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}

/// Where a `Location` leads; `None` when it cannot be understood.
fn resolve(from: &Target, location: &str) -> Option<Target> {
    let (https, rest) = if let Some(rest) = location.strip_prefix("http://") {
        (false, rest)
    } else if let Some(rest) = location.strip_prefix("https://") {
        (true, rest)
    } else if let Some(rest) = location.strip_prefix("//") {
        (from.https, rest)
    } else {
        let base = from.path.path();
        let path = if location.starts_with('/') {
            location.to_owned()
        } else if location.starts_with('?') {
            format!("{base}{location}")
        } else {
            format!("{}/{location}", base.rsplit_once('/').map_or("", |(dir, _)| dir))
        };
        return Some(Target { path: path_and_query(&path), ..from.clone() });
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = http::uri::Authority::try_from(&rest[..end]).ok()?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
    Some(Target { https, host, port, path: path_and_query(&rest[end..]) })
}

/// TLS that accepts any certificate.
pub(super) fn unverified_tls() -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
