//! The configuration of a pod sandbox, as the runtime is told. Pure.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use nodelet_proto::cri;

use super::facilities::IdRange;
use super::hosts::HostName;
use super::security::{self, SecurityError};
use super::spec;
use crate::cri::labels;

/// What a sandbox needs besides the pod.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Attempt number.
    pub attempt: u32,
    /// Hostname.
    pub hostname: HostName,
    /// Resolver configuration.
    pub dns: cri::DnsConfig,
    /// Directory of the pod's logs.
    pub log_directory: String,
    /// Parent cgroup in the notation of the driver.
    pub cgroup_parent: String,
    /// Sum of the containers' resources.
    pub resources: Option<cri::LinuxContainerResources>,
    /// RuntimeClass overhead.
    pub overhead: Option<cri::LinuxContainerResources>,
    /// The ids of a pod with its own user namespace.
    pub users: Option<IdRange>,
    /// Whether hostPorts are given to the network plugin (portmap) rather than to the agent's own rules.
    pub port_mappings: bool,
}

/// Directory name of a pod's logs: `NAMESPACE_NAME_UID`, which log shippers take apart.
pub fn log_directory_name(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}_{}", text(&meta.namespace), text(&meta.name), text(&meta.uid))
}

/// Builds the configuration.
pub fn sandbox_config(pod: &Pod, inputs: Inputs) -> Result<cri::PodSandboxConfig, SecurityError> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut sandbox_labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    sandbox_labels.insert(labels::POD_NAME.into(), text(&meta.name));
    sandbox_labels.insert(labels::POD_NAMESPACE.into(), text(&meta.namespace));
    sandbox_labels.insert(labels::POD_UID.into(), text(&meta.uid));
    let sysctls = spec::spec(pod)
        .security_context
        .iter()
        .flat_map(|c| c.sysctls.iter().flatten())
        .map(|s| (s.name.clone(), s.value.clone()))
        .collect();
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: text(&meta.name),
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            attempt: inputs.attempt,
        }),
        // On the node's network the sandbox has the node's hostname.
        hostname: if spec::host_network(pod) { String::new() } else { inputs.hostname.kernel },
        log_directory: inputs.log_directory,
        dns_config: Some(inputs.dns),
        port_mappings: if inputs.port_mappings { port_mappings(pod) } else { Vec::new() },
        labels: sandbox_labels,
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: inputs.cgroup_parent,
            security_context: Some(security::sandbox(pod, inputs.users)?),
            sysctls,
            overhead: inputs.overhead,
            resources: inputs.resources,
        }),
        windows: None,
    })
}

/// The ports that the network plugin is asked to map. On the node's network there is nothing to map.
pub fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    if spec::host_network(pod) {
        return Vec::new();
    }
    let spec = spec::spec(pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|c| spec::init_role(c) == spec::Role::Sidecar);
    let ports = sidecars.chain(&spec.containers).flat_map(|c| c.ports.iter().flatten());
    ports
        .map(|port| cri::PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => cri::Protocol::Udp,
                Some("SCTP") => cri::Protocol::Sctp,
                _ => cri::Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, ContainerPort, PodSecurityContext, PodSpec, Sysctl};

    use super::*;

    fn make_pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.uid = Some("u".into());
        pod.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
        pod.metadata.annotations = Some([("note".to_owned(), "x".to_owned())].into());
        pod.spec = Some(PodSpec::default());
        pod
    }

    fn make_config(pod: &Pod, port_mappings: bool) -> cri::PodSandboxConfig {
        let hostname = HostName { hostname: "web".into(), domain: "d".into(), kernel: "web.d".into() };
        let dns = cri::DnsConfig { servers: vec!["10.96.0.10".into()], ..cri::DnsConfig::default() };
        let inputs = Inputs {
            attempt: 2,
            hostname,
            dns,
            log_directory: format!("/var/log/pods/{}", log_directory_name(pod)),
            cgroup_parent: "/kubepods/podu".into(),
            resources: None,
            overhead: None,
            users: None,
            port_mappings,
        };
        sandbox_config(pod, inputs).unwrap()
    }

    #[test]
    fn a_sandbox_can_be_told_apart_by_metadata_and_labels() {
        let config = make_config(&make_pod(), true);
        let metadata = config.metadata.unwrap();
        let metadata = (metadata.name.as_str(), metadata.namespace.as_str(), metadata.uid.as_str(), metadata.attempt);
        assert_eq!(metadata, ("p", "ns", "u", 2));
        let label = |key: &str| config.labels.get(key).map(String::as_str);
        for (key, value) in [
            ("app", "web"),
            ("io.kubernetes.pod.name", "p"),
            ("io.kubernetes.pod.namespace", "ns"),
            ("io.kubernetes.pod.uid", "u"),
        ] {
            assert_eq!(label(key), Some(value), "{key}");
        }
        assert_eq!(config.annotations, HashMap::from([("note".to_owned(), "x".to_owned())]));
        assert_eq!(config.log_directory, "/var/log/pods/ns_p_u");
    }

    #[test]
    fn labels_of_the_pod_cannot_change_its_identity() {
        let mut pod = make_pod();
        pod.metadata.labels = Some([("io.kubernetes.pod.uid".to_owned(), "other".to_owned())].into());
        assert_eq!(make_config(&pod, true).labels["io.kubernetes.pod.uid"], "u");
    }

    #[test]
    fn the_hostname_is_the_pods_unless_it_has_the_nodes_network() {
        let mut pod = make_pod();
        assert_eq!(make_config(&pod, true).hostname, "web.d");
        pod.spec.as_mut().unwrap().host_network = Some(true);
        assert_eq!(make_config(&pod, true).hostname, "");
    }

    #[test]
    fn cgroup_sysctls_and_resolver_are_passed_on() {
        let mut pod = make_pod();
        let sysctls = vec![Sysctl { name: "net.ipv4.tcp_syncookies".into(), value: "0".into() }];
        pod.spec.as_mut().unwrap().security_context =
            Some(PodSecurityContext { sysctls: Some(sysctls), ..PodSecurityContext::default() });
        let config = make_config(&pod, true);
        assert_eq!(config.dns_config.unwrap().servers, ["10.96.0.10"]);
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/kubepods/podu");
        assert_eq!(linux.sysctls, HashMap::from([("net.ipv4.tcp_syncookies".to_owned(), "0".to_owned())]));
    }

    #[test]
    fn ports_of_containers_and_sidecars_are_mapped_unless_the_agent_does_it_itself() {
        let port = |container_port: i32, host_port: Option<i32>, protocol: Option<&str>| ContainerPort {
            container_port,
            host_port,
            host_ip: host_port.map(|_| "127.0.0.1".to_owned()),
            protocol: protocol.map(str::to_owned),
            ..ContainerPort::default()
        };
        let with = |name: &str, ports: Vec<ContainerPort>| Container {
            name: name.into(),
            ports: Some(ports),
            ..Container::default()
        };
        let mut pod = make_pod();
        let spec = pod.spec.as_mut().unwrap();
        let sidecar =
            Container { restart_policy: Some("Always".into()), ..with("side", vec![port(1, Some(1001), None)]) };
        spec.init_containers = Some(vec![with("init", vec![port(9, Some(9), None)]), sidecar]);
        spec.containers = vec![with(
            "web",
            vec![port(53, Some(1053), Some("UDP")), port(38, None, Some("SCTP")), port(80, None, Some("TCP"))],
        )];
        let say = |config: cri::PodSandboxConfig| -> Vec<String> {
            let words =
                |p: cri::PortMapping| format!("{:?} {}:{}>{}", p.protocol(), p.host_ip, p.host_port, p.container_port);
            config.port_mappings.into_iter().map(words).collect()
        };
        let mapped = ["Tcp 127.0.0.1:1001>1", "Udp 127.0.0.1:1053>53", "Sctp :0>38", "Tcp :0>80"];
        assert_eq!(say(make_config(&pod, true)), mapped);
        assert!(say(make_config(&pod, false)).is_empty());
        pod.spec.as_mut().unwrap().host_network = Some(true);
        assert!(say(make_config(&pod, true)).is_empty(), "on the node's network every port is the node's");
    }
}
