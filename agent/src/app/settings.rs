//! From the checked configuration to the settings of each domain. Pure but for a look at the machine.

use std::net::IpAddr;

use crate::cgroup;
use crate::config::kubelet::CgroupDriver;
use crate::config::proxy::LocalMode;
use crate::config::{Config, Mode, Only};
use crate::logs::kept;
use crate::node::facts::MachineFacts;
use crate::pod::{admit, dead, dns, images, lifecycle, resize, security, shared};
use crate::quantity::{Format, Quantity};
use crate::service::node_ports::{NodePorts, Place};
use crate::service::{self, Cidr};

/// Capacity less what is reserved: the limits of the `kubepods` cgroup.
fn pod_limits(config: &Config, facts: &MachineFacts) -> cgroup::ResourceList {
    let memory = i64::try_from(facts.memory).unwrap_or(i64::MAX);
    let mut limits = cgroup::ResourceList::from([
        ("cpu".to_owned(), Quantity::from_units(i64::from(facts.cpus), Format::DecimalSi)),
        ("memory".to_owned(), Quantity::from_units(memory, Format::BinarySi)),
    ]);
    for (name, reserved) in &config.kubelet.reserved {
        if let Some(amount) = limits.get_mut(name) {
            *amount = amount.minus(*reserved);
        }
    }
    limits
}

/// Settings of the cgroup tree; `driver` is what the runtime says, where it says anything.
pub fn cgroups(config: &Config, facts: &MachineFacts, driver: Option<cgroup::Driver>) -> cgroup::Settings {
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
        swap: cgroup::SwapBehavior::Unaccounted,
        single_process_oom_kill: false,
    }
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
        resize: resize::Rules { limited_swap: false },
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
    let mut allocatable = super::facts::allocatable(machine, &config.kubelet, true);
    let pods = Quantity::from_units(config.kubelet.max_pods, Format::DecimalSi);
    allocatable.insert("pods".to_owned(), pods);
    admit::Node {
        name: config.node_name.clone(),
        labels: own.chain(config.node_labels.iter().cloned()).collect(),
        taints: Vec::new(),
        allocatable,
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
