use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Container;
use nodelet_proto::health::health_check_response::ServingStatus;
use nodelet_proto::health::health_server::{Health, HealthServer};
use nodelet_proto::health::{HealthCheckRequest, HealthCheckResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::worker::Answer;
use super::*;
use crate::event::Event;

fn no_exec() -> ExecFn {
    Arc::new(|_, _, _| Box::pin(async { Err(ExecError::Failed("no runtime in this test".to_owned())) }))
}

fn tools(exec: ExecFn) -> Tools {
    Tools {
        exec,
        exec_slots: Semaphore::new(1),
        user_agent: "kube-probe/1.36".to_owned(),
        recorder: Recorder::new().0,
        tls: http::unverified_tls(),
    }
}

/// A server that reads one request of each connection, keeps it, and answers what `answer` says for it.
async fn serve(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                let n = stream.read(&mut buffer).await.unwrap();
                if n == 0 {
                    break;
                }
                request.extend(&buffer[..n]);
            }
            let text = String::from_utf8(request).unwrap();
            let reply = answer(&text);
            log.lock().unwrap().push(text);
            // The prober may have closed already after it read enough.
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    (port, seen)
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

async fn get(port: u16, path: &str, headers: &[(String, String)]) -> Answer {
    let page = Page { scheme: "http", host: "127.0.0.1".to_owned(), port, path };
    http::probe(&tools(no_exec()), page, headers, Duration::from_secs(5)).await
}

#[tokio::test]
async fn http_statuses_decide() {
    let table = [
        ("200 OK", Outcome::Success, "hello"),
        ("204 No Content", Outcome::Success, "hello"),
        ("399 Odd", Outcome::Success, "Probe terminated redirects, Response body: hello"),
        ("400 Bad Request", Outcome::Failure, "HTTP probe failed with statuscode: 400"),
        ("500 Internal Server Error", Outcome::Failure, "HTTP probe failed with statuscode: 500"),
    ];
    for (status, outcome, text) in table {
        let body = if status.starts_with("204") { "" } else { "hello" };
        let (port, _) = serve(move |_| reply(status, "", body)).await;
        let answer = get(port, "/", &[]).await;
        let expected = if body.is_empty() { "" } else { text };
        assert_eq!((answer.outcome, answer.text.as_str()), (outcome, expected), "{status}");
    }
}

#[tokio::test]
async fn http_requests_look_like_kubelets() {
    let (port, seen) = serve(|_| reply("200 OK", "", "")).await;
    get(port, "/healthz?full=1#x", &[]).await;
    let headers = [("Host", "web.example"), ("X-Note", "a b"), ("Accept", ""), ("user-agent", "mine")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    get(port, "no slash", &headers).await;
    let seen = seen.lock().unwrap();
    let first = seen[0].to_lowercase();
    assert!(first.starts_with("get /healthz?full=1 http/1.1\r\n"), "{first}");
    for line in [format!("host: 127.0.0.1:{port}"), "user-agent: kube-probe/1.36".into(), "accept: */*".into()] {
        assert!(first.contains(&format!("{line}\r\n")), "{line} in {first}");
    }
    let second = seen[1].to_lowercase();
    assert!(second.starts_with("get /no%20slash http/1.1\r\n"), "{second}");
    assert!(second.contains("host: web.example\r\n") && second.contains("x-note: a b\r\n"), "{second}");
    assert!(second.contains("user-agent: mine\r\n") && !second.contains("accept:"), "{second}");
}

#[tokio::test]
async fn redirects_on_the_host_are_followed_and_others_warn() {
    let (port, seen) = serve(|request| {
        if request.starts_with("GET /a/start ") {
            reply("302 Found", "Location: next\r\n", "")
        } else if request.starts_with("GET /a/next ") {
            reply("200 OK", "", "arrived")
        } else if request.starts_with("GET /loop ") {
            reply("307 Temporary Redirect", "Location: /loop\r\n", "")
        } else {
            reply("301 Moved", "Location: https://example.invalid/x\r\n", "away")
        }
    })
    .await;
    let followed = get(port, "/a/start", &[]).await;
    assert_eq!((followed.outcome, followed.text.as_str(), followed.warning), (Outcome::Success, "arrived", false));
    let away = get(port, "/away", &[]).await;
    assert_eq!((away.outcome, away.warning), (Outcome::Success, true));
    assert_eq!(away.text, "Probe terminated redirects, Response body: away");
    seen.lock().unwrap().clear();
    let endless = get(port, "/loop", &[]).await;
    assert_eq!(endless.outcome, Outcome::Failure);
    assert!(endless.text.ends_with("stopped after 10 redirects"), "{}", endless.text);
    assert_eq!(seen.lock().unwrap().len(), 10);
}

/// Server-side request forgery (CVE class of kubernetes issue 99425): what answers a probe cannot send the node elsewhere.
#[tokio::test]
async fn a_redirect_to_another_address_is_not_connected_to() {
    let elsewhere = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let there = elsewhere.local_addr().unwrap();
    let (port, _) = serve(move |request| {
        let target = match request {
            r if r.starts_with("GET /absolute ") => format!("http://{there}/latest/meta-data"),
            r if r.starts_with("GET /relative ") => format!("//{there}/"),
            r if r.starts_with("GET /user ") => format!("http://127.0.0.1@{there}/"),
            r if r.starts_with("GET /port ") => format!("http://127.0.0.1.:{}/", there.port()),
            _ => format!("http://127.0.0.2:{}/", there.port()),
        };
        reply("302 Found", &format!("Location: {target}\r\n"), "")
    })
    .await;
    let secret = [("Authorization".to_owned(), "Bearer secret".to_owned())];
    for path in ["/absolute", "/relative", "/user", "/port", "/"] {
        let answer = get(port, path, &secret).await;
        assert_eq!((answer.outcome, answer.warning), (Outcome::Success, true), "{path}: {}", answer.text);
        let page = Page { scheme: "http", host: "127.0.0.1".to_owned(), port, path };
        fetch(page, &secret, "kube-lifecycle").await.expect("any answer is one");
    }
    let connected = tokio::time::timeout(Duration::ZERO, elsewhere.accept()).await;
    assert!(connected.is_err(), "somebody connected: {connected:?}");
}

#[tokio::test]
async fn the_body_of_a_failed_probe_is_told_to_nobody() {
    let (port, _) = serve(|_| reply("403 Forbidden", "", "secret of the node's network")).await;
    let answer = get(port, "/", &[]).await;
    assert_eq!((answer.outcome, answer.text.as_str()), (Outcome::Failure, "HTTP probe failed with statuscode: 403"));
}

#[tokio::test]
async fn a_large_body_is_read_only_in_part() {
    let (port, _) =
        serve(|_| format!("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n{}", "x".repeat(65_536))).await;
    let answer = get(port, "/", &[]).await;
    assert_eq!((answer.outcome, answer.text.len()), (Outcome::Success, 10 * 1024));
}

#[tokio::test]
async fn a_silent_server_fails_at_the_timeout_and_a_closed_port_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let page = Page { scheme: "http", host: "127.0.0.1".to_owned(), port, path: "/" };
    let silent = http::probe(&tools(no_exec()), page.clone(), &[], Duration::from_millis(50)).await;
    assert_eq!(silent.outcome, Outcome::Failure);
    assert!(silent.text.contains("Client.Timeout exceeded"), "{}", silent.text);
    drop(listener);
    let closed = http::probe(&tools(no_exec()), page, &[], Duration::from_secs(5)).await;
    let expected = format!("Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!((closed.outcome, closed.text), (Outcome::Failure, expected));
}

#[tokio::test]
async fn https_is_asked_without_trusting_anybody() {
    let key = rcgen::generate_simple_self_signed(["somebody.else".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await.unwrap();
        stream.write_all(reply("200 OK", "", "secure").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let page = Page { scheme: "https", host: "127.0.0.1".to_owned(), port, path: "/" };
    let answer = http::probe(&tools(no_exec()), page, &[], Duration::from_secs(5)).await;
    assert_eq!((answer.outcome, answer.text.as_str()), (Outcome::Success, "secure"));
}

#[tokio::test]
async fn a_tcp_probe_wants_a_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let limit = Duration::from_secs(5);
    assert_eq!(tcp::probe("127.0.0.1", port, limit).await.outcome, Outcome::Success);
    drop(listener);
    let refused = tcp::probe("127.0.0.1", port, limit).await;
    assert_eq!(refused, Answer::failure(format!("dial tcp 127.0.0.1:{port}: connect: connection refused")));
}

struct Checkup;

#[tonic::async_trait]
impl Health for Checkup {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        let status = match request.get_ref().service.as_str() {
            "" => ServingStatus::Serving,
            "down" => ServingStatus::NotServing,
            _ => return Err(tonic::Status::not_found("unknown service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = futures_util::stream::Empty<Result<HealthCheckResponse, tonic::Status>>;

    async fn watch(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not needed"))
    }
}

#[tokio::test]
async fn a_grpc_probe_wants_serving() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tonic::transport::Server::builder().add_service(HealthServer::new(Checkup));
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    let limit = Duration::from_secs(5);
    let tools = tools(no_exec());
    let ask = |service: &'static str| grpc::probe(&tools, "127.0.0.1", port, service, limit);
    assert_eq!(ask("").await, Answer::success("service healthy".to_owned()));
    assert_eq!(ask("down").await, Answer::failure("service unhealthy (responded with \"NOT_SERVING\")".to_owned()));
    assert!(ask("nobody").await.text.starts_with("error: health rpc probe failed: "));
    serving.abort();
    let _ = serving.await;
    let gone = ask("").await;
    assert_eq!(gone.outcome, Outcome::Failure);
    assert!(gone.text.starts_with("error: failed to connect service at "), "{}", gone.text);
}

/// A prober whose exec probes answer what `verdict` says for the command's first word.
struct Bench {
    prober: Prober,
    changed: mpsc::UnboundedReceiver<PodUid>,
    events: mpsc::Receiver<Event>,
    uid: PodUid,
}

fn bench(exec: ExecFn) -> Bench {
    let (tx, changed) = mpsc::unbounded_channel();
    let (recorder, events) = Recorder::new();
    let settings = Settings { exec_concurrency: 1, ..Settings::default() };
    Bench { prober: Prober::new(settings, exec, tx, recorder), changed, events, uid: PodUid::new("uid") }
}

fn answering(verdict: impl Fn(&str) -> Result<i32, ExecError> + Send + Sync + 'static) -> ExecFn {
    Arc::new(move |_, command, _| {
        let answer = verdict(&command[0]).map(|exit_code| ExecOutcome { exit_code, output: b"output".to_vec() });
        Box::pin(async { answer }) as BoxFuture<'static, _>
    })
}

fn exec_probe(kind: Kind, word: &str) -> ProbeSpec {
    ProbeSpec {
        kind,
        handler: Handler::Exec { command: vec![word.to_owned()] },
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 2,
    }
}

impl Bench {
    fn ensure(&self, id: &str, probes: Vec<ProbeSpec>) {
        self.ensure_while(false, id, probes);
    }

    fn ensure_while(&self, is_stopping: bool, id: &str, probes: Vec<ProbeSpec>) {
        let container = ContainerProbes {
            name: "main".to_owned(),
            id: ContainerId::new(id),
            started_at: Instant::now(),
            init: false,
            probes,
        };
        let key = ObjectKey::new("default", "web");
        self.prober.ensure(PodProbes {
            uid: self.uid.clone(),
            key,
            pod_ip: None,
            containers: vec![container],
            is_stopping,
        });
    }

    fn result(&self, id: &str, kind: Kind) -> ProbeResult {
        self.prober.result(&self.uid, "main", &ContainerId::new(id), kind)
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_probed_at_once_and_a_new_container_starts_afresh() {
    let mut bench = bench(answering(|_| Ok(0)));
    let begin = Instant::now();
    let probes = vec![exec_probe(Kind::Readiness, "ok")];
    bench.ensure("a", probes.clone());
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Failure);
    assert_eq!(bench.changed.recv().await, Some(bench.uid.clone()));
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Success);
    assert!(begin.elapsed() < Duration::from_millis(10), "{:?}", begin.elapsed());

    bench.ensure("a", probes.clone());
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Success, "ensure is idempotent");
    bench.ensure("b", probes);
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Unknown);
    assert_eq!(bench.result("b", Kind::Readiness), ProbeResult::Failure);
    bench.prober.remove(&bench.uid);
    assert_eq!(bench.result("b", Kind::Readiness), ProbeResult::Unknown);
}

#[tokio::test(start_paused = true)]
async fn liveness_and_readiness_wait_for_startup() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let mut bench = bench(answering(move |word| match word {
        "start" => Ok(i32::from(counter.fetch_add(1, Ordering::SeqCst) < 3)),
        _ => Ok(0),
    }));
    let mut startup = exec_probe(Kind::Startup, "start");
    startup.failure_threshold = 30;
    bench.ensure("a", vec![startup, exec_probe(Kind::Readiness, "ok")]);
    let begin = Instant::now();
    bench.changed.recv().await;
    assert_eq!(bench.result("a", Kind::Startup), ProbeResult::Success);
    bench.changed.recv().await;
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Success);
    // Three failures and a success, ten seconds apart; readiness at once after that.
    assert!(begin.elapsed() >= Duration::from_secs(30) && begin.elapsed() < Duration::from_secs(31));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(calls.load(Ordering::SeqCst), 4, "a decided startup probe runs no more");
}

#[tokio::test(start_paused = true)]
async fn a_failing_liveness_probe_is_told_once_with_events_in_kubelets_words() {
    let mut bench = bench(answering(|_| Ok(1)));
    bench.ensure("a", vec![exec_probe(Kind::Liveness, "check")]);
    assert_eq!(bench.result("a", Kind::Liveness), ProbeResult::Success);
    bench.changed.recv().await;
    assert_eq!(bench.result("a", Kind::Liveness), ProbeResult::Failure);
    for _ in 0..2 {
        let event = bench.events.recv().await.unwrap();
        assert_eq!((event.reason, event.message.as_str()), ("Unhealthy", "Liveness probe failed: output"));
        match event.subject {
            Subject::Pod { field_path, .. } => assert_eq!(field_path, "spec.containers{main}"),
            other => panic!("{other:?}"),
        }
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(bench.events.try_recv().is_err(), "it is not probed again while it is being restarted");
    assert!(bench.changed.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_cannot_exec_changes_nothing_and_a_timeout_is_a_failure() {
    let mut bench = bench(answering(|word| match word {
        "slow" => Err(ExecError::TimedOut),
        _ => Err(ExecError::Failed("runtime is away".to_owned())),
    }));
    bench.ensure("a", vec![exec_probe(Kind::Liveness, "away")]);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(bench.result("a", Kind::Liveness), ProbeResult::Success);
    let event = bench.events.recv().await.unwrap();
    assert_eq!(event.message, "Liveness probe errored and resulted in unknown state: runtime is away");
    bench.ensure("b", vec![exec_probe(Kind::Liveness, "slow")]);
    bench.changed.recv().await;
    assert_eq!(bench.result("b", Kind::Liveness), ProbeResult::Failure);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_flips_nothing_before_it_has_probed() {
    let mut bench = bench(answering(|_| Ok(1)));
    let id = ContainerId::new("a");
    bench.prober.seed(&bench.uid, &id, Kind::Startup, ProbeResult::Success);
    bench.prober.seed(&bench.uid, &id, Kind::Readiness, ProbeResult::Success);
    bench.ensure("a", vec![exec_probe(Kind::Startup, "start"), exec_probe(Kind::Readiness, "ready")]);
    assert_eq!(bench.result("a", Kind::Startup), ProbeResult::Success);
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Success);
    bench.changed.recv().await;
    assert_eq!(bench.result("a", Kind::Readiness), ProbeResult::Failure, "two real failures count");
}

#[tokio::test(start_paused = true)]
async fn exec_probes_share_their_slots() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (r, m) = (running.clone(), most.clone());
    let exec: ExecFn = Arc::new(move |_, _, _| {
        let (r, m) = (r.clone(), m.clone());
        Box::pin(async move {
            m.fetch_max(r.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(3)).await;
            r.fetch_sub(1, Ordering::SeqCst);
            Ok(ExecOutcome { exit_code: 0, output: Vec::new() })
        })
    });
    let mut bench = bench(exec);
    bench.ensure("a", vec![exec_probe(Kind::Liveness, "l"), exec_probe(Kind::Readiness, "r")]);
    bench.changed.recv().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[test]
fn a_probe_spec_resolves_names_and_expands_variables() {
    let container: Container = serde_json::from_value(serde_json::json!({
        "name": "main",
        "env": [{"name": "FILE", "value": "/tmp/x"}],
        "ports": [{"name": "http", "containerPort": 8080}],
        "startupProbe": {"exec": {"command": ["cat", "$(FILE)", "$(OTHER)"]}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"port": "http", "path": "/live", "scheme": "HTTPS"}},
        "readinessProbe": {"tcpSocket": {"port": "nope"}}
    }))
    .unwrap();
    let probes = container_probes(&container);
    let command = ["cat", "/tmp/x", "$(OTHER)"].map(str::to_owned).to_vec();
    assert_eq!(probes[0].handler, Handler::Exec { command });
    assert_eq!((probes[0].period, probes[0].failure_threshold), (Duration::from_secs(1), 3));
    match &probes[1].handler {
        Handler::Http { scheme: "https", port: 8080, path, host: None, .. } => assert_eq!(path, "/live"),
        other => panic!("{other:?}"),
    }
    assert_eq!(probes[2].handler, Handler::Broken("port \"nope\" not found".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn of_a_pod_that_stops_only_readiness_is_probed() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let mut bench = bench(answering(move |word| {
        log.lock().unwrap().push(word.to_owned());
        Ok(1)
    }));
    let probes = [(Kind::Startup, "startup"), (Kind::Liveness, "alive"), (Kind::Readiness, "ready")]
        .map(|(kind, word)| exec_probe(kind, word))
        .to_vec();
    bench.ensure("a", probes.clone());
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*asked.lock().unwrap(), ["startup"], "the startup probe holds the others");
    bench.ensure_while(true, "a", probes);
    assert_eq!(bench.result("a", Kind::Startup), ProbeResult::Success, "it counts as started");
    assert_eq!(bench.result("a", Kind::Liveness), ProbeResult::Success, "it counts as alive");
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(asked.lock().unwrap()[1..].iter().all(|word| word == "ready"), "{:?}", asked.lock().unwrap());
    assert!(asked.lock().unwrap().len() >= 3);
    assert!(bench.changed.try_recv().is_err(), "not ready it was before");
}

#[tokio::test]
async fn a_hook_takes_any_answer_follows_redirects_on_the_host_and_keeps_its_host_header_there() {
    let (port, seen) = serve(|request| {
        if request.starts_with("GET /start") {
            reply("302 Found", "Location: /next\r\n", "")
        } else {
            reply("500 Internal Server Error", "", "oh")
        }
    })
    .await;
    let page = Page { scheme: "http", host: "127.0.0.1".to_owned(), port, path: "start" };
    let headers = [("Host".to_owned(), "example.org".to_owned())];
    fetch(page, &headers, "kube-lifecycle/1.37").await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    for request in seen {
        assert!(
            request.contains("host: example.org") && request.contains("user-agent: kube-lifecycle/1.37"),
            "{request}"
        );
    }
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart_from_one_that_is_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        let _ = stream.read(&mut buffer).await;
    });
    let page = Page { scheme: "https", host: "127.0.0.1".to_owned(), port, path: "/" };
    let plain = fetch(page.clone(), &[], "x").await.unwrap_err();
    assert!(plain.contains(NO_TLS), "{plain}");
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let away = fetch(Page { port: nobody, ..page }, &[], "x").await.unwrap_err();
    assert!(!away.contains(NO_TLS) && away.contains("connection refused"), "{away}");
}
