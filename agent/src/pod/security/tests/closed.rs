//! Nothing is lost or defaulted to less (CVE-2019-11245, CVE-2023-2431): every start is told the same, and every value
//! that is empty or not known makes no container.

use k8s_openapi::api::core::v1::Pod;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::pod::container_config::{Inputs, container_config};
use crate::pod::spec::{Role, SpecContainer};

const RANGE: IdRange = IdRange { first: 131_072, length: 65_536 };

fn pod_of(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
}

/// What a start is told, as the runtime gets it.
fn config(pod: &Pod, attempt: u32, image: &ImageUser) -> Result<cri::ContainerConfig, SecurityError> {
    let container = spec::spec(pod).containers[0].clone();
    let settings = settings();
    let inputs = Inputs {
        attempt,
        image_ref: "sha256:1".into(),
        image_user: image.clone(),
        env: Vec::new(),
        mounts: vec![cri::Mount { container_path: "/v".into(), ..cri::Mount::default() }],
        devices: Vec::new(),
        resources: cri::LinuxContainerResources::default(),
        target: None,
        users: has_own_users(pod).then_some(RANGE),
        security: &settings,
    };
    container_config(pod, &SpecContainer { role: Role::App, container, target: None }, inputs)
}

fn maybe<T: serde::Serialize + Clone + std::fmt::Debug + 'static>(values: Vec<T>) -> impl Strategy<Value = Value> {
    proptest::option::of(proptest::sample::select(values)).prop_map(|value| json!(value))
}

fn profile() -> impl Strategy<Value = Value> {
    let profiles = [("RuntimeDefault", None), ("Unconfined", None), ("Localhost", Some("a.json"))];
    let profiles = profiles.map(|(kind, file)| json!({"type": kind, "localhostProfile": file}));
    maybe(profiles.to_vec())
}

prop_compose! {
    fn context()(
        user in maybe(vec![0, 1000]), group in maybe(vec![0, 7]), non_root in maybe(vec![true, false]),
        seccomp in profile(), apparmor in profile(),
    ) -> Value {
        json!({"runAsUser": user, "runAsGroup": group, "runAsNonRoot": non_root, "seccompProfile": seccomp,
            "appArmorProfile": apparmor})
    }
}

prop_compose! {
    fn pods()(
        of_pod in context(), own in context(), policy in maybe(vec!["Merge", "Strict"]), privileged in maybe(vec![true, false]),
        escalation in maybe(vec![true, false]), read_only in maybe(vec![true, false]),
        proc_mount in maybe(vec!["Default", "Unmasked"]), drop in maybe(vec!["ALL", "CAP_NET_RAW", "kill"]),
        users in maybe(vec![true, false]),
    ) -> Pod {
        let mut pod = json!({"hostUsers": users, "securityContext": of_pod, "containers": [{"name": "app", "securityContext": own}]});
        pod["securityContext"]["supplementalGroupsPolicy"] = policy;
        pod["securityContext"]["supplementalGroups"] = json!([5]);
        let own = &mut pod["containers"][0]["securityContext"];
        own["privileged"] = privileged;
        own["allowPrivilegeEscalation"] = escalation;
        own["readOnlyRootFilesystem"] = read_only;
        own["procMount"] = proc_mount;
        own["capabilities"] = json!({"drop": drop.as_str().into_iter().collect::<Vec<_>>()});
        pod_of(pod)
    }
}

proptest! {
    /// First start, restarts, and an image that was there already: the same, but for what counts the starts.
    #[test]
    fn a_restart_is_told_what_the_first_start_was(pod in pods(), uid in proptest::option::of(0i64..3), attempt in 1u32..9) {
        let image = ImageUser { uid, username: String::new() };
        let (first, again) = (config(&pod, 0, &image), config(&pod, attempt, &image));
        prop_assert_eq!(first.as_ref().map(|c| &c.linux), again.as_ref().map(|c| &c.linux));
        prop_assert_eq!(first.as_ref().map(|c| &c.mounts), again.as_ref().map(|c| &c.mounts));
        prop_assert_eq!(config(&pod, 0, &image).map(|c| c.linux), first.map(|c| c.linux));
    }

    /// What was asked for is in what the runtime is told.
    #[test]
    fn nothing_that_restricts_is_lost(pod in pods(), uid in proptest::option::of(0i64..3)) {
        let image = ImageUser { uid, username: String::new() };
        let spec = spec::spec(&pod);
        let (of_pod, own) = (spec.security_context.clone().unwrap(), spec.containers[0].security_context.clone().unwrap());
        let Ok(config) = config(&pod, 0, &image) else {
            // The only reason here: root that is not wanted.
            prop_assert_eq!(own.run_as_non_root.or(of_pod.run_as_non_root), Some(true));
            return Ok(());
        };
        let told = config.linux.unwrap().security_context.unwrap();
        let user = own.run_as_user.or(of_pod.run_as_user).or(uid);
        prop_assert_eq!(told.run_as_user.map(|u| u.value), user);
        if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
            prop_assert!(user.is_some_and(|user| user != 0));
        }
        prop_assert_eq!(told.run_as_group.map(|g| g.value), own.run_as_group.or(of_pod.run_as_group));
        prop_assert_eq!(told.no_new_privs, own.allow_privilege_escalation == Some(false));
        prop_assert_eq!(told.readonly_rootfs, own.read_only_root_filesystem == Some(true));
        prop_assert_eq!(told.privileged, own.privileged == Some(true));
        prop_assert_eq!(told.masked_paths.is_empty(), own.proc_mount.as_deref() == Some("Unmasked"));
        prop_assert_eq!(told.readonly_paths.is_empty(), own.proc_mount.as_deref() == Some("Unmasked"));
        let strict = of_pod.supplemental_groups_policy.as_deref() == Some("Strict");
        prop_assert_eq!(told.supplemental_groups_policy() == cri::SupplementalGroupsPolicy::Strict, strict);
        let dropped = told.capabilities.clone().unwrap_or_default().drop_capabilities;
        let asked = own.capabilities.and_then(|c| c.drop).unwrap_or_default();
        let asked: Vec<String> = asked.iter().map(|name| name.to_uppercase().replace("CAP_", "")).collect();
        prop_assert_eq!(dropped, asked);
        let seccomp = own.seccomp_profile.or(of_pod.seccomp_profile).map_or("Unconfined".to_owned(), |p| p.type_);
        prop_assert_eq!(format!("{:?}", told.seccomp.unwrap().profile_type()), seccomp);
        let apparmor = own.app_armor_profile.or(of_pod.app_armor_profile).map(|p| p.type_);
        prop_assert_eq!(told.apparmor.map(|p| format!("{:?}", p.profile_type())), apparmor);
        let own_users = spec.host_users == Some(false);
        let namespace = told.namespace_options.unwrap().userns_options.unwrap();
        prop_assert_eq!(namespace.mode() == cri::NamespaceMode::Pod, own_users);
        let ids = id_mappings(own_users.then_some(RANGE));
        prop_assert_eq!(&namespace.uids, &ids);
        prop_assert!(config.mounts.iter().all(|mount| mount.uid_mappings == ids && mount.gid_mappings == ids));
    }
}

/// Every field with a set of values, at pod and container, with what an unfinished client could write into it.
#[test]
fn a_value_that_is_empty_or_unknown_makes_no_container() {
    let unknown = ["", " ", "unknown", "runtimedefault", "UNCONFINED", "default", "strict", "Unconfined "];
    for value in unknown {
        for (at_pod, field) in [
            (true, json!({"seccompProfile": {"type": value}})),
            (true, json!({"appArmorProfile": {"type": value}})),
            (true, json!({"supplementalGroupsPolicy": value})),
            (false, json!({"seccompProfile": {"type": value}})),
            (false, json!({"appArmorProfile": {"type": value}})),
            (false, json!({"procMount": value})),
        ] {
            let (of_pod, own) = if at_pod { (field.clone(), json!({})) } else { (json!({}), field.clone()) };
            let pod =
                pod_of(json!({"securityContext": of_pod, "containers": [{"name": "app", "securityContext": own}]}));
            assert!(config(&pod, 0, &ImageUser::default()).is_err(), "{field}");
        }
    }
    for own in [
        json!({"capabilities": {"drop": [""]}}),
        json!({"capabilities": {"add": ["CAP_"]}}),
        json!({"runAsUser": -1}),
        json!({"runAsGroup": 4_294_967_296_i64}),
        json!({"seccompProfile": {"type": "Localhost"}}),
        json!({"seccompProfile": {"type": "Localhost", "localhostProfile": ""}}),
        json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}),
        json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "  "}}),
    ] {
        let pod = pod_of(json!({"containers": [{"name": "app", "securityContext": own}]}));
        assert!(config(&pod, 0, &ImageUser::default()).is_err(), "{own}");
    }
    for of_pod in
        [json!({"fsGroup": -1}), json!({"supplementalGroups": [1, -5]}), json!({"runAsUser": 2_147_483_648_i64})]
    {
        let pod = pod_of(json!({"securityContext": of_pod, "containers": [{"name": "app"}]}));
        assert!(config(&pod, 0, &ImageUser::default()).is_err() && sandbox(&pod, None).is_err(), "{of_pod}");
    }
}

#[test]
fn an_annotation_counts_before_the_pods_profile_and_after_the_containers() {
    let with = |annotation: &str, own: Value| {
        let mut pod = pod_of(json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}},
            "containers": [{"name": "app", "securityContext": {"appArmorProfile": own}}]}));
        let key = "container.apparmor.security.beta.kubernetes.io/app".to_owned();
        pod.metadata.annotations = Some([(key, annotation.to_owned())].into());
        let told = config(&pod, 0, &ImageUser::default()).map(|c| c.linux.unwrap().security_context.unwrap());
        told.map(|told| told.apparmor.map(|profile| (profile.profile_type(), profile.localhost_ref)))
    };
    let local = Ok(Some((ProfileType::Localhost, "mine".to_owned())));
    assert_eq!(with("localhost/mine", Value::Null), local);
    assert_eq!(with("runtime/default", Value::Null), Ok(Some((ProfileType::RuntimeDefault, String::new()))));
    assert_eq!(with("unconfined", json!({"type": "Localhost", "localhostProfile": "mine"})), local);
    for bad in ["", "localhost/", "docker-default"] {
        assert!(with(bad, Value::Null).is_err(), "{bad}");
    }
}

#[test]
fn own_users_need_a_range_a_runtime_and_no_namespace_of_the_node() {
    let pod = pod_of(json!({"hostUsers": false, "containers": [{"name": "app"}]}));
    assert!(namespaces(&pod, None, None).is_err(), "without a range it would run with the node's ids");
    let options = namespaces(&pod, None, Some(RANGE)).unwrap().userns_options.unwrap();
    assert_eq!((options.mode(), options.uids.len()), (cri::NamespaceMode::Pod, 1));
    for field in ["hostNetwork", "hostIPC", "hostPID"] {
        let mut spec = json!({"hostUsers": false, "containers": []});
        spec[field] = json!(true);
        assert!(namespaces(&pod_of(spec), None, Some(RANGE)).unwrap_err().to_string().contains(field));
    }
    let can = RuntimeFeatures { user_namespaces: true, ..RuntimeFeatures::default() };
    assert_eq!(check_runtime(&pod, "", can), Ok(()));
    let text = |handler| check_runtime(&pod, handler, RuntimeFeatures::default()).unwrap_err().to_string();
    assert_eq!(text(""), "can't set `spec.hostUsers: false`, runtime does not support user namespaces");
    assert!(text("gvisor").contains("RuntimeClass handler \"gvisor\" does not support user namespaces"));
    let strict = pod_of(json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}, "containers": []}));
    assert!(check_runtime(&strict, "", RuntimeFeatures::default()).is_err());
    let shared = pod_of(json!({"hostUsers": true, "containers": [{"name": "app"}]}));
    let options = namespaces(&shared, None, None).unwrap().userns_options.unwrap();
    assert_eq!((options.mode(), options.uids.len()), (cri::NamespaceMode::Node, 0));
}
