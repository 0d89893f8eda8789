//! Services on a node without a control plane: what the API server, the endpoint controllers and cloud-less allocators would do.
//!
//! ```text
//!  manifests ── ServiceUpdate ─┐            ┌─► Services with addresses  ─► WatchSink<Service>
//!                              ├─► Model ───┤
//!  pod workers ── PodUpdate ───┘   (pure)   └─► EndpointSlices           ─► WatchSink<EndpointSlice>
//!                                    │
//!                                    └─ Remembered ─► alone.json (before an address is told to anybody)
//! ```
//!
//! - ClusterIPs and node ports are taken from the manifest, or remembered, or chosen; they survive restarts of the agent.
//! - EndpointSlices follow selectors and the readiness of local pods; a change of one pod's status is one small update.
//!   Hand-written slices of the manifests pass through.
//! - After a start nothing is told about endpoints until the pods have been observed ([`PodUpdate::Synced`]): an empty list
//!   would take the rules of running pods out of the kernel.
//! - A Service whose wish cannot be met (address in use or out of range) is not programmed, with an event that says why.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Event, EventType, Recorder, Subject};
use crate::ids::NodeName;
use crate::source::manifest_dir::{AloneObjects, ServiceUpdate};
use crate::watch::{WatchEvent, WatchSink};

mod allocate;
mod cluster_ip;
mod endpoints;
mod model;
mod observed;
mod sink;
mod store;
#[cfg(test)]
mod tests;

pub use allocate::{Assigned, Problem, Ranges, Remembered, assign};
pub use cluster_ip::{ParseCidrError, ServiceCidr};
pub use endpoints::slices;
pub use model::Model;
pub use observed::{PodObserved, PodUpdate, PodUpdates};
pub use sink::JsonSink;
pub use store::Store;

/// Without a word from the pod manager for this long after a start, endpoints are told as far as they are known.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a node alone hands out addresses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--service-cidr`: at most one per family; the first is the default family.
    pub service_cidrs: Vec<ServiceCidr>,
    /// Where allocations are kept: `alone.json` in the state directory.
    pub state_file: PathBuf,
    /// `nodeName` of endpoints.
    pub node_name: NodeName,
}

/// What is programmed, as Kubernetes objects, for people who ask.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Services with their addresses, by namespace and name.
    pub services: Vec<Service>,
    /// EndpointSlices, by namespace and name.
    pub slices: Vec<EndpointSlice>,
}

/// The newest [`Snapshot`].
#[derive(Clone, Debug, Default)]
pub struct View(Arc<ArcSwap<Snapshot>>);

impl View {
    /// What is programmed now.
    pub fn get(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
}

/// Where the results go.
pub struct Outputs {
    /// The Service index.
    pub services: Box<dyn WatchSink<Service>>,
    /// The EndpointSlice index.
    pub slices: Box<dyn WatchSink<EndpointSlice>>,
    /// Service environment variables of pods.
    pub objects: Arc<AloneObjects>,
    /// Events about Services that cannot have what they want.
    pub recorder: Recorder,
}

/// The task that joins manifests and pods.
pub struct Alone {
    outputs: Outputs,
    store: Store,
    model: Model,
    view: View,
}

impl Alone {
    /// Loads earlier allocations. A state file that cannot be read is set aside and said; it never stops the agent.
    pub fn new(settings: Settings, outputs: Outputs) -> Self {
        let store = Store::new(settings.state_file);
        let remembered = store.load();
        let ranges = Ranges::new(settings.service_cidrs);
        let model = Model::new(ranges, remembered, settings.node_name);
        Self { outputs, store, model, view: View::default() }
    }

    /// What is programmed, for the CLI.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Runs until `stop`, or until no input is left.
    pub async fn run(
        mut self,
        mut manifests: mpsc::UnboundedReceiver<ServiceUpdate>,
        mut pods: mpsc::UnboundedReceiver<PodUpdate>,
        stop: CancellationToken,
    ) {
        let patience = Instant::now() + PATIENCE;
        loop {
            let waiting = !self.model.pods_synced();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(update) = manifests.recv() => self.model.service(update),
                Some(update) = pods.recv() => self.model.pod(update),
                () = tokio::time::sleep_until(patience), if waiting => {
                    tracing::warn!("pods were not all observed within {PATIENCE:?}; endpoints are programmed as far as they are known");
                    self.model.pod(PodUpdate::Synced);
                }
                else => return,
            }
            // What came meanwhile goes into the same update.
            while let Ok(update) = manifests.try_recv() {
                self.model.service(update);
            }
            while let Ok(update) = pods.try_recv() {
                self.model.pod(update);
            }
            self.publish().await;
        }
    }

    async fn publish(&mut self) {
        let out = self.model.take();
        for problem in &out.problems {
            tracing::warn!(service = %problem.key, "{}", problem.message);
            self.outputs.recorder.emit(Event {
                subject: Subject::Service { key: problem.key.clone() },
                kind: EventType::Warning,
                reason: problem.reason,
                message: problem.message.clone(),
            });
        }
        if let Some(remembered) = out.remembered {
            // Kept before it is used: an address that was told must never be given to somebody else.
            self.store.save(remembered).await;
        }
        if out.services.is_empty() && out.slices.is_empty() {
            return;
        }
        let services_changed = !out.services.is_empty();
        for event in out.slices {
            self.outputs.slices.handle(event);
        }
        for event in out.services {
            self.outputs.services.handle(event);
        }
        let snapshot = self.model.snapshot();
        if services_changed {
            self.outputs.objects.set_services(snapshot.services.iter());
        }
        self.view.0.store(Arc::new(snapshot));
    }
}

/// The difference that inputs made, ready to be told.
#[derive(Debug, Default)]
pub struct Out {
    /// About Services.
    pub services: Vec<WatchEvent<Service>>,
    /// About EndpointSlices.
    pub slices: Vec<WatchEvent<EndpointSlice>>,
    /// New problems; each is told once.
    pub problems: Vec<Problem>,
    /// Allocations, when they changed.
    pub remembered: Option<Remembered>,
}
