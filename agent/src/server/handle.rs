//! Who may ask, and what answers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use http::header::{AUTHORIZATION, HeaderMap};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::answer::{Answer, Body, Refusal, Work, answer, document, held, no_route, plain};
use super::gate::{Admitted, Ticket};
use super::review::{Reviewer, User};
use super::route::{self, Check, NoRoute, Path, Route, Surface};
use super::usage::Meter;
use super::volumes::Disks;
use super::{Caller, cadvisor, checkpoint, exposition, healthz, own, summary, system_logs, tunnel};
use crate::cgroup::CgroupError;
use crate::control::View;
use crate::cri::Runtime;
use crate::metrics::METRICS;
use crate::metrics::served::ServerType;
use crate::metrics::text::{self, Text};
use crate::volume::stats::Way;

/// Commands of `/run` at once.
pub const RUNS: usize = 2;

/// What the API works with.
pub struct Api {
    /// Name of the node.
    pub node: String,
    /// Pods, statuses and where logs are.
    pub view: Arc<dyn View>,
    /// The part that 10250 has.
    pub surface: Surface,
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
    /// When the agent started.
    pub started: Timestamp,
    /// What `/logs/` shows: `/var/log`, where the configuration asks for it.
    pub system_logs: Option<PathBuf>,
    /// Where archives of `/checkpoint` are.
    pub checkpoints: PathBuf,
    /// One archive at a time.
    pub checkpoint_turn: Semaphore,
    /// So many commands of `/run` at a time: [`RUNS`].
    pub run_turns: Semaphore,
    /// Writes what is known of probes.
    pub probes: Box<dyn Fn(&mut Text) + Send + Sync>,
    /// Version of the cgroups in use.
    pub cgroup: u8,
    /// Memory that metrics are written into, again and again.
    pub scratch: Mutex<BytesMut>,
}

impl Api {
    /// Answers one request.
    pub async fn answer(&self, request: Request<Incoming>, caller: Caller, ticket: &Arc<Ticket>) -> Response<Body> {
        let server = match caller {
            Caller::Certified(_) => ServerType::ReadWrite,
            Caller::Anybody => ServerType::ReadOnly,
        };
        let figure = METRICS.served.begin(server, request.method(), request.uri().path());
        let path = Path::parse(request.uri().path());
        let (surface, place) = match caller {
            Caller::Anybody => (Surface::ReadOnly, ticket.admit("").map_err(Refusal::from)),
            Caller::Certified(user) => (self.surface, self.checked(&request, path.as_ref(), user, ticket).await),
        };
        let place = match place {
            Ok(place) => place,
            Err(Refusal(status, content)) => return plain(status, content),
        };
        let mut work = Some(Work { place: Some(place), figure });
        let response = if tunnel::is_upgrade(request.headers()) && !route::may_upgrade(path.as_ref()) {
            plain(StatusCode::BAD_REQUEST, "this path cannot be upgraded to another protocol\n")
        } else {
            match route::find(request.method(), path.as_ref(), surface) {
                Err(error) => no_route(error),
                Ok(route) => match self.dispatch(route, request, &mut work).await {
                    Ok(response) => response,
                    Err(Refusal(status, content)) => plain(status, content),
                },
            }
        };
        // A stream has taken it.
        match work {
            Some(work) => held(response, work),
            None => response,
        }
    }

    /// Whether the caller may do it; nothing is told before.
    async fn checked(
        &self,
        request: &Request<Incoming>,
        path: Option<&Path>,
        certified: Option<User>,
        ticket: &Arc<Ticket>,
    ) -> Result<Admitted, Refusal> {
        let _asking = ticket.ask()?;
        let user = self.user(request.headers(), certified).await?;
        let access = route::access(request.method(), path);
        let subresources = access.subresources.join(" ");
        let unknown = |error: String| {
            tracing::error!(error, user = user.name, "kubelet API: authorization");
            let content = format!(
                "Authorization error (user={}, verb={}, resource=nodes, subresource={subresources})",
                user.name, access.verb
            );
            Refusal(StatusCode::INTERNAL_SERVER_ERROR, content)
        };
        if !self.reviewer.may(&user, &access).await.map_err(unknown)? {
            let content = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{subresources}])\n",
                user.name, access.verb
            );
            return Err(Refusal(StatusCode::FORBIDDEN, content));
        }
        Ok(ticket.admit(&user.name)?)
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

    async fn dispatch(&self, route: Route, request: Request<Incoming>, work: &mut Option<Work>) -> Answer {
        let query = route::query(request.uri().query());
        let is_set = |name: &str| query.iter().any(|(found, value)| found == name && value == "true");
        match route {
            Route::Healthz => Ok(healthz::healthz(&Check::ALL, &query, Timestamp::now().as_second())),
            Route::HealthCheck(check) => Ok(healthz::healthz(&[check], &query, Timestamp::now().as_second())),
            Route::Pods => Ok(document(&pod_list(self.view.pods()))),
            Route::RunningPods => self.running_pods().await,
            Route::Configz => Ok(document(&json!({ "kubeletconfig": self.configz }))),
            Route::Statusz => {
                let (started, now) = (self.started.as_second(), Timestamp::now().as_second());
                Ok(plain(StatusCode::OK, healthz::statusz(started, now, crate::config::KUBELET_VERSION)))
            }
            Route::Flagz => Ok(plain(StatusCode::OK, healthz::flagz(std::env::args().skip(1)))),
            Route::Summary => {
                let (pods, only_cpu_and_memory) = (self.view.pods(), is_set("only_cpu_and_memory"));
                let ways: &[Way] = if only_cpu_and_memory { &[] } else { &[Way::Walk, Way::Ask] };
                let disks = self.meter.volumes().measure(&pods, ways);
                let (usage, system, disks) = tokio::join!(self.meter.measure(), self.meter.system(), disks);
                let usage = usage?;
                let seen =
                    summary::Seen { usage: &usage, system: &system, disks: &disks, pods: &pods, only_cpu_and_memory };
                Ok(document(&summary::summary(&self.node, seen)))
            }
            Route::Metrics => {
                let pods = self.view.pods();
                let disks = self.meter.volumes().measure(&pods, &[Way::Ask]).await;
                Ok(self.metrics(|text| self.own_metrics(text, &pods, &disks)))
            }
            Route::ResourceMetrics => {
                let usage = self.meter.measure().await.inspect_err(|error| tracing::warn!(%error, "/metrics/resource"));
                let pods = self.view.pods();
                Ok(self.metrics(|text| exposition::resource(text, usage.ok().as_deref(), &pods)))
            }
            Route::CadvisorMetrics => self.cadvisor().await,
            Route::ProbeMetrics => Ok(self.metrics(|text| (self.probes)(text))),
            Route::HealthMetrics => Ok(self.metrics(|text| METRICS.health.write(text))),
            Route::Logs(target) => self.logs(&target, &query),
            Route::SystemLogs(parts) => match self.system_logs.clone() {
                Some(root) => system_logs::answer(root, parts).await,
                None => Err(NoRoute::Disabled("logs endpoint is disabled.").into()),
            },
            Route::Exec(target) => self.exec(&target, &query, request, work).await,
            Route::Attach(target) => self.attach(&target, &query, request, work).await,
            Route::PortForward(target) => self.port_forward(&target, &query, request, work).await,
            Route::Run(target) => self.run(&target, &query).await,
            Route::Checkpoint(target) => checkpoint::checkpoint(self, &target, &query).await,
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

    /// Megabytes on a full node: memory for it is not kept.
    async fn cadvisor(&self) -> Answer {
        let usage = self.meter.measure().await?;
        let failed = |error: CgroupError| Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        let kernel = self.meter.kernel(&usage).await.map_err(failed)?;
        let (mut text, pods) = (Text::default(), self.view.pods());
        cadvisor::write(
            &mut text,
            cadvisor::Seen { kernel: &kernel, usage: &usage, pods: &pods, now: Timestamp::now() },
        );
        Ok(answer(StatusCode::OK, text::CONTENT_TYPE, text.finish().0))
    }

    fn own_metrics(&self, text: &mut Text, pods: &[Pod], disks: &Disks) {
        text.raw(&crate::health::process::metrics());
        own::write(text, &self.node, pods, self.cgroup);
        own::volumes(text, pods, disks);
        own::volume_counts(text, &self.meter.volumes().counts(pods));
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
}

fn pod_list(pods: Vec<Pod>) -> Value {
    let items: Vec<Value> = pods.iter().filter_map(|pod| serde_json::to_value(pod).ok()).collect();
    json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
}
