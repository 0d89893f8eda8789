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

/// One path of each route, in the order of [`place`].
pub(crate) const PATHS: [&str; 20] = [
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
pub(crate) const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];

/// Where a route is in [`PATHS`]. A new route does not compile before it has a place there, and so a part in every attack.
fn place(route: &Route) -> usize {
    match route {
        Route::Healthz => 0,
        Route::HealthCheck(_) => 1,
        Route::Pods => 2,
        Route::RunningPods => 3,
        Route::Configz => 4,
        Route::Statusz => 5,
        Route::Flagz => 6,
        Route::Summary => 7,
        Route::Metrics => 8,
        Route::ResourceMetrics => 9,
        Route::CadvisorMetrics => 10,
        Route::ProbeMetrics => 11,
        Route::HealthMetrics => 12,
        Route::Logs(_) => 13,
        Route::Exec(_) => 14,
        Route::Attach(_) => 15,
        Route::PortForward(_) => 16,
        Route::Run(_) => 17,
        Route::Checkpoint(_) => 18,
        Route::SystemLogs(_) => 19,
    }
}

#[test]
fn every_route_has_its_path_among_those_that_are_attacked() {
    for (index, path) in PATHS.iter().enumerate() {
        let found = get(path).or_else(|_| find_in(Surface::Full, &Method::POST, path));
        assert_eq!(found.as_ref().map(place), Ok(index), "{path}");
    }
}

proptest::proptest! {
    /// However a path is written: what it finds is what was authorized. A parser for rights and another one for routes that
    /// disagree about `%65xec`, `//exec` or `..` is how rights are got around.
    #[test]
    fn no_spelling_of_a_path_finds_more_than_its_rights(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "exec", "attach", "portForward", "run", "containerLogs", "checkpoint", "logs", "metrics", "healthz", "EXEC", "Exec",
            "%65xec", "e%78ec", "exec%2f", "%2fexec", "exec%00", "", "", ".", "..", "%2e%2e", ";x", "exec;x=1", "exec?x", "n", "p",
            "c", "%zz", "\u{ff45}xec",
        ]), 1..7),
        method in proptest::sample::select(METHODS.to_vec()),
    ) {
        let path = format!("/{}", parts.join("/"));
        let access = needs(&method, &path);
        let wanted = match find_in(Surface::Full, &method, &path) {
            Ok(Route::Exec(_) | Route::Attach(_) | Route::PortForward(_) | Route::Run(_)) => Some(("create", &["proxy"][..])),
            Ok(Route::Checkpoint(_)) => Some(("create", &["checkpoint"][..])),
            Ok(Route::Logs(_)) => Some(("get", &["proxy"][..])),
            Ok(Route::SystemLogs(_)) => Some((if method == Method::POST { "create" } else { "get" }, &["log"][..])),
            Ok(_) | Err(_) => None,
        };
        if let Some(wanted) = wanted {
            proptest::prop_assert_eq!((access.verb, access.subresources), wanted, "{} {}", method, path);
            proptest::prop_assert!(find_in(Surface::ReadOnly, &method, &path).is_err());
            proptest::prop_assert!(find_in(Surface::WithoutDebugging, &method, &path).is_err());
        }
        let may = may_upgrade(Path::parse(&path).as_ref());
        proptest::prop_assert!(!may || access.verb == "create", "{} may be upgraded with a right to {}", path, access.verb);
    }
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
    for path in ["/", "/exec", "/debug/x", "/stats/container", "/pods/x", "/%zz", "/healthz/x", "/../pods"] {
        assert_eq!(get(path), Err(NoRoute::NotFound), "{path}");
    }
    assert_eq!(find_in(Surface::Full, &Method::POST, "/pods"), Err(NoRoute::WrongMethod("GET, HEAD")));
    assert_eq!(get("/run/n/p/c"), Err(NoRoute::WrongMethod("POST")));
    assert_eq!(get("/checkpoint/n/p/c"), Err(NoRoute::WrongMethod("POST")));
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
