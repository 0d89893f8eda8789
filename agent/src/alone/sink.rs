//! The border to indexes that keep types of their own.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::watch::{WatchEvent, WatchSink};

/// Gives full Kubernetes objects to a sink of slim ones through their JSON form, which is what both were made for. A node alone
/// has few objects, so the detour costs nothing that counts.
pub struct JsonSink<S, To> {
    sink: S,
    to: PhantomData<fn() -> To>,
}

impl<S, To> JsonSink<S, To> {
    /// Wraps `sink`.
    pub fn new(sink: S) -> Self {
        Self { sink, to: PhantomData }
    }
}

fn convert<From: Serialize, To: DeserializeOwned>(from: &From) -> Option<To> {
    let converted = serde_json::to_string(from).and_then(|text| serde_json::from_str(&text));
    converted.map_err(|error| tracing::error!(%error, "an object has no slim form; it is not programmed")).ok()
}

impl<S, From, To> WatchSink<From> for JsonSink<S, To>
where
    S: WatchSink<To>,
    From: Serialize,
    To: DeserializeOwned + 'static,
{
    fn handle(&mut self, event: WatchEvent<From>) {
        let event = match event {
            WatchEvent::Restart => Some(WatchEvent::Restart),
            WatchEvent::InitDone => Some(WatchEvent::InitDone),
            WatchEvent::InitApply(object) => convert(&object).map(WatchEvent::InitApply),
            WatchEvent::Apply(object) => convert(&object).map(WatchEvent::Apply),
            WatchEvent::Delete(object) => convert(&object).map(WatchEvent::Delete),
        };
        if let Some(event) = event {
            self.sink.handle(event);
        }
    }
}
