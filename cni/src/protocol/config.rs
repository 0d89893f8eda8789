use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AddResult, CniError, Code, SUPPORTED, Version};
use crate::cidr::Cidr;

/// The name of one attachment: the pair that the specification uses for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// CNI_CONTAINERID; for Kubernetes the sandbox ID.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
}

/// One range that addresses are taken from, written as host-local writes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConf {
    /// The network.
    pub subnet: Cidr,
    /// First address to give out; default: the second of the network.
    pub range_start: Option<IpAddr>,
    /// Last address to give out; default: the last of the network (IPv4: without the broadcast address).
    pub range_end: Option<IpAddr>,
    /// The node's address towards the pods; default: the first of the network. Never given out.
    pub gateway: Option<IpAddr>,
}

/// What the runtime adds for the capabilities that the configuration declares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Capability `mac`: the address of the container's interface.
    pub mac: Option<String>,
    /// Capability `ips`: exactly these addresses. A prefix length may be written and is not used.
    pub ips: Vec<String>,
}

/// nodelet's plugin configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// The version that the runtime chose.
    pub cni_version: Version,
    /// The network's name; also the name of its directory below `data_dir`.
    pub name: String,
    /// `nodelet-cni`, or `loopback` when called in its place.
    #[serde(rename = "type")]
    pub kind: String,
    /// One range per entry; each pod gets one address of each.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<Cidr>,
    /// Sets of ranges; each pod gets one address of each set. Instead of `podCIDRs`.
    #[serde(default)]
    pub ranges: Vec<Vec<RangeConf>>,
    /// MTU of the veth pair; 0: that of the interface which the node reaches the world through.
    #[serde(default)]
    pub mtu: u32,
    /// Where leases live; must survive a restart of the runtime.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// GC spares leases younger than this: the ADD of a container that the runtime listed a moment too early.
    #[serde(default = "default_gc_grace")]
    pub gc_grace_seconds: u64,
    /// Passed into the result unchanged.
    pub dns: Option<Value>,
    /// Values for declared capabilities.
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// The result of the plugin before (ADD) or of the chain (DEL, CHECK).
    pub prev_result: Option<AddResult>,
    /// GC only: the attachments that stay.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<AttachmentId>>,
}

const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/cni/nodelet")
}

fn default_gc_grace() -> u64 {
    60
}

impl NetConf {
    /// Decodes stdin.
    pub(super) fn parse(stdin: &[u8]) -> Result<Self, CniError> {
        let decode = |e: serde_json::Error| {
            CniError::new(Code::Decode, format!("cannot decode the network configuration on stdin: {e}"))
        };
        let mut value: Value = serde_json::from_slice(stdin).map_err(decode)?;
        // The version first: a configuration of another major version need not have the fields that we know.
        let text = value.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
        if !text.parse().is_ok_and(|version| SUPPORTED.contains(&version)) {
            let supported: Vec<_> = SUPPORTED.iter().map(ToString::to_string).collect();
            let msg = format!("cniVersion {text:?} is not supported; this plugin speaks {}", supported.join(", "));
            return Err(CniError::new(Code::IncompatibleVersion, msg));
        }
        if let Some(object) = value.as_object_mut() {
            // libcni sends both spellings of the list (containernetworking/cni#1101); serde calls that a duplicate.
            let misspelt = object.remove("cni.dev/attachments");
            let list = object.remove(VALID_ATTACHMENTS).or(misspelt);
            // An empty list of a Go runtime is null; that is not the same as no list.
            if let Some(list) = list.map(|list| if list.is_null() { Value::Array(Vec::new()) } else { list }) {
                object.insert(VALID_ATTACHMENTS.to_owned(), list);
            }
        }
        let conf: Self = serde_json::from_value(value).map_err(decode)?;
        if !super::is_container_id(&conf.name) {
            let msg = format!(
                "name {:?} must start with a letter or digit and hold letters, digits, '_', '.', '-' only",
                conf.name
            );
            return Err(CniError::new(Code::InvalidConfig, msg));
        }
        Ok(conf)
    }

    /// CHECK came with 0.4.0, STATUS and GC with 1.1.0: a runtime that sends them in an older version is confused.
    pub(super) fn require_version_for(&self, command: &str) -> Result<(), CniError> {
        let since = match command {
            "CHECK" => Version::V0_4_0,
            "STATUS" | "GC" => Version::V1_1_0,
            _ => return Ok(()),
        };
        if self.cni_version >= since {
            return Ok(());
        }
        let msg = format!("{command} needs cniVersion {since} or newer, the configuration has {}", self.cni_version);
        Err(CniError::new(Code::IncompatibleVersion, msg))
    }
}
