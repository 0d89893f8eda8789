//! Requests to API servers, by client-go's names.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::cells::{Counter, Histogram};
use super::text::{Kind, Text};

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
/// Codes that kube-apiserver answers with; the last stands for no answer at all, in client-go's word.
const CODES: [&str; 24] = [
    "200", "201", "202", "204", "301", "302", "304", "400", "401", "403", "404", "405", "406", "408", "409", "410",
    "413", "415", "422", "429", "500", "503", "504", "<error>",
];
static BOUNDS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// Figures of one API server.
#[derive(Debug)]
pub struct Host {
    name: String,
    requests: [[Counter; CODES.len()]; METHODS.len()],
    /// Answers with a code that is not in the list.
    strange: [Counter; METHODS.len()],
    duration: [Histogram<12>; METHODS.len()],
}

impl Host {
    /// A request that was answered, or failed without an answer. Watches count until their first byte.
    pub fn observe(&self, method: &http::Method, code: Option<http::StatusCode>, took: Duration) {
        let Some(method) = METHODS.iter().position(|known| *known == method.as_str()) else { return };
        let code = code.map_or(Some(CODES.len() - 1), |code| CODES.iter().position(|known| *known == code.as_str()));
        code.map_or(&self.strange[method], |code| &self.requests[method][code]).increment();
        self.duration[method].observe(took);
    }
}

/// Figures of all API servers: one, or two with a kubeconfig of its own for Services.
#[derive(Debug)]
pub struct Rest {
    hosts: Mutex<Vec<&'static Host>>,
}

impl Rest {
    pub(super) const fn new() -> Self {
        Self { hosts: Mutex::new(Vec::new()) }
    }

    /// The figures of a server, for a client to keep. They stay for the life of the process: a client is made for each
    /// kubeconfig, not for each request.
    pub fn host(&self, name: &str) -> &'static Host {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = hosts.iter().find(|host| host.name == name) {
            return known;
        }
        let host: &'static Host = Box::leak(Box::new(Host {
            name: name.to_owned(),
            requests: [const { [const { Counter::new() }; CODES.len()] }; METHODS.len()],
            strange: [const { Counter::new() }; METHODS.len()],
            duration: [const { Histogram::new(&BOUNDS) }; METHODS.len()],
        }));
        hosts.push(host);
        host
    }

    pub(super) fn write(&self, text: &mut Text) {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let help = "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.";
        let mut family = text.family("rest_client_requests_total", Kind::Counter, help);
        for host in &hosts {
            for (index, method) in METHODS.iter().enumerate() {
                let known = host.requests[index].iter().zip(CODES);
                for (count, code) in known.chain([(&host.strange[index], "other")]).filter(|(count, _)| count.get() > 0)
                {
                    let labels = [("code", code), ("host", host.name.as_str()), ("method", method)];
                    family.sample(&labels, count.get() as f64);
                }
            }
        }
        let help = "[ALPHA] Request latency in seconds. Broken down by verb, and host.";
        let mut family = text.family("rest_client_request_duration_seconds", Kind::Histogram, help);
        for host in &hosts {
            for (duration, verb) in host.duration.iter().zip(METHODS).filter(|(duration, _)| duration.read().1 > 0) {
                family.histogram(&[("host", &host.name), ("verb", verb)], duration);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};

    use super::*;

    #[test]
    fn requests_count_by_code_and_those_without_an_answer_as_errors() {
        let rest = Rest::new();
        let host = rest.host("10.0.0.1:6443");
        assert!(std::ptr::eq(host, rest.host("10.0.0.1:6443")), "a client that is made again goes on counting");
        host.observe(&Method::PATCH, Some(StatusCode::OK), Duration::from_millis(30));
        host.observe(&Method::PATCH, Some(StatusCode::IM_A_TEAPOT), Duration::from_millis(30));
        host.observe(&Method::GET, None, Duration::from_secs(30));
        let mut text = Text::default();
        rest.write(&mut text);
        let text = String::from_utf8(text.finish().0.to_vec()).unwrap();
        for line in [
            "rest_client_requests_total{code=\"200\",host=\"10.0.0.1:6443\",method=\"PATCH\"} 1",
            "rest_client_requests_total{code=\"other\",host=\"10.0.0.1:6443\",method=\"PATCH\"} 1",
            "rest_client_requests_total{code=\"<error>\",host=\"10.0.0.1:6443\",method=\"GET\"} 1",
            "rest_client_request_duration_seconds_bucket{host=\"10.0.0.1:6443\",verb=\"PATCH\",le=\"0.1\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
