//! gRPC probes: `grpc.health.v1.Health/Check` must answer SERVING.

use std::time::Duration;

use nodelet_proto::health::HealthCheckRequest;
use nodelet_proto::health::health_check_response::ServingStatus;
use nodelet_proto::health::health_client::HealthClient;
use tonic::Code;
use tonic::transport::Endpoint;

use super::Tools;
use super::tcp::authority;
use super::worker::{Answer, within};

pub(super) async fn probe(tools: &Tools, host: &str, port: u16, service: &str, timeout: Duration) -> Answer {
    let address = authority(host, port);
    let seconds = timeout.as_secs();
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).and_then(|e| e.user_agent(tools.user_agent.clone()));
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(error) => return Answer::inconclusive(format!("{address} is no address: {error}")),
    };
    let late = || Answer::failure(format!("timeout: health rpc did not complete within {seconds}s"));
    within(timeout, Box::pin(check(endpoint, address.clone(), service.to_owned())), late).await
}

async fn check(endpoint: Endpoint, address: String, service: String) -> Answer {
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            return Answer::failure(format!("error: failed to connect service at {address:?}: {cause}"));
        }
    };
    match HealthClient::new(channel).check(HealthCheckRequest { service }).await {
        Ok(answer) => match answer.get_ref().status() {
            ServingStatus::Serving => Answer::success("service healthy".to_owned()),
            other => Answer::failure(format!("service unhealthy (responded with {:?})", other.as_str_name())),
        },
        Err(status) if status.code() == Code::Unimplemented => Answer::failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => {
            let (code, text) = (status.code(), status.message());
            Answer::failure(format!("error: health rpc probe failed: rpc error: code = {code:?} desc = {text}"))
        }
    }
}
