//! Services and EndpointSlices with only the fields that are used: decoding skips managed fields, annotations, target
//! references and the rest without keeping them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Deserializer};

/// Label of an EndpointSlice that names its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a Service that another proxy serves.
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label of headless Services and their EndpointSlices.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation of an EndpointSlice: when the pods changed that made the control plane write it.
pub const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

#[derive(Deserialize)]
struct SlimMeta {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
    #[serde(default)]
    labels: SlimLabels,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: SlimAnnotations,
}

#[derive(Default, Deserialize)]
struct SlimAnnotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    last_change: Option<String>,
}

#[derive(Default, Deserialize)]
struct SlimLabels {
    #[serde(rename = "kubernetes.io/service-name")]
    service: Option<String>,
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    proxy: Option<String>,
    #[serde(rename = "service.kubernetes.io/headless")]
    headless: Option<String>,
}

fn slim_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = SlimMeta::deserialize(deserializer)?;
    let SlimLabels { service, proxy, headless } = slim.labels;
    let labels = [(SERVICE_NAME, service), (SERVICE_PROXY_NAME, proxy), (HEADLESS, headless)];
    let labels = labels.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let labels: BTreeMap<String, String> = labels.collect();
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        resource_version: slim.resource_version,
        labels: (!labels.is_empty()).then_some(labels),
        annotations: slim.annotations.last_change.map(|time| BTreeMap::from([(LAST_CHANGE.to_owned(), time)])),
        ..ObjectMeta::default()
    })
}

/// A Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Name, namespace, version and the labels of this file only.
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
    /// `Local` sends traffic from outside to endpoints on the node that it came to, and keeps the client's address.
    pub external_traffic_policy: Option<String>,
    /// `ClientIP` or `None`.
    pub session_affinity: Option<String>,
    /// Its timeout.
    #[serde(deserialize_with = "null_is_default")]
    pub session_affinity_config: SessionAffinityConfig,
    /// Sources that may use the load balancer.
    pub load_balancer_source_ranges: Vec<String>,
    /// Where load balancers ask for endpoints of a node, with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<i32>,
}

/// `sessionAffinityConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// By client address.
    #[serde(rename = "clientIP", deserialize_with = "null_is_default")]
    pub client_ip: ClientIpConfig,
}

/// `sessionAffinityConfig.clientIP`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// How long a client keeps its endpoint.
    pub timeout_seconds: Option<i32>,
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
    /// Name, namespace, version and the labels of this file only.
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(default)]
    pub address_type: String,
    /// Endpoints.
    #[serde(default, deserialize_with = "null_is_default")]
    pub endpoints: Vec<Endpoint>,
    /// Ports of all of them.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ports: Vec<EndpointPort>,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
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
    /// For whom it is meant.
    #[serde(deserialize_with = "null_is_default")]
    pub hints: EndpointHints,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Zones.
    #[serde(deserialize_with = "null_is_default")]
    pub for_zones: Vec<Hint>,
    /// Nodes.
    #[serde(deserialize_with = "null_is_default")]
    pub for_nodes: Vec<Hint>,
}

/// A zone or node that an endpoint is meant for.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Hint {
    /// Name of the zone or node.
    pub name: String,
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

/// A ServiceCIDR: ranges that ClusterIPs are taken from.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceCidr {
    /// Name and version.
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    /// Spec.
    #[serde(default, deserialize_with = "null_is_default")]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceCidrSpec {
    /// The ranges, at most one of each family.
    #[serde(deserialize_with = "null_is_default")]
    pub cidrs: Vec<String>,
}

macro_rules! resource {
    ($type:ty, $scope:ty, $kind:literal, $group:literal, $plural:literal) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = $scope;
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

resource!(Service, NamespaceResourceScope, "Service", "", "services");
resource!(EndpointSlice, NamespaceResourceScope, "EndpointSlice", "discovery.k8s.io", "endpointslices");
resource!(ServiceCidr, ClusterResourceScope, "ServiceCIDR", "networking.k8s.io", "servicecidrs");
