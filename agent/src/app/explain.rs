//! `nodelet explain service`: gathers what an explanation follows from. What is said is decided by `service::explain`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::board::Board;
use crate::control::{self, View};
use crate::ids::ObjectKey;
use crate::node::address;
use crate::service::ServiceHandle;
use crate::service::explain::{Ask, Facts, LocalPod, Objects, Report, report};
use crate::service::slim::SERVICE_NAME;

/// How long the API server may take: people wait, and without an answer there is still much to say.
const LIMIT: Duration = Duration::from_secs(5);

/// Where objects are read.
pub enum Source {
    /// From the API server.
    Api(kube::Client),
    /// From what a node alone shows.
    Shown(Arc<Board>),
}

/// Explains what a programmer does for pods of a board; `node` are the Node's addresses, its primary ones first.
pub fn explainer(
    programmer: ServiceHandle,
    board: Arc<Board>,
    node: Vec<IpAddr>,
    source: Source,
) -> Arc<dyn control::Explain> {
    Arc::new(Explainer { programmer, board, node, source })
}

/// See the module's documentation.
struct Explainer {
    programmer: ServiceHandle,
    board: Arc<Board>,
    node: Vec<IpAddr>,
    source: Source,
}

impl Explainer {
    async fn explain(&self, ask: Ask) -> Result<Report, String> {
        let objects = self.source.objects(&ask.service).await;
        let (programmer, service) = (self.programmer.clone(), ask.service.clone());
        let looked = tokio::task::spawn_blocking(move || programmer.look(&service)).await;
        let looked = looked.map_err(|error| error.to_string())?;
        let sight = looked.map_err(|error| {
            format!("cannot read the table nodelet from the kernel: {error}; the agent's log may say more")
        })?;
        let machine = address::of_machine().await;
        let is_here = |address: &&IpAddr| machine.is_empty() || machine.contains(address);
        let own = self.node.iter().filter(is_here).chain(&machine).copied().collect();
        let mut pods = self.board.pods();
        // The one before it may still be on its way out.
        pods.sort_by(|a, b| b.metadata.creation_timestamp.cmp(&a.metadata.creation_timestamp));
        let pods = pods.iter().filter_map(local_pod).collect();
        let (known, settings, held, programming) = (sight.known, sight.settings, sight.held, sight.programming);
        let facts = Facts { known, objects, held, settings, own, pods, programming };
        report(&facts, &ask).map_err(|refusal| refusal.to_string())
    }
}

impl control::Explain for Explainer {
    fn service(&self, ask: Ask) -> BoxFuture<'_, Result<Report, String>> {
        Box::pin(self.explain(ask))
    }
}

impl Source {
    async fn objects(&self, key: &ObjectKey) -> Result<Objects, String> {
        match self {
            Self::Api(client) => match tokio::time::timeout(LIMIT, fetch(client, key)).await {
                Ok(Ok(objects)) => Ok(objects),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("the API server does not answer within {} s", LIMIT.as_secs())),
            },
            Self::Shown(board) => {
                let is_it = |service: &Service| service.metadata.name.as_deref() == Some(&*key.name);
                let services = typed(board.services(), key);
                let label = |slice: &EndpointSlice| slice.metadata.labels.as_ref()?.get(SERVICE_NAME).cloned();
                let slices = typed::<EndpointSlice>(board.endpoint_slices(), key).into_iter();
                Ok(Objects {
                    service: services.into_iter().find(is_it),
                    slices: slices.filter(|slice| label(slice).as_deref() == Some(&*key.name)).collect(),
                })
            }
        }
    }
}

/// Lists, not gets: the role of service proxies (`system:node-proxier`) may only list and watch.
async fn fetch(client: &kube::Client, key: &ObjectKey) -> kube::Result<Objects> {
    let by_name = ListParams::default().fields(&format!("metadata.name={}", key.name));
    let by_label = ListParams::default().labels(&format!("{SERVICE_NAME}={}", key.name));
    let services = Api::<Service>::namespaced(client.clone(), &key.namespace);
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &key.namespace);
    let (services, slices) = tokio::try_join!(services.list(&by_name), slices.list(&by_label))?;
    Ok(Objects { service: services.items.into_iter().next(), slices: slices.items })
}

/// The objects of a namespace.
fn typed<T: DeserializeOwned>(shown: Vec<Value>, key: &ObjectKey) -> Vec<T> {
    let namespace = |object: &Value| {
        let found = object.pointer("/metadata/namespace").and_then(Value::as_str);
        found.is_some_and(|namespace| namespace == &*key.namespace)
    };
    shown.into_iter().filter(namespace).filter_map(|object| serde_json::from_value(object).ok()).collect()
}

/// A pod that is not at its end, with its addresses.
fn local_pod(pod: &Pod) -> Option<LocalPod> {
    let key = ObjectKey::new(pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
    let status = pod.status.as_ref()?;
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let addresses: Vec<IpAddr> = all.filter_map(|text| text.parse().ok()).collect();
    let host_network = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    (!is_over).then_some(LocalPod { key, addresses, host_network })
}
