//! Tables and descriptions in kubectl's shape. Pure.

use std::fmt::Write;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::GetKind;
use crate::cri::Nanos;
use crate::event::ring::Record;

/// Objects as a table.
pub fn table(kind: GetKind, items: &[Value], wide: bool, now: Nanos) -> String {
    if items.is_empty() {
        return "No resources found.\n".into();
    }
    let rows: Vec<Vec<String>> = match kind {
        GetKind::Pods => items.iter().map(|item| pod_row(item, wide, now)).collect(),
        GetKind::Services => items.iter().map(|item| service_row(item, wide, now)).collect(),
        GetKind::Endpoints => items.iter().map(|item| slice_row(item, now)).collect(),
    };
    let mut head: Vec<&str> = match kind {
        GetKind::Pods => vec!["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"],
        GetKind::Services => vec!["NAMESPACE", "NAME", "TYPE", "CLUSTER-IP", "PORT(S)", "AGE"],
        GetKind::Endpoints => vec!["NAMESPACE", "NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"],
    };
    match (kind, wide) {
        (GetKind::Pods, true) => head.extend(["IP", "NODE"]),
        (GetKind::Services, true) => head.push("SELECTOR"),
        _ => {}
    }
    layout(&head, &rows)
}

pub(super) fn layout(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let line = |cells: Vec<&str>, out: &mut String| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(text, "{cell:<width$}   ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(head.to_vec(), &mut out);
    for row in rows {
        line(row.iter().map(String::as_str).collect(), &mut out);
    }
    out
}

/// An object of what the agent answered. Through text, because each further way to read a Pod is half a MiB of generated
/// code, and reading from text is there already.
pub fn typed<T: DeserializeOwned>(item: &Value) -> serde_json::Result<T> {
    serde_json::from_str(&item.to_string())
}

fn text(item: &Value, pointer: &str) -> String {
    item.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

/// Seconds as kubectl shows an age: two units while small, then one.
pub fn age(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..120 => format!("{s}s"),
        120..600 if s % 60 != 0 => format!("{}m{}s", s / 60, s % 60),
        120..10_800 => format!("{}m", s / 60),
        10_800..28_800 if s / 60 % 60 != 0 => format!("{}h{}m", s / 3600, s / 60 % 60),
        10_800..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

fn created(item: &Value, now: Nanos) -> String {
    let at = [text(item, "/metadata/creationTimestamp"), text(item, "/status/startTime")];
    let at = at.iter().find(|t| !t.is_empty()).and_then(|t| t.parse::<k8s_openapi::jiff::Timestamp>().ok());
    at.map_or_else(|| "<unknown>".into(), |t| age(now / 1_000_000_000 - t.as_second()))
}

fn pod_row(item: &Value, wide: bool, now: Nanos) -> Vec<String> {
    let pod: Pod = typed(item).unwrap_or_default();
    let statuses: Vec<&ContainerStatus> =
        pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).collect();
    let total = pod.spec.as_ref().map_or(0, |s| s.containers.len());
    let ready = statuses.iter().filter(|s| s.ready).count();
    let restarts: i32 = statuses.iter().map(|s| s.restart_count).sum();
    let ended = statuses.iter().filter_map(|s| s.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let last = ended.map(|t| t.0.as_second()).max().filter(|_| restarts > 0);
    let restarts = match last {
        Some(at) => format!("{restarts} ({} ago)", age(now / 1_000_000_000 - at)),
        None => restarts.to_string(),
    };
    let mut row = vec![
        text(item, "/metadata/namespace"),
        text(item, "/metadata/name"),
        format!("{ready}/{total}"),
        pod_status(&pod),
        restarts,
        created(item, now),
    ];
    if wide {
        row.push(or_none(text(item, "/status/podIP")));
        row.push(or_none(text(item, "/spec/nodeName")));
    }
    row
}

/// The word in the STATUS column: the most telling reason, else the phase.
pub fn pod_status(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "Pending".into() };
    let phase = status.phase.clone().unwrap_or_else(|| "Pending".into());
    let mut word = status.reason.clone().unwrap_or(phase);
    let inits = status.init_container_statuses.as_deref().unwrap_or_default();
    let is_sidecar = |name: &str| {
        let spec = pod.spec.as_ref();
        spec.is_some_and(|s| {
            s.init_containers.iter().flatten().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
        })
    };
    for (index, init) in inits.iter().enumerate() {
        let done = init.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
        if done || (is_sidecar(&init.name) && init.started == Some(true)) {
            continue;
        }
        let reason = reason_of(init).filter(|r| r != "PodInitializing");
        return reason.map_or_else(|| format!("Init:{index}/{}", inits.len()), |r| format!("Init:{r}"));
    }
    for container in status.container_statuses.iter().flatten() {
        if let Some(reason) = reason_of(container) {
            word = reason;
        }
    }
    let deleted = pod.metadata.deletion_timestamp.is_some();
    if deleted { "Terminating".into() } else { word }
}

fn reason_of(status: &ContainerStatus) -> Option<String> {
    let state = status.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        return waiting.reason.clone();
    }
    let ended = state.terminated.as_ref()?;
    ended.reason.clone().or_else(|| Some(format!("ExitCode:{}", ended.exit_code)))
}

fn service_row(item: &Value, wide: bool, now: Nanos) -> Vec<String> {
    let ports = item.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let port = |p: &Value| {
        let number = |key: &str| p.get(key).and_then(Value::as_u64).filter(|n| *n > 0);
        let protocol = p.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        let node_port = number("nodePort").map(|n| format!(":{n}")).unwrap_or_default();
        format!("{}{node_port}/{protocol}", number("port").unwrap_or(0))
    };
    let kind = text(item, "/spec/type");
    let mut row = vec![
        text(item, "/metadata/namespace"),
        text(item, "/metadata/name"),
        if kind.is_empty() { "ClusterIP".into() } else { kind },
        or_none(text(item, "/spec/clusterIP")),
        or_none(ports.iter().map(port).collect::<Vec<_>>().join(",")),
        created(item, now),
    ];
    if wide {
        let selector = item.pointer("/spec/selector").and_then(Value::as_object).cloned().unwrap_or_default();
        let pairs = selector.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()));
        row.push(or_none(pairs.collect::<Vec<_>>().join(",")));
    }
    row
}

fn slice_row(item: &Value, now: Nanos) -> Vec<String> {
    let array = |pointer: &str| item.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let ports: Vec<String> =
        array("/ports").iter().filter_map(|p| p.get("port").and_then(Value::as_u64)).map(|n| n.to_string()).collect();
    let endpoints: Vec<String> = array("/endpoints")
        .iter()
        .flat_map(|endpoint| {
            let ready = endpoint.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true);
            let addresses = endpoint.get("addresses").and_then(Value::as_array).cloned().unwrap_or_default();
            let mark = if ready { "" } else { " (not ready)" };
            addresses.into_iter().filter_map(move |a| Some(format!("{}{mark}", a.as_str()?)))
        })
        .collect();
    vec![
        text(item, "/metadata/namespace"),
        text(item, "/metadata/name"),
        text(item, "/addressType"),
        or_none(ports.join(",")),
        or_none(endpoints.join(",")),
        created(item, now),
    ]
}

/// A pod in detail.
pub fn describe(pod: &Pod, events: &[Record], now: Nanos) -> String {
    let mut out = String::new();
    let (meta, status) = (&pod.metadata, pod.status.clone().unwrap_or_default());
    let mut field = |name: &str, value: Option<&str>| {
        let _ = writeln!(out, "{:<18}{}", format!("{name}:"), value.filter(|v| !v.is_empty()).unwrap_or("<none>"));
    };
    field("Name", meta.name.as_deref());
    field("Namespace", meta.namespace.as_deref());
    field("UID", meta.uid.as_deref());
    field("Node", pod.spec.as_ref().and_then(|s| s.node_name.as_deref()));
    field("Status", Some(&pod_status(pod)));
    field("Phase", status.phase.as_deref());
    field("Reason", status.reason.as_deref());
    field("Message", status.message.as_deref());
    field("QoS Class", status.qos_class.as_deref());
    let ips: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    field("IPs", Some(&ips.join(", ")));
    for (title, statuses) in [
        ("Init Containers", &status.init_container_statuses),
        ("Containers", &status.container_statuses),
        ("Ephemeral Containers", &status.ephemeral_container_statuses),
    ] {
        if let Some(statuses) = statuses {
            let _ = writeln!(out, "{title}:");
            statuses.iter().for_each(|s| describe_container(s, &mut out));
        }
    }
    out.push_str("Conditions:\n");
    for condition in status.conditions.iter().flatten() {
        let why = condition.message.as_deref().or(condition.reason.as_deref()).unwrap_or_default();
        let _ = writeln!(out, "  {:<28}{:<8}{why}", condition.type_, condition.status);
    }
    out.push_str("Events:\n");
    if events.is_empty() {
        out.push_str("  <none>\n");
    }
    for event in events {
        let ago = age((now - event.last) / 1_000_000_000);
        let times = if event.count > 1 { format!("{ago} (x{})", event.count) } else { ago };
        let _ = writeln!(out, "  {:<8}{:<24}{:<14}{}", event.kind, event.reason, times, event.message);
    }
    out
}

fn describe_container(status: &ContainerStatus, out: &mut String) {
    let _ = writeln!(out, "  {}:", status.name);
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(out, "    {:<18}{value}", format!("{name}:"));
    };
    field("Container ID", status.container_id.as_deref().unwrap_or("<none>"));
    field("Image", &status.image);
    field("Image ID", &status.image_id);
    let state = status.state.clone().unwrap_or_default();
    if let Some(running) = &state.running {
        let since = running.started_at.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
        field("State", &format!("Running since {since}"));
    } else if let Some(ended) = &state.terminated {
        field(
            "State",
            &format!("Terminated: {} (exit code {})", ended.reason.as_deref().unwrap_or("?"), ended.exit_code),
        );
    } else if let Some(waiting) = &state.waiting {
        let message = waiting.message.as_deref().map(|m| format!(": {m}")).unwrap_or_default();
        field("State", &format!("Waiting: {}{message}", waiting.reason.as_deref().unwrap_or("?")));
    }
    if let Some(ended) = status.last_state.as_ref().and_then(|s| s.terminated.as_ref()) {
        field(
            "Last State",
            &format!("Terminated: {} (exit code {})", ended.reason.as_deref().unwrap_or("?"), ended.exit_code),
        );
    }
    field("Ready", &status.ready.to_string());
    field("Restart Count", &status.restart_count.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_shown_with_the_reason_that_tells_most() {
        let pod = |status: Value| json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"containers": [{"name": "a"}]}, "status": status});
        let crash = pod(
            json!({"phase": "Running", "podIP": "10.0.0.1", "startTime": "1970-01-01T00:00:00Z", "containerStatuses": [
            {"name": "a", "ready": false, "restartCount": 3, "image": "i", "imageID": "",
             "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
        );
        let out = table(GetKind::Pods, &[crash], true, 200_000_000_000);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
        );
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["default", "web", "0/1", "CrashLoopBackOff", "3", "3m20s", "10.0.0.1", "<none>"]
        );
    }

    #[test]
    fn ages_are_kubectls() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3600, "60m"),
            (11_000, "3h3m"),
            (90_000, "25h"),
            (400_000, "4d"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
