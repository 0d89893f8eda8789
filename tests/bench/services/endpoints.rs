//! A network namespace on the control plane's network, with two endpoint addresses.

use std::net::Ipv4Addr;
use std::sync::Arc;

use harness::control_plane::ControlPlane;
use harness::netns::Netns;

/// Addresses of the endpoints that answer. Endpoints may not be loopback addresses, but may be on the loopback device.
pub(crate) const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];

/// Makes the namespace, as host number `host`. Its default route lets connections to ClusterIPs reach the output hook.
pub(crate) fn namespace(plane: &ControlPlane, host: u8) -> anyhow::Result<Arc<Netns>> {
    let netns = Netns::new()?;
    plane.lan().attach(&netns, host)?;
    for address in ENDPOINTS {
        netns.ip(&format!("addr add {address}/32 dev lo"))?;
    }
    Ok(Arc::new(netns))
}
