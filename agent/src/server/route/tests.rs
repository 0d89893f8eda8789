use super::*;

fn find_in(surface: Surface, method: &Method, path: &str) -> Result<Route, NoRoute> {
    find(method, Path::parse(path).as_ref(), surface)
}

fn get(path: &str) -> Result<Route, NoRoute> {
    find_in(Surface::Full, &Method::GET, path)
}

fn needs(method: &Method, path: &str) -> Access {
    access(method, Path::parse(path).as_ref())
}

/// One path of each route.
const PATHS: [&str; 20] = [
    "/healthz",
    "/healthz/ping",
    "/pods",
    "/runningpods/",
    "/configz",
    "/statusz",
    "/flagz",
    "/stats/summary",
    "/metrics",
    "/metrics/resource",
    "/metrics/cadvisor",
    "/metrics/probes",
    "/metrics/slis",
    "/containerLogs/n/p/c",
    "/exec/n/p/c",
    "/attach/n/p/u/c",
    "/portForward/n/p",
    "/run/n/p/c",
    "/checkpoint/n/p/c",
    "/logs/syslog",
];
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

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
    for path in ["/", "/exec", "/debug/x", "/stats/container", "/pods/x", "/%zz", "/healthz/x", "/../pods"] {
        assert_eq!(get(path), Err(NoRoute::NotFound), "{path}");
    }
    assert_eq!(find_in(Surface::Full, &Method::POST, "/pods"), Err(NoRoute::WrongMethod("GET, HEAD")));
    assert_eq!(get("/run/n/p/c"), Err(NoRoute::WrongMethod("POST")));
    assert_eq!(get("/checkpoint/n/p/c"), Err(NoRoute::WrongMethod("POST")));
    for path in ["/logs/", "/logs/../../etc/passwd", "/logs/%2e%2e/shadow"] {
        assert_eq!(get(path), Err(NoRoute::Disabled("logs endpoint is disabled.")), "no files of the node: {path}");
    }
}

#[test]
fn every_path_needs_the_subresource_that_kubelet_asks_for() {
    let classic = |verb, subresources| Access { verb, subresources };
    for (method, path, wanted) in [
        (Method::GET, "/metrics/cadvisor", classic("get", &["metrics"][..])),
        (Method::GET, "/runningpods/", classic("get", &["pods", "proxy"])),
        (Method::GET, "/containerLogs/n/p/c", classic("get", &["proxy"])),
        (Method::GET, "/stats/summary", classic("get", &["stats"])),
        (Method::POST, "/checkpoint/n/p/c", classic("create", &["checkpoint"])),
        (Method::GET, "/flagz", classic("get", &["configz"])),
        (Method::GET, "/logs/x", classic("get", &["log"])),
        (Method::DELETE, "/nothing", classic("delete", &["proxy"])),
        (Method::GET, "//pods", classic("get", &["pods", "proxy"])),
        (Method::GET, "/%zz", classic("get", &["proxy"])),
    ] {
        assert_eq!(needs(&method, path), wanted, "{method} {path}");
    }
}

/// kubernetes#119640: who may read through the proxy may not run commands, whatever method the stream comes with and
/// however its path is written.
#[test]
fn to_run_something_in_a_container_needs_create_by_every_method() {
    for path in [
        "/exec/n/p/c",
        "/attach/n/p/c",
        "/portForward/n/p",
        "/run/n/p/c",
        "/%65xec/n/p/c",
        "//exec/n/p/c",
        "/exec%2fn/p/c",
        "/run/",
    ] {
        for method in METHODS {
            let Ok(route) = find_in(Surface::Full, &method, path) else { continue };
            assert_eq!(needs(&method, path).verb, "create", "{method} {path} is {route:?}");
        }
    }
    assert_eq!(needs(&Method::GET, "/%65xec/n/p/c").verb, "create");
    assert_eq!(needs(&Method::GET, "/containerLogs/n/p/c").verb, "get");
}

#[test]
fn no_route_that_reads_takes_another_protocol() {
    let upgraded: Vec<&str> = PATHS.into_iter().filter(|path| may_upgrade(Path::parse(path).as_ref())).collect();
    assert_eq!(upgraded, ["/exec/n/p/c", "/attach/n/p/u/c", "/portForward/n/p"]);
}

#[test]
fn the_read_only_port_reads_and_shows_nothing_that_needs_rights() {
    for path in PATHS {
        for method in METHODS {
            let Ok(route) = find_in(Surface::ReadOnly, &method, path) else { continue };
            assert!(matches!(method, Method::GET | Method::HEAD), "{method} {path}");
            let is_harmless = matches!(
                route,
                Route::Healthz
                    | Route::HealthCheck(_)
                    | Route::Pods
                    | Route::Summary
                    | Route::Metrics
                    | Route::ResourceMetrics
                    | Route::CadvisorMetrics
                    | Route::ProbeMetrics
                    | Route::HealthMetrics
            );
            assert!(is_harmless, "{method} {path}: {route:?}");
        }
    }
    let refused = find_in(Surface::ReadOnly, &Method::POST, "/stats/summary");
    assert_eq!(refused, Err(NoRoute::WrongMethod("GET, HEAD")));
}

#[test]
fn without_debugging_handlers_kubelets_sentence_is_the_answer() {
    let sentence = Err(NoRoute::Disabled("Debug endpoints are disabled."));
    for path in [
        "/run/n/p/c",
        "/exec/n/p/c",
        "/attach/x",
        "/portForward/n/p",
        "/containerLogs/n/p/c",
        "/runningpods/",
        "/logs/",
    ] {
        assert_eq!(find_in(Surface::WithoutDebugging, &Method::POST, path), sentence, "{path}");
    }
    assert_eq!(find_in(Surface::WithoutDebugging, &Method::GET, "/configz"), Err(NoRoute::NotFound));
    assert_eq!(find_in(Surface::WithoutDebugging, &Method::GET, "/pods"), Ok(Route::Pods));
}

#[test]
fn a_query_keeps_order_repetition_and_escapes() {
    let found = query(Some("command=sh&command=-c&command=echo+a%26b&input=1"));
    let values: Vec<&str> = found.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(values, ["sh", "-c", "echo a&b", "1"]);
}
