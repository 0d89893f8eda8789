use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Version;
use crate::cidr::Cidr;

/// The result of ADD, in the words of 1.1.0. Reads every version from 0.3.0 on; [`AddResult::to_json`] writes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddResult {
    /// Every interface of the attachment, on the node and in the container.
    #[serde(deserialize_with = "null_as_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(deserialize_with = "null_as_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes in the container.
    #[serde(deserialize_with = "null_as_empty")]
    pub routes: Vec<Route>,
    /// Passed through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Value>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Hardware address in the usual colon form; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Bytes; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace's path; empty on the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none", rename = "pciID")]
    pub pci_id: Option<String>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address as it is on the interface.
    pub address: Cidr,
    /// The next hop towards everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// One route in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub dst: Cidr,
    /// Next hop; without it the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table`, `scope` of 1.1.0, passed through.
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

/// Go plugins write `null` for an empty list.
fn null_as_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl AddResult {
    /// The JSON of this result in `version`.
    ///
    /// Before 1.0.0 every address carries `"version": "4"` or `"6"`; before 1.1.0 interfaces have no `mtu`,
    /// `socketPath`, `pciID` and routes are `dst` and `gw` only.
    pub fn to_json(&self, version: Version) -> Value {
        let mut result = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                (interface.mtu, interface.socket_path, interface.pci_id) = (None, None, None);
            }
            for route in &mut result.routes {
                route.rest.clear();
            }
        }
        let mut json = json!(result);
        json["cniVersion"] = version.to_string().into();
        if version < Version::V1_0_0
            && let Some(ips) = json["ips"].as_array_mut()
        {
            for (json, ip) in ips.iter_mut().zip(&self.ips) {
                json["version"] = if ip.address.addr().is_ipv4() { "4" } else { "6" }.into();
            }
        }
        json
    }

    /// Appends what another plugin made, with its indexes into `interfaces` moved accordingly.
    pub fn extend(&mut self, other: Self) {
        let offset = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        self.ips.extend(
            other.ips.into_iter().map(|ip| IpConfig { interface: ip.interface.map(|index| index + offset), ..ip }),
        );
        self.routes.extend(other.routes);
        self.dns = other.dns.or(self.dns.take());
    }
}
