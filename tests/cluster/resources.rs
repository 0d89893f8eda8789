//! What the node gives to pods: limits of the kernel, kills for want of memory, and the words of a refusal.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Event, Node as ApiNode, Pod};
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::rig::{NAME, PATIENCE, Rig};

const KUBE_MILLI: i64 = 100;
const SYSTEM_MILLI: i64 = 200;
const KUBE_MEMORY: i64 = 256 << 20;
const SYSTEM_MEMORY: i64 = 64 << 20;

fn configuration(root: &str) -> String {
    format!(
        "kubeReserved: {{cpu: {KUBE_MILLI}m, memory: '{KUBE_MEMORY}', pid: '500'}}\n\
         systemReserved: {{cpu: {SYSTEM_MILLI}m, memory: '{SYSTEM_MEMORY}', pid: '77'}}\n\
         systemReservedCgroup: {root}/system\nenforceNodeAllocatable: [pods, system-reserved]\npodPidsLimit: 200\n"
    )
}

/// A file of a cgroup of the node, in whichever hierarchy has it.
fn file(rig: &Rig, below: &str, names: [&str; 2]) -> anyhow::Result<String> {
    let paths = rig.node.cgroups.find(below);
    let path = paths.iter().flat_map(|dir| names.map(|name| dir.join(name))).find(|path| path.exists());
    Ok(fs::read_to_string(path.with_context(|| format!("no {names:?} below {below}"))?)?.trim().to_owned())
}

const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const PIDS: [&str; 2] = ["pids.max"; 2];

/// The CPU of a cgroup as kubelet writes it: shares, or the weight that they come to.
fn cpu(milli: i64) -> [String; 2] {
    let shares = milli * 1024 / 1000;
    [shares.to_string(), (1 + (shares - 2) * 9999 / 262_142).to_string()]
}

fn pod(name: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    // Past the scheduler, as a DaemonSet of old or a mistake would be.
    spec["nodeName"] = NAME.into();
    spec["terminationGracePeriodSeconds"] = 30.into();
    spec["restartPolicy"] = "Never".into();
    json!({ "metadata": { "name": name }, "spec": spec })
}

fn busybox(line: &str, resources: &Value) -> Value {
    json!({ "containers": [
        { "name": "c", "image": "localhost/busybox:1", "command": ["sh", "-c", line], "resources": resources }] })
}

#[tokio::test(flavor = "multi_thread")]
async fn node_allocatable_is_enforced_kills_are_told_and_what_does_not_fit_is_refused() {
    scenario().await.unwrap();
}

async fn scenario() -> anyhow::Result<()> {
    let mut rig = Rig::without_agent(Version::V2, Cni::Nodelet).await?;
    rig.node.extra_configuration = configuration(&rig.node.cgroups.root());
    refuses_to_start(&mut rig).await?;
    let node = rig.node_is_ready(NAME).await?;
    enforced(&rig, &node)?;
    events(&rig).await?;
    refused(&rig, &node).await?;
    killed(&mut rig).await?;
    rig.finish()
}

/// A cgroup that is to be limited and is not there ends the agent, as it ends kubelet; with it, the agent starts.
async fn refuses_to_start(rig: &mut Rig) -> anyhow::Result<()> {
    rig.node.run_joined(&rig.plane, NAME)?;
    let agent = rig.node.agent()?;
    let text = eventually(PATIENCE, "the agent to end", async || match agent.ensure_running() {
        Ok(()) => anyhow::bail!("it runs"),
        Err(_) => Ok(agent.log_tail()),
    })
    .await?;
    let wanted = "Failed to enforce System Reserved Cgroup Limits on";
    ensure!(text.contains(wanted) && text.contains("has some missing paths: /sys/fs/cgroup/"), "{text}");
    for directory in rig.node.cgroups.find("") {
        fs::create_dir(directory.join("system"))?;
    }
    rig.node.agent()?.kill9();
    rig.node.restart_agent()
}

fn enforced(rig: &Rig, node: &ApiNode) -> anyhow::Result<()> {
    let status = node.status.as_ref().context("status")?;
    let (capacity, allocatable) = (&status.capacity, &status.allocatable);
    let kibi = |list: &Option<_>, name: &str| -> anyhow::Result<i64> {
        let list: &std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity> =
            list.as_ref().context("amounts")?;
        let text = &list.get(name).with_context(|| format!("no {name}"))?.0;
        Ok(text.strip_suffix("Ki").with_context(|| text.clone())?.parse()?)
    };
    let memory = kibi(capacity, "memory")? << 10;
    let limit = memory - KUBE_MEMORY - SYSTEM_MEMORY;
    ensure!(kibi(allocatable, "memory")? << 10 == limit - (100 << 20), "less the eviction threshold: {allocatable:?}");
    ensure!(file(rig, "kubepods", MEMORY)? == (limit / 4096 * 4096).to_string());
    let cpus: i64 = capacity.as_ref().context("capacity")?["cpu"].0.parse()?;
    let shares = file(rig, "kubepods", ["cpu.shares", "cpu.weight"])?;
    ensure!(cpu(cpus * 1000 - KUBE_MILLI - SYSTEM_MILLI).contains(&shares), "{shares}");
    let limit = |path: &str| anyhow::Ok(fs::read_to_string(PathBuf::from(path))?.trim().parse::<i64>()?);
    let most = limit("/proc/sys/kernel/pid_max")?.min(limit("/proc/sys/kernel/threads-max")?);
    ensure!(file(rig, "kubepods", PIDS)? == (most - 577).to_string());

    ensure!(file(rig, "system", MEMORY)? == SYSTEM_MEMORY.to_string());
    ensure!(file(rig, "system", PIDS)? == "77");
    let shares = file(rig, "system", ["cpu.shares", "cpu.weight"])?;
    ensure!(cpu(SYSTEM_MILLI).contains(&shares), "{shares}");
    Ok(())
}

async fn events(rig: &Rig) -> anyhow::Result<()> {
    eventually(PATIENCE, "the events of the node", async || {
        let events = rig.api::<Event>().list(&ListParams::default()).await?.items;
        let of_node = events.iter().filter(|event| event.involved_object.kind.as_deref() == Some("Node"));
        let texts: Vec<String> = of_node
            .map(|e| format!("{}: {}", e.reason.clone().unwrap_or_default(), e.message.clone().unwrap_or_default()))
            .collect();
        for wanted in ["Updated Node Allocatable limit across pods", "Updated limits on system reserved cgroup /"] {
            let wanted = format!("NodeAllocatableEnforced: {wanted}");
            ensure!(texts.iter().any(|text| text.starts_with(&wanted)), "no {wanted:?} in {texts:?}");
        }
        anyhow::Ok(())
    })
    .await
}

async fn refused(rig: &Rig, node: &ApiNode) -> anyhow::Result<()> {
    let cpus: i64 = node.status.as_ref().context("status")?.capacity.as_ref().context("capacity")?["cpu"].0.parse()?;
    let left = cpus * 1000 - KUBE_MILLI - SYSTEM_MILLI;
    let asking =
        |requests: Value| busybox("sleep 100000", &json!({ "requests": requests.clone(), "limits": requests }));
    let mut elsewhere = asking(json!({}));
    elsewhere["nodeSelector"] = json!({ "zone": "nowhere" });
    let start = "Pod was rejected: ";
    for (name, spec, reason, message) in [
        (
            "too-much-cpu",
            asking(json!({ "cpu": "1000" })),
            "OutOfcpu",
            format!("Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: {left}"),
        ),
        (
            "huge-pages",
            asking(json!({ "hugepages-2Mi": "1Ti", "memory": "1Mi", "cpu": "1m" })),
            "OutOfhugepages-2Mi",
            "Node didn't have enough resource: hugepages-2Mi, requested: 1099511627776, used: 0, capacity: ".to_owned(),
        ),
        ("elsewhere", elsewhere, "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match".to_owned()),
    ] {
        rig.create::<Pod>(pod(name, &spec)).await?;
        let pods = rig.api::<Pod>();
        eventually(PATIENCE, &format!("{name} to be refused"), async || {
            let status = pods.get(name).await?.status.unwrap_or_default();
            ensure!(status.phase.as_deref() == Some("Failed"), "{}", json!(status));
            ensure!(status.reason.as_deref() == Some(reason), "{}", json!(status));
            let found = status.message.clone().unwrap_or_default();
            ensure!(found.starts_with(&format!("{start}{message}")), "{found}");
            anyhow::Ok(())
        })
        .await?;
        rig.delete::<Pod>(name).await?;
    }
    Ok(())
}

fn ended(pod: &Pod) -> Option<ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.first()?.state.as_ref()?.terminated.clone()
}

fn kills(plane: &ControlPlane) -> anyhow::Result<f64> {
    let output = plane.kubectl(&["get", "--raw", "/api/v1/nodes/n1/proxy/metrics/cadvisor"])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().filter(|line| line.starts_with("container_oom_events_total{container=\"c\""));
    let line = lines.find(|line| line.contains("pod=\"hungry\"")).with_context(|| format!("no figure in {text}"))?;
    // Behind the value is when it was measured.
    let value = line.rsplit_once('}').and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(value.unwrap_or_default().parse()?)
}

/// The kernel kills a child; the container goes on, and its end says `OOMKilled` with its own exit code.
async fn killed(rig: &mut Rig) -> anyhow::Result<()> {
    let line = "trap 'exit 3' TERM; tail /dev/zero; echo killed; while :; do sleep 0.1; done";
    let limits = json!({ "limits": { "memory": "32Mi", "cpu": "200m" } });
    let made = rig.create::<Pod>(pod("hungry", &busybox(line, &limits))).await?;
    let below = format!("kubepods/pod{}", made.metadata.uid.as_deref().context("uid")?);
    let plane = &rig.plane;
    let counted = eventually(PATIENCE, "the kill to be counted", async || {
        let found = kills(plane)?;
        ensure!(found >= 1.0, "{found}");
        anyhow::Ok(())
    })
    .await;
    if let Err(error) = counted {
        let story = rig.story().await;
        return Err(error.context(format!("{story}\n{}", rig.node.agent()?.log_tail())));
    }
    ensure!(file(rig, &below, PIDS)? == "200");
    ensure!(file(rig, &below, MEMORY)? == (32 << 20).to_string());
    rig.node.exec("hungry", &["kill", "-TERM", "1"]).await?;
    let pods = rig.api::<Pod>();
    let end = eventually(PATIENCE, "the container to end", async || {
        let pod = pods.get("hungry").await?;
        ended(&pod).with_context(|| format!("{}", json!(pod.status)))
    })
    .await?;
    ensure!((end.reason.as_deref(), end.exit_code) == (Some("OOMKilled"), 3), "{}", json!(end));
    Api::<Pod>::namespaced(rig.client.clone(), "default").delete("hungry", &Default::default()).await?;
    rig.nothing_is_left().await
}
