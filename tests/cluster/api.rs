//! The agent's API edge against a real API server, with a node's own rights (Node authorizer, NodeRestriction).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Event as ApiEvent, Node, Pod, PodStatus, Secret};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nodelet::api::client::ApiClient;
use nodelet::api::objects::JoinedObjects;
use nodelet::api::service_envs::ServiceEnvs;
use nodelet::api::status_writer::{PodRef, StatusWriter};
use nodelet::event::{Event, EventType, Recorder, Subject};
use nodelet::ids::{NodeName, ObjectKey, PodUid};
use nodelet::node::heartbeat::{self, NodeHandle, NodeInputs};
use nodelet::node::lease::LeaseState;
use nodelet::node::{NodeExtras, NodeSettings, RuntimeHealth};
use nodelet::objects::{ObjectError, ObjectRef, Objects, TokenAsk};
use nodelet::source::api::Outlets;
use nodelet::source::{SourceName, SourceUpdate};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane on the loopback interface: these tests need no node network.
struct ControlPlane {
    process: Child,
    directory: tempfile::TempDir,
}

impl ControlPlane {
    async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let out = directory.path().join("stdout");
        let process = Command::new(harness::programs::built("controlplane")?)
            .arg("--dir")
            .arg(directory.path().join("data"))
            .args(["--node", "n1", "--secure-port", &port.to_string()])
            .stdout(std::fs::File::create(&out)?)
            .stderr(Stdio::null())
            .spawn()?;
        let plane = Self { process, directory };
        until(Duration::from_secs(120), "the control plane", async || {
            Ok(std::fs::read_to_string(&out)?.contains("ready").then_some(()))
        })
        .await?;
        Ok(plane)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("data").join(name)
    }

    fn client(&self, name: &str) -> anyhow::Result<ApiClient> {
        Ok(ApiClient::from_file(&self.file(name), "test")?)
    }

    fn node(&self) -> anyhow::Result<ApiClient> {
        self.client("node-n1.kubeconfig")
    }

    fn admin(&self) -> anyhow::Result<kube::Client> {
        Ok(self.client("admin.kubeconfig")?.kube())
    }

    fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        Ok(rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal)?)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asks until there is an answer.
async fn until<T>(
    limit: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = std::time::Instant::now();
    loop {
        let seen = match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => "nothing yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        ensure!(start.elapsed() < limit, "waited {limit:?} for {what}: {seen}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn healthy() -> RuntimeHealth {
    RuntimeHealth {
        runtime_ready: Ok(()),
        network_ready: Ok(()),
        name: "containerd".into(),
        version: "v2.4.2".into(),
        handlers: Vec::new(),
        supplemental_groups_policy: Some(true),
    }
}

struct RunningNode {
    handle: NodeHandle,
    runtime: watch::Sender<RuntimeHealth>,
    _extras: watch::Sender<NodeExtras>,
    _shutdown: watch::Sender<bool>,
    _events: mpsc::Receiver<Event>,
}

fn settings() -> anyhow::Result<NodeSettings> {
    let flags = nodelet::config::Flags {
        kubeconfig: Some("/dev/null".into()),
        hostname_override: Some("n1".into()),
        ..Default::default()
    };
    let (config, _) = nodelet::config::load(&flags).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    Ok(NodeSettings::new(&config, "v1.37.2"))
}

fn run_node(client: ApiClient) -> anyhow::Result<RunningNode> {
    let (runtime_tx, runtime) = watch::channel(healthy());
    let (extras_tx, extras) = watch::channel(NodeExtras::default());
    let (shutdown_tx, shutdown) = watch::channel(false);
    let (events, events_rx) = Recorder::new();
    let addresses = nodelet::node::address::changes();
    let inputs = NodeInputs { runtime, extras, shutdown, addresses, events };
    let handle = heartbeat::spawn(client, Arc::new(settings()?), inputs);
    Ok(RunningNode { handle, runtime: runtime_tx, _extras: extras_tx, _shutdown: shutdown_tx, _events: events_rx })
}

fn condition(node: &Node, kind: &str) -> String {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.type_ == kind).map(|condition| condition.status.clone()).collect()
}

async fn ready_is(nodes: &Api<Node>, wanted: &str) -> anyhow::Result<Duration> {
    let start = std::time::Instant::now();
    until(PATIENCE, &format!("Ready={wanted}"), async || {
        let node = nodes.get("n1").await?;
        Ok((condition(&node, "Ready") == wanted).then_some(()))
    })
    .await?;
    Ok(start.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_reports_and_repairs_its_status() -> anyhow::Result<()> {
    let plane = ControlPlane::start().await?;
    let node = run_node(plane.node()?)?;
    let nodes: Api<Node> = Api::all(plane.admin()?);
    ready_is(&nodes, "True").await?;
    let seen = nodes.get("n1").await?;
    let labels = seen.metadata.labels.clone().unwrap_or_default();
    ensure!(labels.get("kubernetes.io/hostname").map(String::as_str) == Some("n1"), "{labels:?}");
    let status = seen.status.clone().unwrap_or_default();
    let types: Vec<String> = status.conditions.into_iter().flatten().map(|condition| condition.type_).collect();
    ensure!(types.last().map(String::as_str) == Some("Ready"), "{types:?}");
    let info = status.node_info.unwrap_or_default();
    ensure!(info.container_runtime_version == "containerd://2.4.2" && info.kubelet_version == "v1.37.2", "{info:?}");
    for name in ["cpu", "memory", "pods", "ephemeral-storage"] {
        ensure!(status.allocatable.iter().flatten().any(|(resource, _)| resource == name), "no {name}");
    }
    let mut lease = node.handle.lease();
    tokio::time::timeout(PATIENCE, lease.wait_for(|state| *state == LeaseState::Held)).await??;

    node.runtime.send_replace(RuntimeHealth::down("container runtime is down"));
    let took = ready_is(&nodes, "False").await?;
    ensure!(took < Duration::from_secs(3), "a condition is told at once, took {took:?}");
    node.runtime.send_replace(healthy());
    ready_is(&nodes, "True").await?;

    // What the node lifecycle controller does to a node that it has not heard of.
    let unknown = json!({ "status": { "conditions": [{ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown" }] } });
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Strategic(unknown)).await?;
    let took = ready_is(&nodes, "True").await?;
    ensure!(took < Duration::from_secs(3), "an overwritten status is put right by its event, took {took:?}");

    // A second start finds the Node and does not fail on it.
    drop(node);
    let node = run_node(plane.node()?)?;
    let mut lease = node.handle.lease();
    tokio::time::timeout(PATIENCE, lease.wait_for(|state| *state == LeaseState::Held)).await??;
    Ok(())
}

async fn create_pod(client: &kube::Client, name: &str, spec: Value) -> anyhow::Result<Pod> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "busybox" }], "terminationGracePeriodSeconds": 1 },
    });
    if let (Some(into), Value::Object(more)) = (pod["spec"].as_object_mut(), spec) {
        into.extend(more);
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    Ok(pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?)
}

fn pod_ref(pod: &Pod) -> PodRef {
    PodRef {
        key: ObjectKey::new("default", pod.metadata.name.as_deref().unwrap_or_default()),
        uid: PodUid::new(pod.metadata.uid.as_deref().unwrap_or_default()),
    }
}

fn running(ip: &str) -> anyhow::Result<PodStatus> {
    let now = "2026-01-01T00:00:00Z";
    Ok(serde_json::from_value(json!({
        "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "hostIP": "10.0.0.1", "hostIPs": [{ "ip": "10.0.0.1" }],
        "startTime": now, "observedGeneration": 1, "qosClass": "BestEffort",
        "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now },
            { "type": "PodScheduled", "status": "True", "lastTransitionTime": now }],
        "containerStatuses": [{ "name": "c", "image": "busybox", "imageID": "x", "ready": true, "restartCount": 0,
            "state": { "running": { "startedAt": now } } }],
    }))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_are_patched_guarded_by_uid_and_put_right() -> anyhow::Result<()> {
    let plane = ControlPlane::start().await?;
    let _node = run_node(plane.node()?)?;
    let admin = plane.admin()?;
    ready_is(&Api::all(admin.clone()), "True").await?;
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    let pod = create_pod(&admin, "p", json!({})).await?;
    let client = plane.node()?;
    let writer = StatusWriter::new(client.kube());
    let seen_by = writer.clone();
    let (updates, mut updates_rx) = mpsc::unbounded_channel();
    let (mirrors, _mirrors_rx) = mpsc::unbounded_channel();
    let outlets = Outlets { updates, mirrors, observer: Box::new(move |pod| seen_by.observed(pod)) };
    let source = nodelet::source::api::spawn(client.kube(), &NodeName::new("n1"), outlets);
    tokio::time::timeout(PATIENCE, source.synced()).await?;
    let first = updates_rx.recv().await.context("an update")?;
    ensure!(
        matches!(&first, SourceUpdate::Upsert(SourceName::Api, pod) if pod.metadata.managed_fields.is_none()),
        "{first:?}"
    );

    // A readiness gate of somebody else has to survive our writes.
    let gate = json!({ "status": { "conditions": [{ "type": "example.com/gate", "status": "True" }] } });
    pods.patch_status("p", &PatchParams::default(), &Patch::Strategic(gate)).await?;
    writer.publish(pod_ref(&pod), running("10.1.1.1")?);
    writer.publish(pod_ref(&pod), running("10.1.1.2")?);
    let status_is = async |ip: &str| {
        until(PATIENCE, ip, async || {
            let pod = pods.get("p").await?;
            let status = pod.status.unwrap_or_default();
            let ips: Vec<String> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
            Ok((ips == [ip] && status.phase.as_deref() == Some("Running")).then_some(status))
        })
        .await
    };
    let status = status_is("10.1.1.2").await?;
    let types: Vec<&str> = status.conditions.iter().flatten().map(|condition| condition.type_.as_str()).collect();
    ensure!(types.contains(&"example.com/gate") && types.contains(&"Ready"), "{types:?}");
    ensure!(status.observed_generation == Some(1), "{:?}", status.observed_generation);

    // Somebody else's write to our part does not last.
    let wrong = json!({ "status": { "podIP": "10.9.9.9", "podIPs": [{ "ip": "10.9.9.9" }, { "$patch": "replace" }] } });
    pods.patch_status("p", &PatchParams::default(), &Patch::Strategic(wrong)).await?;
    status_is("10.1.1.2").await?;

    // A status for an earlier pod of this name is refused by the server and dropped here.
    let stale = PodRef { uid: PodUid::new("11111111-1111-1111-1111-111111111111"), ..pod_ref(&pod) };
    writer.publish(stale.clone(), running("10.1.1.3")?);
    writer.delete(stale);
    until(PATIENCE, "the writer to be idle", async || Ok((writer.backlog() == 0).then_some(()))).await?;
    status_is("10.1.1.2").await?;

    writer.delete(pod_ref(&pod));
    // The pod manager has nothing left of the pod long before the API server has answered.
    writer.forget(&pod_ref(&pod).uid);
    until(PATIENCE, "the pod to be gone", async || Ok(pods.get_opt("p").await?.is_none().then_some(()))).await?;
    loop {
        let update = tokio::time::timeout(PATIENCE, updates_rx.recv()).await?.context("an update")?;
        if matches!(&update, SourceUpdate::Remove(SourceName::Api, uid) if *uid == pod_ref(&pod).uid) {
            break;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_read_objects_and_tokens_with_the_rights_of_their_node() -> anyhow::Result<()> {
    let plane = ControlPlane::start().await?;
    let node = run_node(plane.node()?)?;
    let admin = plane.admin()?;
    ready_is(&Api::all(admin.clone()), "True").await?;
    let maps: Api<ConfigMap> = Api::namespaced(admin.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), "default");
    let map = |value: &str| json!({ "metadata": { "name": "m" }, "data": { "k": value } });
    maps.create(&PostParams::default(), &serde_json::from_value(map("1"))?).await?;
    let immutable = json!({ "metadata": { "name": "s" }, "immutable": true, "stringData": { "k": "v" } });
    secrets.create(&PostParams::default(), &serde_json::from_value(immutable)?).await?;
    let env = json!({ "serviceAccountName": "default", "containers": [{ "name": "c", "image": "busybox", "envFrom": [
        { "configMapRef": { "name": "m" } }, { "configMapRef": { "name": "later", "optional": true } }, { "secretRef": { "name": "s" } }] }] });
    let pod = create_pod(&admin, "p", env).await?;
    let uid = pod_ref(&pod).uid;

    let (changed, mut changed_rx) = mpsc::unbounded_channel();
    let (recorder, _events) = Recorder::new();
    let (kube, envs) = (plane.node()?.kube(), Arc::new(ServiceEnvs::default()));
    let objects = JoinedObjects::new(kube, changed, envs, node.handle.node(), recorder);
    let key = |name: &str| ObjectKey::new("default", name);
    let refs = vec![ObjectRef::ConfigMap(key("m")), ObjectRef::ConfigMap(key("later")), ObjectRef::Secret(key("s"))];
    objects.register(&uid, refs);
    let read = async |name: &str| {
        let map = objects.config_map(&key(name)).await?;
        Ok::<_, ObjectError>(map.data.as_ref().and_then(|data: &BTreeMap<String, String>| data.get("k")).cloned())
    };
    ensure!(read("m").await? == Some("1".to_owned()));
    ensure!(matches!(read("later").await, Err(ObjectError::NotFound { .. })), "not found is an answer");
    ensure!(objects.secret(&key("s")).await?.data.iter().flatten().count() == 1);

    maps.patch("m", &PatchParams::default(), &Patch::Merge(map("2"))).await?;
    let woken = tokio::time::timeout(PATIENCE, changed_rx.recv()).await?.context("a change")?;
    ensure!(woken == uid && read("m").await? == Some("2".to_owned()));
    let later = json!({ "metadata": { "name": "later" }, "data": { "k": "x" } });
    maps.create(&PostParams::default(), &serde_json::from_value(later)?).await?;
    tokio::time::timeout(PATIENCE, changed_rx.recv()).await?.context("a change")?;
    ensure!(read("later").await? == Some("x".to_owned()));

    let ask = TokenAsk {
        service_account: key("default"),
        pod_name: "p".into(),
        pod_uid: uid.clone(),
        audience: String::new(),
        expiration_seconds: 3600,
    };
    let token = objects.token(&ask).await?;
    ensure!(token.token.split('.').count() == 3 && token.expires_at - token.issued_at > 3000);
    ensure!(objects.token(&ask).await?.token == token.token, "cached");
    let ask = TokenAsk { pod_uid: PodUid::new("2"), ..ask };
    ensure!(matches!(objects.token(&ask).await, Err(ObjectError::Unavailable { .. })), "bound to a pod of this node");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_events_are_one_object_with_a_count() -> anyhow::Result<()> {
    let plane = ControlPlane::start().await?;
    let (recorder, rx) = Recorder::new();
    let rate = nodelet::api::events::Rate { per_second: 50.0, burst: 100.0 };
    let sink = tokio::spawn(nodelet::api::events::run(plane.node()?.kube(), NodeName::new("n1"), rate, rx));
    let key = ObjectKey::new("default", "p");
    let event = |message: &str| Event {
        subject: Subject::Pod { key: key.clone(), uid: PodUid::new("u"), field_path: "spec.containers{c}".into() },
        kind: EventType::Warning,
        reason: "BackOff",
        message: message.into(),
    };
    for message in ["again", "again", "again", "other"] {
        recorder.emit(event(message));
    }
    drop(recorder);
    tokio::time::timeout(PATIENCE, sink).await??;
    let events: Api<ApiEvent> = Api::namespaced(plane.admin()?, "default");
    let list = events.list(&ListParams::default().fields("reason=BackOff")).await?;
    let mut seen: Vec<(String, i32)> = list
        .items
        .into_iter()
        .map(|event| (event.message.unwrap_or_default(), event.count.unwrap_or_default()))
        .collect();
    seen.sort();
    ensure!(seen == [("again".to_owned(), 3), ("other".to_owned(), 1)], "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_api_server_is_noticed_and_the_node_comes_back() -> anyhow::Result<()> {
    let plane = ControlPlane::start().await?;
    let node = run_node(plane.node()?)?;
    let mut lease = node.handle.lease();
    tokio::time::timeout(PATIENCE, lease.wait_for(|state| *state == LeaseState::Held)).await??;
    plane.signal(rustix::process::Signal::STOP)?;
    let failing =
        tokio::time::timeout(Duration::from_secs(30), lease.wait_for(|state| matches!(state, LeaseState::Failing(_))))
            .await;
    plane.signal(rustix::process::Signal::CONT)?;
    failing.context("the lease did not notice a stopped API server")??;
    tokio::time::timeout(PATIENCE, lease.wait_for(|state| *state == LeaseState::Held)).await??;
    let nodes: Api<Node> = Api::all(plane.admin()?);
    ready_is(&nodes, "True").await?;
    nodes.delete("n1", &DeleteParams::default()).await?;
    let mut own = node.handle.node();
    tokio::time::timeout(PATIENCE, own.wait_for(Option::is_none)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_has_a_mirror_that_comes_back_and_carries_its_status() -> anyhow::Result<()> {
    use nodelet::source::static_pods::{self, StaticPods, StaticSource, mirror};
    let plane = ControlPlane::start().await?;
    let node = run_node(plane.node()?)?;
    let admin = plane.admin()?;
    ready_is(&Api::all(admin.clone()), "True").await?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("web.yaml");
    let manifest =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: 'web:1'}]}\n";
    std::fs::write(&file, manifest)?;

    let client = plane.node()?.kube();
    let writer = StatusWriter::new(client.clone());
    let (updates, mut updates_rx) = mpsc::unbounded_channel();
    let (mirrors, notes) = mpsc::unbounded_channel();
    let seen_by = writer.clone();
    let outlets = Outlets { updates: updates.clone(), mirrors, observer: Box::new(move |pod| seen_by.observed(pod)) };
    let _source = nodelet::source::api::spawn(client.clone(), &NodeName::new("n1"), outlets);
    let (pods_tx, pods_rx) = watch::channel(StaticPods::new());
    let (events, _events_rx) = Recorder::new();
    let inputs =
        mirror::MirrorInputs { client, writer: writer.clone(), pods: pods_rx, notes, node: node.handle.node() };
    let handle = mirror::spawn(inputs);
    let source =
        StaticSource { path: directory.path().to_owned(), node: NodeName::new("n1"), updates, pods: pods_tx, events };
    let files = tokio::spawn(static_pods::run(source));

    let static_pod = loop {
        let update = tokio::time::timeout(PATIENCE, updates_rx.recv()).await?.context("an update")?;
        if let SourceUpdate::Upsert(source, pod) = update {
            ensure!(source == SourceName::Static, "a mirror never becomes desired");
            break pod;
        }
    };
    let uid = PodUid::new(static_pod.metadata.uid.as_deref().unwrap_or_default());
    let pods: Api<Pod> = Api::namespaced(admin.clone(), "default");
    handle.publish(&uid, running("10.1.1.1")?);
    let mirror_other_than = async |old: Option<String>| {
        until(PATIENCE, "a mirror with its status", async || {
            let Some(pod) = pods.get_opt("web-n1").await? else { return Ok(None) };
            let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            Ok((running && pod.metadata.uid != old).then_some(pod))
        })
        .await
    };
    let first = mirror_other_than(None).await?;
    let annotations = first.metadata.annotations.clone().unwrap_or_default();
    ensure!(
        annotations.get("kubernetes.io/config.mirror").map(String::as_str) == Some(uid.as_str()),
        "{annotations:?}"
    );

    // Somebody deletes the mirror: the static pod does not notice, and the mirror comes back with its status.
    pods.delete("web-n1", &DeleteParams::default()).await?;
    let second = mirror_other_than(first.metadata.uid).await?;
    ensure!(handle.mirror_of(&uid).map(|mirror| mirror.uid) == second.metadata.uid.as_deref().map(PodUid::new));

    std::fs::remove_file(&file)?;
    loop {
        let update = tokio::time::timeout(PATIENCE, updates_rx.recv()).await?.context("an update")?;
        if matches!(&update, SourceUpdate::Remove(SourceName::Static, removed) if *removed == uid) {
            break;
        }
    }
    ensure!(pods.get_opt("web-n1").await?.is_some(), "the mirror stays while the pod stops");
    handle.finished(&uid);
    until(PATIENCE, "the mirror to be gone", async || Ok(pods.get_opt("web-n1").await?.is_none().then_some(())))
        .await?;
    files.abort();
    Ok(())
}

/// Approves every certificate request, as an operator or the approver of kube-controller-manager does.
async fn approve_all(admin: kube::Client) {
    use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
    let requests: Api<CertificateSigningRequest> = Api::all(admin);
    loop {
        let list = requests.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
        for request in list {
            let decided = request.status.and_then(|status| status.conditions).is_some_and(|list| !list.is_empty());
            let name = request.metadata.name.unwrap_or_default();
            let patch =
                json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "Test" }] } });
            if !decided {
                // A conflict means that somebody else approved it; the next round sees.
                let _ = requests.patch_approval(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_becomes_a_certificate_that_is_renewed() -> anyhow::Result<()> {
    use nodelet::api::bootstrap::{self, Bootstrap};
    let plane = ControlPlane::start().await?;
    let approver = tokio::spawn(approve_all(plane.admin()?));
    let directory = tempfile::tempdir()?;
    let settings = Bootstrap {
        kubeconfig: directory.path().join("kubelet.conf"),
        bootstrap: plane.file("bootstrap.kubeconfig"),
        cert_dir: directory.path().join("pki"),
        node: NodeName::new("n9"),
        version: "test".into(),
    };
    tokio::time::timeout(PATIENCE, bootstrap::ensure_identity(&settings)).await??;
    let client = ApiClient::from_file(&settings.kubeconfig, "test")?;
    let me = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let who = async || {
        let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&me)?)?;
        let answer: Value = client.kube().request(request).await?;
        anyhow::Ok(answer["status"]["userInfo"]["username"].as_str().unwrap_or_default().to_owned())
    };
    ensure!(who().await? == "system:node:n9");
    let link = settings.cert_dir.join("kubelet-client-current.pem");
    let before = std::fs::read(&link)?;
    tokio::time::timeout(PATIENCE, bootstrap::renew(&client, &settings)).await??;
    ensure!(std::fs::read(&link)? != before, "another certificate is current");
    ensure!(who().await? == "system:node:n9", "and the same client uses it");
    // A second start has nothing to ask for.
    tokio::time::timeout(Duration::from_secs(1), bootstrap::ensure_identity(&settings)).await??;
    approver.abort();
    Ok(())
}
