//! STATUS: whether an ADD could succeed now. Code 50 when not; 51 when pods that run are cut off as well.

use crate::ipam::{self, Pool};
use crate::netns;
use crate::plugin::{open_store, routes_of_pods};
use crate::protocol::{CniError, Code, NetConf};

/// Succeeds when the pool has a free address per set, leases can be written, and forwarding is on or can be turned on.
pub(crate) fn status(conf: &NetConf) -> Result<(), CniError> {
    let unavailable = |msg: String| CniError::new(Code::NotAvailable, msg);
    let pool = Pool::from_conf(conf)?;
    let mut store = open_store(conf).map_err(|e| unavailable(e.msg))?;
    let leases = ipam::load_or_recover(&mut store, 0, routes_of_pods).map_err(|e| unavailable(e.to_string()))?;
    let mut sysctls = vec!["ipv4/ip_forward"];
    if pool.has_ipv6() {
        sysctls.push("ipv6/conf/all/forwarding");
    }
    for sysctl in sysctls {
        if let Err(reason) = forwarding(sysctl) {
            let code = if leases.iter().next().is_some() { Code::LimitedConnectivity } else { Code::NotAvailable };
            return Err(CniError::new(code, reason));
        }
    }
    pool.choose(&leases, &[]).map_err(|e| unavailable(e.to_string()))?;
    Ok(())
}

fn forwarding(sysctl: &str) -> Result<(), String> {
    let value = netns::read_sysctl(sysctl).map_err(|e| format!("/proc/sys/net/{sysctl}: {e}"))?;
    let path = format!("/proc/sys/net/{sysctl}");
    // Off is fine while ADD can turn it on; on a read-only /proc/sys it cannot.
    if value == "0" && rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_err() {
        return Err(format!("{path} is 0 and cannot be written; set it to 1 on the node"));
    }
    Ok(())
}
