//! Services and EndpointSlices with only the fields that are used: decoding skips managed fields, annotations, target
//! references and the rest without keeping them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Deserialize)]
struct SlimMeta {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(default)]
    labels: SlimLabels,
}

#[derive(Default, Deserialize)]
struct SlimLabels {
    #[serde(rename = "kubernetes.io/service-name")]
    service: Option<String>,
}

fn slim_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = SlimMeta::deserialize(deserializer)?;
    let labels = slim.labels.service.map(|service| BTreeMap::from([(SERVICE_NAME.to_owned(), service)]));
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        resource_version: slim.resource_version,
        labels,
        ..ObjectMeta::default()
    })
}

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name, namespace and version only.
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(default)]
    pub spec: ServiceSpec,
    /// Status.
    #[serde(default)]
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// First ClusterIP; `None` (the word) for headless Services.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// All ClusterIPs.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Addresses that reach a node from outside.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `Local` keeps traffic from inside the cluster on this node.
    pub internal_traffic_policy: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Name; joins it with the port of a slice.
    pub name: Option<String>,
    /// Protocol.
    pub protocol: Option<String>,
    /// Port.
    pub port: i32,
    /// Port on every node.
    pub node_port: Option<i32>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Load balancer.
    pub load_balancer: LoadBalancer,
}

/// `status.loadBalancer`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// Addresses.
    pub ingress: Vec<Ingress>,
}

/// An address of a load balancer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ingress {
    /// The address.
    pub ip: Option<String>,
    /// `Proxy` means that nodes do not answer for it (KEP-1860).
    pub ip_mode: Option<String>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, namespace, version and the Service's label only.
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(default)]
    pub address_type: String,
    /// Endpoints.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Ports of all of them.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub ports: Vec<EndpointPort>,
}

fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    /// Addresses; the first one counts.
    pub addresses: Vec<String>,
    /// Conditions.
    pub conditions: Conditions,
    /// The node that it is on.
    pub node_name: Option<String>,
}

/// Conditions of an endpoint; absent means true for ready and serving, false for terminating.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// Takes traffic.
    pub ready: Option<bool>,
    /// Would take traffic were it not terminating.
    pub serving: Option<bool>,
    /// Its pod is being stopped.
    pub terminating: Option<bool>,
}

/// A port of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointPort {
    /// Name.
    pub name: Option<String>,
    /// Protocol.
    pub protocol: Option<String>,
    /// Port; absent means none.
    pub port: Option<i32>,
}

macro_rules! resource {
    ($type:ty, $kind:literal, $group:literal, $plural:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;
            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Service, "Service", "", "services");
resource!(EndpointSlice, "EndpointSlice", "discovery.k8s.io", "endpointslices");
