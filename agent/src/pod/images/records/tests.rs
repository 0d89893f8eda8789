use super::*;

fn make_secret(name: &str, hash: &str) -> PullSecret {
    PullSecret { uid: format!("uid-{name}"), namespace: "ns".into(), name: name.into(), credential_hash: hash.into() }
}

fn make_record(image: &str, with: Option<PullCredentials>) -> PulledRecord {
    merged(None, image, "sha256:1", with, "2026-01-01T00:00:00Z").unwrap().unwrap()
}

fn pulled_with(name: &str, hash: &str) -> Known {
    Known::Pulled(make_record("reg.io/a:1", Some(PullCredentials::of(Some(make_secret(name, hash))))))
}

/// Records of kubelet's own test data, v1alpha1 and v1beta1.
#[test]
fn kubelets_records_are_read() {
    for (text, names) in [
        (
            r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"testimageref","credentialMapping":{"docker.io/testing/test":{"kubernetesSecrets":[{"uid":"testsecretuid","namespace":"default","name":"pull-secret","credentialHash":"testsecrethash"}]}}}"#,
            vec!["docker.io/testing/test"],
        ),
        (
            r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"testimageref-sa","credentialMapping":{"docker.io/testing/test":{"kubernetesServiceAccounts":[{"uid":"test-sa-uid","namespace":"default","name":"test-sa"}]}}}"#,
            vec!["docker.io/testing/test"],
        ),
        (
            r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"testemptycredmapping"}"#,
            vec![],
        ),
    ] {
        let record = PulledRecord::decode(text.as_bytes()).unwrap();
        assert_eq!(record.credential_mapping.keys().collect::<Vec<_>>(), names);
        assert_eq!(String::from_utf8(encode(&record)).unwrap(), format!("{text}\n"));
    }
    let other = r#"{"kind":"Pod","apiVersion":"v1","lastUpdatedTime":"","imageRef":""}"#;
    assert!(PulledRecord::decode(other.as_bytes()).unwrap_err().to_string().contains("expected ImagePulledRecord"));
}

/// Names and contents of files in kubelet's own test data.
#[test]
fn file_names_are_kubelets() {
    for (image, hash) in [
        ("secretorg/myimage:customtag", "5f3ca9e4d82e32203c2fafb410dfae9c8047bc6ebe57d642fe264d479e152955"),
        ("docker.io/testing/test-alpha:latest", "6da3dced7eccc7ad0189517c31ec2235b50f730449d738d91525721f7e027fd4"),
    ] {
        assert_eq!(file_name(image), format!("sha256-{hash}"));
    }
}

#[test]
fn policies_decide_which_images_ask_for_credentials() {
    let list = Allowlist::parse(&["reg.io/free/*".into(), "busybox".into()]).unwrap();
    let listed = Policy::NeverVerifyAllowlistedImages(list);
    let foreign = pulled_with("s", "h");
    for (policy, image, known, asks) in [
        (Policy::NeverVerify, "reg.io/a:1", &foreign, false),
        (Policy::NeverVerifyPreloadedImages, "reg.io/a:1", &foreign, true),
        (Policy::NeverVerifyPreloadedImages, "reg.io/a:1", &Known::Nothing, false),
        (Policy::NeverVerifyPreloadedImages, "reg.io/a:1", &Known::Intent, true),
        (listed.clone(), "reg.io/free/x:1", &foreign, false),
        (listed.clone(), "busybox:1", &Known::Nothing, false),
        (listed.clone(), "busybox2", &Known::Nothing, true),
        (listed, "reg.io/freedom", &Known::Nothing, true),
        (Policy::AlwaysVerify, "reg.io/a:1", &Known::Nothing, true),
    ] {
        let found = access(&policy, image, known) != Access::Granted;
        assert_eq!(found, asks, "{policy:?} {image} {known:?}");
    }
}

#[test]
fn an_allowlist_takes_repositories_and_prefixes_only() {
    for pattern in [" a", "a:1", "*", "/*", "a*", "a/*/b", "a/*/*", "A", ""] {
        let error = Allowlist::parse(&[pattern.to_owned()]).unwrap_err();
        assert!(error.contains(&format!("\"{pattern}\" is not allowed")), "{error}");
    }
}

#[test]
fn an_image_pulled_without_credentials_or_with_the_nodes_is_everybodys() {
    let known = Known::Pulled(make_record("reg.io/a:1", Some(PullCredentials::of(None))));
    assert_eq!(access(&Policy::default(), "reg.io/a:2", &known), Access::Granted);
    assert_eq!(access(&Policy::default(), "reg.io/b:1", &known), Access::Pull, "the same image by another name");
    let killed = Known::Pulled(make_record("reg.io/a:1", None));
    assert_eq!(access(&Policy::default(), "reg.io/a:1", &killed), Access::Pull);
    assert_eq!(access(&Policy::NeverVerify, "reg.io/a:1", &Known::Unreadable), Access::Pull);
}

#[test]
fn a_pod_needs_one_of_the_recorded_secrets_or_the_same_password() {
    let Access::With(recorded) = access(&Policy::default(), "reg.io/a:1", &pulled_with("s", "h")) else {
        panic!("credentials are asked for")
    };
    assert_eq!(compare(&recorded, &[]), Match::None);
    assert_eq!(compare(&recorded, &[make_secret("t", "other")]), Match::None);
    assert_eq!(compare(&recorded, &[make_secret("t", "x"), make_secret("s", "h")]), Match::Found);
    let (copy, rotated) = (make_secret("copy", "h"), make_secret("s", "new"));
    assert_eq!(compare(&recorded, std::slice::from_ref(&copy)), Match::FoundAnew(copy));
    assert_eq!(compare(&recorded, std::slice::from_ref(&rotated)), Match::FoundAnew(rotated));
    let nameless = PullCredentials::of(Some(make_secret("s", "")));
    assert_eq!(compare(&nameless, &[make_secret("t", "")]), Match::None, "no hash is not the same hash");
}

#[test]
fn a_record_stops_growing_with_copies_of_one_password() {
    let recorded = PullCredentials {
        kubernetes_secrets: (0..MOST_ADDED).map(|n| make_secret(&n.to_string(), "h")).collect(),
        ..PullCredentials::default()
    };
    assert_eq!(compare(&recorded, &[make_secret("copy", "h")]), Match::Found);
    assert_eq!(compare(&recorded, &[make_secret("1", "new")]), Match::None);
}

#[test]
fn credentials_are_added_in_order_and_everybodys_replaces_them() {
    let mut record = make_record("reg.io/a:1", Some(PullCredentials::of(Some(make_secret("b", "1")))));
    let mut add = |with: PullCredentials| {
        let new = merged(Some(record.clone()), "reg.io/a:2", "sha256:1", Some(with), "2026-02-02T00:00:00Z").unwrap();
        if let Some(new) = &new {
            record = new.clone();
        }
        new.map(|new| new.credential_mapping["reg.io/a"].clone())
    };
    let names = |c: &PullCredentials| c.kubernetes_secrets.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&add(PullCredentials::of(Some(make_secret("a", "2")))).unwrap()), ["a", "b"]);
    assert_eq!(add(PullCredentials::of(Some(make_secret("a", "2")))), None, "nothing new");
    let rotated = add(PullCredentials::of(Some(make_secret("a", "3")))).unwrap();
    assert_eq!(rotated.kubernetes_secrets[0].credential_hash, "3");
    assert_eq!(add(PullCredentials::of(None)), Some(PullCredentials::of(None)));
    assert_eq!(add(PullCredentials::of(Some(make_secret("c", "1")))), None);
    assert_eq!(record.last_updated_time, "2026-02-02T00:00:00Z");
}
