//! What a request asks for, and what its caller must be allowed to. Pure.
//!
//! The paths, their methods and the subresources of `nodes` that guard them are kubelet's ("Kubelet authorization" in the
//! documentation of Kubernetes; KEP-2862 for the fine-grained ones). Nothing is served that this table does not list: above all
//! no profiles. Files of the node (`/logs/`) are there only where the configuration asks for them by name.
//!
//! One thing is stricter than kubelet 1.37: whatever runs something in a container (`exec`, `attach`, `portForward`, `run`)
//! needs the verb `create`, also when it comes as GET. There a WebSocket is a GET, so that `get nodes/proxy`, which many a
//! monitoring agent has, is the right to run commands in every pod of the node (kubernetes#119640). API servers have all verbs.
//!
//! Rights and route are found from the same parsed [`Path`]: `/%65xec/...` is `exec` for both.

use http::Method;

/// One thing that the kubelet API does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`: the process answers.
    Healthz,
    /// `/healthz/ping`, `/healthz/log`, `/healthz/syncloop`: one check.
    HealthCheck(Check),
    /// `/pods`: pods as the node wants them, with their statuses.
    Pods,
    /// `/runningpods/`: pods as the runtime has them.
    RunningPods,
    /// `/configz`: the configuration in effect.
    Configz,
    /// `/containerLogs/NS/POD/CONTAINER`.
    Logs(Target),
    /// `/logs/...`: files and directories below `/var/log`, by the parts of their path.
    SystemLogs(Vec<String>),
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
    /// `/checkpoint/NS/POD/CONTAINER`.
    Checkpoint(Target),
    /// `/statusz`: version and uptime, for people.
    Statusz,
    /// `/flagz`: the command line, for people.
    Flagz,
}

/// A part of `/healthz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The process answers.
    Ping,
    /// It can log.
    Log,
    /// The loop that pods depend on turns.
    SyncLoop,
}

impl Check {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Ping, Self::Log, Self::SyncLoop];

    /// Its name in the path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Log => "log",
            Self::SyncLoop => "syncloop",
        }
    }
}

/// Which part of the API is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// 10250.
    Full,
    /// 10250 with `enableDebuggingHandlers: false`.
    WithoutDebugging,
    /// `readOnlyPort`.
    ReadOnly,
}

/// The parts of a path, without escapes and empty ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<String>);

impl Path {
    /// `None` when it is not UTF-8 or an escape is cut short.
    pub fn parse(path: &str) -> Option<Self> {
        path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect::<Option<_>>().map(Self)
    }

    fn root(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }
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
    /// The path exists, with other methods, which are these.
    WrongMethod(&'static str),
    /// It is switched off; kubelet's text.
    Disabled(&'static str),
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
#[derive(Clone, Copy)]
enum Methods {
    /// Reading.
    Get,
    /// Reading, in kubelet also by POST.
    GetOrPost,
    /// Doing.
    Post,
}

/// Roots below which something is run in a container.
const STREAMS: [&str; 4] = ["exec", "attach", "portForward", "run"];

/// The access that a request needs, decided by path and method alone: it is checked before it is told whether there is
/// such a path, so that nobody without rights can find out.
pub fn access(method: &Method, path: Option<&Path>) -> Access {
    let root = path.map_or("", Path::root);
    let verb = match *method {
        _ if STREAMS.contains(&root) => "create",
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        // HEAD reads; whatever else there is has no verb of its own.
        _ => "get",
    };
    let subresources: &[&str] = match root {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "pods" | "runningpods" | "allocatedPods" => &["pods", "proxy"],
        _ => &["proxy"],
    };
    Access { verb, subresources }
}

/// Whether a request may become another protocol.
pub fn may_upgrade(path: Option<&Path>) -> bool {
    path.is_some_and(|path| ["exec", "attach", "portForward"].contains(&path.root()))
}

/// The route of a request.
pub fn find(method: &Method, path: Option<&Path>, surface: Surface) -> Result<Route, NoRoute> {
    let path = path.ok_or(NoRoute::NotFound)?;
    let parts: Vec<&str> = path.0.iter().map(String::as_str).collect();
    disabled(&parts, surface)?;
    let (route, methods) = match parts.as_slice() {
        ["healthz"] => (Route::Healthz, Methods::Get),
        ["healthz", name] => {
            let check = Check::ALL.into_iter().find(|check| check.name() == *name).ok_or(NoRoute::NotFound)?;
            (Route::HealthCheck(check), Methods::Get)
        }
        ["pods"] => (Route::Pods, Methods::Get),
        ["stats", "summary"] => (Route::Summary, Methods::GetOrPost),
        ["metrics"] => (Route::Metrics, Methods::Get),
        ["metrics", "resource"] => (Route::ResourceMetrics, Methods::Get),
        ["metrics", "cadvisor"] => (Route::CadvisorMetrics, Methods::Get),
        ["metrics", "probes"] => (Route::ProbeMetrics, Methods::Get),
        ["metrics", "slis"] => (Route::HealthMetrics, Methods::Get),
        // Kubelet has these only together with the debugging handlers, and never on the read-only port.
        rest if surface == Surface::Full => with_rights(rest)?,
        _ => return Err(NoRoute::NotFound),
    };
    let methods = if surface == Surface::ReadOnly { Methods::Get } else { methods };
    let (is_allowed, allowed) = match methods {
        Methods::Get => (matches!(*method, Method::GET | Method::HEAD), "GET, HEAD"),
        Methods::GetOrPost => (matches!(*method, Method::GET | Method::POST), "GET, POST"),
        Methods::Post => (*method == Method::POST, "POST"),
    };
    if is_allowed { Ok(route) } else { Err(NoRoute::WrongMethod(allowed)) }
}

fn with_rights(parts: &[&str]) -> Result<(Route, Methods), NoRoute> {
    let found = match parts {
        ["runningpods"] => (Route::RunningPods, Methods::Get),
        ["configz"] => (Route::Configz, Methods::Get),
        ["statusz"] => (Route::Statusz, Methods::Get),
        ["flagz"] => (Route::Flagz, Methods::Get),
        ["logs", rest @ ..] => {
            (Route::SystemLogs(rest.iter().map(|part| (*part).to_owned()).collect()), Methods::GetOrPost)
        }
        ["containerLogs", rest @ ..] => (Route::Logs(container(rest)?), Methods::Get),
        ["exec", rest @ ..] => (Route::Exec(container(rest)?), Methods::GetOrPost),
        ["attach", rest @ ..] => (Route::Attach(container(rest)?), Methods::GetOrPost),
        ["run", rest @ ..] => (Route::Run(container(rest)?), Methods::Post),
        ["portForward", rest @ ..] => (Route::PortForward(pod(rest)?), Methods::GetOrPost),
        ["checkpoint", rest @ ..] if rest.len() == 3 => (Route::Checkpoint(container(rest)?), Methods::Post),
        _ => return Err(NoRoute::NotFound),
    };
    Ok(found)
}

/// Paths that kubelet answers with a sentence where they are switched off, and those that nodelet never serves.
fn disabled(parts: &[&str], surface: Surface) -> Result<(), NoRoute> {
    let debugging = ["run", "exec", "attach", "portForward", "containerLogs", "runningpods", "logs"];
    let root = parts.first().copied().unwrap_or_default();
    let is_profile = parts.starts_with(&["debug", "pprof"]);
    if surface != Surface::Full && (debugging.contains(&root) || is_profile) {
        return Err(NoRoute::Disabled("Debug endpoints are disabled."));
    }
    match parts {
        ["debug", "pprof", ..] => Err(NoRoute::Disabled("profiling endpoint is disabled.")),
        ["debug", "flags", ..] if surface == Surface::Full => Err(NoRoute::Disabled("flags endpoint is disabled.")),
        _ => Ok(()),
    }
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
pub(super) mod tests;
