//! `kill -9` of the joined agent at random moments, over pods of every kind: with probes, hooks and sidecars, while others
//! start and stop and one is being resized. The API server may see nothing that the workload did not cause.
//!
//! `NODELET_KILLS` says how many kills; `NODELET_TEST_SEED` gives the same moments again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::eventually::eventually;
use harness::leak_check::{is_forgotten_by_containerd, remains_of_pods};
use harness::random::Random;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use crate::resize::{resize, resources};
use crate::rig::{NAME, PATIENCE, Rig, ready_since};
use crate::seen::{Seen, name};

/// What one run of all tests has time for.
const KILLS: u64 = 25;
/// An agent lives at most this long; it needs some 100 ms to know all of its pods, more on a busy machine.
const LONGEST_LIFE_MS: u64 = 1200;

fn busybox(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": "localhost/busybox:1", "command": ["sh", "-c", script] })
}

fn with(mut container: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    container
}

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

fn probe(handler: &Value) -> Value {
    with(handler.clone(), &json!({ "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 30 }))
}

const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// Pods that run all the time, by name.
fn steady() -> Vec<(&'static str, Value)> {
    let alive = probe(&exec("true"));
    let http = probe(&json!({ "httpGet": { "path": "/healthz", "port": 8080 } }));
    let tcp = probe(&json!({ "tcpSocket": { "port": 8080 } }));
    let web = json!({ "name": "c", "image": "localhost/echo:v1", "startupProbe": http, "livenessProbe": http,
        "readinessProbe": tcp });
    let probed =
        with(busybox("c", SLEEP), &json!({ "startupProbe": alive, "livenessProbe": alive, "readinessProbe": alive }));
    let hooks = json!({ "postStart": exec("sleep 0.2"), "preStop": exec("sleep 0.2") });
    let hooked = with(busybox("c", SLEEP), &json!({ "lifecycle": hooks }));
    let sidecar = with(
        busybox("side", SLEEP),
        &json!({ "restartPolicy": "Always", "startupProbe": alive,
        "readinessProbe": alive, "lifecycle": hooks }),
    );
    let served = with(busybox("c", SLEEP), &json!({ "readinessProbe": alive }));
    let live = with(busybox("c", SLEEP), &json!({ "resources": resources(100, 64), "readinessProbe": alive }));
    vec![
        ("web", json!({ "containers": [web] })),
        ("probed", json!({ "containers": [probed] })),
        ("hooked", json!({ "containers": [hooked] })),
        ("served", json!({ "initContainers": [busybox("init", "true"), sidecar], "containers": [served] })),
        ("live", json!({ "containers": [live] })),
    ]
}

/// A pod whose start and stop take about a second each, with hooks and a sidecar; it says on the node that it had the time to end.
fn guest(name: &str, out: &Path) -> Value {
    let out_mount = json!([{ "name": "out", "mountPath": "/out" }]);
    let last_words =
        format!("trap 'sleep 0.5; touch /out/{name}; exit 0' TERM; while :; do sleep 1000 & wait $!; done");
    let hooks = json!({ "postStart": exec("sleep 0.3"), "preStop": { "sleep": { "seconds": 1 } } });
    let main = with(busybox("c", &last_words), &json!({ "lifecycle": hooks, "volumeMounts": out_mount }));
    let after = format!(
        "trap 'test -e /out/{name} && touch /out/{name}-side; exit 0' TERM; while :; do sleep 1000 & wait $!; done"
    );
    let sidecar = with(
        busybox("side", &after),
        &json!({ "restartPolicy": "Always", "volumeMounts": out_mount,
        "lifecycle": { "preStop": exec("sleep 0.3") } }),
    );
    json!({
        "metadata": { "name": name, "labels": { "app": "guest" } },
        "spec": {
            "terminationGracePeriodSeconds": 20,
            "initContainers": [sidecar],
            "containers": [main],
            "volumes": [{ "name": "out", "hostPath": { "path": out, "type": "Directory" } }],
        },
    })
}

/// What may not change in a pod that goes on running: its containers and conditions, and since when.
#[derive(Clone, Debug, PartialEq)]
struct State {
    ip: Option<String>,
    phase: Option<String>,
    containers: Vec<String>,
    conditions: BTreeMap<String, (String, String)>,
}

fn state(pod: &Pod) -> State {
    let status = pod.status.clone().unwrap_or_default();
    let lists = [status.init_container_statuses, status.container_statuses];
    let containers = lists.into_iter().flatten().flatten();
    let conditions = status.conditions.unwrap_or_default().into_iter();
    State {
        ip: status.pod_ip,
        phase: status.phase,
        containers: containers.map(shown).collect(),
        conditions: conditions
            .filter(|condition| !condition.type_.starts_with("PodResize"))
            .map(|c| (c.type_, (c.status, c.last_transition_time.map(|at| at.0.to_string()).unwrap_or_default())))
            .collect(),
    }
}

fn shown(c: ContainerStatus) -> String {
    let id = c.container_id.unwrap_or_default();
    format!("{} {id}: {} restarts, ready {}, started {:?}", c.name, c.restart_count, c.ready, c.started)
}

/// Guests that are there and those that were told to go.
#[derive(Default)]
struct Guests {
    here: Vec<String>,
    gone: Vec<String>,
}

impl Guests {
    /// Mostly one comes and one that is Ready goes, so that each kill may hit a start and a stop.
    async fn change(&mut self, rig: &Rig, round: u64, random: &mut Random) -> anyhow::Result<()> {
        if self.here.len() < 4 {
            let name = format!("guest-{round}");
            rig.create::<Pod>(guest(&name, &rig.node.path("out"))).await?;
            self.here.push(name);
        }
        let ready = self.ready(rig).await?;
        let some_wait = self.here.len() >= 4 && ready.is_empty();
        if some_wait {
            eventually(PATIENCE, "a guest to be ready", async || {
                ensure!(!self.ready(rig).await?.is_empty(), "none of {:?}", self.here);
                Ok(())
            })
            .await?;
        }
        if !ready.is_empty() {
            let name = ready[usize::try_from(random.below(ready.len() as u64))?].clone();
            rig.delete::<Pod>(&name).await?;
            self.here.retain(|other| *other != name);
            self.gone.push(name);
        }
        Ok(())
    }

    async fn ready(&self, rig: &Rig) -> anyhow::Result<Vec<String>> {
        let pods = rig.pods("guest").await?.into_iter().filter(|pod| ready_since(pod).is_some());
        Ok(pods.map(|pod| name(&pod)).filter(|name| self.here.contains(name)).collect())
    }
}

async fn kills(rig: &mut Rig, kills: u64, random: &mut Random) -> anyhow::Result<()> {
    std::fs::create_dir_all(rig.node.path("out"))?;
    let node = transition(rig).await?;
    let mut before = BTreeMap::new();
    let pods = steady();
    for (name, spec) in &pods {
        let spec = with(spec.clone(), &json!({ "terminationGracePeriodSeconds": 10 }));
        rig.create::<Pod>(json!({ "metadata": { "name": name, "labels": { "app": "steady" } }, "spec": spec })).await?;
    }
    for (name, _) in &pods {
        before.insert((*name).to_owned(), state(&rig.pod_is_ready(name).await?));
    }
    let seen = Seen::of(rig, "steady", before, state);
    let mut guests = Guests::default();
    for round in 0..kills {
        guests.change(rig, round, random).await?;
        resize(rig, "live", &resources(100 + 10 * i64::try_from(round % 7)?, 64)).await?;
        // The moment is the point here, nothing is waited for.
        tokio::time::sleep(Duration::from_millis(random.below(LONGEST_LIFE_MS))).await;
        rig.node.agent()?.ensure_running()?;
        rig.node.agent()?.kill9();
        tokio::time::sleep(Duration::from_millis(random.below(50))).await;
        rig.node.restart_agent()?;
    }
    for name in guests.here.clone() {
        rig.pod_is_ready(&name).await?;
    }
    ensure!(guests.gone.len() as u64 * 4 > kills, "only {} pods were stopped", guests.gone.len());
    for name in &guests.gone {
        eventually(PATIENCE, &format!("{name} to be gone"), async || {
            let left = rig.api::<Pod>().get_opt(name).await?;
            ensure!(left.is_none(), "{}", json!(left));
            Ok(())
        })
        .await?;
        ensure!(rig.node.path("out").join(name).exists(), "{name} did not get the time to end");
        let side = rig.node.path("out").join(format!("{name}-side"));
        ensure!(side.exists(), "the sidecar of {name} did not outlive what it serves");
    }
    seen.changes()?;
    ensure!(transition(rig).await? == node, "the node was not Ready for a moment");
    let rest = pods.iter().map(|(name, _)| (*name).to_owned()).chain(guests.here);
    nothing_stays(rig, rest).await
}

/// Since when the node is Ready.
async fn transition(rig: &mut Rig) -> anyhow::Result<Option<String>> {
    let node = rig.node_is_ready(NAME).await?;
    let mut conditions = node.status.into_iter().flat_map(|status| status.conditions.unwrap_or_default());
    let ready = conditions.find(|condition| condition.type_ == "Ready");
    Ok(ready.and_then(|ready| ready.last_transition_time).map(|at| at.0.to_string()))
}

/// Stops the rest, and looks at what all the interrupted starts and stops left.
async fn nothing_stays(rig: &Rig, rest: impl Iterator<Item = String>) -> anyhow::Result<()> {
    for name in rest {
        rig.delete::<Pod>(&name).await?;
    }
    rig.nothing_is_left().await?;
    eventually(PATIENCE, "nothing to be left of pods", async || {
        let mut left = remains_of_pods(&rig.node).await?;
        left.retain(|what| !is_forgotten_by_containerd(what));
        ensure!(left.is_empty(), "{left:#?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_over_pods_of_every_kind_show_nothing_and_leave_nothing() {
    let count = std::env::var("NODELET_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut random = Random::from_env();
    println!("NODELET_TEST_SEED={} NODELET_KILLS={count}", random.seed());
    let mut rig = Rig::joined(Version::V2, Cni::Nodelet).await.unwrap();
    if let Err(error) = kills(&mut rig, count, &mut random).await {
        let log = rig.node.agent().map(|agent| agent.log_tail()).context("the agent's log");
        panic!("{error:#}\n{}\n{log:?}", rig.story().await);
    }
    rig.finish().unwrap();
}
