//! The Services and EndpointSlices, written by hand: Services without selectors, so that no controller has a part in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::endpoints::ENDPOINTS;
use crate::probe::TARGET_PORT;

/// Where everything is made.
pub(crate) const NAMESPACE: &str = "bench-services";

/// The port of every Service.
const PORT: u16 = 80;

/// Every so many Services one has an endpoint that answers.
const LIVE_EVERY: usize = 500;

/// Writes objects.
#[derive(Clone, Debug)]
pub(crate) struct Objects {
    pub(crate) services: Api<Service>,
    pub(crate) slices: Api<EndpointSlice>,
    in_flight: usize,
}

impl Objects {
    pub(crate) fn new(client: Client, in_flight: usize) -> Self {
        let services = Api::namespaced(client.clone(), NAMESPACE);
        Self { services, slices: Api::namespaced(client, NAMESPACE), in_flight }
    }

    /// Writes `count` Services with `endpoints` endpoints each.
    pub(crate) async fn load(&self, count: usize, endpoints: usize) -> anyhow::Result<()> {
        let made = stream::iter(0..count).map(|number| async move {
            let name = format!("load-{number}");
            let first = if is_live(number, count) { ENDPOINTS[0] } else { silent(number, 0) };
            let rest = (1..endpoints).map(|place| if is_live(number, count) { first } else { silent(number, place) });
            let mut addresses: Vec<Ipv4Addr> = std::iter::once(first).chain(rest).collect();
            addresses.dedup();
            self.add_slice(&name, &addresses).await?;
            self.add_service(&name).await.map(drop)
        });
        made.buffer_unordered(self.in_flight).try_collect::<Vec<()>>().await.map(drop)
    }

    /// The addresses of the loaded Services that answer, first and last among them.
    pub(crate) async fn live(&self, count: usize) -> anyhow::Result<Vec<SocketAddr>> {
        let mut live = Vec::new();
        for number in (0..count).filter(|number| is_live(*number, count)) {
            let service = self.services.get(&format!("load-{number}")).await?;
            live.push(address(&service)?);
        }
        Ok(live)
    }

    /// Writes a Service and returns where it is.
    pub(crate) async fn add_service(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "ports": [{ "name": "web", "port": PORT, "targetPort": TARGET_PORT, "protocol": "TCP" }] },
        });
        let service: Service = serde_json::from_value(service)?;
        let made = self.services.create(&PostParams::default(), &service).await.with_context(|| name.to_owned())?;
        address(&made)
    }

    pub(crate) async fn add_slice(&self, service: &str, addresses: &[Ipv4Addr]) -> anyhow::Result<()> {
        let slice: EndpointSlice = serde_json::from_value(slice(service, addresses))?;
        self.slices.create(&PostParams::default(), &slice).await.with_context(|| service.to_owned())?;
        Ok(())
    }

    /// Replaces the endpoints of a Service by one.
    pub(crate) async fn point(&self, service: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let patch = json!({ "endpoints": endpoints(&[address]) });
        self.slices.patch(service, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    pub(crate) async fn remove_service(&self, name: &str) -> anyhow::Result<()> {
        self.services.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// Writes the Node that an agent stands for, with an address, as its kubelet would have done.
pub(crate) async fn ensure_node(client: &Client, name: &str, address: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    match nodes.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        made => drop(made?),
    }
    let status = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": address }] } });
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

fn is_live(number: usize, count: usize) -> bool {
    number.is_multiple_of(LIVE_EVERY) || number + 1 == count
}

/// An address that nobody has, different for each endpoint of all Services.
fn silent(service: usize, place: usize) -> Ipv4Addr {
    // 11.0.0.0/8 keeps clear of the usual pod and Service ranges; nothing is ever sent there.
    let host = u32::try_from((service * 64 + place) % (1 << 24)).unwrap_or(0);
    Ipv4Addr::from((11 << 24) | host)
}

fn endpoints(addresses: &[Ipv4Addr]) -> serde_json::Value {
    let ready = json!({ "ready": true, "serving": true, "terminating": false });
    addresses.iter().map(|address| json!({ "addresses": [address.to_string()], "conditions": ready })).collect()
}

fn slice(service: &str, addresses: &[Ipv4Addr]) -> serde_json::Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": service,
            "labels": {
                "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "bench-services",
            },
        },
        "addressType": "IPv4",
        "endpoints": endpoints(addresses),
        "ports": [{ "name": "web", "port": TARGET_PORT, "protocol": "TCP" }],
    })
}

fn address(service: &Service) -> anyhow::Result<SocketAddr> {
    let text =
        service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).context("a Service has a ClusterIP")?;
    let ip: IpAddr = text.parse().with_context(|| format!("ClusterIP {text}"))?;
    Ok(SocketAddr::new(ip, PORT))
}
