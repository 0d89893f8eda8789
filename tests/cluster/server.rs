//! The kubelet API as people use it: through the API server, with the real kubectl. Its certificate is one that the cluster
//! signs, and the agent logs all that it can, so that at the end nothing of a Secret may be found in it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use harness::containerd::{Cni, Version};
use harness::control_plane::ControlPlane;
use harness::eventually::eventually;
use harness::node::Node;

use crate::secrets;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: default}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
  - name: talker
    image: localhost/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'trap exit TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2 & wait $!; done']
  - name: cat
    image: localhost/busybox:1
    imagePullPolicy: Never
    stdin: true
    command: [sh, -c, 'trap exit TERM; while read -r word; do echo "heard $word"; done; sleep 3600 & wait $!']
  - name: web
    image: localhost/echo:v1
    imagePullPolicy: Never
    env:
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: canary, key: password}}}
    volumeMounts: [{name: secret, mountPath: /secret}]
  imagePullSecrets: [{name: registry}]
  volumes: [{name: secret, secret: {secretName: canary}}]
"#;

fn output(command: &mut Command) -> anyhow::Result<String> {
    let done = command.output()?;
    let error = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?}: {}: {error}", done.status);
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

async fn start(plane: &ControlPlane) -> anyhow::Result<Node> {
    let mut node = Node::on_lan(plane, 11, Version::V1_6, Cni::Bridge, "10.244.0.0/24").await?;
    node.extra_configuration = "serverTLSBootstrap: true\nlogging: {verbosity: 9}\n".to_owned();
    node.run_joined(plane, "n1")?;
    let manifest = node.path("pod.yaml");
    std::fs::write(&manifest, POD)?;
    let file = manifest.display().to_string();
    // The node registers while its pods start already: streams find it only then.
    eventually(Duration::from_secs(30), "the node", async || output(&mut plane.kubectl(&["get", "node", "n1"])?))
        .await?;
    the_serving_certificate_is_signed_by_the_cluster(plane, &node).await?;
    secrets::make(plane, &node)?;
    output(&mut plane.kubectl(&["apply", "-f", &file])?)?;
    output(&mut plane.kubectl(&["wait", "--for=condition=Ready", "pod/p", "--timeout=60s"])?)
        .with_context(|| node.agent.as_ref().map(|agent| agent.log_tail()).unwrap_or_default())?;
    Ok(node)
}

/// kubectl's default protocol, and SPDY from end to end.
const PROTOCOLS: [(&str, &str); 2] = [("WebSocket", "true"), ("SPDY", "false")];

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_works_through_the_kubelet_api() -> anyhow::Result<()> {
    let plane = ControlPlane::start(&["n1"]).await?;
    let mut node = start(&plane).await?;
    logs(&plane)?;
    for (protocol, websockets) in PROTOCOLS {
        exec(&plane, websockets).context(protocol)?;
        attach(&plane, websockets).context(protocol)?;
        copy(&plane, websockets, &node).context(protocol)?;
        port_forward(&plane, websockets).await.context(protocol)?;
        terminal(&plane, &node, websockets).context(protocol)?;
    }
    raw(&plane)?;
    figures(&plane)?;
    debug(&plane).await?;
    logs_of_the_life_before(&plane).await?;
    a_pod_that_does_not_fit_is_refused_with_the_reason(&plane, &node).await?;
    callers_are_checked(&plane, &node).await?;
    secrets::of_the_wrong_shape_are_complained_about(&plane).await?;
    secrets::are_nowhere(&plane, &node)?;
    node.agent()?.stop().await
}

fn logs(plane: &ControlPlane) -> anyhow::Result<()> {
    let mut follow = plane.kubectl(&["logs", "-f", "p", "-c", "talker", "--tail=1"])?;
    let mut process = follow.stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(process.stdout.take().context("stdout")?).lines();
    let seen: Vec<String> = lines.take(5).collect::<Result<_, _>>()?;
    process.kill()?;
    process.wait()?;
    let number = |line: &String| line.trim_start_matches("line ").parse::<u64>().unwrap_or(0);
    ensure!(seen.windows(2).all(|pair| number(&pair[1]) == number(&pair[0]) + 1), "lines are lost: {seen:?}");
    let two = output(&mut plane.kubectl(&["logs", "p", "-c", "talker", "--tail=2"])?)?;
    ensure!(two.lines().count() == 2 && two.starts_with("line "), "{two}");
    let stamped = output(&mut plane.kubectl(&["logs", "p", "-c", "talker", "--tail=1", "--timestamps"])?)?;
    ensure!(stamped.contains("T") && stamped.contains("Z line "), "{stamped}");
    let refused = plane.kubectl(&["logs", "p", "-c", "talker", "--previous"])?.output()?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(text.contains("previous terminated container \"talker\" in pod \"p\" not found"), "{text}");
    Ok(())
}

fn exec(plane: &ControlPlane, websockets: &str) -> anyhow::Result<()> {
    let run = |words: &[&str]| -> anyhow::Result<Command> {
        let mut command = plane.kubectl(words)?;
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        Ok(command)
    };
    let out = output(&mut run(&["exec", "p", "-c", "talker", "--", "sh", "-c", "echo out; echo err >&2; exit 0"])?)?;
    ensure!(out == "out\n", "{out:?}");
    let failed = run(&["exec", "p", "-c", "talker", "--", "sh", "-c", "exit 7"])?.output()?;
    ensure!(failed.status.code() == Some(7), "{failed:?}");
    let mut command = run(&["exec", "-i", "p", "-c", "talker", "--", "cat"])?;
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut stdin = process.stdin.take().context("stdin")?;
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let mut received = Vec::new();
    process.stdout.take().context("stdout")?.read_to_end(&mut received)?;
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    ensure!(process.wait()?.success() && received == sent, "{} of {} bytes came back", received.len(), sent.len());
    Ok(())
}

fn attach(plane: &ControlPlane, websockets: &str) -> anyhow::Result<()> {
    let mut command = plane.kubectl(&["attach", "-i", "p", "-c", "cat"])?;
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut stdin = process.stdin.take().context("stdin")?;
    stdin.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(process.stdout.take().context("stdout")?).read_line(&mut line)?;
    // stdin stays open until here: its end would end the container's.
    process.kill()?;
    process.wait()?;
    drop(stdin);
    ensure!(line == "heard hello\n", "{line:?}");
    Ok(())
}

fn copy(plane: &ControlPlane, websockets: &str, node: &Node) -> anyhow::Result<()> {
    let (there, back) = (node.path("there"), node.path("back"));
    std::fs::write(&there, "copied")?;
    for (from, to) in
        [(there.display().to_string(), "p:/tmp/file".into()), ("p:/tmp/file".into(), back.display().to_string())]
    {
        let from: String = from;
        let mut command = plane.kubectl(&["cp", "-c", "talker", &from, &to])?;
        output(command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets))?;
    }
    ensure!(std::fs::read_to_string(back)? == "copied");
    Ok(())
}

async fn port_forward(plane: &ControlPlane, websockets: &str) -> anyhow::Result<()> {
    let mut command = plane.kubectl(&["port-forward", "pod/p", ":8080"])?;
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    // kept open to the end: kubectl writes a line for each connection, and a closed pipe would end it
    let mut stdout = BufReader::new(process.stdout.take().context("stdout")?);
    stdout.read_line(&mut line)?;
    let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).context(line.clone())?;
    let address = format!("127.0.0.1:{port}").parse()?;
    let answer = harness::http::get(plane.lan().netns(), address, "/version");
    process.kill()?;
    let log = process.wait_with_output()?;
    let log = String::from_utf8_lossy(&log.stderr).into_owned();
    let answer = answer.with_context(|| log);
    ensure!(answer?.contains("v1"), "no answer through the forwarded port");
    Ok(())
}

/// What metrics-server, Prometheus and `kubectl top` read, through the API server's proxy to the node.
fn raw(plane: &ControlPlane) -> anyhow::Result<()> {
    let get = |path: &str| output(&mut plane.kubectl(&["get", "--raw", &format!("/api/v1/nodes/n1/proxy{path}")])?);
    ensure!(get("/healthz")? == "ok");
    let summary: serde_json::Value = serde_json::from_str(&get("/stats/summary")?)?;
    let pods = summary["pods"].as_array().context("pods")?;
    let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "p").context("pod p is not in the summary")?;
    ensure!(pod["containers"].as_array().is_some_and(|all| all.len() == 3), "{pod:#}");
    ensure!(pod["containers"][0]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{pod:#}");
    let talker = pod["containers"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "talker"));
    let written = talker.and_then(|talker| talker["logs"]["usedBytes"].as_u64());
    ensure!(written.is_some_and(|bytes| bytes > 0), "{pod:#}");
    ensure!(summary["node"]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{summary:#}");
    disks_and_system_containers(&summary, pod)?;
    let resource = get("/metrics/resource")?;
    for wanted in [
        "container_cpu_usage_seconds_total{container=\"web\",namespace=\"default\",pod=\"p\"}",
        "resource_scrape_error 0",
    ] {
        ensure!(resource.contains(wanted), "no {wanted} in {resource}");
    }
    let cadvisor = get("/metrics/cadvisor")?;
    let has = |start: &str, parts: &[&str]| {
        cadvisor.lines().any(|line| line.starts_with(start) && parts.iter().all(|part| line.contains(part)))
    };
    for (start, parts) in [
        ("container_memory_working_set_bytes{container=\"web\"", &["pod=\"p\"", "image=\"localhost/echo:v1\""][..]),
        ("container_memory_working_set_bytes{container=\"\",id=\"/\"", &[]),
        ("container_cpu_usage_seconds_total{container=\"\",cpu=\"total\"", &["kubepods\",image=\"\",name=\"\""]),
        ("container_network_receive_bytes_total{container=\"\"", &["interface=\"eth0\"", "pod=\"p\""]),
        ("machine_cpu_cores{boot_id=\"", &[]),
    ] {
        ensure!(has(start, parts), "no {start} {parts:?} in {cadvisor}");
    }
    for (path, what) in [("/stats/container", "not find"), ("/logs/syslog", "does not allow this method")] {
        let refused = plane.kubectl(&["get", "--raw", &format!("/api/v1/nodes/n1/proxy{path}")])?.output()?;
        let text = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && text.contains(what), "{path}: {text}");
    }
    let config: serde_json::Value = serde_json::from_str(&get("/configz")?)?;
    let config = &config["kubeletconfig"];
    ensure!(config["kind"] == "KubeletConfiguration" && config["serverTLSBootstrap"] == true, "{config:#}");
    ensure!(config["maxPods"] == 110 && config["imageMinimumGCAge"] == "2m0s", "defaults are filled in: {config:#}");
    let pods: serde_json::Value = serde_json::from_str(&get("/pods")?)?;
    let items = pods["items"].as_array().into_iter().flatten();
    ensure!(items.map(|pod| &pod["metadata"]["name"]).any(|name| name == "p"), "{pods:#}");
    Ok(())
}

/// Volumes as they were walked, and what the agent and all pods use by the kernel's own count.
fn disks_and_system_containers(summary: &serde_json::Value, pod: &serde_json::Value) -> anyhow::Result<()> {
    let secret = pod["volume"].as_array().and_then(|all| all.iter().find(|volume| volume["name"] == "secret"));
    let secret = secret.with_context(|| format!("no volume in {pod:#}"))?;
    for field in ["usedBytes", "capacityBytes", "availableBytes", "inodesUsed"] {
        ensure!(secret[field].as_u64().is_some_and(|amount| amount > 0), "{field}: {secret:#}");
    }
    ensure!(pod["ephemeral-storage"]["usedBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{pod:#}");
    let system = summary["node"]["systemContainers"].as_array().context("systemContainers")?;
    let pods = system.iter().find(|one| one["name"] == "pods").with_context(|| format!("{system:#?}"))?;
    ensure!(pods["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{pods:#}");
    ensure!(pods["cpu"]["usageCoreNanoSeconds"].as_u64().is_some_and(|nanos| nanos > 0), "{pods:#}");
    Ok(())
}

/// The request of `serverTLSBootstrap` waits for somebody to approve it; then whoever trusts the cluster trusts the node.
async fn the_serving_certificate_is_signed_by_the_cluster(plane: &ControlPlane, node: &Node) -> anyhow::Result<()> {
    let words = ["get", "csr", "-o", "jsonpath={range .items[*]}{.metadata.name} {.spec.signerName}{'\\n'}{end}"];
    let name = eventually(Duration::from_secs(20), "the request", async || {
        let all = output(&mut plane.kubectl(&words)?)?;
        let line = all.lines().find(|line| line.ends_with("kubernetes.io/kubelet-serving"));
        Ok::<_, anyhow::Error>(line.and_then(|line| line.split(' ').next()).context(all.clone())?.to_owned())
    })
    .await?;
    output(&mut plane.kubectl(&["certificate", "approve", &name])?)?;
    let ca = plane.ca().display().to_string();
    eventually(Duration::from_secs(20), "the signed certificate to be served", async || {
        let mut command = Command::new("curl");
        command.args(["-s", "--cacert", &ca, "--max-time", "5", "https://10.89.0.11:10250/healthz"]);
        let answer = output(node.netns().enter(&mut command))?;
        ensure!(answer == "Unauthorized", "{answer}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// A terminal in the container has the size of the one outside, also after that changed.
fn terminal(plane: &ControlPlane, node: &Node, websockets: &str) -> anyhow::Result<()> {
    let until = |size: &str, word: &str| {
        format!("until stty size 2>/dev/null | grep -q '{size}'; do sleep 0.1; done; echo {word}; ")
    };
    // The command itself is in the file's head, so the words must not be in it as they are printed.
    let inside = until("33 44", "fi\"\"rst") + &until("20 90", "sec\"\"ond");
    let kubectl = plane.kubectl(&["exec", "-it", "p", "-c", "talker", "--", "sh", "-c", &inside])?;
    let words: Vec<String> = std::iter::once(kubectl.get_program())
        .chain(kubectl.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''")))
        .collect();
    // The other size comes from a process beside kubectl, on the same terminal, once the first one was seen.
    let seen = node.path("terminal").display().to_string();
    std::fs::write(&seen, "")?;
    let resize = format!("(until grep -q 'fi[r]st' {seen}; do sleep 0.1; done; stty rows 20 cols 90 </dev/tty)");
    let line = format!("stty rows 33 cols 44; {resize} & {}", words.join(" "));
    let mut timed = Command::new("timeout");
    timed.args(["20", "script", "-qfec", &line, &seen]).env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    for (name, value) in kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        timed.env(name, value);
    }
    plane.lan().netns().enter(&mut timed);
    let shown = output(timed.stdin(Stdio::null()))?;
    ensure!(shown.contains("first") && shown.contains("second"), "{shown:?}");
    Ok(())
}

/// Metrics as a parser reads them that forgives nothing, with the names that dashboards ask for.
fn figures(plane: &ControlPlane) -> anyhow::Result<()> {
    let get = |path: &str| output(&mut plane.kubectl(&["get", "--raw", &format!("/api/v1/nodes/n1/proxy{path}")])?);
    for (path, names) in [
        ("/metrics", &FIGURES[..]),
        (
            "/metrics/resource",
            &["container_start_time_seconds", "node_cpu_usage_seconds_total", "pod_memory_working_set_bytes"],
        ),
        ("/metrics/cadvisor", &CONTAINERS),
        ("/metrics/slis", &["kubernetes_healthcheck"]),
    ] {
        let text = get(path)?;
        let families = parsed(&text).with_context(|| path.to_owned())?;
        for name in names {
            ensure!(families.contains(*name), "{path} has no {name}: {text}");
        }
    }
    Ok(())
}

const FIGURES: [&str; 24] = [
    "storage_operation_duration_seconds",
    "volume_manager_total_volumes",
    "kubelet_node_name",
    "kubelet_mirror_pods",
    "kubelet_working_pods",
    "kubelet_running_pods",
    "kubelet_running_containers",
    "kubelet_desired_pods",
    "kubelet_pod_start_duration_seconds",
    "kubelet_pod_start_sli_duration_seconds",
    "kubelet_pod_worker_duration_seconds",
    "kubelet_pod_worker_start_duration_seconds",
    "kubelet_pod_status_sync_duration_seconds",
    "kubelet_runtime_operations_total",
    "kubelet_runtime_operations_duration_seconds",
    "kubelet_run_podsandbox_duration_seconds",
    "kubelet_started_pods_total",
    "kubelet_started_containers_total",
    "kubelet_certificate_manager_client_ttl_seconds",
    "kubelet_certificate_manager_server_ttl_seconds",
    "kubelet_http_requests_total",
    "rest_client_requests_total",
    "process_resident_memory_bytes",
    "kubernetes_build_info",
];

/// What the dashboards of kubernetes-mixin ask for, as far as the pod gives cause for it.
const CONTAINERS: [&str; 18] = [
    "container_cpu_usage_seconds_total",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_working_set_bytes",
    "container_network_receive_packets_dropped_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_packets_total",
    "container_processes",
    "container_spec_cpu_period",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_start_time_seconds",
    "machine_memory_bytes",
];

/// Families of a text, each with one head before its samples, and every sample with a number.
fn parsed(text: &str) -> anyhow::Result<std::collections::BTreeSet<String>> {
    let mut families = std::collections::BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let (name, kind) = head.split_once(' ').context(line.to_owned())?;
            ensure!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            ensure!(families.insert(name.to_owned()), "{name} has two heads");
            current = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let end = line.find(['{', ' ']).context(line.to_owned())?;
            let (name, rest) = line.split_at(end);
            let suffix = name.strip_prefix(&current).context(line.to_owned())?;
            ensure!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            let values = rest.rsplit_once('}').map_or(rest, |(_, values)| values);
            let mut values = values.split_whitespace();
            let value: f64 = values.next().context(line.to_owned())?.parse()?;
            ensure!(!value.is_nan(), "{line}");
            values.map(str::parse::<i64>).collect::<Result<Vec<_>, _>>().with_context(|| line.to_owned())?;
        }
    }
    ensure!(text.ends_with('\n'), "the last line has no end");
    Ok(families)
}

async fn debug(plane: &ControlPlane) -> anyhow::Result<()> {
    let words = ["debug", "p", "-c", "dbg", "--image=localhost/busybox:1", "--image-pull-policy=Never", "--target=web"];
    let command = ["--", "sh", "-c", "echo here; sleep 3600"];
    output(&mut plane.kubectl(&[&words[..], &command[..]].concat())?)?;
    eventually(Duration::from_secs(20), "the ephemeral container's log", async || {
        let log = output(&mut plane.kubectl(&["logs", "p", "-c", "dbg"])?)?;
        ensure!(log == "here\n", "{log}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

async fn logs_of_the_life_before(plane: &ControlPlane) -> anyhow::Result<()> {
    output(&mut plane.kubectl(&["exec", "p", "-c", "talker", "--", "kill", "1"])?)?;
    eventually(Duration::from_secs(30), "the log of the life before", async || {
        let log = output(&mut plane.kubectl(&["logs", "p", "-c", "talker", "--previous"])?)?;
        ensure!(log.starts_with("line 1\nline 2\n"), "{log}");
        Ok::<_, anyhow::Error>(())
    })
    .await
}

/// The pod is bound to the node without the scheduler's consent.
async fn a_pod_that_does_not_fit_is_refused_with_the_reason(plane: &ControlPlane, node: &Node) -> anyhow::Result<()> {
    let file = node.path("misfit.yaml");
    let text = POD
        .replace("{name: p,", "{name: misfit,")
        .replace("  nodeName: n1", "  nodeName: n1\n  nodeSelector: {disk: ssd}");
    std::fs::write(&file, text)?;
    output(&mut plane.kubectl(&["apply", "-f", &file.display().to_string()])?)?;
    eventually(Duration::from_secs(10), "the refusal", async || {
        let words = ["get", "pod", "misfit", "-o", "jsonpath={.status.phase} {.status.reason}: {.status.message}"];
        let status = output(&mut plane.kubectl(&words)?)?;
        ensure!(status.starts_with("Failed NodeAffinity: Pod was rejected: Predicate NodeAffinity failed"), "{status}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    output(&mut plane.kubectl(&["delete", "pod", "misfit", "--timeout=20s"])?)?;
    Ok(())
}

/// Nobody is let in without credentials, and not everybody with.
async fn callers_are_checked(plane: &ControlPlane, node: &Node) -> anyhow::Result<()> {
    let ask = |token: Option<&str>, path: &str| -> anyhow::Result<String> {
        let mut command = Command::new("curl");
        command.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "10"]);
        if let Some(token) = token {
            command.args(["-H", &format!("Authorization: Bearer {token}")]);
        }
        command.arg(format!("https://10.89.0.11:10250{path}"));
        output(node.netns().enter(&mut command))
    };
    ensure!(ask(None, "/pods")? == "401");
    ensure!(ask(Some(secrets::TOKEN), "/pods")? == "401");
    ensure!(ask(None, "/there/is/no/such/path")? == "401", "a stranger learns which paths exist");
    let token = output(&mut plane.kubectl(&["create", "token", "default"])?)?;
    ensure!(ask(Some(token.trim()), "/pods")? == "403");
    output(&mut plane.kubectl(&["create", "clusterrole", "reader", "--verb=get", "--resource=nodes/metrics"])?)?;
    let binding =
        ["create", "clusterrolebinding", "reader", "--clusterrole=reader", "--serviceaccount=default:default"];
    output(&mut plane.kubectl(&binding)?)?;
    eventually(Duration::from_secs(10), "the role to be seen", async || {
        let code = ask(Some(token.trim()), "/metrics/resource")?;
        ensure!(code == "200", "{code}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    ensure!(ask(Some(token.trim()), "/stats/summary")? == "403", "a right to one subresource is a right to another");
    ensure!(ask(Some(token.trim()), "/exec/default/p/talker?command=id&output=1")? == "403");
    Ok(())
}
