//! ClusterIPs and node ports for all Services at once. Pure: the same Services and the same memory give the same answer.
//!
//! Who gets what, in this order: a Service keeps what it had; then come addresses and ports that manifests name; then the rest is
//! chosen. So a new manifest can never take an address away from a running Service.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde::{Deserialize, Serialize};

use super::cluster_ip::ServiceCidr;
use crate::ids::ObjectKey;

/// Node ports, as the API server's default `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The part of [`NODE_PORTS`] that is chosen from last, so that manifests can name ports of it (KEP-3668).
const STATIC_NODE_PORTS: u16 = 86;

/// What addresses come from.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    cidrs: Vec<ServiceCidr>,
}

impl Ranges {
    /// Ranges of which the first of each family counts; the first of all is the default family.
    pub fn new(cidrs: Vec<ServiceCidr>) -> Self {
        let mut families = BTreeSet::new();
        Self { cidrs: cidrs.into_iter().filter(|c| families.insert(c.family())).collect() }
    }

    fn of(&self, family: &str) -> Option<&ServiceCidr> {
        self.cidrs.iter().find(|c| c.family() == family)
    }
}

/// What one Service has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// ClusterIPs, at most one per family.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<IpAddr>,
    /// Node ports by `PROTOCOL/port` of the Service.
    #[serde(default)]
    pub node_ports: BTreeMap<String, u16>,
}

/// What all Services have, by `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// The Services.
    #[serde(default)]
    pub services: BTreeMap<String, Held>,
}

/// Why a Service cannot have what it wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The Service.
    pub key: ObjectKey,
    /// Reason of the event, as the API server's allocators name it.
    pub reason: &'static str,
    /// What was wanted, why not, what to do.
    pub message: String,
}

/// The outcome of [`assign`].
#[derive(Clone, Debug, Default)]
pub struct Assigned {
    /// Services that can be programmed, with all addresses filled in.
    pub services: BTreeMap<ObjectKey, Service>,
    /// To be kept; knows exactly the Services of this call.
    pub remembered: Remembered,
    /// Services that are left out.
    pub problems: Vec<Problem>,
}

/// Addresses and ports in use while allocating, with their holders.
#[derive(Default)]
struct Used {
    ips: BTreeMap<IpAddr, ObjectKey>,
    ports: BTreeMap<(String, u16), ObjectKey>,
}

/// Gives all Services their addresses.
pub fn assign(services: &BTreeMap<ObjectKey, Service>, memory: &Remembered, ranges: &Ranges) -> Assigned {
    let mut used = Used::default();
    let mut held: BTreeMap<&ObjectKey, Held> = BTreeMap::new();
    for (key, service) in services {
        let old = memory.services.get(&key.to_string()).cloned().unwrap_or_default();
        held.insert(key, keep(key, service, old, ranges, &mut used));
    }
    let mut out = Assigned::default();
    let mut refused = BTreeSet::new();
    for (key, service) in services {
        let have = held.entry(key).or_default();
        let before = have.clone();
        if let Err(problem) = claim(key, service, have, ranges, &mut used) {
            // It keeps what it had: a mistake in one field must not cost a Service its address.
            used.release(key);
            used.take(key, &before);
            *have = before;
            refused.insert(key);
            out.problems.push(problem);
        }
    }
    for (key, service) in services {
        let have = held.entry(key).or_default();
        if refused.contains(key) {
            if *have != Held::default() {
                out.remembered.services.insert(key.to_string(), have.clone());
            }
            continue;
        }
        match choose(key, service, have, ranges, &mut used) {
            Ok(()) => {
                out.services.insert(key.clone(), fill(service, have));
                if *have != Held::default() {
                    out.remembered.services.insert(key.to_string(), have.clone());
                }
            }
            Err(problem) => {
                used.release(key);
                out.problems.push(problem);
            }
        }
    }
    out
}

impl Used {
    fn take(&mut self, key: &ObjectKey, held: &Held) {
        self.ips.extend(held.cluster_ips.iter().map(|ip| (*ip, key.clone())));
        self.ports.extend(held.node_ports.iter().map(|(id, n)| ((protocol(id), *n), key.clone())));
    }

    fn release(&mut self, key: &ObjectKey) {
        self.ips.retain(|_, holder| holder != key);
        self.ports.retain(|_, holder| holder != key);
    }
}

fn spec(service: &Service) -> Option<&ServiceSpec> {
    service.spec.as_ref()
}

fn needs_ip(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName") && spec.cluster_ip.as_deref() != Some("None")
}

fn needs_node_ports(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Addresses that the manifest names.
fn wanted_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let first = spec.cluster_ip.iter();
    let list = first.chain(spec.cluster_ips.iter().flatten()).filter_map(|ip| ip.parse().ok());
    let mut unique = Vec::new();
    list.for_each(|ip| {
        if !unique.contains(&ip) {
            unique.push(ip);
        }
    });
    unique
}

/// Families that the Service is to have, in order. An error names what is missing.
fn families<'a>(spec: &'a ServiceSpec, ranges: &'a Ranges) -> Result<Vec<&'a str>, String> {
    let default = ranges.cidrs.first().map(ServiceCidr::family);
    let mut list: Vec<&str> = spec.ip_families.iter().flatten().map(String::as_str).collect();
    for ip in wanted_ips(spec) {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if !list.contains(&family) {
            list.push(family);
        }
    }
    if list.is_empty() {
        list.extend(default);
    }
    let policy = spec.ip_family_policy.as_deref().unwrap_or("SingleStack");
    if policy != "SingleStack" {
        let all = ranges.cidrs.iter().map(ServiceCidr::family);
        let more = all.filter(|f| !list.contains(f)).collect::<Vec<_>>();
        list.extend(more);
    }
    if let Some(missing) = list.iter().find(|f| ranges.of(f).is_none()) {
        return Err(format!("this node has no {missing} Service range; give --service-cidr one"));
    }
    if policy == "RequireDualStack" && list.len() < 2 {
        return Err("RequireDualStack needs a Service range of each family; give --service-cidr two".to_owned());
    }
    Ok(list)
}

fn port_id(port: &k8s_openapi::api::core::v1::ServicePort) -> String {
    format!("{}/{}", port.protocol.as_deref().unwrap_or("TCP"), port.port)
}

fn protocol(id: &str) -> String {
    id.split('/').next().unwrap_or(id).to_owned()
}

/// What is still right of what the Service had.
fn keep(key: &ObjectKey, service: &Service, old: Held, ranges: &Ranges, used: &mut Used) -> Held {
    let Some(spec) = spec(service) else { return Held::default() };
    let mut held = Held::default();
    let families = families(spec, ranges).unwrap_or_default();
    let wanted = wanted_ips(spec);
    for ip in old.cluster_ips {
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let named = wanted.iter().find(|w| w.is_ipv4() == ip.is_ipv4());
        let good = needs_ip(spec)
            && families.contains(&family)
            && ranges.of(family).is_some_and(|c| c.contains(ip))
            && named.is_none_or(|named| *named == ip);
        if good && !used.ips.contains_key(&ip) {
            used.ips.insert(ip, key.clone());
            held.cluster_ips.push(ip);
        }
    }
    for port in spec.ports.iter().flatten().filter(|_| needs_node_ports(spec)) {
        let id = port_id(port);
        let Some(number) = old.node_ports.get(&id).copied() else { continue };
        let named = port.node_port.filter(|p| *p != 0);
        let slot = (protocol(&id), number);
        if named.is_none_or(|named| named == i32::from(number)) && !used.ports.contains_key(&slot) {
            used.ports.insert(slot, key.clone());
            held.node_ports.insert(id, number);
        }
    }
    held
}

/// Takes what the manifest names.
fn claim(key: &ObjectKey, service: &Service, held: &mut Held, ranges: &Ranges, used: &mut Used) -> Result<(), Problem> {
    let Some(spec) = spec(service) else { return Ok(()) };
    let problem = |reason, message| Err(Problem { key: key.clone(), reason, message });
    for ip in wanted_ips(spec).into_iter().filter(|_| needs_ip(spec)) {
        if held.cluster_ips.contains(&ip) {
            continue;
        }
        if !ranges.cidrs.iter().any(|c| c.contains(ip)) {
            let list = ranges.cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let message =
                format!("clusterIP {ip} is not in the Service range {list}; choose one inside, or leave it out");
            return problem("ClusterIPOutOfRange", message);
        }
        if let Some(holder) = used.ips.get(&ip) {
            let message = format!("clusterIP {ip} is used by Service {holder}; choose another, or leave it out");
            return problem("ClusterIPAlreadyAllocated", message);
        }
        used.ips.insert(ip, key.clone());
        held.cluster_ips.push(ip);
    }
    for port in spec.ports.iter().flatten().filter(|_| needs_node_ports(spec)) {
        let id = port_id(port);
        let Some(named) = port.node_port.filter(|p| *p != 0) else { continue };
        let Some(number) = u16::try_from(named).ok().filter(|p| NODE_PORTS.contains(p)) else {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            return problem("PortOutOfRange", format!("nodePort {named} is not in {first} to {last}"));
        };
        if held.node_ports.get(&id) == Some(&number) {
            continue;
        }
        let slot = (protocol(&id), number);
        if let Some(holder) = used.ports.get(&slot) {
            let message = format!("nodePort {number}/{} is used by Service {holder}; choose another", slot.0);
            return problem("PortAlreadyAllocated", message);
        }
        used.ports.insert(slot, key.clone());
        held.node_ports.insert(id, number);
    }
    Ok(())
}

/// Chooses what is still missing.
fn choose(
    key: &ObjectKey,
    service: &Service,
    held: &mut Held,
    ranges: &Ranges,
    used: &mut Used,
) -> Result<(), Problem> {
    let Some(spec) = spec(service) else { return Ok(()) };
    let problem = |reason, message| Problem { key: key.clone(), reason, message };
    if needs_ip(spec) {
        let families = families(spec, ranges).map_err(|text| problem("ClusterIPNotValid", text))?;
        for family in &families {
            if held.cluster_ips.iter().any(|ip| ip.is_ipv4() == (*family == "IPv4")) {
                continue;
            }
            let taken: BTreeSet<IpAddr> = used.ips.keys().copied().collect();
            let range = ranges.of(family);
            let full = || problem("ServiceCIDRFull", format!("all {family} addresses of the Service range are in use"));
            let ip = range.and_then(|range| range.pick(key, &taken)).ok_or_else(full)?;
            used.ips.insert(ip, key.clone());
            held.cluster_ips.push(ip);
        }
        held.cluster_ips.sort_by_key(|ip| families.iter().position(|f| (*f == "IPv4") == ip.is_ipv4()));
    }
    for port in spec.ports.iter().flatten().filter(|_| needs_node_ports(spec)) {
        let id = port_id(port);
        if held.node_ports.contains_key(&id) {
            continue;
        }
        let protocol = protocol(&id);
        let full = || problem("PortAllocationFailed", format!("all node ports for {protocol} are in use"));
        let number = pick_port(key, &id, |n| !used.ports.contains_key(&(protocol.clone(), n))).ok_or_else(full)?;
        used.ports.insert((protocol.clone(), number), key.clone());
        held.node_ports.insert(id, number);
    }
    Ok(())
}

fn pick_port(key: &ObjectKey, id: &str, free: impl Fn(u16) -> bool) -> Option<u16> {
    let mut hasher = DefaultHasher::new();
    (&key.namespace, &key.name, id).hash(&mut hasher);
    let first = NODE_PORTS.start() + STATIC_NODE_PORTS;
    let count = NODE_PORTS.end() - first + 1;
    let start = u16::try_from(hasher.finish() % u64::from(count)).unwrap_or(0);
    let upper = (0..count).map(move |i| first + (start + i) % count);
    upper.chain(*NODE_PORTS.start()..first).find(|n| free(*n))
}

/// The Service as the API server would show it.
fn fill(service: &Service, held: &Held) -> Service {
    let mut service = service.clone();
    let Some(spec) = service.spec.as_mut() else { return service };
    if needs_ip(spec) {
        let texts = held.cluster_ips.iter().map(ToString::to_string).collect::<Vec<_>>();
        let family = |ip: &IpAddr| if ip.is_ipv4() { "IPv4".to_owned() } else { "IPv6".to_owned() };
        spec.cluster_ip = texts.first().cloned();
        spec.cluster_ips = Some(texts);
        spec.ip_families = Some(held.cluster_ips.iter().map(family).collect());
        spec.ip_family_policy.get_or_insert_with(|| "SingleStack".to_owned());
    } else if spec.cluster_ip.as_deref() == Some("None") {
        spec.cluster_ips = Some(vec!["None".to_owned()]);
    }
    for port in spec.ports.iter_mut().flatten() {
        if let Some(number) = held.node_ports.get(&port_id(port)) {
            port.node_port = Some((*number).into());
        }
    }
    service
}
