use k8s_openapi::api::core::v1::Pod;

use super::*;

const POD: &str = "apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: main
    image: nginx
";

fn errors(text: &str) -> Vec<String> {
    match decode("web.yaml", text) {
        Ok(decoded) => panic!("expected errors, decoded {:?}", decoded.objects),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

fn pod(text: &str) -> Pod {
    match decode("web.yaml", text).unwrap().objects.remove(0).object {
        Object::Pod(pod) => *pod,
        other => panic!("expected a pod, found {other:?}"),
    }
}

/// A pod whose `spec` continues with `rest`, which begins on line 9.
fn with(rest: &str) -> String {
    format!("{POD}{rest}")
}

#[test]
fn every_error_names_file_line_document_field_and_what_was_expected() {
    let table: &[(&str, String, &str)] = &[
        (
            "text for a number",
            with("    ports:\n    - containerPort: \"80\"\n"),
            "web.yaml:10: document 1: spec.containers[0].ports[0].containerPort: expected a whole number, found text; \
             remove the quotes (\"80\")",
        ),
        (
            "number for text",
            with("    env:\n    - name: A\n      value: 80\n"),
            "web.yaml:11: document 1: spec.containers[0].env[0].value: expected text, found a number; put it in quotes (80)",
        ),
        (
            "boolean for text",
            with("    env:\n    - name: A\n      value: true\n"),
            "web.yaml:11: document 1: spec.containers[0].env[0].value: expected text, found a boolean; put it in quotes \
             (true)",
        ),
        (
            "mapping for a list",
            with("    ports:\n      containerPort: 80\n"),
            "web.yaml:10: document 1: spec.containers[0].ports: expected a list (each entry begins with '- '), found a \
             mapping",
        ),
        (
            "text for a mapping",
            with("    livenessProbe: yes please\n"),
            "web.yaml:9: document 1: spec.containers[0].livenessProbe: expected a mapping with the fields exec, \
             failureThreshold, grpc, httpGet, initialDelaySeconds, periodSeconds, ..., found text",
        ),
        (
            "second document",
            format!("{POD}---\n{}", with("    ports:\n    - containerPort: 99999\n").replace("web", "two")),
            "web.yaml:19: document 2: spec.containers[0].ports[0].containerPort: expected a port from 1 to 65535, found \
             99999",
        ),
        (
            "no kind",
            "apiVersion: v1\nmetadata:\n  name: x\n".to_owned(),
            "web.yaml:1: document 1: kind is missing; every object begins with apiVersion and kind (Pod, ConfigMap, \
             Secret, Service, EndpointSlice, List)",
        ),
        (
            "wrong version",
            POD.replace("v1", "v2"),
            "web.yaml:1: document 1: apiVersion: expected v1 for kind Pod, found v2",
        ),
        (
            "not an object",
            "just text\n".to_owned(),
            "web.yaml:1: document 1: expected an object with apiVersion, kind and metadata, found text",
        ),
        (
            "volume that is not there",
            with("    volumeMounts:\n    - name: data\n      mountPath: /data\n"),
            "web.yaml:10: document 1: spec.containers[0].volumeMounts[0].name: no volume \"data\" in spec.volumes, which \
             has no volumes",
        ),
        (
            "missing image",
            POD.replace("    image: nginx\n", ""),
            "web.yaml:7: document 1: spec.containers[0].image: is required",
        ),
        (
            "upper case name",
            POD.replace("name: web", "name: Web"),
            "web.yaml:4: document 1: metadata.name: expected a DNS name (RFC 1123): at most 253 of a-z, 0-9, '-' and '.', \
             each part beginning and ending with a letter or digit; found \"Web\"",
        ),
        (
            "probe port without that name",
            with("    readinessProbe:\n      httpGet:\n        port: http\n"),
            "web.yaml:11: document 1: spec.containers[0].readinessProbe.httpGet.port: this container has no port named \
             \"http\"",
        ),
        (
            "request above limit",
            with("    resources:\n      limits:\n        cpu: 1\n      requests:\n        cpu: 1500m\n"),
            "web.yaml:13: document 1: spec.containers[0].resources.requests.cpu: must not be larger than the limit",
        ),
        (
            "bad quantity",
            with("    resources:\n      limits:\n        memory: 64MiB\n"),
            "web.yaml:11: document 1: spec.containers[0].resources.limits.memory: expected a quantity such as 100m, 0.5, \
             64Mi or 1G, found \"64MiB\"",
        ),
        (
            "two sources in one volume",
            with("  volumes:\n  - name: v\n    emptyDir: {}\n    hostPath:\n      path: /x\n"),
            "web.yaml:10: document 1: spec.volumes[0]: expected one source, found emptyDir and hostPath",
        ),
        (
            "list item",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: ConfigMap\n  metadata:\n    name: a\n  data: 3\n"
                .to_owned(),
            "web.yaml:8: document 1: items[0].data: expected a mapping (name: value), found a number",
        ),
    ];
    for (name, text, expected) in table {
        assert_eq!(errors(text), vec![(*expected).to_owned()], "{name}");
    }
}

#[test]
fn broken_yaml_names_its_line_also_in_a_later_document() {
    let text = format!("{POD}---\nkind: [Pod\nmetadata: x\n");
    let found = errors(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("web.yaml:1"), "{found:?}");
    assert!(found[0].contains("document 2: not valid YAML: "), "{found:?}");
}

#[test]
fn a_tab_as_indentation_is_explained() {
    let found = errors("apiVersion: v1\nkind: Pod\nmetadata:\n\tname: web\n");
    assert!(found[0].contains("YAML needs spaces"), "{found:?}");
}

#[test]
fn all_errors_of_a_pod_are_reported_together() {
    let text = with("  - name: main\n    image: \" nginx\"\n  restartPolicy: Sometimes\n");
    let found = errors(&text);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(
        found.iter().any(|e| e.contains("web.yaml:11") && e.contains("spec.restartPolicy: expected one of Always"))
    );
    assert!(found.iter().any(|e| e.contains("web.yaml:9") && e.contains("used by two containers")));
}

#[test]
fn a_secrets_value_never_reaches_a_message() {
    for field in ["stringData:\n  password: 31337", "data:\n  password: \"?31337?\"", "data:\n  password: 31337"] {
        let text = format!("apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\n{field}\n");
        let found = errors(&text);
        assert!(found[0].contains("password") && found[0].contains("expected") || found[0].contains("not acceptable"));
        assert!(!found[0].contains("31337"), "{found:?}");
    }
    let good = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: s\nstringData:\n  password: \"31337\"\n";
    assert!(!format!("{:?}", decode("s.yaml", good).unwrap()).contains("31337"));
}

#[test]
fn unknown_kinds_and_fields_are_warned_by_name() {
    let text = format!("{}---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: d\n", with("    imagee: x\n"));
    let decoded = decode("web.yaml", &text).unwrap();
    let warnings = decoded.warnings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        warnings,
        [
            "web.yaml:9: document 1: spec.containers[0].imagee: unknown field, ignored; check its spelling and its place",
            "web.yaml:11: document 2: Deployment d (apps/v1) ignored: a node running alone takes Pod, ConfigMap, Secret, \
             Service, EndpointSlice, List",
        ]
    );
    assert_eq!(decoded.objects.len(), 1);
}

#[test]
fn several_documents_empty_ones_and_comments_are_counted_as_people_count() {
    let text = format!("# head\n---\n{POD}---\n# nothing here\n---\n{}", POD.replace("web", "two"));
    let decoded = decode("web.yaml", &text).unwrap();
    let places = decoded.objects.iter().map(|o| (o.object.key().to_string(), o.line)).collect::<Vec<_>>();
    assert_eq!(places, [("default/web".to_owned(), 3), ("default/two".to_owned(), 14)]);
}

#[test]
fn json_with_tabs_and_crlf_yaml_are_read() {
    let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"ConfigMap\",\n\t\"metadata\": {\"name\": \"c\"},\n\t\"data\": \
                {\"a\": \"b\"}\n}\n";
    assert_eq!(decode("c.json", json).unwrap().objects[0].object.kind(), "ConfigMap");
    assert_eq!(pod(&POD.replace('\n', "\r\n")).metadata.name.as_deref(), Some("web"));
}

#[test]
fn values_that_yaml_and_kubernetes_read_in_their_own_way() {
    let text = with(
        "    resources:\n      limits:\n        cpu: 0.5\n        memory: 1000000000\n  volumes:\n  - name: c\n    configMap:\n      \
         name: c\n      defaultMode: 0600\n",
    );
    let pod = pod(&text);
    let spec = pod.spec.unwrap();
    let limits = spec.containers[0].resources.as_ref().unwrap().limits.clone().unwrap();
    assert_eq!((limits["cpu"].0.as_str(), limits["memory"].0.as_str()), ("0.5", "1000000000"));
    assert_eq!(spec.volumes.unwrap()[0].config_map.as_ref().unwrap().default_mode, Some(0o600));
}

#[test]
fn a_config_map_may_have_numeric_keys_and_anchors_work() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\n  labels: &l\n    app: x\n  annotations: *l\ndata:\n  80: \
                a\n";
    match &decode("c.yaml", text).unwrap().objects[0].object {
        Object::ConfigMap(map) => {
            assert_eq!(map.data.as_ref().unwrap()["80"], "a");
            assert_eq!(map.metadata.annotations.as_ref().unwrap()["app"], "x");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_gets_the_api_servers_defaults() {
    let text = with(
        "    ports:\n    - containerPort: 80\n    resources:\n      limits:\n        cpu: 100m\n    livenessProbe:\n      httpGet:\n        \
         port: 80\n    env:\n    - name: IP\n      valueFrom:\n        fieldRef:\n          fieldPath: status.podIP\n  hostNetwork: \
         true\n  volumes:\n  - name: e\n  - name: c\n    configMap:\n      name: c\n",
    );
    let json = serde_json::to_value(pod(&text)).unwrap();
    let at = |path: &str| json.pointer(path).cloned().unwrap_or(serde_json::Value::Null);
    let table = [
        ("/metadata/namespace", serde_json::json!("default")),
        ("/spec/restartPolicy", serde_json::json!("Always")),
        ("/spec/dnsPolicy", serde_json::json!("ClusterFirst")),
        ("/spec/terminationGracePeriodSeconds", serde_json::json!(30)),
        ("/spec/securityContext", serde_json::json!({})),
        ("/spec/enableServiceLinks", serde_json::json!(true)),
        ("/spec/schedulerName", serde_json::json!("default-scheduler")),
        ("/spec/containers/0/imagePullPolicy", serde_json::json!("Always")),
        ("/spec/containers/0/terminationMessagePath", serde_json::json!("/dev/termination-log")),
        ("/spec/containers/0/terminationMessagePolicy", serde_json::json!("File")),
        ("/spec/containers/0/ports/0/protocol", serde_json::json!("TCP")),
        ("/spec/containers/0/ports/0/hostPort", serde_json::json!(80)),
        ("/spec/containers/0/resources/requests/cpu", serde_json::json!("100m")),
        ("/spec/containers/0/livenessProbe/timeoutSeconds", serde_json::json!(1)),
        ("/spec/containers/0/livenessProbe/periodSeconds", serde_json::json!(10)),
        ("/spec/containers/0/livenessProbe/successThreshold", serde_json::json!(1)),
        ("/spec/containers/0/livenessProbe/failureThreshold", serde_json::json!(3)),
        ("/spec/containers/0/livenessProbe/httpGet/path", serde_json::json!("/")),
        ("/spec/containers/0/livenessProbe/httpGet/scheme", serde_json::json!("HTTP")),
        ("/spec/containers/0/env/0/valueFrom/fieldRef/apiVersion", serde_json::json!("v1")),
        ("/spec/volumes/0/emptyDir", serde_json::json!({})),
        ("/spec/volumes/1/configMap/defaultMode", serde_json::json!(420)),
    ];
    for (path, expected) in table {
        assert_eq!(at(path), expected, "{path}");
    }
}

#[test]
fn the_pull_policy_follows_the_tag() {
    let table = [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("registry:5000/nginx", "Always"),
        ("nginx:1.27", "IfNotPresent"),
        ("registry:5000/a/nginx:1", "IfNotPresent"),
        ("nginx@sha256:0123", "IfNotPresent"),
        ("nginx:latest@sha256:0123", "Always"),
    ];
    for (image, policy) in table {
        let pod = pod(&POD.replace("nginx", image));
        assert_eq!(pod.spec.unwrap().containers[0].image_pull_policy.as_deref(), Some(policy), "{image}");
    }
}

#[test]
fn defaulting_twice_changes_nothing() {
    let mut once = pod(&with("    readinessProbe:\n      tcpSocket:\n        port: 80\n"));
    let before = once.clone();
    pod_defaults(&mut once);
    assert_eq!(once, before);
}

#[test]
fn a_service_gets_its_defaults_and_its_checks() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  selector:\n    app: web\n  ports:\n  - port: 80\n";
    match &decode("s.yaml", text).unwrap().objects[0].object {
        Object::Service(service) => {
            let spec = service.spec.as_ref().unwrap();
            let port = &spec.ports.as_ref().unwrap()[0];
            assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
            assert_eq!(port.protocol.as_deref(), Some("TCP"));
            assert_eq!(serde_json::to_value(&port.target_port).unwrap(), serde_json::json!(80));
        }
        other => panic!("{other:?}"),
    }
    let two = text.replace("  - port: 80\n", "  - port: 80\n  - port: 81\n");
    assert_eq!(errors(&two).len(), 2, "both ports need a name");
    let ip = text.replace("spec:\n", "spec:\n  clusterIP: 10.0.0\n");
    assert_eq!(errors(&ip), ["web.yaml:6: document 1: spec.clusterIP: expected an IP address, found \"10.0.0\""]);
}

#[test]
fn bytes_that_are_not_text_are_refused_with_their_line() {
    let error = decode_bytes("x.yaml", b"a: b\nc: \xff\n").unwrap_err();
    assert_eq!(error.0[0].line, 2);
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_decoder_panic(text in "(---|\\n| |-|:|a|kind: Pod|apiVersion: v1|metadata:|spec:|\\[|\\{|\"|&a|\\*a|\\||\t){0,40}") {
        let _ = decode("x.yaml", &text);
    }

    #[test]
    fn a_truncated_manifest_never_panics(cut in 0usize..400) {
        let text = with("    ports:\n    - containerPort: 80\n      name: http\n    env:\n    - name: A\n      value: b\n");
        let cut = cut.min(text.len());
        let _ = decode("x.yaml", &text[..cut]);
    }
}
