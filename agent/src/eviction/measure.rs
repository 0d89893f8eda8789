//! The task: measures pods that have limits, and has those evicted that use more.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::limits::{self, ContainerUse, Limits, Used};
use crate::pod::manager::census::Question;
use crate::pod::memory::{Eviction, Ousting};
use crate::pod::sandbox_config::log_directory_name;
use crate::pod::shared::Shared;
use crate::pod::spec;

/// kubelet's `evictionMonitoringPeriod`.
const PERIOD: Duration = Duration::from_secs(10);
/// Longest pause, whatever the measuring took: a runtime that hangs is no reason to look away for long.
const LONGEST: Duration = Duration::from_secs(300);
/// Seconds between TERM and KILL of what is evicted; 0 would leave containers no moment at all.
const GRACE_SECONDS: i64 = 1;

/// Tells which pods have limits.
pub trait Limited: Send + Sync + 'static {
    /// Pods that are not at their end and have a limit.
    fn limited(&self) -> Vec<(Arc<Pod>, Limits)>;
    /// How many there are.
    fn count(&self) -> watch::Receiver<usize>;
}

/// What the task works with.
pub struct Watch {
    /// Runtime, directories, volumes.
    pub shared: Arc<Shared>,
    /// Pods.
    pub pods: Arc<dyn Limited>,
    /// kubelet's directory.
    pub root_dir: PathBuf,
    /// The manager.
    pub questions: mpsc::Sender<Question>,
}

impl Watch {
    /// Runs until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut count = self.pods.count();
        let mut own_disk = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                waited = wait_for_some(&mut count) => if !waited { return },
            }
            let began = Instant::now();
            tokio::select! {
                // Cancel-safe: what is measured is thrown away.
                () = shutdown.cancelled() => return,
                () = self.look(&mut own_disk) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep((began.elapsed() * 9).clamp(PERIOD, LONGEST)) => {}
            }
        }
    }

    async fn look(&self, own_disk: &mut Option<bool>) {
        for (pod, limits) in self.pods.limited() {
            let used = self.measure(&pod, &limits, own_disk).await;
            let Some(excess) = limits::excess(&limits, &used) else { continue };
            tracing::info!(pod = %spec::key(&pod), signal = excess.signal, ?used, "evicting a pod: {}", excess.message);
            let why = Ousting::Limit(excess.signal);
            let eviction = Eviction { why, message: excess.message, grace_seconds: GRACE_SECONDS };
            if self.questions.send(Question::Evict(spec::uid(&pod), eviction)).await.is_err() {
                return;
            }
        }
    }

    /// What a pod uses of what it has limits for. What cannot be measured is left out: it is no reason to evict.
    async fn measure(&self, pod: &Pod, limits: &Limits, own_disk: &mut Option<bool>) -> Used {
        let mut volumes = limits::local_volumes(pod);
        if !limits.need_containers() {
            volumes.retain(|(name, _)| limits.empty_dirs.iter().any(|(limited, _)| limited == name));
        }
        let (names, paths): (Vec<String>, Vec<String>) = volumes.into_iter().unzip();
        let measured = self.shared.facilities.disk_usage(&spec::uid(pod), paths).await;
        let (volumes, rest) = match measured {
            Ok(found) => {
                (names.into_iter().zip(found.volumes).filter_map(|(n, b)| Some((n, b?))).collect(), found.rest)
            }
            Err(error) => {
                tracing::debug!(pod = %spec::key(pod), %error, "volumes are not measured");
                (BTreeMap::new(), 0)
            }
        };
        let mut used = Used { volumes, rest, ..Used::default() };
        if limits.need_containers() {
            used.containers = self.containers(pod).await;
            used.has_own_image_disk = self.has_own_image_disk(own_disk).await;
        }
        used
    }

    async fn containers(&self, pod: &Pod) -> Option<BTreeMap<String, ContainerUse>> {
        let layers = match self.shared.runtime.writable_layers(&spec::uid(pod)).await {
            Ok(layers) => layers,
            Err(error) => {
                tracing::debug!(pod = %spec::key(pod), %error, "containers are not measured");
                return None;
            }
        };
        let directory = self.shared.settings.log_dir.join(log_directory_name(pod));
        let measured = tokio::task::spawn_blocking(move || {
            let used = |(name, layer): (String, u64)| {
                let logs = bytes_of_files(&directory.join(&name));
                (name, ContainerUse { layer, logs })
            };
            layers.into_iter().map(used).collect()
        });
        measured.await.ok()
    }

    /// Whether images and writable layers are on another file system than kubelet's directory. It is found out once.
    async fn has_own_image_disk(&self, known: &mut Option<bool>) -> bool {
        if let Some(known) = *known {
            return known;
        }
        let Ok(images) = self.shared.runtime.image_directory().await else { return false };
        let root = self.root_dir.clone();
        let device = |path: &Path| path.metadata().map(|found| found.dev());
        let differ = tokio::task::spawn_blocking(move || Some(device(&images).ok()? != device(&root).ok()?)).await;
        *known = differ.ok().flatten();
        known.unwrap_or(false)
    }
}

/// False when nobody will ever tell of a pod again.
async fn wait_for_some(count: &mut watch::Receiver<usize>) -> bool {
    count.wait_for(|count| *count > 0).await.is_ok()
}

/// Bytes on disk of the files in a container's log directory, rotated ones included. Nothing is opened or followed.
fn bytes_of_files(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let files = files.filter_map(|file| file.metadata().ok()).filter(std::fs::Metadata::is_file);
    files.map(|file| file.blocks().saturating_mul(512)).sum()
}
