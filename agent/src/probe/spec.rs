//! A probe of a pod spec with its defaults filled in and its port names resolved.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Kind;
use crate::pod::expand::expand;

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Runs a command in the container.
    Exec {
        /// The command, static variables already expanded.
        command: Vec<String>,
    },
    /// Asks for a page.
    Http {
        /// `http` or `https`.
        scheme: &'static str,
        /// Host; the pod's address when absent.
        host: Option<String>,
        /// Port.
        port: u16,
        /// Path and query.
        path: String,
        /// Headers in order.
        headers: Vec<(String, String)>,
    },
    /// Opens a connection.
    Tcp {
        /// Host; the pod's address when absent.
        host: Option<String>,
        /// Port.
        port: u16,
    },
    /// Asks the gRPC health service.
    Grpc {
        /// Port.
        port: u16,
        /// Name of the service; empty is the server as a whole.
        service: String,
    },
    /// Cannot be run; the text says why.
    Broken(String),
}

/// One probe of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSpec {
    /// Which.
    pub kind: Kind,
    /// What it does.
    pub handler: Handler,
    /// `initialDelaySeconds`.
    pub initial_delay: Duration,
    /// `periodSeconds`.
    pub period: Duration,
    /// `timeoutSeconds`.
    pub timeout: Duration,
    /// `successThreshold`.
    pub success_threshold: u32,
    /// `failureThreshold`.
    pub failure_threshold: u32,
}

impl ProbeSpec {
    /// Reads a probe; absent and zero numbers take the API server's defaults.
    pub fn new(kind: Kind, probe: &Probe, container: &Container) -> Self {
        let number = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(number(value, default).into());
        Self {
            kind,
            handler: handler(probe, container),
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: number(probe.success_threshold, 1),
            failure_threshold: number(probe.failure_threshold, 3),
        }
    }
}

fn handler(probe: &Probe, container: &Container) -> Handler {
    if let Some(exec) = &probe.exec {
        let env = container.env.as_deref().unwrap_or_default();
        let lookup = |name: &str| {
            // Only values that stand in the spec, as kubelet does: a probe has no access to ConfigMaps.
            env.iter()
                .rev()
                .find(|v| v.name == name && v.value_from.is_none())
                .map(|v| v.value.as_deref().unwrap_or(""))
        };
        let command = exec.command.iter().flatten().map(|part| expand(part, lookup)).collect();
        return Handler::Exec { command };
    }
    if let Some(http) = &probe.http_get {
        let scheme = match http.scheme.as_deref() {
            Some(s) if s.eq_ignore_ascii_case("https") => "https",
            _ => "http",
        };
        let headers = http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let path = http.path.clone().unwrap_or_default();
        return match resolve_port(&http.port, container) {
            Ok(port) => Handler::Http { scheme, host: set(http.host.as_ref()), port, path, headers },
            Err(text) => Handler::Broken(text),
        };
    }
    if let Some(tcp) = &probe.tcp_socket {
        return match resolve_port(&tcp.port, container) {
            Ok(port) => Handler::Tcp { host: set(tcp.host.as_ref()), port },
            Err(text) => Handler::Broken(text),
        };
    }
    if let Some(grpc) = &probe.grpc {
        return match u16::try_from(grpc.port) {
            Ok(port) if port > 0 => Handler::Grpc { port, service: grpc.service.clone().unwrap_or_default() },
            _ => Handler::Broken(format!("invalid port number: {}", grpc.port)),
        };
    }
    Handler::Broken("missing probe handler: expected one of exec, httpGet, tcpSocket, grpc".to_owned())
}

fn set(host: Option<&String>) -> Option<String> {
    host.filter(|h| !h.is_empty()).cloned()
}

/// A named or numbered port of a container.
pub(crate) fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            named.map(|p| p.container_port).ok_or_else(|| format!("port {name:?} not found"))?
        }
    };
    u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| format!("invalid port number: {number}"))
}
