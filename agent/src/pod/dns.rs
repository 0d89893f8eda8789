//! The resolver configuration of a pod. Pure: the node's resolv.conf is given as text.
//!
//! Source: KEP-504 and "DNS for Services and Pods" of the Kubernetes documentation; the limits are glibc's, widened by
//! kubelet to 32 search domains of 2048 characters.

use k8s_openapi::api::core::v1::Pod;
use nodelet_proto::cri;

use super::spec;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
/// Longest name of DNS; glibc 2.28 aborts on a search of more than 255 characters.
const MAX_NAME: usize = 253;
/// The search of a node without a resolver: the root, so that nothing is appended.
const ROOT: &str = ".";

/// What the node says about name resolution.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `clusterDNS`.
    pub cluster_dns: Vec<String>,
    /// `clusterDomain`, without dots around it; empty for none.
    pub cluster_domain: String,
}

/// A resolver configuration with what was wrong about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resolver {
    /// For the sandbox.
    pub config: cri::DnsConfig,
    /// Events to tell about, as (reason, message).
    pub warnings: Vec<(&'static str, String)>,
}

/// The node's resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostResolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl HostResolver {
    /// A node that was told to have none (`resolvConf: ""`): pods that would take the node's ask themselves, which is
    /// what a resolver does without a server (resolv.conf(5)).
    pub fn disabled(node_ips: &[String]) -> Self {
        let local = |ip: &String| if ip.contains(':') { "::1" } else { "127.0.0.1" }.to_owned();
        let mut servers: Vec<String> = node_ips.iter().map(local).collect();
        if servers.is_empty() {
            servers.push("127.0.0.1".to_owned());
        }
        Self { servers, searches: vec![ROOT.to_owned()], options: Vec::new() }
    }
}

/// Reads a resolv.conf: the last `search` wins, options add up, comments are skipped.
pub fn parse_resolv_conf(text: &str) -> HostResolver {
    let mut host = HostResolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => host.servers.extend(words.next().map(str::to_owned)),
            Some("search" | "domain") => {
                host.searches = words.map(|w| w.trim_end_matches('.').to_owned()).filter(|w| !w.is_empty()).collect();
            }
            Some("options") => host.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    host
}

/// The resolver configuration of a pod by its `dnsPolicy` and `dnsConfig`.
pub fn resolver(pod: &Pod, settings: &Settings, host: &HostResolver) -> Resolver {
    let spec = spec::spec(pod);
    let host_network = spec::host_network(pod);
    let mut warnings = Vec::new();
    let policy = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "ClusterFirst" if host_network => "Default",
        "ClusterFirst" | "ClusterFirstWithHostNet" if settings.cluster_dns.is_empty() => {
            let meta = &pod.metadata;
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let text = format!(
                "pod: \"{}_{}({})\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                 \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                text(&meta.name),
                text(&meta.namespace),
                text(&meta.uid)
            );
            warnings.push(("MissingClusterDNS", text));
            "Default"
        }
        other => other,
    };
    let (mut servers, mut searches, mut options) = match policy {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        "Default" => (host.servers.clone(), host.searches.clone(), host.options.clone()),
        _ => (settings.cluster_dns.clone(), cluster_searches(pod, settings, host), vec!["ndots:5".to_owned()]),
    };
    if let Some(extra) = &spec.dns_config {
        servers.extend(extra.nameservers.iter().flatten().cloned());
        searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|o| o.split(':').next() != Some(name.as_str()));
            match option.value.as_deref() {
                Some(value) if !value.is_empty() => options.push(format!("{name}:{value}")),
                _ => options.push(name),
            }
        }
    }
    limit(&mut servers, &mut searches, &mut warnings);
    Resolver { config: cri::DnsConfig { servers, searches, options }, warnings }
}

fn cluster_searches(pod: &Pod, settings: &Settings, host: &HostResolver) -> Vec<String> {
    let domain = &settings.cluster_domain;
    let of_host = host.searches.iter().filter(|search| *search != ROOT).cloned();
    if domain.is_empty() {
        return of_host.collect();
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    own.into_iter().chain(of_host).collect()
}

/// Drops duplicates and what a resolver would not read, and says so.
fn limit(servers: &mut Vec<String>, searches: &mut Vec<String>, warnings: &mut Vec<(&'static str, String)>) {
    unique(servers);
    unique(searches);
    if servers.len() > MAX_NAMESERVERS {
        servers.truncate(MAX_NAMESERVERS);
        let text =
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is:";
        warnings.push(("DNSConfigForming", format!("{text} {}", servers.join(" "))));
    }
    let wanted = searches.len();
    searches.truncate(MAX_SEARCHES);
    searches.retain(|search| search.len() <= MAX_NAME);
    let mut chars = 0;
    let fitting = searches.iter().take_while(|search| {
        chars += search.len() + 1;
        // The last one has no space behind it.
        chars <= MAX_SEARCH_CHARS + 1
    });
    let fitting = fitting.count();
    searches.truncate(fitting);
    if searches.len() < wanted {
        let text = "Search Line limits were exceeded, some search paths have been omitted, the applied search line is:";
        warnings.push(("DNSConfigForming", format!("{text} {}", searches.join(" "))));
    }
}

fn unique(items: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    items.retain(|item| seen.insert(item.clone()));
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodDNSConfig, PodDNSConfigOption, PodSpec};

    use super::*;

    fn make_pod(policy: &str, host_network: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some("p".into());
        pod.metadata.uid = Some("u".into());
        pod.spec =
            Some(PodSpec { dns_policy: Some(policy.into()), host_network: Some(host_network), ..PodSpec::default() });
        pod
    }

    fn settings(servers: &[&str]) -> Settings {
        let cluster_dns = servers.iter().map(|s| (*s).to_owned()).collect();
        Settings { cluster_dns, cluster_domain: "cluster.local".into() }
    }

    fn host() -> HostResolver {
        parse_resolv_conf("nameserver 9.9.9.9\nsearch corp.example\noptions rotate\n")
    }

    /// The configuration as resolv.conf would have it, lines joined with `|`.
    fn say(resolver: &Resolver) -> String {
        let config = &resolver.config;
        format!("{}|{}|{}", config.servers.join(" "), config.searches.join(" "), config.options.join(" "))
    }

    #[test]
    fn each_policy_has_its_servers_searches_and_options() {
        let cluster = "10.96.0.10|ns.svc.cluster.local svc.cluster.local cluster.local corp.example|ndots:5";
        let node = "9.9.9.9|corp.example|rotate";
        for (policy, host_network, expected) in [
            ("ClusterFirst", false, cluster),
            ("ClusterFirst", true, node),
            ("ClusterFirstWithHostNet", true, cluster),
            ("ClusterFirstWithHostNet", false, cluster),
            ("Default", false, node),
            ("None", false, "||"),
        ] {
            let resolver = resolver(&make_pod(policy, host_network), &settings(&["10.96.0.10"]), &host());
            assert_eq!(say(&resolver), expected, "{policy}, host network {host_network}");
            assert_eq!(resolver.warnings, [], "{policy}");
        }
    }

    #[test]
    fn cluster_first_without_a_cluster_server_falls_back_and_says_so() {
        for policy in ["ClusterFirst", "ClusterFirstWithHostNet"] {
            let resolver = resolver(&make_pod(policy, false), &settings(&[]), &host());
            assert_eq!(say(&resolver), "9.9.9.9|corp.example|rotate");
            let [(reason, message)] = resolver.warnings.as_slice() else { panic!("{:?}", resolver.warnings) };
            assert_eq!(*reason, "MissingClusterDNS");
            assert!(
                message.starts_with("pod: \"p_ns(u)\". kubelet does not have ClusterDNS IP configured"),
                "{message}"
            );
        }
    }

    #[test]
    fn without_a_cluster_domain_the_searches_are_the_nodes() {
        let settings = Settings { cluster_domain: String::new(), ..settings(&["10.96.0.10"]) };
        let resolver = resolver(&make_pod("ClusterFirst", false), &settings, &host());
        assert_eq!(say(&resolver), "10.96.0.10|corp.example|ndots:5");
    }

    #[test]
    fn dns_config_is_appended_without_duplicates_and_its_options_win() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(str::to_owned),
        };
        let extra = PodDNSConfig {
            nameservers: Some(vec!["10.96.0.10".into(), "1.1.1.1".into()]),
            searches: Some(vec!["cluster.local".into(), "my.example".into()]),
            options: Some(vec![option("ndots", Some("2")), option("edns0", None), option("empty", Some(""))]),
        };
        let mut pod = make_pod("ClusterFirst", false);
        pod.spec.as_mut().unwrap().dns_config = Some(extra.clone());
        let added = resolver(&pod, &settings(&["10.96.0.10"]), &HostResolver::default());
        assert_eq!(
            say(&added),
            "10.96.0.10 1.1.1.1|ns.svc.cluster.local svc.cluster.local cluster.local my.example|ndots:2 edns0 empty"
        );
        let mut pod = make_pod("None", false);
        pod.spec.as_mut().unwrap().dns_config = Some(extra);
        let alone = resolver(&pod, &settings(&["10.96.0.10"]), &host());
        assert_eq!(say(&alone), "10.96.0.10 1.1.1.1|cluster.local my.example|ndots:2 edns0 empty");
    }

    #[test]
    fn a_node_without_a_resolv_conf_has_its_own_resolver_under_default_only() {
        let ips = ["192.0.2.1".to_owned(), "2001:db8::1".to_owned()];
        for (addresses, servers) in [(&ips[..], "127.0.0.1 ::1"), (&ips[1..], "::1"), (&[], "127.0.0.1")] {
            let host = HostResolver::disabled(addresses);
            let default = resolver(&make_pod("Default", false), &settings(&["10.96.0.10"]), &host);
            assert_eq!(say(&default), format!("{servers}|.|"));
            let cluster = resolver(&make_pod("ClusterFirst", false), &settings(&["10.96.0.10"]), &host);
            let searches = "ns.svc.cluster.local svc.cluster.local cluster.local";
            assert_eq!(say(&cluster), format!("10.96.0.10|{searches}|ndots:5"));
        }
    }

    #[test]
    fn three_servers_are_the_limit() {
        let resolver = resolver(
            &make_pod("ClusterFirst", false),
            &settings(&["1.1.1.1", "2.2.2.2", "3.3.3.3", "4.4.4.4"]),
            &host(),
        );
        assert_eq!(resolver.config.servers, ["1.1.1.1", "2.2.2.2", "3.3.3.3"]);
        let [(reason, message)] = resolver.warnings.as_slice() else { panic!("{:?}", resolver.warnings) };
        assert_eq!(*reason, "DNSConfigForming");
        assert!(message.ends_with("the applied nameserver line is: 1.1.1.1 2.2.2.2 3.3.3.3"), "{message}");
    }

    #[test]
    fn searches_are_limited_in_number_in_their_own_length_and_in_all() {
        let searched = |searches: Vec<String>| {
            let host = HostResolver { searches, ..HostResolver::default() };
            let resolver = resolver(&make_pod("Default", false), &settings(&[]), &host);
            (resolver.config.searches, resolver.warnings)
        };
        let many = |count: usize, length: usize| (0..count).map(|i| format!("{i:0length$}")).collect::<Vec<_>>();
        for (given, kept) in [
            (many(32, 10), 32),
            (many(33, 10), 32),
            // n searches of 127 characters take 128 n - 1.
            (many(16, 127), 16),
            (many(17, 127), 16),
        ] {
            let (searches, warnings) = searched(given.clone());
            assert_eq!(searches, given[..kept], "{} of {}", given.len(), given[0].len());
            assert_eq!(warnings.len(), usize::from(kept < given.len()));
        }
        // glibc 2.28 aborts on a search of more than 255 characters; 253 is the longest DNS name.
        let (searches, warnings) = searched(vec!["a".into(), "x".repeat(254), "b".into()]);
        assert_eq!(searches, ["a", "b"]);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn a_resolv_conf_is_read_as_the_resolver_reads_it() {
        let text = "# nameserver 1.2.3.4\nnameserver 9.9.9.9 # quad\n nameserver  8.8.8.8\nnameserver\n\
                    search a.example.\nsearch b.example. . c.example ; old\noptions ndots:1\noptions rotate\nsortlist 1\n";
        let host = parse_resolv_conf(text);
        assert_eq!(host.servers, ["9.9.9.9", "8.8.8.8"]);
        assert_eq!(host.searches, ["b.example", "c.example"]);
        assert_eq!(host.options, ["ndots:1", "rotate"]);
        assert_eq!(parse_resolv_conf(""), HostResolver::default());
    }
}
