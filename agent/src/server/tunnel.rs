//! Streams of exec, attach and port-forward: the caller's upgraded connection and the runtime's, joined byte for byte.
//!
//! ```text
//!  API server ──POST /exec…, Upgrade──► agent ──CRI Exec──► URL ──same request──► runtime's streaming server
//!             ◄──101 ──────────────────       ◄──101 ─────────────────────────
//!             ◄══════════ bytes: SPDY/3.1 or WebSocket, which only the two ends understand ══════════►
//! ```
//! The protocol inside is not looked at: whatever caller and runtime agree on (SPDY with its versions, WebSocket channels)
//! works, and a hostile stream meets no parser here. The URL comes from the runtime alone, and only a loopback address is
//! dialled: a runtime that lies cannot send the API server's streams elsewhere. A redirect is neither followed nor passed on
//! (CVE-2020-8559).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderValue, UPGRADE};
use http::{HeaderName, Request, Response, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long the runtime's server may take to answer; it is on this machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER: usize = 32 * 1024;
/// How long one direction goes on after the other was closed.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a stream did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The request is not one to upgrade.
    #[error("Upgrade request required")]
    NoUpgrade,
    /// The runtime's URL is of no use.
    #[error(
        "the runtime's streaming URL {url:?} cannot be used: expected http://, a loopback address \
             and a port; set the streaming server's address in the runtime's configuration to 127.0.0.1, without TLS"
    )]
    Url {
        /// What the runtime gave.
        url: String,
    },
    /// It answers with a redirect, which nobody follows.
    #[error("the runtime's streaming server {url} answers with a redirect ({status}), which is not followed")]
    Redirect {
        /// Where.
        url: String,
        /// The status.
        status: StatusCode,
    },
    /// Its server does not answer.
    #[error("the runtime's streaming server {url}: {reason}")]
    Runtime {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
}

/// Whether a request asks for another protocol.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let asks = headers.get(CONNECTION).and_then(|value| value.to_str().ok());
    let asks = asks.is_some_and(|text| text.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade")));
    asks && headers.contains_key(UPGRADE)
}

/// Headers that are for the runtime: all that belong to the handshake, none that carry the caller's identity.
fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let is_secret = |name: &HeaderName| {
        let name = name.as_str();
        matches!(name, "authorization" | "cookie" | "host")
            || name.starts_with("x-remote-")
            || name.starts_with("impersonate-")
    };
    let kept = headers.iter().filter(|(name, _)| !is_secret(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Opens the same stream at `url` and joins both; answers what the caller gets. The bytes flow in a task of their own, until
/// one end closes or nothing flows for `idle`; the task takes `work` and drops it then.
pub async fn open<B, W: Send + 'static>(
    mut request: Request<B>,
    url: &str,
    idle: Duration,
    work: &mut Option<W>,
) -> Result<Response<Bytes>, TunnelError> {
    if !is_upgrade(request.headers()) {
        return Err(TunnelError::NoUpgrade);
    }
    let fail = |reason: String| TunnelError::Runtime { url: url.to_owned(), reason };
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, dial(&request, url));
    let mut answer = answer.await.map_err(|_| fail(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))??;
    if answer.status().is_redirection() {
        return Err(TunnelError::Redirect { url: url.to_owned(), status: answer.status() });
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let body = http_body_util::Limited::new(answer.body_mut(), 64 * 1024);
        let body = http_body_util::BodyExt::collect(body).await.map_err(|error| fail(error.to_string()))?;
        return Ok(Response::from_parts(answer.into_parts().0, body.to_bytes()));
    }
    let mut head = Response::new(Bytes::new());
    *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *head.headers_mut() = answer.headers().clone();
    let caller = hyper::upgrade::on(&mut request);
    let runtime = hyper::upgrade::on(&mut answer);
    let work = work.take();
    tokio::spawn(async move {
        let _held_until_the_stream_ends = work;
        match tokio::try_join!(caller, runtime) {
            Ok((caller, runtime)) => join(TokioIo::new(caller), TokioIo::new(runtime), idle).await,
            Err(error) => tracing::debug!(%error, "a stream was given up before it began"),
        }
    });
    Ok(head)
}

/// The address of a host that is this machine and nothing else; no name is asked for.
fn loopback(host: &str) -> Option<IpAddr> {
    match host.trim_matches(['[', ']']) {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        text => text.parse::<IpAddr>().ok().filter(IpAddr::is_loopback),
    }
}

/// Where a URL of the runtime leads, if that is the runtime's server on this machine. Pure.
fn destination(url: &str) -> Option<(SocketAddr, Uri)> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"))?;
    // Who is named before an `@` is nobody whom the runtime's server asks for.
    let address = loopback(authority.host()).filter(|_| !authority.as_str().contains('@'))?;
    Some((SocketAddr::new(address, authority.port_u16().unwrap_or(80)), uri.clone()))
}

async fn dial<B>(request: &Request<B>, url: &str) -> Result<Response<hyper::body::Incoming>, TunnelError> {
    let fail = |reason: String| TunnelError::Runtime { url: url.to_owned(), reason };
    let bad = || TunnelError::Url { url: url.to_owned() };
    let (address, uri) = destination(url).ok_or_else(bad)?;
    let host = uri.authority().ok_or_else(bad)?.as_str();
    let stream = TcpStream::connect(address).await.map_err(|error| fail(error.to_string()))?;
    // A keystroke is one small packet.
    stream.set_nodelay(true).map_err(|error| fail(error.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| fail(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to the runtime's streaming server");
        }
    });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut copy = Request::builder().method(request.method()).uri(path);
    if let Some(headers) = copy.headers_mut() {
        *headers = forwarded(request.headers());
        headers.insert(HOST, HeaderValue::from_str(host).map_err(|_| bad())?);
    }
    let copy = copy.body(Empty::<Bytes>::new()).map_err(|error| fail(error.to_string()))?;
    sender.send_request(copy).await.map_err(|error| fail(error.to_string()))
}

/// Copies both ways. An end that breaks ends it, and an end's close is passed on and ends it soon: none of the protocols goes on
/// in one direction. So does silence for `idle`. A caller that is gone may not hold its place until then: of an API server that
/// was killed there may be hundreds of streams, and its successor has the same identity.
async fn join<A, B>(caller: A, runtime: B, idle: Duration)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let clock = Arc::new(Clock::new());
    let (mut caller_out, mut caller_in) = tokio::io::split(caller);
    let (mut runtime_out, mut runtime_in) = tokio::io::split(runtime);
    let mut up = std::pin::pin!(copy(&mut caller_out, &mut runtime_in, &clock));
    let mut down = std::pin::pin!(copy(&mut runtime_out, &mut caller_in, &clock));
    let ended = tokio::select! {
        ended = up.as_mut() => match ended {
            Ok(()) => tokio::time::timeout(FAREWELL, down).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        },
        ended = down.as_mut() => match ended {
            Ok(()) => tokio::time::timeout(FAREWELL, up).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        },
        () = clock.idle_for(idle) => return tracing::info!(idle_s = idle.as_secs(), "closed an idle stream"),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "stream ended");
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    clock: &Clock,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        clock.touch();
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

/// When the last byte flowed, in milliseconds since the stream began.
struct Clock {
    start: Instant,
    last: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    async fn idle_for(&self, idle: Duration) {
        loop {
            let quiet = Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)));
            match idle.checked_sub(quiet) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                Some(_) | None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_credentials_do_not_reach_the_runtime() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("host", "node:10250"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let sent = forwarded(&headers);
        let names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["upgrade", "x-stream-protocol-version"]);
    }

    #[tokio::test]
    async fn what_the_runtime_calls_a_url_is_not_trusted() {
        let request = || {
            let builder = Request::builder().header(CONNECTION, "keep-alive, Upgrade").header(UPGRADE, "SPDY/3.1");
            builder.body(()).expect("request")
        };
        for url in [
            "https://127.0.0.1/exec",
            "/exec/token",
            "file:///etc/passwd",
            "http://169.254.169.254/latest/meta-data",
            "http://10.96.0.1:443/",
            "http://localhost.evil.example:80/",
            "http://127.0.0.1@10.0.0.1/",
            "http://2130706433/",
            "http://0.0.0.0:6443/",
            "http://[::ffff:10.0.0.1]/",
        ] {
            let error = open(request(), url, Duration::from_secs(1), &mut Some(())).await.expect_err("refused");
            assert!(matches!(error, TunnelError::Url { .. }), "{url}: {error}");
        }
        let plain = Request::builder().body(()).expect("request");
        assert!(matches!(
            open(plain, "http://127.0.0.1:1/", Duration::ZERO, &mut Some(())).await,
            Err(TunnelError::NoUpgrade)
        ));
    }

    proptest::proptest! {
        /// Class H: whatever a runtime calls a URL, only this machine is dialled, at the port that stands there in plain sight.
        #[test]
        fn no_url_leads_off_this_machine(
            scheme in proptest::sample::select(vec!["http://", "HTTP://", "https://", "unix://", "//", "http:/", "http:\\\\", ""]),
            user in proptest::sample::select(vec!["", "", "", "127.0.0.1@", "localhost:80@", "a:b@", "%40", "127.0.0.1%23@"]),
            host in proptest::sample::select(vec![
                "127.0.0.1", "127.1.2.3", "[::1]", "localhost", "LOCALHOST", "127.1", "0177.0.0.1", "0x7f.0.0.1", "2130706433",
                "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[fe80::1%25eth0]", "10.0.0.1", "169.254.169.254",
                "localhost.", "localhost.example", "127.0.0.1.example", "127.0.0.1%2eexample", "kubernetes.default", "", "[",
                "127.0.0.1,10.0.0.1",
            ]),
            port in proptest::sample::select(vec!["", ":80", ":6443", ":0", ":65536", ":-1", ":80:90", ":8o", ":"]),
            path in proptest::sample::select(vec!["", "/exec/x", "/@10.0.0.1/", "?@10.0.0.1:1/", "#@10.0.0.1/", "\\@10.0.0.1/"]),
        ) {
            let url = format!("{scheme}{user}{host}{port}{path}");
            if let Some((address, uri)) = destination(&url) {
                proptest::prop_assert!(address.ip().is_loopback(), "{url}: {address}");
                proptest::prop_assert!(["127.0.0.1", "127.1.2.3", "[::1]", "localhost"].contains(&host), "{url}: {address}");
                proptest::prop_assert!(user.is_empty() && scheme.eq_ignore_ascii_case("http://"), "{url}");
                let wanted = port.trim_start_matches(':').parse::<u16>().unwrap_or(80);
                proptest::prop_assert_eq!(address.port(), wanted, "{}", &url);
                proptest::prop_assert_eq!(uri.authority().map(|a| a.as_str().to_owned()), Some(format!("{host}{port}")));
            } else {
                let is_plain = ["127.0.0.1", "[::1]", "localhost"].contains(&host) && [":80", ":6443"].contains(&port);
                let is_good = scheme == "http://" && user.is_empty() && is_plain && path == "/exec/x";
                proptest::prop_assert!(!is_good, "{url} is refused");
            }
        }
    }

    /// CVE-2020-8559: an API server that is sent elsewhere takes its credentials along.
    #[tokio::test]
    async fn a_redirect_of_the_runtime_is_not_passed_on() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/exec/token", listener.local_addr().expect("address"));
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await;
            let answer = b"HTTP/1.1 302 Found\r\nLocation: https://10.0.0.1:6443/\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(answer).await.expect("write");
        });
        let request =
            Request::builder().header(CONNECTION, "Upgrade").header(UPGRADE, "SPDY/3.1").body(()).expect("request");
        let mut work = Some(());
        let error = open(request, &url, Duration::from_secs(1), &mut work).await.expect_err("refused");
        assert!(matches!(error, TunnelError::Redirect { status: StatusCode::FOUND, .. }), "{error}");
        assert!(work.is_some(), "what was not begun holds nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_is_passed_on_and_an_idle_stream_ends() {
        let (mut caller, agent_a) = tokio::io::duplex(64);
        let (agent_b, mut runtime) = tokio::io::duplex(64);
        let task = tokio::spawn(join(agent_a, agent_b, Duration::from_secs(3600)));
        caller.write_all(b"ls\n").await.expect("write");
        let mut seen = [0; 3];
        runtime.read_exact(&mut seen).await.expect("read");
        assert_eq!(&seen, b"ls\n");
        drop(caller);
        assert_eq!(runtime.read(&mut seen).await.expect("read"), 0);
        drop(runtime);
        task.await.expect("both ends are closed");
    }

    /// A caller as it is after its process was killed: no close of TLS, only an error.
    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    impl AsyncWrite for Broken {
        fn poll_write(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            bytes: &[u8],
        ) -> std::task::Poll<io::Result<usize>> {
            std::task::Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    /// 192 streams of an API server that was killed held all its places for the four hours of the idle timeout.
    #[tokio::test(start_paused = true)]
    async fn a_caller_that_is_gone_holds_nothing_even_if_the_runtime_says_nothing() {
        let began = tokio::time::Instant::now();
        let (agent, mut runtime) = tokio::io::duplex(64);
        join(Broken, agent, Duration::from_secs(4 * 3600)).await;
        assert_eq!(runtime.read(&mut [0]).await.expect("read"), 0, "the runtime hears of it");
        let (caller, agent_a) = tokio::io::duplex(64);
        let (agent_b, _silent) = tokio::io::duplex(64);
        drop(caller);
        join(agent_a, agent_b, Duration::from_secs(4 * 3600)).await;
        assert!(began.elapsed() <= 2 * FAREWELL, "{:?}", began.elapsed());
    }
}
