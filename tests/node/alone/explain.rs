//! `nodelet explain`, as people call it.

use anyhow::{Context, ensure};
use harness::eventually::eventually;
use harness::node::Node;
use serde_json::Value;

use crate::look::{SHORT, cluster_ip, pod, pod_ip};

/// A Service that no pod is for, and one whose only endpoint is on another node.
const UNSERVED: &str = "
apiVersion: v1
kind: Service
metadata: { name: nobody }
spec: { selector: { app: nobody }, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: elsewhere }
spec: { type: NodePort, externalTrafficPolicy: Local, ports: [{ port: 80, nodePort: 30081 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: elsewhere-1, labels: { kubernetes.io/service-name: elsewhere } }
addressType: IPv4
ports: [{ name: '', port: 8080, protocol: TCP }]
endpoints: [{ addresses: [10.245.0.9], nodeName: another, zone: b, conditions: { ready: true } }]
";

/// Exit code, and what is printed to either side.
fn explain(node: &Node, words: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let all: Vec<&str> = ["explain", "service"].into_iter().chain(words.iter().copied()).collect();
    let done = node.agent.as_ref().context("no agent")?.run(&all)?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    Ok((done.status.code(), text))
}

fn says(node: &Node, words: &[&str], code: i32, expected: &[&str]) -> anyhow::Result<()> {
    let (found, text) = explain(node, words)?;
    ensure!(found == Some(code), "explain service {words:?} ends with {found:?} and not {code}:\n{text}");
    for part in expected {
        ensure!(text.contains(part), "explain service {words:?}: no {part:?} in\n{text}");
    }
    Ok(())
}

pub(super) async fn service_says_where_packets_go_and_its_exit_code_whether_they_pass(
    node: &mut Node,
) -> anyhow::Result<()> {
    node.write_manifest("unserved.yaml", UNSERVED)?;
    eventually(SHORT, "the new Services to have addresses", async || {
        cluster_ip(node, "nobody")?;
        cluster_ip(node, "elsewhere")
    })
    .await?;
    let ips = ["web-1", "web-2"].map(|name| anyhow::Ok(pod_ip(&pod(node, name)?)?.to_string()));
    let [first, second] = ips;
    let (first, second, web) = (first?, second?, cluster_ip(node, "web")?);
    let header = format!("ClusterIP {web}:80/TCP");
    let rows = [first, second].map(|ip| format!("{ip}:8080"));
    let parts = [&header, &rows[0], &rows[1], "IN: ready", "goes to one of 2 endpoints", "Traffic passes."];
    says(node, &["default/web:80"], 0, &parts)?;
    says(
        node,
        &["web", "--from", "pod/client"],
        0,
        &["from pod default/client (10.244.0.", "sees its source as it is"],
    )?;
    says(
        node,
        &["web", "--from", "node", "--protocol", "tcp"],
        0,
        &["from a process of this node (10.88.0.2): goes to"],
    )?;
    says(node, &["fixed"], 0, &["NodePort 10.88.0.2:30080/TCP", "from outside: goes to one of 2 endpoints"])?;
    let refused = ["no running pod has the labels app=nobody", "connection refused", "Traffic does not pass."];
    says(node, &["nobody"], 1, &refused)?;
    let dropped = [
        "10.245.0.9:8080  -  node another, zone b  ready  IN: ready; from outside OUT: it is on node another, and externalTrafficPolicy is Local",
        "from outside: dropped without an answer: no endpoint serves on this node",
        "port 80/TCP: externalTrafficPolicy is Local, and no endpoint that serves is on this node (1 elsewhere)",
    ];
    says(node, &["elsewhere"], 1, &dropped)?;
    says(node, &["elsewhere", "--from", "pod/client"], 0, &["goes to 10.245.0.9:8080", "Traffic passes."])?;
    says(node, &["default/none"], 2, &["error: there is no Service default/none"])?;
    says(node, &["web:81"], 2, &["error: Service default/web has no port 81; it has 80/TCP"])?;
    says(node, &["web", "--from", "pod/none"], 2, &["error: there is no pod default/none on this node"])?;
    says(node, &["web", "--from", "somebody"], 64, &["expected pod/NAMESPACE/NAME, pod/NAME, node or an IP address"])?;
    let (code, json) = explain(node, &["elsewhere", "-o", "json"])?;
    let json: Value = serde_json::from_str(&json).with_context(|| json.clone())?;
    let outside = &json["ports"][0]["endpoints"][0]["outside"]["reason"];
    ensure!(code == Some(1) && json["passes"] == false && outside == "elsewhere", "{json:#}");
    std::fs::remove_file(node.manifests().join("unserved.yaml"))?;
    eventually(SHORT, "the Service to be unknown again", async || says(node, &["nobody"], 2, &["there is no Service"]))
        .await
}
