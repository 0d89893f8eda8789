//! An agent at the same work, seen from the API server.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use harness::containerd::Cni;
use harness::control_plane::ControlPlane;
use harness::node::Node;
use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use super::{Arguments, IMAGE, PERCENTS, REST, add_costs, workload};
use crate::cluster;
use crate::contestant::Contestant;
use crate::process::Process;
use crate::report::{Column, Samples};

const NAMESPACE: &str = "bench-pods";

const CLUSTER_DNS: &str = "clusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\n";

/// Longest that one step may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the watch has said about one pod.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    ready: Option<Instant>,
    gone: Option<Instant>,
}

/// Follows all pods of the namespace; a reader waits for a condition on what was seen.
#[derive(Clone, Debug)]
struct Watcher {
    seen: Arc<Mutex<HashMap<String, Seen>>>,
    changed: Arc<watch::Sender<u64>>,
}

/// Who is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Agent<'a> {
    /// The agent of this workspace, for pods and Services.
    Nodelet,
    /// The agent of a command line.
    Reference(&'a str),
}

impl Agent<'_> {
    pub(crate) const NODELET: &'static str = "nodelet";
    pub(crate) const REFERENCE: &'static str = "reference";

    /// The name of its Node, and of its column.
    pub(crate) fn node(self) -> &'static str {
        match self {
            Self::Nodelet => Self::NODELET,
            Self::Reference(_) => Self::REFERENCE,
        }
    }
}

/// A started agent.
#[derive(Debug)]
enum Started {
    /// Owned by its [`Node`].
    Nodelet(Process),
    Reference(Contestant),
}

impl Started {
    fn process(&self) -> Process {
        match self {
            Self::Nodelet(process) => *process,
            Self::Reference(contestant) => contestant.process(),
        }
    }
}

pub(crate) async fn measure(
    arguments: &Arguments,
    plane: &ControlPlane,
    number: u8,
    agent: Agent<'_>,
) -> anyhow::Result<Column> {
    let client = plane.client().await?;
    cluster::ensure_namespace(&client, NAMESPACE).await?;
    let pod_cidr = format!("10.244.{number}.0/24");
    let mut node = Node::on_lan(plane, 11 + number, arguments.version(), Cni::Bridge, &pod_cidr).await?;
    // As in every cluster; without it each pod is warned of.
    node.extra_configuration = CLUSTER_DNS.to_owned();
    let name = agent.node();
    let log = node.path("reference.log");
    let started = match agent {
        Agent::Nodelet => {
            node.run_joined(plane, name)?;
            Started::Nodelet(Process(node.agent()?.pid().context("the agent ended at once")?))
        }
        Agent::Reference(command) => Started::Reference(reference(command, plane, &node, &log)?),
    };
    let pods = Pods { api: Api::namespaced(client.clone(), NAMESPACE), node: name.to_owned() };
    let runtime = Process(node.containerd.pid().context("containerd runs")?);
    let costs = [("agent", started.process()), ("containerd", runtime)];
    work(arguments, &client, &pods, &costs).await.with_context(|| {
        let path = node.agent.as_ref().map_or(log.as_path(), |agent| agent.log());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let tail: Vec<&str> = text.lines().rev().take(10).collect();
        format!("the agent's last lines, newest first:\n{}", tail.join("\n"))
    })
}

fn reference(command: &str, plane: &ControlPlane, node: &Node, log: &Path) -> anyhow::Result<Contestant> {
    let config = node.path("reference.yaml");
    let endpoint = format!("unix://{}", node.containerd.socket().display());
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: {endpoint}\n\
         cgroupDriver: cgroupfs\ncgroupRoot: {}\nfailCgroupV1: false\nfailSwapOn: false\nmaxPods: 250\n\
         imageGCHighThresholdPercent: 100\n\
         {CLUSTER_DNS}authentication:\n  x509:\n    clientCAFile: {}\npodLogsDir: {}\n",
        node.cgroups.root(),
        plane.ca().display(),
        node.path("reference-logs").display(),
    );
    std::fs::write(&config, text)?;
    let show = |path: &Path| path.display().to_string();
    let kubeconfig = plane.node_kubeconfig(Agent::REFERENCE);
    let (config, kubeconfig, root) = (show(&config), show(&kubeconfig), show(&node.path("reference")));
    let replace = [
        ("config", config.as_str()),
        ("kubeconfig", kubeconfig.as_str()),
        ("node", Agent::REFERENCE),
        ("endpoint", endpoint.as_str()),
        ("root", root.as_str()),
    ];
    Contestant::start(command, &replace, node.netns(), log)
}

async fn work(
    arguments: &Arguments,
    client: &Client,
    pods: &Pods,
    costs: &[(&str, Process)],
) -> anyhow::Result<Column> {
    let name = pods.node.as_str();
    until_node_ready(client, name).await?;
    let watcher = Watcher::start(pods.api.clone()).await?;
    let steady = Duration::from_secs(arguments.steady);
    let mut column = Column::new(name);
    add_costs(&mut column, "at 0 pods", steady, costs).await?;

    let (mut created, mut deleted) = (Samples::default(), Samples::default());
    for number in 0..arguments.singles {
        let pod = format!("{name}-single-{number}");
        let began = Instant::now();
        pods.create(&pod).await?;
        created.push(watcher.ready(&pod).await?.duration_since(began));
        let began = Instant::now();
        pods.api.delete(&pod, &DeleteParams::default()).await?;
        deleted.push(watcher.gone(&pod).await?.duration_since(began));
        tokio::time::sleep(REST).await;
    }
    column.add_percentiles("create -> Ready", &created, &PERCENTS);
    column.add_percentiles("delete -> gone", &deleted, &PERCENTS);

    let began = Instant::now();
    let burst: Vec<String> = (0..arguments.burst).map(|number| format!("{name}-burst-{number}")).collect();
    futures_util::future::try_join_all(burst.iter().map(|pod| pods.create(pod))).await?;
    let mut last = began;
    for pod in &burst {
        last = last.max(watcher.ready(pod).await?);
    }
    let seconds = last.duration_since(began).as_secs_f64();
    column.add(&format!("burst of {}, pods/s", arguments.burst), arguments.burst as f64 / seconds);
    add_costs(&mut column, &format!("at {} pods", arguments.burst), steady, costs).await?;
    for pod in &burst {
        pods.api.delete(pod, &DeleteParams::default()).await?;
    }
    for pod in &burst {
        watcher.gone(pod).await?;
    }
    Ok(column)
}

async fn until_node_ready(client: &Client, name: &str) -> anyhow::Result<()> {
    let nodes: Api<NodeObject> = Api::all(client.clone());
    let ready = async {
        loop {
            let node = nodes.get_opt(name).await?;
            let conditions = node.and_then(|node| node.status).and_then(|status| status.conditions).unwrap_or_default();
            if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ready).await.context("the node is not Ready after 60 s")?
}

/// The pods of one node.
#[derive(Clone, Debug)]
struct Pods {
    api: Api<Pod>,
    node: String,
}

impl Pods {
    async fn create(&self, name: &str) -> anyhow::Result<()> {
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name },
            "spec": {
                "nodeName": self.node, "automountServiceAccountToken": false,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": workload().command(),
                }],
            },
        });
        let pod: Pod = serde_json::from_value(pod)?;
        self.api.create(&PostParams::default(), &pod).await.with_context(|| format!("create {name}"))?;
        Ok(())
    }
}

impl Watcher {
    async fn start(api: Api<Pod>) -> anyhow::Result<Self> {
        let version = api.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
        let watcher = Self { seen: Arc::default(), changed: Arc::new(watch::Sender::new(0)) };
        let follower = watcher.clone();
        let events = api.watch(&WatchParams::default().timeout(290), &version).await?.boxed();
        tokio::spawn(follower.follow(api, version, events));
        Ok(watcher)
    }

    async fn follow(
        self,
        api: Api<Pod>,
        mut version: String,
        mut events: futures_util::stream::BoxStream<'static, kube::Result<WatchEvent<Pod>>>,
    ) {
        loop {
            while let Some(Ok(event)) = events.next().await {
                let now = Instant::now();
                let (pod, gone) = match event {
                    WatchEvent::Added(pod) | WatchEvent::Modified(pod) => (pod, false),
                    WatchEvent::Deleted(pod) => (pod, true),
                    WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
                };
                version = pod.resource_version().unwrap_or(version);
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = seen.entry(pod.name_any()).or_default();
                if is_ready(&pod) {
                    entry.ready.get_or_insert(now);
                }
                if gone {
                    entry.gone.get_or_insert(now);
                }
                drop(seen);
                self.changed.send_modify(|count| *count += 1);
            }
            // The server ends a watch after its timeout; go on from the last event.
            match api.watch(&WatchParams::default().timeout(290), &version).await {
                Ok(next) => events = next.boxed(),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn ready(&self, pod: &str) -> anyhow::Result<Instant> {
        self.until(pod, |seen| seen.ready).await.with_context(|| format!("{pod} is not Ready after {PATIENCE:?}"))
    }

    async fn gone(&self, pod: &str) -> anyhow::Result<Instant> {
        self.until(pod, |seen| seen.gone).await.with_context(|| format!("{pod} is not gone after {PATIENCE:?}"))
    }

    async fn until(&self, pod: &str, what: impl Fn(Seen) -> Option<Instant>) -> Option<Instant> {
        let mut changes = self.changed.subscribe();
        let look = || {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.get(pod).copied().and_then(&what)
        };
        let waiting = async {
            loop {
                if let Some(at) = look() {
                    return Some(at);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.ok().flatten()
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
