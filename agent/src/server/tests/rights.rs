//! Class G: every path with every method, with and without an upgrade, for callers that have one right each.

use super::*;
use crate::server::route::tests::{METHODS, PATHS};

const WEBHOOK: Authorization =
    Authorization::Webhook { allowed: Duration::from_secs(600), denied: Duration::from_secs(600) };

/// The subresources of which one is enough for a path: kubelet's documentation, written down by hand.
fn subresources(path: &str) -> &'static [&'static str] {
    match path.split('/').nth(1).unwrap_or_default() {
        "metrics" => &["metrics"],
        "stats" => &["stats"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "configz" => &["configz", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "containerLogs" | "exec" | "attach" | "portForward" | "run" => &["proxy"],
        other => panic!("{other}: say which right this path needs"),
    }
}

/// What runs something is `create`, whatever the method is: a WebSocket begins with GET (kubernetes#119640).
fn verb(method: &Method, path: &str) -> &'static str {
    let runs = ["/exec/", "/attach/", "/portForward/", "/run/"].iter().any(|root| path.starts_with(root));
    match method.as_str() {
        _ if runs => "create",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "get",
    }
}

/// A connection on which one request follows the other.
struct KeptAlive(tokio_rustls::client::TlsStream<TcpStream>);

impl KeptAlive {
    async fn ask(&mut self, method: &Method, path: &str, upgrade: &str) -> StatusCode {
        let connection = if upgrade.is_empty() { "keep-alive" } else { "Upgrade" };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: n\r\nConnection: {connection}{upgrade}\r\n\r\n");
        self.0.write_all(head.as_bytes()).await.unwrap();
        let (mut answer, mut some) = (Vec::new(), vec![0; 16 * 1024]);
        let (status, mut left) = loop {
            let read = tokio::time::timeout(Duration::from_secs(20), self.0.read(&mut some)).await.unwrap().unwrap();
            assert!(read > 0, "{method} {path} {upgrade:?}: closed after {:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&some[..read]);
            let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
            let length = if method == Method::HEAD { 0 } else { length.parse::<usize>().unwrap() };
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            break (status, length - (answer.len() - end - 4));
        };
        while left > 0 {
            let read = self.0.read(&mut some).await.unwrap();
            assert!(read > 0);
            left -= read;
        }
        status
    }
}

#[tokio::test]
async fn no_method_path_or_upgrade_does_more_than_the_one_right_that_a_caller_has() {
    let mut rights = vec![("watch", "proxy"), ("get", "exec"), ("create", "exec"), ("get", "*"), ("*", "proxy")];
    for verb in ["get", "create", "update", "patch", "delete"] {
        let all = ["proxy", "pods", "metrics", "stats", "log", "healthz", "configz", "statusz", "checkpoint", "spec"];
        rights.extend(all.map(|subresource| (verb, subresource)));
    }
    let (mut refused, mut let_through) = (0, 0);
    for right in rights {
        let rig = Rig::start(api(WEBHOOK, one_right(right.0, right.1).await)).await;
        let mut connection = KeptAlive(rig.connect(true).await);
        for path in PATHS {
            for method in METHODS {
                for upgrade in ["", "\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13", "\r\nUpgrade: SPDY/3.1"] {
                    let status = connection.ask(&method, path, upgrade).await;
                    let shown = format!("{method} {path} {upgrade:?} with {right:?}: {status}");
                    let may = verb(&method, path) == right.0 && subresources(path).contains(&right.1);
                    assert_eq!(status != StatusCode::FORBIDDEN, may, "{shown}");
                    assert_ne!(status, StatusCode::SWITCHING_PROTOCOLS, "{shown}");
                    assert!(!status.is_redirection() && status != StatusCode::UNAUTHORIZED, "{shown}");
                    refused += u32::from(!may);
                    let_through += u32::from(may);
                    let streams = ["/exec/", "/attach/", "/portForward/"].iter().any(|root| path.starts_with(root));
                    if may && !upgrade.is_empty() && !streams {
                        assert_eq!(status, StatusCode::BAD_REQUEST, "what is no stream is not upgraded: {shown}");
                    }
                }
            }
        }
    }
    assert!(refused > 10_000 && let_through > 300, "{refused} were refused and {let_through} let through");
}

/// Class F with `authentication.anonymous.enabled`: nobody is somebody, and has the rights that the API server gives to nobody.
#[tokio::test]
async fn callers_without_credentials_have_no_rights_where_they_are_let_in_either() {
    let nobody = Api { anonymous: true, ..api(WEBHOOK, one_right("none", "none").await) };
    let rig = Rig::start(nobody).await;
    let mut connection = KeptAlive(rig.connect(false).await);
    for path in PATHS {
        for method in METHODS {
            let status = connection.ask(&method, path, "").await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}");
        }
    }
}
