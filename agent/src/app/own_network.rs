//! What the service half does for pods whose network is the project's own plugin: hostPorts, and masquerade of what they
//! send out of the cluster. Both are in the table of Services, so they have its one writer and are repaired with it.
//!
//! Where pods use somebody else's network, that network's plugins do both, and this tells nothing: a hostPort is never
//! served twice. Whose network it is can be seen from the start, from the configuration of a former run; without that, it
//! is known when one was written.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use nodelet_cni::conflist;

use crate::ids::{ObjectKey, PodUid};
use crate::pod::facilities::StatusSink;
use crate::pod::{sandbox_config, spec};
use crate::service::host_ports::{self, HostPort};
use crate::service::{Backend, Cidr, Egress, Protocol, ServiceHandle};

/// See the module's documentation.
pub struct OwnNetwork {
    handle: ServiceHandle,
    /// `clusterCIDR`, where it is configured: networks of all pods of the cluster.
    cluster: Vec<Cidr>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Networks of this node's pods; `None` while the network is not known to be ours.
    pods: Option<Vec<Cidr>>,
    /// Networks of other nodes' pods.
    peers: Vec<Cidr>,
    host_ports: BTreeMap<PodUid, (ObjectKey, Vec<HostPort>)>,
}

impl OwnNetwork {
    /// Looks at the network configuration that is there.
    pub fn new(handle: ServiceHandle, cluster: Vec<Cidr>, conf_dir: &Path) -> Arc<Self> {
        let own = Arc::new(Self { handle, cluster, state: Mutex::default() });
        if let Some(pods) = conflist::current(conf_dir) {
            own.is_ours(&pods);
        }
        own
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid after any statement, so a poisoned lock is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods have our network, with addresses of these networks.
    pub fn is_ours(&self, pods: &[nodelet_cni::cidr::Cidr]) {
        let pods = convert(pods);
        let mut state = self.state();
        if state.pods.as_ref() == Some(&pods) {
            return;
        }
        state.pods = Some(pods);
        for (key, ports) in state.host_ports.values() {
            self.handle.set_host_ports(key, ports.clone());
        }
        self.tell(&state);
    }

    /// Networks of the pods of other nodes.
    pub fn set_peers(&self, peers: &[nodelet_cni::cidr::Cidr]) {
        let peers = convert(peers);
        let mut state = self.state();
        if state.peers != peers {
            state.peers = peers;
            // A configured network holds all of them.
            if self.cluster.is_empty() {
                self.tell(&state);
            }
        }
    }

    fn tell(&self, state: &State) {
        let egress = state.pods.as_ref().map(|pods| {
            let others = if self.cluster.is_empty() { &state.peers } else { &self.cluster };
            Egress { pods: pods.clone(), inside: pods.iter().chain(others).copied().collect() }
        });
        self.handle.reconfigure(|settings| settings.egress = egress);
    }
}

fn convert(cidrs: &[nodelet_cni::cidr::Cidr]) -> Vec<Cidr> {
    cidrs.iter().filter_map(|cidr| Cidr::parse(&cidr.to_string())).collect()
}

/// The hostPorts of a pod at each of its addresses; none when it has ended, because its address is somebody else's then.
fn host_ports(pod: &Pod, status: &PodStatus) -> Vec<HostPort> {
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let addresses: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    let of = |mapping: nodelet_proto::cri::PortMapping| {
        let protocol = match mapping.protocol() {
            nodelet_proto::cri::Protocol::Tcp => Protocol::Tcp,
            nodelet_proto::cri::Protocol::Udp => Protocol::Udp,
            nodelet_proto::cri::Protocol::Sctp => Protocol::Sctp,
        };
        let port = u16::try_from(mapping.host_port).ok().filter(|port| *port > 0)?;
        let pod_port = u16::try_from(mapping.container_port).ok().filter(|port| *port > 0)?;
        let address = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().ok()?),
        };
        let at = move |ip: &IpAddr| HostPort { address, protocol, port, pod: Backend { address: *ip, port: pod_port } };
        Some(addresses.iter().map(at).collect::<Vec<_>>())
    };
    sandbox_config::port_mappings(pod).into_iter().filter_map(of).flatten().collect()
}

impl StatusSink for OwnNetwork {
    fn publish(&self, pod: &Arc<Pod>, status: &Arc<PodStatus>) {
        let ports = host_ports(pod, status);
        let (uid, key) = (spec::uid(pod), spec::key(pod));
        let key = host_ports::key(&key.namespace, &key.name, uid.as_str());
        let mut state = self.state();
        let known = state.host_ports.get(&uid).map(|(_, ports)| ports.as_slice()).unwrap_or_default();
        // Hardly any pod has hostPorts, and every status of every pod comes by here.
        if known == ports {
            return;
        }
        if state.pods.is_some() {
            self.handle.set_host_ports(&key, ports.clone());
        }
        state.host_ports.insert(uid, (key, ports));
    }

    fn finish<'a>(&'a self, _pod: &'a Arc<Pod>, _status: &'a Arc<PodStatus>) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn forget(&self, uid: &PodUid) {
        let forgotten = self.state().host_ports.remove(uid);
        if let Some((key, _)) = forgotten {
            self.handle.set_host_ports(&key, Vec::new());
        }
    }

    fn synced(&self) {
        self.handle.host_ports_synced();
    }

    fn terminating(&self, _pod: &Arc<Pod>, _status: &Arc<PodStatus>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_tells_its_host_ports_at_each_address_until_it_has_ended() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080},
                {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "10.0.0.5"},
                {"containerPort": 90},
            ]}]},
        }))
        .unwrap();
        let status = |phase: &str| -> PodStatus {
            serde_json::from_value(
                serde_json::json!({"phase": phase, "podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd01::2"}]}),
            )
            .unwrap()
        };
        let said: Vec<String> = host_ports(&pod, &status("Running"))
            .into_iter()
            .map(|p| format!("{:?} {:?} {} {}:{}", p.protocol, p.address, p.port, p.pod.address, p.pod.port))
            .collect();
        let expected = [
            "Tcp None 8080 10.244.0.2:80",
            "Tcp None 8080 fd01::2:80",
            "Udp Some(10.0.0.5) 53 10.244.0.2:53",
            "Udp Some(10.0.0.5) 53 fd01::2:53",
        ];
        assert_eq!(said, expected);
        assert!(host_ports(&pod, &status("Succeeded")).is_empty());
        assert!(host_ports(&pod, &PodStatus::default()).is_empty(), "without an address");
    }
}
