//! The kubelet API of a joined node, built from the configuration.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::pods::Served;
use crate::api::bootstrap::serving;
use crate::api::client::ApiClient;
use crate::cgroup::CgroupVersion;
use crate::config::Config;
use crate::config::effective::{Found, effective};
use crate::ids::NodeName;
use crate::server::cert::{self, Acceptor, Files};
use crate::server::handle::{self, Api};
use crate::server::review::Reviewer;
use crate::server::route::Surface;
use crate::server::usage::{Meter, Sources};
use crate::server::volumes::VolumeMeter;
use crate::server::{self, Door};

/// What the API shows and asks.
pub struct Parts<'a> {
    /// Configuration.
    pub config: &'a Config,
    /// The API server.
    pub client: ApiClient,
    /// The own Node, for the names of a requested certificate.
    pub node: watch::Receiver<Option<Arc<Node>>>,
    /// The runtime, probes, cgroups and volumes.
    pub served: Served,
    /// Pods and logs.
    pub board: Arc<Board>,
    /// The node's addresses, for a certificate that is made here.
    pub addresses: &'a [IpAddr],
    /// Ends it.
    pub shutdown: &'a CancellationToken,
}

/// Starts it. Fails on certificates that cannot be used; a port that is taken is waited for.
pub fn start(parts: Parts<'_>) -> anyhow::Result<()> {
    let Parts { config, shutdown, .. } = &parts;
    let settings = &config.kubelet.server;
    if !settings.enabled {
        return Ok(());
    }
    let (cert, key) = match (&settings.cert_file, &settings.key_file) {
        _ if settings.bootstrap_cert => {
            let pair = serving::current(&config.cert_dir);
            (pair.clone(), pair)
        }
        (Some(cert), Some(key)) => (cert.clone(), key.clone()),
        _ => cert::ensure_self_signed(&config.cert_dir, &config.node_name, parts.addresses)?,
    };
    if settings.bootstrap_cert {
        let (name, dir) = (NodeName::new(&config.node_name), config.cert_dir.clone());
        tokio::spawn(serving::run(parts.client.clone(), name, dir, parts.node.clone()));
    }
    let files = Files {
        cert,
        key,
        client_ca: settings.client_ca_file.clone(),
        is_requested: settings.bootstrap_cert,
        options: settings.tls.clone(),
    };
    let acceptor = Arc::new(Acceptor::new(files).context("kubelet API")?);
    let api = Arc::new(api(&parts));
    if let Some(port) = settings.read_only_port {
        let address = (config.kubelet.address, port).into();
        tokio::spawn(server::serve(address, Door::Open, api.clone(), (*shutdown).clone()));
    }
    let address = (config.kubelet.address, config.kubelet.port).into();
    tokio::spawn(server::serve(address, Door::Checked(acceptor), api, (*shutdown).clone()));
    Ok(())
}

fn api(parts: &Parts<'_>) -> Api {
    let config = parts.config;
    let Served { runtime, prober, cgroups, volumes } = parts.served.clone();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let max_open_files = limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(i64::MAX);
    let found = Found { driver: cgroups.driver(), max_open_files };
    let (settings, node) = (&config.kubelet.server, config.node_name.clone());
    let client = parts.client.kube();
    Api {
        view: parts.board.clone(),
        surface: if settings.debugging { Surface::Full } else { Surface::WithoutDebugging },
        cgroup: match cgroups.version() {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        },
        meter: Meter::new(Sources {
            runtime: runtime.clone(),
            root_dir: config.root_dir.clone(),
            log_dir: config.kubelet.pod_logs_dir.clone(),
            cgroups,
            volumes: VolumeMeter::new(Arc::new(volumes), config.kubelet.volume_stats_period),
        }),
        runtime,
        reviewer: Reviewer::new(client, node.clone(), settings.token_webhook, settings.authorization),
        node,
        anonymous: settings.anonymous,
        stream_idle: settings.stream_idle,
        configz: effective(config, found),
        started: Timestamp::now(),
        system_logs: config.kubelet.server.system_logs.then(|| "/var/log".into()),
        checkpoints: config.root_dir.join("checkpoints"),
        checkpoint_turn: Semaphore::new(1),
        run_turns: Semaphore::new(handle::RUNS),
        probes: Box::new(move |text| prober.write_figures(text)),
        scratch: Mutex::default(),
    }
}
