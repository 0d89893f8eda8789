use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::service::index::HealthCheck;

#[derive(Default)]
struct Fake {
    count: AtomicUsize,
    is_late: AtomicBool,
}

impl Source for Fake {
    fn local_endpoints(&self, _service: &ObjectKey, v6: bool) -> usize {
        if v6 { 0 } else { self.count.load(Ordering::Relaxed) }
    }
    fn is_healthy(&self) -> bool {
        !self.is_late.load(Ordering::Relaxed)
    }
}

struct Rig {
    checks: watch::Sender<HealthChecks>,
    _addresses: watch::Sender<Vec<IpAddr>>,
    source: Arc<Fake>,
    events: mpsc::Receiver<Event>,
    shutdown: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn start() -> Rig {
    let (checks, checks_rx) = watch::channel(HealthChecks::new());
    let (addresses, addresses_rx) = watch::channel(vec![[127, 0, 0, 1].into()]);
    let (recorder, events) = Recorder::new();
    let (source, shutdown) = (Arc::new(Fake::default()), CancellationToken::new());
    let inputs =
        Inputs { checks: checks_rx, addresses: addresses_rx, source: source.clone(), recorder, node_name: "n".into() };
    tokio::spawn(run(inputs, shutdown.clone()));
    Rig { checks, _addresses: addresses, source, events, shutdown }
}

/// A port that nobody has.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn check(name: &str, port: u16) -> HealthChecks {
    HealthChecks::from([(ObjectKey::new("default", name), HealthCheck { port, families: [true, false] })])
}

async fn ask(port: u16) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let all = async {
        while !check().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn load_balancers_are_told_in_kube_proxys_words() {
    let rig = start();
    let port = free_port();
    rig.source.count.store(2, Ordering::Relaxed);
    rig.checks.send_replace(check("web", port));
    until("the port opens", async || ask(port).await.is_ok()).await;
    let answer = ask(port).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    for line in
        ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"]
    {
        assert!(head.to_lowercase().contains(line), "{line}: {head}");
    }
    let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(body, expected);
    rig.source.count.store(0, Ordering::Relaxed);
    let answer = ask(port).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"localEndpoints\": 0"), "{answer}");
    rig.source.count.store(1, Ordering::Relaxed);
    rig.source.is_late.store(true, Ordering::Relaxed);
    let answer = ask(port).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"serviceProxyHealthy\": false"), "{answer}");
}

#[tokio::test]
async fn a_port_goes_with_its_service_and_passes_to_another() {
    let rig = start();
    let (port, other) = (free_port(), free_port());
    rig.checks.send_replace(check("web", port));
    until("the port opens", async || ask(port).await.is_ok()).await;
    rig.checks.send_replace(check("next", port));
    until("the next Service has it", async || ask(port).await.is_ok_and(|answer| answer.contains("\"next\""))).await;
    rig.checks.send_replace(check("next", other));
    until("the port closes", async || ask(port).await.is_err()).await;
    until("the other one opens", async || ask(other).await.is_ok()).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_once_and_served_when_it_is_free() {
    let mut rig = start();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    rig.checks.send_replace(check("web", port));
    let event = rig.events.recv().await.unwrap();
    assert_eq!(event.subject, Subject::Service { key: ObjectKey::new("default", "web") });
    assert_eq!((event.kind, event.reason), (EventType::Warning, "FailedToStartServiceHealthcheck"));
    let begin =
        format!("node n failed to start healthcheck \"default/web\" on port {port}: listen tcp 127.0.0.1:{port}: ");
    assert!(event.message.starts_with(&begin), "{}", event.message);
    drop(taken);
    until("the port opens", async || ask(port).await.is_ok()).await;
    assert!(rig.events.try_recv().is_err(), "told once");
}
