//! What a request asks for, and what its caller must be allowed to. Pure.
//!
//! The paths, their methods and the subresources of `nodes` that guard them are kubelet's ("Kubelet authorization" in the
//! documentation of Kubernetes; KEP-2862 for the fine-grained ones). Nothing is served that this table does not list.

use http::Method;

/// One thing that the kubelet API does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`: the process answers.
    Healthz,
    /// `/healthz/ping`, `/healthz/log`, `/healthz/syncloop`: one check by name.
    HealthCheck(String),
    /// `/pods`: pods as the node wants them, with their statuses.
    Pods,
    /// `/runningpods/`: pods as the runtime has them.
    RunningPods,
    /// `/configz`: the configuration in effect.
    Configz,
    /// `/containerLogs/NS/POD/CONTAINER`.
    Logs(Target),
    /// `/exec/NS/POD[/UID]/CONTAINER`.
    Exec(Target),
    /// `/attach/NS/POD[/UID]/CONTAINER`.
    Attach(Target),
    /// `/portForward/NS/POD[/UID]`; the container is empty.
    PortForward(Target),
    /// `/run/NS/POD[/UID]/CONTAINER`: a command's output as the answer.
    Run(Target),
    /// `/stats/summary`.
    Summary,
    /// `/metrics`: the agent itself.
    Metrics,
    /// `/metrics/resource`: what metrics-server reads.
    ResourceMetrics,
    /// `/metrics/cadvisor`: containers in cAdvisor's words.
    CadvisorMetrics,
    /// `/metrics/probes`.
    ProbeMetrics,
    /// `/metrics/slis`.
    HealthMetrics,
}

/// A pod, and mostly a container of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Namespace.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// UID, where the caller gives it.
    pub uid: Option<String>,
    /// Container; empty for [`Route::PortForward`].
    pub container: String,
}

/// Why a request is answered without being looked at further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// There is no such path.
    NotFound,
    /// The path exists, with other methods.
    WrongMethod,
}

/// What a request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// `get`, `create`, ...
    pub verb: &'static str,
    /// Subresources of `nodes`; to be allowed one of them is enough.
    pub subresources: &'static [&'static str],
}

/// Methods of a route.
enum Methods {
    /// Reading.
    Get,
    /// An upgrade may come as either.
    GetOrPost,
    /// Doing.
    Post,
}

/// The access that a request needs, decided by path and method alone: it is checked before it is told whether there is
/// such a path, so that nobody without rights can find out.
pub fn access(method: &Method, path: &str) -> Access {
    let verb = match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        // HEAD reads; whatever else there is has no verb of its own.
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        _ => &["proxy"],
    };
    Access { verb, subresources }
}

/// The route of a request.
pub fn find(method: &Method, path: &str) -> Result<Route, NoRoute> {
    let decoded: Option<Vec<String>> = path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect();
    let decoded = decoded.ok_or(NoRoute::NotFound)?;
    let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let (route, methods) = match parts.as_slice() {
        ["healthz"] => (Route::Healthz, Methods::Get),
        ["healthz", check @ ("ping" | "log" | "syncloop")] => (Route::HealthCheck((*check).to_owned()), Methods::Get),
        ["pods"] => (Route::Pods, Methods::Get),
        ["runningpods"] => (Route::RunningPods, Methods::Get),
        ["configz"] => (Route::Configz, Methods::Get),
        ["stats", "summary"] => (Route::Summary, Methods::Get),
        ["metrics"] => (Route::Metrics, Methods::Get),
        ["metrics", "resource"] => (Route::ResourceMetrics, Methods::Get),
        ["metrics", "cadvisor"] => (Route::CadvisorMetrics, Methods::Get),
        ["metrics", "probes"] => (Route::ProbeMetrics, Methods::Get),
        ["metrics", "slis"] => (Route::HealthMetrics, Methods::Get),
        ["containerLogs", rest @ ..] => (Route::Logs(container(rest)?), Methods::Get),
        ["exec", rest @ ..] => (Route::Exec(container(rest)?), Methods::GetOrPost),
        ["attach", rest @ ..] => (Route::Attach(container(rest)?), Methods::GetOrPost),
        ["run", rest @ ..] => (Route::Run(container(rest)?), Methods::Post),
        ["portForward", rest @ ..] => (Route::PortForward(pod(rest)?), Methods::GetOrPost),
        _ => return Err(NoRoute::NotFound),
    };
    let is_allowed = match methods {
        Methods::Get => matches!(*method, Method::GET | Method::HEAD),
        Methods::GetOrPost => matches!(*method, Method::GET | Method::POST),
        Methods::Post => *method == Method::POST,
    };
    if is_allowed { Ok(route) } else { Err(NoRoute::WrongMethod) }
}

fn container(parts: &[&str]) -> Result<Target, NoRoute> {
    let (rest, container) = match parts {
        [rest @ .., container] => (rest, *container),
        [] => return Err(NoRoute::NotFound),
    };
    Ok(Target { container: container.to_owned(), ..pod(rest)? })
}

fn pod(parts: &[&str]) -> Result<Target, NoRoute> {
    let target = |namespace: &str, pod: &str, uid: Option<&str>| Target {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: uid.map(str::to_owned),
        container: String::new(),
    };
    match parts {
        [namespace, pod] => Ok(target(namespace, pod, None)),
        [namespace, pod, uid] => Ok(target(namespace, pod, Some(uid))),
        _ => Err(NoRoute::NotFound),
    }
}

/// Parameters of a query, in order, names repeated as sent. What is not valid percent-encoding is left out.
pub fn query(text: Option<&str>) -> Vec<(String, String)> {
    let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(&name.replace('+', " "))?, percent_decode(&value.replace('+', " "))?))
        })
        .collect()
}

/// `None` when it is not UTF-8 or an escape is cut short.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Route, NoRoute> {
        find(&Method::GET, path)
    }

    #[test]
    fn a_uid_stands_between_pod_and_container() {
        let with = Target { namespace: "n".into(), pod: "p".into(), uid: Some("u".into()), container: "c".into() };
        assert_eq!(get("/exec/n/p/u/c"), Ok(Route::Exec(with.clone())));
        assert_eq!(get("/exec/n/p/c"), Ok(Route::Exec(Target { uid: None, ..with.clone() })));
        assert_eq!(get("/portForward/n/p/u"), Ok(Route::PortForward(Target { container: String::new(), ..with })));
        assert_eq!(get("/exec/n/c"), Err(NoRoute::NotFound));
    }

    #[test]
    fn what_is_not_in_the_table_is_not_served() {
        for path in ["/", "/exec", "/logs/../../etc/passwd", "/debug/pprof", "/stats/container", "/pods/x", "/%zz"] {
            assert_eq!(get(path), Err(NoRoute::NotFound), "{path}");
        }
        assert_eq!(find(&Method::POST, "/pods"), Err(NoRoute::WrongMethod));
        assert_eq!(find(&Method::GET, "/run/n/p/c"), Err(NoRoute::WrongMethod));
    }

    #[test]
    fn every_path_needs_the_subresource_that_kubelet_asks_for() {
        let of = |method: Method, path: &str| access(&method, path);
        let classic = |verb, subresources| Access { verb, subresources };
        assert_eq!(of(Method::GET, "/metrics/cadvisor"), classic("get", &["metrics"]));
        assert_eq!(of(Method::POST, "/exec/n/p/c"), classic("create", &["proxy"]));
        assert_eq!(of(Method::GET, "/exec/n/p/c"), classic("get", &["proxy"]));
        assert_eq!(of(Method::GET, "/runningpods/"), classic("get", &["pods", "proxy"]));
        assert_eq!(of(Method::GET, "/containerLogs/n/p/c"), classic("get", &["proxy"]));
        assert_eq!(of(Method::GET, "/stats/summary"), classic("get", &["stats"]));
        assert_eq!(of(Method::GET, "//pods"), classic("get", &["pods", "proxy"]));
    }

    #[test]
    fn a_query_keeps_order_repetition_and_escapes() {
        let found = query(Some("command=sh&command=-c&command=echo+a%26b&input=1"));
        let values: Vec<&str> = found.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["sh", "-c", "echo a&b", "1"]);
    }
}
