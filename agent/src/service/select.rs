//! Which endpoints serve: readiness, termination, node and zone. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Backend;

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Ready.
    Ready,
    /// Serving while it terminates: used when nothing is ready (KEP-1669).
    Draining,
    /// Takes none.
    Out,
}

/// For whom an endpoint is meant (KEP-2433, KEP-4444).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Whether it is meant for this node; `None` where no node is named.
    pub node: Option<bool>,
    /// Zones that it is meant for, as bits of [`Zones`]; none set where no zone is named.
    pub zones: u16,
}

/// An endpoint, as far as rules need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address of the pod.
    pub address: IpAddr,
    /// Whether it takes traffic.
    pub standing: Standing,
    /// Whether it is on this node.
    pub local: bool,
    /// For whom it is.
    pub hints: Hints,
}

/// Names of zones as bits, so that an endpoint keeps two bytes of them.
#[derive(Clone, Debug, Default)]
pub struct Zones {
    names: Vec<Box<str>>,
}

impl Zones {
    /// Zones beyond the fifteenth share this bit. A cluster has three, rarely more than six.
    const OTHERS: u16 = 1 << 15;

    /// The bit of a zone.
    pub fn bit(&mut self, name: &str) -> u16 {
        let known = self.names.iter().position(|known| &**known == name);
        let index = known.unwrap_or_else(|| {
            if self.names.len() < 15 {
                self.names.push(name.into());
            }
            self.names.iter().position(|known| &**known == name).unwrap_or(15)
        });
        1u16.checked_shl(u32::try_from(index).unwrap_or(15)).unwrap_or(Self::OTHERS)
    }

    /// The zone of a bit; none for 0 and for the bit that many share.
    pub fn name(&self, bit: u16) -> Option<&str> {
        self.names.get(usize::try_from(bit.checked_ilog2()?).ok()?).map(|name| &**name)
    }
}

/// The endpoints of one Service port and family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// For policy `Cluster`.
    pub cluster: Vec<Backend>,
    /// For policy `Local`.
    pub local: Vec<Backend>,
}

/// Chooses from endpoints with their ports by [`Criteria`]; each address and port once. `zone` is the bit of this node's
/// zone, 0 while it is unknown.
pub fn select(endpoints: &[(Endpoint, u16)], v6: bool, zone: u16) -> Selected {
    let criteria = Criteria::of(endpoints, v6, zone);
    let of = |check: &dyn Fn(&Endpoint) -> Result<(), Unused>| -> Vec<Backend> {
        let chosen = endpoints.iter().filter(|(e, _)| e.address.is_ipv6() == v6 && check(e).is_ok());
        let chosen: BTreeSet<_> = chosen.map(|(e, port)| Backend { address: e.address, port: *port }).collect();
        chosen.into_iter().collect()
    };
    Selected { cluster: of(&|e| criteria.for_cluster(e)), local: of(&|e| criteria.for_local(e)) }
}

/// Why an endpoint gets no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// It is not ready.
    NotReady,
    /// It terminates while others are ready.
    Draining,
    /// It is on another node, and the policy is `Local`.
    Elsewhere,
    /// It is meant for other nodes.
    OtherNode,
    /// It is meant for other zones.
    OtherZone,
}

/// By what the endpoints of a Service port and family are chosen: ready ones, or those that serve while they terminate when
/// none is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Criteria {
    topology: Topology,
    /// What is wanted of endpoints under policy `Cluster`.
    cluster: Standing,
    /// And under `Local`.
    local: Standing,
}

impl Criteria {
    /// From all endpoints with their ports, of which those of a family count.
    pub fn of(endpoints: &[(Endpoint, u16)], v6: bool, zone: u16) -> Self {
        let ready = endpoints.iter().map(|(e, _)| e);
        let ready = ready.filter(|e| e.address.is_ipv6() == v6 && e.standing == Standing::Ready);
        let wanted = |has_ready: bool| if has_ready { Standing::Ready } else { Standing::Draining };
        Self {
            topology: Topology::of(ready.clone(), zone),
            cluster: wanted(ready.clone().next().is_some()),
            local: wanted(ready.clone().any(|e| e.local)),
        }
    }

    /// Whether an endpoint serves under policy `Cluster`.
    pub fn for_cluster(&self, endpoint: &Endpoint) -> Result<(), Unused> {
        has_standing(endpoint, self.cluster)?;
        // Where none is ready, hints are of no use.
        if self.cluster == Standing::Ready { self.topology.admits(endpoint) } else { Ok(()) }
    }

    /// Whether it serves under policy `Local`.
    pub fn for_local(&self, endpoint: &Endpoint) -> Result<(), Unused> {
        if endpoint.local { has_standing(endpoint, self.local) } else { Err(Unused::Elsewhere) }
    }

    /// Whether hints of endpoints are followed.
    pub fn follows_hints(&self) -> bool {
        self.topology != Topology::All
    }
}

fn has_standing(endpoint: &Endpoint, wanted: Standing) -> Result<(), Unused> {
    match endpoint.standing {
        Standing::Out => Err(Unused::NotReady),
        Standing::Draining if wanted == Standing::Ready => Err(Unused::Draining),
        Standing::Ready | Standing::Draining => Ok(()),
    }
}

/// Which hints are followed: those for nodes when every ready endpoint has some and one is for this node, else those for
/// zones in the same way, else none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Node,
    Zone(u16),
    All,
}

impl Topology {
    fn of<'a>(ready: impl Iterator<Item = &'a Endpoint> + Clone, zone: u16) -> Self {
        let (mut all, mut ours) = ((true, true), (false, false));
        for endpoint in ready {
            all.0 &= endpoint.hints.node.is_some();
            ours.0 |= endpoint.hints.node == Some(true);
            all.1 &= endpoint.hints.zones != 0;
            ours.1 |= endpoint.hints.zones & zone != 0;
        }
        match (all.0 && ours.0, all.1 && ours.1) {
            (true, _) => Self::Node,
            (false, true) => Self::Zone(zone),
            (false, false) => Self::All,
        }
    }

    fn admits(self, endpoint: &Endpoint) -> Result<(), Unused> {
        match self {
            Self::Node if endpoint.hints.node != Some(true) => Err(Unused::OtherNode),
            Self::Zone(zone) if endpoint.hints.zones & zone == 0 => Err(Unused::OtherZone),
            Self::Node | Self::Zone(_) | Self::All => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u16 = 1;
    const B: u16 = 2;

    fn endpoint(n: u8, standing: Standing, local: bool, node: Option<bool>, zones: u16) -> (Endpoint, u16) {
        (Endpoint { address: [10, 0, 0, n].into(), standing, local, hints: Hints { node, zones } }, 80)
    }

    fn numbers(backends: &[Backend]) -> Vec<u8> {
        let number = |backend: &Backend| match backend.address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        };
        backends.iter().map(number).collect()
    }

    #[test]
    fn endpoints_are_chosen_by_standing_place_and_hints() {
        use Standing::{Draining, Out, Ready};
        for (what, endpoints, cluster, local) in [
            (
                "ready ones",
                vec![endpoint(1, Ready, true, None, 0), endpoint(2, Draining, true, None, 0)],
                vec![1],
                vec![1],
            ),
            (
                "draining ones",
                vec![endpoint(1, Out, true, None, 0), endpoint(2, Draining, false, None, 0)],
                vec![2],
                vec![],
            ),
            (
                "local draining ones while others are ready elsewhere",
                vec![endpoint(1, Ready, false, None, 0), endpoint(2, Draining, true, None, 0)],
                vec![1],
                vec![2],
            ),
            (
                "those for our zone",
                vec![endpoint(1, Ready, false, None, A), endpoint(2, Ready, true, None, B)],
                vec![1],
                vec![2],
            ),
            (
                "all when one has no hint",
                vec![endpoint(1, Ready, false, None, A), endpoint(2, Ready, false, None, 0)],
                vec![1, 2],
                vec![],
            ),
            (
                "all when none is for our zone",
                vec![endpoint(1, Ready, false, None, B), endpoint(2, Ready, false, None, B)],
                vec![1, 2],
                vec![],
            ),
            (
                "those for our node before those for our zone",
                vec![endpoint(1, Ready, true, Some(true), A), endpoint(2, Ready, false, Some(false), A)],
                vec![1],
                vec![1],
            ),
            (
                "an endpoint that is not ready needs no hint",
                vec![
                    endpoint(1, Ready, false, None, A),
                    endpoint(2, Out, false, None, 0),
                    endpoint(3, Ready, false, None, B),
                ],
                vec![1],
                vec![],
            ),
            (
                "draining ones whatever their hints",
                vec![endpoint(1, Draining, false, None, A), endpoint(2, Draining, false, None, B)],
                vec![1, 2],
                vec![],
            ),
        ] {
            let selected = select(&endpoints, false, A);
            assert_eq!((numbers(&selected.cluster), numbers(&selected.local)), (cluster, local), "{what}");
        }
    }

    #[test]
    fn every_endpoint_that_is_left_out_has_its_reason() {
        use Standing::{Draining, Out, Ready};
        use Unused::{Elsewhere, NotReady, OtherNode, OtherZone};
        let reasons = |endpoints: &[(Endpoint, u16)]| {
            let criteria = Criteria::of(endpoints, false, A);
            let of = |(e, _): &(Endpoint, u16)| (criteria.for_cluster(e).err(), criteria.for_local(e).err());
            endpoints.iter().map(of).collect::<Vec<_>>()
        };
        let standings = [
            endpoint(1, Ready, false, None, 0),
            endpoint(2, Draining, true, None, 0),
            endpoint(3, Out, true, None, 0),
            endpoint(4, Out, false, None, 0),
        ];
        let draining = Some(Unused::Draining);
        assert_eq!(
            reasons(&standings),
            [
                (None, Some(Elsewhere)),
                (draining, None),
                (Some(NotReady), Some(NotReady)),
                (Some(NotReady), Some(Elsewhere))
            ]
        );
        assert_eq!(
            reasons(&standings[1..]),
            [(None, None), (Some(NotReady), Some(NotReady)), (Some(NotReady), Some(Elsewhere))]
        );
        let zones = [endpoint(1, Ready, true, None, B), endpoint(2, Ready, false, None, A)];
        assert_eq!(reasons(&zones), [(Some(OtherZone), None), (None, Some(Elsewhere))]);
        let nodes = [endpoint(1, Ready, true, Some(true), B), endpoint(2, Ready, false, Some(false), A)];
        assert_eq!(reasons(&nodes), [(None, None), (Some(OtherNode), Some(Elsewhere))]);
    }

    #[test]
    fn zones_beyond_the_fifteenth_share_a_bit() {
        let mut zones = Zones::default();
        let bits: Vec<u16> = (0..20).map(|n| zones.bit(&format!("zone-{n}"))).collect();
        assert_eq!(bits[..15].iter().fold(0, |all, bit| all | bit).count_ones(), 15);
        assert!(bits[15..].iter().all(|bit| *bit == Zones::OTHERS));
        assert_eq!(zones.bit("zone-3"), bits[3]);
        assert_eq!([zones.name(0), zones.name(bits[3]), zones.name(Zones::OTHERS)], [None, Some("zone-3"), None]);
    }
}
