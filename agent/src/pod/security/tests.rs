//! Tables of security contexts: what each field comes to, and what is refused.

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSpec, SeccompProfile};

use super::*;

mod closed;

fn make_pod(context: PodSecurityContext) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some("p".into());
    pod.metadata.namespace = Some("ns".into());
    pod.metadata.uid = Some("u".into());
    pod.spec = Some(PodSpec { security_context: Some(context), ..PodSpec::default() });
    pod
}

fn make_container(context: SecurityContext) -> Container {
    Container { name: "app".into(), security_context: Some(context), ..Container::default() }
}

fn settings() -> Settings {
    Settings {
        seccomp_default: false,
        seccomp_root: "/seccomp".into(),
        masked_paths: MASKED_PATHS.iter().map(|p| (*p).to_owned()).collect(),
    }
}

fn of(
    pod: PodSecurityContext,
    own: SecurityContext,
    image: &ImageUser,
) -> Result<cri::LinuxContainerSecurityContext, SecurityError> {
    container(&make_pod(pod), &make_container(own), image, None, None, &settings())
}

fn own(own: SecurityContext) -> cri::LinuxContainerSecurityContext {
    of(PodSecurityContext::default(), own, &ImageUser::default()).unwrap()
}

#[test]
fn users_come_from_the_container_then_the_pod_then_the_image() {
    let pod = |user| PodSecurityContext { run_as_user: user, run_as_group: Some(7), ..PodSecurityContext::default() };
    let own = |user| SecurityContext { run_as_user: user, ..SecurityContext::default() };
    let numeric = ImageUser { uid: Some(3), username: String::new() };
    let named = ImageUser { uid: None, username: "web".into() };
    for (of_pod, of_container, image, uid, name) in [
        (Some(1), Some(2), &numeric, Some(2), ""),
        (Some(1), None, &numeric, Some(1), ""),
        (None, None, &numeric, Some(3), ""),
        (None, None, &named, None, "web"),
        (None, Some(2), &named, Some(2), ""),
        (None, Some(0), &numeric, Some(0), ""),
    ] {
        let context = of(pod(of_pod), own(of_container), image).unwrap();
        assert_eq!(context.run_as_user.map(|u| u.value), uid, "{of_pod:?} {of_container:?} {image:?}");
        assert_eq!(context.run_as_username, name);
        assert_eq!(context.run_as_group.map(|g| g.value), Some(7));
    }
}

#[test]
fn run_as_non_root_is_checked_against_spec_and_image() {
    let numeric = |uid| ImageUser { uid: Some(uid), username: String::new() };
    let named = ImageUser { uid: None, username: "web".into() };
    let who = "(pod: \"p_ns(u)\", container: app)";
    let root = format!("container has runAsNonRoot and image will run as root {who}");
    let by_name = format!(
        "container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root {who}"
    );
    let breaks = format!("container's runAsUser breaks non-root policy {who}");
    for (user, image, error) in [
        (Some(5), &numeric(0), None),
        (Some(0), &numeric(5), Some(&breaks)),
        (None, &numeric(5), None),
        (None, &numeric(0), Some(&root)),
        (None, &ImageUser::default(), Some(&root)),
        (None, &named, Some(&by_name)),
        (Some(5), &named, None),
    ] {
        let pod = PodSecurityContext { run_as_non_root: Some(true), ..PodSecurityContext::default() };
        let own = SecurityContext { run_as_user: user, ..SecurityContext::default() };
        let found = of(pod.clone(), own.clone(), image).err().map(|e| e.to_string());
        assert_eq!(found.as_ref(), error, "{user:?} {image:?}");
        let freed = SecurityContext { run_as_non_root: Some(false), ..own };
        assert!(of(pod, freed, image).is_ok(), "the container's own field wins");
    }
}

#[test]
fn groups_are_fs_group_and_supplemental_groups_under_a_known_policy() {
    let pod = |policy: Option<&str>| PodSecurityContext {
        fs_group: Some(100),
        supplemental_groups: Some(vec![200, 300]),
        supplemental_groups_policy: policy.map(str::to_owned),
        ..PodSecurityContext::default()
    };
    for (policy, expected) in [
        (None, cri::SupplementalGroupsPolicy::Merge),
        (Some("Merge"), cri::SupplementalGroupsPolicy::Merge),
        (Some("Strict"), cri::SupplementalGroupsPolicy::Strict),
    ] {
        let context = of(pod(policy), SecurityContext::default(), &ImageUser::default()).unwrap();
        assert_eq!(context.supplemental_groups, [100, 200, 300]);
        assert_eq!(context.supplemental_groups_policy(), expected);
        let sandbox = sandbox(&make_pod(pod(policy)), None).unwrap();
        assert_eq!(sandbox.supplemental_groups, [100, 200, 300]);
        assert_eq!(sandbox.supplemental_groups_policy(), expected);
    }
    let error = of(pod(Some("strict")), SecurityContext::default(), &ImageUser::default()).unwrap_err();
    let text = "supplementalGroupsPolicy has unknown value \"strict\"; allowed are Merge, Strict";
    assert_eq!(error.to_string(), text);
}

#[test]
fn flags_are_passed_on_one_to_one() {
    let none = own(SecurityContext::default());
    assert_eq!((none.privileged, none.readonly_rootfs, none.no_new_privs), (false, false, false));
    assert_eq!(none.capabilities, None);
    let yes = own(SecurityContext {
        privileged: Some(true),
        read_only_root_filesystem: Some(true),
        allow_privilege_escalation: Some(true),
        ..SecurityContext::default()
    });
    assert_eq!((yes.privileged, yes.readonly_rootfs, yes.no_new_privs), (true, true, false));
    let no = own(SecurityContext { allow_privilege_escalation: Some(false), ..SecurityContext::default() });
    assert!(no.no_new_privs);
    let capabilities = Capabilities { add: Some(vec!["NET_ADMIN".into()]), drop: Some(vec!["ALL".into()]) };
    let some = own(SecurityContext { capabilities: Some(capabilities), ..SecurityContext::default() });
    let some = some.capabilities.unwrap();
    assert_eq!((some.add_capabilities, some.drop_capabilities), (vec!["NET_ADMIN".into()], vec!["ALL".into()]));
}

#[test]
fn proc_is_masked_unless_unmasked() {
    let with = |mount: &str| SecurityContext { proc_mount: Some(mount.into()), ..SecurityContext::default() };
    for context in [own(SecurityContext::default()), own(with("Default"))] {
        assert_eq!(context.masked_paths, MASKED_PATHS);
        assert_eq!(context.readonly_paths, READONLY_PATHS);
    }
    let unmasked = own(with("Unmasked"));
    assert!(unmasked.masked_paths.is_empty() && unmasked.readonly_paths.is_empty());
    let error = of(PodSecurityContext::default(), with("unmasked"), &ImageUser::default()).unwrap_err();
    assert_eq!(error.to_string(), "procMount has unknown value \"unmasked\"; allowed are Default, Unmasked");
}

#[test]
fn seccomp_profiles_come_from_the_container_then_the_pod_then_the_default() {
    let profile = |type_: &str, path: Option<&str>| {
        Some(SeccompProfile { type_: type_.into(), localhost_profile: path.map(str::to_owned) })
    };
    let unconfined = (ProfileType::Unconfined, "");
    let runtime = (ProfileType::RuntimeDefault, "");
    let local = (ProfileType::Localhost, "/seccomp/a/b.json");
    for (of_pod, of_container, default, expected) in [
        (None, None, false, unconfined),
        (None, None, true, runtime),
        (profile("RuntimeDefault", None), None, false, runtime),
        (profile("RuntimeDefault", None), profile("Unconfined", None), true, unconfined),
        (profile("Unconfined", None), profile("Localhost", Some("a/b.json")), false, local),
    ] {
        let pod = make_pod(PodSecurityContext { seccomp_profile: of_pod.clone(), ..PodSecurityContext::default() });
        let app =
            make_container(SecurityContext { seccomp_profile: of_container.clone(), ..SecurityContext::default() });
        let settings = Settings { seccomp_default: default, ..settings() };
        let context = container(&pod, &app, &ImageUser::default(), None, None, &settings).unwrap();
        let found = context.seccomp.unwrap();
        let situation = format!("{of_pod:?} {of_container:?} {default}");
        assert_eq!((found.profile_type(), found.localhost_ref.as_str()), expected, "{situation}");
    }
}

#[test]
fn a_profile_file_cannot_be_outside_of_its_directory() {
    for path in [None, Some(""), Some("/etc/passwd"), Some("../x"), Some("a/../../x")] {
        let profile = SeccompProfile { type_: "Localhost".into(), localhost_profile: path.map(str::to_owned) };
        let own = SecurityContext { seccomp_profile: Some(profile), ..SecurityContext::default() };
        let error = of(PodSecurityContext::default(), own, &ImageUser::default()).unwrap_err();
        assert!(error.to_string().starts_with("seccompProfile.localhostProfile"), "{path:?}: {error}");
    }
    let profile = SeccompProfile { type_: "Secure".into(), localhost_profile: None };
    let own = SecurityContext { seccomp_profile: Some(profile), ..SecurityContext::default() };
    assert!(of(PodSecurityContext::default(), own, &ImageUser::default()).is_err());
}

#[test]
fn apparmor_profiles_are_the_containers_or_the_pods() {
    let profile = |type_: &str, name: Option<&str>| {
        Some(AppArmorProfile { type_: type_.into(), localhost_profile: name.map(str::to_owned) })
    };
    let found = |of_pod: Option<AppArmorProfile>, of_container: Option<AppArmorProfile>| {
        let pod = PodSecurityContext { app_armor_profile: of_pod, ..PodSecurityContext::default() };
        let own = SecurityContext { app_armor_profile: of_container, ..SecurityContext::default() };
        of(pod, own, &ImageUser::default()).map(|c| c.apparmor.map(|p| (p.profile_type(), p.localhost_ref)))
    };
    assert_eq!(found(None, None), Ok(None));
    let unconfined = Some((ProfileType::Unconfined, String::new()));
    assert_eq!(found(profile("RuntimeDefault", None), profile("Unconfined", None)), Ok(unconfined));
    let local = Some((ProfileType::Localhost, "mine".to_owned()));
    assert_eq!(found(profile("Localhost", Some("mine")), None), Ok(local));
    assert!(found(None, profile("Localhost", None)).is_err());
    assert!(found(None, profile("Custom", None)).is_err());
}

#[test]
fn namespaces_are_the_pods_unless_the_spec_asks_for_the_nodes() {
    use cri::NamespaceMode::{Container as Own, Node, Pod as Shared, Target};
    let modes = |spec: PodSpec, target: Option<&str>| {
        let pod = Pod { spec: Some(spec), ..Pod::default() };
        let options = namespaces(&pod, target.map(ContainerId::new).as_ref(), None).unwrap();
        (options.network(), options.ipc(), options.pid(), options.target_id)
    };
    let spec = PodSpec::default;
    let none = String::new;
    assert_eq!(modes(spec(), None), (Shared, Shared, Own, none()));
    assert_eq!(modes(PodSpec { host_network: Some(true), ..spec() }, None), (Node, Shared, Own, none()));
    assert_eq!(modes(PodSpec { host_ipc: Some(true), ..spec() }, None), (Shared, Node, Own, none()));
    assert_eq!(modes(PodSpec { host_pid: Some(true), ..spec() }, None), (Shared, Shared, Node, none()));
    let shared = || PodSpec { share_process_namespace: Some(true), ..spec() };
    assert_eq!(modes(shared(), None), (Shared, Shared, Shared, none()));
    assert_eq!(modes(spec(), Some("c1")), (Shared, Shared, Target, "c1".into()));
    assert_eq!(modes(shared(), Some("c1")), (Shared, Shared, Shared, none()), "there is one to join already");
}

#[test]
fn a_sandbox_is_privileged_when_one_of_its_containers_is() {
    let app = |privileged| make_container(SecurityContext { privileged, ..SecurityContext::default() });
    let of = |init: Option<bool>, apps: [Option<bool>; 2]| {
        let spec = PodSpec {
            init_containers: Some(vec![app(init)]),
            containers: apps.map(app).to_vec(),
            ..PodSpec::default()
        };
        sandbox(&Pod { spec: Some(spec), ..Pod::default() }, None).unwrap()
    };
    assert!(!of(None, [None, Some(false)]).privileged);
    assert!(of(None, [None, Some(true)]).privileged);
    assert!(of(Some(true), [None, None]).privileged);
    let seccomp = of(None, [None, None]).seccomp.unwrap();
    assert_eq!(seccomp.profile_type(), ProfileType::RuntimeDefault);
}
