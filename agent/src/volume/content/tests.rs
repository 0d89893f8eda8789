use super::*;
use crate::quantity::Quantity;
use serde_json::{Value, json};

fn context(pod: &Pod) -> Context<'_> {
    static ALLOCATABLE: std::sync::LazyLock<BTreeMap<String, Quantity>> = std::sync::LazyLock::new(|| {
        [("cpu", "1900m"), ("memory", "3Gi"), ("hugepages-2Mi", "64Mi")]
            .map(|(name, amount)| (name.to_owned(), Quantity::parse(amount).unwrap()))
            .into()
    });
    Context { pod, allocatable: &ALLOCATABLE, group: None, user: None }
}

fn pod(value: Value) -> Pod {
    serde_json::from_value(value).unwrap()
}

fn atomic(volume: Value) -> Atomic {
    let mut volume = volume;
    volume["name"] = json!("v");
    let pod = pod(json!({"spec": {"volumes": [volume],
        "containers": [{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}}));
    match super::super::plan::wanted(&pod).remove(0).source {
        super::super::plan::Source::Atomic(atomic) => atomic,
        other => panic!("{other:?}"),
    }
}

fn config_map() -> Fetched {
    let map = json!({"data": {"a": "text", "b": "more"}, "binaryData": {"bin": "/wA="}});
    Fetched::ConfigMap(Arc::new(serde_json::from_value(map).unwrap()))
}

fn texts(payload: &Payload) -> Vec<(String, Vec<u8>, u32)> {
    payload.iter().map(|(path, file)| (path.clone(), file.data.clone(), file.mode)).collect()
}

#[test]
fn all_keys_of_a_config_map_are_files() {
    let files =
        payload(&atomic(json!({"configMap": {"name": "m"}})), &[config_map()], &context(&Pod::default())).unwrap();
    assert_eq!(
        texts(&files),
        [
            ("a".to_owned(), b"text".to_vec(), 0o644),
            ("b".to_owned(), b"more".to_vec(), 0o644),
            ("bin".to_owned(), vec![0xff, 0], 0o644),
        ]
    );
}

#[test]
fn items_choose_keys_paths_and_modes() {
    let volume = json!({"configMap": {"name": "m", "defaultMode": 0o400,
        "items": [{"key": "a", "path": "x/./y", "mode": 0o777}, {"key": "bin", "path": "z"}]}});
    let files = payload(&atomic(volume), &[config_map()], &context(&Pod::default())).unwrap();
    assert_eq!(texts(&files), [("x/y".to_owned(), b"text".to_vec(), 0o777), ("z".to_owned(), vec![0xff, 0], 0o400)]);
}

#[test]
fn a_missing_key_is_an_error_unless_optional() {
    let volume =
        |optional| json!({"configMap": {"name": "m", "optional": optional, "items": [{"key": "no", "path": "x"}]}});
    let error = payload(&atomic(volume(false)), &[config_map()], &context(&Pod::default())).unwrap_err();
    assert_eq!(error, "configmap references non-existent config key: no");
    assert!(payload(&atomic(volume(true)), &[config_map()], &context(&Pod::default())).unwrap().is_empty());
    assert!(payload(&atomic(volume(true)), &[Fetched::Nothing], &context(&Pod::default())).unwrap().is_empty());
}

#[test]
fn paths_that_leave_the_volume_are_refused() {
    for path in ["../x", "a/../../x", "/etc/passwd", "", "..data", "..data/x", "..x", "."] {
        let volume = json!({"configMap": {"name": "m", "items": [{"key": "a", "path": path}]}});
        let result = payload(&atomic(volume), &[config_map()], &context(&Pod::default()));
        assert!(result.is_err_and(|e| e.starts_with("invalid path")), "{path}");
    }
    let both = json!({"configMap": {"name": "m", "items": [{"key": "a", "path": "x"}, {"key": "b", "path": "x/y"}]}});
    assert!(payload(&atomic(both), &[config_map()], &context(&Pod::default())).is_err());
}

#[test]
fn a_projected_volume_merges_its_sources_and_reports_all_problems() {
    let secret = json!({"data": {"a": "c2VjcmV0"}});
    let secret = Fetched::Secret(Arc::new(serde_json::from_value(secret).unwrap()));
    let volume = json!({"projected": {"defaultMode": 0o440, "sources": [
        {"configMap": {"name": "m"}},
        {"secret": {"name": "s"}},
        {"serviceAccountToken": {"path": "token"}}]}});
    let token = Fetched::Token(Token { token: "jwt".to_owned(), expires_at: 2, issued_at: 1 });
    let files =
        payload(&atomic(volume.clone()), &[config_map(), secret, token.clone()], &context(&Pod::default())).unwrap();
    assert_eq!(files["a"].data, b"secret", "a later source wins");
    assert_eq!((files["token"].data.as_slice(), files["token"].mode), (b"jwt".as_slice(), 0o440));
    assert!(!format!("{files:?}").contains("secret"), "no content in logs");

    let failed = |text: &str| Fetched::Failed(text.to_owned());
    let error =
        payload(&atomic(volume), &[failed("one"), failed("two"), token], &context(&Pod::default())).unwrap_err();
    assert_eq!(error, "one, two");
}

#[test]
fn a_token_is_private_when_it_can_belong_to_somebody() {
    let volume = json!({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}});
    let token = Fetched::Token(Token { token: "jwt".to_owned(), expires_at: 2, issued_at: 1 });
    let pod = Pod::default();
    for (group, user, mode) in [(None, None, 0o644), (Some(5), None, 0o600), (None, Some(7), 0o600)] {
        let context = Context { group, user, ..context(&pod) };
        let files = payload(&atomic(volume.clone()), std::slice::from_ref(&token), &context).unwrap();
        assert_eq!((files["token"].mode, files["token"].user), (mode, user));
    }
}

#[test]
fn unsupported_projections_say_so() {
    for key_type in ["RSA3072", "RSA4096", "ECDSAP521", "ed25519"] {
        let volume =
            json!({"projected": {"sources": [{"podCertificate": {"keyType": key_type, "signerName": "x/y"}}]}});
        let error = payload(&atomic(volume), &[Fetched::Nothing], &context(&Pod::default())).unwrap_err();
        assert!(error.contains(&format!("keyType \"{key_type}\" is not supported")), "{error}");
    }
}

#[test]
fn the_downward_api_shows_metadata() {
    let pod = pod(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
        "labels": {"b": "2", "a": "1\"\n"}, "annotations": {"x/y": "z"}}}));
    for (path, text) in [
        ("metadata.name", "p"),
        ("metadata.namespace", "n"),
        ("metadata.uid", "u"),
        ("metadata.labels", "a=\"1\\\"\\n\"\nb=\"2\""),
        ("metadata.labels['b']", "2"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['x/y']", "z"),
    ] {
        assert_eq!(metadata_field(&pod, path).as_deref(), Ok(text), "{path}");
    }
    for path in ["spec.nodeName", "metadata.name['x']", "metadata.labels['x", ""] {
        assert!(metadata_field(&pod, path).is_err(), "{path}");
    }
}

#[test]
fn resources_are_divided_and_default_to_allocatable() {
    let pod = pod(json!({"spec": {"containers": [
        {"name": "set", "resources": {"limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}},
        {"name": "unset"}]}}));
    for (name, resource, divisor, text) in [
        ("set", "limits.cpu", None, "2"),
        ("set", "limits.cpu", Some("1m"), "1250"),
        ("set", "requests.cpu", Some("1m"), "100"),
        ("set", "limits.memory", None, "67108864"),
        ("set", "limits.memory", Some("1Mi"), "64"),
        ("set", "limits.memory", Some("1M"), "68"),
        ("set", "requests.memory", None, "0"),
        ("unset", "limits.cpu", None, "2"),
        ("unset", "limits.memory", Some("1Gi"), "3"),
        ("unset", "limits.hugepages-2Mi", None, "0"),
        ("unset", "limits.ephemeral-storage", None, "0"),
    ] {
        let divisor = divisor.map(|d| Quantity::parse(d).unwrap());
        let container = container(&pod, name).unwrap();
        let context = context(&pod);
        assert_eq!(
            resource_field(container, resource, divisor, context.allocatable).as_deref(),
            Ok(text),
            "{resource}"
        );
    }
    assert!(container(&pod, "none").is_err());
    assert!(resource_field(container(&pod, "set").unwrap(), "limits.gpu", None, &BTreeMap::new()).is_err());
}

proptest::proptest! {
    #[test]
    fn clean_paths_stay_inside(path in "[a./]{0,12}") {
        if let Ok(cleaned) = clean_path(&path) {
            proptest::prop_assert!(!cleaned.is_empty() && !cleaned.starts_with('/') && !cleaned.starts_with(".."));
            proptest::prop_assert!(cleaned.split('/').all(super::super::safe_path::is_component));
            proptest::prop_assert_eq!(clean_path(&cleaned), Ok(cleaned.clone()));
        }
    }

    #[test]
    fn quoted_text_has_no_raw_line_end_or_quote(text in "\\PC*|[\\x00-\\x7f]*") {
        let quoted = quoted(&text);
        let inner = &quoted[1..quoted.len() - 1];
        proptest::prop_assert!(!inner.contains('\n'));
        proptest::prop_assert!(!inner.replace("\\\\", "").replace("\\\"", "").contains('"'));
    }
}
