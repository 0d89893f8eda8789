use super::*;
use k8s_openapi::ByteString;

fn make_secret(name: &str, kind: &str, key: &str, text: &str) -> Arc<Secret> {
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.into());
    secret.metadata.namespace = Some("ns".into());
    secret.metadata.uid = Some(format!("uid-{name}"));
    secret.type_ = Some(kind.into());
    secret.data = Some(BTreeMap::from([(key.to_owned(), ByteString(text.as_bytes().to_vec()))]));
    Arc::new(secret)
}

fn make_config_secret(name: &str, auths: &str) -> Arc<Secret> {
    make_secret(name, "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &format!("{{\"auths\":{auths}}}"))
}

fn users(auths: &str, repository: &str) -> Vec<String> {
    let keyring = Keyring::of_secrets(&[make_config_secret("s", auths)]).unwrap();
    keyring.lookup(repository).into_iter().map(|t| t.credential.username).collect()
}

fn auths(registries: &[&str]) -> String {
    let entries: Vec<String> =
        registries.iter().map(|r| format!("\"{r}\":{{\"username\":\"{r}\",\"password\":\"p\"}}")).collect();
    format!("{{{}}}", entries.join(","))
}

/// The table of `TestURLsMatch` in kubelet's keyring_test.go.
#[test]
fn patterns_match_as_in_kubelets_own_table() {
    for (pattern, target, expected) in [
        ("*.kubernetes.io", "prefix.kubernetes.io", true),
        ("prefix.*.io", "prefix.kubernetes.io", true),
        ("prefix.kubernetes.*", "prefix.kubernetes.io", true),
        ("*-good.kubernetes.io", "prefix-good.kubernetes.io", true),
        ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", true),
        ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", true),
        ("*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111/blah", true),
        ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar", true),
        ("kubernetes.io", "kubernetes.com", false),
        ("k*", "kubernetes.io", false),
        ("kubernetes.io", "kubernetes.com/path", false),
        ("kubernetes.io", "kubernetes.io:1111", false),
        ("*.kubernetes.io:1111", "prefix.kubernetes.io", false),
        ("kubernetes.io/path", "kubernetes.io", false),
        ("*.kubernetes.io", "a.b.kubernetes.io", false),
    ] {
        assert_eq!(matches_url(pattern, target), expected, "{pattern} {target}");
    }
}

#[test]
fn the_longest_path_is_tried_first_and_a_pattern_last() {
    let given = auths(&["reg.io", "*.io", "reg.io/team", "https://reg.io/team/app", "other.io"]);
    assert_eq!(users(&given, "reg.io/team/app"), ["https://reg.io/team/app", "reg.io/team", "reg.io", "*.io"]);
    assert_eq!(users(&given, "reg.io/else"), ["reg.io", "*.io"]);
    assert_eq!(users(&given, "third.org/x"), [""; 0]);
}

#[test]
fn docker_hub_is_found_by_all_names_that_docker_login_gives_it() {
    for entry in ["https://index.docker.io/v1/", "https://index.docker.io/v2/", "index.docker.io", "docker.io"] {
        assert_eq!(users(&auths(&[entry]), "docker.io/library/nginx"), [entry], "{entry}");
    }
    assert_eq!(users(&auths(&["https://index.docker.io/v1/"]), "quay.io/x"), [""; 0]);
}

#[test]
fn every_form_of_a_credential_is_understood() {
    let given = "{\"a.io\":{\"auth\":\"dTpwOnE=\"},\"b.io\":{\"auth\":\"dTpwOnE\"},\"c.io\":{\"username\":\"u\",\
                 \"password\":\"p\",\"email\":\"e\"},\"d.io\":{\"identitytoken\":\"i\"},\"e.io\":{\"registrytoken\":\"r\"}}";
    let keyring = Keyring::of_secrets(&[make_config_secret("s", given)]).unwrap();
    let one = |registry: &str| {
        let found = keyring.lookup(&format!("{registry}/x"));
        let wire = found[0].credential.to_wire();
        [wire.username, wire.password, wire.identity_token, wire.registry_token, wire.server_address]
    };
    assert_eq!(one("a.io"), ["u", "p:q", "", "", ""]);
    assert_eq!(one("b.io"), ["u", "p:q", "", "", ""]);
    assert_eq!(one("c.io"), ["u", "p", "", "", ""]);
    assert_eq!(one("d.io"), ["", "", "i", "", ""]);
    assert_eq!(one("e.io"), ["", "", "", "r", ""]);
}

#[test]
fn secrets_of_both_types_are_read_and_others_are_not() {
    let old = make_secret("old", "kubernetes.io/dockercfg", ".dockercfg", "{\"a.io\":{\"auth\":\"dTpw\"}}");
    let new = make_config_secret("new", "{\"a.io\":{\"auth\":\"dTpx\"}}");
    let opaque = make_secret("opaque", "Opaque", ".dockerconfigjson", "{\"auths\":{\"a.io\":{\"auth\":\"dTpx\"}}}");
    let keyring = Keyring::of_secrets(&[old, new, opaque]).unwrap();
    let found = keyring.lookup("a.io/x");
    let names: Vec<&str> = found.iter().map(|t| t.source.as_ref().unwrap().name.as_str()).collect();
    assert_eq!(names, ["old", "new"], "one entry's credentials in the order of the secrets");
}

#[test]
fn a_secret_that_cannot_be_read_is_named_and_not_quoted() {
    for text in ["{\"auths\":{\"a.io\":\"hunter2\"}}", "{\"auths\":{\"a.io\":{\"auth\":\"hunter2\"}}}", "hunter2"] {
        let secret = make_secret("s", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", text);
        let error = Keyring::of_secrets(&[secret]).err().unwrap();
        assert!(error.starts_with("image pull secret ns/s: ") && !error.contains("hunter2"), "{error}");
    }
    assert!(Keyring::of_secrets(&[make_config_secret("s", "null")]).is_ok());
}

/// kubelet hashes the JSON that Go makes of its `AuthConfig`: filled fields only, HTML's characters escaped.
#[test]
fn the_hash_is_kubelets() {
    let plain = Credential { username: "user".into(), password: "pass".into(), ..Credential::default() };
    assert_eq!(plain.hash(), hex(&Sha256::digest(b"{\"username\":\"user\",\"password\":\"pass\"}")));
    let odd = Credential { username: "a<b>&c".into(), email: "e\u{2028}".into(), ..Credential::default() };
    let json = b"{\"username\":\"a\\u003cb\\u003e\\u0026c\",\"email\":\"e\\u2028\"}";
    assert_eq!(odd.hash(), hex(&Sha256::digest(json)));
    assert_eq!(Credential::default().hash(), hex(&Sha256::digest(b"{}")));
}
