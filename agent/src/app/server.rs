//! The kubelet API of a joined node, built from the configuration.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use crate::config::Config;
use crate::cri::Runtime;
use crate::probe::Prober;
use crate::server;
use crate::server::cert::{self, Acceptor, Files};
use crate::server::handle::Api;
use crate::server::review::Reviewer;
use crate::server::usage::Meter;

/// Starts it. Fails on certificates that cannot be used; a port that is taken is waited for.
pub fn start(
    config: &Config,
    client: kube::Client,
    (runtime, prober, cgroup): (Runtime, Arc<Prober>, u8),
    board: Arc<Board>,
    addresses: &[IpAddr],
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let settings = &config.kubelet.server;
    if !settings.enabled {
        return Ok(());
    }
    let (cert, key) = match (&settings.cert_file, &settings.key_file) {
        (Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => cert::ensure_self_signed(&config.cert_dir, &config.node_name, addresses)?,
    };
    let files = Files { cert, key, client_ca: settings.client_ca_file.clone() };
    let acceptor = Arc::new(Acceptor::new(files).context("kubelet API")?);
    let api = Arc::new(Api {
        node: config.node_name.clone(),
        view: board,
        meter: Meter::new(runtime.clone(), config.root_dir.clone()),
        runtime,
        reviewer: Reviewer::new(client, config.node_name.clone(), settings.token_webhook, settings.authorization),
        anonymous: settings.anonymous,
        stream_idle: settings.stream_idle,
        configz: configz(config),
        probes: Box::new(move |text| prober.write_figures(text)),
        cgroup,
        scratch: Mutex::default(),
    });
    let address = (config.kubelet.address, config.kubelet.port).into();
    tokio::spawn(server::serve(address, acceptor, api, shutdown.clone()));
    Ok(())
}

/// The configuration as given, with what its kind and version are.
fn configz(config: &Config) -> serde_json::Value {
    let mut given = config.kubelet_given.clone();
    if let Some(fields) = given.as_object_mut() {
        fields.insert("kind".to_owned(), "KubeletConfiguration".into());
        fields.insert("apiVersion".to_owned(), "kubelet.config.k8s.io/v1beta1".into());
    }
    given
}
