use k8s_openapi::api::core::v1::{NodeSpec, Taint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn node(taint: &str) -> Node {
    let taint = Taint { key: taint.into(), effect: "NoSchedule".into(), ..Taint::default() };
    Node { spec: Some(NodeSpec { taints: Some(vec![taint]), ..NodeSpec::default() }), ..Node::default() }
}

#[test]
fn a_change_that_waits_for_twice_the_sync_period_is_unhealthy() {
    let progress = ProxyProgress::new(Duration::from_secs(30));
    progress.observed(None, Some(at(0)));
    assert_eq!(progress.report(Probe::Ready, at(500)).0, StatusCode::OK, "nothing was ever committed");
    progress.observed(Some(at(500)), Some(at(1000)));
    assert_eq!(progress.report(Probe::Ready, at(1059)).0, StatusCode::OK);
    let (status, body) = progress.report(Probe::Live, at(1060));
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        body,
        json!({
            "lastUpdated": "1970-01-01T00:08:20Z", "currentTime": "1970-01-01T00:17:40Z", "healthy": false,
            "status": {
                "IPv4": {"lastUpdated": "1970-01-01T00:08:20Z", "healthy": false},
                "IPv6": {"lastUpdated": "1970-01-01T00:08:20Z", "healthy": false},
            },
        })
    );
    progress.observed(Some(at(1061)), None);
    assert_eq!(progress.report(Probe::Live, at(5000)).0, StatusCode::OK);
}

#[test]
fn a_node_that_is_about_to_go_gets_no_new_connections_but_lives() {
    let progress = ProxyProgress::new(Duration::from_secs(30));
    assert_eq!(progress.report(Probe::Ready, at(1)).0, StatusCode::OK);
    progress.node_seen(Some(&node("ToBeDeletedByClusterAutoscaler")));
    let (status, body) = progress.report(Probe::Ready, at(1));
    assert_eq!((status, &body["nodeEligible"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
    assert_eq!(progress.report(Probe::Live, at(1)).0, StatusCode::OK);
    progress.node_seen(Some(&node("other")));
    assert_eq!(progress.report(Probe::Ready, at(1)).0, StatusCode::OK);
    progress.node_seen(None);
    assert_eq!(progress.report(Probe::Ready, at(1)).0, StatusCode::SERVICE_UNAVAILABLE);
}

#[test]
fn answers_to_load_balancers_are_counted_by_code() {
    let progress = ProxyProgress::new(Duration::from_secs(30));
    progress.answer(Probe::Ready, at(1));
    progress.node_seen(None);
    progress.answer(Probe::Ready, at(1));
    progress.answer(Probe::Live, at(1));
    let text = progress.metrics();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
}

async fn ask(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn the_servers_answer_until_shutdown() {
    let shutdown = CancellationToken::new();
    let mut tasks = Vec::new();
    for (routes, path, expected) in [
        (kubelet_routes(), "/healthz", "ok"),
        (metrics_routes(|| "mine 1\n".into(), json!({"a": 1})), "/proxyMode", "nftables"),
        (metrics_routes(|| "mine 1\n".into(), json!({"a": 1})), "/metrics", "\nmine 1\n"),
        (metrics_routes(String::new, json!({"a": 1})), "/configz", "{\"a\":1}"),
        (proxy_routes(ProxyProgress::new(Duration::from_secs(30)), |_| {}), "/healthz", "\"nodeEligible\":true"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tasks.push(tokio::spawn(serve_on(listener, routes, shutdown.clone())));
        let answer = ask(address, path).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(expected), "{path}: {answer}");
    }
    shutdown.cancel();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(10), task).await.expect("ends with shutdown").unwrap();
    }
}
