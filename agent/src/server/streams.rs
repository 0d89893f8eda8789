//! What runs in a container: exec, attach, port-forward, and commands whose output is the answer.

use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;

use super::answer::{Answer, Refusal, Work, answer, full};
use super::handle::Api;
use super::route::Target;
use super::tunnel;
use crate::cri::Known;
use crate::cri::client::kubelet_api::Streams;
use crate::ids::{ContainerId, PodUid};
use crate::logs::choose;
use crate::metrics::METRICS;
use crate::metrics::served::Subresource;
use crate::pod::spec;

/// Longest command of `/run`.
const RUN_LIMIT: Duration = Duration::from_secs(600);

/// Values of a parameter that may be given several times.
pub(super) fn words(query: &[(String, String)], name: &str) -> Vec<String> {
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

impl Api {
    pub(super) fn pod(&self, target: &Target) -> Result<Pod, Refusal> {
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

    pub(super) async fn exec(
        &self,
        target: &Target,
        query: &[(String, String)],
        request: Request<Incoming>,
        work: &mut Option<Work>,
    ) -> Answer {
        let (streams, id) = (streams(query)?, self.container(target)?);
        let url = self.runtime.exec_url(&id, words(query, "command"), streams).await?;
        self.stream(request, &url, Subresource::Exec, work).await
    }

    pub(super) async fn attach(
        &self,
        target: &Target,
        query: &[(String, String)],
        request: Request<Incoming>,
        work: &mut Option<Work>,
    ) -> Answer {
        let (streams, id) = (streams(query)?, self.container(target)?);
        let url = self.runtime.attach_url(&id, streams).await?;
        self.stream(request, &url, Subresource::Attach, work).await
    }

    pub(super) async fn port_forward(
        &self,
        target: &Target,
        query: &[(String, String)],
        request: Request<Incoming>,
        work: &mut Option<Work>,
    ) -> Answer {
        let pod = self.pod(target)?;
        let ports: Result<Vec<u16>, _> =
            words(query, "port").iter().flat_map(|text| text.split(',')).map(str::parse::<u16>).collect();
        let bad = |error| Refusal(StatusCode::BAD_REQUEST, format!("port: {error}; expected 1 to 65535"));
        let ports = ports.map_err(bad)?.into_iter().map(i32::from).collect();
        let runtime = self.runtime.inspect_pod(&PodUid::new(spec::uid(&pod).as_str()), &Known::default()).await?;
        let sandbox = runtime.sandbox().filter(|sandbox| sandbox.ready);
        let missing = || Refusal(StatusCode::NOT_FOUND, "the pod has no running sandbox".to_owned());
        let url = self.runtime.port_forward_url(&sandbox.ok_or_else(missing)?.id, ports).await?;
        self.stream(request, &url, Subresource::PortForward, work).await
    }

    async fn stream(
        &self,
        request: Request<Incoming>,
        url: &str,
        subresource: Subresource,
        work: &mut Option<Work>,
    ) -> Answer {
        let upgrade = request.headers().get(http::header::UPGRADE);
        if upgrade.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            METRICS.served.websocket(subresource);
        }
        match tunnel::open(request, url, self.stream_idle, work).await {
            Ok(response) => Ok(response.map(full)),
            Err(error @ tunnel::TunnelError::NoUpgrade) => Err(Refusal(StatusCode::BAD_REQUEST, error.to_string())),
            Err(
                error @ (tunnel::TunnelError::Url { .. }
                | tunnel::TunnelError::Redirect { .. }
                | tunnel::TunnelError::Runtime { .. }),
            ) => {
                tracing::warn!(%error, "kubelet API: stream");
                Err(Refusal(StatusCode::BAD_GATEWAY, error.to_string()))
            }
        }
    }

    /// The output is up to 16 MiB, which the runtime's answer is limited to, so few commands run at once.
    pub(super) async fn run(&self, target: &Target, query: &[(String, String)]) -> Answer {
        let _turn = self.run_turns.try_acquire().map_err(|_| super::gate::Full)?;
        let id = self.container(target)?;
        let command = words(query, "cmd").iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_standard_error_of_its_own() {
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let found = streams(&pairs(&[("output", "1"), ("error", "1"), ("tty", "1")])).unwrap();
        assert_eq!(found, Streams { stdin: false, stdout: true, stderr: false, tty: true });
        assert!(streams(&pairs(&[("tty", "1")])).is_err());
    }
}
