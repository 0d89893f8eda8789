//! How the runtime does, for the Node object.
//!
//! CRI has no event for its conditions, so `Status` is asked when there is reason to: at start, when the event stream broke
//! or came back, every two seconds while something is not ready, and every minute otherwise.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::network::Network;
use crate::cri::{Runtime, RuntimeEvent};
use crate::node::RuntimeHealth;

const READY_CHECK: Duration = Duration::from_secs(60);
const UNREADY_CHECK: Duration = Duration::from_secs(2);

/// Passes runtime events on to `out` and keeps `health` current.
pub async fn run(
    runtime: Runtime,
    network: Network,
    mut events: mpsc::Receiver<RuntimeEvent>,
    out: mpsc::Sender<RuntimeEvent>,
    health: watch::Sender<RuntimeHealth>,
    shutdown: CancellationToken,
) {
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => {
                let Some(event) = event else { return };
                match &event {
                    RuntimeEvent::Lost(why) => {
                        health.send_replace(RuntimeHealth::down(why.clone()));
                        wait = UNREADY_CHECK;
                    }
                    RuntimeEvent::Resync => wait = Duration::ZERO,
                    RuntimeEvent::Changed { .. } => {}
                }
                if out.send(event).await.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(wait) => {
                let now = look(&runtime, &network).await;
                let ready = now.runtime_ready.is_ok() && now.network_ready.is_ok();
                health.send_if_modified(|before| {
                    let changed = *before != now;
                    *before = now;
                    changed
                });
                wait = if ready { READY_CHECK } else { UNREADY_CHECK };
            }
        }
    }
}

async fn look(runtime: &Runtime, network: &Network) -> RuntimeHealth {
    let mut health = match tokio::try_join!(runtime.version(), runtime.status()) {
        Ok((version, status)) => RuntimeHealth::from_cri(&version, &status),
        Err(error) => return RuntimeHealth::down(error.to_string()),
    };
    if let Err(text) = &mut health.network_ready
        && let Some(trouble) = network.trouble().await
    {
        // The runtime's own words are often no more than "not initialized".
        *text = format!("{text}: {trouble}");
    }
    health
}
