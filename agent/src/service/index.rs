//! What the watches have said, in compact form, and what each Service comes to. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::slim::{self, SERVICE_NAME};
use super::{Backend, Front, Protocol, Settings};
use crate::ids::ObjectKey;
use crate::watch::WatchEvent;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: Box<str>,
    protocol: Protocol,
    port: u16,
    node_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Service {
    cluster_ips: Box<[IpAddr]>,
    /// External and load-balancer addresses.
    external_ips: Box<[IpAddr]>,
    ports: Box<[Port]>,
    local_only: bool,
}

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Ready,
    /// Serving while it terminates: used when nothing is ready (KEP-1669).
    Draining,
    Out,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Endpoint {
    address: IpAddr,
    standing: Standing,
    local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slice {
    service: ObjectKey,
    ports: Box<[(Box<str>, Protocol, u16)]>,
    endpoints: Box<[Endpoint]>,
}

/// A front with its backends in no particular order.
pub type Desired = BTreeMap<Front, Vec<Backend>>;

/// Services and slices as they were last seen.
#[derive(Debug, Default)]
pub struct Index {
    node_name: Arc<str>,
    node_addresses: Vec<IpAddr>,
    services: HashMap<ObjectKey, Service>,
    slices: HashMap<ObjectKey, Slice>,
    slices_of: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    dirty: BTreeSet<ObjectKey>,
    listing_services: Option<BTreeSet<ObjectKey>>,
    listing_slices: Option<BTreeSet<ObjectKey>>,
    synced: (bool, bool),
}

impl Index {
    /// An empty index.
    pub fn new(settings: &Settings) -> Self {
        Self {
            node_name: Arc::from(settings.node_name.as_str()),
            node_addresses: settings.node_addresses.clone(),
            ..Self::default()
        }
    }

    /// Whether both resources have been listed once.
    pub fn has_synced(&self) -> bool {
        self.synced == (true, true)
    }

    /// Takes the Services that may come to something else now.
    pub fn take_dirty(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.dirty)
    }

    /// All Services.
    pub fn keys(&self) -> BTreeSet<ObjectKey> {
        self.services.keys().cloned().collect()
    }

    /// Other addresses for NodePorts; all Services with NodePorts may change.
    pub fn set_node_addresses(&mut self, addresses: Vec<IpAddr>) {
        if self.node_addresses != addresses {
            self.node_addresses = addresses;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Takes in an event about Services.
    pub fn service_event(&mut self, event: WatchEvent<slim::Service>) {
        match event {
            WatchEvent::Restart => self.listing_services = Some(BTreeSet::new()),
            WatchEvent::InitApply(service) | WatchEvent::Apply(service) => {
                let Some(key) = key(&service.metadata) else { return };
                if let Some(listed) = &mut self.listing_services {
                    listed.insert(key.clone());
                }
                match convert_service(&service) {
                    Some(new) => {
                        if self.services.get(&key) != Some(&new) {
                            self.services.insert(key.clone(), new);
                            self.dirty.insert(key);
                        }
                    }
                    None => self.remove_service(&key),
                }
            }
            WatchEvent::InitDone => {
                self.synced.0 = true;
                if let Some(listed) = self.listing_services.take() {
                    let gone: Vec<_> = self.services.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                    gone.iter().for_each(|key| self.remove_service(key));
                }
            }
            WatchEvent::Delete(service) => {
                if let Some(key) = key(&service.metadata) {
                    self.remove_service(&key);
                }
            }
        }
    }

    fn remove_service(&mut self, key: &ObjectKey) {
        if self.services.remove(key).is_some() {
            self.dirty.insert(key.clone());
        }
    }

    /// Takes in an event about EndpointSlices.
    pub fn slice_event(&mut self, event: WatchEvent<slim::EndpointSlice>) {
        match event {
            WatchEvent::Restart => self.listing_slices = Some(BTreeSet::new()),
            WatchEvent::InitApply(slice) | WatchEvent::Apply(slice) => {
                let Some(key) = key(&slice.metadata) else { return };
                if let Some(listed) = &mut self.listing_slices {
                    listed.insert(key.clone());
                }
                match self.convert_slice(&slice) {
                    Some(new) => self.put_slice(key, new),
                    None => self.remove_slice(&key),
                }
            }
            WatchEvent::InitDone => {
                self.synced.1 = true;
                if let Some(listed) = self.listing_slices.take() {
                    let gone: Vec<_> = self.slices.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                    gone.iter().for_each(|key| self.remove_slice(key));
                }
            }
            WatchEvent::Delete(slice) => {
                if let Some(key) = key(&slice.metadata) {
                    self.remove_slice(&key);
                }
            }
        }
    }

    fn put_slice(&mut self, key: ObjectKey, new: Slice) {
        if self.slices.get(&key) == Some(&new) {
            return;
        }
        if self.slices.get(&key).is_some_and(|old| old.service != new.service) {
            self.remove_slice(&key);
        }
        self.dirty.insert(new.service.clone());
        self.slices_of.entry(new.service.clone()).or_default().insert(key.clone());
        self.slices.insert(key, new);
    }

    fn remove_slice(&mut self, key: &ObjectKey) {
        let Some(slice) = self.slices.remove(key) else { return };
        if let Some(of) = self.slices_of.get_mut(&slice.service) {
            of.remove(key);
            if of.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
        self.dirty.insert(slice.service);
    }

    fn convert_slice(&self, slice: &slim::EndpointSlice) -> Option<Slice> {
        let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        let service = ObjectKey::new(slice.metadata.namespace.as_deref()?, name);
        let v6 = match slice.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            // An address of the other family, or one that would reach the node itself, is nobody's endpoint.
            if address.is_ipv6() != v6 || address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                return None;
            }
            let conditions = &endpoint.conditions;
            let ready = conditions.ready.unwrap_or(true);
            let serving = conditions.serving.unwrap_or(ready);
            let standing = match (ready, serving && conditions.terminating == Some(true)) {
                (true, _) => Standing::Ready,
                (false, true) => Standing::Draining,
                (false, false) => Standing::Out,
            };
            let local = endpoint.node_name.as_deref().is_some_and(|name| name == &*self.node_name);
            Some(Endpoint { address, standing, local })
        });
        let ports = slice.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|n| *n > 0)?;
            let protocol = Protocol::from_api(port.protocol.as_deref())?;
            Some((port.name.as_deref().unwrap_or_default().into(), protocol, number))
        });
        Some(Slice { service, ports: ports.collect(), endpoints: endpoints.collect() })
    }

    /// What a Service comes to: all of its fronts with the endpoints that serve each.
    pub fn desired(&self, key: &ObjectKey) -> Desired {
        let mut desired = Desired::new();
        let Some(service) = self.services.get(key) else { return desired };
        for port in &service.ports {
            let internal: Vec<(Endpoint, u16)> = self.endpoints(key, port);
            for address in &service.cluster_ips {
                let front = Front { address: *address, protocol: port.protocol, port: port.port };
                desired.insert(front, select(&internal, address.is_ipv6(), service.local_only));
            }
            for address in &service.external_ips {
                let front = Front { address: *address, protocol: port.protocol, port: port.port };
                desired.insert(front, select(&internal, address.is_ipv6(), false));
            }
            if port.node_port > 0 {
                for address in &self.node_addresses {
                    let front = Front { address: *address, protocol: port.protocol, port: port.node_port };
                    desired.insert(front, select(&internal, address.is_ipv6(), false));
                }
            }
        }
        desired
    }

    /// Endpoints of a Service port over all slices.
    fn endpoints(&self, key: &ObjectKey, port: &Port) -> Vec<(Endpoint, u16)> {
        let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices
            .flat_map(|slice| {
                let number =
                    slice.ports.iter().find(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
                let number = number.map(|(_, _, number)| *number);
                number.into_iter().flat_map(|number| slice.endpoints.iter().map(move |e| (*e, number)))
            })
            .collect()
    }

    /// Whether an address is a ClusterIP of some Service.
    pub fn is_external(&self, key: &ObjectKey, address: IpAddr) -> bool {
        self.services.get(key).is_none_or(|service| !service.cluster_ips.contains(&address))
    }

    /// Addresses of endpoints on this node, for hairpin connections.
    pub fn local_addresses(&self, key: &ObjectKey) -> BTreeSet<IpAddr> {
        let slices = self.slices_of.get(key).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices.flat_map(|slice| slice.endpoints.iter().filter(|e| e.local).map(|e| e.address)).collect()
    }
}

/// Ready endpoints, or those that serve while they terminate when none is ready; each address and port once.
fn select(endpoints: &[(Endpoint, u16)], v6: bool, local_only: bool) -> Vec<Backend> {
    let of = |standing: Standing| {
        let chosen = endpoints.iter().filter(|(e, _)| e.standing == standing && e.address.is_ipv6() == v6);
        let chosen = chosen.filter(|(e, _)| e.local || !local_only);
        chosen.map(|(e, port)| Backend { address: e.address, port: *port }).collect::<BTreeSet<_>>()
    };
    let ready = of(Standing::Ready);
    let chosen = if ready.is_empty() { of(Standing::Draining) } else { ready };
    chosen.into_iter().collect()
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<ObjectKey> {
    Some(ObjectKey::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

/// A Service that is served by rules; `None` for headless and ExternalName ones.
fn convert_service(service: &slim::Service) -> Option<Service> {
    let spec = &service.spec;
    if spec.kind.as_deref() == Some("ExternalName") {
        return None;
    }
    let first = spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_empty());
    let cluster_ips: Box<[IpAddr]> = spec.cluster_ips.iter().chain(first).filter_map(|ip| ip.parse().ok()).collect();
    if cluster_ips.is_empty() {
        return None;
    }
    let ingress = service.status.load_balancer.ingress.iter();
    let ingress = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let external = spec.external_ips.iter().chain(ingress).filter_map(|ip| ip.parse::<IpAddr>().ok());
    let external = external.filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
    let ports = spec.ports.iter().filter_map(|port| {
        Some(Port {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol: Protocol::from_api(port.protocol.as_deref())?,
            port: u16::try_from(port.port).ok().filter(|n| *n > 0)?,
            node_port: port.node_port.and_then(|n| u16::try_from(n).ok()).unwrap_or(0),
        })
    });
    Some(Service {
        cluster_ips,
        external_ips: external.collect(),
        ports: ports.collect(),
        local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
    })
}
