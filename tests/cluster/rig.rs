//! A control plane with one node that the agent joined, and what scenarios ask of both.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::leak_check::remains;
use harness::node::Node;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Node as ApiNode, Pod, Service};
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// For whatever takes the real controllers a few rounds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The pod range of the first node that registers.
pub(crate) const POD_CIDR: &str = "10.244.0.0/24";
/// The node's address on the [`harness::netns::Lan`].
pub(crate) const NODE: &str = "10.89.0.11";
pub(crate) const NAME: &str = "n1";

/// Node first: it goes before the control plane does.
pub(crate) struct Rig {
    pub(crate) node: Node,
    pub(crate) client: kube::Client,
    pub(crate) plane: ControlPlane,
}

impl Rig {
    /// A control plane, and a node `n1` on its network without an agent yet.
    pub(crate) async fn without_agent(version: Version, cni: Cni) -> anyhow::Result<Self> {
        let plane = ControlPlane::start(&[NAME]).await?;
        let node = Node::on_lan(&plane, 11, version, cni, POD_CIDR).await?;
        // What a router does between machines: pods reach the control plane, and it them.
        plane.lan().netns().ip(&format!("route add {POD_CIDR} via {NODE}"))?;
        let client = plane.client().await?;
        Ok(Self { node, client, plane })
    }

    /// The same with the agent joined, and Ready.
    pub(crate) async fn joined(version: Version, cni: Cni) -> anyhow::Result<Self> {
        let mut rig = Self::without_agent(version, cni).await?;
        rig.node.run_joined(&rig.plane, NAME)?;
        rig.node_is_ready(NAME).await?;
        Ok(rig)
    }

    /// Waits for `Ready=True` and for the end of the taint that keeps pods away until then.
    pub(crate) async fn node_is_ready(&mut self, name: &str) -> anyhow::Result<ApiNode> {
        let nodes: Api<ApiNode> = Api::all(self.client.clone());
        let agent = self.node.agent()?;
        let ready = eventually(PATIENCE, "the node to be Ready", async || {
            if let Err(error) = agent.ensure_running() {
                return Ok(Err(error));
            }
            let node = nodes.get(name).await?;
            let ready = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let ready = ready.filter(|condition| condition.type_ == "Ready").map(|condition| condition.status.as_str());
            ensure!(ready.eq(["True"]), "{:?}", node.status);
            let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).count();
            ensure!(taints == 0, "{:?}", node.spec);
            anyhow::Ok(Ok(node))
        });
        match ready.await {
            Ok(ready) => ready,
            Err(error) => Err(error.context(agent.log_tail())),
        }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Makes an object in the namespace `default`.
    pub(crate) async fn create<K>(&self, object: Value) -> anyhow::Result<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        Ok(self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?)
    }

    pub(crate) async fn delete<K>(&self, name: &str) -> anyhow::Result<()>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>().delete(name, &DeleteParams::background()).await?;
        Ok(())
    }

    pub(crate) async fn patch_deployment(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        self.api::<Deployment>().patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(())
    }

    /// Waits until a Deployment's newest generation runs with exactly `replicas`, all available, none of an older one.
    pub(crate) async fn rolled_out(&mut self, name: &str, replicas: i32) -> anyhow::Result<()> {
        let deployments = self.api::<Deployment>();
        let pods = self.api::<Pod>();
        let what = format!("{name} with {replicas} replicas");
        let done = eventually(PATIENCE, &what, async || {
            let deployment = deployments.get(name).await?;
            let status = deployment.status.unwrap_or_default();
            let numbers = [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
            let seen = status.observed_generation == deployment.metadata.generation;
            ensure!(seen && numbers.iter().all(|n| n.unwrap_or(0) == replicas), "{}", json!(status));
            // Old pods count no more, but they still are.
            let list = pods.list(&ListParams::default().labels(&format!("app={name}"))).await?.items;
            ensure!(list.len() == usize::try_from(replicas)?, "{} pods are still there", list.len());
            anyhow::Ok(())
        });
        match done.await {
            Ok(()) => Ok(()),
            Err(error) => {
                let story = self.story().await;
                Err(error.context(format!("{story}\n{}", self.node.agent()?.log_tail())))
            }
        }
    }

    /// Events and pods, for failures.
    pub(crate) async fn story(&self) -> String {
        let events = self.api::<Event>().list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
        let events = events.into_iter().map(|event| {
            let (about, reason) = (event.involved_object.name, event.reason);
            format!(
                "{}: {}: {}",
                about.unwrap_or_default(),
                reason.unwrap_or_default(),
                event.message.unwrap_or_default()
            )
        });
        let pods = self.api::<Pod>().list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
        let pods =
            pods.into_iter().map(|pod| format!("{}: {}", pod.metadata.name.unwrap_or_default(), json!(pod.status)));
        events.chain(pods).collect::<Vec<_>>().join("\n")
    }

    pub(crate) async fn pods(&self, app: &str) -> anyhow::Result<Vec<Pod>> {
        Ok(self.api::<Pod>().list(&ListParams::default().labels(&format!("app={app}"))).await?.items)
    }

    /// Waits until a pod is Ready.
    pub(crate) async fn pod_is_ready(&mut self, name: &str) -> anyhow::Result<Pod> {
        let pods = self.api::<Pod>();
        let what = format!("pod {name} to be Ready");
        let ready = eventually(PATIENCE, &what, async || {
            let pod = pods.get(name).await?;
            ensure!(ready_since(&pod).is_some(), "{}", json!(pod.status));
            anyhow::Ok(pod)
        });
        match ready.await {
            Ok(pod) => Ok(pod),
            Err(error) => Err(error.context(self.node.agent()?.log_tail())),
        }
    }

    /// A client pod, which stays: `exec` runs wget in it.
    pub(crate) async fn client_pod(&mut self) -> anyhow::Result<()> {
        let spec = json!({
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "c", "image": "localhost/busybox:1", "command": ["sleep", "100000"] }],
        });
        self.create::<Pod>(json!({ "metadata": { "name": "client" }, "spec": spec })).await?;
        self.pod_is_ready("client").await.map(drop)
    }

    /// The body of `GET path`, asked from the client pod (busybox's wget is of no use: a static glibc crashes in its
    /// name service).
    pub(crate) async fn ask_from_pod(&self, to: SocketAddr, path: &str) -> anyhow::Result<String> {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let line = format!("printf '{request}' | nc -w 3 {} {}", to.ip(), to.port());
        let answer = self.node.exec("client", &["sh", "-c", &line]).await?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
        ensure!(head.contains(" 200 "), "{head}");
        Ok(body.to_owned())
    }

    /// Waits until nothing of any pod is left on the node: containers, sandboxes, directories, mounts, cgroups, logs,
    /// addresses.
    pub(crate) async fn nothing_is_left(&self) -> anyhow::Result<()> {
        eventually(PATIENCE, "nothing to be left of pods", async || {
            let (containers, sandboxes) = (self.node.containers().await?, self.node.sandboxes().await?);
            ensure!(containers.is_empty() && sandboxes.is_empty(), "{containers:?} {sandboxes:?}");
            for directory in ["kubelet/pods", "pod-logs", "containers", "state/pods"] {
                let left = entries(&self.node.path(directory));
                ensure!(left.is_empty(), "{directory}: {left:?}");
            }
            let below = self.node.path("kubelet").display().to_string();
            let mounts = std::fs::read_to_string("/proc/self/mounts")?;
            let mounts: Vec<&str> = mounts.lines().filter(|line| line.contains(&below)).collect();
            ensure!(mounts.is_empty(), "{mounts:?}");
            let cgroups = self.node.cgroups.children();
            let of_pods = |path: &&std::path::PathBuf| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pod"))
            };
            let cgroups: Vec<_> = cgroups.iter().filter(of_pods).collect();
            ensure!(cgroups.is_empty(), "{cgroups:?}");
            let leases = self.leases();
            ensure!(leases.is_empty(), "addresses {leases:?}");
            Ok(())
        })
        .await
    }

    /// Addresses that pods of the node hold.
    pub(crate) fn leases(&self) -> Vec<String> {
        [leases(&self.node.path("ctrd/cni/data")), leases(&self.node.path("state/cni"))].concat()
    }

    /// What the kernel has for Services: the elements of our tables.
    pub(crate) fn rules(&self) -> anyhow::Result<String> {
        self.node.netns().sh("nft list table ip nodelet")
    }

    /// Ends everything; fails when something stays on the host.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let name = self.node.name().to_owned();
        let Self { mut node, client, plane } = self;
        if let Some(agent) = &mut node.agent {
            agent.kill9();
        }
        drop((node, client, plane));
        let left = remains(&name);
        ensure!(left.is_empty(), "left on the host: {left:?}");
        Ok(())
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let found = std::fs::read_dir(directory).into_iter().flatten().flatten();
    found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Addresses that are held: host-local keeps a file for each, nodelet-cni `leases.json` for all.
fn leases(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for network in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let files = entries(&network.path());
        found.extend(files.into_iter().filter(|name| name.parse::<std::net::IpAddr>().is_ok()));
        let text = std::fs::read_to_string(network.path().join("leases.json")).unwrap_or_default();
        let body = text.split_once('\n').map(|(_, body)| body).unwrap_or_default();
        let leases: Value = serde_json::from_str(body).unwrap_or_default();
        let leases = leases["leases"].as_array().cloned().unwrap_or_default();
        found.extend(leases.iter().flat_map(|l| l["addresses"].as_array().cloned()).flatten().map(|ip| ip.to_string()));
    }
    found.sort();
    found
}

/// Since when a pod is Ready, if it is.
pub(crate) fn ready_since(pod: &Pod) -> Option<String> {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0.to_string())
}

pub(crate) fn address(text: &str) -> SocketAddr {
    match text.parse() {
        Ok(address) => address,
        Err(error) => panic!("{text}: {error}"),
    }
}

/// A Deployment of echo servers that are Ready by a probe, with a ConfigMap as volume and environment.
pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": {
                    "terminationGracePeriodSeconds": 10,
                    "containers": [{
                        "name": "echo",
                        "image": image,
                        // What was connected before the rules changed may still be in the listener's queue.
                        "args": ["--delay", "500ms"],
                        "ports": [{ "containerPort": 8080 }],
                        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 1 },
                        "envFrom": [{ "configMapRef": { "name": format!("{name}-config") } }],
                        "volumeMounts": [{ "name": "config", "mountPath": "/config" }],
                    }],
                    "volumes": [{ "name": "config", "configMap": { "name": format!("{name}-config") } }],
                },
            },
        },
    })
}

pub(crate) fn config_map(name: &str, greeting: &str) -> Value {
    json!({ "metadata": { "name": format!("{name}-config") }, "data": { "GREETING": greeting } })
}

/// A Service of type NodePort on ClusterIP `ip`.
pub(crate) fn service(name: &str, ip: &str, node_port: u16) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "type": "NodePort",
            "clusterIP": ip,
            "selector": { "app": name },
            "ports": [{ "port": 80, "targetPort": 8080, "nodePort": node_port }],
        },
    })
}

/// Makes ConfigMap, Deployment and Service, and waits for all replicas.
pub(crate) async fn deploy(rig: &mut Rig, name: &str, replicas: i32, ip: &str, node_port: u16) -> anyhow::Result<()> {
    rig.create::<ConfigMap>(config_map(name, "hello")).await?;
    rig.create::<Deployment>(deployment(name, replicas, "localhost/echo:v1")).await?;
    rig.create::<Service>(service(name, ip, node_port)).await?;
    rig.rolled_out(name, replicas).await
}

/// Fails with all failures of a record, and when there were too few requests to mean something.
pub(crate) fn no_failures(record: &harness::http::Record, at_least: u64) -> anyhow::Result<()> {
    if !record.failed.is_empty() {
        bail!("{} of {} requests failed: {:#?}", record.failed.len(), record.answered, record.failed);
    }
    ensure!(record.answered >= at_least, "only {} requests", record.answered);
    Ok(())
}
