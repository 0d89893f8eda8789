//! What an attachment consists of: a request and its addresses become a list of steps. Pure.
//!
//! ```text
//!   node                                        pod
//!   ┌──────────────────────────┐                ┌─────────────────────────────┐
//!   │ vethXXXXXXXXXXX          │◄── veth pair ─►│ eth0                        │
//!   │   10.244.1.1/32          │                │   10.244.1.7/32             │
//!   │ 10.244.1.7/32 dev veth…  │                │ 10.244.1.1 dev eth0         │
//!   │   src 10.244.1.1         │                │ default via 10.244.1.1      │
//!   │                          │                │ neigh 10.244.1.1 permanent  │
//!   └──────────────────────────┘                └─────────────────────────────┘
//! ```
//!
//! Why a routed point-to-point pair and no bridge:
//! - Every packet of a pod is routed in the node's namespace, so it passes the netfilter hooks at layer 3 without
//!   `br_netfilter`: pod to pod on one node, and the DNAT of Services, work on any kernel configuration. On a bridge the
//!   answer of a pod on the same node would bypass the reverse translation
//!   (<https://kubernetes.io/docs/reference/networking/virtual-ips/>, `bridge-nf-call-iptables`).
//! - Hairpin (a pod that reaches itself through its Service) is an ordinary route back out of the same interface; a
//!   bridge needs hairpin mode per port.
//! - No broadcast domain: no forwarding database and no ARP flood among 110 pods, and a pod cannot answer ARP for others.
//! - The node's end has an address of the pod's range (as containernetworking's `ptp`), not 169.254.1.1 with proxy ARP as
//!   Calico's: the kernel picks it as source of probes, also on a node that has no other address, and neighbour
//!   resolution needs no proxy. The cost is one more address per pod and family in the local table, about 0.2 KiB.
//!
//! The pod's entry for the gateway is permanent with a MAC that we choose: the first packet waits for no ARP or neighbour
//! solicitation, and it also works where `arp_ignore` is strict. A MAC given at creation is left alone by udev's
//! `MACAddressPolicy`. The node's entry for the pod is learned, because a later plugin (`tuning`) may change that MAC.
//! IPv6 addresses are added with `nodad` and interfaces have `accept_dad=0`: duplicate detection would hold an address
//! back for 1 to 2 seconds (RFC 4862 5.4), and nobody else is on the link. `rp_filter=1` on the node's end drops packets
//! with a source that is not the pod's own. `accept_ra=0` there: a pod must not become the node's router
//! (CVE-2020-13401).

use std::net::IpAddr;

use crate::cidr::Cidr;
use crate::ipam::{Assigned, host_ifname};
use crate::protocol::{AddResult, Attachment, AttachmentId, Interface, IpConfig, Route, RuntimeConfig};

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// On which side of the pair something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The node's network namespace.
    Host,
    /// The container's.
    Pod,
}

/// What to do about a sysctl that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The datapath cannot work without it.
    Fail,
    /// The kernel lacks the feature that it controls (IPv6), so there is nothing to control.
    Skip,
}

/// One change of the kernel, in the namespace of its side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create the pair.
    Veth {
        /// This end, on the node.
        host: End,
        /// The other end, made directly in the container.
        pod: End,
        /// Bytes; 0 for the kernel's default.
        mtu: u32,
    },
    /// Write a file below `/proc/sys/net` unless it has the value already.
    Sysctl {
        /// Relative to `/proc/sys/net`.
        path: String,
        /// What to write.
        value: &'static str,
        /// What its absence means.
        missing: Missing,
    },
    /// Set an interface up.
    Up {
        /// Which.
        interface: String,
    },
    /// Add an address as /32 or /128.
    Address {
        /// To which interface.
        interface: String,
        /// Which.
        address: IpAddr,
    },
    /// Add a permanent neighbour entry.
    Neighbour {
        /// On which interface.
        interface: String,
        /// Whose entry.
        address: IpAddr,
        /// Its hardware address.
        mac: Mac,
    },
    /// Add a route.
    Route {
        /// Out of which interface.
        interface: String,
        /// Where to.
        dst: Cidr,
        /// How.
        via: Via,
    },
}

/// How a route leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The destination is on the link.
    Link {
        /// The source of this machine's own packets.
        source: IpAddr,
    },
    /// Through this next hop.
    Gateway(IpAddr),
}

/// One end of the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Interface name.
    pub name: String,
    /// Given at creation.
    pub mac: Mac,
}

/// One step: where and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In which namespace.
    pub side: Side,
    /// What.
    pub op: Op,
}

/// An attachment as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order; each is idempotent except the first.
    pub steps: Vec<Step>,
    /// The node's end.
    pub host: End,
    /// The container's end.
    pub pod: End,
    addresses: Vec<Assigned>,
    mtu: u32,
}

impl Plan {
    /// The steps for an attachment with these addresses. `mtu` in bytes, 0 for the kernel's default.
    ///
    /// # Errors
    /// A text that names the value when the requested MAC cannot be used.
    pub fn new(id: &AttachmentId, addresses: Vec<Assigned>, mtu: u32, extra: &RuntimeConfig) -> Result<Self, String> {
        let hash = crate::ipam::host_mac_bits(id);
        let host = End { name: host_ifname(id), mac: Mac::local(hash) };
        let mac = extra.mac.as_deref().map(str::parse).transpose()?;
        let pod = End { name: id.ifname.clone(), mac: mac.unwrap_or_else(|| Mac::local(hash ^ 1)) };
        let mut plan = Self { steps: Vec::new(), host, pod, addresses, mtu };
        plan.steps = plan.create().into_iter().chain(plan.pod_side()).chain(plan.host_side()).collect();
        Ok(plan)
    }

    fn create(&self) -> Vec<Step> {
        let (host, pod) = (self.host.clone(), self.pod.clone());
        let v6 = self.addresses.iter().any(|assigned| assigned.address.is_ipv6());
        let v4 = self.addresses.iter().any(|assigned| assigned.address.is_ipv4());
        let conf = |family: &str, key: &str| format!("{family}/conf/{}/{key}", self.host.name);
        let mut steps = Vec::new();
        if v4 {
            steps.push(Op::sysctl("ipv4/ip_forward", "1", Missing::Fail));
        }
        if v6 {
            steps.push(Op::sysctl("ipv6/conf/all/forwarding", "1", Missing::Fail));
        }
        steps.push(Op::Veth { host, pod, mtu: self.mtu });
        steps.push(Op::sysctl(conf("ipv4", "rp_filter"), "1", Missing::Skip));
        steps.push(Op::sysctl(conf("ipv4", "send_redirects"), "0", Missing::Skip));
        steps.push(Op::sysctl(conf("ipv6", "accept_ra"), "0", Missing::Skip));
        steps.push(Op::sysctl(conf("ipv6", "accept_dad"), "0", Missing::Skip));
        steps.push(Op::Up { interface: self.host.name.clone() });
        steps.into_iter().map(|op| Step { side: Side::Host, op }).collect()
    }

    fn pod_side(&self) -> Vec<Step> {
        let interface = || self.pod.name.clone();
        let conf = |key: &str| format!("ipv6/conf/{}/{key}", self.pod.name);
        let mut steps = vec![
            Op::Up { interface: "lo".to_owned() },
            Op::sysctl(conf("accept_dad"), "0", Missing::Skip),
            Op::sysctl(conf("accept_ra"), "0", Missing::Skip),
        ];
        if self.addresses.iter().any(|assigned| assigned.address.is_ipv6()) {
            // Some runtimes make namespaces with IPv6 off (`disable_ipv6=1` in the defaults).
            steps.push(Op::sysctl(conf("disable_ipv6"), "0", Missing::Fail));
        }
        steps.push(Op::Up { interface: interface() });
        for &Assigned { address, gateway } in &self.addresses {
            steps.extend([
                Op::Address { interface: interface(), address },
                Op::Neighbour { interface: interface(), address: gateway, mac: self.host.mac },
                Op::Route { interface: interface(), dst: Cidr::host(gateway), via: Via::Link { source: address } },
            ]);
        }
        for gateway in self.default_gateways() {
            let dst = Cidr::default_route(gateway);
            steps.push(Op::Route { interface: interface(), dst, via: Via::Gateway(gateway) });
        }
        steps.into_iter().map(|op| Step { side: Side::Pod, op }).collect()
    }

    fn host_side(&self) -> Vec<Step> {
        let interface = || self.host.name.clone();
        let steps = self.addresses.iter().flat_map(|&Assigned { address, gateway }| {
            [
                Op::Address { interface: interface(), address: gateway },
                Op::Route { interface: interface(), dst: Cidr::host(address), via: Via::Link { source: gateway } },
            ]
        });
        steps.map(|op| Step { side: Side::Host, op }).collect()
    }

    /// One per family: that of the first address.
    fn default_gateways(&self) -> impl Iterator<Item = IpAddr> {
        let first = |v4: bool| self.addresses.iter().find(move |assigned| assigned.gateway.is_ipv4() == v4);
        [first(true), first(false)].into_iter().flatten().map(|assigned| assigned.gateway)
    }

    /// The result that goes to the runtime: the node's end first, then the container's. `mtu` as the kernel has it.
    pub fn result(&self, attachment: &Attachment, mtu: u32) -> AddResult {
        let interface = |end: &End, sandbox: String| Interface {
            name: end.name.clone(),
            mac: end.mac.to_string(),
            mtu: Some(mtu),
            sandbox,
            ..Interface::default()
        };
        let ip = |&Assigned { address, gateway }: &Assigned| IpConfig {
            interface: Some(1),
            address: Cidr::host(address),
            gateway: Some(gateway),
        };
        let route =
            |gateway| Route { dst: Cidr::default_route(gateway), gw: Some(gateway), rest: serde_json::Map::new() };
        let sandbox = attachment.netns.display().to_string();
        AddResult {
            interfaces: vec![interface(&self.host, String::new()), interface(&self.pod, sandbox)],
            ips: self.addresses.iter().map(ip).collect(),
            routes: self.default_gateways().map(route).collect(),
            dns: None,
        }
    }
}

impl Op {
    fn sysctl(path: impl Into<String>, value: &'static str, missing: Missing) -> Self {
        Self::Sysctl { path: path.into(), value, missing }
    }
}

impl Mac {
    /// A locally administered unicast address (second bit of the first byte set, first bit clear).
    fn local(bits: u64) -> Self {
        let [.., a, b, c, d, e] = bits.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Option<Vec<u8>> =
            text.split(':').map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2)).collect();
        match bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
            Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Self(mac)),
            _ => Err(format!("runtimeConfig.mac {text:?} is not a unicast address such as 02:42:ac:11:00:02")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mac: Option<&str>) -> Result<Plan, String> {
        let id = AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
        let assigned = |address: &str, gateway: &str| Assigned {
            address: address.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
        };
        let addresses = vec![assigned("10.0.0.2", "10.0.0.1"), assigned("fd00::2", "fd00::1")];
        Plan::new(&id, addresses, 1400, &RuntimeConfig { mac: mac.map(str::to_owned), ips: vec![] })
    }

    #[test]
    fn forwarding_comes_before_the_pair_and_duplicate_detection_is_off_before_it_is_up() {
        let steps = plan(None).unwrap().steps;
        let position = |wanted: &dyn Fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        let veth = position(&|step| matches!(step.op, Op::Veth { .. }));
        let sysctl = |side, key: &'static str| {
            position(&|step| step.side == side && matches!(&step.op, Op::Sysctl { path, .. } if path.ends_with(key)))
        };
        let up = |side, name: &str| position(&|s| s.side == side && s.op == Op::Up { interface: name.to_owned() });
        let host = plan(None).unwrap().host.name;
        assert!(sysctl(Side::Host, "ip_forward") < veth && sysctl(Side::Host, "forwarding") < veth);
        assert!(sysctl(Side::Host, "accept_dad") < up(Side::Host, &host));
        assert!(sysctl(Side::Pod, "accept_dad") < up(Side::Pod, "eth0"));
        assert!(up(Side::Host, &host) < up(Side::Pod, "eth0"));
    }

    #[test]
    fn the_pod_can_reach_its_gateway_before_the_default_route_is_added() {
        let steps = plan(None).unwrap().steps;
        for family in ["10.0.0.1", "fd00::1"] {
            let gateway: IpAddr = family.parse().unwrap();
            let routes: Vec<_> = steps.iter().filter(|step| step.side == Side::Pod).map(|step| &step.op).collect();
            let on_link = routes.iter().position(|op| matches!(op, Op::Route { dst, .. } if dst.addr() == gateway));
            let default =
                routes.iter().position(|op| matches!(op, Op::Route { via, .. } if *via == Via::Gateway(gateway)));
            assert!(on_link.unwrap() < default.unwrap());
        }
    }

    #[test]
    fn both_macs_are_local_unicast_differ_and_follow_from_the_owner() {
        let (one, two) = (plan(None).unwrap(), plan(None).unwrap());
        assert_eq!(one, two);
        assert_ne!(one.host.mac, one.pod.mac);
        assert_eq!(one.host.mac.0[0] & 3, 2);
        assert_eq!(plan(Some("02:42:ac:11:00:02")).unwrap().pod.mac.to_string(), "02:42:ac:11:00:02");
        for wrong in ["01:00:00:00:00:01", "02:42:ac:11:00", "", "2:42:ac:11:0:2", "00:00:00:00:00:00"] {
            assert!(plan(Some(wrong)).unwrap_err().contains(wrong));
        }
    }
}
