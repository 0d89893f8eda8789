//! Puts node allocatable into effect, and tells with kubelet's events how that went.
//!
//! Pods that use more than they may in total make the first attempt fail (cgroup v1): eviction brings them down, so that it is
//! tried again each minute. Daemons' cgroups are the operator's: one that is missing ends the agent, as it ends kubelet.

use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use crate::cgroup::{Cgroups, Daemons, Reserved};
use crate::event::{Event, EventType, Recorder, Subject};

const AGAIN: Duration = Duration::from_secs(60);

/// Limits pods and daemons.
pub async fn start(
    cgroups: &Cgroups,
    reserved: &[Reserved],
    recorder: &Recorder,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if !limit_pods(cgroups, recorder).await {
        let (cgroups, recorder, shutdown) = (cgroups.clone(), recorder.clone(), shutdown.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
                if limit_pods(&cgroups, &recorder).await {
                    return;
                }
            }
        });
    }
    for reserved in reserved {
        if let Err(error) = cgroups.enforce_reserved(reserved).await {
            let message = failure(reserved, &error.to_string());
            tell(recorder, EventType::Warning, message.clone());
            bail!(message);
        }
        tell(recorder, EventType::Normal, success(reserved));
    }
    Ok(())
}

async fn limit_pods(cgroups: &Cgroups, recorder: &Recorder) -> bool {
    match cgroups.enforce_pods().await {
        Ok(()) => tell(recorder, EventType::Normal, "Updated Node Allocatable limit across pods".to_owned()),
        Err(error) => {
            let message = format!("Failed to update Node Allocatable Limits {}: {error}", cgroups.pods_name());
            tell(recorder, EventType::Warning, message);
            return false;
        }
    }
    true
}

fn success(reserved: &Reserved) -> String {
    let whose = match reserved.daemons {
        Daemons::System => "system",
        Daemons::Kube => "kube",
    };
    format!("Updated limits on {whose} reserved cgroup {}", reserved.cgroup)
}

fn failure(reserved: &Reserved, error: &str) -> String {
    let whose = match reserved.daemons {
        Daemons::System => "System",
        Daemons::Kube => "Kube",
    };
    let part = if reserved.is_cpu_only { " Compressible" } else { "" };
    format!("Failed to enforce {whose} Reserved{part} Cgroup Limits on {:?}: {error}", reserved.cgroup)
}

fn tell(recorder: &Recorder, kind: EventType, message: String) {
    let reason = match kind {
        EventType::Normal => "NodeAllocatableEnforced",
        EventType::Warning => "FailedNodeAllocatableEnforcement",
    };
    recorder.emit(Event { subject: Subject::Node, kind, reason, message });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_kubelets_words() {
        let make = |daemons, is_cpu_only| Reserved {
            daemons,
            cgroup: "/system".to_owned(),
            amounts: Default::default(),
            is_cpu_only,
        };
        assert_eq!(success(&make(Daemons::System, false)), "Updated limits on system reserved cgroup /system");
        assert_eq!(
            failure(&make(Daemons::Kube, true), "x"),
            "Failed to enforce Kube Reserved Compressible Cgroup Limits on \"/system\": x"
        );
        assert_eq!(
            failure(&make(Daemons::System, false), "x"),
            "Failed to enforce System Reserved Cgroup Limits on \"/system\": x"
        );
    }
}
