//! Hostname and `/etc/hosts` of a pod. Pure.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{HostAlias, Pod};

use super::spec;

/// Linux's limit for a hostname is 64 bytes (`HOST_NAME_MAX`), a DNS label's is 63.
const MAX_LABEL: usize = 63;
const MAX_FQDN: usize = 64;

/// The header that says who writes the file; tests of the upstream suite look for it.
const HEADER: &str = "# Kubernetes-managed hosts file";

/// A pod's hostname, and its domain when it has a subdomain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    /// First label.
    pub hostname: String,
    /// `SUBDOMAIN.NAMESPACE.svc.DOMAIN`, or empty.
    pub domain: String,
    /// What the kernel is told, by `setHostnameAsFQDN`.
    pub kernel: String,
}

/// Works out the hostname of a pod; the error is the text for the FailedCreatePodSandBox event.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> Result<HostName, String> {
    let spec = spec::spec(pod);
    if let Some(fixed) = spec.hostname_override.as_ref().filter(|h| !h.is_empty()) {
        let fixed = truncate_label(fixed);
        return Ok(HostName { hostname: fixed.clone(), domain: String::new(), kernel: fixed });
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let hostname = match spec.hostname.as_deref() {
        Some(hostname) if !hostname.is_empty() => hostname.to_owned(),
        _ => truncate_label(name),
    };
    let domain = match spec.subdomain.as_deref() {
        Some(subdomain) if !subdomain.is_empty() => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            format!("{subdomain}.{namespace}.svc.{cluster_domain}")
        }
        _ => String::new(),
    };
    let kernel = if spec.set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        let fqdn = format!("{hostname}.{domain}");
        if fqdn.len() > MAX_FQDN {
            return Err(format!(
                "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({MAX_FQDN} \
                 characters is the max, {} characters requested)",
                fqdn.len()
            ));
        }
        fqdn
    } else {
        hostname.clone()
    };
    Ok(HostName { hostname, domain, kernel })
}

/// A pod name may be longer than a label; what is cut off must not leave a trailing `-` or `.`.
fn truncate_label(name: &str) -> String {
    let cut: String = name.chars().take(MAX_LABEL).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The hosts file of a pod with its own network.
pub fn pod_hosts(pod_ips: &[String], name: &HostName, aliases: &[HostAlias]) -> String {
    let mut text = format!(
        "{HEADER}.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\t\
         ip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
    );
    for ip in pod_ips {
        // Writing to a String cannot fail.
        let _ = if name.domain.is_empty() {
            writeln!(text, "{ip}\t{}", name.hostname)
        } else {
            writeln!(text, "{ip}\t{}.{}\t{}", name.hostname, name.domain, name.hostname)
        };
    }
    text + &alias_lines(aliases)
}

/// The hosts file of a pod on the node's network: the node's own, marked.
pub fn host_network_hosts(node_hosts: &str, aliases: &[HostAlias]) -> String {
    format!("{HEADER} (host network).\n{node_hosts}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        let _ = writeln!(text, "{}\t{}", alias.ip, names.join("\t"));
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn make_pod(name: &str, spec: PodSpec) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("ns".into());
        pod.spec = Some(spec);
        pod
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn hostname_domain_and_kernel_name_follow_the_spec() {
        let none = PodSpec::default;
        let fqdn = |spec: PodSpec| PodSpec { set_hostname_as_fqdn: Some(true), ..spec };
        let named = || PodSpec { hostname: some("web"), ..none() };
        let both = || PodSpec { subdomain: some("sub"), ..named() };
        let domain = "sub.ns.svc.cluster.local";
        for (spec, hostname, domain, kernel) in [
            (none(), "p", "", "p"),
            (named(), "web", "", "web"),
            (PodSpec { subdomain: some("sub"), ..none() }, "p", domain, "p"),
            (both(), "web", domain, "web"),
            (fqdn(both()), "web", domain, "web.sub.ns.svc.cluster.local"),
            (fqdn(named()), "web", "", "web"),
            (PodSpec { hostname_override: some("my.host"), ..fqdn(both()) }, "my.host", "", "my.host"),
        ] {
            let expected = HostName { hostname: hostname.into(), domain: domain.into(), kernel: kernel.into() };
            assert_eq!(super::hostname(&make_pod("p", spec.clone()), "cluster.local"), Ok(expected), "{spec:?}");
        }
    }

    #[test]
    fn a_long_name_is_cut_to_a_label_that_does_not_end_in_a_separator() {
        for (name, expected) in [
            ("a".repeat(63), "a".repeat(63)),
            ("a".repeat(64), "a".repeat(63)),
            (format!("{}-b", "a".repeat(62)), "a".repeat(62)),
            (format!("{}.-.b", "a".repeat(60)), "a".repeat(60)),
        ] {
            let cut = hostname(&make_pod(&name, PodSpec::default()), "d").unwrap();
            assert_eq!(cut.hostname, expected, "{name}");
            let fixed = PodSpec { hostname_override: Some(name.clone()), ..PodSpec::default() };
            assert_eq!(hostname(&make_pod("p", fixed), "d").unwrap().kernel, expected, "override {name}");
        }
    }

    #[test]
    fn a_name_that_the_kernel_cannot_hold_is_refused() {
        let spec = |length: usize| PodSpec {
            hostname: Some("h".repeat(length)),
            subdomain: some("sub"),
            set_hostname_as_fqdn: Some(true),
            ..PodSpec::default()
        };
        // `.sub.ns.svc.cluster.local` has 25 characters; the kernel takes 64.
        assert_eq!(hostname(&make_pod("p", spec(39)), "cluster.local").unwrap().kernel.len(), 64);
        let error = hostname(&make_pod("p", spec(40)), "cluster.local").unwrap_err();
        assert!(error.contains("64 characters is the max, 65 characters requested"), "{error}");
    }

    #[test]
    fn the_file_of_a_pod_names_it_by_every_address_and_its_aliases() {
        let name = |domain: &str| HostName { hostname: "web".into(), domain: domain.into(), kernel: "web".into() };
        let ips = ["10.0.0.5".to_owned(), "fd00::5".to_owned()];
        let head = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
        assert_eq!(pod_hosts(&ips, &name(""), &[]), format!("{head}10.0.0.5\tweb\nfd00::5\tweb\n"));
        let alias = |ip: &str, names: &[&str]| HostAlias {
            ip: ip.into(),
            hostnames: Some(names.iter().map(|n| (*n).to_owned()).collect()),
        };
        let aliases = [alias("1.2.3.4", &["a", "b.example"]), alias("::2", &["c"])];
        assert_eq!(
            pod_hosts(&ips[..1], &name("sub.ns.svc.d"), &aliases),
            format!(
                "{head}10.0.0.5\tweb.sub.ns.svc.d\tweb\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb.example\n::2\tc\n"
            )
        );
    }

    #[test]
    fn the_file_on_the_nodes_network_is_the_nodes_marked() {
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["a".into()]) };
        assert_eq!(
            host_network_hosts("127.0.0.1 node\n", &[]),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n"
        );
        assert_eq!(
            host_network_hosts("127.0.0.1 node\n", &[alias]),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 node\n\n# Entries added by HostAliases.\n1.2.3.4\ta\n"
        );
    }
}
