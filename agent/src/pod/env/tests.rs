//! Tables of the environment: order, precedence, references, and what is missing.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMapEnvSource, ConfigMapKeySelector, EnvFromSource, EnvVar, PodSpec, ResourceFieldSelector,
    ResourceRequirements, SecretEnvSource, SecretKeySelector,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::*;
use crate::objects::ServiceEnvPort;

fn make_pod() -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some("u".into());
    pod.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    pod.metadata.annotations = Some(BTreeMap::from([("x/y".to_owned(), "note".to_owned())]));
    pod.spec = Some(PodSpec {
        service_account_name: Some("robot".into()),
        enable_service_links: Some(false),
        ..PodSpec::default()
    });
    pod
}

fn make_sources() -> Sources {
    let data = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let map = ConfigMap { data: Some(data(&[("A", "map"), ("has space", "1"), ("bad=key", "2")])), ..<_>::default() };
    let secret_data = BTreeMap::from([("A".to_owned(), ByteString(b"secret".to_vec()))]);
    let secret = Secret { data: Some(secret_data), ..Secret::default() };
    Sources {
        files: BTreeMap::new(),
        config_maps: BTreeMap::from([("map".to_owned(), Arc::new(map))]),
        secrets: BTreeMap::from([("sec".to_owned(), Arc::new(secret))]),
        services: Vec::new(),
        pod_ips: vec!["10.0.0.5".into(), "fd00::5".into()],
        host_ips: vec!["192.0.2.10".into()],
        node_name: "node-1".into(),
        allocatable: BTreeMap::from([
            ("cpu".to_owned(), Quantity::parse("3500m").unwrap()),
            ("memory".to_owned(), Quantity::parse("1Gi").unwrap()),
        ]),
    }
}

fn value(name: &str, text: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(text.into()), value_from: None }
}

fn from(name: &str, source: EnvVarSource) -> EnvVar {
    EnvVar { name: name.into(), value: None, value_from: Some(source) }
}

fn from_map(prefix: Option<&str>, name: &str, optional: bool) -> EnvFromSource {
    EnvFromSource {
        prefix: prefix.map(str::to_owned),
        config_map_ref: Some(ConfigMapEnvSource { name: name.into(), optional: Some(optional) }),
        secret_ref: None,
    }
}

fn from_secret(name: &str, optional: bool) -> EnvFromSource {
    EnvFromSource {
        prefix: None,
        config_map_ref: None,
        secret_ref: Some(SecretEnvSource { name: name.into(), optional: Some(optional) }),
    }
}

fn map_key(name: &str, key: &str, optional: bool) -> EnvVarSource {
    let selector = ConfigMapKeySelector { name: name.into(), key: key.into(), optional: Some(optional) };
    EnvVarSource { config_map_key_ref: Some(selector), ..EnvVarSource::default() }
}

fn secret_key(name: &str, key: &str, optional: bool) -> EnvVarSource {
    let selector = SecretKeySelector { name: name.into(), key: key.into(), optional: Some(optional) };
    EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() }
}

fn container(env_from: Vec<EnvFromSource>, env: Vec<EnvVar>) -> Container {
    Container { name: "app".into(), env_from: Some(env_from), env: Some(env), ..Container::default() }
}

/// The environment as `NAME=VALUE` words.
fn resolved(container: &Container, sources: &Sources) -> Result<Vec<String>, String> {
    let env = resolve(&make_pod(), container, sources).map_err(|error| error.to_string())?;
    Ok(env.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

#[test]
fn env_wins_over_env_from_and_later_env_from_over_earlier() {
    let all = container(vec![from_map(None, "map", false), from_secret("sec", false)], vec![]);
    assert_eq!(resolved(&all, &make_sources()).unwrap(), ["A=secret", "has space=1"]);
    let own = container(vec![from_map(None, "map", false)], vec![value("A", "own"), value("B", "")]);
    assert_eq!(resolved(&own, &make_sources()).unwrap(), ["A=own", "has space=1", "B="]);
    let prefixed = container(vec![from_map(Some("P_"), "map", false)], vec![]);
    assert_eq!(resolved(&prefixed, &make_sources()).unwrap(), ["P_A=map", "P_has space=1"]);
}

#[test]
fn references_see_what_was_defined_before_and_services() {
    let mut sources = make_sources();
    sources.services = vec![service("kubernetes", "10.96.0.1", &[("https", "TCP", 443)])];
    let env = vec![
        value("FIRST", "$(LATER) $(A)"),
        value("LATER", "2"),
        value("A", "$(A)!"),
        value("ESCAPED", "$$(LATER)"),
        value("HOST", "$(KUBERNETES_SERVICE_HOST)"),
    ];
    let env = resolved(&container(vec![from_map(None, "map", false)], env), &sources).unwrap();
    for expected in ["FIRST=$(LATER) map", "LATER=2", "A=map!", "ESCAPED=$(LATER)", "HOST=10.96.0.1"] {
        assert!(env.contains(&expected.to_owned()), "{expected} in {env:?}");
    }
}

#[test]
fn what_is_missing_is_an_error_unless_optional() {
    let sources = make_sources();
    let table: [(Container, &str); 6] = [
        (container(vec![from_map(None, "none", false)], vec![]), "configmap \"none\" not found"),
        (container(vec![from_secret("none", false)], vec![]), "secret \"none\" not found"),
        (container(vec![], vec![from("X", map_key("none", "A", false))]), "configmap \"none\" not found"),
        (container(vec![], vec![from("X", map_key("map", "Z", false))]), "couldn't find key Z in ConfigMap ns/map"),
        (container(vec![], vec![from("X", secret_key("none", "A", false))]), "secret \"none\" not found"),
        (container(vec![], vec![from("X", secret_key("sec", "Z", false))]), "couldn't find key Z in Secret ns/sec"),
    ];
    for (container, error) in table {
        assert_eq!(resolved(&container, &sources).unwrap_err(), error);
    }
    let optional = container(
        vec![from_map(None, "none", true), from_secret("none", true)],
        vec![
            from("A", map_key("none", "A", true)),
            from("B", map_key("map", "Z", true)),
            from("C", secret_key("none", "A", true)),
            from("D", secret_key("sec", "Z", true)),
            from("E", map_key("map", "A", true)),
            from("F", secret_key("sec", "A", false)),
        ],
    );
    assert_eq!(resolved(&optional, &sources).unwrap(), ["E=map", "F=secret"]);
}

#[test]
fn fields_of_the_pod() {
    for (path, expected) in [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u"),
        ("metadata.labels['app']", "web"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['x/y']", "note"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "robot"),
        ("status.hostIP", "192.0.2.10"),
        ("status.hostIPs", "192.0.2.10"),
        ("status.podIP", "10.0.0.5"),
        ("status.podIPs", "10.0.0.5,fd00::5"),
    ] {
        let field = ObjectFieldSelector { field_path: path.into(), api_version: None };
        let env = vec![from("X", EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() })];
        let expected = [format!("X={expected}")];
        assert_eq!(resolved(&container(vec![], env), &make_sources()).unwrap(), expected, "{path}");
    }
    for path in ["status.phase", "metadata.labels", "metadata.labels[app]", ""] {
        let field = ObjectFieldSelector { field_path: path.into(), api_version: None };
        let error = field_value(&make_pod(), &field, &make_sources()).unwrap_err();
        assert_eq!(error, EnvError::Field(path.into()));
    }
}

#[test]
fn resources_are_divided_and_rounded_up_and_a_missing_limit_is_the_nodes() {
    let amounts = |pairs: &[(&str, &str)]| {
        Some(pairs.iter().map(|(k, v)| ((*k).to_owned(), ApiQuantity((*v).to_owned()))).collect::<BTreeMap<_, _>>())
    };
    let mut stated = container(vec![], vec![]);
    stated.resources = Some(ResourceRequirements {
        limits: amounts(&[("cpu", "1500m"), ("memory", "100Mi"), ("hugepages-2Mi", "4Mi")]),
        requests: amounts(&[("cpu", "250m")]),
        ..ResourceRequirements::default()
    });
    let empty = container(vec![], vec![]);
    for (container, resource, divisor, expected) in [
        (&stated, "limits.cpu", "0", "2"),
        (&stated, "limits.cpu", "1m", "1500"),
        (&stated, "requests.cpu", "1", "1"),
        (&stated, "limits.memory", "1Mi", "100"),
        (&stated, "limits.memory", "1Gi", "1"),
        (&stated, "limits.memory", "1", "104857600"),
        (&stated, "limits.hugepages-2Mi", "1Mi", "4"),
        (&stated, "requests.memory", "1Mi", "0"),
        (&empty, "limits.cpu", "1m", "3500"),
        (&empty, "limits.cpu", "1", "4"),
        (&empty, "limits.memory", "1Mi", "1024"),
        (&empty, "requests.cpu", "1", "0"),
    ] {
        let selector = ResourceFieldSelector {
            resource: resource.into(),
            divisor: Some(ApiQuantity(divisor.into())),
            container_name: None,
        };
        let source = EnvVarSource { resource_field_ref: Some(selector), ..EnvVarSource::default() };
        let container = Container { env: Some(vec![from("X", source)]), ..container.clone() };
        let env = resolved(&container, &make_sources()).unwrap();
        assert_eq!(env, [format!("X={expected}")], "{resource} / {divisor}");
    }
    for resource in ["cpu", "limits.nvidia.com/gpu", "usage.cpu"] {
        let error = resource_value(&empty, resource, None, &BTreeMap::new()).unwrap_err();
        assert_eq!(error, EnvError::Resource(resource.into()));
    }
}

fn service(name: &str, ip: &str, ports: &[(&str, &str, u16)]) -> ServiceEnv {
    let port = |(name, protocol, port): &(&str, &str, u16)| ServiceEnvPort {
        name: (*name).to_owned(),
        protocol: (*protocol).to_owned(),
        port: *port,
    };
    ServiceEnv { name: name.into(), cluster_ip: ip.into(), ports: ports.iter().map(port).collect() }
}

#[test]
fn service_variables_are_those_of_docker_links() {
    let mut pod = make_pod();
    pod.spec.as_mut().unwrap().enable_service_links = None;
    let services = [
        service("my-db", "10.96.0.7", &[("sql", "TCP", 5432), ("web-ui", "UDP", 80)]),
        service("six", "fd00::1", &[("", "TCP", 1)]),
    ];
    let variables = service_variables(&pod, &services);
    let words: Vec<String> = variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        words,
        [
            "MY_DB_PORT=tcp://10.96.0.7:5432",
            "MY_DB_PORT_5432_TCP=tcp://10.96.0.7:5432",
            "MY_DB_PORT_5432_TCP_ADDR=10.96.0.7",
            "MY_DB_PORT_5432_TCP_PORT=5432",
            "MY_DB_PORT_5432_TCP_PROTO=tcp",
            "MY_DB_PORT_80_UDP=udp://10.96.0.7:80",
            "MY_DB_PORT_80_UDP_ADDR=10.96.0.7",
            "MY_DB_PORT_80_UDP_PORT=80",
            "MY_DB_PORT_80_UDP_PROTO=udp",
            "MY_DB_SERVICE_HOST=10.96.0.7",
            "MY_DB_SERVICE_PORT=5432",
            "MY_DB_SERVICE_PORT_SQL=5432",
            "MY_DB_SERVICE_PORT_WEB_UI=80",
            "SIX_PORT=tcp://[fd00::1]:1",
            "SIX_PORT_1_TCP=tcp://[fd00::1]:1",
            "SIX_PORT_1_TCP_ADDR=fd00::1",
            "SIX_PORT_1_TCP_PORT=1",
            "SIX_PORT_1_TCP_PROTO=tcp",
            "SIX_SERVICE_HOST=fd00::1",
            "SIX_SERVICE_PORT=1",
        ]
    );
}

#[test]
fn without_service_links_only_kubernetes_is_named_and_own_variables_win() {
    let mut sources = make_sources();
    sources.services =
        vec![service("db", "10.96.0.7", &[("", "TCP", 1)]), service("kubernetes", "10.96.0.1", &[("", "TCP", 443)])];
    let env = resolved(&container(vec![], vec![value("KUBERNETES_SERVICE_HOST", "mine")]), &sources).unwrap();
    assert!(env.contains(&"KUBERNETES_SERVICE_HOST=mine".to_owned()), "{env:?}");
    assert!(env.contains(&"KUBERNETES_SERVICE_PORT=443".to_owned()), "{env:?}");
    assert!(!env.iter().any(|word| word.starts_with("DB_") || word.ends_with("SERVICE_HOST=10.96.0.1")), "{env:?}");
}

#[test]
fn the_objects_of_an_environment_are_found_for_watching() {
    let env = vec![from("X", map_key("m", "k", true)), from("Y", secret_key("s", "k", false)), value("Z", "1")];
    let refs = object_refs("ns", &container(vec![from_map(None, "m2", false), from_secret("s2", true)], env));
    let map = |name: &str| ObjectRef::ConfigMap(ObjectKey::new("ns", name));
    let secret = |name: &str| ObjectRef::Secret(ObjectKey::new("ns", name));
    assert_eq!(refs, [map("m2"), secret("s2"), map("m"), secret("s")]);
}

#[test]
fn a_variable_comes_from_a_file_of_a_volume_and_only_an_optional_key_may_be_missing() {
    let file = |key: &str, optional| {
        let file_key_ref = FileKeySelector {
            key: key.into(),
            optional: Some(optional),
            path: "env".into(),
            volume_name: "config".into(),
        };
        vec![from("X", EnvVarSource { file_key_ref: Some(file_key_ref), ..EnvVarSource::default() })]
    };
    let mut sources = make_sources();
    let of = |env, sources: &Sources| resolved(&container(vec![], env), sources);
    assert!(of(file("A", true), &sources).unwrap_err().to_string().contains("cannot find the volume \"config\""));
    sources.files.insert(("config".into(), "env".into()), Ok("A='1'\nB=''".into()));
    assert!(of(file("A", false), &sources).unwrap().contains(&"X=1".to_owned()));
    for key in ["B", "C"] {
        assert!(of(file(key, true), &sources).unwrap().iter().all(|word| !word.starts_with("X=")), "{key}");
        let error = of(file(key, false), &sources).unwrap_err().to_string();
        assert_eq!(error, format!("environment variable key \"{key}\" not found in file \"env\" of volume \"config\""));
    }
    sources.files.insert(("config".into(), "env".into()), Ok("A=1".into()));
    assert!(of(file("A", true), &sources).unwrap_err().to_string().contains("line 1"), "what is wrong is told");
}
