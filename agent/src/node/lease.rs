//! Renews the node lease in `kube-node-lease`: the sign of life that the node lifecycle controller waits for.
//!
//! One PATCH of `renewTime` every quarter of the lease's duration (10 s of 40 s), with that quarter as its own deadline.
//! A renewal that fails is repeated with a short back-off, and after a time-out on a new connection, since a connection
//! that answers pings may still have a stuck request queue in front of it. Source: KEP-589.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use tokio::sync::watch;

use crate::api::client::ApiClient;
use crate::api::watch::{Backoff, error_text};
use crate::ids::NodeName;

const NAMESPACE: &str = "kube-node-lease";
const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How the lease fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// Not renewed yet.
    Starting,
    /// The last renewal succeeded.
    Held,
    /// Renewals fail; the text of the last error.
    Failing(String),
}

/// Renews for ever. `node` gives the owner, so that the lease goes away with the Node.
pub async fn run(client: ApiClient, name: NodeName, duration: Duration, node: Node, state: watch::Sender<LeaseState>) {
    let api: Api<Lease> = Api::namespaced(client.kube(), NAMESPACE);
    let interval = duration / 4;
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    loop {
        let started = tokio::time::Instant::now();
        let lease = lease(&name, duration, &node);
        let outcome = tokio::time::timeout(interval, renew(&api, &name, &lease)).await;
        let error = match outcome {
            Ok(Ok(())) => {
                backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
                publish(&state, LeaseState::Held);
                tokio::time::sleep_until(started + interval).await;
                continue;
            }
            Ok(Err(error)) => error_text(&error),
            Err(_) => {
                client.reconnect();
                format!("no answer within {interval:?}")
            }
        };
        tracing::warn!(node = %name, error, "cannot renew the node lease, will retry");
        publish(&state, LeaseState::Failing(error));
        tokio::time::sleep(backoff.next()).await;
    }
}

fn publish(state: &watch::Sender<LeaseState>, new: LeaseState) {
    state.send_if_modified(|state| {
        let changed = *state != new;
        *state = new;
        changed
    });
}

fn lease(name: &NodeName, duration: Duration, node: &Node) -> Lease {
    let owner = node.metadata.uid.as_ref().map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.to_string(),
        uid: uid.clone(),
        ..OwnerReference::default()
    });
    Lease {
        metadata: ObjectMeta {
            name: Some(name.to_string()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_string()),
            lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
            renew_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}

async fn renew(api: &Api<Lease>, name: &NodeName, lease: &Lease) -> Result<(), kube::Error> {
    // A merge patch needs neither a GET nor a resource version, and replaces what another holder wrote.
    match api.patch(name.as_str(), &PatchParams::default(), &Patch::Merge(lease)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            api.create(&PostParams::default(), lease).await.map(|_| ())
        }
        Err(error) => Err(error),
    }
}
