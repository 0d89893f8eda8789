//! What is found out about a Service. Plain data, as JSON on the control socket and for `-o json`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What there is to say of a Service on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// `NAMESPACE/NAME`.
    pub service: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalName`, where the object could be read.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// This node.
    pub node: String,
    /// Its zone, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// What the Service asks for, where rules serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<Policies>,
    /// Its ports, those that were asked for.
    pub ports: Vec<PortReport>,
    /// What is wrong.
    pub wrong: Vec<String>,
    /// What is good to know.
    pub notes: Vec<String>,
    /// Whether traffic would pass, of everybody and everywhere that was asked for.
    pub passes: bool,
}

/// What decides beside endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Seconds for which a client keeps its endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// The only sources that may connect to load-balancer addresses; empty where all may.
    pub source_ranges: Vec<String>,
}

/// A port of the Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortReport {
    /// Its name; may be empty.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// All endpoints of its slices.
    pub endpoints: Vec<EndpointReport>,
    /// Its addresses.
    pub fronts: Vec<FrontReport>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointReport {
    /// Its address, as its slice has it.
    pub address: String,
    /// Its port, where its slice has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its slice.
    pub slice: String,
    /// Its pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether that is this one.
    pub is_local: bool,
    /// Its zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its conditions, with the API's defaults for absent ones.
    pub conditions: Conditions,
    /// Whether it takes traffic from inside of the cluster.
    pub inside: Verdict,
    /// Whether it takes traffic from outside, where that is otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<Verdict>,
}

/// Conditions of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// Takes traffic.
    pub ready: bool,
    /// Would take traffic were it not terminating.
    pub serving: bool,
    /// Its pod is being stopped.
    pub terminating: bool,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// The reason, which says whether it does.
    pub reason: Reason,
    /// The same for people.
    pub why: String,
}

impl Verdict {
    /// Whether it takes traffic.
    pub fn is_in(&self) -> bool {
        matches!(self.reason, Reason::Ready | Reason::NothingElse)
    }
}

/// Why an endpoint takes traffic or takes none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// In: it is ready.
    Ready,
    /// In: it terminates, and nothing is ready.
    NothingElse,
    /// Out: it is not ready.
    NotReady,
    /// Out: it terminates, and others are ready.
    Terminating,
    /// Out: it is on another node, and the policy is `Local`.
    Elsewhere,
    /// Out: hints give it to other nodes.
    OtherNode,
    /// Out: hints give it to other zones.
    OtherZone,
    /// Out: its address is of no use.
    BadAddress,
    /// Out: its slice is of no use.
    BadSlice,
    /// Out: its slice does not have the port.
    NoPort,
    /// Out: it is listed already.
    Duplicate,
}

/// An address of the Service, with what is to stand in the kernel for it and what does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontReport {
    /// What it is.
    pub kind: FrontKind,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// What the kernel is to do.
    pub wanted: Vec<String>,
    /// Elements that the kernel holds.
    pub kernel: Vec<String>,
    /// Elements that it should hold and does not.
    pub missing: Vec<String>,
    /// Elements that it should not hold.
    pub unexpected: Vec<String>,
    /// Who has the address instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_to: Option<String>,
    /// What happens to packets.
    pub packets: Vec<PacketReport>,
}

/// What an address of a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontKind {
    /// A ClusterIP.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// An address of this node with a NodePort.
    NodePort,
    /// An address of a load balancer.
    LoadBalancer,
    /// An external IP.
    #[serde(rename = "externalIP")]
    ExternalIp,
}

impl FrontKind {
    /// A word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "load balancer",
            Self::ExternalIp => "external IP",
        }
    }
}

/// What happens to the first packet of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PacketReport {
    /// Who sends it.
    pub from: String,
    /// Whether it reaches an endpoint.
    pub passes: bool,
    /// Where it goes.
    pub result: String,
    /// The elements that decide, in order.
    pub by: Vec<String>,
}
