//! The server over real connections: who gets in, and what a flood does. The runtime and the API server are not there, unless
//! a test says so.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;

use super::*;
use crate::api::client::ApiClient;
use crate::api::kubeconfig;
use crate::api::tls::{self, CertSlot, Trust};
use crate::cgroup;
use crate::config::kubelet::{Authorization, TlsOptions};
use crate::control::View;
use crate::cri::Runtime;
use crate::event::ring::Record;
use crate::ids::PodUid;
use crate::volume::stats::{Counts, PodFigures, Way};

mod floods;
mod rights;

struct NoPods;

impl View for NoPods {
    fn pods(&self) -> Vec<Pod> {
        Vec::new()
    }

    fn services(&self) -> Vec<Value> {
        Vec::new()
    }

    fn endpoint_slices(&self) -> Vec<Value> {
        Vec::new()
    }

    fn events(&self, _uid: &PodUid) -> Vec<Record> {
        Vec::new()
    }

    fn log_dir(&self) -> PathBuf {
        PathBuf::new()
    }
}

fn meter(runtime: Runtime) -> usage::Meter {
    struct NoVolumes;
    impl volumes::Measures for NoVolumes {
        fn figures(&self, _: PodUid, _: Vec<(String, Way)>) -> BoxFuture<'static, Result<PodFigures, String>> {
            Box::pin(async { Ok(PodFigures::default()) })
        }

        fn counts(&self, _: &[Pod]) -> Counts {
            Counts::default()
        }
    }
    let settings = cgroup::Settings {
        driver: cgroup::Driver::Cgroupfs,
        cgroup_root: "/".into(),
        qos_cgroups: false,
        cfs_quota: cgroup::CfsQuota::Off,
        pids_limit: None,
        allocatable: Default::default(),
        memory_capacity: 0,
        swap: cgroup::SwapBehavior::NoSwap,
        memory_qos: cgroup::MemoryQos::Off,
        single_process_oom_kill: false,
    };
    usage::Meter::new(usage::Sources {
        runtime,
        root_dir: "/".into(),
        log_dir: "/".into(),
        cgroups: cgroup::Cgroups::new(settings).unwrap(),
        volumes: volumes::VolumeMeter::new(Arc::new(NoVolumes), None),
    })
}

fn api(authorization: Authorization, server: SocketAddr) -> Api {
    let text = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'http://{server}'}}}}]\n"
    );
    let config = kubeconfig::parse(Path::new("/x"), &text).unwrap();
    let client = ApiClient::new(&config, "0").unwrap().kube();
    let runtime = Runtime::new("/nonexistent".into(), "/nonexistent".into(), Duration::from_secs(1));
    Api {
        node: "n".into(),
        view: Arc::new(NoPods),
        surface: route::Surface::Full,
        meter: meter(runtime.clone()),
        runtime,
        reviewer: review::Reviewer::new(client, "n".into(), Some(Duration::from_secs(60)), authorization),
        anonymous: false,
        stream_idle: Duration::from_secs(60),
        configz: Value::Null,
        started: jiff::Timestamp::UNIX_EPOCH,
        system_logs: None,
        checkpoints: "/nonexistent".into(),
        checkpoint_turn: Semaphore::new(1),
        run_turns: Semaphore::new(1),
        probes: Box::new(|_| {}),
        cgroup: 2,
        scratch: Mutex::default(),
    }
}

/// A running server, and a client certificate that it knows.
struct Rig {
    address: SocketAddr,
    slot: Arc<CertSlot>,
    _stop: tokio_util::sync::DropGuard,
    _dir: tempfile::TempDir,
}

impl Rig {
    async fn start(api: Api) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = cert::ensure_self_signed(dir.path(), "n", &[]).unwrap();
        let client_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "apiserver");
        let client = params.self_signed(&client_key).unwrap();
        let ca = dir.path().join("ca.crt");
        std::fs::write(&ca, client.pem()).unwrap();
        let slot = Arc::new(CertSlot::default());
        slot.set(tls::certified_key(client.pem().as_bytes(), client_key.serialize_pem().as_bytes()).unwrap());
        let options = TlsOptions::default();
        let files = cert::Files { cert, key, client_ca: Some(ca), is_requested: false, options };
        let door = Door::Checked(Arc::new(Acceptor::new(files).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve_on(listener, door, Arc::new(api), stop.clone()));
        Self { address, slot, _stop: stop.drop_guard(), _dir: dir }
    }

    async fn connect(&self, with_certificate: bool) -> tokio_rustls::client::TlsStream<TcpStream> {
        let slot = if with_certificate { self.slot.clone() } else { Arc::default() };
        let config = tls::client_config(Trust::Anybody, slot).unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = TcpStream::connect(self.address).await.unwrap();
        connector.connect(ServerName::try_from("n").unwrap(), stream).await.unwrap()
    }

    /// Status and body of one request; `None` when the connection ends without an answer.
    async fn ask(&self, with_certificate: bool, head: &str) -> Option<(StatusCode, String)> {
        let mut stream = self.connect(with_certificate).await;
        let head = format!("{head}\r\nHost: n\r\nConnection: close, Upgrade\r\n\r\n");
        // The server may answer and close before all is written.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }
}

const NOWHERE: ([u8; 4], u16) = ([127, 0, 0, 1], 1);

#[tokio::test]
async fn nobody_without_credentials_gets_anything_or_learns_what_exists() {
    let rig = Rig::start(api(Authorization::AlwaysAllow, NOWHERE.into())).await;
    let mut answers = std::collections::BTreeSet::new();
    // The whole table of routes, and what a kubelet may have beside it.
    let others = ["/debug/pprof/", "/debug/flags/v", "/spec/", "/stats/container", "/cri/x", "/there/is/no/such/path"];
    for path in route::tests::PATHS.into_iter().chain(others) {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            for extra in ["", "\r\nAuthorization: Basic eDp5", "\r\nUpgrade: websocket", "\r\nX-Remote-User: admin"] {
                let answer = rig.ask(false, &format!("{method} {path} HTTP/1.1{extra}")).await;
                answers.insert(answer.unwrap_or_else(|| panic!("no answer to {method} {path}")));
            }
        }
    }
    let only: Vec<_> = answers.into_iter().collect();
    assert_eq!(only, [(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())]);
    assert_eq!(rig.ask(true, "GET /healthz HTTP/1.1").await, Some((StatusCode::OK, "ok".to_owned())));
}

#[tokio::test]
async fn connections_that_say_nothing_make_room_and_the_api_server_gets_through() {
    let rig = Rig::start(api(Authorization::AlwaysAllow, NOWHERE.into())).await;
    let mut flood = Vec::new();
    for number in 0..4 * gate::UNPROVEN {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        if number % 2 == 0 {
            // The first byte of a handshake that goes no further.
            stream.write_all(&[0x16]).await.unwrap();
        }
        flood.push(stream);
    }
    let asked = tokio::time::timeout(Duration::from_secs(5), rig.ask(true, "GET /healthz HTTP/1.1"));
    assert_eq!(asked.await.unwrap(), Some((StatusCode::OK, "ok".to_owned())));
    for stream in &mut flood[..3 * gate::UNPROVEN - 1] {
        let mut byte = [0];
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte));
        assert!(matches!(closed.await, Ok(Ok(0) | Err(_))), "an old connection is kept");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_before_it_is_all_read() {
    let rig = Rig::start(api(Authorization::AlwaysAllow, NOWHERE.into())).await;
    let head = format!("GET /pods HTTP/1.1\r\nX-Large: {}", "x".repeat(4 * HEAD));
    let answer = rig.ask(false, &head).await;
    assert!(answer.is_none_or(|(status, _)| status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    let many = format!("GET /pods HTTP/1.1{}", "\r\nX: y".repeat(10_000));
    let answer = rig.ask(false, &many).await;
    assert!(answer.is_none_or(|(status, _)| status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
}

/// An API server that allows one verb on one subresource.
async fn one_right(verb: &'static str, subresource: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let review = move |axum::Json(mut review): axum::Json<Value>| async move {
        let attributes = &review["spec"]["resourceAttributes"];
        let allowed = attributes["verb"] == verb && attributes["subresource"] == subresource;
        review["status"] = json!({ "allowed": allowed });
        (StatusCode::CREATED, axum::Json(review))
    };
    let routes =
        axum::Router::new().route("/apis/authorization.k8s.io/v1/subjectaccessreviews", axum::routing::post(review));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// kubernetes#119640: with kubelet, `get nodes/proxy` runs commands in every pod of the node.
#[tokio::test]
async fn a_right_to_read_through_the_proxy_runs_nothing() {
    let webhook = Authorization::Webhook { allowed: Duration::from_secs(60), denied: Duration::from_secs(60) };
    let rig = Rig::start(api(webhook, one_right("get", "proxy").await)).await;
    for path in [
        "/exec/n/p/c?command=id&output=1",
        "/attach/n/p/c?output=1",
        "/portForward/n/p",
        "/run/n/p/c?cmd=id",
        "/%65xec/n/p/c",
    ] {
        for upgrade in ["", "\r\nUpgrade: websocket", "\r\nUpgrade: SPDY/3.1"] {
            for method in ["GET", "POST", "HEAD", "PUT"] {
                let answer = rig.ask(true, &format!("{method} {path} HTTP/1.1{upgrade}")).await;
                assert_eq!(answer.map(|(status, _)| status), Some(StatusCode::FORBIDDEN), "{method} {path} {upgrade}");
            }
        }
    }
    let logs = rig.ask(true, "GET /containerLogs/n/p/c HTTP/1.1").await;
    assert_eq!(logs.map(|(status, _)| status), Some(StatusCode::NOT_FOUND), "reading is allowed, and there is no pod");
    let upgraded = rig.ask(true, "GET /containerLogs/n/p/c HTTP/1.1\r\nUpgrade: websocket").await;
    assert_eq!(upgraded.map(|(status, _)| status), Some(StatusCode::BAD_REQUEST), "what reads is not upgraded");
    let other = rig.ask(true, "GET /metrics HTTP/1.1").await;
    assert_eq!(other.map(|(status, _)| status), Some(StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn who_may_create_through_the_proxy_gets_as_far_as_the_pod() {
    let webhook = Authorization::Webhook { allowed: Duration::from_secs(60), denied: Duration::from_secs(60) };
    let rig = Rig::start(api(webhook, one_right("create", "proxy").await)).await;
    let answer = rig.ask(true, "GET /exec/n/p/c?command=id&output=1 HTTP/1.1\r\nUpgrade: websocket").await;
    assert_eq!(answer, Some((StatusCode::NOT_FOUND, "pod does not exist".to_owned())));
}

/// A SubjectAccessReview that cannot be had is no permission.
#[tokio::test]
async fn an_api_server_that_is_away_lets_nobody_in() {
    let webhook = Authorization::Webhook { allowed: Duration::from_secs(60), denied: Duration::from_secs(60) };
    let rig = Rig::start(api(webhook, NOWHERE.into())).await;
    let answer = rig.ask(true, "GET /pods HTTP/1.1").await.unwrap();
    assert_eq!(answer.0, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.1.starts_with("Authorization error (user=apiserver, verb=get, resource=nodes"), "{}", answer.1);
    let token = rig.ask(false, "GET /pods HTTP/1.1\r\nAuthorization: Bearer stolen").await;
    assert_eq!(token, Some((StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())));
}

#[tokio::test]
async fn the_read_only_port_answers_without_tls_and_only_reads() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let api = Arc::new(api(Authorization::AlwaysAllow, NOWHERE.into()));
    tokio::spawn(serve_on(listener, Door::Open, api, stop.clone()));
    let ask = async |line: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let pods = ask("GET /pods").await;
    assert!(pods.starts_with("HTTP/1.1 200") && pods.contains("PodList"), "{pods}");
    assert!(ask("GET /metrics").await.contains("kubelet_node_name{node=\"n\"} 1"));
    assert!(ask("POST /pods").await.starts_with("HTTP/1.1 405"));
    assert!(ask("GET /configz").await.starts_with("HTTP/1.1 404"));
    let exec = ask("POST /exec/n/p/c?command=id&output=1").await;
    assert!(exec.starts_with("HTTP/1.1 405") && exec.contains("Debug endpoints are disabled."), "{exec}");
    stop.cancel();
}
