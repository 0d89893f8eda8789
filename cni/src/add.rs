//! ADD: lease, plan, execute; a failure undoes exactly what this call did.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::Value;

use crate::ipam::{self, Origin, Pool, Reservation};
use crate::netlink::Netlink;
use crate::netns::{self, Namespaces};
use crate::plan::{Missing, Op, Plan, Side};
use crate::plugin::{open_sides, open_store, routes_of_pods};
use crate::protocol::{Attachment, AttachmentId, CniError, Code, NetConf};

/// Attaches a container and returns the result in the version of the request.
pub(crate) fn add(conf: &NetConf, attachment: &Attachment, now: u64) -> Result<Value, CniError> {
    let pool = Pool::from_conf(conf)?;
    let requested = requested_addresses(conf)?;
    let (mut namespaces, mut host, mut pod) = open_sides(&attachment.netns)?;
    let id = &attachment.id;
    if pod.link(&id.ifname)?.is_some() {
        let msg = format!("interface {} exists already in {}", id.ifname, attachment.netns.display());
        return Err(CniError::new(Code::Exists, msg));
    }
    let reservation = ipam::reserve(&mut open_store(conf)?, &pool, id, &requested, now, routes_of_pods)?;
    kill_point(0);
    let origin = reservation.origin;
    let mut work = Work { namespaces: &mut namespaces, host: &mut host, pod: &mut pod, created: None };
    let made = make(conf, attachment, reservation, &mut work);
    made.map_err(|error| {
        let created = work.created.take();
        undo(conf, id, now, error, origin, created, &mut host)
    })
}

/// The open handles of one ADD, and the interface that it has made so far.
struct Work<'a> {
    namespaces: &'a mut Namespaces,
    host: &'a mut Netlink,
    pod: &'a mut Netlink,
    created: Option<String>,
}

fn make(conf: &NetConf, attachment: &Attachment, lease: Reservation, work: &mut Work<'_>) -> Result<Value, CniError> {
    let mtu = if conf.mtu == 0 { uplink_mtu(work.host) } else { conf.mtu };
    let plan = Plan::new(&attachment.id, lease.addresses, mtu, &conf.runtime_config)
        .map_err(|e| CniError::new(Code::InvalidConfig, e))?;
    for (index, step) in plan.steps.iter().enumerate() {
        work.execute(step.side, &step.op)?;
        kill_point(index + 1);
    }
    work.namespaces.enter(Side::Host).map_err(|e| CniError::new(Code::Kernel, format!("return to the node: {e}")))?;
    let mtu = work.host.link(&plan.host.name)?.map_or(mtu, |link| link.mtu);
    let mut result = conf.prev_result.clone().unwrap_or_default();
    result.extend(plan.result(attachment, mtu));
    if let Some(dns) = &conf.dns {
        result.dns = Some(dns.clone());
    }
    Ok(result.to_json(conf.cni_version))
}

impl Work<'_> {
    fn execute(&mut self, side: Side, op: &Op) -> Result<(), CniError> {
        let netlink = match side {
            Side::Host => &mut *self.host,
            Side::Pod => &mut *self.pod,
        };
        match op {
            Op::Veth { host, pod, mtu } => {
                netlink.create_veth(host, pod, *mtu, self.namespaces.pod_fd())?;
                self.created = Some(host.name.clone());
            }
            Op::Sysctl { path, value, missing } => {
                let enter = self.namespaces.enter(side);
                match enter.and_then(|()| netns::write_sysctl(path, value)) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound && *missing == Missing::Skip => {}
                    Err(e) => {
                        return Err(CniError::new(Code::Kernel, format!("set /proc/sys/net/{path} to {value}: {e}")));
                    }
                    Ok(()) => {}
                }
            }
            Op::Up { interface } => netlink.set_up(interface)?,
            Op::Address { interface, address } => netlink.add_address(interface, *address)?,
            Op::Neighbour { interface, address, mac } => netlink.add_neighbour(interface, *address, *mac)?,
            Op::Route { interface, dst, via } => netlink.add_route(interface, *dst, *via)?,
        }
        Ok(())
    }
}

/// Takes back what this call made. An interface or a lease that was there before belongs to somebody else.
fn undo(
    conf: &NetConf,
    id: &AttachmentId,
    now: u64,
    mut error: CniError,
    origin: Origin,
    created: Option<String>,
    host: &mut Netlink,
) -> CniError {
    let mut problems = Vec::new();
    if let Some(name) = created
        && let Err(e) = host.delete_link(&name)
    {
        problems.push(e.to_string());
    }
    // A lease outlives its interface: while the interface could not be removed, the address is not free.
    if origin == Origin::New
        && problems.is_empty()
        && let Err(e) = open_store(conf).and_then(|mut store| Ok(ipam::release(&mut store, id, now, routes_of_pods)?))
    {
        problems.push(e.to_string());
    }
    if !problems.is_empty() {
        error.details = format!("cleaning up failed too, DEL will repeat it: {}", problems.join("; "));
    }
    error
}

fn requested_addresses(conf: &NetConf) -> Result<Vec<IpAddr>, CniError> {
    let parse = |text: &String| {
        let address = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
        address.parse().map_err(|_| {
            let msg = format!("runtimeConfig.ips: {text:?} is not an address such as 10.244.1.7 or 10.244.1.7/24");
            CniError::new(Code::InvalidConfig, msg)
        })
    };
    conf.runtime_config.ips.iter().map(parse).collect()
}

/// The MTU of the interface that the node reaches the world through, so that pods do not depend on path MTU discovery
/// behind tunnels and in clouds with 1460 or 9001 bytes; 0, the kernel's 1500, where there is no such route. The asked
/// addresses are documentation ranges (RFC 5737, RFC 3849): only the routing table is consulted.
fn uplink_mtu(host: &mut Netlink) -> u32 {
    let somewhere: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let uplink = somewhere.into_iter().find_map(|address| host.route_to(address).ok().flatten());
    uplink.map_or(0, |link| link.mtu)
}

/// Debug builds kill themselves after the step that NODELET_CNI_KILL_AFTER names: the tests prove with it that a DEL
/// cleans up after a death at every step. Release builds have no such code.
fn kill_point(step: usize) {
    #[cfg(debug_assertions)]
    if std::env::var("NODELET_CNI_KILL_AFTER").is_ok_and(|wanted| wanted == step.to_string()) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = step;
}
