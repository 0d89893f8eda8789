//! The work of containernetworking's `loopback` plugin: `lo` up. containerd's CRI runs a plugin of this name for every
//! sandbox; with a link `loopback` to this binary a node needs no other package.

use serde_json::{Value, json};

use crate::plugin::open_sides;
use crate::protocol::{AddResult, Attachment, CniError, Code, NetConf};

/// Sets the interface up and reports its addresses.
pub(crate) fn add(conf: &NetConf, attachment: &Attachment) -> Result<Value, CniError> {
    let (_namespaces, _, mut pod) = open_sides(&attachment.netns)?;
    let name = &attachment.id.ifname;
    pod.set_up(name)?;
    if let Some(previous) = &conf.prev_result {
        return Ok(previous.to_json(conf.cni_version));
    }
    let link = pod.link(name)?.ok_or_else(|| CniError::new(Code::Kernel, format!("interface {name} is gone")))?;
    let ips: Vec<_> =
        pod.addresses(link.index)?.iter().map(|address| json!({ "interface": 0, "address": address })).collect();
    let interface = json!({ "name": name, "mac": "00:00:00:00:00:00", "sandbox": attachment.netns });
    let result: AddResult = serde_json::from_value(json!({ "interfaces": [interface], "ips": ips }))
        .map_err(|e| CniError::new(Code::Decode, e.to_string()))?;
    Ok(result.to_json(conf.cni_version))
}

/// The interface must be up.
pub(crate) fn check(attachment: &Attachment) -> Result<(), CniError> {
    let (_namespaces, _, mut pod) = open_sides(&attachment.netns)?;
    match pod.link(&attachment.id.ifname)? {
        Some(link) if link.up => Ok(()),
        _ => Err(CniError::new(Code::CheckFailed, format!("interface {} is not up", attachment.id.ifname))),
    }
}
