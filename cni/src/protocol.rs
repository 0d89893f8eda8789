//! The CNI protocol as plain data: versions, requests, results, errors. Nothing here performs I/O.
//!
//! A plugin call is environment variables plus a JSON configuration on stdin; the answer is a JSON result, or a JSON
//! error with an exit code that is not zero, both on stdout. [`Request::parse`] turns the call into one enum whose
//! variants hold exactly what the verb may use, so that a verb cannot read a parameter that the runtime did not have to
//! give (DEL without CNI_NETNS, GC without CNI_CONTAINERID).

mod config;
mod error;
mod result;
mod version;

pub use config::{AttachmentId, NetConf, RangeConf, RuntimeConfig};
pub use error::{CniError, Code};
pub use result::{AddResult, Interface, IpConfig, Route};
pub use version::{SUPPORTED, Version};

use std::path::PathBuf;

/// What the runtime asks of the plugin.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `VERSION`: which versions the plugin speaks.
    Version,
    /// `ADD`: attach the container.
    Add(NetConf, Attachment),
    /// `DEL`: detach it; succeeds when there is nothing left to detach.
    Del(NetConf, AttachmentId),
    /// `CHECK`: compare the attachment with `prevResult`.
    Check(NetConf, Attachment),
    /// `STATUS`: whether an ADD could succeed now.
    Status(NetConf),
    /// `GC`: release everything that does not belong to one of these attachments.
    Gc(NetConf, Vec<AttachmentId>),
}

/// An attachment with the network namespace that it lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Container and interface.
    pub id: AttachmentId,
    /// CNI_NETNS: the path of the container's network namespace.
    pub netns: PathBuf,
}

impl Request {
    /// Reads a call. `env` looks an environment variable up, `stdin` is the configuration as received.
    ///
    /// # Errors
    /// Code 4 for a missing or malformed variable (named in the message), 6 for a configuration that is not JSON of the
    /// expected form, 1 for a version that this plugin does not speak.
    pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Self, CniError> {
        let var = |name: &str| env(name).filter(|value| !value.is_empty());
        let Some(command) = var("CNI_COMMAND") else {
            return Err(CniError::new(
                Code::InvalidEnvironment,
                "required environment variable CNI_COMMAND is missing",
            ));
        };
        if command == "VERSION" {
            return Ok(Self::Version);
        }
        if !matches!(command.as_str(), "ADD" | "DEL" | "CHECK" | "STATUS" | "GC") {
            let msg = format!("CNI_COMMAND is {command:?}; expected ADD, DEL, CHECK, STATUS, GC or VERSION");
            return Err(CniError::new(Code::InvalidEnvironment, msg));
        }
        let conf = NetConf::parse(stdin)?;
        conf.require_version_for(&command)?;
        match command.as_str() {
            "ADD" => Ok(Self::Add(conf, attachment(&var)?)),
            "CHECK" => Ok(Self::Check(conf, attachment(&var)?)),
            "DEL" => Ok(Self::Del(conf, attachment_id(&var)?)),
            "STATUS" => Ok(Self::Status(conf)),
            _ => {
                let valid = conf.valid_attachments.clone().ok_or_else(|| {
                    let msg = "GC without cni.dev/valid-attachments: an absent list is not an empty one";
                    CniError::new(Code::InvalidConfig, msg)
                })?;
                Ok(Self::Gc(conf, valid))
            }
        }
    }
}

fn attachment(var: &impl Fn(&str) -> Option<String>) -> Result<Attachment, CniError> {
    let id = attachment_id(var)?;
    let Some(netns) = var("CNI_NETNS") else {
        return Err(CniError::new(Code::InvalidEnvironment, "required environment variable CNI_NETNS is missing"));
    };
    Ok(Attachment { id, netns: PathBuf::from(netns) })
}

fn attachment_id(var: &impl Fn(&str) -> Option<String>) -> Result<AttachmentId, CniError> {
    let invalid = |msg: String| CniError::new(Code::InvalidEnvironment, msg);
    let missing = |name: &str| invalid(format!("required environment variable {name} is missing"));
    let container_id = var("CNI_CONTAINERID").ok_or_else(|| missing("CNI_CONTAINERID"))?;
    let ifname = var("CNI_IFNAME").ok_or_else(|| missing("CNI_IFNAME"))?;
    if !is_container_id(&container_id) {
        return Err(invalid(format!(
            "CNI_CONTAINERID {container_id:?} must start with a letter or digit and hold letters, digits, '_', '.', '-' only"
        )));
    }
    if !is_interface_name(&ifname) {
        return Err(invalid(format!(
            "CNI_IFNAME {ifname:?} is no interface name: 1 to 15 bytes, no '/', ':' or space, not '.' or '..'"
        )));
    }
    Ok(AttachmentId { container_id, ifname })
}

/// The specification's rule for container IDs and network names: section 2, parameters.
pub(crate) fn is_container_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// The kernel's rule (`dev_valid_name`): shorter than IFNAMSIZ = 16, no '/', no ':', no white space.
fn is_interface_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.chars().any(|c| matches!(c, '/' | ':') || c.is_whitespace())
}

/// The answer to VERSION; `requested` is the `cniVersion` of stdin where it could be read.
pub fn version_result(requested: Option<&str>) -> serde_json::Value {
    serde_json::json!({
        "cniVersion": requested.unwrap_or("1.1.0"),
        "supportedVersions": SUPPORTED.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests;
