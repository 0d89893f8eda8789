use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use tokio::net::UnixStream;

use super::*;

fn make_pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
        "status": {"containerStatuses": [status]},
    }))
    .unwrap()
}

fn status(restarts: u32, state: Value, last: Value) -> Value {
    json!({"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": restarts, "state": state, "lastState": last})
}

struct Fixed(PathBuf);

impl View for Fixed {
    fn pods(&self) -> Vec<Pod> {
        vec![make_pod(status(0, json!({"running": {}}), json!({})))]
    }
    fn services(&self) -> Vec<Value> {
        Vec::new()
    }
    fn endpoint_slices(&self) -> Vec<Value> {
        Vec::new()
    }
    fn events(&self, _: &PodUid) -> Vec<Record> {
        Vec::new()
    }
    fn log_dir(&self) -> PathBuf {
        self.0.clone()
    }
}

async fn ask(socket: &Path, path: &str) -> (StatusCode, String) {
    let stream = UnixStream::connect(socket).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn the_socket_is_roots_alone_and_shows_pods_and_logs_until_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let logs = dir.path().join("logs/default_web_u1/a");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("0.log"), "2026-01-01T00:00:00Z stdout F hello\n").unwrap();
    let state = StateDir::acquire(&path).unwrap();
    let listener = state.bind().unwrap();
    let socket = path.join(SOCKET);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&socket)), (0o700, 0o600));
    let shutdown = CancellationToken::new();
    let view = Arc::new(Fixed(dir.path().join("logs")));
    let answers = Answers { view, garbage: None, services: None };
    let server = tokio::spawn(serve(listener, answers, shutdown.clone()));
    let (status, pods) = ask(&socket, "/pods").await;
    let pods: Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(
        (status, &pods["kind"], &pods["items"][0]["metadata"]["name"]),
        (StatusCode::OK, &json!("PodList"), &json!("web"))
    );
    assert_eq!(ask(&socket, "/logs/default/web").await, (StatusCode::OK, "hello\n".into()));
    let (status, text) = ask(&socket, "/logs/default/other").await;
    assert_eq!((status, text.as_str()), (StatusCode::NOT_FOUND, "pod default/other not found on this node\n"));
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), server).await.expect("ends with shutdown").unwrap();
}

#[tokio::test]
async fn a_socket_that_an_agent_left_is_replaced_and_a_second_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateDir::acquire(dir.path()).unwrap();
    drop(first.bind().unwrap());
    assert!(std::fs::metadata(dir.path().join(SOCKET)).unwrap().file_type().is_socket(), "closing leaves the file");
    let error = StateDir::acquire(dir.path()).unwrap_err().to_string();
    assert!(error.contains("another nodelet runs") && error.contains("--state-dir"), "{error}");
    drop(first);
    let second = StateDir::acquire(dir.path()).unwrap();
    let listener = second.bind().unwrap();
    let (connected, accepted) = tokio::join!(UnixStream::connect(dir.path().join(SOCKET)), listener.accept());
    assert!(connected.is_ok() && accepted.is_ok());
}

#[test]
fn a_shared_directory_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let _held = StateDir::acquire(dir.path()).unwrap();
    assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);
}
