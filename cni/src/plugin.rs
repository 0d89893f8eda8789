//! A request becomes an answer: which verb does which work, and how errors of the parts become codes.

use std::path::Path;

use serde_json::Value;

use crate::ipam::disk::DiskStore;
use crate::ipam::{IpamError, PoolError, StoreError};
use crate::netlink::{Netlink, NetlinkError};
use crate::netns::Namespaces;
use crate::plan::Side;
use crate::protocol::{CniError, Code, NetConf, Request};
use crate::{add, check, del, gc, loopback, status};

/// Performs a request. `now` is in seconds since the epoch; `stdin` is used for the answer to VERSION only. The answer
/// is the JSON for stdout, `None` for verbs without one.
///
/// # Errors
/// What the runtime shall see, with the code of the specification.
pub fn run(request: Request, stdin: &[u8], now: u64) -> Result<Option<Value>, CniError> {
    match request {
        Request::Version => {
            let conf: Option<Value> = serde_json::from_slice(stdin).ok();
            let version = conf.as_ref().and_then(|conf| conf["cniVersion"].as_str());
            Ok(Some(crate::protocol::version_result(version)))
        }
        // containerd runs a plugin of type `loopback` for every sandbox; a link of that name makes this binary serve it.
        Request::Add(conf, attachment) if conf.kind == "loopback" => loopback::add(&conf, &attachment).map(Some),
        Request::Check(conf, attachment) if conf.kind == "loopback" => loopback::check(&attachment).map(|()| None),
        Request::Del(conf, _) | Request::Status(conf) | Request::Gc(conf, _) if conf.kind == "loopback" => Ok(None),
        Request::Add(conf, attachment) => add::add(&conf, &attachment, now).map(Some),
        Request::Del(conf, id) => del::del(&conf, &id, now).map(|()| None),
        Request::Check(conf, attachment) => check::check(&conf, &attachment).map(|()| None),
        Request::Status(conf) => status::status(&conf).map(|()| None),
        Request::Gc(conf, valid) => gc::gc(&conf, &valid, now).map(|()| None),
    }
}

/// The leases of the configuration's network, locked.
pub(crate) fn open_store(conf: &NetConf) -> Result<DiskStore, CniError> {
    Ok(DiskStore::open(&conf.data_dir, &conf.name)?)
}

/// The namespaces of an attachment and a socket in each: (namespaces, node, container).
pub(crate) fn open_sides(netns: &Path) -> Result<(Namespaces, Netlink, Netlink), CniError> {
    let host = Netlink::open()?;
    let describe = |e: std::io::Error| {
        let code = match e.kind() {
            std::io::ErrorKind::NotFound => Code::UnknownContainer,
            std::io::ErrorKind::InvalidInput => Code::InvalidEnvironment,
            _ => Code::Io,
        };
        CniError::new(code, format!("CNI_NETNS {}: {e}", netns.display()))
    };
    let mut namespaces = Namespaces::open(netns).map_err(describe)?;
    namespaces.enter(Side::Pod).map_err(describe)?;
    let pod = Netlink::open()?;
    namespaces.enter(Side::Host).map_err(describe)?;
    Ok((namespaces, host, pod))
}

/// The kernel's view of the pods on this node, for IPAM after its file was damaged; nothing when that fails as well,
/// because then the interfaces of running pods refuse a second owner with EEXIST.
pub(crate) fn routes_of_pods() -> Vec<(std::net::IpAddr, String)> {
    Netlink::open().and_then(|mut netlink| netlink.pod_routes()).unwrap_or_default()
}

impl From<NetlinkError> for CniError {
    fn from(e: NetlinkError) -> Self {
        let code = if e.errno() == Some(libc::EEXIST) { Code::Exists } else { Code::Kernel };
        Self::new(code, e.to_string())
    }
}

impl From<StoreError> for CniError {
    fn from(e: StoreError) -> Self {
        Self::new(Code::Io, e.to_string())
    }
}

impl From<PoolError> for CniError {
    fn from(e: PoolError) -> Self {
        let code = match e {
            PoolError::Config(_) => Code::InvalidConfig,
            PoolError::Exhausted { .. } | PoolError::Requested { .. } => Code::Exhausted,
        };
        Self::new(code, e.to_string())
    }
}

impl From<IpamError> for CniError {
    fn from(e: IpamError) -> Self {
        match e {
            IpamError::Pool(e) => e.into(),
            IpamError::Store(e) => e.into(),
        }
    }
}
