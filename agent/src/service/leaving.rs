//! Pods of this node that stop: known here before the API server's EndpointSlices say so. Pure.
//!
//! ```text
//!  stops ─► Stopping ──gone──► Gone ──no slice calls it ready──► forgotten
//!              └──────── another pod has the address ──────────► forgotten
//! ```
//! An endpoint at such an address counts like one that terminates: it serves only where nothing is ready (KEP-1669). The
//! entry outlives the pod, because the slices of several Services catch up one after the other, and a dead endpoint must not
//! come back in between. Pods on the host network share the node's address and are not told from each other here.

use std::collections::HashMap;
use std::net::IpAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Stopping,
    Gone,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Leaving {
    addresses: HashMap<IpAddr, Stage>,
}

impl Leaving {
    /// Whether the pod at this address stops.
    pub fn contains(&self, address: IpAddr) -> bool {
        !self.addresses.is_empty() && self.addresses.contains_key(&address)
    }

    /// A pod begins to stop. Answers whether that is new.
    pub fn stops(&mut self, address: IpAddr) -> bool {
        self.addresses.insert(address, Stage::Stopping).is_none()
    }

    /// Nothing of the pod is left.
    pub fn gone(&mut self, address: IpAddr) {
        if let Some(stage) = self.addresses.get_mut(&address) {
            *stage = Stage::Gone;
        }
    }

    /// Another pod has the address. Answers whether it was a leaving one's.
    pub fn taken(&mut self, address: IpAddr) -> bool {
        !self.addresses.is_empty() && self.addresses.remove(&address).is_some()
    }

    /// Forgets pods that are gone and that no slice calls ready any more.
    pub fn settle(&mut self, is_ready: impl Fn(IpAddr) -> bool) {
        self.addresses.retain(|address, stage| *stage == Stage::Stopping || is_ready(*address));
    }

    /// Whether [`Self::settle`] could forget anything.
    pub fn is_waiting(&self) -> bool {
        self.addresses.values().any(|stage| *stage == Stage::Gone)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use crate::ids::ObjectKey;
    use crate::service::Settings;
    use crate::service::index::{Claim, Index};
    use crate::service::program::Way;
    use crate::service::slim::{self, SERVICE_NAME};
    use crate::watch::WatchEvent;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).expect("object")
    }

    fn slice(name: &str, first_is_ready: bool) -> WatchEvent<slim::EndpointSlice> {
        WatchEvent::Apply(json(serde_json::json!({
            "metadata": { "namespace": "d", "name": name, "labels": { SERVICE_NAME: "s" } },
            "addressType": "IPv4",
            "ports": [{ "port": 8080 }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "nodeName": "n",
                  "conditions": { "ready": first_is_ready, "serving": true, "terminating": !first_is_ready } },
                { "addresses": ["10.0.0.2"], "nodeName": "other", "conditions": { "ready": true } }],
        })))
    }

    /// A Service with one slice: an endpoint on this node and one elsewhere.
    fn index() -> Index {
        let mut index = Index::new(&Settings { node_name: "n".into(), ..Settings::default() });
        index.service_event(WatchEvent::Apply(json(serde_json::json!({
            "metadata": { "namespace": "d", "name": "s" },
            "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": 80 }] },
        }))));
        index.slice_event(slice("a", true));
        index.take_dirty();
        index
    }

    fn backends(index: &Index) -> Vec<String> {
        let desired = index.desired(&ObjectKey::new("d", "s"));
        let backends = |claim: Claim| match claim.program.all {
            Way::To(backends) => backends.iter().map(|backend| backend.address.to_string()).collect(),
            Way::Reject | Way::Drop => Vec::new(),
        };
        desired.into_values().flat_map(backends).collect()
    }

    #[test]
    fn a_pod_that_stops_leaves_before_its_slice_says_so_and_stays_out_until_every_slice_does() {
        let mut index = index();
        index.slice_event(slice("b", true));
        assert_eq!(backends(&index), ["10.0.0.1", "10.0.0.2"]);
        index.take_dirty();
        index.pod_stops(&[IP]);
        assert_eq!(index.take_dirty().len(), 1, "its Service has to be programmed");
        assert_eq!(backends(&index), ["10.0.0.2"]);
        index.pod_is_gone(&[IP]);
        index.slice_event(slice("a", false));
        assert_eq!(backends(&index), ["10.0.0.2"], "another slice still calls it ready");
        index.slice_event(slice("b", false));
        index.slice_event(slice("b", true));
        assert_eq!(backends(&index), ["10.0.0.1", "10.0.0.2"], "the next pod at this address is another one");
    }

    #[test]
    fn a_new_pod_at_the_address_of_a_leaving_one_is_used() {
        let mut index = index();
        index.pod_stops(&[IP]);
        index.take_dirty();
        index.pod_has(&[IP]);
        assert_eq!(index.take_dirty().len(), 1);
        assert_eq!(backends(&index), ["10.0.0.1", "10.0.0.2"]);
    }

    #[test]
    fn the_last_endpoint_of_a_service_serves_while_it_stops() {
        let mut index = index();
        index.slice_event(WatchEvent::Delete(slim::EndpointSlice::default()));
        let mut only = slice("a", true);
        if let WatchEvent::Apply(slice) = &mut only {
            slice.endpoints.truncate(1);
        }
        index.slice_event(only);
        index.pod_stops(&[IP]);
        assert_eq!(backends(&index), ["10.0.0.1"]);
    }
}
