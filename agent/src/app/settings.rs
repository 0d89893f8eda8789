//! From the checked configuration to the settings of each domain. Pure but for a look at the machine.

use std::net::IpAddr;

use crate::cgroup::{self, CgroupVersion};
use crate::config::kubelet::resources::Swap;
use crate::config::kubelet::{CgroupDriver, Enforce};
use crate::config::proxy::LocalMode;
use crate::config::{Config, KUBELET_VERSION, Mode, Only};
use crate::logs::kept;
use crate::node::facts::MachineFacts;
use crate::node::{NodeSettings, capacity};
use crate::pod::{admit, dead, dns, images, lifecycle, resize, security, shared};
use crate::service::node_ports::{NodePorts, Place};
use crate::service::{self, Cidr};

/// Settings of the cgroup tree; `driver` is what the runtime says, where it says anything.
pub fn cgroups(
    config: &Config,
    facts: &MachineFacts,
    driver: Option<cgroup::Driver>,
    hierarchies: &cgroup::Hierarchies,
) -> cgroup::Settings {
    let kubelet = &config.kubelet;
    let period = u64::try_from(kubelet.cpu_cfs_period.as_micros()).unwrap_or(cgroup::plan::DEFAULT_PERIOD);
    let configured = match kubelet.cgroup_driver {
        CgroupDriver::Cgroupfs => cgroup::Driver::Cgroupfs,
        CgroupDriver::Systemd => cgroup::Driver::Systemd,
    };
    cgroup::Settings {
        driver: driver.unwrap_or(configured),
        cgroup_root: kubelet.cgroup_root.clone(),
        qos_cgroups: kubelet.cgroups_per_qos,
        cfs_quota: if kubelet.cpu_cfs_quota { cgroup::CfsQuota::Enforced { period } } else { cgroup::CfsQuota::Off },
        pids_limit: Some(kubelet.pod_pids_limit).filter(|limit| *limit > 0),
        allocatable: pod_limits(config, facts),
        memory_capacity: i64::try_from(facts.memory).unwrap_or(i64::MAX),
        swap: match kubelet.swap {
            _ if !hierarchies.accounts_swap() => cgroup::SwapBehavior::Unaccounted,
            Swap::NoSwap => cgroup::SwapBehavior::NoSwap,
            Swap::LimitedSwap => {
                cgroup::SwapBehavior::LimitedSwap { available: i64::try_from(facts.swap).unwrap_or(i64::MAX) }
            }
        },
        memory_qos: memory_qos(config, facts),
        // v1 has no such file; there the kernel chooses one process.
        single_process_oom_kill: kubelet.single_process_oom_kill.unwrap_or(hierarchies.version() == CgroupVersion::V1),
    }
}

fn pod_limits(config: &Config, facts: &MachineFacts) -> cgroup::ResourceList {
    let is_enforced = config.kubelet.cgroups_per_qos && config.kubelet.enforce.contains(&Enforce::Pods);
    capacity::pod_limits(&NodeSettings::new(config, KUBELET_VERSION), facts, is_enforced)
}

fn memory_qos(config: &Config, facts: &MachineFacts) -> cgroup::MemoryQos {
    let asked = config.kubelet.memory_qos;
    if !asked.is_on {
        return cgroup::MemoryQos::Off;
    }
    let node = capacity::pod_limits(&NodeSettings::new(config, KUBELET_VERSION), facts, true);
    let allocatable = node.get("memory").map_or(0, |memory| memory.value());
    let page_size = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let throttling = asked.throttling.map(|factor| cgroup::Throttling { factor, allocatable, page_size });
    cgroup::MemoryQos::On { is_tiered: asked.is_tiered, throttling }
}

/// The cgroups of daemons that `enforceNodeAllocatable` names.
pub fn reserved(config: &Config) -> Vec<cgroup::Reserved> {
    let kubelet = &config.kubelet;
    let system = |is_cpu_only| cgroup::Reserved {
        daemons: cgroup::Daemons::System,
        cgroup: kubelet.system_reserved_cgroup.clone(),
        amounts: kubelet.reserved.system.iter().cloned().collect(),
        is_cpu_only,
    };
    let kube = |is_cpu_only| cgroup::Reserved {
        daemons: cgroup::Daemons::Kube,
        cgroup: kubelet.kube_reserved_cgroup.clone(),
        amounts: kubelet.reserved.kube.iter().cloned().collect(),
        is_cpu_only,
    };
    let group = |enforce: &Enforce| match enforce {
        Enforce::Pods => None,
        Enforce::SystemReserved => Some(system(false)),
        Enforce::SystemReservedCompressible => Some(system(true)),
        Enforce::KubeReserved => Some(kube(false)),
        Enforce::KubeReservedCompressible => Some(kube(true)),
    };
    kubelet.enforce.iter().filter_map(group).collect()
}

/// What pods may ask for in total.
pub fn allocatable(config: &Config, facts: &MachineFacts) -> cgroup::ResourceList {
    let settings = NodeSettings::new(config, KUBELET_VERSION);
    capacity::allocatable(&settings, &capacity::capacity(&settings, facts))
}

/// Settings of the pod domain.
pub fn pods(config: &Config) -> shared::Settings {
    let kubelet = &config.kubelet;
    shared::Settings {
        node_name: config.node_name.clone(),
        log_dir: kubelet.pod_logs_dir.clone(),
        dns: dns::Settings {
            cluster_dns: kubelet.cluster_dns.iter().map(ToString::to_string).collect(),
            cluster_domain: kubelet.cluster_domain.clone(),
        },
        resolv_conf: kubelet.resolv_conf.clone(),
        security: security::Settings {
            seccomp_default: kubelet.seccomp_default,
            seccomp_root: config.root_dir.join("seccomp").to_string_lossy().into_owned(),
            masked_paths: masked_paths(),
        },
        max_crash_delay: i64::try_from(kubelet.max_crash_backoff.as_nanos()).unwrap_or(300 * lifecycle::SECOND),
        // On v1 the agent does not start with it.
        resize: resize::Rules { limited_swap: kubelet.swap == Swap::LimitedSwap },
        port_mappings: true,
        container_links: container_links(config),
        kept_logs: kept::execute::place(&config.kubelet.pod_logs_dir),
        dead_containers: dead::kept(config.dead_containers),
    }
}

/// Settings of image pulls.
pub fn images(config: &Config) -> images::Settings {
    let kubelet = &config.kubelet;
    let number = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    images::Settings {
        parallel: kubelet.parallel_pulls,
        rate: (number(kubelet.registry_qps.0), number(kubelet.registry_qps.1)),
        policy: kubelet.pull_verification.clone(),
        root_dir: config.root_dir.clone(),
        home: images::node_config::home(),
        providers: config.credential_providers.clone(),
    }
}

/// What pods are admitted against until a Node object says more: kubelet's own labels and those of the configuration.
pub fn admission(config: &Config, machine: &MachineFacts) -> admit::Node {
    let own = [
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", machine.architecture),
        ("kubernetes.io/hostname", &config.node_name),
    ];
    let own = own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    admit::Node {
        name: config.node_name.clone(),
        labels: own.chain(config.node_labels.iter().cloned()).collect(),
        taints: Vec::new(),
        allocatable: allocatable(config, machine),
        allowed_unsafe_sysctls: config.kubelet.allowed_unsafe_sysctls.clone(),
        has_apparmor: has_apparmor(),
        strict_groups: None,
    }
}

/// Whether the kernel enforces AppArmor profiles. It is looked at once, as by kubelet: switching it on takes a reboot.
fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Log shippers look below `/var/log/containers`; logs that are kept elsewhere have their links beside them.
fn container_links(config: &Config) -> Option<std::path::PathBuf> {
    config.kubelet.pod_logs_dir.parent().map(|parent| parent.join("containers"))
}

/// The fixed list and the throttling counters of the CPUs that there are.
fn masked_paths() -> Vec<String> {
    let fixed = security::MASKED_PATHS.iter().map(|path| (*path).to_owned());
    let cpus = (0..4096).map(|cpu| format!("/sys/devices/system/cpu/cpu{cpu}"));
    let cpus = cpus.take_while(|cpu| std::path::Path::new(cpu).exists());
    let throttle = cpus.map(|cpu| cpu + "/thermal_throttle").filter(|path| std::path::Path::new(path).exists());
    fixed.chain(throttle).collect()
}

/// What `nodePortAddresses` says; it was checked when it was read.
pub fn node_ports(config: &Config) -> NodePorts {
    let places: Vec<Place> = config.proxy.node_port_addresses.iter().filter_map(|text| Place::parse(text)).collect();
    NodePorts::new(&places)
}

/// CIDRs of a configuration or of the API; what is none is reported and left out.
pub fn parse_cidrs(texts: &[String]) -> Vec<Cidr> {
    let parse = |text: &String| {
        let cidr = Cidr::parse(text);
        if cidr.is_none() {
            tracing::error!(cidr = %text, "not a CIDR such as 10.244.0.0/16; it is left out");
        }
        cidr
    };
    texts.iter().filter_map(parse).collect()
}

/// The networks of all pods of the cluster, as far as they are configured.
pub fn cluster_cidrs(config: &Config) -> Vec<Cidr> {
    match (&config.mode, config.proxy.cluster_cidrs.is_empty()) {
        (Mode::Alone { pod_cidrs, .. }, true) => parse_cidrs(pod_cidrs),
        (Mode::Alone { .. }, false) | (Mode::Joined { .. }, _) => parse_cidrs(&config.proxy.cluster_cidrs),
    }
}

/// Whether pods of this node may have the project's own network.
pub fn may_own_network(config: &Config) -> bool {
    config.only == Only::Both && config.cni_conf_dir.is_some()
}

/// Settings of the service half.
pub fn services(config: &Config, node_addresses: Vec<IpAddr>) -> service::Settings {
    let local = match &config.proxy.local_mode {
        LocalMode::ClusterCidr => service::Local::Networks(cluster_cidrs(config)),
        // Those of a joined node are known with its Node object; Services do not wait for that.
        LocalMode::NodeCidr => service::Local::Networks(match &config.mode {
            Mode::Alone { pod_cidrs, .. } => parse_cidrs(pod_cidrs),
            Mode::Joined { .. } => Vec::new(),
        }),
        LocalMode::BridgeInterface(name) => service::Local::Interface(name.clone()),
        LocalMode::InterfaceNamePrefix(prefix) => service::Local::InterfacePrefix(prefix.clone()),
    };
    service::Settings {
        node_name: config.node_name.clone(),
        node_addresses,
        local,
        external_ip_ranges: None,
        masquerade_all: config.proxy.masquerade_all,
        egress: None,
        service_cidrs: match &config.mode {
            Mode::Alone { service_cidrs, .. } => parse_cidrs(service_cidrs),
            Mode::Joined { .. } => Vec::new(),
        },
        awaits_host_ports: may_own_network(config),
        conntrack: Some(config.proxy.conntrack),
    }
}
