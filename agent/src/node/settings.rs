//! What the operator decided about the node, taken from the configuration.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::config::kubelet::Taint;
use crate::ids::NodeName;
use crate::quantity::Quantity;

/// Settings of the node status, registration and lease.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSettings {
    /// Name of the Node object.
    pub name: NodeName,
    /// The name that goes into the `Hostname` address and the `kubernetes.io/hostname` label.
    pub hostname: String,
    /// `--node-ip`; empty means the address of the default route.
    pub node_ips: Vec<IpAddr>,
    /// `--cloud-provider=external`: addresses are the cloud controller's business.
    pub external_cloud: bool,
    /// `--node-labels`.
    pub labels: Vec<(String, String)>,
    /// Taints at creation.
    pub taints: Vec<Taint>,
    /// `spec.providerID` at creation; empty for none.
    pub provider_id: String,
    /// Whether the Node is created when it does not exist.
    pub register: bool,
    /// The version that API server and controllers see, such as `v1.37.0`.
    pub kubelet_version: String,
    /// Port of the kubelet API.
    pub port: u16,
    /// Most pods.
    pub max_pods: i64,
    /// Most pods per core; 0 for no such limit.
    pub pods_per_core: i64,
    /// Kept from pods by kubeReserved and systemReserved.
    pub reserved: Vec<(String, Quantity)>,
    /// Hard eviction thresholds as written: signal and quantity or percentage.
    pub eviction_hard: Vec<(String, String)>,
    /// Most images in the status; -1 for all.
    pub max_images: i64,
    /// Changes other than conditions are gathered for this long.
    pub status_update: Duration,
    /// The status is sent at least this often.
    pub status_report: Duration,
    /// Life of the lease.
    pub lease_duration: Duration,
    /// kubelet's directory; its file system is the node's ephemeral storage.
    pub root_dir: PathBuf,
}

impl NodeSettings {
    /// Settings from the checked configuration.
    pub fn new(config: &Config, kubelet_version: &str) -> Self {
        let kubelet = &config.kubelet;
        Self {
            name: NodeName::new(&config.node_name),
            hostname: config.node_name.clone(),
            node_ips: config.node_ips.clone(),
            external_cloud: config.has_cloud_controller,
            labels: config.node_labels.clone(),
            taints: kubelet.taints.clone(),
            provider_id: kubelet.provider_id.clone(),
            register: kubelet.register_node,
            kubelet_version: kubelet_version.to_owned(),
            port: kubelet.port,
            max_pods: kubelet.max_pods,
            pods_per_core: kubelet.pods_per_core,
            reserved: kubelet.reserved.total(),
            eviction_hard: kubelet.eviction_hard.clone(),
            max_images: kubelet.status_max_images,
            status_update: kubelet.status_update,
            status_report: kubelet.status_report,
            lease_duration: kubelet.lease_duration,
            root_dir: config.root_dir.clone(),
        }
    }
}
