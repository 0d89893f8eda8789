//! Answers of the kubelet API.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt as _, stream};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::review::{Reviewer, User};
use super::route::{self, NoRoute, Route, Target};
use super::usage::Meter;
use super::{exposition, own, summary, tunnel};
use crate::control::View;
use crate::cri::client::kubelet_api::Streams;
use crate::cri::{CriError, Known, Runtime};
use crate::ids::{ContainerId, PodUid};
use crate::logs::{self, choose};
use crate::metrics::METRICS;
use crate::metrics::text::{self, Text};
use crate::pod::spec;

/// A body that may be a stream.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Longest command of `/run`.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// What the API works with.
pub struct Api {
    /// Name of the node.
    pub node: String,
    /// Pods, statuses and where logs are.
    pub view: Arc<dyn View>,
    /// The runtime.
    pub runtime: Runtime,
    /// Measures usage.
    pub meter: Meter,
    /// Decides about callers.
    pub reviewer: Reviewer,
    /// Whether callers without credentials are `system:anonymous`.
    pub anonymous: bool,
    /// When an idle stream is closed.
    pub stream_idle: Duration,
    /// The configuration in effect, for `/configz`.
    pub configz: Value,
    /// Writes what is known of probes.
    pub probes: Box<dyn Fn(&mut Text) + Send + Sync>,
    /// Version of the cgroups in use.
    pub cgroup: u8,
    /// Memory that metrics are written into, again and again.
    pub scratch: Mutex<BytesMut>,
}

/// An answer that is a refusal.
struct Refusal(StatusCode, String);

impl From<CriError> for Refusal {
    fn from(error: CriError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

type Answer = Result<Response<Body>, Refusal>;

fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}

fn answer(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn plain(status: StatusCode, content: impl Into<String>) -> Response<Body> {
    answer(status, "text/plain; charset=utf-8", content.into())
}

fn document(value: &Value) -> Response<Body> {
    answer(StatusCode::OK, "application/json", value.to_string())
}

impl Api {
    /// Answers one request of whom the certificate names.
    pub async fn answer(&self, request: Request<Incoming>, certified: Option<User>) -> Response<Body> {
        match self.checked(request, certified).await {
            Ok(response) => response,
            Err(Refusal(status, content)) => plain(status, content + "\n"),
        }
    }

    async fn checked(&self, request: Request<Incoming>, certified: Option<User>) -> Answer {
        let user = self.user(request.headers(), certified).await?;
        let access = route::access(request.method(), request.uri().path());
        let unknown =
            |error: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("Authorization error: {error}"));
        if !self.reviewer.may(&user, &access).await.map_err(unknown)? {
            let subresources = access.subresources.join(" ");
            let content = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{subresources}])",
                user.name, access.verb
            );
            return Err(Refusal(StatusCode::FORBIDDEN, content));
        }
        match route::find(request.method(), request.uri().path()) {
            Ok(route) => self.dispatch(route, request).await,
            Err(NoRoute::NotFound) => Err(Refusal(StatusCode::NOT_FOUND, "404 page not found".to_owned())),
            Err(NoRoute::WrongMethod) => {
                Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed".to_owned()))
            }
        }
    }

    /// Certificate first, then token, then nobody: kubelet's order.
    async fn user(&self, headers: &HeaderMap, certified: Option<User>) -> Result<User, Refusal> {
        let authenticated = |mut user: User| {
            let group = "system:authenticated".to_owned();
            if !user.groups.contains(&group) {
                user.groups.push(group);
            }
            user
        };
        if let Some(user) = certified {
            return Ok(authenticated(user));
        }
        let unauthorized = || Refusal(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned());
        let Some(header) = headers.get(AUTHORIZATION) else {
            let nobody = || User::new("system:anonymous".into(), vec!["system:unauthenticated".into()]);
            return if self.anonymous { Ok(nobody()) } else { Err(unauthorized()) };
        };
        let token = header.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()).filter(|token| !token.is_empty())
        });
        let token = token.ok_or_else(unauthorized)?;
        match self.reviewer.token(token).await {
            Ok(Some(user)) => Ok(authenticated(user)),
            Ok(None) => Err(unauthorized()),
            Err(error) => {
                tracing::warn!(error, "kubelet API: cannot ask about a token");
                Err(unauthorized())
            }
        }
    }

    async fn dispatch(&self, route: Route, request: Request<Incoming>) -> Answer {
        let query = route::query(request.uri().query());
        let is_set = |name: &str| {
            query.iter().any(|(found, value)| found == name && matches!(value.as_str(), "1" | "true" | "True"))
        };
        match route {
            Route::Healthz | Route::HealthCheck(_) => Ok(plain(StatusCode::OK, "ok")),
            Route::Pods => Ok(document(&pod_list(self.view.pods()))),
            Route::RunningPods => self.running_pods().await,
            Route::Configz => Ok(document(&json!({ "kubeletconfig": self.configz }))),
            Route::Summary => {
                let usage = self.meter.measure().await?;
                let summary = summary::summary(&self.node, &usage, &self.view.pods(), is_set("only_cpu_and_memory"));
                Ok(document(&summary))
            }
            Route::Metrics => Ok(self.metrics(|text| self.own_metrics(text))),
            Route::ResourceMetrics => {
                let usage = self.meter.measure().await.inspect_err(|error| tracing::warn!(%error, "/metrics/resource"));
                let pods = self.view.pods();
                Ok(self.metrics(|text| exposition::resource(text, usage.ok().as_ref(), &pods)))
            }
            Route::CadvisorMetrics => {
                let (usage, pods) = (self.meter.measure().await?, self.view.pods());
                Ok(self.metrics(|text| exposition::cadvisor(text, &usage, &pods)))
            }
            Route::ProbeMetrics => Ok(self.metrics(|text| (self.probes)(text))),
            Route::HealthMetrics => Ok(self.metrics(|text| METRICS.health.write(text))),
            Route::Logs(target) => self.logs(&target, &query),
            Route::Exec(target) => {
                let id = self.container(&target)?;
                let command = words(&query, "command");
                let url = self.runtime.exec_url(&id, command, streams(&query)?).await?;
                self.stream(request, &url).await
            }
            Route::Attach(target) => {
                let id = self.container(&target)?;
                let url = self.runtime.attach_url(&id, streams(&query)?).await?;
                self.stream(request, &url).await
            }
            Route::PortForward(target) => self.port_forward(&target, &query, request).await,
            Route::Run(target) => {
                let id = self.container(&target)?;
                let command = words(&query, "cmd").iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
                let done = self.runtime.exec(&id, command, RUN_LIMIT).await?;
                let mut output = done.stdout;
                output.extend(done.stderr);
                match done.exit_code {
                    0 => Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", output)),
                    code => {
                        let output = String::from_utf8_lossy(&output);
                        let content = format!("command terminated with exit code {code}: {output}");
                        Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, content))
                    }
                }
            }
        }
    }

    /// An answer in Prometheus' format, written into memory that is used again once the answer is sent.
    fn metrics(&self, write: impl FnOnce(&mut Text)) -> Response<Body> {
        let scratch = std::mem::take(&mut *self.scratch.lock().unwrap_or_else(PoisonError::into_inner));
        let mut text = Text::new(scratch);
        write(&mut text);
        let (content, rest) = text.finish();
        *self.scratch.lock().unwrap_or_else(PoisonError::into_inner) = rest;
        answer(StatusCode::OK, text::CONTENT_TYPE, content)
    }

    fn own_metrics(&self, text: &mut Text) {
        text.raw(&crate::health::process::metrics());
        own::write(text, &self.node, &self.view.pods(), self.cgroup);
        METRICS.write(text, Timestamp::now().as_second());
    }

    async fn running_pods(&self) -> Answer {
        let pods = self.runtime.list_pods().await?;
        let items = pods.values().map(|pod| {
            let identity = &pod.identity;
            json!({
                "metadata": { "name": identity.name, "namespace": identity.namespace, "uid": identity.uid.as_str() },
                "spec": { "containers": [] },
                "status": {},
            })
        });
        let items: Vec<Value> = items.collect();
        Ok(document(&json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })))
    }

    fn pod(&self, target: &Target) -> Result<Pod, Refusal> {
        let found = self.view.pod(&target.namespace, &target.pod);
        let found = found.filter(|pod| target.uid.as_deref().is_none_or(|uid| spec::uid(pod).as_str() == uid));
        found.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "pod does not exist".to_owned()))
    }

    /// The running container of a target.
    fn container(&self, target: &Target) -> Result<ContainerId, Refusal> {
        let pod = self.pod(target)?;
        let status = choose::statuses(&pod).find(|status| status.name == target.container);
        let running = status.filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
        let id = running.and_then(|status| Some(status.container_id.as_ref()?.split_once("://")?.1));
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("container not found (\"{}\")", target.container));
        id.map(ContainerId::new).ok_or_else(missing)
    }

    async fn port_forward(&self, target: &Target, query: &[(String, String)], request: Request<Incoming>) -> Answer {
        let pod = self.pod(target)?;
        let ports: Result<Vec<u16>, _> =
            words(query, "port").iter().flat_map(|text| text.split(',')).map(str::parse::<u16>).collect();
        let bad = |error| Refusal(StatusCode::BAD_REQUEST, format!("port: {error}; expected 1 to 65535"));
        let ports = ports.map_err(bad)?.into_iter().map(i32::from).collect();
        let runtime = self.runtime.inspect_pod(&PodUid::new(spec::uid(&pod).as_str()), &Known::default()).await?;
        let sandbox = runtime.sandbox().filter(|sandbox| sandbox.ready);
        let missing = || Refusal(StatusCode::NOT_FOUND, "the pod has no running sandbox".to_owned());
        let url = self.runtime.port_forward_url(&sandbox.ok_or_else(missing)?.id, ports).await?;
        self.stream(request, &url).await
    }

    async fn stream(&self, request: Request<Incoming>, url: &str) -> Answer {
        match tunnel::open(request, url, self.stream_idle).await {
            Ok(response) => Ok(response.map(full)),
            Err(error @ tunnel::TunnelError::NoUpgrade) => Err(Refusal(StatusCode::BAD_REQUEST, error.to_string())),
            Err(error @ (tunnel::TunnelError::Url { .. } | tunnel::TunnelError::Runtime { .. })) => {
                Err(Refusal(StatusCode::BAD_GATEWAY, error.to_string()))
            }
        }
    }

    fn logs(&self, target: &Target, query: &[(String, String)]) -> Answer {
        let missing = |_| Refusal(StatusCode::NOT_FOUND, format!("pod \"{}\" not found", target.pod));
        let pod = self.pod(target).map_err(missing)?;
        let wanted = log_query(query, Timestamp::now()).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error))?;
        let chosen = choose::choose(&pod, Some(&target.container), wanted.previous);
        let chosen = chosen.map_err(|refusal| match refusal {
            choose::Refusal::NoContainer { .. } => Refusal(StatusCode::NOT_FOUND, refusal.to_string()),
            choose::Refusal::Waiting { .. } | choose::Refusal::NoPrevious { .. } => {
                Refusal(StatusCode::BAD_REQUEST, refusal.to_string())
            }
        })?;
        let directory = self.view.log_dir().join(crate::pod::sandbox_config::log_directory_name(&pod));
        let path = directory.join(crate::pod::container_config::log_path(&chosen.container, chosen.attempt));
        let (view, key) = (self.view.clone(), spec::key(&pod));
        let ended = move || {
            let pod = view.pod(&key.namespace, &key.name);
            pod.is_none_or(|pod| !choose::runs(&pod, &chosen.container, chosen.attempt))
        };
        let (tx, rx) = mpsc::channel(4);
        tokio::spawn(logs::read(path, wanted.options, ended, tx));
        let chunks = stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|chunk| (chunk, rx)) });
        let frames = chunks.map_ok(|chunk| Frame::data(Bytes::from(chunk)));
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }
}

fn pod_list(pods: Vec<Pod>) -> Value {
    let items: Vec<Value> = pods.iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}

fn words(query: &[(String, String)], name: &str) -> Vec<String> {
    query.iter().filter(|(found, _)| found == name).map(|(_, value)| value.clone()).collect()
}

fn streams(query: &[(String, String)]) -> Result<Streams, Refusal> {
    let is_set =
        |name: &str| query.iter().any(|(found, value)| found == name && matches!(value.as_str(), "1" | "true"));
    let tty = is_set("tty");
    let streams = Streams {
        stdin: is_set("input") || is_set("stdin"),
        stdout: is_set("output") || is_set("stdout"),
        // A terminal has one output.
        stderr: (is_set("error") || is_set("stderr")) && !tty,
        tty,
    };
    if streams.stdin || streams.stdout || streams.stderr {
        return Ok(streams);
    }
    let content = "you must specify at least 1 of stdin, stdout, stderr".to_owned();
    Err(Refusal(StatusCode::BAD_REQUEST, content))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct LogQuery {
    previous: bool,
    options: logs::Options,
}

/// `PodLogOptions` as a query. Source: `v1.PodLogOptions` of the API reference.
fn log_query(query: &[(String, String)], now: Timestamp) -> Result<LogQuery, String> {
    let mut found = LogQuery::default();
    for (name, value) in query {
        let number = || value.parse::<i64>().map_err(|_| format!("{name}: {value:?} is not a number"));
        let not_negative = || {
            number().and_then(|n| u64::try_from(n).map_err(|_| format!("{name}: {n} is negative; expected 0 or more")))
        };
        let flag = || match value.as_str() {
            "true" | "1" | "" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("{name}: {other:?} is not true or false")),
        };
        match name.as_str() {
            "follow" => found.options.follow = flag()?,
            "previous" => found.previous = flag()?,
            "timestamps" => found.options.timestamps = flag()?,
            "tailLines" => found.options.tail = Some(usize::try_from(not_negative()?).unwrap_or(usize::MAX)),
            "limitBytes" => found.options.limit = Some(not_negative()?),
            "sinceSeconds" => {
                let seconds = i64::try_from(not_negative()?).unwrap_or(i64::MAX);
                let since = now.checked_sub(SignedDuration::from_secs(seconds));
                found.options.since = since.ok().or(found.options.since);
            }
            "sinceTime" => {
                let since: Timestamp = value
                    .parse()
                    .map_err(|_| format!("{name}: {value:?} is not a time such as 2026-01-31T10:00:00Z"))?;
                found.options.since = Some(since);
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn log_options_are_read_and_nonsense_is_refused_by_name() {
        let now = Timestamp::from_second(1000).unwrap();
        let query = pairs(&[("follow", "true"), ("tailLines", "5"), ("sinceSeconds", "60"), ("limitBytes", "9")]);
        let found = log_query(&query, now).unwrap().options;
        assert_eq!((found.follow, found.tail, found.limit), (true, Some(5), Some(9)));
        assert_eq!(found.since, Timestamp::from_second(940).ok());
        for (name, value) in
            [("tailLines", "-1"), ("limitBytes", "x"), ("sinceTime", "yesterday"), ("follow", "perhaps")]
        {
            let error = log_query(&pairs(&[(name, value)]), now).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn a_terminal_has_no_standard_error_of_its_own() {
        let Ok(found) = streams(&pairs(&[("output", "1"), ("error", "1"), ("tty", "1")])) else { panic!("refused") };
        assert_eq!(found, Streams { stdin: false, stdout: true, stderr: false, tty: true });
        assert!(streams(&pairs(&[("tty", "1")])).is_err());
    }
}
