//! What the index knows of one Service, copied out for explanations. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Desired, Index, Rank};
use crate::ids::ObjectKey;
use crate::service::convert::{Service, Slice};
use crate::service::host_ports;
use crate::service::refusal::Refused;
use crate::service::select::Zones;
use crate::service::{Cidr, Front};

/// All that the index has to say of a Service.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Whether Services and EndpointSlices have been listed once.
    pub is_synced: bool,
    /// Name of this node.
    pub node_name: Box<str>,
    /// The bit of this node's zone, 0 while it is unknown.
    pub zone: u16,
    /// Names of zones.
    pub zones: Zones,
    /// The only external addresses that are served; `None` serves all.
    pub external_ip_ranges: Option<Box<[Cidr]>>,
    /// The Service, where it is served by rules.
    pub service: Option<Service>,
    /// Its slices.
    pub slices: BTreeMap<ObjectKey, Slice>,
    /// What its fronts come to.
    pub desired: Desired,
    /// Its fronts, one list a port, each front once.
    pub fronts: Vec<Vec<(Front, Rank)>>,
    /// Fronts that somebody else has more right to.
    pub rivals: BTreeMap<Front, ObjectKey>,
    /// Fronts of which the kernel refuses something: what, and its words.
    pub refused: BTreeMap<Front, (Refused, String)>,
    /// Addresses of endpoints on this node.
    pub local: BTreeSet<IpAddr>,
    /// Those of them whose pods stop.
    pub leaving: BTreeSet<IpAddr>,
}

impl Index {
    /// What is known of a Service. It looks at all others, too, for what they claim.
    pub fn known(&self, key: &ObjectKey) -> Known {
        let slices = self.own_slices(key).map(|(name, slice)| (name.clone(), slice.clone()));
        let service = self.services.get(key).cloned();
        let desired = if service.is_some() { self.desired(key) } else { Desired::new() };
        let local = self.local_addresses(key);
        let fronts = self.fronts_by_port(key);
        Known {
            is_synced: self.has_synced(),
            node_name: self.node_name.clone(),
            zone: self.zone,
            zones: self.zones.clone(),
            external_ip_ranges: self.external_ip_ranges.clone(),
            slices: slices.collect(),
            refused: self.refused(&fronts),
            fronts,
            rivals: self.rivals(key, &desired),
            leaving: local.iter().copied().filter(|address| self.leaving.contains(*address)).collect(),
            local,
            desired,
            service,
        }
    }

    fn refused(&self, fronts: &[Vec<(Front, Rank)>]) -> BTreeMap<Front, (Refused, String)> {
        let of = |(front, _): &(Front, Rank)| {
            let (refused, error) = self.refusals.of(front)?;
            Some((*front, (refused.clone(), error.to_owned())))
        };
        fronts.iter().flatten().filter_map(of).collect()
    }

    fn fronts_by_port(&self, key: &ObjectKey) -> Vec<Vec<(Front, Rank)>> {
        let Some(service) = self.services.get(key) else { return Vec::new() };
        let mut seen = BTreeSet::new();
        let of_port = |port| self.fronts(service, port).filter(|(front, _)| seen.insert(*front)).collect();
        service.ports.iter().map(of_port).collect()
    }

    /// Who has more right to a front than this Service: what [`Tables`](crate::service::table::Tables) goes by, too.
    fn rivals(&self, key: &ObjectKey, desired: &Desired) -> BTreeMap<Front, ObjectKey> {
        let mut rivals: BTreeMap<Front, (Rank, &ObjectKey)> = BTreeMap::new();
        let mut hear = |front: Front, rank: Rank, other| {
            let is_rival = desired.get(&front).is_some_and(|claim| (rank, other) < (claim.rank, key));
            if other != key && is_rival {
                let first = rivals.entry(front).or_insert((rank, other));
                *first = (*first).min((rank, other));
            }
        };
        for (other, service) in &self.services {
            let fronts = service.ports.iter().flat_map(|port| self.fronts(service, port));
            fronts.for_each(|(front, rank)| hear(front, rank, other));
        }
        for (other, ports) in &self.host_ports {
            let fronts = host_ports::desired(ports, &self.host_addresses);
            fronts.into_iter().for_each(|(front, claim)| hear(front, claim.rank, other));
        }
        rivals.into_iter().map(|(front, (_, other))| (front, other.clone())).collect()
    }
}
