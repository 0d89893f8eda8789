//! Elements by their keys, as a look-up in the kernel finds them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::nft::Family;
use crate::nft::decode::Raw;
use crate::service::element::read_address;
use crate::service::program::{Element, Verdict, View};
use crate::service::structure::SetName;
use crate::service::table::Tables;
use crate::service::{Backend, Cidr, Front};

/// What our sets and maps hold, but for what packets write themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// `services` and `local-services`.
    pub services: BTreeMap<(View, Front), Verdict>,
    /// `endpoints` and `local-endpoints`.
    pub endpoints: BTreeMap<(View, Front, u32), Backend>,
    /// `affinities`.
    pub affinities: BTreeMap<Front, u32>,
    /// `no-endpoints`.
    pub no_endpoints: BTreeSet<Front>,
    /// `masquerading`.
    pub masquerade: BTreeSet<Front>,
    /// `firewalled`.
    pub firewalled: BTreeSet<Front>,
    /// `allowed`.
    pub allowed: BTreeMap<Front, BTreeSet<Cidr>>,
    /// `cluster-ips`.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// `hairpin`.
    pub hairpin: BTreeSet<IpAddr>,
}

/// Whether the chains and rules of a family are ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RulesFound {
    /// They are.
    #[default]
    Ours,
    /// Some are others, or are not there.
    Changed,
    /// There is no table.
    Missing,
}

/// What a kernel holds of some fronts.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The elements: all that belong to those fronts, and of any front those by which packets are refused.
    pub maps: Maps,
    /// Endpoints that clients had last, by front and client.
    pub remembered: BTreeMap<(Front, IpAddr), Backend>,
    /// Chains and rules, IPv4 and IPv6.
    pub rules: [RulesFound; 2],
}

impl Maps {
    /// What the programmer wants the kernel to hold.
    pub fn of(tables: &Tables) -> Self {
        let mut maps = Self {
            cluster_ips: tables.wanted_addresses(SetName::ClusterIps).collect(),
            hairpin: tables.wanted_addresses(SetName::Hairpin).collect(),
            ..Self::default()
        };
        tables.programs().flat_map(|(front, program)| program.elements(front)).for_each(|element| maps.add(&element));
        maps
    }

    /// Takes in an element of a front.
    pub fn add(&mut self, element: &Element) {
        match *element {
            Element::Service(view, front, verdict) => drop(self.services.insert((view, front), verdict)),
            Element::Endpoint(view, front, slot, backend) => {
                self.endpoints.insert((view, front, slot), backend);
            }
            Element::Affinity(front, seconds) => drop(self.affinities.insert(front, seconds)),
            Element::NoEndpoints(front) => drop(self.no_endpoints.insert(front)),
            Element::Masquerade(front) => drop(self.masquerade.insert(front)),
            Element::Firewalled(front) => drop(self.firewalled.insert(front)),
            Element::Allowed(front, source) => drop(self.allowed.entry(front).or_default().insert(source)),
        }
    }

    /// The elements of a front.
    pub fn of_front(&self, front: &Front) -> BTreeSet<Element> {
        let mut elements = BTreeSet::new();
        for view in [View::All, View::Local] {
            let verdict = self.services.get(&(view, *front));
            elements.extend(verdict.map(|verdict| Element::Service(view, *front, *verdict)));
            let slots = self.endpoints.range((view, *front, 0)..=(view, *front, u32::MAX));
            elements.extend(slots.map(|((.., slot), backend)| Element::Endpoint(view, *front, *slot, *backend)));
        }
        elements.extend(self.affinities.get(front).map(|seconds| Element::Affinity(*front, *seconds)));
        elements.extend(self.no_endpoints.get(front).map(|front| Element::NoEndpoints(*front)));
        elements.extend(self.masquerade.get(front).map(|front| Element::Masquerade(*front)));
        elements.extend(self.firewalled.get(front).map(|front| Element::Firewalled(*front)));
        let allowed = self.allowed.get(front).into_iter().flatten();
        elements.extend(allowed.map(|source| Element::Allowed(*front, *source)));
        elements
    }

    /// Takes in an element of a dump; answers whether it is one that we write.
    pub fn read(&mut self, family: Family, set: SetName, raw: &Raw<'_>) -> bool {
        match set {
            SetName::Affinity => return true,
            SetName::ClusterIps | SetName::Hairpin => {
                let Some((address, _)) = read_address(family, raw.key) else { return false };
                let addresses = if set == SetName::Hairpin { &mut self.hairpin } else { &mut self.cluster_ips };
                addresses.insert(address);
            }
            SetName::NoEndpoints
            | SetName::Masquerade
            | SetName::Firewalled
            | SetName::Allowed
            | SetName::Services
            | SetName::LocalServices
            | SetName::Endpoints
            | SetName::LocalEndpoints
            | SetName::Affinities => {
                let Some(element) = Element::read(family, set, raw) else { return false };
                self.add(&element);
            }
        }
        true
    }
}
