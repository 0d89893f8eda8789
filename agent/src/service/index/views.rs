//! What others than the programmer ask the index. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{HealthChecks, Index, WithoutLocal};
use crate::ids::ObjectKey;
use crate::service::select::{Standing, select};

impl Index {
    /// Counts Services with a policy `Local` and endpoints elsewhere only, port by port as kube-proxy does.
    pub fn without_local_endpoints(&self) -> WithoutLocal {
        let mut counts = WithoutLocal::default();
        for (key, service) in self.services.iter().filter(|(_, s)| s.internal_local || s.external_local) {
            let is_external = !service.external_ips.is_empty() || !service.ingress_ips.is_empty();
            for port in &service.ports {
                let endpoints = self.endpoints(key, port);
                for v6 in [false, true] {
                    let selected = select(&endpoints, v6, self.zone);
                    let is_elsewhere = selected.local.is_empty() && !selected.cluster.is_empty();
                    let external = is_elsewhere && service.external_local && (is_external || port.node_port > 0);
                    counts.internal[usize::from(v6)] += usize::from(is_elsewhere && service.internal_local);
                    counts.external[usize::from(v6)] += usize::from(external);
                }
            }
        }
        counts
    }

    /// Addresses of endpoints on this node, for hairpin connections; none of what is no Service.
    pub fn local_addresses(&self, key: &ObjectKey) -> BTreeSet<IpAddr> {
        if let Some(ports) = self.host_ports.get(key) {
            return ports.iter().map(|port| port.pod.address).collect();
        }
        if !self.services.contains_key(key) {
            return BTreeSet::new();
        }
        let endpoints = self.own_slices(key).flat_map(|(_, slice)| slice.endpoints.iter());
        endpoints.filter(|e| e.local).map(|e| e.address).collect()
    }

    /// Services with a health check port, where that has changed since the last call. Nothing before both lists are
    /// complete: a load balancer that is told of no endpoint takes the node away.
    pub fn take_health_checks(&mut self) -> Option<HealthChecks> {
        let is_news = self.has_synced() && std::mem::take(&mut self.is_health_news);
        is_news.then(|| self.health.clone())
    }

    /// How many ready endpoints of a family a Service has on this node.
    pub fn local_endpoints(&self, key: &ObjectKey, v6: bool) -> usize {
        let endpoints = self.own_slices(key).flat_map(|(_, slice)| slice.endpoints.iter());
        let local = endpoints.filter(|e| e.local && e.address.is_ipv6() == v6);
        let ready = local.filter(|e| self.standing(*e).standing == Standing::Ready).map(|e| e.address);
        ready.collect::<BTreeSet<_>>().len()
    }
}
