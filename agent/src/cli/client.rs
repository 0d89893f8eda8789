//! The commands that ask a running agent.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::net::UnixStream;

use super::{DataFormat, ExplainServiceArgs, Format, GcArgs, GcFormat, GetArgs, GetKind, LogsArgs, gc as shown, print};
use crate::control::SOCKET;
use crate::event::ring::Record;
use crate::garbage::report::Report;
use crate::service::explain::{self, ask::Target};

async fn ask(state_dir: &Path, path: &str) -> anyhow::Result<hyper::Response<Incoming>> {
    request(state_dir, Method::GET, path).await
}

async fn request(state_dir: &Path, method: Method, path: &str) -> anyhow::Result<hyper::Response<Incoming>> {
    let socket = state_dir.join(SOCKET);
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!("no agent answers at {}; is `nodelet run` up, and does it use this --state-dir?", socket.display())
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header("host", "nodelet").body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    if answer.status().is_success() {
        return Ok(answer);
    }
    let text = answer.into_body().collect().await?.to_bytes();
    bail!("{}", String::from_utf8_lossy(&text).trim_end());
}

async fn fetch<T: serde::de::DeserializeOwned>(state_dir: &Path, path: &str) -> anyhow::Result<T> {
    decode(ask(state_dir, path).await?).await
}

async fn decode<T: serde::de::DeserializeOwned>(answer: hyper::Response<Incoming>) -> anyhow::Result<T> {
    let body = answer.into_body().collect().await?.to_bytes();
    serde_json::from_slice(&body).context("the agent's answer is not understood; do both have the same version?")
}

/// `nodelet gc`. Fails when something could not be looked at or removed.
pub async fn gc(state_dir: &Path, args: &GcArgs) -> anyhow::Result<ExitCode> {
    let method = if args.dry_run { Method::GET } else { Method::POST };
    let path = args.free.map_or_else(|| "/garbage".to_owned(), |bytes| format!("/garbage?free={bytes}"));
    let report: Report = decode(request(state_dir, method, &path).await?).await?;
    let out = match args.output {
        Some(GcFormat::Json) => serde_json::to_string_pretty(&report)? + "\n",
        None => shown::text(&report),
    };
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Exit code of `explain` where there is no answer; 1 says that traffic does not pass.
const NO_ANSWER: u8 = 2;

/// `nodelet explain service`. The exit code says whether traffic passes.
pub async fn explain_service(state_dir: &Path, args: &ExplainServiceArgs) -> anyhow::Result<ExitCode> {
    let report = match explained(state_dir, args).await {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(NO_ANSWER));
        }
    };
    let out = match args.output {
        Some(DataFormat::Json) => serde_json::to_string_pretty(&report)? + "\n",
        Some(DataFormat::Yaml) => serde_saphyr::to_string(&report)?,
        None => explain::text::text(&report),
    };
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(if report.passes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn explained(state_dir: &Path, args: &ExplainServiceArgs) -> anyhow::Result<explain::Report> {
    let Target { namespace, name, port } = &args.service;
    let namespace = namespace.as_ref().unwrap_or(&args.namespace);
    let mut path = format!("/explain/service?namespace={namespace}&name={name}");
    let port = port.as_ref().map(|port| ("port", port.to_string()));
    let protocol = args.protocol.map(|protocol| ("protocol", format!("{protocol:?}")));
    let from = args.from.as_ref().map(|from| ("from", from.to_string()));
    for (key, value) in [port, protocol, from].into_iter().flatten() {
        path += &format!("&{key}={value}");
    }
    fetch(state_dir, &path).await
}

/// Tells on standard error what is wrong with the node: what was asked for may be as it was before.
async fn warn_of_troubles(state_dir: &Path) {
    match fetch::<Vec<String>>(state_dir, "/troubles").await {
        Ok(troubles) => troubles.iter().for_each(|trouble| eprintln!("warning: {trouble}")),
        Err(error) => eprintln!("warning: {error:#}"),
    }
}

/// `nodelet get`.
pub async fn get(state_dir: &Path, args: &GetArgs) -> anyhow::Result<ExitCode> {
    let path = match args.kind {
        GetKind::Pods => "/pods",
        GetKind::Services => "/services",
        GetKind::Endpoints => "/endpointslices",
    };
    let mut list: Value = fetch(state_dir, path).await?;
    let mut items = list.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |item: &Value, key: &str| {
        item.pointer(&format!("/metadata/{key}")).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    items.retain(|item| args.namespace.as_ref().is_none_or(|ns| text(item, "namespace") == *ns));
    items.retain(|item| args.name.as_ref().is_none_or(|name| text(item, "name") == *name));
    items.sort_by_key(|item| (text(item, "namespace"), text(item, "name")));
    if let Some(name) = args.name.as_ref().filter(|_| items.is_empty()) {
        bail!("{} \"{name}\" not found", path.trim_start_matches('/'));
    }
    let out = match args.output {
        Some(Format::Json | Format::Yaml) => {
            if let Some(slot) = list.get_mut("items") {
                *slot = Value::Array(items);
            }
            match args.output {
                Some(Format::Json) => serde_json::to_string_pretty(&list)? + "\n",
                _ => serde_saphyr::to_string(&list)?,
            }
        }
        wide => print::table(args.kind, &items, wide.is_some(), crate::pod::shared::now()),
    };
    warn_of_troubles(state_dir).await;
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// `nodelet logs`.
pub async fn logs(state_dir: &Path, args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let mut path = format!(
        "/logs/{}/{}?follow={}&timestamps={}&previous={}",
        args.namespace, args.pod, args.follow, args.timestamps, args.previous
    );
    if let Some(container) = &args.container {
        path += &format!("&container={container}");
    }
    if let Some(tail) = args.tail {
        path += &format!("&tail={tail}");
    }
    if let Some(since) = args.since {
        path += &format!("&since={}", since.as_secs());
    }
    if let Some(limit) = args.limit_bytes {
        path += &format!("&limit={limit}");
    }
    let mut body = ask(state_dir, &path).await?.into_body();
    let mut out = std::io::stdout().lock();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            out.write_all(&data)?;
            out.flush()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `nodelet describe pod`.
pub async fn describe_pod(state_dir: &Path, namespace: &str, name: &str) -> anyhow::Result<ExitCode> {
    let list: Value = fetch(state_dir, "/pods").await?;
    let pods: Vec<Pod> = list.get("items").map(print::typed).transpose()?.unwrap_or_default();
    let found = pods
        .into_iter()
        .find(|pod| pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name));
    let Some(pod) = found else { bail!("pod {namespace}/{name} not found on this node") };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let events: Vec<Record> = fetch(state_dir, &format!("/events/{uid}")).await?;
    print!("{}", print::describe(&pod, &events, crate::pod::shared::now()));
    Ok(ExitCode::SUCCESS)
}
