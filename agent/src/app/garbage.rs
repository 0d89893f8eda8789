//! What keeps the node clean: rotation of logs, removal of what nobody needs, and eviction of pods beyond their limits.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::pods::PodHalf;
use crate::config::Config;
use crate::cri::Nanos;
use crate::eviction;
use crate::garbage::collector::disk;
use crate::garbage::images::Policy;
use crate::garbage::{Ask, Collector};
use crate::logs::rotate::plan::Policy as RotationPolicy;
use crate::logs::rotate::{self, Rotation};

/// Requests that wait; people ask one at a time.
const MOST_ASKS: usize = 4;

/// Starts the tasks; answers where requests for a look at the garbage go.
pub fn start(config: &Config, half: &PodHalf, board: Arc<Board>, shutdown: &CancellationToken) -> mpsc::Sender<Ask> {
    let nanos = |duration: Duration| Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX);
    if let Some(rotation) = config.kubelet.log_rotation {
        let interval = nanos(rotation.interval);
        let policy = RotationPolicy { max_size: rotation.max_size, max_files: rotation.max_files, interval };
        let runtime = half.runtime();
        let rotation = Rotation { writers: board.clone(), runtime, policy, workers: rotation.workers };
        tokio::spawn(rotate::run(rotation, shutdown.clone()));
    }
    let images = config.kubelet.image_garbage;
    let policy =
        Policy { high: images.high, low: images.low, min_age: nanos(images.min_age), max_age: nanos(images.max_age) };
    let (asks_tx, asks) = mpsc::channel(MOST_ASKS);
    let (pods, root_dir) = (board.clone(), config.root_dir.clone());
    let limits = eviction::measure::Watch { shared: half.shared(), pods, root_dir, questions: half.questions() };
    tokio::spawn(limits.run(shutdown.clone()));
    let collector = Collector { shared: half.shared(), policy, uses: board, questions: half.questions(), disk };
    tokio::spawn(collector.run(asks, shutdown.clone()));
    asks_tx
}
