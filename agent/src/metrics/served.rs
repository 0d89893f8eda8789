//! Requests that the kubelet API answers, by kubelet's names.

use std::time::Instant;

use super::cells::{Counter, DEFAULT, Gauge, Histogram};
use super::text::{Kind, Text};

/// Roots of paths; all others are `other`, so that a scanner makes no series.
const PATHS: [&str; 20] = [
    "other",
    "healthz",
    "pods",
    "stats",
    "metrics",
    "metrics/cadvisor",
    "metrics/probes",
    "metrics/resource",
    "run",
    "exec",
    "attach",
    "portForward",
    "containerLogs",
    "configz",
    "runningpods",
    "checkpoint",
    "logs",
    "debug",
    "flagz",
    "statusz",
];
const METHODS: [&str; 6] = ["other", "GET", "HEAD", "POST", "PUT", "DELETE"];

/// Which server was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerType {
    /// 10250.
    ReadWrite,
    /// `readOnlyPort`.
    ReadOnly,
}

#[derive(Debug)]
struct Cell {
    total: Counter,
    inflight: Gauge,
    duration: Histogram<11>,
}

impl Cell {
    const fn new() -> Self {
        Self { total: Counter::new(), inflight: Gauge::new(), duration: Histogram::new(&DEFAULT) }
    }
}

/// All requests.
#[derive(Debug)]
pub struct Served {
    /// By server, path and method.
    cells: [[[Cell; METHODS.len()]; PATHS.len()]; 2],
    /// WebSocket streams: exec, attach, portforward.
    websockets: [Counter; 3],
}

/// A request that is being answered; dropped when the last byte of the answer, or the stream that it became, is over.
#[derive(Debug)]
pub struct Request {
    cell: &'static Cell,
    began: Instant,
}

impl Drop for Request {
    fn drop(&mut self) {
        self.cell.inflight.add(-1);
        self.cell.duration.observe(self.began.elapsed());
    }
}

/// The root of a path as kubelet reports it.
fn root(path: &str) -> usize {
    let path = path.strip_prefix('/').unwrap_or(path);
    let mut parts = path.splitn(3, '/');
    let first = parts.next().unwrap_or_default();
    let known = |name: &str| PATHS.iter().position(|known| *known == name);
    match (first, parts.next()) {
        ("metrics", Some(second)) => {
            PATHS.iter().position(|name| name.strip_prefix("metrics/") == Some(second)).unwrap_or(0)
        }
        ("other", _) => 0,
        _ => known(first).unwrap_or(0),
    }
}

impl Served {
    pub(super) const fn new() -> Self {
        Self {
            cells: [const { [const { [const { Cell::new() }; METHODS.len()] }; PATHS.len()] }; 2],
            websockets: [const { Counter::new() }; 3],
        }
    }

    /// A request that came in.
    pub fn begin(&'static self, server: ServerType, method: &http::Method, path: &str) -> Request {
        let method = METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(0);
        let server = match server {
            ServerType::ReadWrite => 0,
            ServerType::ReadOnly => 1,
        };
        let cell = &self.cells[server][root(path)][method];
        cell.total.increment();
        cell.inflight.add(1);
        Request { cell, began: Instant::now() }
    }

    /// A stream by WebSocket; `subresource` is `exec`, `attach` or `portforward`.
    pub fn websocket(&self, subresource: Subresource) {
        self.websockets[subresource as usize].increment();
    }

    fn used(&self) -> impl Iterator<Item = ([(&'static str, &'static str); 4], &Cell)> {
        let servers = self.cells.iter().zip(["readwrite", "readonly"]);
        let paths = servers.flat_map(|(paths, server)| paths.iter().zip(PATHS).map(move |(m, path)| (server, path, m)));
        let all = paths.flat_map(|(server, path, methods)| {
            let long = if matches!(path, "exec" | "attach" | "debug") { "true" } else { "false" };
            methods.iter().zip(METHODS).map(move |(cell, method)| {
                ([("long_running", long), ("method", method), ("path", path), ("server_type", server)], cell)
            })
        });
        all.filter(|(_, cell)| cell.total.get() > 0)
    }

    pub(super) fn write(&self, text: &mut Text) {
        let help = "[ALPHA] Number of the http requests received since the server started";
        let mut family = text.family("kubelet_http_requests_total", Kind::Counter, help);
        self.used().for_each(|(labels, cell)| family.sample(&labels, cell.total.get() as f64));
        let help = "[ALPHA] Number of the inflight http requests";
        let mut family = text.family("kubelet_http_inflight_requests", Kind::Gauge, help);
        self.used().for_each(|(labels, cell)| family.sample(&labels, cell.inflight.get() as f64));
        let help = "[ALPHA] Duration in seconds to serve http requests";
        let mut family = text.family("kubelet_http_requests_duration_seconds", Kind::Histogram, help);
        let ended = self.used().filter(|(_, cell)| cell.duration.read().1 > 0);
        ended.for_each(|(labels, cell)| family.histogram(&labels, &cell.duration));
        let help =
            "[ALPHA] Total number of WebSocket streaming requests (exec/attach/portforward) received by the kubelet.";
        let mut family = text.family("kubelet_websocket_streaming_requests_total", Kind::Counter, help);
        for (count, name) in self.websockets.iter().zip(["exec", "attach", "portforward"]) {
            if count.get() > 0 {
                family.sample(&[("subresource", name)], count.get() as f64);
            }
        }
    }
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// A command.
    Exec = 0,
    /// The container's first process.
    Attach = 1,
    /// Ports.
    PortForward = 2,
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn paths_that_are_made_up_make_no_series() {
        for (path, root_name) in [
            ("/metrics", "metrics"),
            ("/metrics/resource", "metrics/resource"),
            ("/metrics/x", "other"),
            ("/containerLogs/n/p/c", "containerLogs"),
            ("/wp-admin.php", "other"),
            ("/other", "other"),
            ("", "other"),
        ] {
            assert_eq!(PATHS[root(path)], root_name, "{path}");
        }
    }

    #[test]
    fn a_request_is_in_flight_until_it_is_dropped() {
        static SERVED: Served = Served::new();
        let written = || {
            let mut text = Text::default();
            SERVED.write(&mut text);
            String::from_utf8(text.finish().0.to_vec()).unwrap()
        };
        let request = SERVED.begin(ServerType::ReadWrite, &Method::GET, "/exec/n/p/c");
        let labels = "{long_running=\"true\",method=\"GET\",path=\"exec\",server_type=\"readwrite\"}";
        assert!(written().contains(&format!("kubelet_http_inflight_requests{labels} 1\n")));
        assert!(!written().contains("duration"));
        drop(request);
        assert!(written().contains(&format!("kubelet_http_inflight_requests{labels} 0\n")));
        assert!(written().contains(&format!("kubelet_http_requests_duration_seconds_count{labels} 1\n")));
    }
}
