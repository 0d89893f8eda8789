//! What keeps the node clean: rotation of logs.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::board::Board;
use crate::config::Config;
use crate::cri::Runtime;
use crate::logs::rotate::plan::Policy;
use crate::logs::rotate::{self, Rotation};

/// Starts the tasks.
pub fn start(config: &Config, runtime: Runtime, board: Arc<Board>, shutdown: &CancellationToken) {
    if let Some(rotation) = config.kubelet.log_rotation {
        let interval = i64::try_from(rotation.interval.as_nanos()).unwrap_or(i64::MAX);
        let policy = Policy { max_size: rotation.max_size, max_files: rotation.max_files, interval };
        let rotation = Rotation { writers: board, runtime, policy, workers: rotation.workers };
        tokio::spawn(rotate::run(rotation, shutdown.clone()));
    }
}
