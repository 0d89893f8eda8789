//! The certificate that the kubelet API shows, signed by the cluster: `serverTLSBootstrap`.
//!
//! ```text
//!  Node's addresses ─► names ─► is the certificate good for them, and for long? ──yes──► wait
//!        ▲                                     │ no                                       │ addresses changed, 70–90 % of its life
//!        └── wait ◄── store ◄── approved ◄── CertificateSigningRequest ◄──────────────────┘
//! ```
//! Signer `kubernetes.io/kubelet-serving`; nobody approves these by default, so it may wait for long, and nothing else waits with it.
//! Until the first one is there, handshakes are refused, as with kubelet. Addresses that change while a request waits make
//! another request. Files: `kubelet-server-DATE.pem` with the link `kubelet-server-current.pem`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::sync::watch;
use x509_parser::extensions::GeneralName;

use super::store::{self, Store};
use super::{BACKOFF_FIRST, BACKOFF_MAX, BootstrapError, Purpose, RequestName, renew_at, request};
use crate::api::client::ApiClient;
use crate::api::watch::{Backoff, jitter};
use crate::ids::NodeName;
use crate::metrics::METRICS;

/// What the certificate has to say about us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// DNS names, sorted.
    pub dns: BTreeSet<String>,
    /// Addresses, sorted.
    pub ips: BTreeSet<IpAddr>,
}

/// The names of a Node by its addresses; `None` until it has an IP address, because API servers connect to one.
pub fn names(node: Option<&Node>) -> Option<Names> {
    let addresses = node?.status.as_ref()?.addresses.as_deref()?;
    let mut names = Names::default();
    for address in addresses.iter().filter(|address| !address.address.is_empty()) {
        let ip = address.address.parse::<IpAddr>().ok();
        match (address.type_.as_str(), ip) {
            ("Hostname" | "InternalIP" | "ExternalIP", Some(ip)) => drop(names.ips.insert(ip)),
            ("Hostname" | "InternalDNS" | "ExternalDNS", _) => drop(names.dns.insert(address.address.clone())),
            _ => {}
        }
    }
    (!names.ips.is_empty()).then_some(names)
}

/// A certificate: its life in seconds since the epoch, and its names.
#[derive(Debug, PartialEq, Eq)]
struct Current {
    from: i64,
    until: i64,
    names: Names,
}

fn read(path: &Path) -> Option<Current> {
    let pem = std::fs::read(path).ok()?;
    let der = CertificateDer::from_pem_slice(&pem).ok()?;
    let (_, cert) = x509_parser::parse_x509_certificate(&der).ok()?;
    let mut names = Names::default();
    let extension = cert.subject_alternative_name().ok()??;
    for name in &extension.value.general_names {
        match name {
            GeneralName::DNSName(name) => drop(names.dns.insert((*name).to_owned())),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
                names.ips.extend(v4.or_else(|| <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok()));
            }
            _ => {}
        }
    }
    let validity = cert.validity();
    Some(Current { from: validity.not_before.timestamp(), until: validity.not_after.timestamp(), names })
}

/// Seconds until another certificate is needed; 0 for now.
fn wait(current: Option<&Current>, wanted: &Names, chance: f64, now: i64) -> u64 {
    let covers =
        |current: &&Current| wanted.dns.is_subset(&current.names.dns) && wanted.ips.is_subset(&current.names.ips);
    let due = current.filter(covers).map_or(now, |current| renew_at(current.from, current.until, chance));
    u64::try_from(due - now).unwrap_or(0)
}

/// The file that the API is served with.
pub fn current(cert_dir: &Path) -> PathBuf {
    Store::serving(cert_dir).current()
}

/// Keeps the certificate good, for as long as the node is watched.
pub async fn run(
    client: ApiClient,
    node_name: NodeName,
    cert_dir: PathBuf,
    mut node: watch::Receiver<Option<Arc<Node>>>,
) {
    let store = Store::serving(&cert_dir);
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    let mut chance = jitter();
    loop {
        let wanted = names(node.borrow_and_update().as_deref());
        let Some(wanted) = wanted else {
            if node.changed().await.is_err() {
                return;
            }
            continue;
        };
        let found = read(&store.current());
        let left = wait(found.as_ref(), &wanted, chance, jiff::Timestamp::now().as_second());
        if left > 0 {
            // Short sleeps follow a clock that is set, and a machine that was suspended.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(left.min(3600))) => {}
                changed = node.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let outcome = tokio::select! {
            outcome = renew(&client, &node_name, &store, &wanted) => outcome,
            is_watched = other_names(&mut node, &wanted) => match is_watched {
                true => continue,
                false => return,
            },
        };
        match outcome {
            Ok(()) => {
                let now = jiff::Timestamp::now().as_second();
                if let Some(age) = found.and_then(|old| u64::try_from(now - old.from).ok()) {
                    METRICS.server_certificate.lives.observe(Duration::from_secs(age));
                }
                backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
                chance = jitter();
            }
            Err(error) => {
                METRICS.server_certificate.renew_errors.increment();
                tracing::warn!(%error, "no serving certificate, will retry");
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// Waits until the node has other names; false when nobody watches it any more.
async fn other_names(node: &mut watch::Receiver<Option<Arc<Node>>>, wanted: &Names) -> bool {
    loop {
        if node.changed().await.is_err() {
            return false;
        }
        if names(node.borrow_and_update().as_deref()).is_some_and(|names| names != *wanted) {
            return true;
        }
    }
}

async fn renew(client: &ApiClient, node: &NodeName, store: &Store, wanted: &Names) -> Result<(), BootstrapError> {
    let key = rcgen::KeyPair::generate()?;
    let purpose = Purpose::Serving(wanted.clone());
    let cert = request(client, node, &key, RequestName::Generated, &purpose).await?;
    store.update(&cert, &key.serialize_pem())?;
    let (_, until) = store::validity_of(&cert).unwrap_or_default();
    tracing::info!(%node, until = %jiff::Timestamp::from_second(until).unwrap_or_default(), "serving certificate issued");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(addresses: &[(&str, &str)]) -> Node {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({ "type": kind, "address": address })).collect();
        serde_json::from_value(json!({ "metadata": { "name": "n" }, "status": { "addresses": addresses } }))
            .expect("node")
    }

    fn make_names(dns: &[&str], ips: &[&str]) -> Names {
        Names {
            dns: dns.iter().map(|name| (*name).to_owned()).collect(),
            ips: ips.iter().map(|ip| ip.parse().expect("address")).collect(),
        }
    }

    #[test]
    fn names_are_those_of_the_nodes_addresses() {
        let all = node(&[
            ("Hostname", "n1"),
            ("InternalIP", "10.0.0.1"),
            ("ExternalIP", "fd00::1"),
            ("InternalDNS", "n1.local"),
            ("ExternalIP", "nonsense"),
            ("Hostname", "10.0.0.9"),
        ]);
        assert_eq!(names(Some(&all)), Some(make_names(&["n1", "n1.local"], &["10.0.0.1", "10.0.0.9", "fd00::1"])));
        assert_eq!(names(Some(&node(&[("Hostname", "n1")]))), None, "no IP address, no request");
        assert_eq!(names(None), None);
    }

    #[test]
    fn another_certificate_is_needed_for_new_names_and_at_the_end_of_a_life() {
        let current = Current { from: 1000, until: 2000, names: make_names(&["n1"], &["10.0.0.1", "10.0.0.2"]) };
        let less = make_names(&["n1"], &["10.0.0.1"]);
        let other = make_names(&["n1"], &["10.0.0.3"]);
        assert_eq!(wait(Some(&current), &less, 0.0, 1100), 600, "an address less asks for nothing");
        assert_eq!(wait(Some(&current), &other, 0.0, 1100), 0);
        assert_eq!(wait(Some(&current), &less, 0.0, 1700), 0);
        assert_eq!(wait(None, &less, 0.0, 0), 0);
    }

    #[test]
    fn a_certificate_is_read_with_its_names() {
        let dir = tempfile::tempdir().expect("dir");
        let key = rcgen::KeyPair::generate().expect("key");
        let cert = rcgen::CertificateParams::new(vec!["n1".to_owned(), "10.0.0.1".to_owned(), "fd00::1".to_owned()]);
        let cert = cert.expect("params").self_signed(&key).expect("certificate");
        let store = Store::serving(dir.path());
        store.update(cert.pem().as_bytes(), &key.serialize_pem()).expect("update");
        let found = read(&current(dir.path())).expect("current");
        assert_eq!(found.names, make_names(&["n1"], &["10.0.0.1", "fd00::1"]));
        assert!(current(dir.path()).ends_with("kubelet-server-current.pem"));
    }
}
