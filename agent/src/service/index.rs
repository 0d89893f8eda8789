//! What the watches have said, in compact form, and what each Service comes to. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use indexmap::IndexMap;
use jiff::Timestamp;

use super::convert::{self, Port, Service, Slice};
use super::host_ports::{self, HostPort};
use super::leaving::Leaving;
use super::notes::Notes;
use super::program::{Program, Way};
use super::refusal::Refusals;
use super::select::{Endpoint, Selected, Standing, Zones, select};
use super::{Backend, Cidr, Front, Settings, slim};
use crate::ids::ObjectKey;
use crate::watch::WatchEvent;

mod ignored;
pub mod known;
mod refused;
mod texts;
mod views;

pub use ignored::Ignored;
use ignored::{Kind, Said};
use texts::Texts;

/// How much right a front has to an address and port that another Service has, too: less is more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// A ClusterIP, which the API server gave to this Service alone.
    #[default]
    ClusterIp,
    /// A NodePort, likewise.
    NodePort,
    /// A hostPort of a pod on this node.
    HostPort,
    /// An address that a load balancer controller wrote.
    Ingress,
    /// An address that anybody who may write Services has written.
    External,
}

/// What a Service says of a front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What it comes to.
    pub program: Program,
    /// With what right.
    pub rank: Rank,
}

/// All fronts of a Service.
pub type Desired = BTreeMap<Front, Claim>;

/// Services and slices as they were last seen.
#[derive(Debug, Default)]
pub struct Index {
    node_name: Box<str>,
    node_addresses: Vec<IpAddr>,
    external_ip_ranges: Option<Box<[Cidr]>>,
    zones: Zones,
    /// The bit of this node's zone.
    zone: u16,
    texts: Texts,
    // Nearly half of a large hash map is empty places, which are as large as what could stand there. These have indices there.
    services: IndexMap<ObjectKey, Service>,
    slices: IndexMap<ObjectKey, Slice>,
    /// In order; nearly always one.
    slices_of: IndexMap<ObjectKey, Vec<ObjectKey>>,
    dirty: BTreeSet<ObjectKey>,
    listing_services: Option<BTreeSet<ObjectKey>>,
    listing_slices: Option<BTreeSet<ObjectKey>>,
    synced: (bool, bool),
    leaving: Leaving,
    health: HealthChecks,
    is_health_news: bool,
    /// By [`host_ports::key`].
    host_ports: BTreeMap<ObjectKey, Vec<HostPort>>,
    /// Addresses of the node that serve hostPorts without an address.
    host_addresses: Vec<IpAddr>,
    awaits_host_ports: bool,
    /// What was left out of objects.
    said: Said,
    /// What the kernel does not take at present.
    refusals: Refusals,
    /// When pods changed whose endpoints are new here, and whether those are IPv6.
    triggers: Vec<(Timestamp, bool)>,
}

/// Numbers of Services with a policy `Local` that have endpoints elsewhere only, IPv4 and IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// Of `internalTrafficPolicy`.
    pub internal: [usize; 2],
    /// Of `externalTrafficPolicy`.
    pub external: [usize; 2],
}

/// A port where load balancers ask whether this node has endpoints of a Service (`healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// Whether the Service has an IPv4, and an IPv6 address.
    pub families: [bool; 2],
}

/// All of them, by Service.
pub type HealthChecks = BTreeMap<ObjectKey, HealthCheck>;

impl Index {
    /// An empty index.
    pub fn new(settings: &Settings) -> Self {
        Self {
            node_name: settings.node_name.as_str().into(),
            node_addresses: settings.node_addresses.clone(),
            external_ip_ranges: settings.external_ip_ranges.as_deref().map(Box::from),
            awaits_host_ports: settings.awaits_host_ports,
            ..Self::default()
        }
    }

    /// The zone of this node; all Services with hints may change.
    pub fn set_zone(&mut self, zone: Option<&str>) {
        let bit = zone.map_or(0, |zone| self.zones.bit(zone));
        if self.zone != bit {
            self.zone = bit;
            self.dirty.extend(self.services.keys().cloned());
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

    /// Takes what was left out of objects since the last call.
    pub fn take_ignored(&mut self) -> Vec<Ignored> {
        self.said.take()
    }

    /// Takes when the pods changed whose endpoints came since the last call.
    pub fn take_triggers(&mut self) -> Vec<(Timestamp, bool)> {
        std::mem::take(&mut self.triggers)
    }

    /// All Services, and pods with hostPorts.
    pub fn keys(&self) -> BTreeSet<ObjectKey> {
        self.services.keys().chain(self.host_ports.keys()).cloned().collect()
    }

    /// The hostPorts of a pod; none when it is gone. Answers whether that changes anything.
    pub fn set_host_ports(&mut self, pod: &ObjectKey, ports: Vec<HostPort>) -> bool {
        if self.host_ports.get(pod).map(Vec::as_slice).unwrap_or_default() == ports {
            return false;
        }
        match ports.is_empty() {
            true => drop(self.host_ports.remove(pod)),
            false => drop(self.host_ports.insert(pod.clone(), ports)),
        }
        self.dirty.insert(pod.clone());
        true
    }

    /// All pods have told their hostPorts once.
    pub fn host_ports_synced(&mut self) {
        self.awaits_host_ports = false;
    }

    /// Whether everybody who may own a front has been heard.
    pub fn knows_all_owners(&self) -> bool {
        !self.awaits_host_ports
    }

    /// Other addresses for hostPorts that name none. Answers whether that changes anything.
    pub fn set_host_addresses(&mut self, addresses: Vec<IpAddr>) -> bool {
        if self.host_addresses == addresses {
            return false;
        }
        self.host_addresses = addresses;
        self.dirty.extend(self.host_ports.keys().cloned());
        !self.host_ports.is_empty()
    }

    /// Other addresses for NodePorts; all Services with NodePorts may change. Answers whether that changes anything.
    pub fn set_node_addresses(&mut self, addresses: Vec<IpAddr>) -> bool {
        if self.node_addresses == addresses {
            return false;
        }
        self.node_addresses = addresses;
        let has_node_port = |service: &Service| service.ports.iter().any(|port| port.node_port > 0);
        let concerned = self.services.iter().filter(|(_, service)| has_node_port(service));
        self.dirty.extend(concerned.map(|(key, _)| key.clone()));
        true
    }

    /// Pods of this node at these addresses begin to stop: new connections go elsewhere from now on.
    pub fn pod_stops(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            if self.leaving.stops(*address) {
                self.touch(*address);
            }
        }
    }

    /// Nothing of the pod that had these addresses is left.
    pub fn pod_is_gone(&mut self, addresses: &[IpAddr]) {
        addresses.iter().for_each(|address| self.leaving.gone(*address));
        self.settle();
    }

    /// A pod of this node that is not stopping has these addresses. Answers whether that changes anything.
    pub fn pod_has(&mut self, addresses: &[IpAddr]) -> bool {
        let mut is_news = false;
        for address in addresses {
            if self.leaving.taken(*address) {
                self.touch(*address);
                is_news = true;
            }
        }
        is_news
    }

    /// Marks the Services of an endpoint of this node.
    fn touch(&mut self, address: IpAddr) {
        let has = |slice: &&Slice| slice.endpoints.iter().any(|e| e.local && e.address == address);
        self.dirty.extend(self.slices.values().filter(has).map(|slice| slice.service.clone()));
    }

    fn settle(&mut self) {
        if self.leaving.is_waiting() {
            let slices = &self.slices;
            let ready = |e: &Endpoint, address| e.local && e.address == address && e.standing == Standing::Ready;
            self.leaving
                .settle(|address| slices.values().any(|slice| slice.endpoints.iter().any(|e| ready(&e, address))));
        }
    }

    /// Takes in an event about Services.
    pub fn service_event(&mut self, event: WatchEvent<slim::Service>) {
        match event {
            WatchEvent::Restart => self.listing_services = Some(BTreeSet::new()),
            WatchEvent::InitApply(service) | WatchEvent::Apply(service) => {
                let Some(key) = convert::key(&service.metadata) else { return };
                if let Some(listed) = &mut self.listing_services {
                    listed.insert(key.clone());
                }
                let mut notes = Notes::default();
                let new = convert::service(&service, self.external_ip_ranges.as_deref(), &mut notes);
                self.said.note((Kind::Service, &key), &key, &notes);
                match new {
                    Ok(new) => self.put_service(key, new),
                    Err(_) => self.remove_service(&key),
                }
            }
            WatchEvent::InitDone => {
                self.synced.0 = true;
                if let Some(listed) = self.listing_services.take() {
                    self.said.keep(Kind::Service, &listed);
                    let gone: Vec<_> = self.services.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                    gone.iter().for_each(|key| self.remove_service(key));
                }
            }
            WatchEvent::Delete(service) => {
                if let Some(key) = convert::key(&service.metadata) {
                    self.said.forget((Kind::Service, &key));
                    self.remove_service(&key);
                }
            }
        }
    }

    fn put_service(&mut self, key: ObjectKey, mut new: Service) {
        if self.services.get(&key) == Some(&new) {
            return;
        }
        let families = [false, true].map(|v6| new.cluster_ips.iter().any(|ip| ip.is_ipv6() == v6));
        let check = (new.health_check_port > 0).then_some(HealthCheck { port: new.health_check_port, families });
        self.set_health_check(&key, check);
        let key = self.shared(key);
        new.ports.iter_mut().for_each(|port| port.name = self.texts.one(port.name.clone()));
        self.services.insert(key.clone(), new);
        self.dirty.insert(key);
    }

    /// The same key with the namespace's text that all others have.
    fn shared(&mut self, key: ObjectKey) -> ObjectKey {
        ObjectKey { namespace: self.texts.one(key.namespace), name: key.name }
    }

    fn remove_service(&mut self, key: &ObjectKey) {
        if self.services.swap_remove(key).is_some() {
            self.set_health_check(key, None);
            self.dirty.insert(key.clone());
        }
    }

    fn set_health_check(&mut self, key: &ObjectKey, check: Option<HealthCheck>) {
        let old = match check {
            Some(check) => self.health.insert(key.clone(), check),
            None => self.health.remove(key),
        };
        self.is_health_news |= old != check;
    }

    /// Takes in an event about EndpointSlices.
    pub fn slice_event(&mut self, event: WatchEvent<slim::EndpointSlice>) {
        match event {
            WatchEvent::Restart => self.listing_slices = Some(BTreeSet::new()),
            WatchEvent::InitApply(slice) | WatchEvent::Apply(slice) => {
                let Some(key) = convert::key(&slice.metadata) else { return };
                let is_listed = match &mut self.listing_slices {
                    Some(listed) => listed.insert(key.clone()),
                    None => false,
                };
                let mut notes = Notes::default();
                let new = convert::slice(&slice, &self.node_name, &mut self.zones, &mut notes);
                if let Some(service) = convert::service_of(&slice) {
                    self.said.note((Kind::EndpointSlice, &key), &service, &notes);
                }
                match new {
                    Some(new) => {
                        // What a list says may have changed long ago.
                        let trigger = convert::trigger(&slice).filter(|_| !is_listed && self.has_synced());
                        if self.put_slice(key, new) {
                            self.triggers.extend(trigger);
                        }
                    }
                    None => self.remove_slice(&key),
                }
            }
            WatchEvent::InitDone => {
                self.synced.1 = true;
                if let Some(listed) = self.listing_slices.take() {
                    self.said.keep(Kind::EndpointSlice, &listed);
                    let gone: Vec<_> = self.slices.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                    gone.iter().for_each(|key| self.remove_slice(key));
                }
            }
            WatchEvent::Delete(slice) => {
                if let Some(key) = convert::key(&slice.metadata) {
                    self.said.forget((Kind::EndpointSlice, &key));
                    self.remove_slice(&key);
                }
            }
        }
    }

    /// Answers whether it is new.
    fn put_slice(&mut self, key: ObjectKey, mut new: Slice) -> bool {
        if self.slices.get(&key) == Some(&new) {
            return false;
        }
        if self.slices.get(&key).is_some_and(|old| old.service != new.service) {
            self.remove_slice(&key);
        }
        let key = self.shared(key);
        new.ports.iter_mut().for_each(|(name, ..)| *name = self.texts.one(name.clone()));
        // The Service's own texts, where it is known.
        new.service = match self.services.get_key_value(&new.service) {
            Some((known, _)) => known.clone(),
            None => self.shared(new.service),
        };
        self.dirty.insert(new.service.clone());
        let of = self.slices_of.entry(new.service.clone()).or_default();
        if let Err(place) = of.binary_search(&key) {
            of.reserve_exact(1);
            of.insert(place, key.clone());
        }
        self.slices.insert(key, new);
        self.settle();
        true
    }

    fn remove_slice(&mut self, key: &ObjectKey) {
        let Some(slice) = self.slices.swap_remove(key) else { return };
        if let Some(of) = self.slices_of.get_mut(&slice.service) {
            of.retain(|other| other != key);
            if of.is_empty() {
                self.slices_of.swap_remove(&slice.service);
            }
        }
        self.dirty.insert(slice.service);
        self.settle();
    }

    /// What a Service comes to, without what the kernel does not take.
    pub fn desired(&self, key: &ObjectKey) -> Desired {
        let mut desired = self.asked(key);
        self.refusals.leave_out(&mut desired);
        desired
    }

    /// All fronts of a Service with the endpoints that serve each. Of its own claims to the same address and port the one
    /// with most right stands.
    fn asked(&self, key: &ObjectKey) -> Desired {
        let mut desired = Desired::new();
        if let Some(ports) = self.host_ports.get(key) {
            return host_ports::desired(ports, &self.host_addresses);
        }
        let Some(service) = self.services.get(key) else { return desired };
        for port in &service.ports {
            let endpoints = self.endpoints(key, port);
            let selected = [false, true].map(|v6| select(&endpoints, v6, self.zone));
            for (front, rank) in self.fronts(service, port) {
                let selected = &selected[usize::from(front.address.is_ipv6())];
                let claim = || Claim { program: program(service, selected, front.address, rank), rank };
                desired.entry(front).or_insert_with(claim);
            }
        }
        desired
    }

    /// The fronts of a port of a Service and with what right it has each, those with most right first.
    fn fronts<'a>(&'a self, service: &'a Service, port: &'a Port) -> impl Iterator<Item = (Front, Rank)> + 'a {
        let at = move |addresses: &'a [IpAddr], number: u16, rank: Rank| {
            let front =
                move |address: &IpAddr| (Front { address: *address, protocol: port.protocol, port: number }, rank);
            addresses.iter().map(front)
        };
        let node_addresses = if port.node_port > 0 { self.node_addresses.as_slice() } else { &[] };
        let all = at(&service.cluster_ips, port.port, Rank::ClusterIp)
            .chain(at(node_addresses, port.node_port, Rank::NodePort))
            .chain(at(&service.ingress_ips, port.port, Rank::Ingress))
            .chain(at(&service.external_ips, port.port, Rank::External));
        // A Service of one family has nothing in the other, whatever slices somebody made for it.
        all.filter(|(front, _)| service.cluster_ips.iter().any(|own| own.is_ipv6() == front.address.is_ipv6()))
    }

    /// The slices of a Service with their names.
    fn own_slices(&self, of: &ObjectKey) -> impl Iterator<Item = (&ObjectKey, &Slice)> {
        let names = self.slices_of.get(of).into_iter().flatten();
        names.filter_map(|name| Some((name, self.slices.get(name)?)))
    }

    /// Endpoints of a Service port over all slices.
    fn endpoints(&self, key: &ObjectKey, port: &Port) -> Vec<(Endpoint, u16)> {
        self.own_slices(key)
            .flat_map(|(_, slice)| {
                let number = slice.number(port);
                number.into_iter().flat_map(|number| slice.endpoints.iter().map(move |e| (self.standing(e), number)))
            })
            .collect()
    }

    /// The endpoint as this node knows it.
    fn standing(&self, mut endpoint: Endpoint) -> Endpoint {
        if endpoint.local && endpoint.standing == Standing::Ready && self.leaving.contains(endpoint.address) {
            endpoint.standing = Standing::Draining;
        }
        endpoint
    }
}

/// What the front of a Service at an address comes to.
fn program(service: &Service, selected: &Selected, address: IpAddr, rank: Rank) -> Program {
    let to = |backends: &[Backend], otherwise: Way| match backends {
        [] => otherwise,
        backends => Way::To(backends.iter().copied().collect()),
    };
    let cluster = to(&selected.cluster, Way::Reject);
    // Nobody here, but somebody elsewhere: what comes is dropped.
    let elsewhere = if cluster == Way::Reject { Way::Reject } else { Way::Drop };
    let local = to(&selected.local, elsewhere);
    let is_internal = rank == Rank::ClusterIp;
    let ranges = service.source_ranges.iter().filter(|range| range.address.is_ipv6() == address.is_ipv6());
    let ranges: Box<[Cidr]> = ranges.copied().collect();
    let is_limited = rank == Rank::Ingress && !ranges.is_empty() && ranges.iter().all(|range| range.prefix > 0);
    Program {
        all: if is_internal && service.internal_local { local.clone() } else { cluster },
        local: Some(local).filter(|way| !is_internal && service.external_local && *way != Way::Reject),
        masquerade: !is_internal && !service.external_local,
        affinity: service.affinity,
        sources: is_limited.then_some(ranges),
    }
}
