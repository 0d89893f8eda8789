//! Writes events to the API server, so that `kubectl describe` shows what happened.
//!
//! What to write is decided by [`aggregate`]: repeats become a count on the first event, many similar ones become one,
//! and an object that never stops is throttled. This file keeps the overall rate (`eventRecordQPS`, `eventBurst`) and
//! sends. Events are told at best effort: after some attempts one is dropped, and while the API server is away the
//! recorder's queue holds the newest thousand at most. Nothing ever waits for an event.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event as ApiEvent, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::watch::{Backoff, error_text};
use crate::event::{Event, EventType, Subject};
use crate::ids::NodeName;

pub mod aggregate;

use aggregate::{Aggregator, Write};

/// The component that kubelet's events name; dashboards and `kubectl` filters select by it.
const COMPONENT: &str = "kubelet";
/// Attempts for one event, about a minute with back-off.
const ATTEMPTS: usize = 8;

/// Rate of events to the API server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Events per second; 0 for no limit.
    pub per_second: f64,
    /// Events at once.
    pub burst: f64,
}

/// Drains the recorder until every recorder is gone.
pub async fn run(client: kube::Client, node: NodeName, rate: Rate, mut events: mpsc::Receiver<Event>) {
    let mut aggregator = Aggregator::default();
    let mut bucket = Bucket::new(rate);
    while let Some(event) = events.recv().await {
        let now = jiff::Timestamp::now();
        let Some(write) = aggregator.take(&event, now.as_second()) else { continue };
        bucket.acquire().await;
        write_with_retry(&client, &node, &event, write, now).await;
    }
}

async fn write_with_retry(client: &kube::Client, node: &NodeName, event: &Event, write: Write, now: jiff::Timestamp) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let event = render(node, event, &write, now);
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api: Api<ApiEvent> = Api::namespaced(client.clone(), &namespace);
    for _ in 0..ATTEMPTS {
        let error = match send(&api, &event, write.count).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let reason = event.reason.as_deref().unwrap_or_default();
        if let kube::Error::Api(status) = &error
            && matches!(status.code, 400..=404 | 409 | 422)
        {
            // A namespace that is being deleted refuses events; repeating would not change that.
            tracing::debug!(reason, error = error_text(&error), "event refused");
            return;
        }
        tracing::debug!(reason, error = error_text(&error), "cannot write an event, will retry");
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn send(api: &Api<ApiEvent>, event: &ApiEvent, count: i32) -> Result<(), kube::Error> {
    if count > 1 {
        let patch = serde_json::json!({
            "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message,
        });
        let name = event.metadata.name.as_deref().unwrap_or_default();
        match api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
            // Events live for an hour; a repeat after that is a new object.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
    api.create(&PostParams::default(), event).await.map(|_| ())
}

fn render(node: &NodeName, event: &Event, write: &Write, now: jiff::Timestamp) -> ApiEvent {
    let time = |seconds: i64| k8s_openapi::jiff::Timestamp::from_second(seconds).ok().map(Time);
    let involved = involved(node, &event.subject);
    let name = involved.name.clone().unwrap_or_default();
    let namespace = involved.namespace.clone().unwrap_or_else(|| "default".to_owned());
    ApiEvent {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", write.id)),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: involved,
        type_: Some(
            match event.kind {
                EventType::Normal => "Normal",
                EventType::Warning => "Warning",
            }
            .to_owned(),
        ),
        reason: Some(event.reason.to_owned()),
        message: Some(write.message.clone()),
        count: Some(write.count),
        first_timestamp: time(write.first),
        last_timestamp: time(now.as_second()),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_string()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_string()),
        ..ApiEvent::default()
    }
}

fn involved(node: &NodeName, subject: &Subject) -> ObjectReference {
    let reference = |kind: &str, name: &str| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    };
    match subject {
        // kubelet uses the name as UID here, and `kubectl describe node` searches for that.
        Subject::Node => {
            ObjectReference { uid: Some(node.to_string()), api_version: None, ..reference("Node", node.as_str()) }
        }
        Subject::Pod { key, uid, field_path } => ObjectReference {
            namespace: Some(key.namespace.to_string()),
            uid: Some(uid.to_string()),
            field_path: Some(field_path.clone()).filter(|path| !path.is_empty()),
            ..reference("Pod", &key.name)
        },
        Subject::Service { key } => {
            ObjectReference { namespace: Some(key.namespace.to_string()), ..reference("Service", &key.name) }
        }
    }
}

/// A token bucket.
struct Bucket {
    rate: Rate,
    tokens: f64,
    filled_at: Instant,
}

impl Bucket {
    fn new(rate: Rate) -> Self {
        Self { rate, tokens: rate.burst, filled_at: Instant::now() }
    }

    async fn acquire(&mut self) {
        if self.rate.per_second <= 0.0 {
            return;
        }
        let now = Instant::now();
        let earned = now.duration_since(self.filled_at).as_secs_f64() * self.rate.per_second;
        self.tokens = (self.tokens + earned).min(self.rate.burst.max(1.0)) - 1.0;
        self.filled_at = now;
        if self.tokens < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.tokens / self.rate.per_second)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new(Rate { per_second: 50.0, burst: 100.0 });
        let start = Instant::now();
        for _ in 0..100 {
            bucket.acquire().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            bucket.acquire().await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((0.9..1.1).contains(&took), "{took} s for 50 events at 50 per second");
    }

    #[test]
    fn an_event_names_its_container_and_its_source() {
        let subject = Subject::Pod {
            key: crate::ids::ObjectKey::new("ns", "p"),
            uid: "u".into(),
            field_path: "spec.containers{c}".into(),
        };
        let event = Event { subject, kind: EventType::Warning, reason: "BackOff", message: "m".into() };
        let write = Write { id: 0xab, message: "m".into(), count: 1, first: 5 };
        let event = render(&"node".into(), &event, &write, jiff::Timestamp::UNIX_EPOCH);
        let value = serde_json::to_value(event).expect("json");
        assert_eq!(value["metadata"], serde_json::json!({ "name": "p.ab", "namespace": "ns" }));
        assert_eq!(value["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!(value["source"], serde_json::json!({ "component": "kubelet", "host": "node" }));
        assert_eq!((&value["type"], &value["reason"]), (&"Warning".into(), &"BackOff".into()));
    }
}
